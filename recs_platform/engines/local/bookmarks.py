"""How far the engine has read: positions in topics, the replication slot, which tables are read, and what was lost.

Kept in the engine's file, and changed in the transactions of what was read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from itertools import chain
from typing import NamedTuple

from recs_platform.engines.local.connection import Connection
from recs_platform.engines.local.facts import Facts
from recs_platform.engines.local.intake import Position, TopicReset
from recs_platform.pipeline import Relation

STATE = """
CREATE TABLE IF NOT EXISTS recs.positions (
  topic VARCHAR, kafka_partition INTEGER, next_offset BIGINT, incarnation VARCHAR, PRIMARY KEY (topic, kafka_partition));
CREATE TABLE IF NOT EXISTS recs.resets (
  noticed_at TIMESTAMPTZ, topic VARCHAR, kafka_partition INTEGER, lost_from BIGINT, lost BIGINT, reason VARCHAR);
"""
RESETS_KEPT = 1_000
_LSN = "lsn"
_SNAPSHOT = "snapshot:"  # before the physical name of what has been read to its end


class Lost(NamedTuple):
    """What was lost of a topic: `lost` messages at least, in so many partitions; when it was noticed, and why."""

    topic: str
    lost: int
    partitions: int
    at: datetime
    reason: str


def resets(connection: Connection, since: datetime) -> list[Lost]:
    """By topic; of several at different times the one that cost most."""
    rows = connection.execute(
        "SELECT topic, sum(lost)::BIGINT, count(DISTINCT kafka_partition), arg_max(noticed_at, (lost, noticed_at)), "
        "arg_max(reason, (lost, noticed_at)) FROM recs.resets WHERE noticed_at > ? GROUP BY topic ORDER BY topic",
        [since],
    ).fetchall()
    return [Lost(*row) for row in rows]


class Bookmarks:
    """Where reading stands."""

    def __init__(self, connection: Connection, facts: Facts) -> None:
        self._connection, self._facts = connection, facts

    # -- topics ---------------------------------------------------------------------------------------------------

    def positions(self) -> list[Position]:
        rows = self._connection.execute(
            "SELECT topic, kafka_partition, next_offset, incarnation FROM recs.positions"
        ).fetchall()
        return [Position(*row) for row in rows]

    def note_positions(self, positions: Sequence[Position]) -> None:
        if positions:
            rows = [(p.topic, p.partition, p.offset, p.incarnation) for p in positions]
            marks = ", ".join("(?, ?, ?, ?)" for _ in rows)
            self._connection.execute(f"INSERT OR REPLACE INTO recs.positions VALUES {marks}", list(chain(*rows)))

    def keep_positions_of(self, topics: Collection[str]) -> None:
        """Forgets those of all others."""
        marks = ", ".join("?" for _ in topics)
        others = f"WHERE topic NOT IN ({marks})" if topics else ""
        self._connection.execute(f"DELETE FROM recs.positions {others}", list(topics))

    def note_resets(self, now: datetime, resets: Sequence[TopicReset]) -> None:
        """A partition that is gone has no position any more; one that is read on has a new one."""
        for r in resets:
            values = [now, r.topic, r.partition, r.lost_from, r.lost, r.reason]
            self._connection.execute("INSERT INTO recs.resets VALUES (?, ?, ?, ?, ?, ?)", values)
            gone = "DELETE FROM recs.positions WHERE topic = ? AND kafka_partition = ?"
            self._connection.execute(gone, [r.topic, r.partition])
        if resets:
            newest = f"SELECT rowid FROM recs.resets ORDER BY noticed_at DESC, rowid DESC LIMIT {RESETS_KEPT}"
            self._connection.execute(f"DELETE FROM recs.resets WHERE rowid NOT IN ({newest})")

    # -- the catalog ----------------------------------------------------------------------------------------------

    @property
    def lsn(self) -> int:
        """Up to where in PostgreSQL's log changes are taken in; 0 before any are."""
        return int(self._facts.get(_LSN) or 0)

    def note_lsn(self, lsn: int) -> None:
        self._facts.set(_LSN, str(lsn))

    def is_read(self, relation: Relation) -> bool:
        """Whether a table, or a topic of a table's rows, has been read to its end once."""
        return self._facts.get(_SNAPSHOT + relation.physical_name) is not None

    def note_read(self, relation: Relation) -> None:
        self._facts.set(_SNAPSHOT + relation.physical_name, "loaded")

    def note_unread(self, relation: Relation) -> None:
        self._facts.remove(_SNAPSHOT + relation.physical_name)

    def forget_snapshots(self) -> None:
        """All catalog tables are to be read anew: the slot they were followed through is another one."""
        self.note_lsn(0)
        self._facts.remove_all(_SNAPSHOT)
