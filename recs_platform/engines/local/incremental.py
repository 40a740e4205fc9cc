"""How a relation is refreshed: a pure analysis of its query, worked out once when it is deployed.

A query reads *occurrences* of base relations (the same relation may occur twice). The analysis finds the
*refresh key*: output columns by which the whole query falls apart into independent pieces, because every
GROUP BY holds them and every window is partitioned by them. A change of a base row then touches only the
pieces whose key it carries, and a piece is recomputed from the base rows of that key alone.

The modes, from the cheapest to the one that is always right:

- `PASSING`: a plain view of a Kafka source: computed once a tick for all that append from it, and kept nowhere;
- `DERIVED`: one row in, at most one out, and cheap to work out: a view of DuckDB's, and only its changes are computed;
- `APPEND`: messages of a Kafka source, one in, at most one out; rows leave only as time passes;
- `LINEAR`: one row in, at most one out, identified by its key: only changed rows are computed;
- `ADDITIVE`: counts, sums and extremes of the rows of one relation that hardly ever lose one: what is new is added to
  the row that stands; where rows left, the pieces they touch are recomputed;
- `TOP`: the first rows of each partition of one relation: those kept and those new are ranked anew, see `ranking`;
- `KEYED`: the pieces that changed rows touch are recomputed;
- `DOCUMENTS`: the same of a sink that does not look at the time, whose rows nothing reads: they are worked out for Redis and
  kept nowhere;
- `FULL`: no key could be shown; everything is recomputed when anything it reads changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from sqlglot import exp

from recs_platform.engines.local.ranking import Top, top_of
from recs_platform.engines.local.tracing import Edge, Occurrence, TimeFilter, Traced, Tracer
from recs_platform.errors import UnsupportedSql
from recs_platform.pipeline import Kind, Pipeline, Relation, render

_BY_TIME_ALONE = (
    "a view of a Kafka source may filter by time with `column > NOW() - INTERVAL …` alone, and must select that column"
)


class Mode(StrEnum):
    PASSING = "passing"
    DERIVED = "derived"
    APPEND = "append"
    LINEAR = "linear"
    ADDITIVE = "additive"
    TOP = "top"
    KEYED = "keyed"
    DOCUMENTS = "documents"
    FULL = "full"


@dataclass(frozen=True)
class Analysis:
    """What is known of a query; all that `refresh` needs to write its SQL."""

    relation: Relation
    query: exp.Query
    mode: Mode
    key: tuple[str, ...]
    occurrences: tuple[Occurrence, ...]
    used: dict[int, frozenset[str]]
    traced_key: dict[str, Traced]  # and of a sink's Redis key, where it can be told from what is read
    outputs: dict[str, Traced]  # each column, as far as it can be told from what is read
    edges: tuple[Edge, ...]
    filters: dict[int, list[exp.Expr]]
    time_filters: tuple[TimeFilter, ...]
    clock_bound: bool  # holds a NOW() that could not be traced to a base row: recompute whenever time moves
    combined: dict[
        str, str
    ]  # of an additive query: column → "sum", "greatest" or "least" of what stands and what is new
    top: Top | None  # how it is kept, where it is the first rows of each partition
    tally: str | None  # of an additive query that does nothing but count, and forgets what is old: its COUNT(*)

    @property
    def driving(self) -> tuple[Occurrence, ...]:
        """The occurrences whose changes matter: a looked-up relation touches nothing."""
        return tuple(o for o in self.occurrences if not o.is_lookup)

    def path_to_key(self, start: int) -> tuple[list[Edge], dict[str, exp.Expr]] | None:
        """The joins that lead from an occurrence to expressions of the whole key, or None where none do."""
        towards = self._ways_from(start)
        nearest = {k: next((i for i in towards if i in traced), None) for k, traced in self.traced_key.items()}
        # none beside the way: a row that an outer join has no partner for would be lost there
        needed, edges = {i for i in nearest.values() if i is not None}, list[Edge]()
        for i, edge in reversed(towards.items()):
            if i in needed and edge is not None:
                edges.insert(0, edge)
                needed.add(edge.left if edge.right == i else edge.right)
        found = {k: self.traced_key[k][i] for k, i in nearest.items() if i is not None}
        return (edges, found) if len(found) == len(nearest) else None

    def _ways_from(self, start: int) -> dict[int, Edge | None]:
        """Each occurrence that joins lead to, the nearest first, with the last join on the shortest way."""
        found: dict[int, Edge | None] = {start: None}
        queue = [start]
        for at in queue:
            for edge in self.edges:
                if (
                    at in (edge.left, edge.right)
                    and (other := edge.right if edge.left == at else edge.left) not in found
                ):
                    found[other] = edge
                    queue.append(other)
        return found


def analyse(relation: Relation, pipeline: Pipeline) -> Analysis:
    """Raises `UnsupportedSql` where the local engine could not keep the relation right."""
    assert relation.query is not None
    if not relation.is_materialized:
        return _analysed(relation, pipeline, _inline_views(relation.query.copy(), pipeline))
    appended = _analysed(
        relation, pipeline, _inline_views(relation.query.copy(), pipeline, passing_views(relation, pipeline))
    )
    if appended.mode is Mode.APPEND:
        return appended
    return _analysed(relation, pipeline, _inline_views(relation.query.copy(), pipeline))


def passing_views(relation: Relation, pipeline: Pipeline) -> frozenset[str]:
    """The plain views among the upstreams that look at each message of a Kafka source by itself."""
    plain = [pipeline[name] for name in relation.upstreams if _is_plain_view(pipeline, name)]
    return frozenset(view.name for view in plain if analyse(view, pipeline).mode is Mode.PASSING)


def _analysed(relation: Relation, pipeline: Pipeline, query: exp.Query) -> Analysis:
    # The version first: a key that holds it is compared with stored rows, which hold it too.
    query = _with_version(query, relation.fingerprint)
    tracer = Tracer(query, relation)
    traced = {name: tracer.output(tracer.root, i) for i, name in enumerate(query.named_selects)}
    survivors = {name: found for name, found in traced.items() if found}
    # Where the rows' own key survived, a piece is one row: nothing is finer.
    key = relation.key if relation.key and set(relation.key) <= survivors.keys() else tuple(survivors)
    redis_key = {"key"} & survivors.keys() if relation.kind is Kind.SINK else set()
    analysis = Analysis(
        relation=relation,
        query=query,
        mode=Mode.FULL,
        key=key,
        occurrences=tuple(tracer.occurrences.values()),
        used=tracer.used(),
        traced_key={k: survivors[k] for k in dict.fromkeys((*key, *redis_key))},
        outputs=traced,
        edges=tuple(tracer.edges()),
        filters=tracer.filters(),
        time_filters=tuple(tracer.time_filters),
        clock_bound=tracer.clock_bound,
        combined=tracer.combined(),
        top=_top(query, tracer, pipeline),
        tally=_tally(query, tracer),
    )
    mode = _mode(analysis, tracer, pipeline)
    return replace(analysis, mode=mode, key=key if mode is not Mode.FULL else ())


def _mode(analysis: Analysis, tracer: Tracer, pipeline: Pipeline) -> Mode:
    has_lookup = any(o.is_lookup for o in analysis.occurrences)
    of_messages = all(_brings_messages(pipeline[o.relation]) for o in analysis.driving)
    is_timeless = not (analysis.time_filters or analysis.clock_bound)
    is_plain = tracer.is_linear and is_timeless and len(analysis.driving) == 1 and not has_lookup
    if not analysis.relation.is_materialized:
        return Mode.PASSING if is_plain and of_messages else Mode.FULL
    if tracer.is_linear and of_messages:
        _check_appended(analysis)
        return Mode.APPEND
    if any(pipeline[o.relation].topic and not pipeline[o.relation].is_keyed for o in analysis.driving):
        raise UnsupportedSql(
            "the log of a Kafka source is not kept for ever: keep its messages in a view of their own, and aggregate or join that one",
            analysis.relation.path,
        )
    if is_plain and _is_cheap(analysis):
        return Mode.DERIVED
    lost = any(analysis.path_to_key(f.home) is None for f in analysis.time_filters)
    if not analysis.key or analysis.clock_bound or lost:
        if has_lookup:
            raise UnsupportedSql(
                "a lookup join must keep the key of its left side and stand alone: aggregate it in a view of its own",
                analysis.relation.path,
            )
        return Mode.FULL
    own_key = analysis.relation.key and set(analysis.relation.key) == set(analysis.key)
    if tracer.is_linear and len(analysis.driving) == 1 and own_key:
        return Mode.LINEAR
    if not tracer.is_row_wise and has_lookup:
        raise UnsupportedSql(
            "the local engine cannot aggregate over a lookup join: keep its rows in a view and aggregate that one",
            analysis.relation.path,
        )
    is_sum = own_key and analysis.combined.keys() == set(analysis.query.named_selects) - set(analysis.key)
    if is_sum and analysis.combined and all(_only_grows(pipeline[o.relation], pipeline) for o in analysis.driving):
        return Mode.ADDITIVE
    if analysis.top and is_timeless:
        return Mode.TOP
    # rows that come and go by themselves are kept: whoever looks between two ticks has no NOW()
    return Mode.DOCUMENTS if is_timeless and _tells_redis_keys(analysis) else Mode.KEYED


def _check_appended(analysis: Analysis) -> None:
    """Rows of messages are added and expire by themselves, so that each must do so in the same way, whichever branch it is of."""
    path, ways = analysis.relation.path, set[tuple[tuple[str, int], ...]]()
    if analysis.clock_bound:
        raise UnsupportedSql(_BY_TIME_ALONE, path)
    if any(union.args.get("distinct") for union in analysis.query.find_all(exp.SetOperation)):
        raise UnsupportedSql(
            "over a Kafka source UNION ALL alone: what is the same is told apart in a view of its own", path
        )
    for o in analysis.driving:
        ways.add(tuple(sorted((f.op, f.offset) for f in analysis.time_filters if o.index in f.subject)))
    if len(ways) > 1:
        raise UnsupportedSql("the branches of a UNION ALL over Kafka sources must filter by time alike", path)


def expiring_columns(analysis: Analysis) -> Iterator[tuple[str, TimeFilter]]:
    """The output columns by which rows of a source's view expire: its log may be shorter than the view. Raises `UnsupportedSql`."""
    for time_filter in analysis.time_filters:
        column = next((name for name, traced in analysis.outputs.items() if _is_the_same(traced, time_filter)), None)
        if column is None or not time_filter.keeps_newer:
            subjects = sorted({expression.sql().partition(".")[2] for expression in time_filter.subject.values()})
            raise UnsupportedSql(f"{_BY_TIME_ALONE} ({', '.join(subjects)})", analysis.relation.path)
        yield column, time_filter


