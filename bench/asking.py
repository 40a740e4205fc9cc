"""Asking the serving library, at a fixed rate and as fast as it answers, from the driver's process."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import redis

from bench.load import soon
from recs_platform.serving import keys
from recs_platform.serving.direct import OutputFormat, fetch, get_recommendations_direct
from recs_platform.serving.store import AsyncRecommendationStore, RecommendationStore

UNKNOWN = 10**12
"""Shoppers from here on have never been seen."""
TASKS = 32
"""Questions an asyncio client has under way at a time."""
TRENDING = "SELECT product_id, view_count FROM trending_products ORDER BY window_start DESC, rank LIMIT 10"

Ask = Callable[[int], object]


@dataclass(frozen=True)
class Asking:
    """What to ask, and where. `rate` is in questions a second; `users` have a list in Redis."""

    question: str
    redis_url: str
    state_dir: str
    users: tuple[int, ...]
    rate: float
    seconds: float
    threads: int = 1


class Questions:
    """Every question as a function of a running number, which chooses the shopper."""

    def __init__(self, asking: Asking) -> None:
        self.users = asking.users
        self.store = RecommendationStore(asking.redis_url)
        self.redis = redis.Redis.from_url(asking.redis_url)
        os.environ["RECS_STATE_DIR"] = asking.state_dir  # `fetch` asks the engine that the settings name
        version = self.redis.get(keys.pointer(keys.USER_RECOMMENDATIONS)) or b""
        assert isinstance(version, bytes)
        self.prefix = keys.prefix(keys.USER_RECOMMENDATIONS, version.decode())
        self.by_name: dict[str, Ask] = {
            "GET": lambda n: self.redis.get(self.prefix + str(self.user(n))),
            "hit": lambda n: self.store.get_user_recommendations(self.user(n)),
            "miss": lambda n: self.store.get_also_bought(f"no such product {n}"),
            "cold": lambda n: self.store.get_user_recommendations(UNKNOWN + n),
            "trending": lambda _: self.store.get_trending_products(),
            "direct list": lambda n: get_recommendations_direct(self.user(n)),
            "direct tuples": lambda _: fetch(TRENDING, format=OutputFormat.RAW),
            "direct DataFrame": lambda _: fetch(TRENDING, format=OutputFormat.DATAFRAME),
        }

    def user(self, n: int) -> int:
        return self.users[n % len(self.users)]

    def close(self) -> None:
        self.store.close()
        self.redis.close()


def at_a_rate(asking: Asking) -> list[float]:
    """Seconds each answer took from when its question was due; one that waits for the one before has waited too."""
    questions, latencies = Questions(asking), []
    ask = questions.by_name[asking.question]
    ask(0)  # connected
    count = max(1, round(asking.rate * asking.seconds))
    due = soon() + np.sort(np.random.default_rng(count).uniform(0, asking.seconds, count))
    for n, at in enumerate(due.tolist()):
        time.sleep(max(0.0, at - time.time()))
        ask(n)
        latencies.append(time.time() - at)
    questions.close()
    return latencies


def at_the_limit(asking: Asking) -> float:
    """Answers a second when every thread asks again as soon as it is answered."""
    questions = Questions(asking)
    ask = questions.by_name[asking.question]
    ask(0)
    began = time.perf_counter()

    def ask_on(thread: int) -> int:
        n = 0
        while time.perf_counter() - began < asking.seconds:
            ask(thread * 1_000_003 + n)
            n += 1
        return n

    with ThreadPoolExecutor(asking.threads) as threads:
        answers = sum(threads.map(ask_on, range(asking.threads)))
    took = time.perf_counter() - began
    questions.close()
    return answers / took


def at_the_limit_async(asking: Asking) -> float:
    """The same of one asyncio client with several questions under way."""
    return asyncio.run(_ask_async(asking))


async def _ask_async(asking: Asking) -> float:
    async with AsyncRecommendationStore(asking.redis_url) as store:
        began = time.perf_counter()

        async def ask_on(task: int) -> int:
            n = 0
            while time.perf_counter() - began < asking.seconds:
                user = asking.users[(task * 7919 + n) % len(asking.users)]
                await store.get_user_recommendations(UNKNOWN + n if asking.question == "cold" else user)
                n += 1
            return n

        answers = sum(await asyncio.gather(*(ask_on(task) for task in range(TASKS))))
        return answers / (time.perf_counter() - began)


def known_shoppers(redis_url: str, most: int = 2_000) -> tuple[int, ...]:
    """Some shoppers who have a list."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as connection:
        version: Any = connection.get(keys.pointer(keys.USER_RECOMMENDATIONS))
        found: list[int] = []
        for key in connection.scan_iter(keys.documents_pattern(keys.USER_RECOMMENDATIONS, version), count=1_000):
            taken = keys.parsed(key)
            found += [int(taken.row_key)] if taken else []
            if len(found) >= most:
                break
    return tuple(found)
