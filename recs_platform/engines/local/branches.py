"""A small tick in two threads: what stands directly on the messages first, then what reads it, in parts side by side.

The parts share no relation, so each is refreshed in a transaction of its own, on a connection of its own. What they read of
the first step they are handed as Arrow tables, and these are kept in the file until all parts are done: killed in
between, the engine refreshes the parts that are not before it takes in anything else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

import pyarrow as pa

from recs_platform.engines.local.connection import Connection
from recs_platform.engines.local.deltas import Tick, delta_name, delta_table, set_time
from recs_platform.engines.local.incremental import Mode
from recs_platform.engines.local.refresh import Refresher
from recs_platform.engines.local.storage import Storage

Part = Sequence[Refresher]
Finish = Callable[[Connection, Tick, Part], None]

_FIRST = (Mode.PASSING, Mode.APPEND)
_FORGET = 0.9  # how much of what is known of a relation's cost the next tick leaves standing


STATE = """
CREATE TABLE IF NOT EXISTS recs.handed (
  id INTEGER PRIMARY KEY, earlier VARCHAR, now VARCHAR, has_moved BOOLEAN, deltas BLOB);
CREATE TABLE IF NOT EXISTS recs.done (physical VARCHAR);
"""


@dataclass(frozen=True)
class Handed:
    """What the first step of a tick hands on. `changed` as in `Tick`, `rows` the deltas by physical name."""

    then: datetime
    now: datetime
    has_moved: bool
    changed: Mapping[str, bool]
    rows: Mapping[str, pa.Table]

    @classmethod
    def of(cls, tick: Tick, then: datetime, now: datetime, parts: Sequence[Part]) -> Handed:
        """Of a tick under way, as far as the parts read it."""
        read = {name for part in parts for refresher in part for name in refresher.driving}
        changed = {name: lost for name, lost in tick.changed.items() if name in read}
        connection = tick.connection.inner
        rows = {name: connection.sql(f"FROM {delta_table(name)}").to_arrow_table() for name in changed}
        return cls(then, now, tick.has_moved, changed, rows)

    def keep(self, connection: Connection) -> None:
        """In the file, within the transaction of the first step."""
        deltas = pa.table(
            {
                "name": pa.array(self.changed.keys(), pa.string()),
                "lost": pa.array(self.changed.values(), pa.bool_()),
                "rows": pa.array([_packed(self.rows[name]) for name in self.changed], pa.binary()),
            }
        )
        connection.execute("DELETE FROM recs.done")
        connection.execute(
            "INSERT OR REPLACE INTO recs.handed VALUES (1, ?, ?, ?, ?)",
            [self.then.isoformat(), self.now.isoformat(), self.has_moved, _packed(deltas)],
        )

    @classmethod
    def kept(cls, connection: Connection) -> Handed | None:
        row = connection.execute("SELECT earlier, now, has_moved, deltas FROM recs.handed").fetchone()
        if row is None:
            return None
        deltas = _unpacked(row[3]).to_pylist()
        changed = {delta["name"]: delta["lost"] for delta in deltas}
        rows = {delta["name"]: _unpacked(delta["rows"]) for delta in deltas}
        return cls(datetime.fromisoformat(row[0]), datetime.fromisoformat(row[1]), row[2], changed, rows)


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def _unpacked(packed: bytes) -> pa.Table:
    return pa.ipc.open_stream(packed).read_all()


@dataclass
class Done:
    """What a thread did: `changed` as in `Tick`, seconds by relation, and where the deltas of its sinks are."""

    connection: Connection
    changed: dict[str, bool] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)


def split(refreshers: Iterable[Refresher]) -> tuple[list[Refresher], list[list[Refresher]]]:
    """The first step, and the parts: relations that read one another are in one, lookups apart."""
    refreshers = list(refreshers)
    first = [r for r in refreshers if r.mode in _FIRST]
    handed = {r.table for r in first}
    part_of: dict[str, list[Refresher]] = {}
    for refresher in refreshers:
        if refresher.table in handed:
            continue
        part = [refresher]
        for other in {id(p): p for u in refresher.driving if (p := part_of.get(u)) is not None}.values():
            part = other + part
        part_of.update({member.table: part for member in part})
    order = {r.table: place for place, r in enumerate(refreshers)}
    parts = {id(part): sorted(part, key=lambda r: order[r.table]) for part in part_of.values()}
    return first, list(parts.values())


def refresh_all(refreshers: Iterable[Refresher], tick: Tick) -> dict[str, float]:
    """Refreshes in order; returns the seconds that each took, by public name."""
    spent = {}
    for refresher in refreshers:
        began = time.perf_counter()
        refresher.refresh(tick)
        spent[refresher.relation.name] = time.perf_counter() - began
    return spent


class Branches:
    """Two threads with a connection each. `finish` is called in each one's transaction before it ends."""

    def __init__(self, cursor: Callable[[], Connection], storage: Storage, finish: Finish) -> None:
        self.whole = threading.Lock()
        """Held while a tick is committed in part."""
        self._connections = (cursor(), cursor())
        self._storage, self._finish = storage, finish
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="branch")
        self._cost: dict[str, float] = {}
        self._is_behind = True  # parts of the last tick may be left over

    def close(self) -> None:
        self._thread.shutdown()
        for connection in self._connections:
            connection.close()

    def keep(self, handed: Handed | None, main: Connection) -> None:
        """Within the first step: what the parts need, should they not come to an end. One without parts leaves nothing over."""
        if handed:
            handed.keep(main)
        else:
            main.execute("DELETE FROM recs.handed")

    def commit(self, is_changed: bool, handed: Handed | None, parts: Sequence[Part], main: Connection) -> list[Done]:
        """Ends the first step, and refreshes the parts, if it hands anything on; nobody looks in between."""
        if handed is None:
            main.execute("COMMIT" if is_changed else "ROLLBACK")
            return []
        with self.whole:
            main.execute("COMMIT")
            return self._run(parts, handed)

    def catch_up(self, parts: Sequence[Part], main: Connection) -> None:
        """Refreshes the parts that the last tick did not come to."""
        if not self._is_behind:
            return
        handed = Handed.kept(main)
        if handed and (left := _left_over(main, parts)):
            self._run(left, handed)
        self._is_behind = False

    def _run(self, parts: Sequence[Part], handed: Handed) -> list[Done]:
        self._is_behind = True
        here, there = self._shares(parts)
        other = self._thread.submit(self._refresh, self._connections[1], there, handed)
        try:
            mine = self._refresh(self._connections[0], here, handed)
        finally:
            other.exception()  # waits
        done = [mine, other.result()]
        self._is_behind = False
        for name, seconds in ((name, seconds) for found in done for name, seconds in found.spent.items()):
            self._cost[name] = _FORGET * self._cost.get(name, seconds) + (1 - _FORGET) * seconds
        return done

    def _shares(self, parts: Sequence[Part]) -> tuple[list[Part], list[Part]]:
        """The dearest part to whoever has less so far."""
        shares: tuple[list[Part], list[Part]] = ([], [])
        costs = [0.0, 0.0]
        for part in sorted(parts, key=self._cost_of, reverse=True):
            which = costs.index(min(costs))
            shares[which].append(part)
            costs[which] += self._cost_of(part)
        return shares

    def _cost_of(self, part: Part) -> float:
        return sum(self._cost.get(r.relation.name, 0.005) for r in part)

    def _refresh(self, connection: Connection, parts: Sequence[Part], handed: Handed) -> Done:
        done = Done(connection)
        refreshers = [refresher for part in parts for refresher in part]
        if not refreshers:
            return done
        set_time(connection, handed.then, handed.now)
        for physical, rows in handed.rows.items():
            connection.register(delta_name(physical), rows)
        tick = Tick(connection, self._storage, handed.has_moved, dict(handed.changed))
        connection.execute("BEGIN")
        try:
            done.spent = refresh_all(refreshers, tick)
            self._finish(connection, tick, refreshers)
            marks = ", ".join(f"('{refresher.table}')" for refresher in refreshers)
            connection.execute(f"INSERT INTO recs.done VALUES {marks}")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        done.changed = {name: lost for name, lost in tick.changed.items() if name not in handed.changed}
        return done


def _left_over(connection: Connection, parts: Iterable[Part]) -> list[Part]:
    """The parts that the last tick in two threads did not come to."""
    done = {name for (name,) in connection.execute("SELECT physical FROM recs.done").fetchall()}
    return [part for part in parts if not all(refresher.table in done for refresher in part)]
