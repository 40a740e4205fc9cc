"""Sends dead letters back to their topics, put right, each once.

What has been sent is kept in PostgreSQL, beside the catalog, in `recs.resent`. A letter is claimed there, sent with its
id in a header, and marked when the broker has it; whoever comes after a crash in between looks for the header on the
topic, from where it ended at the time of the claim.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import jq
import psycopg
from psycopg.types.json import Jsonb

from recs_platform.catalog import CONNECT_SECONDS, refused
from recs_platform.dead_letters import Choice, DeadLetter, Origin, letters, origins
from recs_platform.engines.base import StreamEngine
from recs_platform.errors import EngineError
from recs_platform.events import EventProducer
from recs_platform.foreign_json import parsed
from recs_platform.judging import Judge
from recs_platform.pipeline import Pipeline
from recs_platform.settings import Settings
from recs_platform.topic_reader import read, spans

HEADER = "recs-dead-letter"
_LOCK = 0x7265_6373  # pg_advisory_lock: "recs"

_TABLE = """
CREATE SCHEMA IF NOT EXISTS recs;
CREATE TABLE IF NOT EXISTS recs.resent (
  letter text PRIMARY KEY, topic text NOT NULL, ends jsonb NOT NULL,
  claimed_at timestamptz NOT NULL DEFAULT now(), sent_at timestamptz)"""

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass
class Report:
    """What became of the letters. `unfit`: reason → how many are still of no use; `settled`: found on the topic after a crash."""

    sent: int = 0
    already: int = 0
    settled: int = 0
    unfit: Counter[str] = field(default_factory=Counter)

    @property
    def looked_at(self) -> int:
        return self.sent + self.already + self.unfit.total()

    def lines(self, dry_run: bool = False) -> list[str]:
        """In words, a line each."""
        lines = [f"{self.sent:,} {'would be sent' if dry_run else 'sent'}"]
        if self.already:
            lines.append(f"{self.already:,} were sent before, and are left alone")
        if self.settled:
            lines.append(f"{self.settled:,} of these a run that was cut short had sent")
        return lines + [f"{count:,} still of no use: {reason}" for reason, count in self.unfit.most_common()]


class Fix:
    """A jq program from a message to the message it should have been."""

    def __init__(self, program: str) -> None:
        """Raises `ValueError` for a program that jq refuses."""
        try:
            self._program = jq.compile(program)
        except ValueError as error:
            raise ValueError(f"the fix is no jq program: {error}") from None

    def __call__(self, payload: bytes | None) -> bytes:
        """The one value it gives, as JSON. What is not JSON goes in as text. Raises `ValueError`."""
        text = (payload or b"").decode()  # UnicodeDecodeError is a ValueError
        try:
            value = parsed(text)
        except ValueError:
            value = text
        try:
            results = self._program.input_value(value).all()
            if len(results) != 1:
                raise ValueError(f"it gives {len(results)} values")
            return json.dumps(results[0], separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        except RecursionError:
            raise ValueError("what it gives is nested too deeply") from None


def resend(
    settings: Settings,
    engine: StreamEngine,
    choice: Choice,
    fix: Fix | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    tell: Callable[[Report], None] | None = None,
) -> Report:
    """Sends what would be taken in now, as it is or fixed; at most `limit` letters.

    Raises `SourceError` (Kafka, PostgreSQL), `EngineError`, `PipelineError`. What was sent until then stays sent, and is not
    sent again.
    """
    pipeline, report = Pipeline.of(settings), Report()
    with _alone(settings.require("postgres_url")) as connection, _judges(pipeline) as judge_of:
        if not dry_run:
            connection.execute(_TABLE)
            report.settled = _settle(settings, connection)
        with EventProducer(settings.require("kafka_bootstrap_servers")) as producer:
            for page in letters(engine, choice):
                done = _marked(connection, page)
                left = [letter for letter in page if letter.id not in done]
                report.already += len(page) - len(left)
                fit = _judged(left, fix, judge_of, report)[: None if limit is None else limit - report.sent]
                if not dry_run:
                    _send(settings, connection, producer, fit, judge_of)
                report.sent += len(fit)
                if tell:
                    tell(report)
                if limit is not None and report.sent >= limit:
                    break
    return report


@dataclass(frozen=True)
class _Put:
    """A letter, and the message it becomes."""

    letter: DeadLetter
    payload: bytes


class _Judges:
    """One judge a label, made when the first letter of it comes."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline, self._origins = pipeline, origins(pipeline)
        self._judges: dict[str, Judge] = {}

    def origin(self, label: str) -> Origin:
        if label not in self._origins:
            raise EngineError(f"no SELECT of dead_letters.sql is about {label!r}; there are {', '.join(self._origins)}")
        return self._origins[label]

    def reasons(self, label: str, payloads: Sequence[bytes]) -> list[str | None]:
        if label not in self._judges:
            self._judges[label] = Judge(self._pipeline, self.origin(label))
        return self._judges[label].reasons(payloads)

    def close(self) -> None:
        for judge in self._judges.values():
            judge.close()


