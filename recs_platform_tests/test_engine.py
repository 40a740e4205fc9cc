"""The local engine against the oracle, with real Kafka, PostgreSQL and Redis: whatever happens, Redis ends up right."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
import redis

from recs_platform.catalog import Product
from recs_platform.catalog_carrier import CatalogTopics
from recs_platform.engines.local import engine as engine_module
from recs_platform.engines.local import requests as requests_module
from recs_platform.engines.local.cdc import CatalogFeed
from recs_platform.engines.local.changes import CatalogTable
from recs_platform.engines.local.intake import KafkaIntake
from recs_platform.errors import EngineError, PipelineError, RecsError, SourceError
from recs_platform.events import Event, EventProducer, encode, topic_of
from recs_platform.serving.store import RecommendationStore
from recs_platform.settings import CDC, DEBEZIUM, FILE, UPSERTS
from recs_platform.shop import catalog, customers
from recs_platform.shoppers import history
from recs_platform_tests.feeding import utc
from recs_platform_tests.shop_floor import Shop, assert_lists_are_right, assert_redis_is_right, eventually, pairs

USERS = 40


@pytest.fixture
def shop(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    kafka_servers: str,
    postgres_url: str,
    redis_url: str,
    topic_prefix: str,
) -> Iterator[Shop]:
    shop = Shop(tmp_path, kafka_servers, postgres_url, redis_url, topic_prefix, getattr(request, "param", CDC))
    fill_catalog(shop)
    yield shop
    shop.close()


def fill_catalog(shop: Shop) -> None:
    """Sixty products, and all shoppers but the last five."""
    shop.fill(catalog(7, 60), customers(7, USERS - 5))


def day_of_traffic(events: int, seed: int = 7) -> list[Event]:
    return list(history(seed, USERS, catalog(7, 60), hours=30, events=events, until=datetime.now(UTC)))


def send(shop: Shop, events: list[Event]) -> None:
    for topic in ("user_activity", "purchases"):
        shop.send(topic, [encode(e) for e in events if topic_of(e) == topic])


def everybody_acts(shop: Shop) -> None:
    now = utc(datetime.now(UTC))
    shop.send("user_activity", [
        {"event_type": "page_view", "user_id": u, "product_id": "product_1", "timestamp": now} for u in range(1, USERS + 1)])  # fmt: skip


@pytest.mark.parametrize("shop", [CDC, UPSERTS, DEBEZIUM, FILE], indirect=True)
def test_a_day_of_traffic_with_catalog_changes(shop: Shop) -> None:
    shop.open()
    events = day_of_traffic(3_000)
    rng = Random(3)
    third = len(events) // 3
    for part in range(3):
        send(shop, events[part * third : (part + 1) * third])
        gone = rng.randint(2, 60)
        shop.sql("DELETE FROM product_catalog WHERE product_id = %s", f"product_{gone}")
        shop.sql(
            "UPDATE product_catalog SET in_stock = NOT in_stock WHERE product_id = %s", f"product_{rng.randint(2, 60)}"
        )
        shop.sql(
            "UPDATE product_catalog SET category = 'moved', price = 9.99 WHERE product_id = %s",
            f"product_{rng.randint(2, 60)}",
        )
        shop.sql(
            "UPDATE product_catalog SET product_id = %s WHERE product_id = %s",
            f"renamed_{part}",
            f"product_{rng.randint(2, 60)}",
        )
        shop.settle()
    assert_redis_is_right(shop)
    moment = datetime.now(UTC)
    shop.clock = lambda: moment  # a view must not turn a day old between the last tick and the oracle
    everybody_acts(shop)
    shop.settle()
    assert_redis_is_right(shop)
    assert_lists_are_right(shop)


@pytest.mark.parametrize("shop", [UPSERTS], indirect=True)
def test_a_catalog_that_never_stands_still_is_read_before_events_and_does_not_keep_them_out(shop: Shop) -> None:
    send(shop, day_of_traffic(100))
    engine = shop.open()
    assert engine._first, "the catalog goes first"
    deadline = time.monotonic() + 20
    with EventProducer(shop.kafka) as producer:
        topics = CatalogTopics(shop.settings, producer)
        while engine._first or len(shop.documents("trending_by_segment")) < len(shop.oracle().trending_by_segment(10)):
            assert time.monotonic() < deadline, engine.problems
            topics.put(Product("product_1", f"Hat {time.monotonic_ns()}", "hats"))
            producer.flush()
            engine.round()
    segments = shop.oracle().trending_by_segment(10)
    assert pairs(shop.documents("trending_by_segment"), "view_count") == segments, "all lookups found their customer"


@pytest.mark.parametrize("variable", ["RECS_TEST_KAFKA_PLAIN", "RECS_TEST_KAFKA_SCRAM"])
def test_a_kafka_with_tls_and_a_password(
    variable: str, tmp_path: Path, postgres_url: str, redis_url: str, topic_prefix: str
) -> None:
    address = os.environ.get(variable)
    if not address:
        pytest.skip(f"the embedded broker has neither: `make test-kafka` sets {variable}")
    shop = Shop(tmp_path, address, postgres_url, redis_url, topic_prefix, UPSERTS)
    shop.sql("INSERT INTO product_catalog (product_id, name) VALUES ('product_1', 'x')")
    shop.open()
    send(shop, day_of_traffic(300))
    shop.settle()
    assert_redis_is_right(shop)
    refused = address.replace("a%20secret", "another")
    intake = KafkaIntake(refused, ["user_activity"], 100)
    problem = intake.poll(1.0).problem
    assert problem is not None
    assert "another" not in problem
    shop.close()


def test_a_loop_that_stands_still_is_a_problem_that_says_what_it_is_at(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = shop.open()
    shop.settle()
    assert engine.standstill() == {}
    monkeypatch.setattr(engine_module, "STANDS", 0.0)
    assert engine.standstill()["engine"].startswith("the engine has been taking in messages for 0 s")
    engine.building = {"trending_products__1": "with the others"}
    assert engine.standstill() == {}, "a build may take long, and says so itself"
    monkeypatch.setattr(engine_module, "BUILDS", 0.0)
    assert engine.standstill(), "but not for ever"


def test_a_snapshot_that_fails_behind_a_new_slot_is_read_when_it_can_be(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance((engine := shop.open()).feed, CatalogFeed):
        pytest.skip("of a catalog that is read through a slot")
    shop.settle()
    snapshot, fails = CatalogFeed.snapshot, [True]

    def failing(feed: CatalogFeed, table: CatalogTable) -> Iterator[pa.Table]:
        if fails:
            fails.clear()
            raise SourceError("the connection was cut")
        return snapshot(feed, table)

    monkeypatch.setattr(CatalogFeed, "snapshot", failing)
    shop.sql("SELECT pg_drop_replication_slot(%s)", shop.settings.replication_slot)
    shop.sql("INSERT INTO product_catalog (product_id, name) VALUES ('between', 'two slots')")
    eventually(lambda: engine.round() >= 0 and "between" in shop.documents("products"))
    assert not fails


def test_a_table_that_no_file_reads_any_more_is_not_followed_any_more(shop: Shop) -> None:
    engine = shop.open()
    shop.settle()
    gone = {"customers", "trending_by_segment", "trending_by_segment_sink", "segment_views", "product_views_by_segment"}
    for path in shop.settings.sql_dir.rglob("*.sql"):
        if any(name in path.read_text() for name in gone):
            path.unlink()
    engine.apply()
    shop.sql("INSERT INTO customers VALUES (987, '25-34', 'DE')")
    shop.sql("INSERT INTO product_catalog (product_id, name) VALUES ('after', 'that')")
    eventually(lambda: engine.round() >= 0 and "after" in shop.documents("products"))


def test_what_is_not_come_to_in_time_is_not_done_later(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is at a long build while somebody asks for another one, and whoever looks sees that nothing is taken in."""
    monkeypatch.setattr(requests_module, "HELD_UP", 0.0)
    engine, stop, begun, may_end = shop.open(), threading.Event(), threading.Event(), threading.Event()
    done = list[str]()

    def build() -> str:
        begun.set()
        assert may_end.wait(30)
        return "built"

    with ThreadPoolExecutor(2) as pool:
        loop = pool.submit(engine.run, stop)
        answer = pool.submit(engine.ask, build)
        assert begun.wait(30)
        with pytest.raises(EngineError, match="changing what is deployed for 0 s, and this is not done"):
            engine.ask(lambda: done.append("again"), patience=0.1)
        eventually(lambda: engine.requests.held_up()[0] > 0)
        may_end.set()
        assert answer.result(30) == "built"
        assert engine.ask(lambda: "plan") == "plan"
        seconds, until = engine.requests.held_up()
        assert (seconds, done) == (0.0, [])
        assert 0 <= time.time() - until < 30
        stop.set()
        loop.result(30)
    with pytest.raises(EngineError, match="this is not done"):
        engine.ask(lambda: done.append("after the end"))
    assert done == []


