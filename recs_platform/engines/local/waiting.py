"""Which of the messages read a tick takes in: a topic that brings little beside a busy one waits a moment.

What a tick costs is mostly the statements it runs, for every view behind a topic, however few its messages. So a trickle
is taken in once a second, and in another tick than the one that moves the time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa

from recs_platform.engines.local.intake import Intake, PartitionLag

LITTLE = 0.1  # of what all topics bring
PATIENCE = 1.0  # seconds


@dataclass(frozen=True)
class _Held:
    """Messages of a topic, since when the first of them waits, and how many of all topics had been read by then."""

    messages: pa.Table
    since: float
    read_before: int


class Waiting:
    """The messages that are read and not yet taken in. A topic's positions are handed on with its messages alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._read = 0

    def take(self, read: Intake, is_dear: bool) -> Intake:
        """What a tick takes in, of what was read now and what has waited; `lags` count what waits on.

        A tick that is dear anyway, because it moves the time, takes in no trickle unless that has waited twice as long.
        """
        for topic, messages in read.tables.items():
            held = self._held.get(topic, _Held(messages.slice(0, 0), self._clock(), self._read))
            self._held[topic] = replace(held, messages=pa.concat_tables([held.messages, messages]))
        self._read += read.count
        patience = PATIENCE * (2 if is_dear else 1)
        taken = {topic: held.messages for topic, held in self._held.items() if not self._waits_on(held, patience)}
        self._held = {topic: held for topic, held in self._held.items() if topic not in taken}
        return replace(
            read,
            tables=taken,
            positions=tuple(p for p in read.positions if p.topic not in self._held),
            lags=tuple(map(self._with_waiting, read.lags)),
        )

    def _waits_on(self, held: _Held, patience: float) -> bool:
        is_little = held.messages.num_rows < LITTLE * (self._read - held.read_before)
        return is_little and self._clock() - held.since < patience

    def _with_waiting(self, lag: PartitionLag) -> PartitionLag:
        held = self._held.get(lag.topic)
        if held is None:
            return lag
        waiting = Counter(held.messages["kafka_partition"].to_pylist())[str(lag.partition)]
        return replace(lag, next_offset=lag.next_offset - waiting, lag=lag.lag + waiting)
