"""Dead letters: what could not be used and why, and how it would be judged if it came again today."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from sqlglot import exp

from recs_platform.engines.base import StreamEngine
from recs_platform.engines.local.database import Database, TickInput
from recs_platform.errors import PipelineError
from recs_platform.pipeline import Pipeline

RELATION = "dead_letters"
PAGE = 500  # letters asked for at a time


@dataclass(frozen=True)
class DeadLetter:
    """One message. `label` is what the relation calls its topic; `received_at` is the message's own timestamp."""

    label: str
    partition: int
    offset: int
    received_at: datetime
    reason: str
    payload: bytes | None

    @property
    def id(self) -> str:
        """Names it for ever: offsets begin anew with a topic that is created anew, times do not."""
        return f"{self.label}/{self.partition}/{self.offset}/{self.received_at.astimezone(UTC).isoformat()}"


@dataclass(frozen=True)
class Group:
    """All letters of one topic with one reason; `sample` is the newest payload."""

    label: str
    reason: str
    count: int
    first_at: datetime
    last_at: datetime
    sample: bytes | None


@dataclass(frozen=True)
class Origin:
    """Where the letters of a label come from: the Kafka topic, and the relation that judges its messages."""

    topic: str
    judge: str


@dataclass(frozen=True)
class Choice:
    """Which letters: all, or those of a label, or with a reason."""

    label: str | None = None
    reason: str | None = None

    def where(self, *more: str) -> tuple[str, list[object]]:
        """A WHERE clause and its parameters; `more` conditions use the placeholders after these."""
        chosen = {"topic": self.label, "reason": self.reason}
        given: dict[str, object] = {column: value for column, value in chosen.items() if value is not None}
        conditions = [*(f"{column} = ${i}" for i, column in enumerate(given, 1)), *more]
        return (f"WHERE {' AND '.join(conditions)}" if conditions else ""), list(given.values())


def groups(engine: StreamEngine, choice: Choice) -> list[Group]:
    """By topic and reason, the most frequent first. Raises `QueryError`, `EngineUnavailable`."""
    where, given = choice.where()
    found = engine.query(
        "SELECT topic, reason, COUNT(*) AS letters, MIN(received_at) AS first_at, MAX(received_at) AS last_at "
        f"FROM {RELATION} {where} GROUP BY topic, reason ORDER BY letters DESC, topic, reason",
        given,
    ).to_pylist()
    return [
        Group(
            row["topic"],
            row["reason"],
            row["letters"],
            row["first_at"],
            row["last_at"],
            _newest(engine, row["topic"], row["reason"]),
        )
        for row in found
    ]


def _newest(engine: StreamEngine, label: str, reason: str) -> bytes | None:
    rows = engine.query(
        f"SELECT payload FROM {RELATION} WHERE topic = $1 AND reason = $2 ORDER BY received_at DESC LIMIT 1",
        [label, reason],
    ).to_pylist()
    return rows[0]["payload"] if rows else None


def letters(engine: StreamEngine, choice: Choice) -> Iterator[list[DeadLetter]]:
    """Page by page, in the order of each partition; what comes meanwhile may be among them."""
    where, given = choice.where()
    partitions = engine.query(
        f"SELECT DISTINCT topic, kafka_partition FROM {RELATION} {where} ORDER BY topic, kafka_partition", given
    ).to_pylist()
    for row in partitions:
        yield from _of_partition(engine, Choice(row["topic"], choice.reason), row["kafka_partition"])


def _of_partition(engine: StreamEngine, choice: Choice, partition: str) -> Iterator[list[DeadLetter]]:
    """Offsets of topics that came one after the other under one name may repeat: the time tells them apart."""
    _, given = choice.where()
    n = len(given)
    after: tuple[int, datetime] = (-1, datetime.fromtimestamp(0, UTC))
    where, _ = choice.where(
        f"kafka_partition = ${n + 1}",
        f"(kafka_offset::bigint > ${n + 2}::bigint OR "
        f"(kafka_offset::bigint = ${n + 2}::bigint AND received_at > ${n + 3}::timestamptz))",
    )
    columns = "topic, kafka_partition, kafka_offset::bigint AS kafka_offset, received_at, reason, payload"
    query = f"SELECT {columns} FROM {RELATION} {where} ORDER BY kafka_offset::bigint, received_at LIMIT {PAGE}"
    while page := [_letter(row) for row in engine.query(query, [*given, partition, *after]).to_pylist()]:
        yield page
        after = page[-1].offset, page[-1].received_at


def _letter(row: Mapping[str, Any]) -> DeadLetter:
    partition, offset = int(row["kafka_partition"]), int(row["kafka_offset"])
    return DeadLetter(row["topic"], partition, offset, row["received_at"], row["reason"], row["payload"])


def origins(pipeline: Pipeline) -> dict[str, Origin]:
    """Label → where its letters come from, as the SQL of `dead_letters` says it: one SELECT a label.

    Raises `PipelineError` where a SELECT names no topic, or reads no relation that judges messages.
    """
    relation = pipeline[RELATION]
    found: dict[str, Origin] = {}
    for select in relation.query.find_all(exp.Select) if relation.query else ():
        label = next(
            (e.this.this for e in select.selects if e.alias == "topic" and isinstance(e.this, exp.Literal)), None
        )
        read = [table.name for table in select.find_all(exp.Table)]
        if label is None or len(read) != 1 or "reason" not in {c.name for c in pipeline[read[0]].columns}:
            raise PipelineError(
                "each SELECT names its topic in a literal and reads one relation with a column reason", relation.path
            )
        topics = [r.topic for r in pipeline.with_ancestors({read[0]}) if r.topic]
        found[str(label)] = Origin(topics[0], read[0])
    return found


class Judge:
    """Says what today's SQL thinks of messages, in an engine in memory, whichever engine runs."""

    def __init__(self, pipeline: Pipeline, origin: Origin) -> None:
        self._origin = origin
        self._database = Database()
        self._database.deploy(Pipeline({r.name: r for r in pipeline.with_ancestors({origin.judge})}), datetime.now(UTC))

    def close(self) -> None:
        self._database.close()

    def reasons(self, payloads: Sequence[bytes | None]) -> list[str | None]:
        """For each, why it is of no use, or None where it would be taken in now."""
        now = datetime.now(UTC)
        messages = pa.table(
            {
                "payload": pa.array(payloads, pa.binary()),
                "kafka_key": pa.nulls(len(payloads), pa.binary()),
                "kafka_partition": pa.array(["0"] * len(payloads), pa.string()),
                "kafka_offset": pa.array([str(i) for i in range(len(payloads))], pa.string()),
                "received_at": pa.array([now] * len(payloads), pa.timestamp("us", "UTC")),
            }
        )
        self._database.tick(now, TickInput(messages={self._origin.topic: messages}))
        with self._database.snapshot() as cursor:
            rows = cursor.execute(f"SELECT kafka_offset, reason FROM {self._origin.judge}").fetchall()
        source = self._database.pipeline.topics[self._origin.topic]
        self._database.connection.execute(f'DELETE FROM "{source.physical_name}"')
        found: dict[int, str | None] = {int(offset): reason for offset, reason in rows}
        return [found[i] for i in range(len(payloads))]
