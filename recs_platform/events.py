"""Shop events: what a shopper did, its JSON on the wire, and the producer that sends it to Kafka.

One JSON object a message, keyed by the user id, so that the events of one shopper stay in order:
`{"event_type":"page_view","user_id":123,"timestamp":"2024-07-27T10:00:00Z","product_id":"product_abc"}`
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaError, Message, Producer

from recs_platform.errors import SourceError
from recs_platform.kafka_address import KafkaAddress, hosts

USER_ACTIVITY = "user_activity"
PURCHASES = "purchases"
TOPICS = (USER_ACTIVITY, PURCHASES)

QUEUE_MESSAGES = 100_000
DELIVERY_SECONDS = 30.0
LINGER_MS = 20  # a message waits so long for company; the embedded broker gets slower with each batch it holds

_log = logging.getLogger("recs_platform.kafka")
_log.addHandler(logging.NullHandler())  # what librdkafka has to say is in the errors raised; a terminal stays clean
_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Event:
    """What a shopper did. `event_type` is page_view, click, search, add_to_cart or purchase.

    `timestamp` must be aware. `query` goes with a search; `quantity` and `price` (of one piece) with a purchase.
    """

    event_type: str
    user_id: int
    timestamp: datetime
    product_id: str | None = None
    query: str | None = None
    quantity: int | None = None
    price: float | None = None
    session_id: str | None = None
    event_id: str | None = None


_OPTIONAL = ("product_id", "query", "quantity", "price", "session_id", "event_id")


def encode(event: Event) -> bytes:
    """The event as UTF-8 JSON, fields that are None left out, the time in UTC with a `Z`.

    Raises `ValueError` for a naive timestamp and for a price JSON cannot hold (NaN, infinity).
    """
    message: dict[str, Any] = {
        "event_type": event.event_type,
        "user_id": event.user_id,
        "timestamp": _utc_text(event.timestamp),
    }
    for name in _OPTIONAL:
        value = getattr(event, name)
        if value is not None:
            message[name] = value
    return _to_json(message).encode()


def topic_of(event: Event) -> str:
    """The topic the event belongs on: `purchases` for a purchase, else `user_activity`."""
    return PURCHASES if event.event_type == "purchase" else USER_ACTIVITY


class EventProducer:
    """Sends events to Kafka; a context manager that has delivered everything when it is left without an error.

    At most `QUEUE_MESSAGES` wait for the broker; `send` blocks while there is no room. A broker that goes away and
    comes back within `delivery_seconds` costs nothing. Delivery is at least once. Not for use by several threads.
    """

    def __init__(self, bootstrap_servers: str, delivery_seconds: float = DELIVERY_SECONDS) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.delivery_seconds = delivery_seconds
        self.failed = 0
        """Messages given up on since the beginning."""
        self._reported = 0
        self._problem = ""
        self._producer = Producer(
            {
                **KafkaAddress.parse(bootstrap_servers).for_librdkafka(),
                "linger.ms": LINGER_MS,
                "queue.buffering.max.messages": QUEUE_MESSAGES,
                "message.timeout.ms": int(delivery_seconds * 1000),
                "topic.metadata.propagation.max.ms": int(delivery_seconds * 1000),
                "reconnect.backoff.max.ms": 1000,
                "delivery.report.only.error": True,
                "on_delivery": self._on_failure,
                "error_cb": self._on_error,
            },
            logger=_log,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.flush()
        else:
            self._producer.purge()  # whoever stops by an error or ctrl-C must not wait for a broker that is away

    @property
    def waiting(self) -> int:
        """Messages the broker has not confirmed yet, and reports nobody has looked at; 0 when all is delivered."""
        return len(self._producer)

    def send(self, event: Event) -> None:
        """Queues the event. Raises `SourceError`, without queueing it, when earlier messages were given up on."""
        self.send_raw(topic_of(event), str(event.user_id).encode(), encode(event))

    def send_raw(
        self, topic: str, key: bytes | None, payload: bytes | None, headers: Mapping[str, bytes] | None = None
    ) -> None:
        """Queues any bytes, `None` for a tombstone. Raises like `send`."""
        deadline = 0.0
        while True:
            self.poll()
            try:
                self._producer.produce(topic, payload, key, headers=dict(headers or {}))
            except BufferError:
                deadline = deadline or time.monotonic() + self.delivery_seconds + 1
                if time.monotonic() > deadline:
                    raise self._error(f"{QUEUE_MESSAGES} messages wait and none leaves") from None
                self.poll(0.1)
            else:
                return

    def poll(self, timeout: float = 0.0) -> None:
        """Waits up to `timeout` seconds while serving delivery reports. Raises `SourceError` like `send`."""
        self._producer.poll(timeout)
        self._raise_failures()

    def flush(self, timeout: float | None = None) -> None:
        """Waits until everything queued is delivered; `SourceError` when it is not within `timeout` seconds."""
        waited = self.delivery_seconds + 1 if timeout is None else timeout
        left = self._producer.flush(waited)
        self._raise_failures()
        if left:
            raise self._error(f"{left} messages not delivered within {waited:g} s")

    def _on_failure(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.failed += 1
            self._problem = f"topic {message.topic()}: {error.str()}"

    def _on_error(self, error: KafkaError) -> None:
        self._problem = error.str()

    def _raise_failures(self) -> None:
        lost = self.failed - self._reported
        if lost:
            self._reported = self.failed
            raise self._error(f"{lost} messages could not be delivered")

    def _error(self, what: str) -> SourceError:
        cause = f" ({self._problem})" if self._problem else ""
        remedy = "is the broker running, is the topic there?"
        return SourceError(f"Kafka at {hosts(self.bootstrap_servers)}: {what}{cause}; {remedy}")


def _utc_text(moment: datetime) -> str:
    if moment.tzinfo is None:
        raise ValueError(f"the event time {moment.isoformat()} has no time zone; give it one, such as datetime.UTC")
    return moment.astimezone(UTC).isoformat()[:-6] + "Z"
