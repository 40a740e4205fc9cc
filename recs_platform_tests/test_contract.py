"""The contract of `StreamEngine`: every engine gives these rows for this SQL. An engine is a row of `ENGINES`.

The pipeline is a small one of the suite's own, with one view for each construct the platform uses; the rows are
those RisingWave gives. Engines that cannot run here are skipped with the reason.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

from recs_platform.engines.base import StreamEngine
from recs_platform.engines.local.client import LocalEngine
from recs_platform.engines.local.server import EngineServer
from recs_platform.engines.risingwave.engine import RisingWaveEngine
from recs_platform.errors import EngineError, EngineUnavailable, QueryError
from recs_platform.serving.direct import OutputFormat
from recs_platform.serving.direct import fetch as fetch_directly
from recs_platform.settings import Settings
from recs_platform.stack.service import free_port
from recs_platform_tests.shop_floor import Shop, eventually

T0 = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)

VIEWS = {
    "steps": (
        "SELECT user_id, product_id, event_time, kafka_partition, kafka_offset, LAG(product_id, 1) OVER "
        "(PARTITION BY user_id ORDER BY event_time, kafka_offset) AS previous FROM user_activity WHERE event_type = 'page_view'"
    ),
    "weights": (
        "SELECT product_id, other, SUM(weight) AS weight FROM ("
        "SELECT previous AS product_id, product_id AS other, 1.0::double precision AS weight FROM steps UNION ALL "
        "SELECT product_id, previous, 0.5::double precision FROM steps) AS s "
        "WHERE product_id IS NOT NULL AND other IS NOT NULL AND product_id <> other GROUP BY product_id, other"
    ),
    "unbought": (
        "SELECT r.user_id, r.product_id FROM recent_views r LEFT JOIN purchases_by_shopper b "
        "ON r.user_id = b.user_id AND r.product_id = b.product_id WHERE b.product_id IS NULL"
    ),
    "by_kind": "SELECT event_type, COUNT(*) AS events, MIN(event_time) AS first_at FROM user_activity GROUP BY event_type",
    "shelf": "SELECT category, array_agg(product_id ORDER BY product_id) AS products FROM product_catalog "
    "WHERE in_stock AND category IS NOT NULL GROUP BY category",
}

CATALOG = [
    ("a1", "shoes", True), ("a2", "shoes", True), ("a3", "shoes", False), ("b1", "bags", True), ("b2", "bags", True),
    ("c1", None, True),
]  # fmt: skip


def view(user: object, product: object, minutes: int, kind: str = "page_view") -> dict[str, Any]:
    at = (T0 + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"event_type": kind, "user_id": user, "product_id": product, "timestamp": at}


EVENTS: list[bytes | dict[str, Any]] = [
    view(1, "a1", 1), view(1, "b1", 2), view(1, "a1", 3), view(2, "a1", 61), view(2, "nowhere", 62), view("7", 12, 5),
    view(1, "a2", 4, "click"), {"event_type": "search", "user_id": 1, "query": "red", "timestamp": "2026-01-01T00:00:00Z"},
    b"not json", view(5.5, "a1", 1), b'{"event_type": "page_view", "user_id": 8, "user_id": 9, "product_id": "a2", '
    + f'"timestamp": "{T0:%Y-%m-%dT%H:%M:%SZ}"}}'.encode(),
    b"[" * 2_000, b'{"event_type": ' + b"[" * 300 + b"]" * 300 + b"}",
]  # fmt: skip

ROWS: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
    "typed, text ids cast, the last of repeated fields": (
        "SELECT user_id, product_id FROM user_activity WHERE event_type = 'page_view' ORDER BY user_id, product_id",
        [(1, "a1"), (1, "a1"), (1, "b1"), (2, "a1"), (2, "nowhere"), (7, "12"), (9, "a2")],
    ),
    "dead letters with their reasons": (
        "SELECT reason, COUNT(*) FROM dead_letters GROUP BY reason ORDER BY reason",
        [("not a JSON object", 3), ("user_id missing or not an integer", 1)],
    ),
    "TUMBLE, ROW_NUMBER, ties by id": (
        "SELECT window_start, product_id, view_count, rank FROM trending_products ORDER BY window_start, rank",
        [(T0, "a1", 2, 1), (T0, "12", 1, 2), (T0, "a2", 1, 3), (T0, "b1", 1, 4),
         (T0 + timedelta(hours=1), "a1", 1, 1), (T0 + timedelta(hours=1), "nowhere", 1, 2)],
    ),
    "a join with SUM, casts and a rank": (
        "SELECT user_id, category, view_count, rank FROM user_categories ORDER BY user_id, rank",
        [(1, "shoes", 2, 1), (1, "bags", 1, 2), (2, "shoes", 1, 1), (9, "shoes", 1, 1)],
    ),
    "MAX … FILTER": (
        "SELECT user_id, first, second, third FROM user_top_categories ORDER BY user_id",
        [(1, "shoes", "bags", None), (2, "shoes", None, None), (9, "shoes", None, None)],
    ),
    "LEFT JOIN with COALESCE, array_agg in order": (
        "SELECT category, products FROM category_candidates ORDER BY category",
        [("bags", ["b1", "b2"]), ("shoes", ["a1", "a2"])],
    ),
    "LAG": ("SELECT product_id, previous FROM steps WHERE user_id = 1 ORDER BY event_time", [("a1", None), ("b1", "a1"), ("a1", "b1")]),
    "UNION ALL of weights": (
        "SELECT product_id, other, weight FROM weights ORDER BY 1, 2",
        [("a1", "b1", 1.5), ("a1", "nowhere", 1.0), ("b1", "a1", 1.5), ("nowhere", "a1", 0.5)],
    ),
    "an anti-join": ("SELECT user_id, product_id FROM unbought WHERE user_id = 1 ORDER BY 1, 2", [(1, "b1")]),
    "groups over all events": ("SELECT event_type, events FROM by_kind ORDER BY 1", [("click", 1), ("page_view", 7), ("search", 1)]),
    "a filter on a boolean": ("SELECT category, products FROM shelf ORDER BY 1", [("bags", ["b1", "b2"]), ("shoes", ["a1", "a2"])]),
    "a self join, counted": (
        "SELECT product_id, other_product_id, shoppers FROM also_bought ORDER BY 1, 2", [("a1", "b1", 2), ("b1", "a1", 2)],
    ),
}  # fmt: skip
PURCHASES = [view(u, p, 10, "purchase") for u, p in [(1, "a1"), (3, "a1"), (3, "b1"), (4, "a1"), (4, "b1")]]


@contextmanager
def local(shop: Shop) -> Iterator[StreamEngine]:
    """The local engine as a process of its own would run it: the loop in one thread, answers from another."""
    url = f"grpc://127.0.0.1:{free_port()}"
    settings = Settings(state_dir=shop.settings.state_dir, engine_url=url, engine_token="secret-token")
    engine = shop.open()
    server = EngineServer(engine, url, settings.engine_token)
    stop = threading.Event()
    loop = threading.Thread(target=engine.run, args=(stop,))
    loop.start()
    try:
        with LocalEngine(settings) as client:
            yield client
    finally:
        stop.set()
        loop.join()
        server.shutdown()


@contextmanager
def on_risingwave(shop: Shop) -> Iterator[StreamEngine]:
    """The RisingWave of $RECS_TEST_RISINGWAVE, in a database of its own that is dropped at the end.

    It must reach the test's servers, which listen on this machine's loopback; its version must read changes of the
    embedded PostgreSQL.
    """
    if not (url := os.environ.get("RECS_TEST_RISINGWAVE")):
        pytest.skip("RECS_TEST_RISINGWAVE is not set: no RisingWave to hold to the contract")
    database = f"t_{uuid4().hex[:12]}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {database}".encode())
        own = urlsplit(url)._replace(path=f"/{database}").geturl()
        with RisingWaveEngine(replace(shop.settings, engine="risingwave", risingwave_url=own)) as engine:
            try:
                engine.apply()
                yield engine
            finally:
                versions = engine.deployment().versions
                for version in reversed(versions):
                    engine.unpublish(version.name)
                for version in reversed(versions):
                    engine.drop(version)
        admin.execute(f"DROP DATABASE {database}".encode())


ENGINES = {"local": local, "risingwave": on_risingwave}


@pytest.fixture(params=list(ENGINES))
def engine(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    kafka_servers: str,
    postgres_url: str,
    redis_url: str,
    topic_prefix: str,
) -> Iterator[StreamEngine]:
    shop = Shop(tmp_path, kafka_servers, postgres_url, redis_url, topic_prefix)
    for name, query in VIEWS.items():
        (shop.settings.sql_dir / f"{name}.sql").write_text(f"CREATE MATERIALIZED VIEW {name} AS {query};")
    for product, category, in_stock in CATALOG:
        shop.sql(
            "INSERT INTO product_catalog (product_id, name, category, in_stock) VALUES (%s, 'n', %s, %s)",
            product,
            category,
            in_stock,
        )
    shop.send("user_activity", EVENTS)
    shop.send("purchases", PURCHASES)
    try:
        with ENGINES[request.param](shop) as engine:
            yield engine
    finally:
        shop.close()


def rows(engine: StreamEngine, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in engine.query(sql).to_pylist()]


def test_rows(engine: StreamEngine) -> None:
    """One shop for all of them: to bring it up takes longer than to ask."""
    total = "SELECT (SELECT COUNT(*) FROM user_activity) + (SELECT COUNT(*) FROM dead_letters) + (SELECT COUNT(*) FROM purchases)"
    eventually(lambda: rows(engine, total) == [(len(EVENTS) + len(PURCHASES),)])
    eventually(lambda: len(rows(engine, "SELECT product_id FROM product_catalog")) == len(CATALOG))
    wrong = {what: found for what, (sql, expected) in ROWS.items() if (found := rows(engine, sql)) != expected}
    assert wrong == {}


def test_verbs(engine: StreamEngine) -> None:
    assert engine.query("SELECT $1 + 1 AS two, $2 AS text", [1, "it's"]).to_pylist() == [{"two": 2, "text": "it's"}]
    deployed = engine.deployed()
    assert "trending_products" in deployed
    assert not engine.plan()
    plan = engine.apply(rebuild=["trending_products"])
    below = set() if engine.capabilities.rebuilds_in_place else {"trending_products_sink"}
    assert plan.creates == {"trending_products"} | below
    assert engine.deployed() == deployed


def test_there_is_nothing_to_go_back_to_at_first(engine: StreamEngine) -> None:
    with pytest.raises(EngineError, match="nothing to go back to"):
        engine.roll_back()


def test_a_status_names_what_is_deployed(engine: StreamEngine) -> None:
    status = engine.status()
    assert status["problems"] == {}
    assert {r["name"] for r in status["relations"]} == set(engine.deployed())


@pytest.mark.parametrize(
    ("sql", "reason"),
    [("SELECT * FROM nowhere", "nowhere"), ("SELEC 1", "SELEC"), ("DROP TABLE user_activity", "one SELECT"),
     ("SELECT 1; SELECT 2", "one SELECT"), ("SELECT * FROM read_csv('/etc/passwd')", "."), ("SELECT $1", ".")],
)  # fmt: skip
def test_queries_that_are_refused(engine: StreamEngine, sql: str, reason: str) -> None:
    with pytest.raises(QueryError, match=reason):
        engine.query(sql)


@pytest.fixture
def local_engine(engine: StreamEngine) -> LocalEngine:
    if not isinstance(engine, LocalEngine):
        pytest.skip("a matter of the local engine alone")
    return engine


def test_a_wrong_token_is_turned_away(local_engine: LocalEngine) -> None:
    with (
        LocalEngine(Settings(engine_url=local_engine.url, engine_token="wrong")) as stranger,
        pytest.raises(EngineError, match="RECS_ENGINE_TOKEN"),
    ):
        stranger.query("SELECT 1")


def test_whatever_is_refused_says_why_and_nothing_of_the_wire(local_engine: LocalEngine) -> None:
    with pytest.raises(EngineError) as refused:
        local_engine._action("forget", user_id="not a number")
    with pytest.raises(QueryError) as asked:
        local_engine.query("SELEC 1")
    for error in (refused, asked):
        assert "refused: " not in str(error.value)
        assert "Flight" not in str(error.value)


def test_an_engine_that_is_away_is_named() -> None:
    url = f"grpc://127.0.0.1:{free_port()}"
    with (
        LocalEngine(Settings(engine_url=url, engine_token="x"), timeout=2) as engine,
        pytest.raises(EngineUnavailable, match=url),
    ):
        engine.query("SELECT 1")


def test_direct_queries_give_frames_and_tuples(local_engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECS_ENGINE_URL", local_engine.url)
    monkeypatch.setenv("RECS_ENGINE_TOKEN", "secret-token")
    assert fetch_directly("SELECT ? AS a, ? AS b", [1, "x"], format=OutputFormat.RAW) == [(1, "x")]
    frame = fetch_directly("SELECT %s AS a", [7])
    assert list(frame.columns) == ["a"]
    assert frame["a"].tolist() == [7]
