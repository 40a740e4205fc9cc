"""A plan is a value: desired relations × deployed relations → ordered steps, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from recs_platform.pipeline import Pipeline, Relation


class Action(StrEnum):
    CREATE = "create"
    SWITCH = "switch"
    DROP = "drop"


@dataclass(frozen=True)
class Step:
    """`name` is the public name; `fingerprint` the version that is created, switched to or dropped."""

    action: Action
    name: str
    fingerprint: str
    reason: str

    def __str__(self) -> str:
        return f"{self.action} {self.name}__{self.fingerprint}: {self.reason}"


@dataclass(frozen=True)
class Plan:
    steps: tuple[Step, ...]

    def __bool__(self) -> bool:
        return bool(self.steps)

    def of(self, action: Action) -> list[Step]:
        return [step for step in self.steps if step.action is action]

    @property
    def creates(self) -> set[str]:
        return {step.name for step in self.of(Action.CREATE)}


def make_plan(pipeline: Pipeline, deployed: Mapping[str, str], rebuild: Iterable[str] = ()) -> Plan:
    """The steps from what is deployed (public name → live fingerprint) to what `sql/` says.

    Relations named in `rebuild` are created anew although their fingerprint stands. Everything that reads a
    relation with a new fingerprint has a new one itself, so that a change cascades by itself.
    """
    again = set(rebuild)
    for name in again:
        pipeline[name]  # raises for a name nobody defines
    creates = [
        Step(Action.CREATE, r.name, r.fingerprint, _reason(r, pipeline, deployed, again))
        for r in pipeline
        if r.is_materialized or r.query is not None
        if deployed.get(r.name) != r.fingerprint or r.name in again
    ]
    switches = [
        Step(Action.SWITCH, s.name, s.fingerprint, f"readers go over from {deployed[s.name]}")
        for s in creates
        if deployed.get(s.name) not in (None, s.fingerprint)
    ]
    drops = [
        Step(Action.DROP, name, fingerprint, _why_dropped(name, pipeline))
        for name, fingerprint in deployed.items()
        if name not in pipeline.relations or pipeline[name].fingerprint != fingerprint
    ]
    return Plan((*creates, *switches, *reversed(drops)))


def _reason(relation: Relation, pipeline: Pipeline, deployed: Mapping[str, str], again: set[str]) -> str:
    if relation.name in again:
        return "asked for"
    if relation.name not in deployed:
        return "not deployed"
    changed = [u for u in relation.upstreams if u in deployed and deployed[u] != pipeline[u].fingerprint]
    return f"reads {', '.join(changed)}, which changed" if changed else "its SQL changed"


def _why_dropped(name: str, pipeline: Pipeline) -> str:
    return "replaced" if name in pipeline.relations else "no file defines it any more"
