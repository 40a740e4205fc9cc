"""Canaries: a message through Kafka and a row through PostgreSQL, each followed until Redis has it.

They have a topic, a table and sinks of their own, so that nothing that is counted or recommended holds any of them, and
nobody else who reads the shop's topics meets one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

import redis
from psycopg import sql

from recs_platform.catalog import connected as postgres_at
from recs_platform.errors import RecsError, SettingsError
from recs_platform.events import EventProducer
from recs_platform.pipeline import Pipeline
from recs_platform.serving import keys
from recs_platform.serving.connection import connected as redis_at
from recs_platform.settings import Settings
from recs_platform.stack.process import wait_until
from recs_platform.whole_file import keep_whole

WAIT, BETWEEN_LOOKS = 10.0, 0.01  # seconds
LATE = 25.0  # seconds after which one has come from behind a backlog, too: a tick, and the next writing to Redis
REMEMBERED = "canary.json"
NEWS = 300.0  # seconds for which a flight says something of now
ROW = "canary"  # the heartbeat's name
Send = Callable[[Settings, Pipeline, str, float], None]


@dataclass(frozen=True)
class Flight:
    """One canary: the sink it came out of, what it was to follow, when it was sent (seconds since 1970), and the `seconds`
    it took to Redis; None where it did not come, with the `problem`. `lost_since`: when the first was sent that did not.
    `canary`: what to look for. `follows_lost`: the one before had not come by then, either, long after it was sent."""

    sink: str
    what: str
    sent_at: float
    seconds: float | None = None
    problem: str = ""
    lost_since: float = 0.0
    canary: str = ""
    follows_lost: bool = False

    @property
    def words(self) -> str:
        if self.seconds is not None:
            return f"{self.what} took {1000 * self.seconds:,.0f} ms to Redis"
        return f"{self.what} did not come to Redis: {self.problem}"


def fly(settings: Settings, pipeline: Pipeline, wait: float = WAIT) -> list[Flight]:
    """Sends one along each path the pipeline has, one after the other, and waits for each, at most `wait` seconds.

    What is away is a flight with a problem. Raises `SettingsError` where no stack runs.
    """
    before = {flight.sink: flight for flight in remembered(settings.state_dir, time.time()) if flight.seconds is None}
    paths = (("canary_sink", "a message", _send_message), ("heartbeat_sink", "a row", _write_row))
    return [_flown(settings, pipeline, *p, wait, before.get(p[0])) for p in paths if p[0] in pipeline.relations]


def _flown(
    settings: Settings, pipeline: Pipeline, sink: str, what: str, send: Send, wait: float, lost: Flight | None
) -> Flight:
    url, sent_at = settings.require("redis_url"), time.time()
    flight, is_lost_for_good = Flight(sink, what, sent_at, canary=uuid4().hex), False
    try:
        with redis_at(url, wait) as connection:
            is_lost_for_good = lost is not None and _is_old(lost) and not _is_there(connection, pipeline, lost)
            flight = replace(flight, sent_at=time.time())
            send(settings, pipeline, flight.canary, wait)
            if wait_until(lambda: _is_there(connection, pipeline, flight), wait, BETWEEN_LOOKS):
                return replace(flight, seconds=time.time() - flight.sent_at)
    except SettingsError:
        raise
    except RecsError as error:
        return replace(flight, problem=str(error), follows_lost=is_lost_for_good)
    return replace(flight, problem=f"nothing came within {wait:.0f} s", follows_lost=is_lost_for_good)


def _is_old(flight: Flight) -> bool:
    return bool(flight.canary) and time.time() - flight.sent_at > LATE


def _send_message(settings: Settings, pipeline: Pipeline, canary: str, wait: float) -> None:
    topic = pipeline["canary_raw"].topic
    assert topic is not None
    with EventProducer(settings.require("kafka_bootstrap_servers"), delivery_seconds=wait) as producer:
        producer.send_raw(topic, None, canary.encode())


def _write_row(settings: Settings, pipeline: Pipeline, canary: str, wait: float) -> None:
    table = sql.Identifier(*pipeline["heartbeat"].options["table"].split("."))
    put = "INSERT INTO {} (name, canary) VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET canary = excluded.canary"
    with postgres_at(settings.require("postgres_url"), wait) as connection:
        connection.execute(sql.SQL(put).format(table), [ROW, canary])


def _is_there(connection: redis.Redis, pipeline: Pipeline, flight: Flight) -> bool:
    """Whether it shows under `recs:<name>:<version>:<row>`, with itself in the document. The version readers are on may
    change meanwhile, so it is asked for each time."""
    name, row = pipeline[flight.sink].redis_name, flight.canary if flight.sink == "canary_sink" else ROW
    version = connection.get(keys.pointer(name))
    document = connection.get(keys.document(name, str(version), row)) if version else None
    return document is not None and flight.canary in str(document)


# -- remembered for those who do not send any --------------------------------------------------------------------------


def remember(state_dir: Path, flights: Iterable[Flight]) -> None:
    """Keeps them in the state directory, as far as that can be written; of one that is lost, since when they are."""
    before = {flight.sink: flight for flight in _kept(state_dir)}
    now = [f if f.seconds is not None else replace(f, lost_since=_lost_since(before.get(f.sink), f)) for f in flights]
    keep_whole(state_dir / REMEMBERED, json.dumps([asdict(flight) for flight in now]))


def remembered(state_dir: Path, now: float) -> list[Flight]:
    """The last ones, while they say something of now."""
    return [flight for flight in _kept(state_dir) if 0 <= now - flight.sent_at < NEWS]


def _lost_since(before: Flight | None, lost: Flight) -> float:
    if before is None or before.seconds is not None:
        return lost.sent_at
    return before.lost_since or before.sent_at


def _kept(state_dir: Path) -> list[Flight]:
    try:
        return [Flight(**flight) for flight in json.loads((state_dir / REMEMBERED).read_text())]
    except (OSError, ValueError, TypeError):
        return []
