"""Events: their JSON on the wire, and a producer that delivers or says why not."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Message, TopicPartition

from recs_platform.errors import SourceError
from recs_platform.events import DELIVERY_SECONDS, Event, EventProducer, encode, topic_of
from recs_platform.stack.broker import broker
from recs_platform.stack.process import running
from recs_platform.stack.service import free_port

TEN = datetime(2024, 7, 27, 10, tzinfo=UTC)


def test_a_page_view_is_the_json_of_the_contract() -> None:
    assert json.loads(encode(Event("page_view", 123, TEN, "product_abc"))) == {
        "event_type": "page_view",
        "user_id": 123,
        "product_id": "product_abc",
        "timestamp": "2024-07-27T10:00:00Z",
    }


def test_a_search_carries_a_query_and_no_product() -> None:
    assert json.loads(encode(Event("search", 1, TEN, query="grüner Tee"))) == {
        "event_type": "search",
        "user_id": 1,
        "query": "grüner Tee",
        "timestamp": "2024-07-27T10:00:00Z",
    }


def test_a_purchase_carries_quantity_and_price_and_has_its_own_topic() -> None:
    bought = Event("purchase", 1, TEN, "p1", quantity=2, price=19.9, session_id="s", event_id="e")
    message = json.loads(encode(bought))
    assert (message["quantity"], message["price"], message["session_id"], message["event_id"]) == (2, 19.9, "s", "e")
    assert topic_of(bought) == "purchases"
    others = ("page_view", "click", "search", "add_to_cart")
    assert {topic_of(Event(kind, 1, TEN)) for kind in others} == {"user_activity"}


def test_times_are_sent_in_utc_to_the_microsecond() -> None:
    berlin = datetime(2024, 7, 27, 12, 0, 0, 250, tzinfo=timezone(timedelta(hours=2)))
    assert json.loads(encode(Event("click", 1, berlin, "p")))["timestamp"] == "2024-07-27T10:00:00.000250Z"


def test_a_time_without_a_zone_and_a_price_that_is_no_number_are_refused() -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        encode(Event("click", 1, TEN.replace(tzinfo=None), "p"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode(Event("purchase", 1, TEN, "p", price=float("nan")))


def test_events_arrive_keyed_by_user_in_the_order_of_each_user(kafka_servers: str, topic_prefix: str) -> None:
    topic = topic_prefix + "activity"
    with EventProducer(kafka_servers) as producer:
        for number in range(100):
            event = Event("page_view", number % 3, TEN, f"p{number}")
            producer.send_raw(topic, str(event.user_id).encode(), encode(event))
    messages = consumed(kafka_servers, topic, lambda found: len(found) >= 100)
    for user in range(3):
        sent = [f"p{number}" for number in range(100) if number % 3 == user]
        assert [json.loads(m.value() or b"")["product_id"] for m in messages if m.key() == str(user).encode()] == sent


def test_a_send_goes_to_the_topic_of_the_event(kafka_servers: str) -> None:
    user = uuid.uuid4().int >> 65
    with EventProducer(kafka_servers) as producer:
        producer.send(Event("page_view", user, TEN, "p1"))
        producer.send(Event("purchase", user, TEN, "p1", quantity=1, price=5.0))
    for topic, kind in {"user_activity": "page_view", "purchases": "purchase"}.items():
        [message] = consumed(kafka_servers, topic, lambda found: bool(found), key=str(user).encode())
        assert json.loads(message.value() or b"")["event_type"] == kind


def test_a_tombstone_and_garbage_can_be_sent_too(kafka_servers: str, topic_prefix: str) -> None:
    with EventProducer(kafka_servers) as producer:
        producer.send_raw(topic_prefix + "raw", None, None)
        producer.send_raw(topic_prefix + "raw", b"k", b"\xff")
    messages = consumed(kafka_servers, topic_prefix + "raw", lambda found: len(found) >= 2)
    assert sorted((m.value() or b"tombstone") for m in messages) == [b"tombstone", b"\xff"]


def test_without_a_broker_leaving_the_producer_says_so_within_its_time() -> None:
    servers = f"127.0.0.1:{free_port()}"
    complaint = f"Kafka at {servers}: 1 messages could not be delivered"
    with pytest.raises(SourceError, match=complaint), EventProducer(servers, delivery_seconds=1) as producer:
        producer.send(Event("click", 1, TEN, "p"))


def test_an_error_inside_the_block_is_not_held_up_by_a_broker_that_is_away() -> None:
    unsendable = Event("click", 1, TEN.replace(tzinfo=None), "p")
    begun = time.monotonic()
    producer = EventProducer(f"127.0.0.1:{free_port()}")
    producer.send(Event("click", 1, TEN, "p"))
    with pytest.raises(ValueError, match="has no time zone"), producer:
        producer.send(unsendable)
    assert time.monotonic() - begun < DELIVERY_SECONDS


def test_a_broker_that_comes_late_costs_nothing(tmp_path: Path) -> None:
    service = broker(free_port())
    with EventProducer(service.url) as producer:
        producer.send_raw("late", b"1", b"early")
        assert producer.waiting >= 1
        with running(service, tmp_path) as started:
            producer.flush()
            assert [m.value() for m in consumed(service.url, "late", lambda found: bool(found))] == [b"early"]
            started.process.kill()  # it takes its time to leave its clients


def consumed(
    servers: str, topic: str, enough: Callable[[list[Message]], bool], key: bytes | None = None
) -> list[Message]:
    """The messages of a topic (of one key), read from the start until they are enough; fails after 15 seconds."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "test", "fetch.wait.max.ms": 10, "log_level": 0})
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        found: list[Message] = []
        deadline = datetime.now(UTC) + timedelta(seconds=15)
        while not enough(found):
            assert datetime.now(UTC) < deadline, f"{len(found)} messages of {topic} and no more"
            polled = consumer.consume(10_000, 0.1)
            found += [m for m in polled if m.error() is None and (key is None or m.key() == key)]
        return found
    finally:
        consumer.close()
