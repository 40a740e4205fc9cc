"""Hands a `Database` what a tick takes in, as the readers of Kafka and PostgreSQL would."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

import pyarrow as pa

from recs_platform.engines.local.arrivals import TickInput
from recs_platform.engines.local.changes import TableChanges
from recs_platform.engines.local.database import Database, TickResult
from recs_platform.engines.local.relations import document
from recs_platform.engines.local.storage import quoted
from recs_platform.pipeline import Relation


def messages(
    payloads: Sequence[bytes | None], first_offset: int, received_at: datetime, partition: int = 0
) -> pa.Table:
    """A batch of one partition, offsets counted up from `first_offset`."""
    count = len(payloads)
    return pa.table(
        {
            "payload": pa.array(payloads, pa.binary()),
            "kafka_key": pa.nulls(count, pa.binary()),
            "kafka_partition": pa.array([str(partition)] * count, pa.string()),
            "kafka_offset": pa.array([str(first_offset + i) for i in range(count)], pa.string()),
            "received_at": pa.array([received_at] * count, pa.timestamp("us", "UTC")),
        }
    )


def text_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> pa.Table:
    """Rows as PostgreSQL hands them over: every value as text."""
    return pa.table({c: pa.array([_text(row.get(c)) for row in rows], pa.string()) for c in columns})


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return "t" if value else "f"
    return None if value is None else str(value)


def utc(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class Feeder:
    """Counts offsets, so that a test only says what is sent."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._offsets: dict[str, int] = {}

    def tick(
        self,
        now: datetime,
        activity: Sequence[Mapping[str, object] | bytes] = (),
        purchases: Sequence[Mapping[str, object] | bytes] = (),
        catalog: Mapping[str, TableChanges] | None = None,
    ) -> TickResult:
        batches = {
            "user_activity": self._batch("user_activity", activity, now),
            "purchases": self._batch("purchases", purchases, now),
        }
        taken = {topic: batch for topic, batch in batches.items() if batch.num_rows}
        return self.database.tick(now, TickInput(messages=taken, changes=catalog or {}))

    def begin_anew(self) -> None:
        """The topics are created anew, or a broker without a disk was restarted: offsets begin at 0 once more."""
        self._offsets.clear()

    def _batch(self, topic: str, sent: Sequence[Mapping[str, object] | bytes], now: datetime) -> pa.Table:
        payloads = [event if isinstance(event, bytes) else json.dumps(event).encode() for event in sent]
        first = self._offsets.get(topic, 0)
        self._offsets[topic] = first + len(payloads)
        return messages(payloads, first, now)

    def catalog_changes(
        self,
        table: str,
        upserts: Sequence[Mapping[str, object]] = (),
        deletes: Sequence[object] = (),
        truncated: bool = False,
    ) -> dict[str, TableChanges]:
        relation = self.database.pipeline[table]
        columns = [c.name for c in relation.columns]
        return {
            table: TableChanges(
                truncated=truncated,
                upserts=text_table(upserts, columns),
                deletes=text_table([{relation.key[0]: d} for d in deletes], relation.key),
            )
        }

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        return self.database.connection.execute(sql).fetchall()


class Written:
    """What is written of the sinks, tick by tick, as Redis would hold it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._held: dict[str, dict[str, str]] = {sink.name: {} for sink in database.sinks()}

    def write(self) -> None:
        for sink in self.database.sinks():
            for key, written in self.database.outbox.to_write(sink):
                if written is None:
                    self._held[sink.name].pop(key, None)
                else:
                    self._held[sink.name][key] = written
        self.database.outbox.note_written()

    def wrong(self) -> list[str]:
        """The sinks of which something else is held than what they hold."""
        return [s.name for s in self.database.sinks() if self._held[s.name] != documents(self.database, s)]


def documents(database: Database, sink: Relation) -> dict[str, str]:
    """Key → JSON document of all that a sink holds: what Redis has when everything is written."""
    query = f"SELECT s.key, {document(sink)} FROM {quoted(sink.physical_name)} AS s WHERE s.key IS NOT NULL"
    return dict(database.connection.execute(query).fetchall())


def differences(database: Database) -> dict[str, int]:
    """Relations whose rows are not what their whole query gives now, with the number of rows that differ.

    What is looked up (`FOR SYSTEM_TIME AS OF PROCTIME()`) is left out: such a row tells of its own past.
    """
    found = {}
    for refresher in database.refreshers:
        if any(o.is_lookup for o in refresher.analysis.occurrences):
            continue
        full, kept = refresher.full_sql(), f"SELECT * FROM {quoted(refresher.table)}"
        row = database.connection.execute(
            f"SELECT (SELECT count(*) FROM (({full}) EXCEPT ALL ({kept}))) + (SELECT count(*) FROM (({kept}) EXCEPT ALL ({full})))"
        ).fetchone()
        if row and row[0]:
            found[refresher.relation.name] = int(row[0])
    return found
