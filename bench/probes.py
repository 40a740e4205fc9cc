"""Probes: what has been sent and is not yet seen in Redis, and how long each took to be."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

A_ROUND = 128
"""Keys read at a time. With more of them outstanding they take turns, so that looking never becomes the load."""


class Kind(StrEnum):
    RECOMMENDATIONS = "recommendations"
    FOLLOWED = "followed shoppers"
    TRENDING = "trending"
    CATALOG = "catalog change"


@dataclass(frozen=True, slots=True)
class Probe:
    """Awaits a document at `key` that is as new as the event: its `field` at least `wanted` (a price: exactly it).

    `intended` is when the event was due to be sent, in seconds since 1970: latency counts from there.
    """

    kind: Kind
    key: str
    field: str
    wanted: str | float
    intended: float

    def met(self, document: dict[str, Any]) -> bool:
        found = document.get(self.field)
        if found is None:
            return False
        return bool(found >= self.wanted) if isinstance(self.wanted, str) else found == self.wanted


class Sample(NamedTuple):
    """One probe's end. `latency` is in seconds; of a lost one it is how long was waited for it."""

    kind: str
    intended: float
    latency: float
    lost: bool


class Watch:
    """The probes that are outstanding, by key, and the samples of those that are not any more."""

    def __init__(self, lost_after: float) -> None:
        self.lost_after = lost_after
        self.samples: list[Sample] = []
        self._waiting: dict[str, list[Probe]] = {}
        self._turn: deque[str] = deque()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, probe: Probe) -> None:
        if probe.key not in self._waiting:
            self._turn.append(probe.key)
        self._waiting.setdefault(probe.key, []).append(probe)

    def due(self) -> list[str]:
        """The keys to read in this round."""
        keys = [self._turn.popleft() for _ in range(min(A_ROUND, len(self._turn)))]
        self._turn.extend(keys)
        return keys

    def seen(self, keys: Sequence[str], documents: Sequence[bytes | None], now: float | None = None) -> None:
        """Takes what Redis answered at `now` (seconds since 1970; else the time it is)."""
        at = time.time() if now is None else now
        for key, raw in zip(keys, documents, strict=True):
            document = orjson.loads(raw) if raw is not None else {}
            left = [probe for probe in self._waiting[key] if not self._ends(probe, document, at)]
            self._waiting[key] = left
            if not left:
                del self._waiting[key]
                self._turn.remove(key)

    def _ends(self, probe: Probe, document: dict[str, Any], now: float) -> bool:
        if probe.met(document):
            self.samples.append(Sample(probe.kind, probe.intended, now - probe.intended, False))
        elif now - probe.intended > self.lost_after:
            self.samples.append(Sample(probe.kind, probe.intended, self.lost_after, True))
        else:
            return False
        return True
