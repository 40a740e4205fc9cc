"""After every tick each view holds exactly what its whole query gives: the property the local engine stands on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlglot import exp

from recs_platform.engines.local import incremental, refresh, touching
from recs_platform.engines.local import outbox as outbox_module
from recs_platform.engines.local.arrivals import TickInput
from recs_platform.engines.local.database import Database
from recs_platform.engines.local.incremental import Mode, analyse
from recs_platform.engines.local.intake import Position
from recs_platform.engines.transpile import to_duckdb
from recs_platform.errors import UnsupportedSql
from recs_platform.pipeline import Pipeline
from recs_platform.settings import default_sql_dir
from recs_platform_tests.feeding import Feeder, Written, differences, documents, utc
from recs_platform_tests.sql_copies import sql_copy

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PRODUCTS = [f"p{i}" for i in range(8)]
CATEGORIES = ["shoes", "bags", "hats", None]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(default_sql_dir())


@pytest.fixture
def database(pipeline: Pipeline) -> Iterator[Database]:
    database = Database()
    database.deploy(pipeline, START)
    yield database
    database.close()


ages = st.one_of(
    st.integers(0, 3600), st.sampled_from([3599, 3600, 86_399, 86_400, 172_800, 176_400]), st.integers(0, 200_000)
)
views = st.fixed_dictionaries(
    {
        "event_type": st.sampled_from(["page_view", "page_view", "page_view", "click", "search"]),
        "user_id": st.integers(1, 4),
        "product_id": st.sampled_from([*PRODUCTS, "gone"]),
        "age": ages,
    }
)
products = st.fixed_dictionaries(
    {
        "product_id": st.sampled_from(PRODUCTS),
        "category": st.sampled_from(CATEGORIES),
        "in_stock": st.booleans(),
        "price": st.sampled_from([None, 1.5]),
        "name": st.just("n"),
    }
)
ticks = st.fixed_dictionaries(
    {
        "pause": st.sampled_from([0, 0, 0, 1, 30, 1800, 3600, 40_000, 90_000]),
        "activity": st.lists(views, max_size=8),
        "purchases": st.lists(views, max_size=6),
        "products": st.lists(products, max_size=3, unique_by=lambda p: p["product_id"]),
        "dropped": st.lists(st.sampled_from(PRODUCTS), max_size=1),
        "truncated": st.sampled_from([False, False, False, True]),
        "renewed": st.sampled_from([False, False, True]),
        "redis_is_there": st.sampled_from([True, True, False]),
    }
)


def sent(event: dict[str, object], now: datetime, **more: object) -> dict[str, object]:
    return (
        {k: v for k, v in event.items() if k != "age"}
        | {"timestamp": utc(now - timedelta(seconds=int(str(event["age"]))))}
        | more
    )


@given(history=st.lists(ticks, min_size=1, max_size=6))
@settings(phases=[Phase.generate], max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_incremental_equals_full_after_every_tick(
    history: list[dict[str, list[dict[str, object]]]], pipeline: Pipeline
) -> None:
    database, now = Database(), START
    database.deploy(pipeline, now)
    feeder, written = Feeder(database), Written(database)
    for tick in history:
        now += timedelta(seconds=int(str(tick["pause"])))
        if tick["renewed"] and tick["pause"]:
            feeder.begin_anew()
        kept: set[Any] = {p["product_id"] for p in tick["products"]}
        feeder.tick(
            now,
            [sent(e, now) for e in tick["activity"]],
            [sent(e, now, event_type="purchase") for e in tick["purchases"]],
            feeder.catalog_changes(
                "product_catalog",
                tick["products"],
                [d for d in tick["dropped"] if d not in kept],
                bool(tick["truncated"]),
            ),
        )
        if tick["redis_is_there"]:
            written.write()
            assert written.wrong() == []
        assert differences(database) == {}
    database.close()


def test_of_messages_with_the_same_offset_in_topics_one_after_the_other_each_leaves_alone(database: Database) -> None:
    feeder = Feeder(database)
    feeder.tick(START, catalog=feeder.catalog_changes("customers", [{"user_id": 1, "age_band": "a", "country": "b"}]))
    for age in (timedelta(hours=48, minutes=50), timedelta()):
        feeder.begin_anew()
        moment = START + timedelta(minutes=1) if not age else START
        view = {"event_type": "page_view", "user_id": 1, "product_id": f"p{age.days}", "timestamp": utc(moment - age)}
        feeder.tick(moment, [view])
    assert feeder.rows("SELECT product_id FROM segment_views ORDER BY 1") == [("p0",), ("p2",)]
    feeder.tick(START + timedelta(minutes=20))
    assert feeder.rows("SELECT product_id FROM segment_views") == [("p0",)], "what is too old goes, and nothing else"
    assert feeder.rows("SELECT count(*) FROM user_activity_raw") == [(2,)]


def test_rows_leave_by_the_clock_alone(database: Database) -> None:
    feeder = Feeder(database)
    feeder.tick(START, [{"event_type": "page_view", "user_id": 1, "product_id": "p1", "timestamp": utc(START)}])
    assert len(feeder.rows("FROM recent_views")) == 1

    feeder.tick(START + timedelta(hours=24))
    assert feeder.rows("FROM recent_views") == []
    assert len(feeder.rows("FROM trending_products")) == 1, "windows are kept 48 hours"

    feeder.tick(START + timedelta(hours=48))
    assert feeder.rows("FROM trending_products") == []
    assert differences(database) == {}


def test_a_tick_of_a_kind_that_was_there_before_translates_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeder, translated = Feeder(database), list[str]()

    def tick(hour: int) -> None:
        now = START + timedelta(hours=hour)
        view = {"event_type": "page_view", "user_id": hour, "product_id": "p1", "timestamp": utc(now)}
        bought = view | {"event_type": "purchase"}
        products = [{"product_id": "p1", "category": CATEGORIES[hour % 2], "in_stock": True}]
        feeder.tick(now, [view], [bought], feeder.catalog_changes("product_catalog", products))
        feeder.tick(now, [view], [bought])

    def noted(expression: exp.Expr, *more: Any) -> str:
        translated.append(expression.sql())
        return to_duckdb(expression, *more)

    for hour in (0, 1, 60, 61):  # from the third on rows leave as well
        tick(hour)
    for module in (refresh, touching):
        monkeypatch.setattr(module, "to_duckdb", noted)
    tick(62)
    assert translated == []


def test_a_window_expires_whole(database: Database) -> None:
    feeder = Feeder(database)
    minutes = [0, 20, 59]
    late = [START + timedelta(minutes=m) for m in minutes]
    feeder.tick(
        late[-1], [{"event_type": "page_view", "user_id": 1, "product_id": "p1", "timestamp": utc(t)} for t in late]
    )
    feeder.tick(START + timedelta(hours=47, minutes=59))
    assert feeder.rows("SELECT view_count FROM trending_products") == [(3,)]
    feeder.tick(START + timedelta(hours=48, minutes=1))
    assert feeder.rows("FROM trending_products") == []


def test_ten_of_a_window_ties_settled_by_product_id(database: Database) -> None:
    feeder = Feeder(database)
    ids = [f"p{i:02}" for i in range(14)]
    feeder.tick(
        START,
        [{"event_type": "page_view", "user_id": 1, "product_id": p, "timestamp": utc(START)} for p in reversed(ids)],
    )
    assert feeder.rows("SELECT product_id FROM trending_products ORDER BY rank") == [(p,) for p in ids[:10]]


def test_a_segment_is_the_one_the_shopper_was_in(database: Database) -> None:
    feeder = Feeder(database)
    view = {"event_type": "page_view", "user_id": 1, "product_id": "p1", "timestamp": utc(START)}
    young = {"user_id": 1, "age_band": "18-24", "country": "DE"}
    feeder.tick(START, catalog=feeder.catalog_changes("customers", [young]))
    feeder.tick(START + timedelta(seconds=1), [view])
    feeder.tick(START + timedelta(seconds=2), catalog=feeder.catalog_changes("customers", [young | {"country": "FR"}]))
    feeder.tick(START + timedelta(seconds=3), [view])
    assert feeder.rows("SELECT segment, view_count FROM trending_by_segment ORDER BY ALL") == [
        ("18-24/DE", 1),
        ("18-24/FR", 1),
    ]


def test_a_lookup_touches_only_the_shopper_who_acts(database: Database) -> None:
    feeder = Feeder(database)
    shelf = [{"product_id": p, "name": p, "category": "shoes", "in_stock": True} for p in PRODUCTS]
    feeder.tick(START, catalog=feeder.catalog_changes("product_catalog", shelf))
    for user in (1, 2):
        feeder.tick(START, [{"event_type": "page_view", "user_id": user, "product_id": "p0", "timestamp": utc(START)}])
    feeder.tick(START, catalog=feeder.catalog_changes("product_catalog", deletes=["p1"]))
    feeder.tick(START, [{"event_type": "page_view", "user_id": 2, "product_id": "p2", "timestamp": utc(START)}])
    rows: list[Any] = feeder.rows("SELECT user_id, recommended_products FROM user_recommendations")
    lists = dict(rows)
    assert lists[1] == ["p1", "p2", "p3", "p4", "p5", "p6", "p7"], "an idle shopper keeps the list of the last visit"
    assert lists[2] == ["p3", "p4", "p5", "p6", "p7"]


def test_what_redis_has_not_got_stays_dirty(database: Database) -> None:
    feeder, sink = Feeder(database), database.pipeline["products_sink"]

    def sell(product: str) -> None:
        feeder.tick(START, catalog=feeder.catalog_changes("product_catalog", [{"product_id": product, "name": "n"}]))

    def dirty() -> list[str]:
        return sorted(key.rpartition(":")[2] for key, _ in database.outbox.to_write(sink))

    sell("p1")
    sell("p2")
    assert dirty() == ["p1", "p2"]
    database.outbox.note_written()
    assert dirty() == []
    sell("p3")
    assert dirty() == ["p3"]
    sell("p4")
    assert dirty() == ["p3", "p4"], "the tick before was not written yet"


@pytest.mark.parametrize("price", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_null_in_a_document(price: str, database: Database) -> None:
    """JSON has none of these, and a reader that holds itself to it would refuse the whole document."""
    feeder, sink = Feeder(database), database.pipeline["products_sink"]
    row = {"product_id": "p", "name": "n", "price": price}
    feeder.tick(START, catalog=feeder.catalog_changes("product_catalog", [row]))
    ((_, document),) = database.outbox.to_write(sink)
    assert document is not None
    assert json.loads(document)["price"] is None
    assert list(documents(database, sink).values()) == [document]


def test_rows_survive_when_the_log_is_trimmed(database: Database) -> None:
    feeder = Feeder(database)
    feeder.tick(
        START, [{"event_type": "page_view", "user_id": 1, "product_id": "p1", "timestamp": utc(START)}, b"not json"]
    )
    database.trim_logs(START + timedelta(seconds=1))
    feeder.tick(START + timedelta(seconds=2))
    assert feeder.rows("SELECT count(*) FROM user_activity_raw") == [(0,)]
    assert feeder.rows("SELECT count(*) FROM user_activity") == [(1,)]
    assert feeder.rows("SELECT reason FROM dead_letters") == [("not a JSON object",)]


def test_a_clock_that_is_set_back_takes_nothing_that_only_the_log_has_forgotten(database: Database) -> None:
    feeder = Feeder(database)
    for moment in (START - timedelta(days=20), START):
        bought = {
            "event_type": "purchase",
            "user_id": 1,
            "product_id": f"p{moment.day}",
            "timestamp": utc(moment),
            "quantity": 1,
        }
        feeder.tick(moment, purchases=[bought, b"not json"])
    database.trim_logs(START - timedelta(days=8))
    seen = {"event_type": "page_view", "user_id": 1, "product_id": "p1", "timestamp": utc(START)}
    feeder.tick(START, [seen])
    wanted = {
        name: feeder.rows(f"SELECT * FROM {name} ORDER BY ALL") for name in ("purchases", "also_bought", "dead_letters")
    }
    assert len(wanted["purchases"]) == 2
    feeder.tick(START + timedelta(days=120))
    assert feeder.rows("SELECT * FROM purchases") == []
    database.set_back(START)
    assert feeder.rows("SELECT product_id FROM user_activity") == [("p1",)], (
        "what the clock took comes back from the log"
    )
    feeder.tick(START + timedelta(minutes=5), purchases=[bought])
    database.set_back(START + timedelta(minutes=1))
    assert len(feeder.rows("SELECT 1 FROM purchases")) == 2, "nothing that stands goes, and nothing is there twice"
    assert differences(database) == {}


def test_a_source_that_is_another_one_is_read_from_its_beginning(tmp_path: Path) -> None:
    database, sql = Database(), sql_copy(tmp_path)
    database.deploy(Pipeline.load(sql), START)
    positions = [Position("user_activity", 0, 5, "a"), Position("purchases", 0, 7, "b")]
    database.tick(START, TickInput(positions=positions))
    source = next(sql.rglob("user_activity_raw.sql"))
    source.write_text(
        source.read_text().replace("scan.startup.mode", "properties.client.id = 'other', scan.startup.mode")
    )
    database.deploy(Pipeline.load(sql), START, rebuild=["purchases_raw"])
    assert database.bookmarks.positions() == positions[1:], "the other one has the rows that it had"
    database.close()


def test_a_number_that_is_too_large_ends_no_tick(tmp_path: Path) -> None:
    sql = sql_copy(tmp_path)
    for name, query in {
        "sums": "SELECT product_id, SUM(quantity)::bigint AS quantity FROM purchases GROUP BY product_id",
        "parts": "SELECT kafka_partition, kafka_offset, quantity * 4 AS four, 6 / (quantity - 1) AS shares FROM purchases",
    }.items():
        (sql / f"{name}.sql").write_text(f"CREATE MATERIALIZED VIEW {name} AS {query};")
    database = Database()
    database.deploy(Pipeline.load(sql), START)
    feeder = Feeder(database)
    bought = {"event_type": "purchase", "user_id": 1, "product_id": "p1", "timestamp": utc(START)}
    for quantity in (2**62, 2**62, 1):
        feeder.tick(START, purchases=[bought | {"quantity": quantity}])
    assert feeder.rows("SELECT four, shares FROM parts ORDER BY kafka_offset") == [(None, 0), (None, 0), (4, None)]
    database.close()


def test_keys_are_noted_once_while_redis_is_away(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "COMPACTED", 4)
    feeder, sink = Feeder(database), database.pipeline["products_sink"]
    for price in range(6):
        rows: list[dict[str, object]] = [{"product_id": "p1", "name": "n", "price": price}]
        feeder.tick(START, catalog=feeder.catalog_changes("product_catalog", rows))
    before = database.outbox.to_write(sink)
    database.compact()
    assert database.outbox.to_write(sink) == before
    assert feeder.rows(f"SELECT count(*) FROM recs.dirty WHERE sink = '{sink.physical_name}'") == [(1,)]


def test_what_an_older_release_deployed_and_this_one_refuses_can_be_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql, query = (
        sql_copy(tmp_path / "sql"),
        "SELECT kafka_offset FROM user_activity_parsed UNION SELECT kafka_offset FROM purchases_parsed",
    )
    (sql / "offsets.sql").write_text(f"CREATE MATERIALIZED VIEW offsets AS {query};")
    with monkeypatch.context() as older:
        older.setattr(incremental, "_check_appended", lambda analysis: None)
        former = Database(tmp_path / "engine.duckdb", "1GB")
        former.deploy(Pipeline.load(sql), START)
        former.close()
    (sql / "offsets.sql").write_text(f"CREATE MATERIALIZED VIEW offsets AS {query.replace('UNION', 'UNION ALL')};")
    database = Database(tmp_path / "engine.duckdb", "1GB")
    database.deploy(Pipeline.load(sql), START)
    Feeder(database).tick(START, [b"x"])
    assert database.connection.execute("SELECT * FROM offsets").fetchall() == [("0",)]
    database.close()


def test_a_row_without_a_key_keeps_no_other_from_redis(tmp_path: Path) -> None:
    sql = sql_copy(tmp_path)
    (sql / "categories_sink.sql").write_text(
        "CREATE SINK categories_sink AS SELECT 'recs:categories:${version}:' || category AS key, COUNT(*) AS n FROM product_catalog "
        "GROUP BY category WITH (connector = 'redis', primary_key = 'key', redis.url = '${redis_url}') "
        "FORMAT UPSERT ENCODE JSON (jsonb.handling.mode = 'dynamic') KEY ENCODE TEXT;"
    )
    database = Database()
    database.deploy(Pipeline.load(sql), START)
    feeder, sink = Feeder(database), database.pipeline["categories_sink"]
    rows = [{"product_id": "p1", "name": "n"}, {"product_id": "p2", "name": "n", "category": "hats"}]
    feeder.tick(START, catalog=feeder.catalog_changes("product_catalog", rows))
    assert [key.rpartition(":")[2] for key, _ in database.outbox.to_write(sink)] == ["hats"]
    assert database.outbox.keyless == {"categories_sink"}
    assert len(documents(database, sink)) == 1
    database.close()


@pytest.mark.parametrize(
    ("name", "mode", "key"),
    [
        ("user_activity", Mode.APPEND, None),
        ("dead_letters", Mode.APPEND, None),
        ("segment_views", Mode.LINEAR, ("kafka_partition", "kafka_offset", "received_at")),
        ("user_activity_parsed", Mode.PASSING, None),
        ("product_views_by_window", Mode.ADDITIVE, ("window_start", "product_id")),
        ("user_last_view", Mode.ADDITIVE, ("user_id",)),
        ("trending_candidates", Mode.TOP, ("window_start",)),
        ("trending_products", Mode.DERIVED, None),
        ("user_recommendations_sink", Mode.DERIVED, None),
        ("trending_products_sink", Mode.DOCUMENTS, ("window_start",)),
        ("also_bought_sink", Mode.DOCUMENTS, ("product_id",)),
        ("category_lists", Mode.LINEAR, ("category",)),
        ("category_candidates", Mode.KEYED, ("category",)),
        ("also_bought", Mode.KEYED, ("product_id",)),
        ("user_recommendations", Mode.KEYED, ("user_id",)),
    ],
)
def test_the_refresh_key_is_found(pipeline: Pipeline, name: str, mode: Mode, key: tuple[str, ...] | None) -> None:
    analysis = analyse(pipeline[name], pipeline)
    assert analysis.mode is mode
    if key is not None:
        assert analysis.key == key


def test_no_view_of_the_pipeline_is_recomputed_in_full(database: Database) -> None:
    assert [r.relation.name for r in database.refreshers if r.mode is Mode.FULL] == []


RANKED = {
    "two_most_seen": (
        "SELECT window_start AS hour, product_id, view_count AS views, place FROM (SELECT window_start, product_id, view_count, "
        "ROW_NUMBER() OVER (PARTITION BY window_start ORDER BY view_count DESC, product_id) AS place "
        "FROM product_views_by_window WHERE view_count <> 2) AS ranked WHERE place <= 2"
    ),
    "cheapest_of_category": (
        "SELECT category, product_id, price, place FROM (SELECT c.category, c.product_id, c.price, ROW_NUMBER() OVER "
        "(PARTITION BY c.category ORDER BY c.price DESC, c.product_id DESC) AS place FROM product_catalog c) AS ranked "
        "WHERE place <= 1"
    ),
}
VARIANTS = RANKED | {
    "joined_outer": (
        "SELECT p.product_id, p.name, COALESCE(v.view_count, 0) AS view_count FROM product_catalog p "
        "LEFT JOIN product_popularity v ON p.product_id = v.product_id"
    ),
    "counted_in_all": "SELECT COUNT(*) AS views, MAX(event_time) AS last FROM user_activity WHERE event_type = 'page_view'",
    "by_category": (
        "SELECT p.category, COUNT(*) AS views, MIN(a.event_time) AS first_view FROM user_activity a "
        "JOIN product_catalog p ON a.product_id = p.product_id WHERE a.event_time > NOW() - INTERVAL '2 hours' GROUP BY p.category"
    ),
    "both_kinds": (
        "SELECT user_id, product_id, COUNT(*) AS times FROM (SELECT user_id, product_id FROM user_activity "
        "UNION ALL SELECT user_id, product_id FROM purchases) AS acts GROUP BY user_id, product_id"
    ),
    "steps": (
        "SELECT user_id, product_id, event_time, kafka_offset, LAG(product_id, 1) OVER "
        "(PARTITION BY user_id ORDER BY event_time, kafka_offset) AS previous FROM user_activity WHERE event_type = 'page_view'"
    ),
    "never_bought": (
        "SELECT r.user_id, r.product_id FROM recent_views r LEFT JOIN purchases_by_shopper b "
        "ON r.user_id = b.user_id AND r.product_id = b.product_id WHERE b.product_id IS NULL"
    ),
    "bought_by_category": (
        "SELECT p.category, COUNT(*) AS times FROM purchases b LEFT JOIN customers c ON b.user_id = c.user_id "
        "JOIN product_catalog p ON b.product_id = p.product_id GROUP BY p.category"
    ),
    "told_twice": (
        "SELECT 1 AS weight, user_id, product_id FROM recent_views UNION ALL "
        "SELECT 1 AS weight, user_id, product_id FROM purchases_by_shopper"
    ),
    "told_apart": (
        "SELECT 1 AS weight, user_id, product_id FROM recent_views UNION ALL "
        "SELECT 2 AS weight, user_id, product_id FROM purchases_by_shopper"
    ),
    "kinds_seen": (
        "SELECT user_id, COUNT(*) AS kinds FROM (SELECT DISTINCT user_id, product_id FROM user_activity) AS x GROUP BY user_id"
    ),
    "worth": "SELECT product_id, SUM(user_id::numeric * 0.4)::bigint AS worth FROM purchases GROUP BY product_id",
    "closed_hours": (
        "SELECT window_start, COUNT(*) AS n FROM TUMBLE(user_activity, event_time, INTERVAL '1 hour') "
        "WHERE window_start + INTERVAL '1 hour' <= NOW() GROUP BY window_start"
    ),
    "hours_lately": (
        "SELECT window_start, product_id, COUNT(*) AS n FROM TUMBLE(user_activity, event_time, INTERVAL '1 hour') "
        "WHERE window_start + INTERVAL '1 hour' > NOW() - INTERVAL '2 hours' GROUP BY window_start, product_id"
    ),
    "beside_those_of_others": (
        "SELECT a.window_start, a.product_id, a.view_count, b.n FROM product_views_by_window a LEFT JOIN (SELECT window_start, "
        "COUNT(*) AS n FROM product_views_by_window WHERE view_count > 1 GROUP BY window_start) b "
        "ON a.window_start = b.window_start WHERE a.window_start > NOW() - INTERVAL '3 hours'"
    ),
    "old_enough": (
        "SELECT product_id, event_time, kafka_partition, kafka_offset FROM user_activity "
        "WHERE event_time <= NOW() - INTERVAL '1 hour'"
    ),
}


def ranking(**change: str) -> str:
    """The query of `two_most_seen`, a part of it written otherwise."""
    parts = {
        "columns": "window_start, product_id, view_count, place",
        "ranks": "ROW_NUMBER()",
        "partition": "window_start",
        "order": "view_count DESC, product_id",
        "inner": "",
        "kept": "place <= 2",
    } | change
    return (
        "SELECT {columns} FROM (SELECT window_start, product_id, view_count, {ranks} OVER (PARTITION BY {partition} "
        "ORDER BY {order}) AS place FROM product_views_by_window{inner}) AS ranked WHERE {kept}"
    ).format(**parts)


@pytest.mark.parametrize(
    ("query", "mode"),
    [
        (ranking(), Mode.TOP),
        (ranking(inner=" WHERE view_count > 1"), Mode.TOP),
        (ranking(order="view_count DESC"), Mode.KEYED),  # a tie may be settled either way
        (ranking(order="-view_count, product_id"), Mode.KEYED),
        (ranking(ranks="RANK()"), Mode.KEYED),  # may be more than two
        (ranking(kept="place <= 2 AND view_count > 1"), Mode.KEYED),
        (ranking(kept="place < 3"), Mode.KEYED),
        (ranking(columns="window_start, product_id, place"), Mode.KEYED),  # what it is ranked by is not kept
        (ranking(columns="window_start, product_id, view_count"), Mode.KEYED),
        (ranking(inner=" WHERE window_start > NOW() - INTERVAL '1 hour'"), Mode.KEYED),
    ],
)
def test_a_ranking_is_kept_by_itself_where_what_it_keeps_tells_enough(tmp_path: Path, query: str, mode: Mode) -> None:
    sql_copy(tmp_path)
    (tmp_path / "ranking.sql").write_text(f"CREATE MATERIALIZED VIEW ranking AS {query};")
    pipeline = Pipeline.load(tmp_path)
    assert analyse(pipeline["ranking"], pipeline).mode == mode


def test_a_sink_that_looks_at_the_time_keeps_its_rows(tmp_path: Path) -> None:
    """For whoever looks at it between two ticks: there is no NOW() then."""
    (sql_copy(tmp_path) / "late_sink.sql").write_text(
        "CREATE SINK late_sink AS SELECT 'recs:late:${version}:' || product_id AS key, COUNT(*) AS views FROM product_views_by_window "
        "WHERE last_view > NOW() - INTERVAL '1 hour' GROUP BY product_id WITH (connector = 'redis', primary_key = 'key')"
    )
    database = Database()
    database.deploy(Pipeline.load(tmp_path), START)
    modes = {r.relation.name: r.mode for r in database.refreshers}
    assert modes["late_sink"] is Mode.KEYED
    assert modes["trending_products_sink"] is modes["canary_sink"] is Mode.DOCUMENTS
    with database.snapshot() as cursor:
        assert cursor.execute("SELECT count(*) FROM late_sink").fetchall() == [(0,)]
    database.close()


@pytest.mark.parametrize("name", RANKED)
def test_rows_move_up_when_one_of_the_first_leaves(name: str, wider: Pipeline) -> None:
    assert analyse(wider[name], wider).mode == Mode.TOP
    database, now = Database(), START
    database.deploy(wider, now)
    feeder = Feeder(database)

    def views(*products: str) -> list[dict[str, object]]:
        return [{"event_type": "page_view", "user_id": 1, "product_id": p, "timestamp": utc(now)} for p in products]

    def shelf(prices: dict[str, float | None]) -> list[dict[str, object]]:
        return [{"product_id": p, "name": p, "category": None, "price": price} for p, price in prices.items()]

    ticks: list[tuple[list[str], dict[str, float | None], list[str]]] = [
        (["p1", "p2", "p3"], {"p1": 3.0, "p2": 2.0, "p3": None}, []),
        (["p3"], {"p1": 1.0}, []),  # by now two views: below, and it falls behind
        (["p3", "p4"], {"p4": 9.0}, ["p2"]),
        ([], {}, ["p4", "p1"]),
        ([], {"p3": None}, ["p3"]),
    ]
    for products, prices, deletes in ticks:
        changes = feeder.catalog_changes("product_catalog", shelf(prices), [d for d in deletes if d not in prices])
        feeder.tick(now, views(*products), catalog=changes)
        assert differences(database) == {}
    database.close()


@given(history=st.lists(ticks, min_size=1, max_size=5))
@settings(phases=[Phase.generate], max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_incremental_equals_full_for_other_shapes_of_query(
    history: list[dict[str, list[dict[str, object]]]], wider: Pipeline
) -> None:
    test_incremental_equals_full_after_every_tick.hypothesis.inner_test(history, wider)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def wider(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The pipeline with a view more for each shape of query."""
    directory = sql_copy(tmp_path_factory.mktemp("sql"))
    for name, query in VARIANTS.items():
        (directory / f"{name}.sql").write_text(f"CREATE MATERIALIZED VIEW {name} AS {query};")
    return Pipeline.load(directory)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (
            "SELECT segment, COUNT(*) AS n FROM (SELECT c.country AS segment FROM user_activity a "
            "JOIN customers FOR SYSTEM_TIME AS OF PROCTIME() AS c ON a.user_id = c.user_id) AS s GROUP BY segment",
            "lookup join",
        ),
        (
            "SELECT user_id, received_at FROM user_activity_parsed WHERE received_at > NOW() - INTERVAL '1 hour' "
            "UNION ALL SELECT user_id, received_at FROM purchases_parsed WHERE received_at > NOW() - INTERVAL '3 days'".replace(
                "user_id", "kafka_offset"
            ),
            "must filter by time alike",
        ),
        (
            "SELECT kafka_offset FROM user_activity_parsed UNION SELECT kafka_offset FROM purchases_parsed",
            "UNION ALL alone",
        ),
        (
            "SELECT kafka_offset, received_at FROM user_activity_parsed WHERE received_at BETWEEN NOW() - INTERVAL '1 hour' AND NOW()",
            "filter by time with",
        ),
        (
            "SELECT kafka_offset, received_at AS taken_at, (event->>'timestamp')::timestamptz AS received_at "
            "FROM user_activity_parsed WHERE received_at > NOW() - INTERVAL '1 hour' AND kafka_offset <> '1' ".replace(
                "received_at AS taken_at, ", ""
            ),
            "must select that column",
        ),
        (
            "SELECT kafka_partition, COUNT(*) AS n FROM user_activity_parsed GROUP BY kafka_partition",
            "view of their own",
        ),
        ("SELECT product_id, received_at FROM user_activity ORDER BY received_at LIMIT 3", "LIMIT"),
        ("SELECT user_id, generate_series(1, 3) AS n FROM user_activity", "does not know"),
    ],
)
def test_what_cannot_be_kept_right_is_refused(tmp_path: Path, query: str, reason: str) -> None:
    sql_copy(tmp_path)
    (tmp_path / "refused.sql").write_text(f"CREATE MATERIALIZED VIEW refused AS {query};")
    database = Database()
    with pytest.raises(UnsupportedSql, match=reason) as raised:
        database.deploy(Pipeline.load(tmp_path), START)
    assert "refused.sql" in str(raised.value)
    assert database.deployed() == {}
    database.close()
