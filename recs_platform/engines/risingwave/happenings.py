"""What a RisingWave tells of itself in its log of events: sinks that fail, recoveries, how long barriers take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from recs_platform.deployment import Deployment
from recs_platform.physical_names import mentioned
from recs_platform.pipeline import Kind

NEWS = timedelta(seconds=200)  # for which a sink that failed counts as failing: it tries again within three minutes
BARRIERS = timedelta(minutes=2)  # for which one that took long says something of now
SILENT = timedelta(minutes=1)  # without a barrier: there are several a second, and this clock may differ a little
RECOVERIES = ("GLOBAL_RECOVERY", "DATABASE_RECOVERY")  # of all, and of one database where the licence allows that
QUERY = (
    'SELECT event_type, info, "timestamp" FROM rw_catalog.rw_event_logs WHERE event_type IN '
    "('SINK_FAIL', 'BARRIER_COMPLETE', 'GLOBAL_RECOVERY_START', 'GLOBAL_RECOVERY_SUCCESS', 'DATABASE_RECOVERY_START', "
    "'DATABASE_RECOVERY_SUCCESS') ORDER BY \"timestamp\" DESC"
)
"""The newest first; it keeps ten of each type."""

Event = dict[str, Any]


@dataclass(frozen=True)
class Happenings:
    """`failing_sinks`: the newest failure of each live sink, while it is news; may hold secrets. `barrier_seconds`: how long
    the slowest of the last barriers took, or has not come to its end; None where none is news. `recovering_since`: of a recovery
    that has not ended.
    """

    failing_sinks: Mapping[str, str] = field(default_factory=dict)
    barrier_seconds: float | None = None
    recovering_since: datetime | None = None


def happenings(deployment: Deployment, rows: Callable[[str], list[Event]]) -> Happenings:
    """`rows` asks the engine."""
    events, now = rows(QUERY), datetime.now(UTC)
    news = [event for event in events if now - event["timestamp"] < NEWS]
    return Happenings(_failing_sinks(deployment, news), _barrier_seconds(events, now), _recovering_since(events))


def _failing_sinks(deployment: Deployment, news: Sequence[Event]) -> dict[str, str]:
    """A sink whose pointer Redis has lost, or does not tell, is one that fails, too."""
    there = [v for v in deployment.versions if v.kind == Kind.SINK and v.is_live] + deployment.unread
    found = dict[str, str]()
    for event in _of("SINK_FAIL", news):
        failed = {_told(event).get("sinkName")} if _told(event).get("sinkName") else set(mentioned(str(event["info"])))
        name = next((v.name for v in there if v.physical_name in failed), None)
        if name and name not in found:
            error = _told(event).get("error") or in_words(event["info"])
            found[name] = f"{name} failed at {event['timestamp']:%H:%M:%S} UTC: {error}"
    return found


def _barrier_seconds(events: Sequence[Event], now: datetime) -> float | None:
    barriers = _of("BARRIER_COMPLETE", events)
    news = [event for event in barriers if now - event["timestamp"] < BARRIERS]
    found = [float(seconds) for event in news if (seconds := _told(event).get("durationSec")) is not None]
    silent = now - max((event["timestamp"] for event in barriers), default=now)
    return max([*found, *([round(silent.total_seconds(), 1)] if silent > SILENT else [])], default=None)


def _recovering_since(events: Sequence[Event]) -> datetime | None:
    """One of a database ends with its own success, or with the next of all."""
    of_all = _newest(_of("GLOBAL_RECOVERY_SUCCESS", events))
    under_way = []
    for kind in RECOVERIES:
        ended = _newest(_of(f"{kind}_SUCCESS", events))
        for database, started in _newest(_of(f"{kind}_START", events)).items():
            ends = [of_all.get(None), ended.get(database)]
            if all(end is None or end < started for end in ends):
                under_way.append(started)
    return min(under_way, default=None)


def _newest(events: Sequence[Event]) -> dict[object, datetime]:
    """Database → when its newest was; None where an event is of none."""
    found = dict[object, datetime]()
    for event in events:
        of_which = next(iter(_told(event).values()), None)
        database = of_which.get("databaseId") if isinstance(of_which, dict) else None
        found[database] = max(event["timestamp"], found.get(database, event["timestamp"]))
    return found


def _of(kind: str, events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event["event_type"] == kind]


def in_words(info: object) -> str:
    """What an event tells, as text in which secrets are still quoted as they were."""
    if isinstance(info, Mapping):
        return ", ".join(f"{name}: {in_words(value)}" for name, value in info.items())
    return str(info)


def _told(event: Event) -> dict[str, Any]:
    """What an event tells, which it wraps into one field of its own."""
    info = event["info"]
    told = next(iter(info.values()), None) if isinstance(info, dict) else None
    return told if isinstance(told, dict) else {}