def _is_the_same(output: Traced, time_filter: TimeFilter) -> bool:
    """Whether a column is what a filter looks at, in whichever branch."""
    return all(i in output and output[i].sql() == subject.sql() for i, subject in time_filter.subject.items())


def _tells_redis_keys(analysis: Analysis) -> bool:
    """Whether each change of what a sink reads tells which Redis keys it touches."""
    has_key = analysis.relation.kind is Kind.SINK and "key" in analysis.traced_key
    return has_key and all(analysis.path_to_key(o.index) is not None for o in analysis.driving)


def _top(query: exp.Query, tracer: Tracer, pipeline: Pipeline) -> Top | None:
    read = list(tracer.occurrences.values())
    return top_of(query, pipeline[read[0].relation].key) if len(read) == 1 else None


def _tally(query: exp.Query, tracer: Tracer) -> str | None:
    """The COUNT(*) of a query whose every aggregate counts, so that rows that go can be taken off again."""
    values = {s.alias_or_name: s.unalias() for s in query.selects if s.find(exp.AggFunc)}
    are_counts = all(isinstance(v, exp.Count) and not v.find(exp.Distinct) for v in values.values())
    filters = tracer.time_filters
    forgets = len(filters) == 1 and filters[0].keeps_newer and len(filters[0].subject) == 1 and not tracer.clock_bound
    tallies = [name for name, value in values.items() if isinstance(value.this, exp.Star)]
    return tallies[0] if tallies and are_counts and forgets else None


