"""Dead letters: what could not be used and why, and which share of what comes that is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlglot import exp

from recs_platform.engines.base import StreamEngine
from recs_platform.engines.status import Status
from recs_platform.errors import PipelineError
from recs_platform.pipeline import Pipeline, Relation
from recs_platform.topics import spans_since

RELATION = "dead_letters"
LABELS: Mapping[str, str] = {RELATION: "topic", "catalog_dead_letters": "relation"}
"""The relations that hold dead letters, and which column of each names where they come from."""
PAGE = 500  # letters asked for at a time
MOST_REASONS = 5  # told at once
RECENT = timedelta(minutes=5)
SHARE = 0.01  # of the messages, that is no trouble where a source's header does not say otherwise
_HEADER = re.compile(r"^dead letters:\s*(\d+(?:\.\d+)?)\s*%", re.IGNORECASE | re.MULTILINE)


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


@dataclass(frozen=True)
class Recent:
    """Of what has come on a topic within `RECENT`: how many messages, and how many letters with each reason, the most first."""

    topic: str
    messages: int
    reasons: tuple[tuple[str, int], ...] = ()

    @property
    def letters(self) -> int:
        return sum(count for _, count in self.reasons)

    @property
    def share(self) -> float:
        return min(1.0, self.letters / max(1, self.messages, self.letters))

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in self.reasons[:MOST_REASONS])
        return f"{self.share:.1%} of {self.messages:,} messages: {reasons}" if self.letters else "none"


def kept_of(pipeline: Pipeline) -> list[str]:
    """The topics whose letters are kept."""
    found = dict[str, None]()
    for name in LABELS:
        with suppress(PipelineError):  # a file that cannot be understood: replaying says so
            found |= dict.fromkeys(place.topic for place in origins(pipeline, name).values())
    return list(found)


def recent(engine: StreamEngine, pipeline: Pipeline, status: Status, servers: str) -> list[Recent]:
    """Of each topic whose letters are kept, by what the engine says of itself (`StreamEngine.status`). Letters and messages
    are counted by the messages' own timestamps; the end of a transaction counts as a message.

    Raises what the engine raises, and `SourceError` where Kafka does not answer.
    """
    now, counts = datetime.now(UTC), dict[str, list[tuple[str, int]]]()
    live = {entry["name"] for entry in status["relations"]}
    for relation in (pipeline[name] for name in LABELS if name in pipeline.relations and name in live):
        places = origins(pipeline, relation.name)
        for row in engine.query(
            f"SELECT {LABELS[relation.name]} AS label, reason, COUNT(*) AS letters FROM {relation.name} "
            "WHERE received_at > $1::timestamptz AND received_at <= $2::timestamptz "  # a producer's clock may be ahead
            f"GROUP BY {LABELS[relation.name]}, reason ORDER BY letters DESC, reason",
            [now - RECENT, now],
        ).to_pylist():
            if place := places.get(row["label"]):  # what is deployed may have labels that the file has no more
                counts.setdefault(place.topic, []).append((row["reason"], row["letters"]))
        counts |= {place.topic: counts.get(place.topic, []) for place in places.values()}
    sent = Counter[str]()
    seen = {(p["topic"], p["partition"]): p["end_offset"] for p in status["partitions"]}  # may be more than Kafka tells
    for partition, (first, end) in spans_since(servers, counts, now - RECENT).items():
        sent[partition[0]] += 0 if first is None else max(end, seen.get(partition, 0)) - first
    return [Recent(topic, sent[topic], tuple(reasons)) for topic, reasons in counts.items()]


def share_wanted(source: Relation) -> float:
    """`-- dead letters: 5 %` in the header of its file, or the default."""
    match = _HEADER.search(source.description)
    return float(match[1]) / 100 if match else SHARE


def origins(pipeline: Pipeline, name: str = RELATION) -> dict[str, Origin]:
    """Label → where its letters come from, as the SQL of the relation says it: one SELECT a label.

    Raises `PipelineError` where a SELECT names no topic, or reads no relation that judges messages.
    """
    relation = pipeline[name]
    found: dict[str, Origin] = {}
    for select in relation.query.find_all(exp.Select) if relation.query else ():
        label = next(
            (e.this.this for e in select.selects if e.alias == LABELS[name] and isinstance(e.this, exp.Literal)), None
        )
        read = [table.name for table in select.find_all(exp.Table)]
        if label is None or len(read) != 1 or "reason" not in {c.name for c in pipeline[read[0]].columns}:
            raise PipelineError(
                f"each SELECT names its {LABELS[name]} in a literal and reads one relation with a column reason",
                relation.path,
            )
        topics = [r.topic for r in pipeline.with_ancestors({read[0]}) if r.topic]
        found[str(label)] = Origin(topics[0], read[0])
    return found
