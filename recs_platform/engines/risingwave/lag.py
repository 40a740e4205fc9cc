"""How far a RisingWave has read its topics, which it does not say by itself, and which of its sinks fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from recs_platform.deployment import Deployment
from recs_platform.errors import SourceError
from recs_platform.pipeline import Kind, Pipeline
from recs_platform.topic_reader import Span, read
from recs_platform.topics import admin_client, describe_topics, log_ends, log_starts

NEWS = timedelta(minutes=2)  # for which a sink that failed counts as failing: it tries again after about a minute
FEW, STILL = 100, timedelta(seconds=5)  # so few that wait for so long are counted: they may be none
READ_SECONDS = 5.0
PROGRESS = "_progress"  # what the view of how far a source is read is called, after the source
SINK_FAILURES = (
    "SELECT info, timestamp FROM rw_catalog.rw_event_logs WHERE event_type = 'SINK_FAIL' ORDER BY timestamp DESC"
)

Rows = Callable[[str], list[dict[str, Any]]]
"""Asks the engine."""


def partitions(files: Pipeline, live: Iterable[str], kafka: str, rows: Rows) -> list[dict[str, Any]]:
    """Each partition of the topics for which a view of how far they are read is live, as `StreamEngine.status` has it.

    Raises `KafkaException` where Kafka does not say how far its topics go.
    """
    there = set(live)
    watched = {topic: view for topic, s in files.topics.items() if (view := s.name + PROGRESS) in there}
    admin = admin_client(kafka)
    at = [(topic, n) for topic, info in describe_topics(admin, watched).items() for n in info.partitions]
    starts, ends = log_starts(admin, at), log_ends(admin, at)
    read = {
        (topic, int(row["kafka_partition"])): row
        for topic, view in watched.items()
        for row in rows(f"SELECT * FROM {view}")
    }
    return [_partition(kafka, place, read.get(place), starts[place], ends[place]) for place in at]


@lru_cache(maxsize=1_000)
def _messages(kafka: str, place: tuple[str, int], first: int, end: int) -> int:
    """How many there are between two offsets: the end of a transaction has one, too, and would count as a message for ever."""
    topic, partition = place
    try:
        found = read(kafka, topic, {partition: Span(first, end)}, READ_SECONDS)
        return sum((message.offset() or 0) < end for message in found)
    except SourceError:
        return end - first


def _partition(
    kafka: str, place: tuple[str, int], row: Mapping[str, Any] | None, start: int, end: int
) -> dict[str, Any]:
    following = row["last_offset"] + 1 if row else start
    lag = max(0, end - following)
    if row and 0 < lag <= FEW and datetime.now(UTC) - row["newest"] > STILL:
        lag = _messages(kafka, place, following, end)
    waits = (datetime.now(UTC) - row["newest"]).total_seconds() if row and lag else 0.0
    return {
        "topic": place[0],
        "partition": place[1],
        "next_offset": following,
        "end_offset": end,
        "lag": lag,
        "lag_seconds": round(max(0.0, waits), 1),
    }


def failing_sink(deployment: Deployment, rows: Rows) -> str | None:
    """The newest failure of a live sink, while it is news: a sink that fails tries again and again. May hold secrets."""
    live = {v.physical_name: v.name for v in deployment.versions if v.kind == Kind.SINK and v.is_live}
    for event in rows(SINK_FAILURES):
        name = next((live[physical] for physical in live if physical in str(event["info"])), None)
        if name and datetime.now(UTC) - event["timestamp"] < NEWS:
            return f"{name} failed at {event['timestamp']:%H:%M:%S} UTC: {_error_in(event['info'])}"
    return None


def _error_in(info: object) -> str:
    """The error in what an event of the log tells, or all that it tells."""
    told = next(iter(info.values()), None) if isinstance(info, dict) else None
    return str(told["error"]) if isinstance(told, dict) and "error" in told else str(info)
