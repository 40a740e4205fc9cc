"""The local stream engine: takes in, ticks, writes out, in one loop of one process."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from statistics import quantiles
from typing import Any, TypeVar

import pyarrow.compute as pc

from recs_platform.engines.local.cdc import CatalogBatch, CatalogFeed, CatalogTable
from recs_platform.engines.local.database import Database, TickInput
from recs_platform.engines.local.intake import Intake, KafkaIntake
from recs_platform.engines.local.redis_sink import RedisSink
from recs_platform.errors import SourceError
from recs_platform.pipeline import Pipeline
from recs_platform.plan import Action, Plan, Step
from recs_platform.settings import Settings

log = logging.getLogger("recs.engine")

MAX_MESSAGES = 20_000  # a tick; a backlog is worked off in ticks of this size
MAX_CHANGES = 20_000
WAIT_FOR_MESSAGES = 0.02  # seconds
BETWEEN_TICKS = 0.03
LONGEST_REST = 0.25
BETWEEN_CLOCK_TICKS = 1.0  # how often time alone makes rows come and go
BETWEEN_CATALOG_POLLS = 0.1
BETWEEN_TRIMS = 60.0
RETRY_CATALOG = 1.0
RATE_WINDOW, FIGURES_WINDOW = 5.0, 60.0

T = TypeVar("T", int, float)


@dataclass
class Meter:
    """Recent figures of the engine, for status and the live screen."""

    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    ticks: int = 0
    messages: int = 0
    tick_seconds: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=5_000))
    delays: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=5_000))
    arrivals: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=5_000))

    def rate(self) -> float:
        """Messages a second over the last seconds."""
        return sum(_latest(self.arrivals, RATE_WINDOW)) / RATE_WINDOW

    def figures(self) -> dict[str, float | int | str | None]:
        ticks, delays = _latest(self.tick_seconds, FIGURES_WINDOW), _latest(self.delays, FIGURES_WINDOW)
        return {
            "started_at": self.started.isoformat(),
            "ticks": self.ticks,
            "messages": self.messages,
            "events_per_second": round(self.rate(), 1),
            "tick_p50_ms": _percentile(ticks, 50),
            "tick_p99_ms": _percentile(ticks, 99),
            "freshness_p50_ms": _percentile(delays, 50),
            "freshness_p99_ms": _percentile(delays, 99),
        }


class Engine:
    """Owns the database, the readers and the sink writer. `run` is the loop; everything else asks it from outside."""

    def __init__(
        self, settings: Settings, database: Database, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.settings, self.database, self.clock = settings, database, clock
        self.meter = Meter()
        self.problems: dict[str, str] = {}
        self.lags: list[dict[str, Any]] = []
        self._requests: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._next = {"clock": 0.0, "catalog": 0.0, "trim": 0.0, "lag": 0.0}
        self._all_flushed = False
        self.apply()
        self._open()

    def _open(self) -> None:
        self.sink = RedisSink(self.settings.require("redis_url"), self.database)
        self.intake = KafkaIntake(self.settings.require("kafka_bootstrap_servers"), list(self.database.pipeline.topics))
        self.intake.seek(p for p in self.database.positions() if p.topic in self.database.pipeline.topics)
        self.feed = self._new_feed()

    def _new_feed(self) -> CatalogFeed:
        tables = [
            CatalogTable(r.name, r.options["table"], tuple(c.name for c in r.columns), r.key)
            for r in self.database.pipeline
            if "table" in r.options
        ]
        self._feed_ready = False
        s = self.settings
        return CatalogFeed(s.require("postgres_url"), s.publication, s.replication_slot, tables)

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Ticks until told to stop. What is away (Kafka, PostgreSQL, Redis) is a problem to show, not an end."""
        while not stop.is_set():
            began = time.monotonic()
            self._answer_requests()
            taken = self.round()
            took = time.monotonic() - began
            if taken < MAX_MESSAGES // 2:  # no backlog: leave half of the time to others, and let messages gather
                stop.wait(max(BETWEEN_TICKS - took, min(took, LONGEST_REST)))

    def close(self) -> None:
        self.intake.close()
        self.feed.close()
        self.sink.close()
        self.database.close()

    def round(self) -> int:
        """Takes in what there is, ticks once and writes out; returns how many messages came in."""
        messages = self.intake.poll(MAX_MESSAGES, WAIT_FOR_MESSAGES)
        self._note_problem("kafka", messages.problem)
        for reset in messages.resets:
            log.warning("topic %s partition %s began anew: %s", reset.topic, reset.partition, reset.reason)
        catalog = self._catalog()
        taken = TickInput(
            messages=messages.tables,
            positions=messages.positions if messages.tables or messages.resets else (),
            changes=catalog.changes if catalog else {},
            lsn=catalog.end_lsn if catalog and catalog.changes else None,
        )
        if taken or self._is_due("clock", BETWEEN_CLOCK_TICKS):
            self._tick(taken)
        if catalog is not None and catalog.end_lsn:
            self._advance(catalog.end_lsn)
        self._flush()
        self._note_delays(messages)
        self._housekeeping()
        return sum(table.num_rows for table in messages.tables.values())

    def _tick(self, taken: TickInput) -> None:
        result = self.database.tick(self.clock(), taken, flushed=self._all_flushed)
        self._all_flushed = False
        self.meter.ticks += 1
        self.meter.messages += result.messages
        self.meter.arrivals.append((time.monotonic(), result.messages))
        if result.changed:
            self.meter.tick_seconds.append((time.monotonic(), result.seconds))

    def _flush(self) -> None:
        self._all_flushed = self.sink.flush()
        self._note_problem("redis", self.sink.problem)

    def _note_delays(self, messages: Intake) -> None:
        """How long ago the newest message of each topic was sent, now that Redis has what it led to."""
        if not self._all_flushed:
            return
        now = datetime.now(UTC)
        for table in messages.tables.values():
            newest = pc.max(table["received_at"]).as_py() if table.num_rows else None
            if newest is not None:
                self.meter.delays.append((time.monotonic(), max(0.0, (now - newest).total_seconds())))

    def _housekeeping(self) -> None:
        if self._is_due("trim", BETWEEN_TRIMS):
            self.database.trim_logs(self.clock() - timedelta(hours=self.settings.log_retention_hours))
        if self._is_due("lag", 1.0):
            self.lags = [
                {
                    "topic": x.topic,
                    "partition": x.partition,
                    "next_offset": x.next_offset,
                    "end_offset": x.end_offset,
                    "lag": x.lag,
                }
                for x in self.intake.lag()
            ]

    # -- the catalog ----------------------------------------------------------------------------------------------

    def _catalog(self) -> CatalogBatch | None:
        if not self._is_due("catalog", BETWEEN_CATALOG_POLLS):
            return None
        try:
            if not self._feed_ready:
                self._prepare_catalog()
            batch = self.feed.poll(MAX_CHANGES, int(self.database.fact("lsn") or 0))
        except SourceError as error:
            self._note_problem("catalog", str(error))
            self._feed_ready = False
            self._next["catalog"] = time.monotonic() + RETRY_CATALOG
            return None
        self._note_problem("catalog", None)
        return batch

    def _prepare_catalog(self) -> None:
        """Slot first, then snapshot: a change in between is read twice, which changes nothing."""
        is_new = self.feed.prepare()
        if is_new:  # positions of a slot that is gone mean nothing
            self.database.set_fact("lsn", "0")
        for table in self.feed.tables:
            if is_new or not self.database.has_snapshot(table.name):
                log.info("reading a snapshot of %s", table.source)
                self.database.load_snapshot(table.name, self.feed.snapshot(table), self.clock())
        self._feed_ready = True

    def _advance(self, lsn: int) -> None:
        """Lets PostgreSQL forget what is committed here; if it is away now, it forgets later."""
        try:
            self.feed.advance(lsn)
        except SourceError as error:
            self._note_problem("catalog", str(error))
            self._feed_ready = False

    # -- asked from outside ---------------------------------------------------------------------------------------

    def ask(self, request: Callable[[], Any], timeout: float = 120.0) -> Any:
        """Runs something between two ticks, in the loop's own thread, and returns what it returned."""
        answer: Future[Any] = Future()
        self._requests.append((request, answer))
        return answer.result(timeout)

    def _answer_requests(self) -> None:
        while self._requests:
            request, answer = self._requests.popleft()
            try:
                answer.set_result(request())
            except Exception as error:  # handed to whoever asked
                answer.set_exception(error)

    def plan(self, rebuild: Iterable[str] = ()) -> Plan:
        return self.database.plan(Pipeline.load(self.settings.sql_dir), rebuild)

    def apply(self, rebuild: Iterable[str] = ()) -> Plan:
        """Reads `sql/` anew and deploys it. Raises `PipelineError` and changes nothing where a file is wrong."""
        topics = set(self.database.pipeline.topics)
        plan = self.database.deploy(Pipeline.load(self.settings.sql_dir), self.clock(), rebuild)
        for step in plan.steps:
            log.info("%s", step)
        if topics:
            self._reopen(topics, plan)
        return plan

    def _reopen(self, topics: set[str], plan: Plan) -> None:
        """A changed source or table is read from its beginning; nothing else notices."""
        if any(self._is_kind(step, "topic") for step in plan.of(Action.CREATE)) or topics != set(
            self.database.pipeline.topics
        ):
            self.intake.close()
            self.intake = KafkaIntake(
                self.settings.require("kafka_bootstrap_servers"), list(self.database.pipeline.topics)
            )
            self.intake.seek(p for p in self.database.positions() if p.topic in self.database.pipeline.topics)
        if any(self._is_kind(step, "table") for step in plan.of(Action.CREATE)):
            self.feed.close()
            self.feed = self._new_feed()

    def _is_kind(self, step: Step, option: str) -> bool:
        return option in self.database.pipeline[step.name].options

    # -- what is known --------------------------------------------------------------------------------------------

    def _is_due(self, name: str, interval: float) -> bool:
        if time.monotonic() < self._next[name]:
            return False
        self._next[name] = time.monotonic() + interval
        return True

    def _note_problem(self, part: str, problem: str | None) -> None:
        if problem is None:
            if self.problems.pop(part, None) is not None:
                log.info("%s is well again", part)
        elif self.problems.get(part) != problem:
            log.warning("%s", problem)
            self.problems[part] = problem

    def lag(self) -> int:
        return sum(int(x["lag"]) for x in self.lags)


def _latest(values: deque[tuple[float, T]], seconds: float) -> list[T]:
    """What was noted in the last so many seconds."""
    since = time.monotonic() - seconds
    return [value for at, value in tuple(values) if at >= since]


def _percentile(values: list[float], percent: int) -> float | None:
    """In milliseconds; None where there is nothing to tell."""
    if len(values) < 2:
        return round(values[0] * 1000, 1) if values else None
    return round(quantiles(values, n=100, method="inclusive")[percent - 1] * 1000, 1)
