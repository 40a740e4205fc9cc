"""What a plan means: for each relation what becomes of its columns, what hangs on it, what it costs, and what it breaks.

Pure: from the pipeline as it is deployed and as the files have it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import sqlglot
from sqlglot.errors import SqlglotError

from recs_platform.capabilities import Capabilities
from recs_platform.columns import DIALECT
from recs_platform.lineage import label, outside_key
from recs_platform.pipeline import Kind, Pipeline, Relation
from recs_platform.plan import Action, Plan, Step
from recs_platform.readers import downstream, readers_of
from recs_platform.serving import keys


@dataclass(frozen=True)
class Change:
    """What becomes of one relation. Retyped columns read `price: DOUBLE PRECISION → VARCHAR`; `diff` is a unified diff."""

    name: str
    version: str
    what: str  # created, rebuilt or dropped
    reason: str
    gone: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    retyped: tuple[str, ...] = ()
    diff: str = ""
    feeds: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    loses_history: bool = False
    breaks: tuple[str, ...] = ()


def changes(plan: Plan, before: Pipeline, after: Pipeline, capabilities: Capabilities) -> list[Change]:
    """One for each relation that is created or rebuilt, upstreams first, then those that no file defines any more."""
    built = [_built(step, plan, before, after, capabilities) for step in plan.of(Action.CREATE)]
    return [*built, *(_dropped(step, before) for step in plan.of(Action.DROP) if step.name not in after.relations)]


def _built(step: Step, plan: Plan, before: Pipeline, after: Pipeline, capabilities: Capabilities) -> Change:
    relation, old = after[step.name], before.relations.get(step.name)
    types, old_types = _types(relation), _types(old)
    below = downstream(after, relation.name)
    diff = diff_of(old.text, relation.text) if old else ""
    retyped = {name: old_types[name] for name in types if name in old_types and old_types[name] != types[name]}
    return Change(
        name=relation.name,
        version=step.version,
        what="rebuilt" if old else "created",
        reason=f"its SQL changed, and it {step.reason}" if diff and step.reason.startswith("reads ") else step.reason,
        gone=tuple(name for name in old_types if name not in types),
        added=tuple(name for name in types if name not in old_types) if old else (),
        retyped=tuple(f"{name}: {was} → {types[name]}" for name, was in retyped.items()),
        diff=diff,
        feeds=tuple(r.name for r in below),
        prefixes=tuple(_prefixes([relation, *below], plan)),
        reads=tuple(_reads(relation, plan.creates)),
        loses_history=bool(old) and not capabilities.keeps_history_for_rebuilds and _is_fed_by_topic(relation, after),
        breaks=tuple(_breaks(relation, old, retyped, after)),
    )


def _dropped(step: Step, before: Pipeline) -> Change:
    relation = before.relations.get(step.name)
    served = [relation.redis_name] if relation and relation.kind is Kind.SINK else []
    breaks = tuple(f"the serving library reads {keys.pointer(name)}" for name in served if name in keys.SERVED)
    return Change(step.name, step.version, "dropped", step.reason, gone=tuple(_types(relation)), breaks=breaks)


def _types(relation: Relation | None) -> dict[str, str]:
    return {column.name: column.type for column in relation.columns} if relation else {}


def _prefixes(relations: Iterable[Relation], plan: Plan) -> Iterator[str]:
    for relation in relations:
        if relation.kind is Kind.SINK:
            version = plan.targets.get(relation.name, relation.fingerprint)
            yield keys.prefix(relation.redis_name, str(version))


def _reads(relation: Relation, creates: set[str]) -> Iterator[str]:
    """What its rows are made from: relations that stay, or what lies outside the engine."""
    outside = outside_key(relation)
    if outside:
        yield label(outside)
    yield from (name for name in relation.upstreams if name not in creates)


def _is_fed_by_topic(relation: Relation, pipeline: Pipeline) -> bool:
    """Whether it is made from messages themselves: itself a source, or over nothing but plain views of one."""
    if relation.topic:
        return True
    return any(
        pipeline[u].topic or (not pipeline[u].is_materialized and _is_fed_by_topic(pipeline[u], pipeline))
        for u in relation.upstreams
    )


# -- what breaks ------------------------------------------------------------------------------------------------------


def _breaks(relation: Relation, old: Relation | None, retyped: Mapping[str, str], after: Pipeline) -> Iterator[str]:
    """A column that is gone breaks no relation: one that went on reading it would not have parsed."""
    if old is None:
        return
    types = _types(relation)
    for name in _types(old):
        if name in retyped and (readers := readers_of(after, relation.name, name)):
            yield f"{name} becomes {types[name]}; read by {', '.join(readers)}"
    served = keys.SERVED.get(relation.redis_name, frozenset()) if relation.kind is Kind.SINK else frozenset()
    for name in sorted(served):
        if name not in types:
            yield f"{name} is gone; read by the serving library in {keys.pointer(relation.redis_name)}"
        elif name in retyped:
            yield f"{name} becomes {types[name]}; read by the serving library in {keys.pointer(relation.redis_name)}"


# -- the difference ---------------------------------------------------------------------------------------------------


def diff_of(before: str, after: str) -> str:
    """A unified diff of two statements, laid out alike; "" where they say the same."""
    lines = difflib.unified_diff(_laid_out(before), _laid_out(after), "deployed", "sql/", lineterm="", n=1)
    return "\n".join(list(lines)[2:])


def _laid_out(sql: str) -> list[str]:
    try:
        return sqlglot.parse_one(sql, dialect=DIALECT).sql(DIALECT, pretty=True, comments=False).splitlines()
    except SqlglotError:
        return [line.strip() for line in sql.splitlines() if line.strip() and not line.lstrip().startswith("--")]
