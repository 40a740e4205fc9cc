"""Who reads what: everything below a relation, and how far one column is felt."""

from __future__ import annotations

from sqlglot import exp
from sqlglot.optimizer.scope import traverse_scope

from recs_platform.pipeline import Pipeline, Relation

_CLAUSES = ("with_", "joins", "where", "group", "having", "qualify", "order", "limit", "distinct")


def downstream(pipeline: Pipeline, name: str) -> list[Relation]:
    """Everything that reads a relation, directly or not, nearest first."""
    found = {name}
    for relation in pipeline:
        if not found.isdisjoint(relation.upstreams):
            found.add(relation.name)
    return [relation for relation in pipeline if relation.name in found and relation.name != name]


def readers_of(pipeline: Pipeline, name: str, column: str) -> list[str]:
    """The relations whose query reads a column of another, in whatever clause."""
    return [r.name for r in pipeline if name in r.upstreams and column in columns_read(r).get(name, ())]


def columns_read(relation: Relation) -> dict[str, set[str]]:
    """Upstream → the columns of it that the relation's query reads."""
    found: dict[str, set[str]] = {}
    for scope in traverse_scope(relation.query) if relation.query is not None else ():
        for alias, source in scope.sources.items():
            if isinstance(source, exp.Table):
                found.setdefault(source.name, set()).update(c.name for c in scope.source_columns(alias))
    return found


def fed_by(pipeline: Pipeline, name: str, column: str) -> list[Relation]:
    """The relations whose rows depend on a column, directly or not, upstreams first.

    A query that does no more than pick columns hands on those alone; through any other, all of its columns depend on
    each it reads.
    """
    felt = {name: {column}}
    for relation in pipeline:
        read = columns_read(relation)
        touched = {(u, c) for u in relation.upstreams for c in felt.get(u, set()) & read.get(u, set())}
        if touched:
            felt[relation.name] = {
                c.name
                for c in relation.columns
                if not _merely_picks(relation) or touched & {(o.relation, o.column) for o in c.lineage}
            }
    return [relation for relation in pipeline if relation.name in felt and relation.name != name]


def _merely_picks(relation: Relation) -> bool:
    """Whether the query is one SELECT over one relation without any clause beside its columns."""
    query = relation.query
    return (
        isinstance(query, exp.Select)
        and not any(query.args.get(clause) for clause in _CLAUSES)
        and query.find(exp.Subquery, exp.Window, exp.AggFunc) is None
    )
