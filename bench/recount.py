"""The views counted again in plain Python, from the events that were generated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import redis

from bench.stack import Engine, live_versions
from bench.traffic import Batch, product_id
from recs_platform.pipeline import Kind, Pipeline
from recs_platform.serving import keys

HOUR = 3_600_000_000  # microseconds
SHOWN = 10
EVERY = 97  # every so many-th shopper is counted again
DOCUMENTS = 1_000

Rows = set[tuple[Any, ...]]


@dataclass(frozen=True)
class Truth:
    """Trending products of every hour, and recent views of a sample of shoppers."""

    trending: Rows
    recent: Rows
    shoppers: tuple[int, ...]

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> Truth:
        hours, views = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
        for batch in batches:
            seen = batch.views
            products, users = batch.products[seen].tolist(), batch.users[seen].tolist()
            hours.update(zip((batch.times[seen] // HOUR).tolist(), products, strict=True))
            views.update((user, p) for user, p in zip(users, products, strict=True) if user % EVERY == 1)
        recent = {(user, product_id(product), count) for (user, product), count in views.items()}
        return cls(_trending(hours), recent, tuple(sorted({user for user, _ in views})))


def differences(engine: Engine, truth: Truth) -> dict[str, int]:
    """How many rows or documents are not what they should be, by what was looked at."""
    trending = engine.ask("SELECT window_start, product_id, view_count, rank FROM trending_products")
    recent = engine.ask(
        "SELECT user_id, product_id, view_count FROM recent_views"
        f" WHERE user_id IN ({', '.join(map(str, truth.shoppers)) or 'NULL'})"
    )
    found: Rows = {(_utc(r["window_start"]), r["product_id"], r["view_count"], r["rank"]) for r in trending}
    return {
        f"trending products, {len(truth.trending):,} rows": len(found ^ truth.trending),
        f"recent views of {len(truth.shoppers):,} shoppers, {len(truth.recent):,} rows": len(
            {tuple(row.values()) for row in recent} ^ truth.recent
        ),
        **_documents(engine),
    }


def _trending(hours: Counter[tuple[int, int]]) -> Rows:
    by_hour: dict[int, list[tuple[int, str]]] = {}
    for (hour, product), count in hours.items():
        by_hour.setdefault(hour, []).append((-count, product_id(product)))
    return {
        (datetime.fromtimestamp(hour * 3600, UTC), product, -count, rank)
        for hour, counted in by_hour.items()
        for rank, (count, product) in enumerate(sorted(counted)[:SHOWN], start=1)
    }


def _documents(engine: Engine) -> dict[str, int]:
    """For each sink keys too many or too few; and documents of shoppers that are not their rows."""
    found = {}
    with redis.Redis.from_url(engine.redis_url) as connection:
        for sink in Pipeline.of(engine.settings).of_kind(Kind.SINK):
            version = live_versions(engine.redis_url, sink.redis_name).get(sink.redis_name, "none")
            kept = sum(1 for _ in connection.scan_iter(keys.documents_pattern(sink.redis_name, version), count=5_000))
            (row,) = engine.ask(f"SELECT count(*) AS rows FROM {sink.name}")
            found[f"documents of {sink.redis_name}, {row['rows']:,} rows"] = abs(kept - int(row["rows"]))
        found["a sample of recommendations, document against row"] = _unlike(engine, connection)
    return found


def _unlike(engine: Engine, connection: redis.Redis) -> int:
    rows = engine.ask(f"SELECT user_id, recommended_products, as_of FROM user_recommendations LIMIT {DOCUMENTS}")
    version = live_versions(engine.redis_url, keys.USER_RECOMMENDATIONS)[keys.USER_RECOMMENDATIONS]
    names = [keys.document(keys.USER_RECOMMENDATIONS, version, str(row["user_id"])) for row in rows]
    documents: list[bytes | None] = connection.mget(names)  # type: ignore[assignment]
    return sum(raw is None or _told(orjson.loads(raw)) != _row(row) for raw, row in zip(documents, rows, strict=True))


def _told(document: dict[str, Any]) -> tuple[Any, ...]:
    return document["user_id"], document["recommended_products"], datetime.fromisoformat(document["as_of"])


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    listed = row["recommended_products"]
    return row["user_id"], orjson.loads(listed) if isinstance(listed, str) else listed, _utc(row["as_of"])


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)
