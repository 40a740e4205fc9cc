"""Recent figures of the engine: how much comes in, how long ticks take, and where a message's time goes."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from statistics import quantiles
from typing import TypeVar

from recs_platform.engines.local.database import TickResult

RATE_WINDOW, NOW_WINDOW, FIGURES_WINDOW = 5.0, 15.0, 60.0  # seconds

T = TypeVar("T", int, float)


class Stage(StrEnum):
    """Where a message's time goes, from the producer's timestamp to Redis."""

    BROKER = "broker"  # sent → taken in
    ENGINE = "engine"  # taken in → committed
    SINK = "sink"  # committed → in Redis
    ALL = "freshness"


@dataclass
class Meter:
    """Recent figures of the engine, for status and the live screen."""

    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    ticks: int = 0
    messages: int = 0
    tick_seconds: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=5_000))
    delays: dict[Stage, deque[tuple[float, float]]] = field(
        default_factory=lambda: {stage: deque(maxlen=50_000) for stage in Stage}
    )
    arrivals: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=5_000))

    def rate(self) -> float:
        """Messages a second over the last seconds."""
        return sum(_latest(self.arrivals, RATE_WINDOW)) / RATE_WINDOW

    def note_tick(self, result: TickResult) -> None:
        self.ticks += 1
        self.messages += result.messages
        self.arrivals.append((time.monotonic(), result.messages))
        if result.changed:
            self.tick_seconds.append((time.monotonic(), result.seconds))

    def note_delays(self, sent: list[datetime], taken: datetime, committed: datetime, written: datetime) -> None:
        """How long some messages of a tick took, stage by stage."""
        at = time.monotonic()
        for moment in sent:
            self.delays[Stage.BROKER].append((at, max(0.0, (taken - moment).total_seconds())))
            self.delays[Stage.ALL].append((at, max(0.0, (written - moment).total_seconds())))
        self.delays[Stage.ENGINE].append((at, (committed - taken).total_seconds()))
        self.delays[Stage.SINK].append((at, (written - committed).total_seconds()))

    def figures(self, window: float = FIGURES_WINDOW) -> dict[str, float | int | str | None]:
        """Percentiles are those of the last so many seconds; `freshness_now_ms` is of the last few, so that it is over soon after
        what made messages late is.
        """
        ticks = _latest(self.tick_seconds, window)
        return {
            "started_at": self.started.isoformat(),
            "ticks": self.ticks,
            "messages": self.messages,
            "events_per_second": round(self.rate(), 1),
            "tick_p50_ms": _percentile(ticks, 50),
            "tick_p99_ms": _percentile(ticks, 99),
            **{
                f"{stage}_p{percent}_ms": _percentile(_latest(self.delays[stage], window), percent)
                for stage in Stage
                for percent in (50, 99)
            },
            "freshness_now_ms": _percentile(_latest(self.delays[Stage.ALL], NOW_WINDOW), 99),
        }


def _latest(values: deque[tuple[float, T]], seconds: float) -> list[T]:
    """What was noted in the last so many seconds."""
    since = time.monotonic() - seconds
    return [value for at, value in tuple(values) if at >= since]


def _percentile(values: list[float], percent: int) -> float | None:
    """In milliseconds; None where there is nothing to tell."""
    if len(values) < 2:
        return round(values[0] * 1000, 1) if values else None
    return round(quantiles(values, n=100, method="inclusive")[percent - 1] * 1000, 1)
