"""Carries a plan out: create and wait, verify, switch, and later drop. Each step can be repeated.

Nothing is kept but what the engine's catalog and Redis hold, so whoever comes after a crash makes a new plan and goes
on from there. Two at once are kept apart by a lock in Redis that its owner has to renew.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from random import sample
from typing import Protocol, cast

import pyarrow as pa
import redis

from recs_platform.deployment import Deployment, Version
from recs_platform.errors import EngineError, EngineUnavailable, SourceError
from recs_platform.lease import Lease
from recs_platform.physical_names import VersionId, physical_name, physical_names, taken_apart
from recs_platform.pipeline import Kind, Pipeline, Relation
from recs_platform.plan import Action, Plan, Step, Tell
from recs_platform.serving import keys, versions
from recs_platform.serving.documents import is_document_of

BETWEEN_LOOKS = 0.2
BETWEEN_COUNTS = 2.0  # of all rows of a table, in two places
VERIFY_SECONDS = 600.0
STANDS_SECONDS = 900.0  # for which a build may not get on
SAMPLE = 200  # documents of a new version that are compared with their rows
SLOT = "slot:"  # what is noted of a connection that was replaced, before the name of its replication slot
NEVER_LIVE = 0.0  # since when something is replaced that no reader was ever on
_LAG = re.compile(r"\blag:? ((?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h)\s*)+)")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")


class Versioned(Protocol):
    """What is asked of an engine that keeps versions side by side."""

    def deployment(self) -> Deployment: ...
    def progress(self) -> dict[str, str]: ...
    def prepare(self, created: Sequence[Relation]) -> None: ...
    def create(self, relation: Relation, targets: Mapping[str, VersionId]) -> None: ...
    def wait(self) -> None: ...
    def filling(self, relation: Relation, version: VersionId) -> tuple[int, int] | None: ...
    def failure(self, physical: str) -> str: ...
    def sink_keys(self, sink: Relation, targets: Mapping[str, VersionId]) -> pa.Table: ...
    def rows_of(self, sink: Relation, targets: Mapping[str, VersionId], among: Sequence[str]) -> pa.Table: ...
    def publish(self, name: str, version: VersionId) -> None: ...
    def unpublish(self, name: str) -> None: ...
    def drop(self, version: Version) -> None: ...
    def drop_slot(self, slot: str) -> None: ...


class Applier:
    """Of one engine and its Redis. `grace`: seconds for which what was replaced stays, so that one can go back."""

    def __init__(
        self, engine: Versioned, connection: redis.Redis, lease: Lease, grace: float, tell: Tell | None = None
    ) -> None:
        self._engine, self._redis, self._lease, self._grace = engine, connection, lease, grace
        self._tell: Tell = tell or (lambda *_: None)

    def apply(self, pipeline: Pipeline, plan: Plan) -> None:
        """Raises `EngineError` where the engine refuses or a version does not come out right; nothing is switched then."""
        self._give_up(plan)
        self._build(pipeline, plan)
        deployment = self._engine.deployment()
        going = self._going_over(plan, deployment)
        for version in going:
            if version.name not in plan.creates:  # the run that created it may have stopped before it had its rows
                self._fill(_switching(version), pipeline[version.name], version.id)
        for version in going:
            if version.kind == Kind.SINK:
                self._verify(version, pipeline[version.name], plan.targets)
        lost = self._lost(going, deployment)
        self._switch(going, _replaced_by(going, plan.targets, deployment))
        for physical, name in lost.items():  # and the sweep comes to them
            self._redis.hset(keys.REPLACED, physical, f"{NEVER_LIVE} {name}")
        self._forget_notes(plan.targets)
        self._retire(plan)

    def roll_back(self) -> Plan:
        """Switches to what was live before the last switch. Raises `EngineError` when none of that is left."""
        deployment = self._engine.deployment()
        live, going = deployment.live, deployment.replaced_last
        if not going:
            raise EngineError("there is nothing to go back to: no version that was replaced is still kept")
        self._switch(going)
        # not before: cut short, the next one is to go on to these, and not back to where it came from
        left = [deployment.get(version.name, live[version.name]) for version in going if version.name in live]
        self._note([version for version in left if version], time.time())
        self._forget_notes({version.name: version.id for version in going})
        came_from = {version.name: f" from {live[version.name]}" for version in going if version.name in live}
        return Plan(
            tuple(Step(Action.SWITCH, v.name, str(v.id), f"readers go back{came_from.get(v.name, '')}") for v in going)
        )

    # -- create -------------------------------------------------------------------------------------------------

    def _build(self, pipeline: Pipeline, plan: Plan) -> None:
        self._engine.prepare([relation for relation in pipeline if relation.name in plan.creates])
        # what an engine goes on to create for a run that was killed is in no catalog before it is whole
        begun = set(self._engine.progress())
        begun |= {version.physical_name for version in self._engine.deployment().versions}
        for step in plan.of(Action.CREATE):
            self._create(step, pipeline[step.name], plan.targets, step.physical_name in begun)

    def _create(self, step: Step, relation: Relation, targets: Mapping[str, VersionId], is_begun: bool) -> None:
        version, physical = targets[relation.name], step.physical_name
        if not is_begun:
            self._tell(step, None, "being created")
            self._lease.check()
            if relation.kind is Kind.SINK:
                self._make_room(relation.redis_name, str(version))
            self._engine.create(relation, targets)
        self._await_build(step)
        if relation.kind is Kind.VIEW and relation.is_materialized:
            self._engine.wait()
        if self._engine.deployment().get(relation.name, version) is None:
            raise EngineError(f"{physical} was not built: {self._engine.failure(physical)}")
        self._fill(step, relation, version)
        self._tell(step, 1.0, "built")

    def _make_room(self, name: str, version: str) -> None:
        """Of what a sink of the same name wrote that the engine has no more nothing is left: the new one would not take it back."""
        marker = keys.marker(name, version)
        if self._redis.exists(marker):
            versions.remove(self._redis, name, version)
        self._redis.set(marker, "1")  # it writes at once: where this is gone later, so is what it wrote

    def _await_build(self, step: Step) -> None:
        physical, before, least, deadline = step.physical_name, "", float("inf"), 0.0
        while (progress := self._engine.progress().get(physical)) is not None:
            self._tell(step, _fraction(progress), progress)
            behind = _seconds_behind(progress)  # that it says something else of it at each look is no progress
            if (behind < least) if behind is not None else (progress != before):
                before, deadline = progress, time.monotonic() + STANDS_SECONDS
                least = least if behind is None else behind
            elif time.monotonic() > deadline:
                raise EngineError(
                    f"{physical} has stood at {progress!r} for {STANDS_SECONDS / 60:.0f} min. Is the engine overloaded? Where it "
                    "reads a topic that is written in transactions, the end of one may be what it waits behind: send one more "
                    "message to each partition. `recs apply` goes on from here"
                )
            time.sleep(BETWEEN_LOOKS)

    def _fill(self, step: Step, relation: Relation, version: VersionId) -> None:
        """Waits until a table has the rows it is a copy of."""
        deadline, fewest = time.monotonic() + VERIFY_SECONDS, sys.maxsize
        while rows := self._engine.filling(relation, version):
            # rows that come meanwhile are on their way, and will always be some
            here, fewest = rows[0], min(rows[1], fewest)
            if here >= fewest:
                return
            self._tell(step, here / fewest, f"{here:,} of {fewest:,} rows")
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{relation.name} has {here:,} of {fewest:,} rows after {VERIFY_SECONDS:.0f} s; "
                    "readers stay on the version they have"
                )
            time.sleep(BETWEEN_COUNTS)

    # -- verify -------------------------------------------------------------------------------------------------

    def _verify(self, version: Version, sink: Relation, targets: Mapping[str, VersionId]) -> None:
        """Every row of the sink has its key in Redis, and of some the document says what the row does."""
        step = _switching(version)
        deadline = time.monotonic() + VERIFY_SECONDS
        while True:
            wanted = set(self._engine.sink_keys(sink, targets)["key"].to_pylist())
            found = set(versions.document_keys(self._redis, sink.redis_name, str(version.id)))
            missing = wanted - found
            self._tell(
                step, 1 - len(missing) / max(len(wanted), 1), f"{len(wanted) - len(missing):,} of {len(wanted):,} keys"
            )
            if not missing:
                self._compare(sink, targets, sample(sorted(wanted), min(SAMPLE, len(wanted))), deadline)
                return
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{sink.name}: {len(missing):,} of {len(wanted):,} keys are not in Redis after {VERIFY_SECONDS:.0f} s; "
                    f"{_example(sink, min(missing))}readers stay on the version they have"
                )
            time.sleep(BETWEEN_LOOKS)

    def _compare(
        self, sink: Relation, targets: Mapping[str, VersionId], chosen: Sequence[str], deadline: float
    ) -> None:
        """What differs is looked at again: a change may be on its way, and a row may go."""
        differs = list(chosen)
        while differs := self._differing(self._engine.rows_of(sink, targets, differs)):
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{sink.name}: {len(differs):,} of {len(chosen):,} documents in Redis do not say what their rows do; "
                    f"{_example(sink, differs[0])}readers stay on the version they have"
                )
            time.sleep(BETWEEN_LOOKS)

    def _differing(self, rows: pa.Table) -> list[str]:
        found = {str(row.pop("key")): row for row in rows.to_pylist()}
        texts = cast(list[str | None], self._redis.mget(list(found))) if found else []
        pairs = zip(found.items(), texts, strict=True)
        return [key for (key, row), text in pairs if text is None or not is_document_of(row, text)]

    # -- switch -------------------------------------------------------------------------------------------------

    @staticmethod
    def _going_over(plan: Plan, deployment: Deployment) -> list[Version]:
        wanted = [deployment.get(name, version) for name, version in plan.targets.items()]
        return [version for version in wanted if version and not version.is_live]

    def _lost(self, going: Sequence[Version], deployment: Deployment) -> dict[str, str]:
        """Physical name → `<name>` of the keys that readers leave though the engine has no sink of theirs to drop any more."""
        there, found = {(version.redis_name, str(version.id)) for version in deployment.versions}, dict[str, str]()
        for version in going:
            if name := version.redis_name:
                id = self._redis.get(keys.pointer(name))
                if id and (name, id) not in there:
                    found[physical_name(version.name, str(id))] = name
        return found

    def _switch(self, going: Sequence[Version], replaced: Collection[Version] = ()) -> None:
        self._lease.check()
        self._note(replaced, time.time())
        began = time.perf_counter()
        versions.go_over(self._redis, {v.redis_name: str(v.id) for v in going if v.redis_name})
        took = f"Redis went over in {1000 * (time.perf_counter() - began):.1f} ms"
        for version in going:
            if version.redis_name:
                self._tell(_switching(version), 1.0, took)
        for version in going:
            if version.kind != Kind.SINK and not version.is_connection:
                self._engine.publish(version.name, version.id)

    # -- drop ---------------------------------------------------------------------------------------------------

    def _retire(self, plan: Plan) -> None:
        """Notes what no file defines any more, and removes what was replaced long enough ago, or never live."""
        now, deployment = time.time(), self._engine.deployment()
        there = {version.physical_name: version for version in deployment.versions}
        self._sweep(there.keys())
        for step in plan.of(Action.DROP):
            version = there.get(step.physical_name)
            if version is None:
                continue
            since = version.replaced_at
            if since is None:
                since = now if version.is_live or version in deployment.unread else NEVER_LIVE
                self._note([version], since)
            left = self._grace - (now - since)
            if left > 0:
                self._tell(step, None, f"kept for {left:.0f} s more, for `recs rollback`")
                continue
            self._remove(step, version)

    def _give_up(self, plan: Plan) -> None:
        """Ends what an earlier run began to build and nobody wants any more: `wait` waits for that, too."""
        unfinished = {
            v.physical_name: v for v in self._engine.deployment().versions if not v.is_whole and not v.is_live
        }
        for step in plan.of(Action.DROP):
            if version := unfinished.get(step.physical_name):
                self._note([version], NEVER_LIVE)
                self._remove(step, version)

    def _remove(self, step: Step, version: Version) -> None:
        self._lease.check()
        try:
            self._drop(version)
        except EngineUnavailable:
            raise
        except EngineError as error:  # something of somebody else's reads it: that keeps nothing else from going
            self._tell(step, None, f"stays: {error}")
        else:
            self._tell(step, 1.0, "removed")

    def _note(self, replaced: Collection[Version], since: float) -> None:
        """All at once: what went together goes back together."""
        if replaced:
            notes = [(version.physical_name, f"{since} {_outside(version)}") for version in replaced]
            self._redis.hset(keys.REPLACED, items=[part for note in notes for part in note])

    def _forget_notes(self, live: Mapping[str, VersionId]) -> None:
        """Of what readers are on now, also where a run was cut short before they had left it."""
        if live:
            self._redis.hdel(keys.REPLACED, *physical_names(live).values())

    def _sweep(self, there: Collection[str]) -> None:
        """Removes the keys, or the slot, of what was dropped when a run was cut short."""
        for physical, noted in _noted(self._redis).items():
            outside, parts = noted.partition(" ")[2], taken_apart(physical)
            if physical in there or not parts:
                continue
            if outside.startswith(SLOT):
                try:
                    self._engine.drop_slot(outside.removeprefix(SLOT))
                except SourceError:  # noted still: the next one tries again
                    continue
            elif outside:
                versions.remove(self._redis, outside, str(parts[1]))
            self._redis.hdel(keys.REPLACED, physical)

    def _drop(self, version: Version) -> None:
        """With its keys, and with its name where nothing has taken its place."""
        if version.is_live and version.kind != Kind.SINK:
            self._engine.unpublish(version.name)
        self._engine.drop(version)
        if version.redis_name:
            if version.is_live:
                self._redis.unlink(keys.pointer(version.redis_name))
            versions.remove(self._redis, version.redis_name, str(version.id))
        self._redis.hdel(keys.REPLACED, version.physical_name)


def _switching(version: Version) -> Step:
    return Step(Action.SWITCH, version.name, str(version.id), "")


def _replaced_by(going: Sequence[Version], targets: Mapping[str, VersionId], deployment: Deployment) -> list[Version]:
    """What is live in the place of these; and what has been replaced before where a run was cut short while it switched."""
    live, names = deployment.live, {version.name for version in going}
    replaced = [version for version in deployment.versions if version.is_live and version.name in names]
    cut_short = {version.replaced_at for version in replaced if version.replaced_at}
    gone_over = (v for v in deployment.versions if v.id != targets.get(v.name) == live.get(v.name))
    return [*replaced, *(v for v in gone_over if v.replaced_at in cut_short and v not in replaced)]


def _outside(version: Version) -> str:
    """What is left of it elsewhere when it is dropped: the `<name>` of its keys, or its slot."""
    return version.redis_name or (f"{SLOT}{version.slot}" if version.slot else "")


def replacements(connection: redis.Redis) -> dict[str, float]:
    """Physical name → since when another version is live in its stead, in seconds since 1970."""
    return {physical: float(noted.partition(" ")[0]) for physical, noted in _noted(connection).items()}


def _noted(connection: redis.Redis) -> dict[str, str]:
    return cast(dict[str, str], connection.hgetall(keys.REPLACED))


def _fraction(progress: str) -> float | None:
    match = _PERCENT.search(progress)
    return float(match[1]) / 100 if match else None


def _seconds_behind(progress: str) -> float | None:
    """How far a build that follows what comes in is behind, as in `LogStore [… avg lag 1m 30s]`; None where it is not there yet."""
    match = _LAG.search(progress)
    if match is None:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _SPAN.findall(match[1]))


def _example(sink: Relation, key: str) -> str:
    """One of the keys, but for those that name a shopper: errors are kept for long, in Dagster too."""
    return "" if sink.names_shoppers else f"{key} is one of them; "
