"""What Redis must hold, worked out in plain Python from the log and the catalog: no line of our SQL has a part in it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Message:
    """One message of a topic as it was sent, and when the broker says it was."""

    topic: str
    payload: bytes
    received_at: datetime


@dataclass(frozen=True)
class View:
    user: int
    product: str
    at: datetime


@dataclass
class Oracle:
    """The log, the catalog as it is now, and the documents they amount to at a moment."""

    products: Mapping[str, Mapping[str, Any]]
    customers: Mapping[int, tuple[str | None, str | None]]
    now: datetime
    views: list[View] = field(default_factory=list)
    purchases: list[View] = field(default_factory=list)
    dead: list[Message] = field(default_factory=list)

    def read(self, log: Iterable[Message]) -> Oracle:
        for message in log:
            event = _event(message)
            if event is None:
                self.dead.append(message)
            elif message.topic == "purchases":
                self.purchases.append(event[1])
            elif event[0] == "page_view":
                self.views.append(event[1])
        return self

    def trending(self, most: int) -> dict[str, list[tuple[str, int]]]:
        """Window start → its most viewed products."""
        counts: dict[datetime, Counter[str]] = defaultdict(Counter)
        for view in self.views:
            counts[_hour(view.at)][view.product] += 1
        return {
            _key(window): _top(counted, most) for window, counted in counts.items() if window > self.now - 48 * HOUR
        }

    def trending_by_segment(self, most: int) -> dict[str, list[tuple[str, int]]]:
        """`window/age band/country` → products; only shoppers that are customers count."""
        counts: dict[tuple[datetime, str], Counter[str]] = defaultdict(Counter)
        for view in self.views:
            if view.user in self.customers:
                age, country = self.customers[view.user]
                counts[_hour(view.at), f"{age or 'unknown'}/{country or 'unknown'}"][view.product] += 1
        return {f"{_key(w)}/{s}": _top(counted, most) for (w, s), counted in counts.items() if w > self.now - 48 * HOUR}

    def also_bought(self) -> dict[str, list[tuple[str, int]]]:
        bought: dict[int, dict[str, datetime]] = defaultdict(dict)
        for purchase in self.purchases:
            if purchase.at > self.now - timedelta(days=90):
                basket = bought[purchase.user]
                basket[purchase.product] = max(purchase.at, basket.get(purchase.product, purchase.at))
        pairs: dict[str, Counter[str]] = defaultdict(Counter)
        for basket in bought.values():
            latest = sorted(basket, key=lambda p: (-basket[p].timestamp(), p))[:100]
            for one in latest:
                pairs[one].update(other for other in latest if other != one)
        found = {p: _top(Counter({o: n for o, n in c.items() if n >= 2}), 20) for p, c in pairs.items()}
        return {p: listed for p, listed in found.items() if listed}

    def candidates(self) -> dict[str, list[str]]:
        """Category → its fifty most viewed products in stock, by closed windows of the last 24 hours."""
        popularity: Counter[str] = Counter()
        for view in self.views:
            window = _hour(view.at)
            if window + HOUR <= self.now and window > self.now - 25 * HOUR:
                popularity[view.product] += 1
        shelves: dict[str, list[str]] = defaultdict(list)
        for product, row in self.products.items():
            if row["in_stock"] and row["category"] is not None:
                shelves[row["category"]].append(product)
        return {c: sorted(shelf, key=lambda p: (-popularity[p], p))[:50] for c, shelf in shelves.items()}

    def recommendations(self) -> dict[int, list[str]]:
        """What each shopper's list is once looked up against the candidates as they are now."""
        seen: dict[int, Counter[str]] = defaultdict(Counter)
        for view in self.views:
            if view.at > self.now - timedelta(hours=24):
                seen[view.user][view.product] += 1
        candidates = self.candidates()
        return {user: found for user, counts in seen.items() if (found := self._list(counts, candidates)) is not None}

    def _list(self, seen: Counter[str], candidates: Mapping[str, Sequence[str]]) -> list[str] | None:
        categories: Counter[str] = Counter()
        for product, count in seen.items():
            category = self.products.get(product, {}).get("category")
            if category is not None:
                categories[category] += count
        if not categories:
            return None
        top = [c for c, _ in _top(categories, 3)]
        unseen = [[p for p in candidates.get(c, ()) if p not in seen] for c in top]
        shares = [10, 6, 4]
        first = [p for found, share in zip(unseen, shares, strict=False) for p in found[:share]]
        rest = [p for found, share in zip(unseen, shares, strict=False) for p in found[share:]]
        return (first + rest)[:20]


def _event(message: Message) -> tuple[str, View] | None:
    """The event type and what was done to which product; None for a message that is to be a dead letter."""
    try:
        event = json.loads(message.payload.decode(), parse_constant=_refused)
        kind, user, product = event["event_type"], event["user_id"], event.get("product_id")
        at = datetime.fromisoformat(event["timestamp"].replace("Z", "+00:00"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    whole = isinstance(user, int) and not isinstance(user, bool) and abs(user) < 2**63
    in_time = at <= message.received_at + timedelta(minutes=5)
    needs_product = message.topic == "purchases" or kind in ("page_view", "click", "add_to_cart")
    if not (whole and in_time and isinstance(kind, str)) or (needs_product and not isinstance(product, str)):
        return None
    if message.topic == "purchases" and kind != "purchase":
        return None
    return kind, View(user, str(product), at)


def _refused(constant: str) -> None:
    raise ValueError(constant)


def _hour(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _key(window: datetime) -> str:
    return window.strftime("%Y-%m-%dT%H:%M:%SZ")


def _top(counts: Counter[str], most: int) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