def test_a_backlog_is_not_written_tick_by_tick(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of what one large tick writes, the next writes over; all is there at its end, or when it has been too long."""
    monkeypatch.setattr(engine_module, "MAX_MESSAGES", 400)
    monkeypatch.setattr(engine_module, "BACKLOG", 100)
    engine = shop.open()
    shop.settle()
    send(shop, day_of_traffic(3_000))
    ticks = dict.fromkeys((True, False), 0)
    while sum(ticks.values()) < 4:
        written = engine.sink.written
        if engine.round() >= 100:
            ticks[engine.sink.written == written] += 1
    assert ticks[True] >= 3
    monkeypatch.setattr(engine_module, "LONGEST_UNWRITTEN", 0.0)
    written = engine.sink.written
    engine.round()
    assert engine.sink.written > written
    shop.settle()
    assert_redis_is_right(shop)


def test_windows_expire_from_redis(shop: Shop) -> None:
    shop.open()
    send(shop, day_of_traffic(300))
    shop.settle()
    assert shop.documents("trending_products")
    later = datetime.now(UTC) + timedelta(hours=36)
    shop.clock = lambda: later
    shop.settle()
    assert_redis_is_right(shop)
    assert shop.documents("user_recommendations") == {}


def test_a_clock_that_was_ahead_and_is_set_back(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """All windows were emptied meanwhile: they are filled again, from a log that was not thrown away."""
    engine = shop.open()
    send(shop, day_of_traffic(600))
    moment = datetime.now(UTC)
    shop.clock = lambda: moment  # no last view may turn a day old between two looks at whose lists there are
    shop.settle()
    lists = shop.documents("user_recommendations").keys()
    assert lists
    for ahead in (timedelta(days=1, hours=1), timedelta(days=400)):
        shop.clock = lambda ahead=ahead: moment + ahead  # type: ignore[misc]
        assert shop.database is not None
        shop.settle()
        with monkeypatch.context() as patched:  # whoever sends meanwhile has the same clock
            patched.setitem(engine._newest, "recs_canary", shop.clock())
            engine._next["trim"] = 0.0
            engine.round()
        assert "ahead of the time that has passed" in engine.problems["clock"]
        assert shop.documents("user_recommendations") == {}
        shop.clock = lambda: moment
        engine._next["trim"] = 0.0
        shop.settle()
        assert "clock" not in engine.problems
        assert_redis_is_right(shop)
        assert shop.documents("user_recommendations").keys() == lists

    shop.clock = lambda: moment + timedelta(days=2)
    shop.settle()
    shop.engine = None
    engine.close()
    shop.clock = lambda: moment
    shop.open()
    everybody_acts(shop)
    shop.settle()
    assert_redis_is_right(shop)
    assert_lists_are_right(shop)


def test_setting_the_time_back_is_whole_or_not_at_all(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = shop.open()
    send(shop, day_of_traffic(300))
    moment = datetime.now(UTC)
    shop.clock = lambda: moment  # no last view may turn a day old between two looks at whose lists there are
    shop.settle()
    lists = shop.documents("user_recommendations").keys()
    shop.clock = lambda: moment + timedelta(days=3)
    shop.settle()
    assert shop.database is not None
    ahead = shop.database.facts.get("time")
    with monkeypatch.context() as patched:
        patched.setattr(shop.database, "_settle_kinds", lambda _: (_ for _ in ()).throw(KeyError("killed here")))
        with pytest.raises(KeyError):
            shop.database.set_back(moment)
    assert shop.database.facts.get("time") == ahead
    shop.engine = None
    engine.close()
    shop.clock = lambda: moment
    shop.open()
    shop.settle()
    assert shop.documents("user_recommendations").keys() == lists


def test_truncate_and_refill_of_the_catalog(shop: Shop) -> None:
    shop.open()
    send(shop, day_of_traffic(200))
    shop.settle()
    shop.sql("TRUNCATE product_catalog")
    shop.sql(
        "INSERT INTO product_catalog (product_id, name, category) VALUES ('product_1', 'x', 'only'), ('n', 'y', 'only')"
    )
    shop.settle()
    assert set(shop.documents("products")) == {"product_1", "n"}
    assert_redis_is_right(shop)


POISON = [
    b"not json", b"null", b"[1, 2]", b'"text"', b"{}", b"\xff\xfe{",
    b'{"event_type": "page_view", "user_id": NaN, "product_id": "product_1", "timestamp": "2026-01-01T00:00:00Z"}',
    b'{"event_type": "page_view", "user_id": "abc", "product_id": "product_1", "timestamp": "2026-01-01T00:00:00Z"}',
    b'{"event_type": "page_view", "user_id": 1.5, "product_id": "product_1", "timestamp": "2026-01-01T00:00:00Z"}',
    b'{"event_type": "page_view", "user_id": 1, "product_id": {"a": 1}, "timestamp": "2026-01-01T00:00:00Z"}',
    b'{"event_type": "page_view", "user_id": 1, "product_id": "product_1", "timestamp": "yesterday"}',
    b'{"event_type": "page_view", "user_id": 1, "timestamp": "2026-01-01T00:00:00Z"}',
    b'{"event_type": 5, "user_id": 1, "product_id": "product_1", "timestamp": "2026-01-01T00:00:00Z"}',
    b'{"user_id": 1, "product_id": "product_1", "timestamp": "2026-01-01T00:00:00Z"}',
]  # fmt: skip


def test_poison_is_kept_as_dead_letters_and_harms_nothing(shop: Shop) -> None:
    shop.open()
    events = day_of_traffic(200)
    send(shop, events[:100])
    ahead = {
        "event_type": "page_view",
        "user_id": 1,
        "product_id": "product_1",
        "timestamp": utc(datetime.now(UTC) + timedelta(days=1)),
    }
    shop.send("user_activity", [*POISON, json.dumps(ahead).encode()])
    shop.send(
        "purchases",
        [
            b"not json",
            b'{"event_type": "page_view", "user_id": 1, "product_id": "x", "timestamp": "2026-01-01T00:00:00Z"}',
        ],
    )
    send(shop, events[100:])
    shop.settle()
    assert_redis_is_right(shop)
    assert shop.database is not None
    reasons = dict(
        shop.database.connection.execute("SELECT reason, count(*) FROM dead_letters GROUP BY reason").fetchall()
    )
    assert reasons == {
        "not a JSON object": 7, "event_type missing": 2, "event_type is not text": 1, "user_id missing or not an integer": 2,
        "timestamp missing or unreadable": 1, "timestamp in the future": 1, "product_id missing": 1, "product_id is not text": 1,
        "event_type is not purchase": 1}  # fmt: skip


def test_a_megabyte_is_a_dead_letter_with_all_its_bytes(shop: Shop) -> None:
    shop.open()
    query = "x" * 980_000
    large = {"event_type": "search", "user_id": 1, "query": query, "timestamp": utc(datetime.now(UTC))}
    shop.send("user_activity", [large])
    shop.settle()
    assert shop.database is not None
    rows = shop.database.connection.execute("SELECT topic, reason, octet_length(payload) FROM dead_letters").fetchall()
    assert rows == [("user_activity", "larger than 64 KiB", len(shop.log[0].payload))]


def test_the_engine_is_killed_at_any_moment(shop: Shop) -> None:
    """A process that ends without a word leaves its file as it was last committed, and what it sent."""
    rng = Random(5)
    events = day_of_traffic(1_500)
    for part in range(5):
        engine = shop.open()
        send(shop, events[part * 300 : (part + 1) * 300])
        shop.sql(
            "UPDATE product_catalog SET in_stock = NOT in_stock WHERE product_id = %s", f"product_{rng.randint(2, 60)}"
        )
        for _ in range(rng.randint(0, 4)):
            engine.round()
        if part % 2:
            engine._flush = lambda messages: False  # type: ignore[method-assign]  # committed, and killed before Redis was told
            engine.round()
        engine.close()
    shop.open()
    shop.settle()
    assert_redis_is_right(shop)


def test_an_emptied_redis_is_filled_anew(shop: Shop) -> None:
    engine = shop.open()
    send(shop, day_of_traffic(300))
    shop.settle()
    redis.Redis.from_url(shop.redis_url).flushall()
    engine.sink._next_look = 0.0
    shop.settle()
    assert_redis_is_right(shop)


def test_a_redis_that_is_full_says_so_and_names_no_shopper(shop: Shop) -> None:
    engine = shop.open()
    shop.settle()
    send(shop, day_of_traffic(100))
    shop.redis.config_set("maxmemory", 1)
    try:
        shop._until(lambda: engine.sink.problem is not None, 30)
    finally:
        shop.redis.config_set("maxmemory", 0)
    assert "command not allowed when used memory" in str(engine.sink.problem)
    assert "recs:" not in str(engine.sink.problem)
    shop.settle()
    assert_redis_is_right(shop)


def test_orphans_go_when_the_keys_are_verified(shop: Shop) -> None:
    engine = shop.open()
    shop.settle()
    version = shop.redis.get("recs:products")
    shop.redis.set(f"recs:products:{version}:nobody", "{}")
    shop.redis.delete("recs:products")
    engine.sink._next_look = 0.0
    shop.settle()
    assert_redis_is_right(shop)


def test_a_sink_that_is_built_anew_mends_its_keys(shop: Shop) -> None:
    engine = shop.open()
    shop.settle()
    prefix = f"recs:products:{shop.redis.get('recs:products')}:"
    shop.redis.set(prefix + "nobody", "{}")
    shop.redis.set(prefix + "product_1", "{}")
    shop.redis.delete(prefix + "product_2")
    engine.apply(rebuild=["products_sink"])
    shop.settle()
    assert shop.redis.get("recs:products") == prefix.split(":")[2], "the same version"
    assert_redis_is_right(shop)


def test_a_changed_view_is_rebuilt_and_readers_go_over(shop: Shop) -> None:
    engine = shop.open()
    send(shop, day_of_traffic(300))
    shop.settle()
    before = shop.redis.get("recs:trending_products")
    path = shop.settings.sql_dir / "trending_products.sql"
    path.write_text(path.read_text().replace("rank <= 10", "rank <= 3"))
    plan = engine.apply()
    assert plan.creates == {"trending_products", "trending_products_sink"}
    shop.settle()
    assert shop.redis.get("recs:trending_products") != before
    assert {len(d["products"]) for d in shop.documents("trending_products").values()} <= {1, 2, 3}
    assert list(shop.redis.scan_iter(match=f"recs:trending_products:{before}*")) == []


def test_one_goes_back_to_what_was_deployed_before(shop: Shop) -> None:
    engine = shop.open()
    with pytest.raises(EngineError, match="nothing to go back to"):
        engine.roll_back()
    send(shop, day_of_traffic(300))
    shop.settle()
    before = shop.redis.get("recs:trending_products")
    path = shop.settings.sql_dir / "trending_products.sql"
    path.write_text(path.read_text().replace("rank <= 10", "rank <= 3"))
    engine.apply()
    shop.settle()
    assert shop.redis.get("recs:trending_products") != before

    back = engine.roll_back()
    assert back.creates == {"trending_products", "trending_products_sink"}
    shop.settle()
    assert shop.redis.get("recs:trending_products") == before
    assert_redis_is_right(shop)

    shop.engine = None
    engine.close()
    engine = shop.open()
    shop.settle()
    assert shop.redis.get("recs:trending_products") == before, (
        "a mere start does not deploy what one has gone back from"
    )
    assert engine.plan(), "the files differ still"
    engine.apply()
    shop.settle()
    assert shop.redis.get("recs:trending_products") != before


def test_a_part_of_what_has_changed_is_deployed_alone(shop: Shop) -> None:
    """With what must go along; the rest waits until somebody asks for it, also over a start."""
    engine = shop.open()
    send(shop, day_of_traffic(300))
    shop.settle()
    for name in ("trending_products", "trending_by_segment"):
        path = shop.settings.sql_dir / f"{name}.sql"
        path.write_text(path.read_text().replace("rank <= 10", "rank <= 3"))
    both = engine.plan()
    plan = engine.plan(only=["trending_products"])
    assert plan.creates == {"trending_products", "trending_products_sink"} < both.creates
    assert engine.apply(only=["trending_products"]).creates == plan.creates
    shop.settle()
    assert {len(d["products"]) for d in shop.documents("trending_products").values()} <= {1, 2, 3}
    rest = both.creates - plan.creates
    assert engine.plan().creates == rest

    shop.engine = None
    engine.close()
    engine = shop.open()
    assert engine.plan().creates == rest, "a mere start does not deploy what was left"
    with pytest.raises(PipelineError, match="no relation 'trendy'"):
        engine.plan(only=["trendy"])
    assert engine.apply().creates == rest
    assert not engine.plan()
    shop.settle()
    assert {len(d["products"]) for d in shop.documents("trending_by_segment").values()} <= {1, 2, 3}


def test_a_changed_catalog_table_is_read_before_what_looks_it_up_is_built(shop: Shop) -> None:
    engine = shop.open()
    send(shop, day_of_traffic(400))
    shop.settle()
    segments = shop.documents("trending_by_segment")
    before = shop.redis.get("recs:trending_by_segment")
    assert len(segments) > 3
    shop.sql("ALTER TABLE customers ADD COLUMN vip boolean")
    path = shop.settings.sql_dir / "customers.sql"
    path.write_text(path.read_text().replace("country VARCHAR", "country VARCHAR, vip BOOLEAN"))
    assert "trending_by_segment_sink" in engine.apply().creates
    shop.settle()
    assert shop.redis.get("recs:trending_by_segment") != before
    assert shop.documents("trending_by_segment") == segments
    assert_redis_is_right(shop)


def test_nothing_is_changed_while_a_changed_catalog_table_cannot_be_read(shop: Shop) -> None:
    engine = shop.open()
    shop.settle()
    before = shop.redis.get("recs:products")
    path = shop.settings.sql_dir / "product_catalog.sql"
    path.write_text(path.read_text().replace("description VARCHAR", "brand VARCHAR"))
    sink = shop.settings.sql_dir / "products_sink.sql"
    sink.write_text(sink.read_text().replace("price, image_url", "price, brand, image_url"))
    with pytest.raises(SourceError, match="has no column brand, which product_catalog reads"):
        engine.apply()
    shop.settle()
    assert shop.redis.get("recs:products") == before
    shop.sql("ALTER TABLE product_catalog ADD COLUMN brand text DEFAULT 'ours'")
    engine.apply()
    shop.settle()
    assert shop.documents("products")["product_1"]["brand"] == "ours"


def test_readers_stay_on_what_they_have_until_the_catalog_is_read(shop: Shop) -> None:
    """An engine that starts with other files while PostgreSQL does not hold what they read."""
    engine = shop.open()
    shop.settle()
    before = shop.redis.get("recs:products")
    shop.engine = None
    engine.close()
    path = shop.settings.sql_dir / "product_catalog.sql"
    path.write_text(path.read_text().replace("description VARCHAR,", ""))
    shop.sql("ALTER TABLE product_catalog RENAME COLUMN price TO cost")
    engine = shop.open()
    for _ in range(5):
        engine.round()
    assert shop.redis.get("recs:products") == before
    assert shop.redis.exists(f"recs:products:{before}:product_1")
    shop.sql("ALTER TABLE product_catalog RENAME COLUMN cost TO price")
    shop.settle()
    assert shop.redis.get("recs:products") != before
    assert_redis_is_right(shop)


def test_nobody_notices_a_view_being_rebuilt_under_load(shop: Shop) -> None:
    """Readers ask for every shopper without a pause while events come in: no error, no empty list, no hole."""
    engine = shop.open()
    traffic = day_of_traffic(1500)
    send(shop, traffic)
    shop.settle()
    everybody_acts(shop)
    shop.settle()
    shoppers = [
        int(user) for user, found in shop.documents("user_recommendations").items() if found["recommended_products"]
    ]
    assert len(shoppers) > USERS / 2
    path = shop.settings.sql_dir / "user_recommendations.sql"
    path.write_text(path.read_text().replace("$[0 to 19]", "$[0 to 4]"))
    stop, wrong, answers = threading.Event(), list[str](), Counter[int]()

    def read() -> None:
        with RecommendationStore(shop.redis_url) as store:
            while not stop.is_set():
                for shopper in shoppers:
                    try:
                        if not store.get_user_recommendations(shopper):
                            wrong.append(f"{shopper} has an empty list")
                        answers[shopper] += 1
                    except RecsError as error:
                        wrong.append(str(error))

    def click() -> None:
        while not stop.wait(0.05):
            send(shop, [replace(event, timestamp=datetime.now(UTC)) for event in traffic[:50]])

    threads = [threading.Thread(target=work) for work in (read, click)]
    for thread in threads:
        thread.start()
    try:
        before = shop.redis.get("recs:user_recommendations")
        engine.apply()
        shop._until(lambda: shop.redis.get("recs:user_recommendations") != before, 30)
        asked = answers.copy()
        shop._until(lambda: all(answers[shopper] > asked[shopper] for shopper in shoppers), 30)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert all(asked[shopper] for shopper in shoppers), "readers were there before the switch, and after it"
    assert max(len(d["recommended_products"]) for d in shop.documents("user_recommendations").values()) <= 5


def test_documents_carry_the_newest_event_they_reflect(shop: Shop) -> None:
    shop.open()
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)
    shop.send(
        "user_activity", [{"event_type": "page_view", "user_id": 3, "product_id": "product_1", "timestamp": utc(at)}]
    )
    shop.settle()
    (document,) = shop.documents("user_recommendations").values()
    assert document["user_id"] == 3
    assert document["as_of"] == at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert set(document) == {"user_id", "recommended_products", "as_of"}
