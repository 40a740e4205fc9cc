"""One run of open-loop traffic: when what is sent, which of it is watched, and what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from bench.probes import Kind, Sample
from bench.traffic import Batch, Flags, Floats, Ints, Population, Traffic

FOLLOWED = 100
TOP_PRODUCTS = 3
"""A view of one of so many most popular products shows in trending for certain."""


@dataclass(frozen=True)
class Load:
    """What the driver is asked to do. `rate` is in events a second, times are in seconds, probes are a second's.

    Events of the first `warmup` seconds are sent and not watched. `catalog_probes` need a `postgres_url`.
    """

    kafka: str
    redis_url: str
    population: Population
    stream: int
    rate: float
    seconds: float
    warmup: float
    postgres_url: str = ""
    recommendation_probes: float = 50.0
    trending_probes: float = 10.0
    catalog_probes: float = 0.0
    followed: int = FOLLOWED
    lost_after: float = 60.0


@dataclass(frozen=True)
class Lateness:
    """How late the driver itself sent, in milliseconds: part of every latency, for it counts from the intended time."""

    p50: float
    p99: float
    longest: float


@dataclass(frozen=True)
class Outcome:
    """What a run gave: `sent` events, `activity` of them no purchases.

    `began` and `ended` are in seconds since 1970, without the warm-up and the wait for the last probes.
    """

    samples: list[Sample]
    lateness: Lateness
    sent: int
    began: float
    ended: float
    activity: int

    def latencies(self, kind: Kind) -> list[float]:
        """In seconds, lost probes among them."""
        return [sample.latency for sample in self.samples if sample.kind == kind]

    def lost(self, kind: Kind) -> int:
        return sum(sample.lost for sample in self.samples if sample.kind == kind)


@dataclass
class Schedule:
    """A run's events with their due times (seconds since 1970), and which of them are watched as what."""

    batch: Batch
    due: Floats
    watched: dict[Kind, Flags]
    sent_at: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.sent_at = np.zeros(len(self.batch))

    def lateness(self, after: float) -> Lateness:
        late = (self.sent_at - self.due)[self.due >= after] * 1000
        late = late if len(late) else np.zeros(1)
        return Lateness(float(np.percentile(late, 50)), float(np.percentile(late, 99)), float(late.max()))


def schedule(load: Load, start: float) -> Schedule:
    """The same events for the same load, due from `start` on (seconds since 1970)."""
    traffic = Traffic(load.population, load.stream)
    due = start + traffic.arrivals(load.rate, load.warmup + load.seconds)
    batch = traffic.draw((due * 1_000_000).astype(np.int64))
    counted = batch.views & (due >= start + load.warmup)
    followed = _followed(load, traffic, batch, counted)
    popular = counted & (batch.products <= TOP_PRODUCTS)
    watched = {
        Kind.RECOMMENDATIONS: _sampled(traffic, counted, load.recommendation_probes * load.seconds),
        Kind.FOLLOWED: counted & np.isin(batch.users, followed),
        Kind.TRENDING: _sampled(traffic, popular, load.trending_probes * load.seconds),
    }
    return Schedule(batch, due, watched)


def _followed(load: Load, traffic: Traffic, batch: Batch, counted: Flags) -> Ints:
    """So many of the shoppers who are there during the run, each as likely as the other."""
    present = np.unique(batch.users[counted])
    return traffic.rng.choice(present, size=min(load.followed, len(present)), replace=False)


def _sampled(traffic: Traffic, of: Flags, wanted: float) -> Flags:
    chance = min(1.0, wanted / max(1, int(of.sum())))
    sampled: Flags = of & (traffic.rng.random(len(of)) < chance)
    return sampled


def soon() -> float:
    """When a run that is being prepared may begin."""
    return time.time() + 0.2
