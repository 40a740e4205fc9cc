"""A small shop with the engine in this process: real Kafka, PostgreSQL and Redis, a clock of the test's own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import redis

from recs_platform.awaiting import wait_until
from recs_platform.catalog import Customer, Product, ensure_catalog, read_catalog, read_customers, seed
from recs_platform.catalog_carrier import CatalogTopics, write_files
from recs_platform.engines.local.database import Database
from recs_platform.engines.local.engine import Engine
from recs_platform.events import EventProducer
from recs_platform.pipeline import Pipeline
from recs_platform.serving import keys
from recs_platform.serving.connection import client
from recs_platform.settings import CDC, FILE, Settings
from recs_platform.topics import ensure_topics
from recs_platform_tests.oracle import Message, Oracle
from recs_platform_tests.sql_copies import sql_copy


class Shop:
    """Sends, changes, waits and reads; `log` is what was sent, for the oracle."""

    def __init__(
        self, directory: Path, kafka: str, postgres: str, redis_url: str, prefix: str, catalog: str = CDC
    ) -> None:
        self.kafka, self.postgres, self.redis_url, self.prefix = kafka, postgres, redis_url, prefix
        self.settings = Settings(
            state_dir=directory / "state", sql_dir=own_topics(directory / "sql", prefix, catalog),
            kafka_bootstrap_servers=kafka, postgres_url=postgres, redis_url=redis_url, replication_slot=f"{prefix}slot",
            publication=f"{prefix}pub", catalog=catalog, catalog_dir=directory / "catalog")  # fmt: skip
        self.log: list[Message] = []
        self.clock: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.redis = client(redis_url, 5)
        self.database: Database | None = None
        self.engine: Engine | None = None
        ensure_topics(kafka, Pipeline.of(self.settings).topics, 3)
        ensure_catalog(postgres)
        self._carried: dict[str | int, Product | Customer] = {}
        self._carry()

    def open(self) -> Engine:
        """Starts the engine on its file, as after any end of the process before."""
        path = self.settings.state_dir / "engine.duckdb"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.database = Database(path, "1GB")
        self.engine = Engine(self.settings, self.database, clock=lambda: self.clock())
        return self.engine

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.engine = None
        self.redis.close()

    def send(self, topic: str, payloads: Sequence[bytes | Mapping[str, Any]]) -> None:
        with EventProducer(self.kafka) as producer:
            for payload in payloads:
                raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
                key = (
                    str(payload["user_id"]).encode()
                    if not isinstance(payload, bytes) and "user_id" in payload
                    else None
                )
                producer.send_raw(self.prefix + topic, key, raw)
                self.log.append(Message(topic, raw, datetime.now(UTC)))

    def sql(self, statement: str, *params: object) -> None:
        with psycopg.connect(self.postgres, autocommit=True) as connection:
            connection.execute(statement, params or None)
        self._carry()

    def fill(self, products: Sequence[Product], customers: Sequence[Customer]) -> None:
        """Into tables that are empty."""
        seed(self.postgres, products, customers)
        self._carry()

    def _carry(self) -> None:
        """What has become of the catalog goes where the engine reads it."""
        if self.settings.catalog == CDC:
            return
        products, customers = read_catalog(self.postgres), read_customers(self.postgres)
        if self.settings.catalog == FILE:
            fresh = self.settings.state_dir / "fresh"
            write_files(fresh, products, customers)
            self.settings.catalog_dir.mkdir(exist_ok=True)
            for path in fresh.iterdir():
                path.replace(self.settings.catalog_dir / path.name)
            return
        now: dict[str | int, Product | Customer] = {p.product_id: p for p in products} | {
            c.user_id: c for c in customers
        }
        with EventProducer(self.kafka) as producer:
            topics = CatalogTopics(self.settings, producer)
            for key, row in self._carried.items():
                if key not in now:
                    topics.take_away(type(row), key)
            for key, row in now.items():
                if self._carried.get(key) != row:
                    topics.put(row)
        self._carried = now

    def settle(self, seconds: float = 30.0) -> None:
        """Rounds until all that was sent and changed is in Redis."""
        assert self.engine is not None
        assert self.database is not None
        marker = f"settled-{time.monotonic_ns()}"
        self.sql("INSERT INTO product_catalog (product_id, name, in_stock) VALUES (%s, 'marker', false)", marker)
        self._until(lambda: self._taken_in() and self._has_product(marker), seconds)
        self.sql("DELETE FROM product_catalog WHERE product_id = %s", marker)
        self._until(lambda: not self._has_product(marker) and self.engine.sink.problem is None, seconds)  # type: ignore[union-attr]

    def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        assert self.engine is not None
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not settled after {seconds} s: {self.engine.problems}"
            self.engine.round()

    def _taken_in(self) -> bool:
        assert self.database is not None
        row = self.database.connection.execute(
            "SELECT (SELECT count(*) FROM user_activity_raw) + (SELECT count(*) FROM purchases_raw)"
        ).fetchone()
        return row is not None and row[0] >= len(self.log)

    def _has_product(self, product_id: str) -> bool:
        return bool(self.documents("products").get(product_id))

    def documents(self, name: str) -> dict[str, dict[str, Any]]:
        return documents(self.redis, name)

    def oracle(self) -> Oracle:
        return oracle_of(self.postgres, self.clock()).read(self.log)


def documents(server: redis.Redis, name: str) -> dict[str, dict[str, Any]]:
    """Row key → document under the live version."""
    version = server.get(keys.pointer(name))
    prefix = f"recs:{name}:{version}:"
    found = sorted(server.scan_iter(match=prefix + "*", count=1000))
    values: Any = server.mget(found) if found else []
    return {key.removeprefix(prefix): json.loads(value) for key, value in zip(found, values, strict=True)}


def oracle_of(postgres: str, now: datetime) -> Oracle:
    """With the catalog as it is in PostgreSQL, and nothing read yet."""
    with psycopg.connect(postgres) as connection:
        products = {
            row[0]: {"category": row[1], "in_stock": row[2], "price": row[3]}
            for row in connection.execute("SELECT product_id, category, in_stock, price FROM product_catalog")
        }
        customers = {
            row[0]: (row[1], row[2]) for row in connection.execute("SELECT user_id, age_band, country FROM customers")
        }
    return Oracle(products, customers, now)


def eventually(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Waits until the condition holds."""
    assert wait_until(lambda: bool(condition()), seconds), f"it did not come about within {seconds} s"


