"""The local stream engine: takes in, ticks, writes out, in one loop of one process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from recs_platform.choice import narrowed
from recs_platform.engines.local.arrivals import TickInput
from recs_platform.engines.local.catalog_files import FileFeed
from recs_platform.engines.local.cdc import CatalogBatch, CatalogFeed
from recs_platform.engines.local.changes import CatalogTable
from recs_platform.engines.local.database import Database
from recs_platform.engines.local.intake import Intake, KafkaIntake, PartitionLag
from recs_platform.engines.local.meter import Meter
from recs_platform.engines.local.redis_sink import RedisSink
from recs_platform.engines.local.requests import Requests
from recs_platform.engines.local.tick_size import TickSize
from recs_platform.engines.local.waiting import Waiting
from recs_platform.engines.status import BACKLOG, PartitionStatus
from recs_platform.errors import EngineError, SourceError
from recs_platform.pipeline import Kind, Pipeline, Relation
from recs_platform.plan import Action, Plan
from recs_platform.schema import copies, needed_columns
from recs_platform.settings import Settings

log = logging.getLogger("recs.engine")

MAX_MESSAGES = 500_000  # a tick, where the machine is fast enough for so many
BUSY = 100  # messages of a tick from which on the engine does not rest
MAX_CHANGES = 20_000
WAIT_FOR_MESSAGES = 0.1  # seconds; a fetch takes less, even one that finds nothing
BETWEEN_TICKS = 0.03
LONGEST_ROUND = 0.15  # a rest makes no round longer: what is spared then is not worth the delay
BETWEEN_CLOCK_TICKS = timedelta(seconds=1)  # how often time alone makes rows come and go
LONGEST_UNWRITTEN = 10.0  # seconds; what a tick of a backlog writes, the next one mostly writes over
SAMPLE = 10  # the delay of one message in so many is noted
SET_BACK = timedelta(minutes=1)  # a clock that is behind by more was set back, and is not merely corrected
FAR_AHEAD = timedelta(days=1)  # of the log so much may be gone too early
UPTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while a laptop sleeps
BETWEEN_CATALOG_POLLS = 0.2
BETWEEN_TRIMS = 60.0
STANDS = 60.0  # seconds of one round from which on that is a problem
BUILDS = 1800.0  # and of a build, which may take long
RETRY_CATALOG = 1.0
TOPIC = "kafka/"  # what the problem of a topic is called, before its name
LEFT = "left"  # the fact that names the files somebody has gone back from, or deployed a part of


T = TypeVar("T")
Feed: TypeAlias = CatalogFeed | FileFeed
"""What brings tables: both are asked the same."""


class Engine:
    """Owns the database, the readers and the sink writer. `run` is the loop; everything else asks it from outside."""

    def __init__(
        self, settings: Settings, database: Database, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.settings, self.database, self.clock = settings, database, clock
        self.meter, self._tick_size = Meter(), TickSize(MAX_MESSAGES)
        self.problems: dict[str, str] = {}
        self.building: dict[str, str] = {}  # physical name → how far
        self.lags: list[PartitionStatus] = []
        self._newest: dict[str, datetime] = {}  # topic → when the newest message that is taken in was sent
        self.doing, self._round_at = "starting", time.monotonic()
        self.requests = Requests(lambda: f"{self.doing} for {self._standing():.0f} s")
        self._next = {"catalog": 0.0, "trim": 0.0, "lag": 0.0, "compact": 0.0}
        self._clock_moved_at = datetime.fromtimestamp(0, UTC)
        self._written_at = 0.0  # monotonic
        self._started_at, self._started_uptime = clock(), time.clock_gettime(UPTIME)
        self._catalog_thread = ThreadPoolExecutor(1, thread_name_prefix="catalog")
        self._begin()
        self._open()

    def _open(self) -> None:
        self.sink = RedisSink(self.settings.require("redis_url"), self.database)
        self.intake = self._new_intake()
        self.feed = self._new_feed()

    def _new_intake(self) -> KafkaIntake:
        """Goes on from the kept positions. A catalog that comes from topics is read to its end before any event is, for
        events look it up."""
        servers, topics = self.settings.require("kafka_bootstrap_servers"), self.database.pipeline.topics
        self._first = [
            t for t, source in topics.items() if source.is_keyed and not self.database.bookmarks.is_read(source)
        ]
        self._ends: dict[tuple[str, int], int] = {}
        intake = KafkaIntake(servers, self._first or list(topics), MAX_MESSAGES)
        intake.seek(self.database.bookmarks.positions())
        self._waiting = Waiting()
        return intake

    def _new_feed(self) -> Feed:
        self._feed_ready = False
        self._asked: Future[CatalogBatch] | None = None
        self._committed_to = 0  # what PostgreSQL may forget
        return self._feed_of(self.database.pipeline)

    def _feed_of(self, pipeline: Pipeline) -> Feed:
        s, copied = self.settings, copies(pipeline)
        if not copied:
            return FileFeed(s.catalog_dir, [_table(r, r.name) for r in pipeline if r.is_from_file])
        is_lenient = s.follow_breaking_changes
        tables = [
            _table(r, r.catalog_table, frozenset(r.key) if is_lenient else needed_columns(pipeline, r)) for r in copied
        ]
        return CatalogFeed(s.require("postgres_url"), s.publication, s.replication_slot, tables)

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Ticks until told to stop. What is away (Kafka, PostgreSQL, Redis) is a problem to show, not an end."""
        while not stop.is_set():
            began = time.monotonic()
            self.requests.answer(self._begin_request)
            taken = self.round()
            took = time.monotonic() - began
            stop.wait(_rest(took, taken))
        self.requests.end()

    def close(self) -> None:
        self.intake.close()
        self._close_feed()
        self._catalog_thread.shutdown()
        self.sink.close()
        self.database.close()

    def round(self) -> int:
        """Takes in what there is, ticks once and writes out; returns how many messages came in."""
        self.doing, self._round_at = "taking in messages", time.monotonic()
        now = self._time_to_move_to()
        messages = self._waiting.take(
            self.intake.poll(WAIT_FOR_MESSAGES, self._tick_size.messages), is_dear=now is not None
        )
        taken_at = datetime.now(UTC)
        self._note_problem("kafka", messages.problem)
        self._note_problems_of_topics(messages.of_topics)
        for reset in messages.resets:
            log.warning(
                "%s/%s: at least %s messages are lost: %s", reset.topic, reset.partition, reset.lost, reset.reason
            )
        catalog = self._catalog()
        taken = TickInput(
            messages=messages.tables,
            positions=messages.positions if messages.tables or messages.resets else (),
            resets=messages.resets,
            changes=catalog.changes if catalog else {},
            lsn=catalog.end_lsn if catalog and catalog.changes else None,
        )
        if taken or now:
            self._tick(now, taken)
        committed_at = datetime.now(UTC)
        if catalog is not None:
            self._committed_to = catalog.end_lsn
        self._ask_catalog()
        is_written = self._flush(messages)
        if messages.count and is_written:
            self.meter.note_delays(_sample(messages), taken_at, committed_at, datetime.now(UTC))
        if self._first and _has_read(self._ends, messages):
            self._go_on_to_events()
        self._housekeeping(messages)
        return messages.count

    def _go_on_to_events(self) -> None:
        for topic in self._first:
            self.database.bookmarks.note_read(self.database.pipeline.topics[topic])
        self.intake.close()
        self.intake = self._new_intake()

    def _time_to_move_to(self) -> datetime | None:
        """What NOW() moves to, once a second; the ticks between are the quicker for not looking at the time."""
        now = self.clock()
        if self.database.time - now > SET_BACK:
            self._set_back(now)
        if now - self._clock_moved_at < BETWEEN_CLOCK_TICKS:
            return None
        self._clock_moved_at = now
        return now

    def _set_back(self, now: datetime) -> None:
        """A clock that was ahead has emptied windows, and they would stay so until it is that late again."""
        log.warning(
            "the clock was set back from %s to %s: what depends on the time is built anew", self.database.time, now
        )
        self.database.set_back(now)
        self._clock_moved_at = datetime.fromtimestamp(0, UTC)

    def _tick(self, now: datetime | None, taken: TickInput) -> None:
        done = self.database.tick(now, taken)
        self.meter.note_tick(done)
        self._tick_size.note(done.messages, done.seconds)

    def _flush(self, messages: Intake) -> bool:
        if _is_backlog(messages) and time.monotonic() - self._written_at < LONGEST_UNWRITTEN:
            return False
        is_written = self.sink.flush()
        self._written_at = time.monotonic()
        self._note_problem("redis", self.sink.problem)
        return is_written

    def _housekeeping(self, messages: Intake) -> None:
        self._trim()
        if self._is_due("compact", BETWEEN_TRIMS):
            self.database.compact()
        if not messages.count:
            self.database.tidy()
        for topic, table in messages.tables.items():
            if table.num_rows:
                self._newest[topic] = pc.max(table["received_at"]).as_py()
        if self._is_due("lag", 1.0):
            self.lags = [self._status_of(lag) for lag in messages.lags]

    def _trim(self) -> None:
        """Not while the clock is far ahead of what has passed since the start: what it would throw away cannot be had again."""
        if not self._is_due("trim", BETWEEN_TRIMS):
            return
        now = self.clock()
        ahead = now - self._started_at - timedelta(seconds=time.clock_gettime(UPTIME) - self._started_uptime)
        words = f"the clock is {ahead} ahead of the time that has passed: raw messages are kept until it is right or the engine restarts"
        self._note_problem("clock", words if ahead > FAR_AHEAD else None)
        if ahead <= FAR_AHEAD:
            self.database.trim_logs(now - timedelta(hours=self.settings.log_retention_hours))

    def _status_of(self, lag: PartitionLag) -> PartitionStatus:
        return {
            "topic": lag.topic,
            "partition": lag.partition,
            "next_offset": lag.next_offset,
            "end_offset": lag.end_offset,
            "lag": lag.lag,
            "lag_seconds": self._lag_seconds(lag),
        }

    def _lag_seconds(self, lag: PartitionLag) -> float:
        """At most how old the oldest message is that is not taken in: it is no older than the newest that is."""
        since = min(self._newest.get(lag.topic, self.meter.started), self.clock())  # a producer's clock may be ahead
        return round(max(0.0, (self.clock() - since).total_seconds()), 1) if lag.lag else 0.0

    # -- the catalog ----------------------------------------------------------------------------------------------

    def _catalog(self) -> CatalogBatch | None:
        """What the catalog's thread has brought. Snapshots come here and now: the messages of the tick look things up in them."""
        try:
            if not self._feed_ready and self._is_due("catalog", BETWEEN_CATALOG_POLLS):
                self._prepare_catalog()
            batch = self._answered() if self._asked is not None and self._asked.done() else None
        except SourceError as error:
            self._note_problem("catalog", str(error))
            self._feed_ready = False
            self._next["catalog"] = time.monotonic() + RETRY_CATALOG
            return None
        if batch is not None:
            self._note_problem("catalog", None)
        return batch

    def _answered(self) -> CatalogBatch:
        assert self._asked is not None
        asked, self._asked = self._asked, None
        return asked.result()

    def _ask_catalog(self) -> None:
        """Every so often, and never before what was brought last is committed."""
        if self._feed_ready and self._asked is None and self._is_due("catalog", BETWEEN_CATALOG_POLLS):
            lsn = self.database.bookmarks.lsn
            self._asked = self._catalog_thread.submit(self._poll_catalog, self.feed, lsn, self._committed_to)

    @staticmethod
    def _poll_catalog(feed: Feed, lsn: int, committed_to: int) -> CatalogBatch:
        """Lets PostgreSQL forget what is committed here, and reads on."""
        if committed_to:
            feed.advance(committed_to)
        return feed.poll(MAX_CHANGES, lsn)

    def _close_feed(self) -> None:
        if self._asked is not None:
            with suppress(SourceError):
                self._answered()
        self.feed.close()

    def _prepare_catalog(self) -> None:
        """Slot first, then snapshot: a change in between is read twice, which changes nothing."""
        is_new = self.feed.prepare()
        if is_new:  # what was read through one that is gone is not followed any more: also if reading anew fails now
            self.database.bookmarks.forget_snapshots()
        for table in self.feed.tables:
            if is_new or not self.database.bookmarks.is_read(self.database.pipeline[table.name]):
                self.doing = f"reading {table.name} from PostgreSQL"
                log.info("reading a snapshot of %s", table.name)
                self.database.load_snapshot(table.name, self._getting_on(self.feed.snapshot(table)), self.clock())
        self._feed_ready = True

    # -- asked from outside ---------------------------------------------------------------------------------------

    def ask(self, request: Callable[[], Any], patience: float = 120.0) -> Any:
        """Runs something between two ticks: see `Requests.ask`."""
        return self.requests.ask(request, patience)

    def _begin_request(self) -> None:
        self.doing, self._round_at = "changing what is deployed", time.monotonic()

    def plan(self, rebuild: Iterable[str] = (), only: Collection[str] = ()) -> Plan:
        return self.database.plan(self._wanted(only), rebuild)

    def apply(self, rebuild: Iterable[str] = (), only: Collection[str] = ()) -> Plan:
        """Reads `sql/` anew and deploys it. Raises `PipelineError` and changes nothing where a file is wrong.

        With `only`, those relations with what must go along; the rest of the files is deployed by the next `apply` alone.
        """
        wanted, files = self._wanted(only), Pipeline.of(self.settings)
        plan = self._deploy(wanted, rebuild)
        self.database.facts.set(LEFT, "" if wanted.digest == files.digest else files.digest)
        return plan

    def _wanted(self, only: Collection[str]) -> Pipeline:
        files = Pipeline.of(self.settings)
        return narrowed(files, self.database.deployed_pipeline(), only) if only else files

    def roll_back(self) -> Plan:
        """Deploys what was deployed before the files last changed, built anew from what is kept.

        The files as they are now are not deployed by a mere start of the engine any more, only by `apply`.
        """
        former, left = self.database.deployed_pipeline(former=True), self.database.pipeline.digest
        if not former.relations:
            raise EngineError("there is nothing to go back to: no other files have been deployed here")
        plan = self._deploy(former)
        self.database.facts.set(LEFT, left)
        return plan

    def forget(self, user_id: int) -> Plan:
        """Takes a shopper out of the log and of all that is made from it, and refuses what comes of them later."""
        plan = self.database.forget(user_id, self.clock())
        log.info("a shopper is forgotten: %d relations built anew", len(plan.of(Action.CREATE)))
        return plan

    def _begin(self) -> None:
        """Deploys the files, unless they are those that somebody has gone back from."""
        files, deployed = Pipeline.of(self.settings), self.database.deployed_pipeline()
        has_left = deployed.relations and self.database.facts.get(LEFT) == files.digest
        self._deploy(deployed if has_left else files)

    def _deploy(self, pipeline: Pipeline, rebuild: Iterable[str] = ()) -> Plan:
        topics = set(self.database.pipeline.topics)
        try:
            plan = self.database.deploy(pipeline, self.clock(), rebuild, partial(self._at_the_start, pipeline))
        finally:
            self.building = {}
        for step in plan.steps:
            log.info("%s", step)
        if topics:
            self._reopen(topics, plan)
        return plan

    def _at_the_start(self, pipeline: Pipeline, plan: Plan) -> dict[str, pa.Table]:
        self.building = {step.physical_name: "with the others, in one step" for step in plan.of(Action.CREATE)}
        return self._read_tables(pipeline, plan)

    def _read_tables(self, pipeline: Pipeline, plan: Plan) -> dict[str, pa.Table]:
        """The catalog tables that the plan creates where others look them up already: a lookup is not made again later.

        Raises `SourceError` where they cannot be read, but for an engine that is just starting: that goes on, and reads
        them when it can.
        """
        if not self.database.deployed() or not plan.creates & {table.name for table in pipeline.of_kind(Kind.TABLE)}:
            return {}
        feed = self._feed_of(pipeline)
        try:
            if feed.prepare():
                self.database.bookmarks.forget_snapshots()
            return {t.name: pa.concat_tables(feed.snapshot(t)) for t in feed.tables if t.name in plan.creates}
        except SourceError:
            if self.database.pipeline.relations:
                raise
            log.warning("the catalog cannot be read before what reads it is built")
            return {}
        finally:
            feed.close()

    def _reopen(self, topics: set[str], plan: Plan) -> None:
        """A changed source or table is read from its beginning; nothing else notices."""
        self._clock_moved_at = datetime.fromtimestamp(0, UTC)
        new = [self.database.pipeline[step.name] for step in plan.of(Action.CREATE)]
        if any(relation.topic for relation in new) or topics != set(self.database.pipeline.topics):
            self.intake.close()
            self.intake = self._new_intake()
        tables = {table.name for table in self._feed_of(self.database.pipeline).tables}
        if any(relation.kind is Kind.TABLE for relation in new) or tables != {table.name for table in self.feed.tables}:
            self._close_feed()
            self.feed = self._new_feed()

    # -- what is known --------------------------------------------------------------------------------------------

    def _is_due(self, name: str, interval: float) -> bool:
        if time.monotonic() < self._next[name]:
            return False
        self._next[name] = time.monotonic() + interval
        return True

    def _getting_on(self, pieces: Iterable[T]) -> Iterator[T]:
        """Each piece of long work is a step forward."""
        for piece in pieces:
            self._round_at = time.monotonic()
            yield piece

    def _note_problem(self, part: str, problem: str | None) -> None:
        if problem is None:
            if self.problems.pop(part, None) is not None:
                log.info("%s is well again", part)
        elif self.problems.get(part) != problem:
            log.warning("%s", problem)
            self.problems[part] = problem

    def _note_problems_of_topics(self, problems: Mapping[str, str]) -> None:
        """One that was noted and is not there any more is over, also of a topic that is not read any more."""
        noted = {part.removeprefix(TOPIC) for part in self.problems if part.startswith(TOPIC)}
        for topic in noted | problems.keys():
            self._note_problem(TOPIC + topic, problems.get(topic))

    @property
    def slot(self) -> str | None:
        """The replication slot it reads through."""
        return self.settings.replication_slot if isinstance(self.feed, CatalogFeed) else None

    def _standing(self) -> float:
        return time.monotonic() - self._round_at

    def standstill(self) -> dict[str, str]:
        """The problem of a loop that has been at one round for long, asked from another thread; {} where it gets on."""
        seconds = self._standing()
        if seconds < (BUILDS if self.building else STANDS):
            return {}
        return {"engine": f"the engine has been {self.doing} for {seconds:.0f} s, and nothing else is done meanwhile"}

    def lag(self) -> int:
        return sum(partition["lag"] for partition in self.lags)


