"""Which messages a tick takes in: a trickle beside a busy topic waits, and nothing waits alone, for long, or unseen."""

from __future__ import annotations

import pyarrow as pa
import pytest

from recs_platform.engines.local.intake import Intake, PartitionLag, Position
from recs_platform.engines.local.waiting import PATIENCE, Waiting


class Reads:
    """What a reader would bring: messages of two topics, each with offsets counted on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waiting = Waiting(lambda: self.now)
        self.offsets = {"user_activity": 0, "purchases": 0}

    def __call__(self, user_activity: int = 0, purchases: int = 0, is_dear: bool = False) -> Intake:
        tables = {}
        for topic, count in (("user_activity", user_activity), ("purchases", purchases)):
            first = self.offsets[topic]
            self.offsets[topic] += count
            if count:
                offsets = [str(offset) for offset in range(first, first + count)]
                tables[topic] = pa.table({"kafka_partition": ["0"] * count, "kafka_offset": offsets})
        positions = tuple(Position(topic, 0, offset, "id") for topic, offset in self.offsets.items())
        lags = tuple(PartitionLag(topic, 0, offset, offset + 5, 5) for topic, offset in self.offsets.items())
        return self.waiting.take(Intake(tables, positions, (), lags), is_dear)


@pytest.fixture
def read() -> Reads:
    return Reads()


def counts(taken: Intake) -> dict[str, int]:
    return {topic: table.num_rows for topic, table in taken.tables.items()}


def test_a_trickle_beside_a_busy_topic_waits_and_comes_in_order(read: Reads) -> None:
    assert counts(read(user_activity=160, purchases=3)) == {"user_activity": 160}
    read.now = PATIENCE / 2
    assert counts(read(user_activity=160, purchases=2)) == {"user_activity": 160}
    read.now = PATIENCE
    taken = read(user_activity=160)
    assert counts(taken) == {"user_activity": 160, "purchases": 5}
    assert taken.tables["purchases"]["kafka_offset"].to_pylist() == list("01234")
    assert counts(read(user_activity=160)) == {"user_activity": 160}


def test_where_reading_stands_is_kept_with_the_messages_alone(read: Reads) -> None:
    assert [p.topic for p in read(user_activity=160, purchases=3).positions] == ["user_activity"]
    read.now = PATIENCE
    assert [(p.topic, p.offset) for p in read().positions] == [("user_activity", 160), ("purchases", 3)]


def test_what_waits_counts_as_lag(read: Reads) -> None:
    lags = {lag.topic: lag for lag in read(user_activity=160, purchases=3).lags}
    assert lags["purchases"] == PartitionLag("purchases", 0, 0, 8, 8)
    assert lags["user_activity"].lag == 5


def test_nothing_waits_for_a_topic_that_brings_nothing(read: Reads) -> None:
    read(user_activity=160)
    assert counts(read(purchases=1)) == {"purchases": 1}


def test_a_topic_that_brings_its_share_does_not_wait(read: Reads) -> None:
    assert counts(read(user_activity=90, purchases=10)) == {"user_activity": 90, "purchases": 10}


def test_a_dear_tick_takes_in_no_trickle_unless_it_has_waited_twice_as_long(read: Reads) -> None:
    read(user_activity=160, purchases=3)
    read.now = PATIENCE
    assert counts(read(user_activity=160, is_dear=True)) == {"user_activity": 160}
    read.now = 2 * PATIENCE
    assert counts(read(user_activity=160, is_dear=True)) == {"user_activity": 160, "purchases": 3}
