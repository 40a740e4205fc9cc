"""Sending to Kafka in bulk: the past, and backlogs."""

from __future__ import annotations

from collections.abc import Iterable

from confluent_kafka import Producer

from bench.traffic import Batch

LINGER_MS = 5
FLUSH_SECONDS = 120.0


def producer(bootstrap_servers: str, linger_ms: int = LINGER_MS) -> Producer:
    """As the platform's own: by key, in batches that wait `linger_ms` for company. Counted in every latency."""
    return Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "linger.ms": linger_ms,
            "queue.buffering.max.messages": 500_000,
            "delivery.report.only.error": True,
            "log_level": 0,
        }
    )


def send_all(bootstrap_servers: str, batches: Iterable[Batch]) -> int:
    """Sends as fast as the broker takes; returns how many messages once all are delivered."""
    sender, sent = producer(bootstrap_servers), 0
    for batch in batches:
        for topic, key, payload in batch.messages():
            sender.produce(topic, payload, key)
        sent += len(batch)
        flush(sender)
    return sent


def flush(sender: Producer) -> None:
    """Raises `RuntimeError` when the broker does not take what waits."""
    if left := sender.flush(FLUSH_SECONDS):
        raise RuntimeError(f"the broker has not taken {left} messages within {FLUSH_SECONDS:.0f} s")