def pairs(
    documents: Mapping[str, Mapping[str, Any]], count: str, field: str = "products"
) -> dict[str, list[tuple[str, int]]]:
    """Documents as the oracle tells them: row key → (product, count) in order."""
    return {key: [(p["product_id"], p[count]) for p in document[field]] for key, document in documents.items()}


def assert_redis_is_right(shop: Shop) -> None:
    """The invariant of every test of faults. Lists of shoppers are compared by `assert_lists_are_right`."""
    oracle = shop.oracle()
    assert_documents_are_right(oracle, shop.documents)
    assert shop.database is not None
    dead = shop.database.connection.execute("SELECT payload FROM dead_letters").fetchall()
    assert sorted(bytes(row[0]) for row in dead) == sorted(m.payload for m in oracle.dead)


def assert_documents_are_right(oracle: Oracle, found: Callable[[str], dict[str, dict[str, Any]]]) -> None:
    """What does not depend on when a shopper acted; `found` gives the documents of a name."""
    for name, expected in (("trending_products", oracle.trending), ("trending_by_segment", oracle.trending_by_segment)):
        assert pairs(found(name), "view_count") == expected(10)
        assert pairs(found(name), "view_count", "candidates") == expected(30)
    assert pairs(found("also_bought"), "shoppers") == oracle.also_bought()
    assert {p: (d["category"], d["in_stock"]) for p, d in found("products").items()} == {
        p: (row["category"], row["in_stock"]) for p, row in oracle.products.items()
    }


def assert_lists_are_right(shop: Shop) -> None:
    """Once each shopper has acted on settled candidates."""
    lists = {
        int(user): document["recommended_products"] for user, document in shop.documents("user_recommendations").items()
    }
    assert lists == shop.oracle().recommendations()


def own_topics(directory: Path, prefix: str, catalog: str) -> Path:
    """`sql/` with topics of this test's own, since the broker is shared."""
    return sql_copy(directory, lambda _, text: text.replace("topic = '", f"topic = '{prefix}"), catalog=catalog)
