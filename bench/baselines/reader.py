"""Reads the topic of shoppers' activity from its beginning, for programs that are not the platform."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

import orjson
from confluent_kafka import Consumer, TopicPartition

from recs_platform.events import USER_ACTIVITY

AT_ONCE = 5_000
WAIT = 0.01  # seconds for a batch to gather
CONSUMED = "bench:consumed:"
"""Redis keys `bench:consumed:<what>`: of how many messages that shows the effect."""


class Reader:
    """`read` gives the next events; `count` is how many there were. At SIGHUP it begins anew: the topic is a new one."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "bench",  # nothing is ever committed
                "enable.auto.commit": False,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
                "fetch.wait.max.ms": 10,
                "fetch.queue.backoff.ms": 5,
                "queued.max.messages.kbytes": 65_536,
            }
        )
        self.count = 0
        self._is_new = True
        signal.signal(signal.SIGHUP, self._renew)

    def read(self) -> list[Mapping[str, Any]]:
        """Up to 5,000 events; none when none came within 10 ms."""
        if self._is_new:
            self._is_new = False
            self._begin()
        payloads = [m.value() for m in self._consumer.consume(AT_ONCE, WAIT) if m.error() is None]
        self.count += len(payloads)
        return [orjson.loads(payload) for payload in payloads if payload is not None]

    def _renew(self, *_: object) -> None:
        self._is_new = True

    def _begin(self) -> None:
        partitions = self._consumer.list_topics(USER_ACTIVITY, timeout=10).topics[USER_ACTIVITY].partitions
        self._consumer.unassign()
        self._consumer.assign([TopicPartition(USER_ACTIVITY, partition, 0) for partition in partitions])
