"""Reads Kafka topics by partition and offset; the offsets are kept by the caller, with the data they stand for.

An offset belongs to one incarnation of a topic (its id). What is read counts only when the ids asked for *after* the
read are those the read began with: an id never comes back, so everything in between came from that incarnation.
Otherwise the batch is dropped and read again from the kept positions, or, where the topic began anew, from its start.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from confluent_kafka import KafkaException

from recs_platform.engines.local.kafka_reader import Partition, Reader
from recs_platform.kafka_address import hosts
from recs_platform.topics import TopicInfo, admin_client, describe, describe_topics, log_ends, log_starts

REQUEST_SECONDS = 2.0
# How long a fetch may wait at the broker. The embedded one answers after half of it where nothing is there, so it is the
# latency of a message on an idle topic; and it looks for the offset from the start of the partition, so that a short wait
# brings some of the partitions only, or nothing once they are long. It grows when one stands still although it holds more.
FETCH_WAIT_MS, LONGEST_FETCH_WAIT_MS = 80, 2_000
LOOK_SECONDS = 2.0  # how often a partition is looked at for standing still
HELD_SECONDS = 45.0  # that a transaction may be open before it is trouble
FEW = 500  # messages a poll, and messages of lag
BEGAN_ANEW = "the topic began anew (it was created again, or its broker lost it): read from its start"
RETENTION = "the broker no longer keeps the messages from there on: read from the first one it has"
CUT_SHORT = "the broker lost the end of the partition: read from where it ends now"


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

    It reads ahead, about `ahead` messages or `kafka_reader.AHEAD_BYTES`, in a thread of its own; as many as were asked for last where that
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
        self._reader: Reader | None = None
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

    def _open(self) -> Reader:
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
        return Reader(self.bootstrap_servers, offsets, self._fetch_wait_ms, self.ahead)

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

    def _read(self, reader: Reader, timeout: float, at_most: int) -> dict[str, pa.Table]:
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
