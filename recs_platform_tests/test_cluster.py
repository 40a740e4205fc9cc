"""The local engine and a Redis Cluster of three nodes; what the library reads of one is told by the tests of serving."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis

from recs_platform import doctor
from recs_platform.doctor import Verdict
from recs_platform.errors import StoreUnavailable
from recs_platform.forget import _in_redis
from recs_platform.pipeline import Pipeline
from recs_platform.serving.cluster import nodes_of
from recs_platform.serving.connection import client
from recs_platform.serving.store import AsyncRecommendationStore, RecommendationStore
from recs_platform.settings import Settings
from recs_platform_tests.filled_redis import Shop as FilledRedis
from recs_platform_tests.shop_floor import Shop, assert_lists_are_right, assert_redis_is_right, eventually
from recs_platform_tests.test_engine import day_of_traffic, everybody_acts, fill_catalog, send
from recs_platform_tests.valkey_cluster import redis_cluster


@pytest.fixture
def shop(tmp_path: Path, kafka_servers: str, postgres_url: str, cluster_url: str, topic_prefix: str) -> Iterator[Shop]:
    shop = Shop(tmp_path, kafka_servers, postgres_url, cluster_url, topic_prefix)
    fill_catalog(shop)
    yield shop
    shop.close()


def test_a_node_that_was_emptied_is_filled_anew(shop: Shop) -> None:
    engine = shop.open()
    send(shop, day_of_traffic(300))
    shop.settle()
    moment = datetime.now(UTC)
    shop.clock = lambda: moment
    everybody_acts(shop)
    shop.settle()
    assert_redis_is_right(shop)
    assert_lists_are_right(shop)
    for node in nodes_of(shop.redis):
        assert node.dbsize(), "each has its share"
        node.flushall()
        engine.sink._next_look = 0.0
        shop.settle()
        assert_redis_is_right(shop)
        assert_lists_are_right(shop)


def test_a_changed_view_goes_over_and_nothing_old_is_left(shop: Shop) -> None:
    engine = shop.open()
    send(shop, day_of_traffic(300))
    shop.settle()
    before = shop.redis.get("recs:trending_products")
    path = shop.settings.sql_dir / "trending_products.sql"
    path.write_text(path.read_text().replace("<= 10", "<= 3"))
    engine.close()
    shop.open()
    shop.settle()
    now = shop.redis.get("recs:trending_products")
    assert now != before
    assert not list(shop.redis.scan_iter(match=f"recs:trending_products:{before}*", count=1000))
    assert max(len(found["products"]) for found in shop.documents("trending_products").values()) == 3


def test_a_shopper_is_looked_for_on_every_node(shop: Shop) -> None:
    shop.open()
    everybody_acts(shop)
    shop.settle()
    traces = _in_redis(shop.settings, Pipeline.of(shop.settings), 7)
    assert traces["Redis", "user_recommendations"] == 1


def test_the_doctor_looks_at_every_node(cluster_url: str, tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, redis_url=cluster_url)
    found = [d for d in doctor.diagnose(settings) if d.thing.startswith("Redis")]
    assert "a cluster of 3 primaries" in found[0].words
    assert not [d for d in found if d.verdict is Verdict.ILL]
    alone = replace(settings, redis_url=cluster_url.partition(",")[0])
    assert ("it is a node of a cluster", "name several of its nodes in RECS_REDIS_URL, or add ?cluster=true") in [
        (d.words, d.remedy) for d in doctor.diagnose(alone) if d.thing == "Redis"
    ]


def test_after_a_failover_what_is_written_and_read_finds_the_new_primary(
    tmp_path: Path, kafka_servers: str, postgres_url: str, topic_prefix: str
) -> None:
    with (
        redis_cluster(tmp_path / "cluster", more=1) as cluster,
        closing(Shop(tmp_path, kafka_servers, postgres_url, cluster.url, topic_prefix)) as shop,
    ):
        shop.sql("INSERT INTO product_catalog (product_id, name, category, in_stock) VALUES ('p1', 'Hat', 'a', true)")
        shop.open()
        everybody_acts(shop)
        shop.settle()
        with RecommendationStore(cluster.url, timeout=1) as store:
            assert store.get_products(["p1"])
            cluster.processes[0].kill()
            shop.sql("UPDATE product_catalog SET name = 'Cap'")
            eventually(lambda: _has_followed(shop), 60)
            shop.settle()
            assert_redis_is_right(shop)
            eventually(lambda: _names(store) == ["Cap"])
        assert asyncio.run(_names_later(cluster.url)) == ["Cap"]


def _has_followed(shop: Shop) -> bool:
    assert shop.engine is not None
    shop.engine.round()
    with suppress(redis.RedisError):
        return shop.documents("products")["p1"]["name"] == "Cap" and shop.engine.sink.problem is None
    return False


def _names(store: RecommendationStore) -> list[str]:
    with suppress(StoreUnavailable):
        return [product.name for product in store.get_products(["p1"])]
    return []


async def _names_later(url: str) -> list[str]:
    async with AsyncRecommendationStore(url, timeout=1) as store:
        return [product.name for product in await store.get_products(["p1"])]


def test_a_node_that_hangs_costs_one_timeout_however_much_it_is_asked_for(tmp_path: Path) -> None:
    with redis_cluster(tmp_path / "cluster") as cluster:
        shop = FilledRedis(cluster.url)
        products = [f"p{i}" for i in range(100)]
        shop.stock(*products)
        with RecommendationStore(cluster.url, timeout=0.5) as store:
            assert len(store.get_products(products)) == 100
            cluster.processes[1].suspend()
            for ask in (lambda: store.get_products(products), lambda: asyncio.run(_ask(cluster.url, products))):
                began = time.monotonic()
                with pytest.raises(StoreUnavailable):
                    ask()
                assert time.monotonic() - began < 2.5, "a timeout for each of its thirty slots would be fifteen seconds"
            began = time.monotonic()
            with client(cluster.url, 0.5) as connection, connection.pipeline(transaction=False) as pipe:
                for product in products:
                    pipe.set(product, "1")
                with pytest.raises(redis.RedisError):
                    pipe.execute()
            assert time.monotonic() - began < 2.5


async def _ask(url: str, products: list[str]) -> None:
    async with AsyncRecommendationStore(url, timeout=0.5) as store:
        await store.get_products(products)


def test_while_a_slot_moves_to_a_node_that_nobody_knows_it_is_a_redis_error(tmp_path: Path) -> None:
    with redis_cluster(tmp_path / "cluster", more=2) as cluster, client(cluster.url, 2) as connection:
        slot = int(connection.execute_command("CLUSTER KEYSLOT", "recs:products"))
        source, target = cluster.clients[slot // (16384 // 3)], cluster.clients[4]
        ids = [node.execute_command("CLUSTER MYID") for node in (source, target)]
        target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[0])
        source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
        for ask in (lambda: connection.get("recs:products"), lambda: connection.mget(["recs:products", "recs:other"])):
            with pytest.raises(redis.RedisError):
                ask()
        for node in (source, target):
            node.execute_command("CLUSTER SETSLOT", slot, "STABLE")
        assert connection.mget(["recs:products", "recs:other"]) == [None, None]


def test_a_cluster_that_is_away_is_a_redis_error(cluster_url: str) -> None:
    with (
        client("redis://127.0.0.1:1,127.0.0.1:2", 1) as nobody,
        pytest.raises(redis.RedisError, match="reachable node"),
    ):
        nobody.get("a")
