"""What Redis must get: keys of sinks that have changed, kept in the engine's file until Redis has taken them.

And the prefixes they are written under, of which one a sink is what readers are on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from recs_platform.engines.local.connection import Connection
from recs_platform.engines.local.deltas import Tick, delta_table
from recs_platform.engines.local.refresh import Refresher
from recs_platform.engines.local.relations import document
from recs_platform.engines.local.storage import quoted
from recs_platform.pipeline import Kind, Relation

log = logging.getLogger("recs.engine")

STATE = """
CREATE TABLE IF NOT EXISTS recs.dirty (sink VARCHAR, key VARCHAR);
CREATE TABLE IF NOT EXISTS recs.prefixes (name VARCHAR, version VARCHAR, is_live BOOLEAN, PRIMARY KEY (name, version));
"""
COMPACTED = 500_000  # dirty keys, from which on it is looked for those that are noted twice


class Outbox:
    """Dirty keys in `recs.dirty`, by physical name of their sink; those of the last tick are found in its deltas."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.keyless = set[str]()  # sinks with rows that have no key, of which the log tells once
        self._is_written = self._was_written = False  # Redis has all that is dirty: now, and before the tick under way
        self._in_delta: frozenset[str] | None = None  # sinks; None: what is dirty is more than the last delta
        self._delta_of: Mapping[str, Connection] = {}  # physical name → whose temporary tables hold its last delta
        self._once = 0  # rows of recs.dirty when each was there once

    # -- a tick ---------------------------------------------------------------------------------------------------

    def begin_tick(self) -> bool:
        """Within its transaction: clears keys that Redis has. Returns whether there were any."""
        self._was_written, self._is_written, self._in_delta = self._is_written, False, None
        is_stale = self._was_written and bool(self._connection.execute("SELECT 1 FROM recs.dirty LIMIT 1").fetchall())
        if is_stale:
            self._connection.execute("DELETE FROM recs.dirty")
        return is_stale

    def note(self, connection: Connection, tick: Tick, refreshed: Sequence[Refresher]) -> None:
        """What a tick has changed in the sinks among those, within its transaction."""
        sinks = [r.table for r in refreshed if r.relation.kind is Kind.SINK and r.table in tick.changed]
        if sinks:
            keys = " UNION ".join(f"SELECT '{sink}', key FROM {delta_table(sink)}" for sink in sinks)
            connection.execute(f"INSERT INTO recs.dirty {keys}")
            self._is_written, self._in_delta = False, None

    def end_tick(self, delta_of: Mapping[str, Connection]) -> None:
        """`delta_of`: physical name of each relation that has changed → the connection with its delta."""
        self._delta_of = delta_of
        if self._was_written:
            self._in_delta = frozenset(delta_of)

    # -- a deployment ---------------------------------------------------------------------------------------------

    def open_prefix(self, sink: Relation) -> None:
        """All keys of a new sink are to be written, and those without a row to go; readers go over once that is done."""
        self._connection.execute(
            "INSERT OR REPLACE INTO recs.prefixes VALUES (?, ?, false)", [sink.redis_name, sink.fingerprint]
        )
        self.note_all(sink)

    def drop(self, physical: str) -> None:
        """Keys of a sink that is gone; its prefix stays until Redis is rid of it."""
        self._connection.execute("DELETE FROM recs.dirty WHERE sink = ?", [physical])

    # -- what Redis is told ---------------------------------------------------------------------------------------

    def to_write(self, sink: Relation) -> list[tuple[str, str | None]]:
        """Keys to write with their JSON documents; None where the key must go. A row whose key is NULL has none: `keyless`."""
        physical, value = sink.physical_name, document(sink)
        if self._in_delta is None:
            query = (
                f"SELECT d.key, CASE WHEN s.key IS NOT NULL THEN {value} END "
                f"FROM (SELECT DISTINCT key FROM recs.dirty WHERE sink = '{physical}') AS d "
                f"LEFT JOIN {quoted(physical)} AS s ON d.key = s.key"
            )
        elif physical in self._in_delta:
            query = f"SELECT key, any_value({value}) FILTER (WHERE _sign = 1) FROM {delta_table(physical)} AS s GROUP BY key"
        else:
            return []
        found = self._delta_of.get(physical, self._connection).execute(query).fetchall()
        told = [row for row in found if row[0] is not None]
        if len(told) < len(found) and sink.name not in self.keyless:
            self.keyless.add(sink.name)
            log.warning("%s has rows whose key is NULL: they are not written. Leave them out in its file", sink.name)
        return told

    def note_all(self, sink: Relation) -> None:
        """All that a sink holds is to be written."""
        table = quoted(sink.physical_name)
        self._connection.execute(f"INSERT INTO recs.dirty SELECT '{sink.physical_name}', key FROM {table}")
        self._is_written, self._in_delta = False, None

    def note_written(self) -> None:
        """Redis has all documents that were dirty until now."""
        self._is_written, self._in_delta = True, frozenset()

    def compact(self) -> None:
        """Of many keys each is noted once, and not for each time it has changed. In a transaction of its caller's."""
        if self._count() < max(COMPACTED, 2 * self._once):
            return
        self._connection.execute("CREATE OR REPLACE TEMP TABLE dirty_once AS SELECT DISTINCT sink, key FROM recs.dirty")
        self._connection.execute("DELETE FROM recs.dirty")
        self._connection.execute("INSERT INTO recs.dirty SELECT sink, key FROM temp.dirty_once")
        self._connection.execute("DROP TABLE temp.dirty_once")
        self._once = self._count()

    def _count(self) -> int:
        row = self._connection.execute("SELECT count(*) FROM recs.dirty").fetchone()
        return int(row[0]) if row else 0

    # -- prefixes -------------------------------------------------------------------------------------------------

    def live(self) -> dict[str, str]:
        """Name in Redis → the version that readers are on."""
        return dict(self._connection.execute("SELECT name, version FROM recs.prefixes WHERE is_live").fetchall())

    def left_behind(self) -> list[tuple[str, str]]:
        """Name and version of the prefixes that readers are not on."""
        return self._connection.execute("SELECT name, version FROM recs.prefixes WHERE NOT is_live").fetchall()

    def note_live(self, sinks: Sequence[Relation]) -> None:
        """Readers are on these from now on."""
        for sink in sinks:
            self._connection.execute(
                "UPDATE recs.prefixes SET is_live = (version = ?) WHERE name = ?", [sink.fingerprint, sink.redis_name]
            )

    def note_lost(self, sink: Relation) -> None:
        """Redis has lost what it had of a sink: all is to be written, and readers are on nothing until then."""
        self.note_all(sink)
        self._connection.execute("UPDATE recs.prefixes SET is_live = false WHERE name = ?", [sink.redis_name])

    def note_removed(self, name: str, version: str) -> None:
        """Redis has nothing of that prefix any more."""
        self._connection.execute("DELETE FROM recs.prefixes WHERE name = ? AND version = ?", [name, version])
