"""Reads a stretch of a topic to its end, once: for looking at it, beside those who consume it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from recs_platform.errors import SourceError
from recs_platform.kafka_address import KafkaAddress, hosts
from recs_platform.topics import admin_client, describe, describe_topics, log_ends, log_starts

SECONDS = 30.0
QUIET_SECONDS = 1.0


@dataclass(frozen=True)
class Span:
    """What a partition keeps: the first offset, and the one that the next message gets, or a little less."""

    first: int
    next: int


def spans(servers: str, topic: str) -> dict[int, Span]:
    """By partition; none for a topic that is not there. Raises `SourceError`."""
    try:
        admin = admin_client(servers)
        info = describe_topics(admin, [topic]).get(topic)
        partitions = [(topic, partition) for partition in (info.partitions if info else ())]
        first, following = log_starts(admin, partitions), log_ends(admin, partitions)
    except KafkaException as error:
        raise SourceError(f"Kafka at {hosts(servers)}: topic {topic}: {describe(error)}") from None
    return {at[1]: Span(first[at], following[at]) for at in partitions}


def read(
    servers: str, topic: str, parts: Mapping[int, Span], seconds: float = SECONDS, quiet_seconds: float = QUIET_SECONDS
) -> Iterator[Message]:
    """The messages of these partitions, from the first of each to the end it had, as `spans` told.

    And a little on, for the embedded broker may say that a partition ends a batch too early; but no longer than
    `quiet_seconds`: a partition that is sent to all the time has no end, and none is told of it. Raises `SourceError` where
    the next message, or the end, does not come within `seconds`.
    """
    reader = Consumer(
        {
            **KafkaAddress.parse(servers).for_librdkafka(),
            "group.id": "recs-reader",  # nothing is ever committed
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
    left, until = set(parts), math.inf
    try:
        reader.assign([TopicPartition(topic, partition, span.first) for partition, span in parts.items()])
        while time.monotonic() < until and (message := reader.poll(seconds if left else quiet_seconds)) is not None:
            error, partition = message.error(), message.partition() or 0
            if error is None:
                yield message
            elif error.code() != KafkaError._PARTITION_EOF:
                raise SourceError(f"Kafka at {hosts(servers)}: topic {topic}: {error.str()}")
            if error is not None or (message.offset() or 0) + 1 >= parts[partition].next:
                left.discard(partition)
            if not left:
                until = min(until, time.monotonic() + quiet_seconds)
        if left:
            raise SourceError(
                f"Kafka at {hosts(servers)}: topic {topic} was not read to its end within {seconds:.0f} s"
            )
    finally:
        reader.close()
