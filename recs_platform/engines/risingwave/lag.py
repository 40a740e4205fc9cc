"""How far a RisingWave has read its topics, which it does not say by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from confluent_kafka import Message

from recs_platform.engines.status import PartitionStatus
from recs_platform.errors import SourceError
from recs_platform.pipeline import Pipeline
from recs_platform.topic_reader import Span, read
from recs_platform.topics import admin_client, describe_topics, log_ends, log_starts

FEW, STILL = 100, timedelta(seconds=5)  # so few that wait for so long are counted: they may be none
READ_SECONDS = 2.0
PROGRESS = "_progress"  # what the view of how far a source is read is called, after the source

Rows = Callable[[str], list[dict[str, Any]]]
"""Asks the engine."""


def partitions(files: Pipeline, live: Iterable[str], kafka: str, rows: Rows) -> list[PartitionStatus]:
    """Each partition of the topics for which a view of how far they are read is live, as `StreamEngine.status` has it.

    Raises `KafkaException` where Kafka does not say how far its topics go.
    """
    there = set(live)
    watched = {topic: view for topic, s in files.topics.items() if (view := s.name + PROGRESS) in there}
    admin = admin_client(kafka)
    at = [(topic, n) for topic, info in describe_topics(admin, watched).items() for n in info.partitions]
    read = {
        (topic, int(row["kafka_partition"])): row
        for topic, view in watched.items()
        for row in rows(f"SELECT * FROM {view}")
    }
    # asked after that, so that no end is before what was read of it
    starts, ends = log_starts(admin, at), log_ends(admin, at)
    return [_partition(kafka, place, read.get(place), starts[place], ends[place]) for place in at]


def begun_anew(found: Iterable[PartitionStatus], files: Pipeline) -> dict[str, str]:
    """Topic → what is wrong with one of which more was read than it has: nothing that comes is read until it has as much."""
    shorter = [p for p in found if p["next_offset"] > p["end_offset"]]
    return {p["topic"]: _shorter_in_words(p, files.topics[p["topic"]].name) for p in shorter}


def _shorter_in_words(p: PartitionStatus, source: str) -> str:
    return (
        f"partition {p['partition']} of {p['topic']} ends at {p['end_offset']:,}, and {p['next_offset']:,} were read before: it "
        f"was created anew, or has lost its end. `recs apply --rebuild {source}` reads it anew"
    )


@lru_cache(maxsize=1_000)
def _messages(kafka: str, place: tuple[str, int], first: int, end: int) -> int:
    """How many there are between two offsets: the end of a transaction has one, too, and would count as a message for ever.

    Raises `SourceError` where nobody can say.
    """
    topic, partition = place
    found = read(kafka, topic, {partition: Span(first, end)}, READ_SECONDS, quiet_seconds=0.0)
    return sum(first <= (message.offset() or 0) < end and _is_read(message) for message in found)


@lru_cache(maxsize=1_000)
def _sent_at(kafka: str, place: tuple[str, int], offset: int) -> datetime | None:
    """When the message at an offset was sent, or the next there is; None where it does not say. Raises `SourceError`."""
    topic, partition = place
    for message in read(kafka, topic, {partition: Span(offset, offset + 1)}, READ_SECONDS, quiet_seconds=0.0):
        milliseconds = message.timestamp()[1]
        return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds >= 0 else None
    return None


def _is_read(message: Message) -> bool:
    """A tombstone without a key never reaches a source's rows."""
    return message.value() is not None or message.key() is not None


def _partition(
    kafka: str, place: tuple[str, int], row: Mapping[str, Any] | None, start: int, end: int
) -> PartitionStatus:
    last, newest = (row["last_offset"], row["newest"]) if row else (None, None)
    following = last + 1 if last is not None else start
    lag, now = max(0, end - following), datetime.now(UTC)
    if 0 < lag <= FEW and (newest is None or not timedelta(0) <= now - newest <= STILL):
        with suppress(SourceError):
            lag = _messages(kafka, place, following, end)
            end = following + lag
    if lag and (newest is None or newest > now):  # nothing is known of what was read, or a producer's clock is ahead
        newest = None
        with suppress(SourceError):
            newest = _sent_at(kafka, place, following)
    waits = (now - newest).total_seconds() if newest and lag else 0.0
    return {
        "topic": place[0],
        "partition": place[1],
        "next_offset": following,
        "end_offset": end,
        "lag": lag,
        "lag_seconds": round(max(0.0, waits), 1),
    }
