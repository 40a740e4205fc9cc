"""Simulated shoppers: an endless, seeded stream of what they do, on a clock of its own.

A shopper has a few favourite categories, visits in sessions, looks mostly at popular products and at neighbours of
what was just seen, searches, fills a cart, buys or leaves. Nothing here sends, waits or looks at the time.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random

from recs_platform.catalog import Product
from recs_platform.events import Event
from recs_platform.shop import CatalogChange, Shop, zipf_pick

THINKING_SECONDS = 15.0
"""Mean time between two events of a session, while there are shoppers enough for the rate."""

PEAK_HOUR = 20
_LEAVE = "leave"

# What follows what, in percent; a session begins like after None.
_NEXT: dict[str | None, dict[str, int]] = {
    None: {"page_view": 75, "search": 25},
    "search": {"page_view": 92, "search": 3, _LEAVE: 5},
    "page_view": {"page_view": 48, "click": 25, "add_to_cart": 9, "search": 8, _LEAVE: 10},
    "click": {"page_view": 60, "add_to_cart": 25, "search": 5, _LEAVE: 10},
    "add_to_cart": {"page_view": 50, "purchase": 40, _LEAVE: 10},
    "purchase": {"page_view": 25, _LEAVE: 75},
}
_CHOICES = {last: (tuple(row), tuple(itertools.accumulate(row.values()))) for last, row in _NEXT.items()}
_FAVOURITES = (60, 85, 100)  # cumulative percent of sessions for a shopper's first to third favourite category


def day_rhythm(moment: datetime) -> float:
    """How busy the shop is at that time (UTC): 1.0 on average, 1.8 at eight in the evening, 0.2 at its quietest."""
    hour = moment.hour + moment.minute / 60
    return 1 + 0.8 * math.cos((hour - PEAK_HOUR) * math.tau / 24)


@dataclass(slots=True)
class _Session:
    user_id: int
    session_id: str
    category: str
    action: str
    product: Product | None = None
    cart: list[Product] = field(default_factory=list)


class Simulator:
    """An endless iterator of events and catalog changes, in the order of time, the same for the same arguments.

    `rate` is in events a second; with `rhythm` that is the mean of a day, otherwise every second is alike.
    `changes_per_minute` changes of made-up products are mixed in; the caller carries them out.
    Raises `ValueError` without a user, a product or a positive rate.
    """

    def __init__(
        self,
        seed: int,
        users: int,
        products: Sequence[Product],
        *,
        rate: float,
        start: datetime,
        rhythm: bool = False,
        changes_per_minute: float = 0.0,
    ) -> None:
        if users < 1 or not rate > 0:
            raise ValueError(f"at least one shopper and a rate above 0 are wanted, not {users} and {rate}")
        self.shop = Shop(products)
        self._seed, self._users, self._rate, self._rhythm = seed, users, rate, rhythm
        self._start, self._elapsed = start, 0.0
        self._change_every = 60 / changes_per_minute if changes_per_minute > 0 else math.inf
        self._next_change = self._change_every
        self._rng = Random(f"shoppers/{seed}")
        self._numbers = itertools.count()
        self._active: set[int] = set()
        self._thinking: list[tuple[float, int, _Session]] = []  # a heap: who acts next, and when

    @property
    def now(self) -> datetime:
        """The time of the latest event, on the simulator's clock."""
        return self._at(self._elapsed)

    def skip_to(self, moment: datetime) -> None:
        """Moves the clock forward without events, as after a time the machine was asleep."""
        self._elapsed = max(self._elapsed, (moment - self._start).total_seconds())
        self._next_change = max(self._next_change, self._elapsed)

    def __iter__(self) -> Iterator[Event | CatalogChange]:
        while True:
            busy = day_rhythm(self.now) if self._rhythm else 1.0
            self._elapsed += 1 / (self._rate * busy)
            while self._next_change <= self._elapsed:
                change = self.shop.change(self._rng, self._at(self._next_change))
                self._next_change += self._change_every
                if change:
                    yield change
            yield self._event()

    def _at(self, elapsed: float) -> datetime:
        return (self._start + timedelta(seconds=elapsed)).astimezone(UTC)

    def _event(self) -> Event:
        session = self._session()
        event = self._act(session)
        session.action = "purchase" if event.event_type == "purchase" and session.cart else self._next(event.event_type)
        if session.action == _LEAVE:
            self._active.discard(session.user_id)
        else:
            due = self._elapsed + self._rng.expovariate(1 / THINKING_SECONDS)
            heapq.heappush(self._thinking, (due, next(self._numbers), session))
        return event

    def _session(self) -> _Session:
        """Whoever has thought long enough, else a shopper who arrives: that is what keeps the rate exact.

        At most half of the shoppers are in the shop; beyond that they think faster.
        """
        full = len(self._thinking) >= max(1, self._users // 2)
        if self._thinking and (full or self._thinking[0][0] <= self._elapsed):
            return heapq.heappop(self._thinking)[2]
        return self._arrival()

    def _arrival(self) -> _Session:
        user = 1 + int(self._users * self._rng.random() ** 2)  # some come often, most seldom
        while user in self._active:
            user = user % self._users + 1
        self._active.add(user)
        session_id = f"{int(self._start.timestamp()):x}-{next(self._numbers):x}"
        return _Session(user, session_id, self._favourite(user), self._next(None))

    def _next(self, last: str | None) -> str:
        actions, chances = _CHOICES[last]
        return self._rng.choices(actions, cum_weights=chances)[0]

    def _favourite(self, user: int) -> str:
        taste = Random(f"{self._seed}/{user}")  # a shopper's own, the same in every session
        categories = self.shop.categories
        favourites = [zipf_pick(taste, categories) for _ in _FAVOURITES]
        return self._rng.choices(favourites, cum_weights=_FAVOURITES)[0]

    def _act(self, session: _Session) -> Event:
        product, about = session.product, (session.user_id, self.now)
        match session.action:
            case "search":
                session.product = self.shop.pick(self._rng, session.category)
                query = _words(session.product)
                return Event("search", *about, query=query, session_id=session.session_id)
            case "purchase":
                return self._purchase(session)
            case "click" | "add_to_cart" as action if product and (action == "click" or product.in_stock):
                if action == "add_to_cart":
                    session.cart.append(product)
                return Event(action, *about, product.product_id, session_id=session.session_id)
            case _:
                session.product = product = self._look(session)
                return Event("page_view", *about, product.product_id, session_id=session.session_id)

    def _look(self, session: _Session) -> Product:
        roll = self._rng.random()
        if session.product and roll < 0.5:
            return self.shop.neighbour(self._rng, session.product)
        category = session.category if roll < 0.9 else zipf_pick(self._rng, self.shop.categories)
        return self.shop.pick(self._rng, category)

    def _purchase(self, session: _Session) -> Event:
        product = session.cart.pop()
        [quantity] = self._rng.choices((1, 2, 3), cum_weights=(85, 97, 100))
        price = None if product.price is None else float(product.price)
        return Event(
            "purchase", session.user_id, self.now, product.product_id,
            quantity=quantity, price=price, session_id=session.session_id,
        )  # fmt: skip


def history(
    seed: int, users: int, products: Sequence[Product], *, hours: float, events: int, until: datetime
) -> Iterator[Event]:
    """About `events` past events of the `hours` before `until`, oldest first, with the rhythm of the day."""
    start = until - timedelta(hours=hours)
    past = Simulator(seed, users, products, rate=events / (hours * 3600), start=start, rhythm=True)
    made = (item for item in past if isinstance(item, Event))
    return itertools.takewhile(lambda event: event.timestamp <= until, made)


def _words(product: Product) -> str:
    """What one types to find the product: its name without the model number."""
    return " ".join(word for word in product.name.lower().split() if not word.isdecimal())
