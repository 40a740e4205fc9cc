"""What a tick takes in, and how it comes into the tables of sources: messages appended, rows of the catalog replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

import pyarrow as pa

from recs_platform.engines.local import forgetting
from recs_platform.engines.local.changes import TableChanges
from recs_platform.engines.local.connection import Connection
from recs_platform.engines.local.deltas import Tick
from recs_platform.engines.local.intake import Position, TopicReset
from recs_platform.engines.local.relations import duckdb_type, with_columns
from recs_platform.engines.local.storage import quoted
from recs_platform.pipeline import Pipeline, Relation

_FIELDS = {"partition": "kafka_partition", "offset": "kafka_offset", "timestamp": "received_at", "key": "kafka_key"}
"""What a source calls `INCLUDE …` → the column of a batch of messages."""


@dataclass(frozen=True)
class TickInput:
    """What one tick takes in: messages by topic, catalog changes by table, where reading stands afterwards, and which
    messages could not be had."""

    messages: Mapping[str, pa.Table] = field(default_factory=dict)
    positions: Sequence[Position] = ()
    resets: Sequence[TopicReset] = ()
    changes: Mapping[str, TableChanges] = field(default_factory=dict)
    lsn: int | None = None

    def __bool__(self) -> bool:
        return bool(self.messages or self.positions or self.resets or self.changes or self.lsn is not None)

    @property
    def message_count(self) -> int:
        return sum(table.num_rows for table in self.messages.values())

    @property
    def change_count(self) -> int:
        return sum(change.count for change in self.changes.values())


class Arrivals:
    """Writes into the tables of sources. What comes of a forgotten shopper is refused."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.refused = 0  # messages of forgotten shoppers, since it was opened
        self.look_up_forgotten()

    def look_up_forgotten(self) -> None:
        """To be done when somebody has been forgotten."""
        self._forgotten = forgetting.forgotten(self._connection)

    def take_in(self, taken: TickInput, pipeline: Pipeline, tick: Tick) -> None:
        """Within a tick's transaction; what changed is left in its deltas."""
        for topic, messages in taken.messages.items():
            if messages.num_rows:
                self._append(pipeline.topics[topic], messages, tick)
        for name, changes in taken.changes.items():
            self._apply(pipeline[name], changes, tick)

    def fill(self, table: Relation, rows: pa.Table) -> None:
        """A catalog table with a snapshot (all columns as text) instead of whatever it has, outside of any tick."""
        physical = quoted(table.physical_name)
        self._connection.execute(f"DELETE FROM {physical}")
        with self._registered("rows", with_columns(rows, [c.name for c in table.columns])):
            typed = f"SELECT {', '.join(_typed(table).values())} FROM rows"
            self._connection.execute(f"INSERT INTO {physical} SELECT * FROM ({typed}) {forgetting.welcome(table)}")

    def trim(self, source: Relation, before: datetime) -> None:
        """Forgets raw messages received before then; the views built from them stay.

        Of a topic whose messages replace each other by their key, the newest of each key stays however old it is.
        """
        included = {kind: quoted(alias) for alias, kind in source.statement.includes.items()}
        old = f"{included['timestamp']} < ?"
        if source.is_keyed:
            key, newer = included["key"], f"{included['timestamp']} DESC, {included['offset']}::BIGINT DESC"
            newest = (
                f"SELECT rowid FROM {quoted(source.physical_name)} WHERE {key} IS NOT NULL "
                f"QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {newer}) = 1"
            )
            old += f" AND rowid NOT IN ({newest})"
        self._connection.execute(f"DELETE FROM {quoted(source.physical_name)} WHERE {old}", [before])

    def _append(self, source: Relation, messages: pa.Table, tick: Tick) -> None:
        includes = source.statement.includes
        selected = ", ".join(
            f"{quoted(_FIELDS[includes[c.name]] if c.name in includes else 'payload')} AS {quoted(c.name)}"
            for c in source.columns
        )
        with self._registered("messages", self._welcome(messages)):
            tick.add(source.physical_name, [c.name for c in source.columns], f"SELECT {selected} FROM messages")

    def _welcome(self, messages: pa.Table) -> pa.Table:
        """Without those of forgotten shoppers."""
        if not self._forgotten:
            return messages
        with self._registered("coming", messages):
            refused = self._connection.execute(
                "SELECT kafka_partition, kafka_offset FROM coming "
                f"WHERE {forgetting.user_of('payload')} IN (SELECT user_id FROM recs.forgotten)"
            ).fetchall()
        if not refused:
            return messages
        self.refused += len(refused)
        unwanted = set(refused)
        places = zip(messages["kafka_partition"].to_pylist(), messages["kafka_offset"].to_pylist(), strict=True)
        return messages.filter(pa.array([place not in unwanted for place in places]))

    def _apply(self, table: Relation, changes: TableChanges, tick: Tick) -> None:
        typed = _typed(table)
        keys = ", ".join(typed[k] for k in table.key)
        same = " AND ".join(f"r.{quoted(k)} = t.{quoted(k)}" for k in table.key)
        upserts = with_columns(changes.upserts, list(typed))
        deletes = with_columns(changes.deletes, list(table.key))
        with self._registered("upserts", upserts), self._registered("deletes", deletes):
            tick.put("touched", f"SELECT {keys} FROM upserts UNION SELECT {keys} FROM deletes")
            # a forgotten shopper stays in a file until somebody takes the line out
            welcome = forgetting.welcome(table)
            cut = "" if changes.truncated else f"SEMI JOIN temp.touched AS t ON {same}"
            tick.replace(
                table.physical_name,
                list(typed),
                f"SELECT * FROM (SELECT {', '.join(typed.values())} FROM upserts) {welcome}",
                f"SELECT r.rowid AS _rowid, r.* FROM {quoted(table.physical_name)} AS r {cut}",
            )

    @contextmanager
    def _registered(self, name: str, table: pa.Table) -> Iterator[None]:
        self._connection.register(name, table)
        try:
            yield
        finally:
            self._connection.unregister(name)


def _typed(table: Relation) -> dict[str, str]:
    """Column → what makes it of its text; NULL where the text is none of that type."""
    return {c.name: f"TRY_CAST({quoted(c.name)} AS {duckdb_type(c.type)}) AS {quoted(c.name)}" for c in table.columns}
