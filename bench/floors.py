"""What nobody can go below: a round trip to Redis, and one through the broker."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import redis
from confluent_kafka import Consumer, Producer, TopicPartition

from bench.load import soon
from bench.sending import flush, producer
from recs_platform.topics import ensure_topics

TRIPS = 2_000
PARTITIONS = 1  # as the embedded stack's topics
GRAIN = 0.001  # seconds
LEAVE = 5.0  # seconds for what is still under way at the end
WARM_SECONDS = 30.0


@dataclass(frozen=True)
class Floors:
    """Where, how many events a second and for how many seconds."""

    kafka: str
    redis_url: str
    rate: float
    seconds: float


def redis_trips(floors: Floors) -> dict[str, list[float]]:
    """Seconds of one GET and one SET after the other."""
    found: dict[str, list[float]] = {"GET": [], "SET": []}
    value = b"x" * 500  # as long as a list
    with redis.Redis.from_url(floors.redis_url) as connection:
        asks: dict[str, Callable[[], object]] = {
            "SET": lambda: connection.set("bench:floor", value),
            "GET": lambda: connection.get("bench:floor"),
        }
        for n in range(TRIPS):
            for name, ask in asks.items():
                began = time.perf_counter()
                ask()
                if n:  # the first has connected
                    found[name].append(time.perf_counter() - began)
        connection.delete("bench:floor")
    return found


def broker_trips(floors: Floors) -> list[float]:
    """Seconds from when a message was due to be produced until a consumer has it; producer as in all measurements.

    A message that is not back at the end counts with the time it was waited for.
    """
    topic = f"bench_{uuid.uuid4().hex[:8]}"
    ensure_topics(floors.kafka, [topic], PARTITIONS)
    consumer, sender = _consumer(floors.kafka, topic), producer(floors.kafka)
    _warm_up(sender, consumer, topic)
    count = max(1, round(floors.rate * floors.seconds))
    due = (soon() + np.sort(np.random.default_rng(count).uniform(0, floors.seconds, count))).tolist()
    back = dict[int, float]()
    sent, until = 0, due[-1] + LEAVE
    while len(back) < count and time.time() < until:
        while sent < count and due[sent] <= time.time():
            sender.produce(topic, str(sent).encode(), str(sent).encode())
            sent += 1
        sender.poll(0)
        back |= {number: time.time() for number in _numbers(consumer)}
    flush(sender)
    consumer.close()
    return [back.get(number, until) - at for number, at in enumerate(due)]


def _warm_up(sender: Producer, consumer: Consumer, topic: str) -> None:
    """One message through each partition: connections and the first fetch are no part of a round trip."""
    for partition in range(PARTITIONS):
        sender.produce(topic, b"0", partition=partition)
    flush(sender)
    came, until = 0, time.time() + WARM_SECONDS
    while came < PARTITIONS:
        came += len(_numbers(consumer))
        if time.time() > until:
            raise RuntimeError(f"{PARTITIONS - came} messages have not come back from the broker")


def _numbers(consumer: Consumer) -> list[int]:
    """Of the messages that have come."""
    return [int(m.value() or 0) for m in consumer.consume(1_000, GRAIN) if m.error() is None]


def _consumer(kafka: str, topic: str) -> Consumer:
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": "bench", "enable.auto.commit": False, "fetch.wait.max.ms": 10}
    )
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    return consumer
