"""Canaries: a message through Kafka and a row through PostgreSQL, each followed until Redis has it.

They have a topic, a table and sinks of their own, so that nothing that is counted or recommended holds any of them, and
nobody else who reads the shop's topics meets one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import redis
from psycopg import sql

from recs_platform.catalog import connected as postgres_at
from recs_platform.errors import RecsError
from recs_platform.events import EventProducer
from recs_platform.pipeline import Pipeline
from recs_platform.serving import keys
from recs_platform.serving.connection import connected as redis_at
from recs_platform.settings import Settings
from recs_platform.whole_file import keep_whole

WAIT, BETWEEN_LOOKS = 10.0, 0.01  # seconds
REMEMBERED = "canary.json"
NEWS = 300.0  # seconds for which a flight says something of now
ROW = "canary"  # the heartbeat's name


@dataclass(frozen=True)
class Flight:
    """One canary: the sink it came out of, what it was to follow, when it was sent (seconds since 1970), and the `seconds`
    it took to Redis; None where it did not come, with the `problem`."""

    sink: str
    what: str
    sent_at: float
    seconds: float | None = None
    problem: str = ""

    @property
    def words(self) -> str:
        if self.seconds is not None:
            return f"{self.what} took {1000 * self.seconds:,.0f} ms to Redis"
        return f"{self.what} did not come to Redis: {self.problem}"


def fly(settings: Settings, pipeline: Pipeline, wait: float = WAIT) -> list[Flight]:
    """Sends one along each path the pipeline has, and waits for them, at most `wait` seconds in all.

    What is away is a flight with a problem. Raises `SettingsError` where no stack runs.
    """
    sent = list(_sent(settings, pipeline, wait))
    waiting = [(flight, key) for flight, key in sent if not flight.problem]
    try:
        with redis_at(settings.require("redis_url"), wait) as connection:
            return [flight for flight, _ in sent if flight.problem] + _arrived(connection, waiting, wait)
    except RecsError as error:
        return [Flight(f.sink, f.what, f.sent_at, problem=f.problem or str(error)) for f, _ in sent]


@dataclass(frozen=True)
class _Place:
    """Where a canary shows: `recs:<name>:<version>:<row>`, with itself in the document."""

    name: str
    row: str
    canary: str


def _sent(settings: Settings, pipeline: Pipeline, wait: float) -> Iterator[tuple[Flight, _Place]]:
    for sink, what, send in (("canary_sink", "a message", _send_message), ("heartbeat_sink", "a row", _write_row)):
        if sink not in pipeline.relations:
            continue
        canary, now, problem = uuid4().hex, time.time(), ""
        try:
            send(settings, pipeline, canary, wait)
        except RecsError as error:
            problem = str(error)
        row = canary if sink == "canary_sink" else ROW
        yield Flight(sink, what, now, problem=problem), _Place(pipeline[sink].redis_name, row, canary)


def _send_message(settings: Settings, pipeline: Pipeline, canary: str, wait: float) -> None:
    topic = pipeline["canary_raw"].topic
    assert topic is not None
    with EventProducer(settings.require("kafka_bootstrap_servers"), delivery_seconds=wait) as producer:
        producer.send_raw(topic, None, canary.encode())


def _write_row(settings: Settings, pipeline: Pipeline, canary: str, wait: float) -> None:
    table = sql.Identifier(*pipeline["heartbeat"].options["table"].split("."))
    put = "INSERT INTO {} (name, canary) VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET canary = excluded.canary"
    with postgres_at(settings.require("postgres_url")) as connection:
        connection.execute(sql.SQL(put).format(table), [ROW, canary])


def _arrived(connection: redis.Redis, waiting: Sequence[tuple[Flight, _Place]], wait: float) -> list[Flight]:
    found, left = list[Flight](), list(waiting)
    deadline = time.monotonic() + wait
    while left:
        for flight, place in list(left):
            if _is_there(connection, place):
                found.append(Flight(flight.sink, flight.what, flight.sent_at, time.time() - flight.sent_at))
                left.remove((flight, place))
        if left and time.monotonic() > deadline:
            problem = f"nothing came within {wait:.0f} s"
            return found + [Flight(f.sink, f.what, f.sent_at, problem=problem) for f, _ in left]
        time.sleep(BETWEEN_LOOKS)
    return found


def _is_there(connection: redis.Redis, place: _Place) -> bool:
    """The version readers are on may change meanwhile, so it is asked for each time."""
    version = connection.get(keys.pointer(place.name))
    document = connection.get(keys.document(place.name, str(version), place.row)) if version else None
    return document is not None and place.canary in str(document)


# -- remembered for those who do not send any --------------------------------------------------------------------------


def remember(state_dir: Path, flights: Iterable[Flight]) -> None:
    """Keeps them in the state directory, as far as that can be written."""
    keep_whole(state_dir / REMEMBERED, json.dumps([asdict(flight) for flight in flights]))


def remembered(state_dir: Path, now: float) -> list[Flight]:
    """The last ones, while they say something of now."""
    try:
        found = [Flight(**flight) for flight in json.loads((state_dir / REMEMBERED).read_text())]
    except (OSError, ValueError, TypeError):
        return []
    return [flight for flight in found if 0 <= now - flight.sent_at < NEWS]
