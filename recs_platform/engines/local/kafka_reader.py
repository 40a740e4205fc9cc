"""Fetches what partitions of Kafka hold, ahead of whoever takes it in, in a thread of its own.

With aiokafka, which asks for topics by name: the embedded broker answers a fetch by topic id, once the topic is deleted, in a way
that ends the whole process inside librdkafka (2.16).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError, OffsetOutOfRangeError  # type: ignore[import-untyped]

from recs_platform.kafka_address import KafkaAddress

PARTITION_FETCH_BYTES = 4 << 20
AT_ONCE = 20_000  # messages
AHEAD_BYTES = 256 << 20  # of messages that are read and not yet taken
A_MOMENT = 0.05  # seconds
AHEAD_MILLISECONDS = 366 * 86_400_000  # from which on a message's timestamp counts as none

Partition = tuple[str, int]
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it logs every retry; `Intake.problem` says it once


@dataclass(frozen=True)
class Batch:
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


class Reader:
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
        self._batches: deque[Batch] = deque()
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

    def read(self, timeout: float, at_most: int) -> Batch:
        """What has been read ahead, or what a fetch brings now; waits up to `timeout` seconds for that."""
        with self._changed:
            self._ahead = min(self._ahead_at_most, at_most)
            if not self._is_fetching:
                self._is_fetching = True
                self._want()
            self._changed.wait_for(lambda: not self._is_fetching or self._failure or self._is_full(AT_ONCE), timeout)
            if self._failure is not None and not self._batches:
                raise self._failure
            taken: list[Batch] = []
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
                self._put(Batch({}, await self._next_offsets(), self._ends(), self._stable(), out_of_range))
                return
            records: dict[str, list[Any]] = {}
            for partition, found in taken:
                records.setdefault(partition.topic, []).extend(found)
            next_offsets, ends = await self._next_offsets(), self._ends()
            if sum(max(0, end - next_offsets[at]) for at, end in ends.items()) < AT_ONCE:
                self._consumer.pause(*self._partitions.values())
                self._wanted.clear()
            tables = {topic: [table_of(found)] for topic, found in records.items()}
            self._put(Batch(tables, next_offsets, ends, self._stable(), frozenset()))

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

    def _put(self, batch: Batch) -> None:
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


def _joined(batches: Sequence[Batch]) -> Batch:
    tables: dict[str, list[pa.Table]] = {}
    for batch in batches:
        for topic, found in batch.tables.items():
            tables.setdefault(topic, []).extend(found)
    last = batches[-1] if batches else Batch({}, {}, {}, {}, frozenset())
    return replace(last, tables=tables)


async def _stopped(consumer: AIOKafkaConsumer) -> None:
    with suppress(KafkaError, OSError, asyncio.CancelledError):
        await consumer.stop()
    await consumer._client.close()  # `stop` gives up before it gets there when a fetch is waiting to be tried again


def table_of(records: Sequence[Any]) -> pa.Table:
    """As `Intake.tables` has them."""
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
