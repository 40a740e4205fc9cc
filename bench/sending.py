"""Sending to Kafka in bulk: the past, and backlogs."""

from __future__ import annotations

from collections.abc import Iterable

from confluent_kafka import Producer

from bench.traffic import Batch
from recs_platform.events import LINGER_MS

FLUSH_SECONDS = 120.0


def producer(bootstrap_servers: str) -> Producer:
    """As the platform's own: by key, in batches that wait `LINGER_MS` for company. Counted in every latency."""
    return Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "linger.ms": LINGER_MS,
            "queue.buffering.max.messages": 500_000,
            "delivery.report.only.error": True,
            "log_level": 0,
        }
    )


def send_all(bootstrap_servers: str, batches: Iterable[Batch]) -> None:
    """Sends as fast as the broker takes; returns once all are delivered."""
    sender = producer(bootstrap_servers)
    for batch in batches:
        for topic, key, payload in batch.messages():
            sender.produce(topic, payload, key)
        flush(sender)


def flush(sender: Producer) -> None:
    """Raises `RuntimeError` when the broker does not take what waits."""
    if left := sender.flush(FLUSH_SECONDS):
        raise RuntimeError(f"the broker has not taken {left} messages within {FLUSH_SECONDS:.0f} s")