@contextmanager
def _judges(pipeline: Pipeline) -> Iterator[_Judges]:
    found = _Judges(pipeline)
    try:
        yield found
    finally:
        found.close()


def _judged(found: Sequence[DeadLetter], fix: Fix | None, judges: _Judges, report: Report) -> list[_Put]:
    """Those of a page, all of one label, that would be taken in."""
    puts = list[_Put]()
    for letter in found:
        try:
            puts.append(_Put(letter, fix(letter.payload) if fix else letter.payload or b""))
        except ValueError as error:
            report.unfit[f"the fix fails: {str(error).partition(chr(10))[0]}"] += 1
    reasons = judges.reasons(puts[0].letter.label, [put.payload for put in puts]) if puts else []
    report.unfit.update(reason for reason in reasons if reason is not None)
    return [put for put, reason in zip(puts, reasons, strict=True) if reason is None]


# -- sending ----------------------------------------------------------------------------------------------------------


def _send(
    settings: Settings, connection: Connection, producer: EventProducer, puts: Sequence[_Put], judges: _Judges
) -> None:
    """Claims, sends, and marks when the broker has them all."""
    if not puts:
        return
    topic = judges.origin(puts[0].letter.label).topic
    ends = Jsonb({p: span.next for p, span in spans(settings.kafka_bootstrap_servers, topic).items()})
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO recs.resent (letter, topic, ends) VALUES (%s, %s, %s)",
            [(put.letter.id, topic, ends) for put in puts],
        )
    for put in puts:
        producer.send_raw(topic, _key(put.payload), put.payload, {HEADER: put.letter.id.encode()})
    producer.flush()
    _mark(connection, [put.letter.id for put in puts])


def _key(payload: bytes) -> bytes | None:
    """Messages are keyed by the shopper, so that those of one stay in order."""
    event = json.loads(payload)
    return str(event["user_id"]).encode() if isinstance(event, dict) and "user_id" in event else None


def _marked(connection: Connection, page: Sequence[DeadLetter]) -> set[str]:
    """The ids of those that are sent. None are where nothing has ever been."""
    if connection.execute("SELECT to_regclass('recs.resent')").fetchone() == (None,):
        return set()
    ids = [letter.id for letter in page]
    return {row[0] for row in connection.execute("SELECT letter FROM recs.resent WHERE letter = ANY(%s)", [ids])}


def _mark(connection: Connection, ids: Iterable[str]) -> None:
    connection.execute("UPDATE recs.resent SET sent_at = now() WHERE letter = ANY(%s)", [list(ids)])


# -- after a crash ----------------------------------------------------------------------------------------------------


def _settle(settings: Settings, connection: Connection) -> int:
    """Marks what was claimed and is on its topic, gives up the other claims; how many were there."""
    claimed = connection.execute("SELECT letter, topic, ends FROM recs.resent WHERE sent_at IS NULL").fetchall()
    if not claimed:
        return 0
    there = set[str]()
    for topic in {topic for _, topic, _ in claimed}:
        ends = [{int(p): int(o) for p, o in found.items()} for _, name, found in claimed if name == topic]
        lowest = {p: min(e.get(p, 0) for e in ends) for p in {p for e in ends for p in e}}
        there |= _headers(settings.require("kafka_bootstrap_servers"), topic, lowest)
    found = {letter for letter, _, _ in claimed} & there
    _mark(connection, found)
    connection.execute("DELETE FROM recs.resent WHERE sent_at IS NULL")
    return len(found)


def _headers(servers: str, topic: str, lowest: Mapping[int, int]) -> set[str]:
    """The ids in the headers of all messages from these offsets on. Raises `SourceError`."""
    parts = {p: replace(s, first=max(s.first, lowest.get(p, 0))) for p, s in spans(servers, topic).items()}
    found = set[str]()
    for message in read(servers, topic, parts):
        headers = cast(Iterable[tuple[str, bytes]], message.headers() or ())
        found |= {value.decode() for name, value in headers if name == HEADER}
    return found


@contextmanager
def _alone(postgres_url: str) -> Iterator[Connection]:
    """A connection while nobody else resends. Raises `SourceError`, `EngineError` where somebody does."""
    try:
        with psycopg.connect(postgres_url, autocommit=True, connect_timeout=CONNECT_SECONDS) as connection:
            if connection.execute("SELECT pg_try_advisory_lock(%s)", [_LOCK]).fetchone() != (True,):
                raise EngineError("somebody else sends dead letters back just now: try again when that is done")
            yield connection
    except psycopg.Error as error:
        raise refused(postgres_url, error) from None
