"""What the intake takes from Kafka: everything once, in order, and told when a topic is no longer the one it was.

Run against the embedded broker, or the real Kafka of $RECS_TEST_KAFKA.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import NewPartitions  # type: ignore[attr-defined]

from recs_platform.engines.local import intake as intake_module
from recs_platform.engines.local.intake import (
    BEGAN_ANEW,
    CUT_SHORT,
    RETENTION,
    Intake,
    KafkaIntake,
    PartitionLag,
    Position,
)
from recs_platform.engines.local.kafka_reader import table_of
from recs_platform.stack.broker import broker
from recs_platform.stack.process import running
from recs_platform.stack.service import free_port
from recs_platform.topics import admin_client, describe_topics, ensure_topics, log_starts

WAIT = 0.02
real_kafka = pytest.mark.skipif(
    not os.environ.get("RECS_TEST_KAFKA"), reason="the embedded broker cannot do this: set RECS_TEST_KAFKA"
)


@pytest.fixture
def topic(kafka_servers: str, topic_prefix: str) -> str:
    """A topic of two partitions."""
    name = topic_prefix + "user_activity"
    ensure_topics(kafka_servers, [name], 2)
    return name


@contextmanager
def reading(servers: str, *topics: str, max_messages: int = 10_000) -> Iterator[KafkaIntake]:
    intake = KafkaIntake(servers, topics, max_messages)
    try:
        yield intake
    finally:
        intake.close()


@pytest.fixture
def intake(kafka_servers: str, topic: str) -> Iterator[KafkaIntake]:
    with reading(kafka_servers, topic) as opened:
        yield opened


def send(servers: str, topic: str, *payloads: str | bytes | None, partition: int = 0, codec: str = "none") -> None:
    producer = Producer(
        {"bootstrap.servers": servers, "log_level": 0, "message.max.bytes": 2_000_000, "compression.type": codec}
    )
    for payload in payloads:
        producer.produce(topic, payload, key=b"7", partition=partition)
    assert producer.flush(10) == 0


def delete(servers: str, topic: str) -> None:
    admin = admin_client(servers)
    admin.delete_topics([topic])[topic].result(10)
    until(lambda: topic not in describe_topics(admin, [topic]))


def forget_before(offset: int, servers: str, topic: str) -> None:
    """What retention does to the first partition, at once."""
    admin = admin_client(servers)
    admin.delete_records([TopicPartition(topic, 0, offset)])[TopicPartition(topic, 0)].result(10)
    until(lambda: log_starts(admin, [(topic, 0)])[topic, 0] == offset)


def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


class Taken:
    """All that successive polls of an intake brought."""

    def __init__(self, intake: KafkaIntake) -> None:
        self.intake, self.polls = intake, list[Intake]()

    def poll(self) -> Intake:
        self.polls.append(self.intake.poll(WAIT))
        return self.polls[-1]

    def until_read(self, count: int) -> list[tuple[str, str, bytes | None]]:
        """(partition, offset, payload) of everything read so far, once it is `count` messages."""
        until(lambda: bool(self.poll()) and len(self.messages()) >= count)
        assert not self.poll().tables, "more came than was sent"
        return self.messages()

    @property
    def tables(self) -> list[pa.Table]:
        return [table for poll in self.polls for table in poll.tables.values()]

    def messages(self) -> list[tuple[str, str, bytes | None]]:
        rows = [row for table in self.tables for row in table.to_pylist()]
        return [(row["kafka_partition"], row["kafka_offset"], row["payload"]) for row in rows]

    def payloads(self) -> list[bytes | None]:
        return [payload for _, _, payload in self.messages()]

    def resets(self) -> list[tuple[int, int, str]]:
        return [(r.partition, r.lost_from, r.reason) for poll in self.polls for r in poll.resets]

    def lost(self) -> list[int]:
        return [r.lost for poll in self.polls for r in poll.resets]


def test_a_message_is_taken_with_its_key_place_and_time(kafka_servers: str, topic: str, intake: KafkaIntake) -> None:
    before = datetime.now(UTC)
    send(kafka_servers, topic, b'{"a":1}', None)
    taken = Taken(intake)
    taken.until_read(2)
    first, tombstone = taken.tables[0].to_pylist()
    assert (first["payload"], first["kafka_key"], first["kafka_partition"], first["kafka_offset"]) == (
        b'{"a":1}',
        b"7",
        "0",
        "0",
    )
    assert abs((first["received_at"] - before).total_seconds()) < 5
    assert tombstone["payload"] is None


def test_positions_are_where_reading_goes_on(kafka_servers: str, topic: str, intake: KafkaIntake) -> None:
    send(kafka_servers, topic, "a", "b", "c")
    taken = Taken(intake)
    taken.until_read(3)
    incarnation = describe_topics(admin_client(kafka_servers), [topic])[topic].incarnation
    assert [(p.topic, p.partition, p.offset, p.incarnation) for p in taken.polls[-1].positions] == [
        (topic, 0, 3, incarnation),
        (topic, 1, 0, incarnation),
    ]
    send(kafka_servers, topic, "d")
    with reading(kafka_servers, topic) as another:
        another.seek(taken.polls[-1].positions)
        assert Taken(another).until_read(1) == [("0", "3", b"d")]


def test_seeking_back_reads_again(kafka_servers: str, topic: str, intake: KafkaIntake) -> None:
    send(kafka_servers, topic, "a", "b", "c")
    taken = Taken(intake)
    taken.until_read(3)
    intake.seek([replace(position, offset=min(1, position.offset)) for position in taken.polls[-1].positions])
    assert Taken(intake).until_read(2) == [("0", "1", b"b"), ("0", "2", b"c")]


def test_a_batch_is_no_larger_than_asked(kafka_servers: str, topic: str) -> None:
    send(kafka_servers, topic, *(str(i) for i in range(250)))
    with reading(kafka_servers, topic, max_messages=100) as intake:
        taken = Taken(intake)
        until(lambda: taken.poll().count == 100)
        assert sum(x.lag for x in intake.lag()) == 150
        assert [int(payload or b"") for _, _, payload in taken.until_read(250)] == list(range(250))
        assert max(poll.count for poll in taken.polls) == 100


def test_large_messages_are_read_ahead_by_their_bytes(
    kafka_servers: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recs_platform.engines.local.kafka_reader.AHEAD_BYTES", 1_000_000)
    send(kafka_servers, topic, *(str(i) * 200_000 for i in range(10)), *("x" * 900_000 for _ in range(30)))
    with reading(kafka_servers, topic) as intake:
        taken = Taken(intake)
        taken.until_read(40)
        assert max(sum(t.nbytes for t in poll.tables.values()) for poll in taken.polls) < 20_000_000  # of 29 in all


def test_lag_is_nothing_when_caught_up(kafka_servers: str, topic: str, intake: KafkaIntake) -> None:
    send(kafka_servers, topic, "a", "b")
    Taken(intake).until_read(2)
    assert intake.lag() == [PartitionLag(topic, 0, 2, 2, 0), PartitionLag(topic, 1, 0, 0, 0)]


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_messages_are_read(kafka_servers: str, topic: str, intake: KafkaIntake, codec: str) -> None:
    send(kafka_servers, topic, "x" * 1000, "y" * 1000, codec=codec)
    Taken(intake).until_read(2)


def test_messages_of_a_megabyte_are_read_from_all_partitions(
    kafka_servers: str, topic: str, intake: KafkaIntake
) -> None:
    for partition in (0, 1):
        send(kafka_servers, topic, *(b"x" * 1_000_000 for _ in range(3)), partition=partition)
    assert {len(payload or b"") for _, _, payload in Taken(intake).until_read(6)} == {1_000_000}


def test_a_long_partition_of_small_batches_is_read_to_its_end(
    kafka_servers: str, topic: str, intake: KafkaIntake
) -> None:
    """The embedded broker looks for an offset from the start: a short wait at the broker would find nothing any more."""
    count = 60_000
    one_by_one = {"bootstrap.servers": kafka_servers, "batch.num.messages": 1, "queue.buffering.max.messages": count}
    producer = Producer(one_by_one)
    for number in range(count):
        producer.produce(topic, str(number), partition=0)
        producer.poll(0)
    assert producer.flush(60) == 0
    read = 0

    def all_read() -> bool:
        nonlocal read
        read += sum(table.num_rows for table in intake.poll(WAIT).tables.values())
        return bool(read == count)

    until(all_read, 90)


def test_a_missing_topic_is_a_problem_until_it_is_created(kafka_servers: str, topic: str, topic_prefix: str) -> None:
    late = topic_prefix + "purchases"
    send(kafka_servers, topic, "a")
    with reading(kafka_servers, topic, late) as intake:
        taken = Taken(intake)
        taken.until_read(1)
        assert "has no topic" in taken.poll().of_topics[late]
        assert list(taken.poll().of_topics) == [late], "the other is read all the while"
        ensure_topics(kafka_servers, [late], 1)
        send(kafka_servers, late, "b")
        assert taken.until_read(2)[-1] == ("0", "0", b"b")
        assert not taken.poll().of_topics
        assert not taken.resets()


@pytest.mark.parametrize("messages", [2, 9], ids=["shorter than before", "longer than before"])
def test_a_topic_created_anew_is_read_from_its_start(
    kafka_servers: str, topic: str, intake: KafkaIntake, messages: int
) -> None:
    send(kafka_servers, topic, *(f"old{i}" for i in range(5)))
    taken = Taken(intake)
    taken.until_read(5)
    delete(kafka_servers, topic)
    until(lambda: topic in taken.poll().of_topics)
    ensure_topics(kafka_servers, [topic], 2)
    send(kafka_servers, topic, *(f"new{i}" for i in range(messages)))
    taken.until_read(5 + messages)
    assert taken.payloads()[5:] == [f"new{i}".encode() for i in range(messages)]
    assert taken.resets() == [(0, 5, BEGAN_ANEW), (1, 0, BEGAN_ANEW)]
    assert taken.lost() == [0, 0]


def test_a_topic_created_anew_while_nobody_read_is_noticed(kafka_servers: str, topic: str) -> None:
    send(kafka_servers, topic, *(f"old{i}" for i in range(3)))
    with reading(kafka_servers, topic) as intake:
        taken = Taken(intake)
        taken.until_read(3)
        kept = taken.polls[-1].positions
    delete(kafka_servers, topic)
    ensure_topics(kafka_servers, [topic], 1)
    send(kafka_servers, topic, *(f"new{i}" for i in range(4)))
    with reading(kafka_servers, topic) as intake:
        intake.seek(kept)
        taken = Taken(intake)
        taken.until_read(4)
    assert taken.resets() == [(0, 3, BEGAN_ANEW), (1, 0, BEGAN_ANEW)]
    assert [p.partition for p in taken.polls[-1].positions] == [0]


def test_a_topic_created_anew_between_two_polls_again_and_again(
    kafka_servers: str, topic: str, intake: KafkaIntake
) -> None:
    taken, sent = Taken(intake), list[bytes]()
    for life in range(4):
        payloads = [f"{life}:{i}" for i in range(10 + life)]
        send(kafka_servers, topic, *payloads)
        sent += [payload.encode() for payload in payloads]
        taken.until_read(len(sent))
        delete(kafka_servers, topic)
        ensure_topics(kafka_servers, [topic], 2)
    assert taken.payloads() == sent


@pytest.mark.skipif(bool(os.environ.get("RECS_TEST_KAFKA")), reason="stops a broker of its own, the embedded one")
def test_a_broker_that_lost_its_memory_is_read_from_the_new_start(tmp_path: Path, topic_prefix: str) -> None:
    port, topic = free_port(), topic_prefix + "user_activity"
    service = broker(port)
    with reading(service.url, topic) as intake:
        taken = Taken(intake)
        with running(service, tmp_path) as process:
            ensure_topics(service.url, [topic], 1)
            send(service.url, topic, "a", "b", "c")
            taken.until_read(3)
            process.process.kill()
        away = taken.poll()
        assert service.url in (away.problem or "")
        assert not away.tables
        assert [p.offset for p in away.positions] == [3]
        with running(service, tmp_path) as process:
            ensure_topics(service.url, [topic], 1)
            send(service.url, topic, "d", "e", "f", "g")
            taken.until_read(7)
            assert taken.poll().problem is None
            process.process.kill()
    assert taken.payloads() == [b"a", b"b", b"c", b"d", b"e", b"f", b"g"]
    assert taken.resets() == [(0, 3, BEGAN_ANEW)]


@pytest.mark.skipif(bool(os.environ.get("RECS_TEST_KAFKA")), reason="stops a broker of its own, the embedded one")
def test_what_a_broker_lost_before_it_was_read_is_counted(tmp_path: Path, topic_prefix: str) -> None:
    port, topic = free_port(), topic_prefix + "user_activity"
    service = broker(port)
    with reading(service.url, topic, max_messages=1) as intake:
        taken = Taken(intake)
        with running(service, tmp_path) as process:
            ensure_topics(service.url, [topic], 1)
            send(service.url, topic, "a", "b", "c")
            until(lambda: bool(taken.poll().tables) and taken.polls[-1].lags[0].lag > 0)
            process.process.kill()
        read = len(taken.messages())
        with running(service, tmp_path):
            ensure_topics(service.url, [topic], 1)
            until(lambda: bool(taken.poll().resets))
        assert taken.lost() == [3 - read]


def test_no_broker_is_a_problem_not_an_error() -> None:
    with reading(f"127.0.0.1:{free_port()}", "user_activity") as intake:
        began = time.monotonic()
        assert "does not answer" in (intake.poll(WAIT).problem or "")
        assert time.monotonic() - began < 4
        assert intake.lag() == []


@real_kafka
def test_new_partitions_are_read_from_their_start(kafka_servers: str, topic: str, intake: KafkaIntake) -> None:
    send(kafka_servers, topic, "a")
    taken = Taken(intake)
    taken.until_read(1)
    admin = admin_client(kafka_servers)
    admin.create_partitions([NewPartitions(topic, 3)])[topic].result(10)
    until(lambda: len(describe_topics(admin, [topic])[topic].partitions) == 3)
    send(kafka_servers, topic, "b", partition=2)
    assert taken.until_read(2)[-1] == ("2", "0", b"b")
    assert not taken.resets()


@real_kafka
def test_messages_past_retention_are_reported(kafka_servers: str, topic: str) -> None:
    send(kafka_servers, topic, *"abcdef")
    with reading(kafka_servers, topic, max_messages=2) as intake:
        taken = Taken(intake)
        until(lambda: bool(taken.poll().tables))
        kept = taken.polls[-1].positions
        forget_before(4, kafka_servers, topic)
        intake.seek(kept)
        again = Taken(intake)
        assert again.until_read(2) == [("0", "4", b"e"), ("0", "5", b"f")]
        assert again.resets() == [(0, kept[0].offset, RETENTION)]
        assert again.lost() == [4 - kept[0].offset]


@real_kafka
def test_a_partition_that_lost_its_end_is_read_from_where_it_ends(
    kafka_servers: str, topic: str, intake: KafkaIntake
) -> None:
    send(kafka_servers, topic, "a", "b", "c")
    found = describe_topics(admin_client(kafka_servers), [topic])[topic]
    intake.seek([Position(topic, 0, 77, found.incarnation)])
    taken = Taken(intake)
    until(lambda: bool(taken.poll().resets))
    send(kafka_servers, topic, "d")
    assert taken.until_read(1) == [("0", "3", b"d")]
    assert taken.resets() == [(0, 77, CUT_SHORT)]


@real_kafka
def test_transactions_are_read_once_committed_and_their_marks_are_no_lag(
    kafka_servers: str, topic: str, intake: KafkaIntake
) -> None:
    producer = Producer({"bootstrap.servers": kafka_servers, "transactional.id": topic, "log_level": 0})
    producer.init_transactions(30)
    for payload, end in (("kept", producer.commit_transaction), ("dropped", producer.abort_transaction)):
        producer.begin_transaction()
        producer.produce(topic, payload, partition=0)
        producer.flush(10)
        end(10)
    taken = Taken(intake)
    assert [payload for _, _, payload in taken.until_read(1)] == [b"kept"]
    until(lambda: bool(taken.poll()) and intake.lag()[0].next_offset == 4)
    assert intake.lag()[0].lag == 0


@pytest.mark.parametrize(
    ("timestamp", "is_kept"), [(1_790_000_000_000, True), (-1, False), (None, False), (2**62, False), (10**16, False)]
)
def test_a_timestamp_that_is_in_no_year_there_is_counts_as_none(timestamp: int | None, is_kept: bool) -> None:
    """As of a producer that counts in micro- or nanoseconds."""
    record = SimpleNamespace(value=b"x", key=None, partition=0, offset=0, timestamp=timestamp)
    [received] = table_of([record])["received_at"].to_pylist()
    assert (received.timestamp() == 1_790_000_000) is is_kept
    assert is_kept or abs((received - datetime.now(UTC)).total_seconds()) < 60


def test_what_flows_is_not_taken_for_held_back(
    kafka_servers: str, topic: str, intake: KafkaIntake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each look there is a little more than what the last fetch brought."""
    monkeypatch.setattr(intake_module, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(intake_module, "HELD_SECONDS", 0.0)
    stop = threading.Event()

    def flow() -> None:
        producer = Producer({"bootstrap.servers": kafka_servers, "linger.ms": 0})
        while not stop.is_set():
            producer.produce(topic, "more", partition=0)
            producer.flush(10)

    with ThreadPoolExecutor(1) as pool:
        flowing = pool.submit(flow)
        found = [intake.poll(0.05) for _ in range(60)]
        stop.set()
        flowing.result(30)
    assert any(lag.lag for taken in found for lag in taken.lags)
    assert not [words for taken in found for words in taken.of_topics.values() if "transaction" in words]


@real_kafka
def test_a_transaction_that_stays_open_is_what_a_partition_waits_for(
    kafka_servers: str, topic: str, intake: KafkaIntake, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = Producer({"bootstrap.servers": kafka_servers, "transactional.id": topic, "log_level": 0})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic, "waits", partition=0)
    producer.flush(10)
    other = Producer({"bootstrap.servers": kafka_servers})
    other.produce(topic, "waits behind it", partition=0)
    other.flush(10)
    monkeypatch.setattr(intake_module, "LOOK_SECONDS", 0.1)
    until(lambda: intake.poll(0.1).lags[0].lag == 2)
    until(lambda: intake.poll(0.1).problem is None and len(intake._held_since) == 1)
    assert not intake.poll(0.1).of_topics, "it may end at once"
    monkeypatch.setattr(intake_module, "HELD_SECONDS", 0.0)
    until(lambda: "open transaction holds back" in intake.poll(0.1).of_topics.get(topic, ""))
    producer.commit_transaction(10)
    assert [payload for _, _, payload in Taken(intake).until_read(2)] == [b"waits", b"waits behind it"]
    until(lambda: not intake.poll(0.1).of_topics)
