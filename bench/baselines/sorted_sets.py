"""Trending as one would write it by hand: a consumer, and a Redis sorted set for every hour.

`python -m bench.baselines.sorted_sets KAFKA REDIS_URL`, until it is ended. Read with ZREVRANGE 0 9. There is no more to
it: a crash between Redis and Kafka loses or doubles what was under way, and nothing can be rebuilt.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import orjson
import redis

from bench.baselines.reader import CONSUMED, Reader
from recs_platform.serving import keys

VERSION = "zset"
KEPT = 48 * 3600  # seconds


def main(kafka: str, redis_url: str) -> None:
    reader, connection = Reader(kafka), redis.Redis.from_url(redis_url)
    newest: dict[str, str] = {}
    connection.set(keys.pointer(keys.TRENDING_PRODUCTS), VERSION)
    while True:
        if events := reader.read():
            write(connection, events, newest, reader.count)


def views_of(hour: str) -> str:
    """The key of an hour's sorted set; the hour as in the platform's own keys."""
    return f"views:{hour}"


def write(connection: redis.Redis, events: list[Mapping[str, Any]], newest: dict[str, str], count: int) -> None:
    """One pipeline for a batch: a ZINCRBY for each product of an hour, and how new the hour is now."""
    views = Counter[tuple[str, str]]()
    for event in events:
        if event["event_type"] == "page_view":
            hour = event["timestamp"][:13] + ":00:00Z"
            views[hour, event["product_id"]] += 1
            newest[hour] = max(newest.get(hour, ""), event["timestamp"])
    pipeline = connection.pipeline(transaction=False)
    for (hour, product), seen in views.items():
        pipeline.zincrby(views_of(hour), seen, product)
    for hour in {hour for hour, _ in views}:
        pipeline.expire(views_of(hour), KEPT)
        pipeline.set(
            keys.document(keys.TRENDING_PRODUCTS, VERSION, hour), orjson.dumps({"as_of": newest[hour]}), ex=KEPT
        )
    pipeline.set(CONSUMED + keys.TRENDING_PRODUCTS, count)
    pipeline.execute()


if __name__ == "__main__":
    main(*sys.argv[1:])