def _table(relation: Relation, source: str, needed: frozenset[str] | None = None) -> CatalogTable:
    names, types = tuple(c.name for c in relation.columns), tuple(c.type for c in relation.columns)
    return CatalogTable(relation.name, source, names, relation.key, types, needed)


def _rest(took: float, taken: int) -> float:
    """Seconds after a round that took so long and brought so many messages."""
    return max(0.0, BETWEEN_TICKS - took, 0.0 if taken >= BUSY else min(took / 2, LONGEST_ROUND - took))


def _is_backlog(messages: Intake) -> bool:
    """Whether a large tick's worth has come and as much waits."""
    return min(messages.count, sum(lag.lag for lag in messages.lags)) >= BACKLOG


def _has_read(ends: dict[tuple[str, int], int], messages: Intake) -> bool:
    """Whether what was there at the first look is read, which is noted in `ends`; what comes since may never have an end.

    A large batch shows that there was more: the embedded broker may tell of an end that is too low.
    """
    for lag in messages.lags:
        ends.setdefault((lag.topic, lag.partition), lag.end_offset)
    is_over = messages.count < BUSY and not messages.problem and not messages.of_topics
    return is_over and bool(ends) and all(lag.next_offset >= ends[lag.topic, lag.partition] for lag in messages.lags)


def _sample(messages: Intake) -> list[datetime]:
    """When one in so many of the messages were sent."""
    topics = [table["received_at"] for table in messages.tables.values()]
    chosen = [sent.take(pa.array(range(0, len(sent), SAMPLE))) for sent in topics]
    return [moment for sent in chosen for moment in sent.to_pylist()]
