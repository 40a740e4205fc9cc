"""Whether all say the same trends: a contender that is fast and wrong is not one."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
import redis

from bench.baselines import sorted_sets
from bench.baselines.contenders import PLATFORM, SETS
from bench.stack import live_versions
from recs_platform.serving import keys

SHOWN = 10
HOURS = 24
"""The newest so many hours are compared; the one that is running is among them."""

Counts = list[int]


def disagreements(redis_urls: Mapping[str, str]) -> dict[str, int]:
    """For each contender but the platform, the hours whose ten highest view counts are not the platform's."""
    ours = _of_documents(redis_urls[PLATFORM])
    hours = sorted(ours)[-HOURS:]
    found = {}
    for name, url in redis_urls.items():
        if name != PLATFORM:
            theirs = _of_sets(url, hours) if name == SETS else _of_documents(url)
            found[name] = sum(theirs.get(hour) != ours[hour] for hour in hours)
    return found


def _of_documents(url: str) -> dict[str, Counts]:
    version = live_versions(url, keys.TRENDING_PRODUCTS)[keys.TRENDING_PRODUCTS]
    prefix = keys.prefix(keys.TRENDING_PRODUCTS, version)
    with redis.Redis.from_url(url, decode_responses=True) as connection:
        names = list(connection.scan_iter(keys.documents_pattern(keys.TRENDING_PRODUCTS, version)))
        documents = [orjson.loads(raw or "{}") for raw in connection.mget(names)]
    counts = ([row["view_count"] for row in document["products"]] for document in documents)
    return dict(zip((name.removeprefix(prefix) for name in names), counts, strict=True))


def _of_sets(url: str, hours: list[str]) -> dict[str, Counts]:
    with redis.Redis.from_url(url, decode_responses=True) as connection:
        return {
            hour: [int(n) for _, n in connection.zrevrange(sorted_sets.views_of(hour), 0, SHOWN - 1, withscores=True)]
            for hour in hours
        }
