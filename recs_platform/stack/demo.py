"""One shopper who clicks: sends a page view to Kafka and waits for the list in Redis to know it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

import redis

from recs_platform.errors import RecsError
from recs_platform.events import Event, EventProducer
from recs_platform.serving import keys
from recs_platform.serving.connection import client
from recs_platform.serving.keys import Product
from recs_platform.serving.store import RecommendationStore
from recs_platform.settings import Settings

PATIENCE = 10.0  # seconds to wait for a list
LIST = 8  # products shown


@dataclass(frozen=True)
class Click:
    """A page view, the shopper's list before and after it, and the milliseconds from sending to the new list."""

    user_id: int
    product: Product
    before: tuple[Product, ...]
    after: tuple[Product, ...]
    milliseconds: float


class Clicker:
    """Clicks as one shopper that no simulated shopper is."""

    def __init__(self, settings: Settings) -> None:
        self.user_id = settings.simulate_users + 1
        self._producer = EventProducer(settings.require("kafka_bootstrap_servers"))
        self._store = RecommendationStore(settings.require_reader())
        self._redis = client(settings.require("redis_url"), 2)
        self._random = Random()

    def click(self, stop: threading.Event) -> Click | None:
        """One page view of something recommended; None where the list did not come in time. Raises `RecsError`."""
        before = self._listed()
        if not before:
            return None
        product = self._random.choice(before[:LIST])
        moment, sent = datetime.now(UTC), time.perf_counter()
        self._producer.send(Event("page_view", self.user_id, moment, product.product_id))
        self._producer.poll(0)
        if not self._await(moment, stop):
            return None
        milliseconds = (time.perf_counter() - sent) * 1000
        return Click(self.user_id, product, before[:LIST], self._listed()[:LIST], milliseconds)

    def _listed(self) -> tuple[Product, ...]:
        ids = self._store.get_user_recommendations(self.user_id)
        return tuple(product for product in self._store.get_products(ids) if product is not None)

    def _await(self, moment: datetime, stop: threading.Event) -> bool:
        """Whether the shopper's document came to reflect an event of that moment."""
        wanted = moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not stop.is_set():
            if self._as_of() >= wanted:
                return True
            time.sleep(0.002)
        return False

    def _as_of(self) -> str:
        try:
            version = self._redis.get(keys.pointer(keys.USER_RECOMMENDATIONS))
            text = self._redis.get(keys.document(keys.USER_RECOMMENDATIONS, str(version), str(self.user_id)))
        except redis.RedisError as error:
            raise RecsError(f"Redis does not answer: {type(error).__name__}") from None
        return str(keys.decoded(str(text))["as_of"]) if text else ""

    def close(self) -> None:
        self._store.close()
        self._redis.close()
