"""A plan is a value: desired relations × deployed versions → ordered steps, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from recs_platform.capabilities import Capabilities
from recs_platform.deployment import Deployment, Version
from recs_platform.physical_names import VersionId, physical_name
from recs_platform.pipeline import Pipeline, Relation


class Action(StrEnum):
    CREATE = "create"
    SWITCH = "switch"
    DROP = "drop"


@dataclass(frozen=True)
class Step:
    """`name` is the public name; `version` the one that is created, switched to or dropped."""

    action: Action
    name: str
    version: str
    reason: str

    @property
    def physical_name(self) -> str:
        return physical_name(self.name, self.version)

    def __str__(self) -> str:
        return f"{self.action} {self.physical_name}: {self.reason}"


Tell = Callable[[Step, float | None, str], None]
"""Told of a step under way: how far it is from 0 to 1, None where nobody knows, and in words."""


@dataclass(frozen=True)
class Plan:
    """`targets`: the version of every relation once the plan is done."""

    steps: tuple[Step, ...]
    targets: Mapping[str, VersionId] = field(default_factory=dict, compare=False)

    def __bool__(self) -> bool:
        return bool(self.steps)

    def of(self, action: Action) -> list[Step]:
        return [step for step in self.steps if step.action is action]

    @property
    def creates(self) -> set[str]:
        return {step.name for step in self.of(Action.CREATE)}


def make_plan(
    pipeline: Pipeline,
    deployment: Deployment,
    capabilities: Capabilities,
    rebuild: Iterable[str] = (),
    only: Collection[str] | None = None,
    lost: Mapping[str, VersionId] = MappingProxyType({}),
) -> Plan:
    """The steps from what is deployed to what `sql/` says.

    Relations named in `rebuild` are built anew although their fingerprint stands. Everything that reads a relation with
    a new version has a new one itself, so that a change cascades by itself. A version that is there already, left by a
    plan that was cut short, is not created again; one that is not whole yet is waited for. With `only`, all other
    relations stay on the version they have. `lost`: versions that readers are on though the engine has them no more, so
    that others are to be made beside them.
    """
    again = set(rebuild)
    for name in again:
        pipeline[name]  # raises for a name nobody defines
    wanted = [r for r in pipeline if not r.is_connection or capabilities.deploys_connections]
    in_place = again if capabilities.rebuilds_in_place else set[str]()
    live = deployment.live
    if only is not None:
        wanted = [r for r in wanted if r.name in only]
    staying = {name: id for name, id in live.items() if only is not None and name not in only}
    targets = staying | _targets(wanted, deployment, again - in_place, staying, lost)
    creates = [
        Step(Action.CREATE, r.name, str(targets[r.name]), _reason(r, targets, deployment, again))
        for r in wanted
        if r.name in in_place or not ((v := deployment.get(r.name, targets[r.name])) and v.is_whole)
    ]
    switches = [
        Step(Action.SWITCH, name, str(target), f"readers go over from {live[name]}")
        for name, target in targets.items()
        if live.get(name) not in (None, target)
    ]
    return Plan((*creates, *switches, *_drops(targets, deployment)), targets)


def _targets(
    wanted: Iterable[Relation],
    deployment: Deployment,
    again: set[str],
    staying: Mapping[str, VersionId],
    lost: Mapping[str, VersionId],
) -> dict[str, VersionId]:
    """The version each relation is to have: one that is there where it is right and reads the right ones."""
    targets = dict(staying)
    for relation in wanted:
        known = [v for v in deployment.of(relation.name) if v.id.fingerprint == relation.fingerprint]
        reads = {physical_name(u, targets[u]) for u in relation.upstreams if u in targets}
        right = [v for v in known if not v.definition or reads <= v.reads]
        if relation.name in again:
            right = [v for v in right if _is_begun(v, deployment.live.get(relation.name))]
        chosen = max(right, key=lambda v: (v.is_live, v.id.generation), default=None)
        used = [
            id
            for id in (*(v.id for v in known), lost.get(relation.name))
            if id and id.fingerprint == relation.fingerprint
        ]
        newer = VersionId(relation.fingerprint, 1 + max((id.generation for id in used), default=-1))
        targets[relation.name] = chosen.id if chosen else newer
    return targets


def _is_begun(version: Version, live: VersionId | None) -> bool:
    """Whether it is a rebuild of the live version that was cut short."""
    is_younger = live is not None and live.fingerprint == version.id.fingerprint and version.id > live
    return is_younger and version.replaced_at is None


def _reason(relation: Relation, targets: Mapping[str, VersionId], deployment: Deployment, again: set[str]) -> str:
    live = deployment.live
    if deployment.get(relation.name, targets[relation.name]) and relation.name not in again:
        return "begun before, and not whole yet"
    if relation.name in again:
        return "asked for"
    if relation.name not in live:
        return "not deployed"
    changed = [u for u in relation.upstreams if u in live and live[u] != targets.get(u)]
    return f"reads {', '.join(changed)}, which changed" if changed else "its SQL changed"


def _drops(targets: Mapping[str, VersionId], deployment: Deployment) -> Iterator[Step]:
    """The youngest first: what reads was created after what it reads. What something reads that stays, stays."""
    read = set[str]()
    for version in reversed(deployment.versions):
        if targets.get(version.name) == version.id or version.physical_name in read:
            read |= version.reads
    for version in reversed(deployment.versions):
        if targets.get(version.name) != version.id and version.physical_name not in read:
            reason = "replaced" if version.name in targets else "no file defines it any more"
            yield Step(Action.DROP, version.name, str(version.id), reason)
