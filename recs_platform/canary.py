"""Canaries: a message through Kafka and a row through PostgreSQL, each followed until Redis has it.

They have a topic, a table and sinks of their own, so that nothing that is counted or recommended holds any of them, and
nobody else who reads the shop's topics meets one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import redis
from psycopg import sql

from recs_platform.awaiting import wait_until
from recs_platform.catalog import connected as postgres_at
from recs_platform.errors import RecsError, SettingsError
from recs_platform.events import EventProducer
from recs_platform.pipeline import Pipeline
from recs_platform.serving import keys
from recs_platform.serving.connection import connected as redis_at
from recs_platform.settings import Settings
from recs_platform.whole_file import keep_whole

WAIT, BETWEEN_LOOKS = 10.0, 0.01  # seconds
LATE = 60.0  # seconds after which one has come in a backlog, too: three ticks (one under way, one read, its own) and a writing
MISSING_KEPT = 20
REMEMBERED = "canary.json"
NEWS = 300.0  # seconds for which a flight says something of now
SENSOR = "canary"  # who sends them all the time
Send = Callable[[Settings, Pipeline, str, float], None]


@dataclass(frozen=True)
class Flight:
    """One canary: the sink it came out of, what it was to follow, when it was sent (seconds since 1970), and the `seconds`
    it took to Redis; None where it did not come in time, with the `problem`. `canary`: what to look for. `missing`: those
    before it, each with when it was sent, that had not come by then either, the oldest first."""

    sink: str
    what: str
    sent_at: float
    seconds: float | None = None
    problem: str = ""
    canary: str = ""
    missing: tuple[tuple[str, float], ...] = ()

    @property
    def lost_since(self) -> float:
        """When the first was sent that has not come."""
        return self.missing[0][1] if self.missing else self.sent_at

    def is_lost_since(self, moment: float) -> bool:
        """Whether what does not come is more than late, where nothing could have come before that moment."""
        return self.seconds is None and self.sent_at - max(self.lost_since, moment) > LATE

    @property
    def words(self) -> str:
        if self.seconds is not None:
            return f"{self.what} took {1000 * self.seconds:,.0f} ms to Redis"
        return f"{self.what} did not come to Redis: {self.problem}"


def fly(settings: Settings, pipeline: Pipeline, wait: float = WAIT, sender: str = SENSOR) -> list[Flight]:
    """Sends one along each path the pipeline has, one after the other, and waits for each, at most `wait` seconds.

    Each sender has a heartbeat's row of its own: two that send at once would overwrite each other's.
    What is away is a flight with a problem. Raises `SettingsError` where no stack runs.
    """
    known = remembered(settings.state_dir, time.time()) if sender == SENSOR else ()
    before = {f.sink: f for f in known if f.seconds is None and f.canary}
    message = _Way("canary_sink", "a message", _send_message)
    row = _Way("heartbeat_sink", "a row", partial(_write_row, sender), sender)
    ways = (way for way in (message, row) if way.sink in pipeline.relations)
    return [_flown(settings, pipeline, way, wait, before.get(way.sink)) for way in ways]


@dataclass(frozen=True)
class _Way:
    """`row`: of the heartbeat's document; None where each canary has a document of its own."""

    sink: str
    what: str
    send: Send
    row: str | None = None


def _flown(settings: Settings, pipeline: Pipeline, way: _Way, wait: float, before: Flight | None) -> Flight:
    url, missing = settings.require("redis_url"), (*before.missing, (before.canary, before.sent_at)) if before else ()
    flight = Flight(way.sink, way.what, time.time(), canary=uuid4().hex, missing=missing[-MISSING_KEPT:])
    place = _Place(pipeline[way.sink].redis_name, way.row)
    try:
        with redis_at(url, wait) as connection:
            came = [i for i, (canary, _) in enumerate(flight.missing) if _is_there(connection, place, canary)]
            # each has those before it on its heels
            flight = replace(flight, sent_at=time.time(), missing=flight.missing[came[-1] + 1 if came else 0 :])
            way.send(settings, pipeline, flight.canary, wait)
            if wait_until(lambda: _is_there(connection, place, flight.canary), wait, BETWEEN_LOOKS):
                return replace(flight, seconds=time.time() - flight.sent_at, missing=())
    except SettingsError:
        raise
    except RecsError as error:
        return replace(flight, problem=str(error))
    return replace(flight, problem=f"nothing came within {wait:.0f} s")


def _send_message(settings: Settings, pipeline: Pipeline, canary: str, wait: float) -> None:
    topic = pipeline["canary_raw"].topic
    assert topic is not None
    with EventProducer(settings.require("kafka_bootstrap_servers"), delivery_seconds=wait) as producer:
        producer.send_raw(topic, None, canary.encode())


def _write_row(row: str, settings: Settings, pipeline: Pipeline, canary: str, wait: float) -> None:
    table = sql.Identifier(*pipeline["heartbeat"].catalog_table.split("."))
    put = "INSERT INTO {} (name, canary) VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET canary = excluded.canary"
    with postgres_at(settings.require("postgres_url"), wait) as connection:
        connection.execute(sql.SQL(put).format(table), [row, canary])


@dataclass(frozen=True)
class _Place:
    """Where canaries show: `recs:<name>:<version>:<row>`, each in a row of its own or all in one, the newest in the document."""

    name: str
    row: str | None


def _is_there(connection: redis.Redis, place: _Place, canary: str) -> bool:
    """The version readers are on may change meanwhile, so it is asked for each time."""
    version = connection.get(keys.pointer(place.name))
    document = connection.get(keys.document(place.name, str(version), place.row or canary)) if version else None
    return document is not None and canary in str(document)


# -- remembered for those who do not send any --------------------------------------------------------------------------


def remember(state_dir: Path, flights: Iterable[Flight]) -> None:
    """Keeps them in the state directory, as far as that can be written."""
    keep_whole(state_dir / REMEMBERED, json.dumps([asdict(flight) for flight in flights]))


def remembered(state_dir: Path, now: float) -> list[Flight]:
    """The last ones, while they say something of now."""
    try:
        kept = json.loads((state_dir / REMEMBERED).read_text())
        flights = [Flight(**{**f, "missing": tuple((str(c), float(at)) for c, at in f["missing"])}) for f in kept]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return [flight for flight in flights if 0 <= now - flight.sent_at < NEWS]
