"""Reads Kafka topics by partition and offset; the offsets are kept by the caller, with the data they stand for.

An offset belongs to one incarnation of a topic (its id). What is read counts only when the ids asked for *after* the
read are those the read began with: an id never comes back, so everything in between came from that incarnation.
Otherwise the batch is dropped and read again from the kept positions, or, where the topic began anew, from its start.

The messages are fetched with aiokafka, which asks for topics by name: the embedded broker answers a fetch by topic id,
once the topic is deleted, in a way that ends the whole process inside librdkafka (2.16).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError, OffsetOutOfRangeError  # type: ignore[import-untyped]
from confluent_kafka import KafkaException

from recs_platform.kafka_address import KafkaAddress, hosts
from recs_platform.topics import TopicInfo, admin_client, describe, describe_topics, log_ends, log_starts

REQUEST_SECONDS = 2.0
# How long a fetch may wait at the broker. The embedded one answers after half of it where nothing is there, so it is the
# latency of a message on an idle topic; and it looks for the offset from the start of the partition, so that a short wait
# brings some of the partitions only, or nothing once they are long. It grows when one stands still although it holds more.
FETCH_WAIT_MS, LONGEST_FETCH_WAIT_MS = 80, 2_000
LOOK_SECONDS = 2.0  # how often a partition is looked at for standing still
AHEAD_MILLISECONDS = 366 * 86_400_000  # from which on a message's timestamp counts as none
HELD_SECONDS = 45.0  # that a transaction may be open before it is trouble
FEW = 500  # messages a poll, and messages of lag
PARTITION_FETCH_BYTES = 4 << 20
AT_ONCE = 20_000  # messages
AHEAD_BYTES = 256 << 20  # of messages that are read and not yet taken
A_MOMENT = 0.05  # seconds
BEGAN_ANEW = "the topic began anew (it was created again, or its broker lost it): read from its start"
RETENTION = "the broker no longer keeps the messages from there on: read from the first one it has"
CUT_SHORT = "the broker lost the end of the partition: read from where it ends now"

Partition = tuple[str, int]
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it logs every retry; `Intake.problem` says it once


@dataclass(frozen=True, slots=True)
class Position:
    """Where reading goes on: `offset` is the next to be read, in the topic whose id is `incarnation`."""

    topic: str
    partition: int
    offset: int
    incarnation: str


@dataclass(frozen=True, slots=True)
class TopicReset:
    """Messages that can no longer be had: those of the partition from offset `lost_from` on, as far as it was kept.

    `lost`: how many there were at least; what was sent while nobody looked is not known of a topic that is gone.
    """

    topic: str
    partition: int
    lost_from: int
    reason: str
    lost: int = 0


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """How much of a partition is still unread, in messages, as of the newest answer of the broker."""

    topic: str
    partition: int
    next_offset: int
    end_offset: int
    lag: int


@dataclass(frozen=True)
class Intake:
    """What one poll took in.

    `tables`: for each topic with new messages payload (binary, null for a tombstone), kafka_key (binary),
    kafka_partition and kafka_offset (text), received_at (timestamp[us, UTC], the message's own timestamp).
    `positions`: where all partitions stand after it, to be kept together with the tables and the resets.
    `lags`: how far each partition is behind. `problem`: why nothing could be read; None when all is well. `of_topics`: why
    nothing, or little, could be read of some.
    """

    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    positions: tuple[Position, ...] = ()
    resets: tuple[TopicReset, ...] = ()
    lags: tuple[PartitionLag, ...] = ()
    problem: str | None = None
    of_topics: Mapping[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many messages came in."""
        return sum(table.num_rows for table in self.tables.values())


class KafkaIntake:
    """Reads all partitions of the topics, new ones included. Used by one thread, outside of any event loop.

    It reads ahead, about `ahead` messages or `AHEAD_BYTES`, in a thread of its own; as many as were asked for last where that
    is less, for what lies here keeps all that comes meanwhile waiting.
    """

    def __init__(self, bootstrap_servers: str, topics: Iterable[str], ahead: int) -> None:
        self.bootstrap_servers, self.topics, self.ahead = bootstrap_servers, tuple(topics), ahead
        self._admin = admin_client(bootstrap_servers)
        self._positions: dict[Partition, Position] = {}
        self._ends: dict[Partition, int] = {}
        self._stable: dict[Partition, int | None] = {}  # only where more is there
        self._held_since: dict[Partition, tuple[int, float]] = {}
        self._found: dict[str, TopicInfo] = {}
        self._out_of_range: frozenset[Partition] = frozenset()
        self._resets: list[TopicReset] = []
        self._reader: _Reader | None = None
        self._fetch_wait_ms = FETCH_WAIT_MS
        self._next_look = 0.0
        self._seen: dict[Partition, tuple[int, int]] = {}  # at the last look: offset and lag
        self._polls: list[int] = []  # since the last look: how many messages each poll brought
        self._standstill: dict[str, str] = {}

    def seek(self, positions: Iterable[Position]) -> None:
        """Goes on from there. Partitions without a position are read from their start."""
        self._close_reader()
        self._positions = {(p.topic, p.partition): p for p in positions if p.topic in self.topics}
        self._ends, self._resets = {}, []

    def poll(self, timeout: float, at_most: int | None = None) -> Intake:
        """New messages, at most `at_most` of them and no more than are read ahead; waits up to `timeout` seconds for the first one.

        Never raises for what a broker does: while it is away, this returns nothing, with the problem, within seconds.
        """
        tables: dict[str, pa.Table] = {}
        problem, of_topics = None, dict[str, str]()
        try:
            if self._reader is None:
                self._reader = self._open()
            tables = self._read(self._reader, timeout, self.ahead if at_most is None else at_most)
            self._polls.append(sum(table.num_rows for table in tables.values()))
            self._look_for_standstill()
            of_topics = self._standstill | self._missing()
        except (KafkaException, KafkaError, OSError) as error:
            self._close_reader()
            why = describe(error) if isinstance(error, KafkaException) else str(error) or type(error).__name__
            problem = f"Kafka at {hosts(self.bootstrap_servers)}: {why}"
        resets, self._resets = tuple(self._resets), []
        return Intake(tables, self._kept(), resets, tuple(self.lag()), problem, of_topics)

    def lag(self) -> list[PartitionLag]:
        """The lag of every partition with a position; asks nobody. 0 until something was fetched."""
        return [
            PartitionLag(p.topic, p.partition, p.offset, p.offset + self._lag(at), self._lag(at))
            for at, p in sorted(self._positions.items())
        ]

    def close(self) -> None:
        """Closes the connections; polling again opens them again."""
        self._close_reader()

    def _open(self) -> _Reader:
        """Settles where to read each partition that exists now, and begins to read there."""
        self._found = describe_topics(self._admin, self.topics, REQUEST_SECONDS)
        existing = [(topic, n) for topic, info in self._found.items() for n in info.partitions]
        starts = log_starts(self._admin, existing)
        ends = log_ends(self._admin, self._out_of_range.intersection(existing))
        self._out_of_range = frozenset()
        self._forget_former_topics()
        for at in existing:
            incarnation = self._found[at[0]].incarnation
            kept = self._positions.setdefault(at, Position(*at, starts[at], incarnation))
            if kept.offset < starts[at]:
                self._reset(kept, RETENTION, starts[at])
            elif kept.offset > ends.get(at, kept.offset):
                self._reset(kept, CUT_SHORT, ends[at])
        offsets = {at: self._positions[at].offset for at in existing}
        return _Reader(self.bootstrap_servers, offsets, self._fetch_wait_ms, self.ahead)

    def _look_for_standstill(self) -> None:
        """Lets fetches wait longer when a partition that holds more stands still, or comes in drops."""
        if self._reader is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        ends = log_ends(self._admin, [at for at in self._positions if at[0] in self._found])
        self._ends.update({at: max(end, self._ends.get(at, 0)) for at, end in ends.items()})
        in_drops, self._polls = sum(self._polls) < FEW * len(self._polls), []
        before, self._seen = self._seen, {at: (self._positions[at].offset, self._lag(at)) for at in ends}
        held = self._held_by_transactions()
        stands = [
            at
            for at, now in self._seen.items()
            if at in before and at not in held and _stands(before[at], now, in_drops)
        ]
        slowest = self._fetch_wait_ms >= LONGEST_FETCH_WAIT_MS
        kafka = f"Kafka at {hosts(self.bootstrap_servers)}"
        self._standstill = {t: f"{kafka} brings little of {t}/{n}" for t, n in stands} if slowest else {}
        self._standstill |= {at[0]: words for at, words in held.items() if words}
        if stands and not slowest:
            self._fetch_wait_ms = min(2 * self._fetch_wait_ms, LONGEST_FETCH_WAIT_MS)
            self._close_reader()

    def _held_by_transactions(self) -> dict[Partition, str]:
        """The partitions read as far as they can be until a producer ends its transaction; with words where it takes long."""
        now, known = time.monotonic(), self._held_since
        held = {at: offset for at, (offset, lag) in self._seen.items() if lag and self._stable.get(at) == offset}
        self._held_since = {
            at: known[at] if known.get(at, (-1,))[0] == offset else (offset, now) for at, offset in held.items()
        }
        return {
            at: self._held_in_words(at) if now - since >= HELD_SECONDS else ""
            for at, (_, since) in self._held_since.items()
        }

    def _held_in_words(self, at: Partition) -> str:
        topic, n = at
        return (
            f"a producer's open transaction holds back {topic}/{n} from message {self._seen[at][0]} on: "
            "it is read on when that is committed or aborted, after its transaction.timeout.ms at the latest"
        )

    def _lag(self, at: Partition) -> int:
        return max(0, self._ends.get(at, 0) - self._positions[at].offset)

    def _forget_former_topics(self) -> None:
        for at, kept in sorted(self._positions.items()):
            info = self._found.get(kept.topic)
            if info and (kept.incarnation != info.incarnation or kept.partition not in info.partitions):
                self._reset(kept, BEGAN_ANEW)
                self._fetch_wait_ms = FETCH_WAIT_MS
                self._ends.pop(at, None)

    def _reset(self, kept: Position, reason: str, goes_on_at: int | None = None) -> None:
        at = kept.topic, kept.partition
        lost = goes_on_at - kept.offset if reason == RETENTION and goes_on_at is not None else self._lag(at)
        self._resets.append(TopicReset(*at, kept.offset, reason, lost))
        if goes_on_at is None:
            del self._positions[at]
        else:
            self._positions[at] = Position(*at, goes_on_at, kept.incarnation)

    def _read(self, reader: _Reader, timeout: float, at_most: int) -> dict[str, pa.Table]:
        batch = reader.read(timeout, at_most)
        found = describe_topics(self._admin, self.topics, REQUEST_SECONDS)
        same = {
            topic
            for topic, info in self._found.items()
            if topic in found and found[topic].incarnation == info.incarnation
        }
        for at, offset in batch.next_offsets.items():
            if at[0] in same:
                self._positions[at] = Position(*at, offset, self._found[at[0]].incarnation)
                self._ends[at], self._stable[at] = batch.ends.get(at, 0), batch.stable.get(at)
        if found != self._found or batch.out_of_range:
            self._out_of_range = batch.out_of_range
            self._close_reader()
        return {topic: pa.concat_tables(tables) for topic, tables in batch.tables.items() if topic in same}

    def _kept(self) -> tuple[Position, ...]:
        return tuple(position for _, position in sorted(self._positions.items()))

    def _missing(self) -> dict[str, str]:
        at = f"Kafka at {hosts(self.bootstrap_servers)}"
        missing = (topic for topic in self.topics if topic not in self._found)
        return {topic: f"{at} has no topic {topic}: read as soon as it is created" for topic in missing}

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def _stands(before: tuple[int, int], now: tuple[int, int], in_drops: bool) -> bool:
    """Whether a partition that held more at one look, its offset and lag, did not get on until the next."""
    (offset_before, lag_before), (offset, lag) = before, now
    held = min(lag_before, lag)
    return (held > 0 and offset == offset_before) or (held > FEW and in_drops)


@dataclass(frozen=True)
class _Batch:
    """Messages by topic, and where each partition stands after them and ends; `stable`: of one where a transaction is open, where
    that began."""

    tables: dict[str, list[pa.Table]]
    next_offsets: dict[Partition, int]
    ends: dict[Partition, int]
    stable: dict[Partition, int]
    out_of_range: frozenset[Partition]

    @cached_property
    def count(self) -> int:
        return sum(table.num_rows for tables in self.tables.values() for table in tables)

    @cached_property
    def bytes(self) -> int:
        return sum(table.nbytes for tables in self.tables.values() for table in tables)


class _Reader:
    """Reads given partitions from given offsets in a thread of its own: a backlog all the time, at most so much ahead;
    what comes in drops when it is asked for.

    A fetch costs the embedded broker the same however little it brings, and up to a whole core when it is asked all the
    time; and an answer that waits while nobody reads is old when it is read at last.
    Raises `KafkaError` when the brokers cannot be reached.
    """

    def __init__(
        self, bootstrap_servers: str, offsets: Mapping[Partition, int], fetch_wait_ms: int, ahead: int
    ) -> None:
        self._ahead = self._ahead_at_most = ahead
        self._partitions = {at: TopicPartition(*at) for at in offsets}
        self._fetch_wait_ms = fetch_wait_ms
        self._changed = threading.Condition()
        self._wanted = asyncio.Event()
        self._is_fetching = False
        self._batches: deque[_Batch] = deque()
        self._failure: Exception | None = None
        self._is_closed = False
        self._loop = asyncio.Runner()
        try:
            self._consumer = self._loop.run(self._started(bootstrap_servers, offsets, fetch_wait_ms))
        except BaseException:
            self._loop.close()
            raise
        self._thread = threading.Thread(target=self._run, name="kafka", daemon=True)
        self._thread.start()

    def read(self, timeout: float, at_most: int) -> _Batch:
        """What has been read ahead, or what a fetch brings now; waits up to `timeout` seconds for that."""
        with self._changed:
            self._ahead = min(self._ahead_at_most, at_most)
            if not self._is_fetching:
                self._is_fetching = True
                self._want()
            self._changed.wait_for(lambda: not self._is_fetching or self._failure or self._is_full(AT_ONCE), timeout)
            if self._failure is not None and not self._batches:
                raise self._failure
            taken: list[_Batch] = []
            count = 0
            while self._batches and (not taken or count + self._batches[0].count <= at_most):
                taken.append(self._batches.popleft())
                count += taken[-1].count
        return _joined(taken)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._batches.clear()
        self._want()
        self._thread.join()
        self._loop.close()

    def _want(self) -> None:
        with suppress(RuntimeError):  # the thread has ended, and its loop with it
            self._loop.get_loop().call_soon_threadsafe(self._wanted.set)

    def _run(self) -> None:
        with self._loop:
            try:
                self._loop.run(self._read_on())
            except Exception as error:  # handed to whoever reads
                self._fail(error)
            self._loop.run(_stopped(self._consumer))

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify()

    async def _started(
        self, bootstrap_servers: str, offsets: Mapping[Partition, int], fetch_wait_ms: int
    ) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **KafkaAddress.parse(bootstrap_servers).for_aiokafka(),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=fetch_wait_ms,
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
        )
        try:
            await consumer.start()
        except BaseException:
            await _stopped(consumer)
            raise
        consumer.assign(list(self._partitions.values()))
        consumer._client.set_topics(())  # ask for all: asked for one by name, a broker may create it when just deleted
        for at, partition in self._partitions.items():
            consumer.seek(partition, offsets[at])
        return consumer

    async def _read_on(self) -> None:
        while not self._is_closed:
            if not self._partitions or self._is_full(self._ahead):
                await asyncio.sleep(A_MOMENT)  # there is nothing to read, or nobody takes it
                continue
            await self._wanted.wait()
            try:
                taken = await self._fetched()
            except OffsetOutOfRangeError as error:
                out_of_range = frozenset((at.topic, at.partition) for at in error.args[0])
                self._put(_Batch({}, await self._next_offsets(), self._ends(), self._stable(), out_of_range))
                return
            records: dict[str, list[Any]] = {}
            for partition, found in taken:
                records.setdefault(partition.topic, []).extend(found)
            next_offsets, ends = await self._next_offsets(), self._ends()
            if sum(max(0, end - next_offsets[at]) for at, end in ends.items()) < AT_ONCE:
                self._consumer.pause(*self._partitions.values())
                self._wanted.clear()
            tables = {topic: [_table(found)] for topic, found in records.items()}
            self._put(_Batch(tables, next_offsets, ends, self._stable(), frozenset()))

    async def _fetched(self) -> list[tuple[TopicPartition, list[Any]]]:
        """What was left of the last round, and what a fetch brings that is sent now.

        The consumer sends fetches by itself as soon as it has handed something on, unless its partitions are paused; one
        may be under way by then, and what it brings is old when it is wanted.
        """
        at_most = min(AT_ONCE, self._ahead)
        self._consumer.resume(*self._partitions.values())
        left = await self._consumer.getmany(max_records=at_most)
        room = at_most - sum(map(len, left.values()))
        fresh = await self._consumer.getmany(timeout_ms=self._fetch_wait_ms, max_records=room) if room else {}
        return [*left.items(), *fresh.items()]

    def _is_full(self, most: int) -> bool:
        ahead = list(self._batches)
        return sum(batch.count for batch in ahead) >= most or sum(batch.bytes for batch in ahead) >= AHEAD_BYTES

    def _put(self, batch: _Batch) -> None:
        with self._changed:
            if batch.count or batch.out_of_range or not self._batches:
                self._batches.append(batch)
            self._is_fetching = self._wanted.is_set()
            self._changed.notify()

    async def _next_offsets(self) -> dict[Partition, int]:
        """Behind the last message taken, and behind the marks of transactions, which are no messages."""
        return {at: await self._consumer.position(partition) for at, partition in self._partitions.items()}

    def _ends(self) -> dict[Partition, int]:
        """As the last fetch of each partition told: exact, where the embedded broker's list of offsets is not."""
        return {at: self._consumer.highwater(partition) or 0 for at, partition in self._partitions.items()}

    def _stable(self) -> dict[Partition, int]:
        """The partitions that hold more than may be read as yet, and how far that is, as the last fetch told both."""
        found = {at: self._consumer.last_stable_offset(partition) for at, partition in self._partitions.items()}
        ends = self._ends()
        return {at: stable for at, stable in found.items() if stable is not None and stable < ends[at]}


