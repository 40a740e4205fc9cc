"""What a RisingWave tells of itself in its log of events: sinks that fail, recoveries, how long barriers take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from recs_platform.deployment import Deployment
from recs_platform.pipeline import Kind

NEWS = timedelta(minutes=2)  # for which a sink that failed counts as failing: it tries again after about a minute
QUERY = (
    "SELECT event_type, info, timestamp FROM rw_catalog.rw_event_logs WHERE event_type IN "
    "('SINK_FAIL', 'BARRIER_COMPLETE', 'GLOBAL_RECOVERY_START', 'GLOBAL_RECOVERY_SUCCESS') ORDER BY timestamp DESC"
)
"""The newest first; it keeps ten of each type."""

Event = dict[str, Any]


@dataclass(frozen=True)
class Happenings:
    """`failing_sink`: the newest failure of a live sink, while it is news; may hold secrets. `barrier_seconds`: how long the
    slowest of the last barriers took, None where none is news. `recovering_since`: of a recovery that has not ended.
    """

    failing_sink: str | None = None
    barrier_seconds: float | None = None
    recovering_since: datetime | None = None


def happenings(deployment: Deployment, rows: Callable[[str], list[Event]]) -> Happenings:
    """`rows` asks the engine."""
    events = rows(QUERY)
    news = [event for event in events if datetime.now(UTC) - event["timestamp"] < NEWS]
    return Happenings(_failing_sink(deployment, news), _barrier_seconds(news), _recovering_since(events))


def _failing_sink(deployment: Deployment, news: Sequence[Event]) -> str | None:
    live = {v.physical_name: v.name for v in deployment.versions if v.kind == Kind.SINK and v.is_live}
    for event in _of("SINK_FAIL", news):
        name = next((live[physical] for physical in live if physical in str(event["info"])), None)
        if name:
            error = _told(event).get("error", event["info"])
            return f"{name} failed at {event['timestamp']:%H:%M:%S} UTC: {error}"
    return None


def _barrier_seconds(news: Sequence[Event]) -> float | None:
    found = [_told(event).get("durationSec") for event in _of("BARRIER_COMPLETE", news)]
    return max((float(seconds) for seconds in found if seconds is not None), default=None)


def _recovering_since(events: Sequence[Event]) -> datetime | None:
    started = next((event["timestamp"] for event in _of("GLOBAL_RECOVERY_START", events)), None)
    ended = next((event["timestamp"] for event in _of("GLOBAL_RECOVERY_SUCCESS", events)), None)
    return started if started and (ended is None or ended < started) else None


def _of(kind: str, events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event["event_type"] == kind]


def _told(event: Event) -> dict[str, Any]:
    """What an event tells, which it wraps into one field of its own."""
    info = event["info"]
    told = next(iter(info.values()), None) if isinstance(info, dict) else None
    return told if isinstance(told, dict) else {}
