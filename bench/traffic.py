"""Seeded traffic: who does what to which product, as numbers first and as Kafka messages just before they are sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from recs_platform.catalog import Customer, Product
from recs_platform.events import PURCHASES, USER_ACTIVITY
from recs_platform.shop import customers

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

KINDS = ("page_view", "click", "search", "add_to_cart", "purchase")
SHARES = (0.62, 0.20, 0.08, 0.08, 0.02)
VIEW, SEARCH, PURCHASE = 0, 2, 4


@dataclass(frozen=True)
class Population:
    """A shop and its shoppers.

    The n-th product is viewed n^-`exponent` times as often as the first; shoppers' activity is log-normal with the
    given `skew` (sigma): at 1.5 the busiest hundredth of them sends a fifth of all events. 0 makes either uniform.
    """

    users: int
    products: int
    categories: int
    seed: int = 1
    exponent: float = 1.0
    skew: float = 1.5


class Message(NamedTuple):
    """One Kafka message, keyed by its shopper."""

    topic: str
    key: bytes
    payload: bytes


@dataclass(frozen=True)
class Batch:
    """Events side by side; `times` are microseconds since 1970, `products` and `users` count from 1."""

    times: Ints
    kinds: Ints
    users: Ints
    products: Ints

    def __len__(self) -> int:
        return len(self.times)

    @property
    def views(self) -> Flags:
        views: Flags = self.kinds == VIEW
        return views

    @property
    def activity(self) -> int:
        """How many go to the topic user_activity."""
        return int((self.kinds != PURCHASE).sum())

    def cut(self, start: int, end: int) -> Batch:
        part = slice(start, end)
        return Batch(self.times[part], self.kinds[part], self.users[part], self.products[part])

    def messages(self) -> Iterator[Message]:
        rows = zip(texts(self.times), self.kinds.tolist(), self.users.tolist(), self.products.tolist(), strict=True)
        for time, kind, user, product in rows:
            topic = PURCHASES if kind == PURCHASE else USER_ACTIVITY
            yield Message(topic, b"%d" % user, orjson.dumps(_event(time, kind, user, product)))


class Traffic:
    """An endless, reproducible stream: the same population and stream number give the same events."""

    def __init__(self, population: Population, stream: int) -> None:
        self.population = population
        self.rng = np.random.default_rng([population.seed, stream])
        self._users = _cumulated(_activity(population))
        ranks = np.arange(1, population.products + 1, dtype=np.float64)
        self._products = _cumulated(ranks**-population.exponent)

    def draw(self, times: Ints) -> Batch:
        """One event at each of the times."""
        count = len(times)
        kinds = self.rng.choice(len(KINDS), size=count, p=SHARES).astype(np.int64)
        return Batch(times, kinds, self._pick(self._users, count), self._pick(self._products, count))

    def arrivals(self, rate: float, seconds: float) -> Floats:
        """Seconds after the start at which events are due: random (Poisson), as independent shoppers are."""
        count = max(1, round(rate * seconds))
        return np.sort(self.rng.uniform(0.0, seconds, count))

    def _pick(self, cumulated: Floats, count: int) -> Ints:
        return (np.searchsorted(cumulated, self.rng.random(count), side="right") + 1).astype(np.int64)


def history(population: Population, events: int, end: datetime, hours: float, chunk: int = 50_000) -> Iterator[Batch]:
    """The past: that many events in the order of time, spread evenly over the hours before `end`."""
    traffic, last = Traffic(population, stream=0), micros(end)
    span = int(hours * 3_600_000_000)
    for start in range(0, events, chunk):
        places = np.arange(start, min(start + chunk, events), dtype=np.int64)
        yield traffic.draw(last - span + (places + 1) * span // (events + 1))


def products(population: Population) -> list[Product]:
    """The catalog: product_1 is the most viewed one; every category has products of every popularity."""
    return [
        Product(
            product_id=product_id(number),
            name=f"Product {number}",
            category=category_of(number, population.categories),
            price=None,
            description=f"Product number {number} of the benchmark's shop.",
            image_url=f"https://shop.example/images/product_{number}.jpg",
        )
        for number in range(1, population.products + 1)
    ]


def shoppers(population: Population) -> list[Customer]:
    """A row of `customers` for every shopper."""
    return customers(population.seed, population.users)


def product_id(number: int) -> str:
    return f"product_{number}"


def category_of(number: int, categories: int) -> str:
    return f"category_{number % categories}"


def texts(times: Ints) -> list[str]:
    """ISO 8601 in UTC with six decimals, as the documents in Redis have them: so they compare as text."""
    return [text + "Z" for text in np.datetime_as_string(times.astype("datetime64[us]"), unit="us").tolist()]


def micros(moment: datetime) -> int:
    """Microseconds since 1970."""
    return round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000)


def _event(time: str, kind: int, user: int, product: int) -> dict[str, Any]:
    event: dict[str, Any] = {"event_type": KINDS[kind], "user_id": user, "timestamp": time}
    if kind == SEARCH:
        return {**event, "query": f"words {product}"}
    event["product_id"] = product_id(product)
    return {**event, "quantity": 1, "price": 9.99} if kind == PURCHASE else event


def _activity(population: Population) -> Floats:
    """How busy each shopper is: of the population, not of the stream, so that it stays the same shopper."""
    rng = np.random.default_rng([population.seed, 2**31])
    return np.exp(population.skew * rng.standard_normal(population.users))


def _cumulated(weights: Floats) -> Floats:
    total = np.cumsum(weights)
    cumulated: Floats = total / total[-1]
    cumulated[-1] = 1.0  # rounding must not leave a gap at the end
    return cumulated