def _joined(batches: Sequence[_Batch]) -> _Batch:
    tables: dict[str, list[pa.Table]] = {}
    for batch in batches:
        for topic, found in batch.tables.items():
            tables.setdefault(topic, []).extend(found)
    last = batches[-1] if batches else _Batch({}, {}, {}, {}, frozenset())
    return replace(last, tables=tables)


async def _stopped(consumer: AIOKafkaConsumer) -> None:
    with suppress(KafkaError, OSError, asyncio.CancelledError):
        await consumer.stop()
    await consumer._client.close()  # `stop` gives up before it gets there when a fetch is waiting to be tried again


def _table(records: Sequence[Any]) -> pa.Table:
    now = time.time_ns() // 1000
    latest = now // 1000 + AHEAD_MILLISECONDS  # a producer that does not count in milliseconds is in no year there is
    received = [r.timestamp * 1000 if r.timestamp is not None and 0 <= r.timestamp < latest else now for r in records]
    return pa.table(
        {
            "payload": pa.array([r.value for r in records], pa.binary()),
            "kafka_key": pa.array([r.key for r in records], pa.binary()),
            "kafka_partition": pa.array([str(r.partition) for r in records], pa.string()),
            "kafka_offset": pa.array([str(r.offset) for r in records], pa.string()),
            "received_at": pa.array(received, pa.timestamp("us", "UTC")),
        }
    )
