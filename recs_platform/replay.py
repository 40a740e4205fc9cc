"""Replays a click log as if it happened now: page views on `user_activity`, times shifted so that the log ends now."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from recs_platform.catalog import Product, add_products, ensure_catalog
from recs_platform.catalog_carrier import carry_all, check_carried
from recs_platform.errors import SourceError
from recs_platform.events import TOPICS, Event, EventProducer
from recs_platform.settings import Settings
from recs_platform.tabular import open_text, rows
from recs_platform.topics import ensure_topics

SESSION_NAMES = ("sessionid", "session", "userid", "user", "visitorid", "customerid")
ITEM_NAMES = ("itemid", "item", "productid", "product", "articleid", "sku")
TIME_NAMES = ("time", "timestamp", "eventtime", "ts", "datetime", "date")

_LARGEST_ID = 2**63 - 1
_REPORT_EVERY = 1000
_PAUSE, _LONGEST_WAIT = 0.005, 0.5


class Click(NamedTuple):
    """One line of a click log; `time` in seconds since 1970, UTC."""

    time: float
    session: str
    item: str


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of a click log's columns; those left None are looked for among the usual names."""

    session: str | None = None
    item: str | None = None
    time: str | None = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay sent. `first` and `last` are the event times as sent, `seconds` how long sending took."""

    events: int
    sessions: int
    items: int
    items_added: int
    first: datetime
    last: datetime
    seconds: float


def replay(
    path: Path,
    settings: Settings,
    speed: float | None = None,
    columns: Columns = Columns(),
    *,
    add_missing_items: bool = False,
    category: str = "replayed",
    progress: Callable[[int, int], None] | None = None,
) -> Replayed:
    """Sends the clicks of a log, oldest first, as page views, and returns when all are delivered.

    `speed` is how many times faster than it happened, at least 1; None is as fast as the broker takes them. The times
    keep their distances and end at the moment the last click is sent; at speed 1 that makes each the time of sending.
    The user id is the session id where that is a whole number, else 63 bits of its hash (`user_id_of`).
    With `add_missing_items` the items `product_catalog` lacks are added to it first, in the given category.
    `progress(sent, total)` is called from time to time. Raises `SourceError` for a log, a broker or a catalog that
    cannot be used, `ValueError` for a speed below 1.
    """
    if speed is not None and not 1 <= speed < math.inf:
        raise ValueError(f"the speed is 1 (as it happened), more, or max; not {speed:g}")
    servers = settings.require("kafka_bootstrap_servers")
    clicks = read_clicks(path, columns)
    items = {click.item for click in clicks}
    added = _add_items(settings, items, category) if add_missing_items else 0
    ensure_topics(servers, TOPICS, settings.kafka_partitions)
    shift = _Shift(clicks[0].time, clicks[-1].time, time.time(), speed)
    _send(servers, clicks, shift, progress or (lambda *_: None))
    sessions = {click.session for click in clicks}
    first, last = shift.moment(shift.first), shift.moment(shift.last)
    return Replayed(len(clicks), len(sessions), len(items), added, first, last, time.time() - shift.begun)


def read_clicks(path: Path, columns: Columns = Columns()) -> list[Click]:
    """The clicks of a CSV or TSV file, plain or gzip, by time; all in memory, about 250 MB for a million.

    The time is in Unix seconds, milli-, micro- or nanoseconds (told apart by size) or ISO 8601, UTC when it names no
    zone. Raises `SourceError` naming the file, and the line of a row that cannot be used.
    """
    with open_text(path) as text:
        header, lines = rows(path, text)
        session, item, moment = _places(path, header, columns)
        clicks = [
            Click(_time(path, line, header[moment], fields[moment]), *_ids(path, line, fields, session, item))
            for line, fields in lines
        ]
    if not clicks:
        raise SourceError(f"{path}: holds no click, only a header")
    clicks.sort(key=lambda click: click.time)
    return clicks


def user_id_of(session: str) -> int:
    """The session id itself where it is a whole number PostgreSQL's bigint can hold, else a stable 63-bit hash."""
    if session.isascii() and session.isdecimal() and int(session) <= _LARGEST_ID:
        return int(session)
    return int.from_bytes(hashlib.blake2b(session.encode(), digest_size=8).digest()) >> 1


@dataclass(frozen=True, slots=True)
class _Shift:
    """From times of the log to event times and to when each is sent. All in seconds since 1970."""

    first: float
    last: float
    begun: float
    speed: float | None

    def due(self, moment: float) -> float:
        return self.begun if self.speed is None else self.begun + (moment - self.first) / self.speed

    def moment(self, moment: float) -> datetime:
        return datetime.fromtimestamp(self.due(self.last), UTC) - timedelta(seconds=self.last - moment)


def _send(servers: str, clicks: list[Click], shift: _Shift, progress: Callable[[int, int], None]) -> None:
    with EventProducer(servers) as producer:
        for sent, click in enumerate(clicks):
            _await(shift.due(click.time), producer)
            producer.send(Event(
                "page_view", user_id_of(click.session), shift.moment(click.time), click.item, session_id=click.session
            ))  # fmt: skip
            if sent % _REPORT_EVERY == 0:
                progress(sent, len(clicks))
    progress(len(clicks), len(clicks))


def _await(due: float, producer: EventProducer) -> None:
    while (ahead := due - time.time()) > 0:
        producer.poll(min(max(ahead, _PAUSE), _LONGEST_WAIT))


def _places(path: Path, header: list[str], columns: Columns) -> tuple[int, int, int]:
    return (
        _place(path, header, "session", columns.session, SESSION_NAMES),
        _place(path, header, "item", columns.item, ITEM_NAMES),
        _place(path, header, "time", columns.time, TIME_NAMES),
    )


def _place(path: Path, header: list[str], what: str, given: str | None, usual: tuple[str, ...]) -> int:
    if given is not None:
        if given in header:
            return header.index(given)
        raise SourceError(f"{path}: no column {given!r}; it has {', '.join(header)}")
    plain = ["".join(filter(str.isalnum, name.lower())) for name in header]
    for name in usual:
        if name in plain:
            return plain.index(name)
    raise SourceError(f"{path}: no column looks like the {what}; it has {', '.join(header)}: name it with --{what}")


def _ids(path: Path, line: int, fields: list[str], session: int, item: int) -> tuple[str, str]:
    if fields[session] and fields[item]:
        return fields[session], fields[item]
    raise SourceError(f"{path}:{line}: the {'item' if fields[session] else 'session'} is empty")


def _time(path: Path, line: int, column: str, text: str) -> float:
    try:
        return _seconds(text.strip())
    except ValueError:
        wanted = "Unix seconds (or ms, µs, ns) or ISO 8601 is wanted"
        raise SourceError(f"{path}:{line}: {column}: {text!r} is not a time; {wanted}") from None


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    for unit, limit in ((1.0, 1e11), (1e3, 1e14), (1e6, 1e17), (1e9, 1e20)):
        if 0 <= number < limit:
            return number / unit
    raise ValueError(text)


def _add_items(settings: Settings, items: Iterable[str], category: str) -> int:
    check_carried(settings)
    url = settings.require("postgres_url")
    ensure_catalog(url)
    added = add_products(url, (Product(item, f"Item {item}", category) for item in sorted(items)))
    carry_all(settings)
    return added
