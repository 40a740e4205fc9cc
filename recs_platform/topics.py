"""Kafka topics: creating ours, and telling one incarnation of a topic from the next.

A topic that is deleted and created anew, or that a memory-only broker forgot, begins at offset 0 again under the same
name. Its id never comes back, so the id is what an offset belongs to.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]  # no __all__

from recs_platform.errors import SourceError
from recs_platform.kafka_address import KafkaAddress, hosts

CREATE_SECONDS = 15.0
REQUEST_SECONDS = 3.0
_RETRY_SECONDS = 0.05
_SILENCE = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic as it is now: the id of this incarnation and its partition numbers."""

    incarnation: str
    partitions: tuple[int, ...]


def admin_client(bootstrap_servers: str) -> AdminClient:
    """A client for the functions below; connects by itself, silently, as often as needed."""
    quiet: dict[str, str | int | float | bool] = {
        **KafkaAddress.parse(bootstrap_servers).for_librdkafka(),
        "log_level": 0,
        "reconnect.backoff.max.ms": 500,
    }
    return AdminClient(quiet)


def ensure_topics(
    bootstrap_servers: str, names: Iterable[str], partitions: int, compacted: Collection[str] = ()
) -> None:
    """Creates the topics that are missing, replicated as the broker's default says; existing ones stay as they are.

    Those in `compacted` keep the newest message of each key, however old it is.
    Returns once the broker knows all of them. Raises `SourceError` when it does not within 15 seconds.
    """
    wanted, admin = tuple(names), admin_client(bootstrap_servers)
    deadline, why = time.monotonic() + CREATE_SECONDS, "no answer"
    while time.monotonic() < deadline:
        try:
            found = describe_topics(admin, wanted)
            missing = [name for name in wanted if name not in found]
            if not missing:
                return
            _create(admin, missing, partitions, compacted)
        except KafkaException as error:
            why = describe(error)
        time.sleep(_RETRY_SECONDS)
    raise SourceError(
        f"Kafka at {hosts(bootstrap_servers)} has no topics {', '.join(wanted)} and did not create them: {why}"
    )


def describe_topics(
    admin: AdminClient, names: Collection[str], seconds: float = REQUEST_SECONDS
) -> dict[str, TopicInfo]:
    """The topics that exist, of those named. Raises `KafkaException` when the broker does not answer in `seconds`."""
    if not names:
        return {}
    found: dict[str, TopicInfo] = {}
    for name, future in admin.describe_topics(TopicCollection(list(names)), request_timeout=seconds).items():
        try:
            topic = future.result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                continue
            raise
        found[name] = TopicInfo(str(topic.topic_id), tuple(sorted(partition.id for partition in topic.partitions)))
    return found


def log_starts(admin: AdminClient, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """The first offset still kept of each (topic, partition). Raises `KafkaException`."""
    return _offsets(admin, partitions, OffsetSpec.earliest())  # type: ignore[no-untyped-call]


def log_ends(admin: AdminClient, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """The offset the next message of each (topic, partition) gets. Raises `KafkaException`.

    The embedded broker's answer may be too low by a batch.
    """
    return _offsets(admin, partitions, OffsetSpec.latest())  # type: ignore[no-untyped-call]


def spans_since(
    bootstrap_servers: str, names: Collection[str], moment: datetime
) -> dict[tuple[str, int], tuple[int | None, int]]:
    """Of each partition of the topics that exist: the first offset whose message is of that moment or later, None where
    there is none; and the end, as `log_ends`. Raises `SourceError` when the broker does not answer.
    """
    admin = admin_client(bootstrap_servers)
    try:
        at = [(topic, n) for topic, info in describe_topics(admin, names).items() for n in info.partitions]
        first = _offsets(admin, at, OffsetSpec.for_timestamp(round(moment.timestamp() * 1000)))
        ends = log_ends(admin, at)
    except KafkaException as error:
        raise SourceError(f"Kafka at {hosts(bootstrap_servers)}: {describe(error)}") from error
    return {place: (offset if offset >= 0 else None, ends[place]) for place, offset in first.items()}


def describe(error: KafkaException) -> str:
    """What went wrong, in the words of the client library."""
    reason: KafkaError = error.args[0]
    return "it does not answer" if reason.code() in _SILENCE else reason.str()


def _create(admin: AdminClient, names: Collection[str], partitions: int, compacted: Collection[str]) -> None:
    wanted = [
        NewTopic(
            name,
            num_partitions=partitions,
            replication_factor=-1,
            config={"cleanup.policy": "compact"} if name in compacted else {},
        )
        for name in names
    ]
    for future in admin.create_topics(wanted, request_timeout=REQUEST_SECONDS).values():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise


def _offsets(admin: AdminClient, partitions: Iterable[tuple[str, int]], spec: OffsetSpec) -> dict[tuple[str, int], int]:
    wanted = {TopicPartition(topic, partition): spec for topic, partition in partitions}
    if not wanted:
        return {}
    found: Mapping[TopicPartition, Future[Any]] = admin.list_offsets(wanted, request_timeout=REQUEST_SECONDS)
    return {(at.topic, at.partition): int(future.result().offset) for at, future in found.items()}