def _brings_messages(relation: Relation) -> bool:
    """A Kafka source, or a plain view: what is left of those after inlining passes messages on."""
    return relation.kind is Kind.SOURCE or not relation.is_materialized


def _only_grows(relation: Relation, pipeline: Pipeline) -> bool:
    """Whether its rows stand for messages, so that they leave by time alone; rows of others are replaced."""
    is_kept = relation.is_materialized_query
    return is_kept and analyse(relation, pipeline).mode in (Mode.APPEND, Mode.LINEAR)


def _is_cheap(analysis: Analysis) -> bool:
    """Whether rows may be worked out at each reading: of a sink, which nothing reads, or by choosing rows and columns."""
    selects = analysis.query.find_all(exp.Select)
    chosen = (isinstance(projection.unalias(), exp.Column) for select in selects for projection in select.selects)
    return analysis.relation.kind is Kind.SINK or all(chosen)


def _with_version(query: exp.Query, version: str) -> exp.Query:
    for literal in query.find_all(exp.Literal):
        literal.set("this", render(literal.this, {"version": version}))
    return query


def _inline_views(query: exp.Query, pipeline: Pipeline, keep: frozenset[str] = frozenset()) -> exp.Query:
    """Plain views replaced by what they stand for, but for those to keep."""
    while True:
        views = [t for t in query.find_all(exp.Table) if t.name not in keep and _is_plain_view(pipeline, t.name)]
        if not views:
            return query
        for table in views:
            inner = pipeline[table.name].query
            assert inner is not None
            table.replace(inner.copy().subquery(table.alias_or_name))


def _is_plain_view(pipeline: Pipeline, name: str) -> bool:
    return pipeline[name].query is not None and not pipeline[name].is_materialized
