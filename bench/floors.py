"""What nobody can go below: a round trip to Redis, and one through the broker."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import redis
from confluent_kafka import Consumer, TopicPartition

from bench.load import soon
from bench.sending import flush, producer
from recs_platform.topics import ensure_topics

TRIPS = 2_000
PARTITIONS = 4
GRAIN = 0.001  # seconds
LEAVE = 5.0  # seconds for what is still under way at the end


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
    """Seconds from when a message was due to be produced until a consumer has it; producer as in all measurements."""
    topic = f"bench_{uuid.uuid4().hex[:8]}"
    ensure_topics(floors.kafka, [topic], PARTITIONS)
    consumer, sender = _consumer(floors.kafka, topic), producer(floors.kafka)
    count = max(1, round(floors.rate * floors.seconds))
    due = soon() + np.sort(np.random.default_rng(count).uniform(0, floors.seconds, count))
    latencies: list[float] = []
    sent, until = 0, due[-1] + LEAVE
    while len(latencies) < count and time.time() < until:
        while sent < count and due[sent] <= time.time():
            sender.produce(topic, str(due[sent]).encode(), str(sent).encode())
            sent += 1
        sender.poll(0)
        latencies += [time.time() - float(m.value() or 0) for m in consumer.consume(1_000, GRAIN) if m.error() is None]
    flush(sender)
    consumer.close()
    return latencies


def _consumer(kafka: str, topic: str) -> Consumer:
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": "bench", "enable.auto.commit": False, "fetch.wait.max.ms": 10}
    )
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    return consumer
