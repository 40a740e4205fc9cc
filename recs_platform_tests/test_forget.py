"""Forgetting a shopper: out of every store, the others untouched, and nothing of them taken in again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from recs_platform.cli import main
from recs_platform.engines.base import StreamEngine
from recs_platform.engines.local.client import LocalEngine
from recs_platform.engines.local.database import Database
from recs_platform.engines.local.forgetting import user_of
from recs_platform.errors import EngineError
from recs_platform.forget import KAFKA, Traces, forget, traces
from recs_platform.forget import _is_of as _is_of_user
from recs_platform.forget import _traces as _but_in_kafka
from recs_platform.pipeline import Pipeline
from recs_platform.settings import DEBEZIUM, FILE, RISINGWAVE, UPSERTS, Settings
from recs_platform_tests.oracle import Message
from recs_platform_tests.shop_floor import Shop, assert_documents_are_right, eventually
from recs_platform_tests.test_contract import local

GONE, STAYS = 7, 77
TOPIC = {UPSERTS: "customers", DEBEZIUM: "shop.public.customers"}
PRODUCTS = ("a1", "a2", "a3", "b1")


@pytest.fixture
def shop(
    tmp_path: Path, kafka_servers: str, postgres_url: str, redis_url: str, topic_prefix: str
) -> Iterator[tuple[Shop, Settings]]:
    """Two shoppers who did the same, and two dead letters of each; the engine runs."""
    shop = Shop(tmp_path, kafka_servers, postgres_url, redis_url, topic_prefix)
    for product in PRODUCTS:
        shop.sql(
            "INSERT INTO product_catalog (product_id, name, category, in_stock) VALUES (%s, %s, 'a', true)",
            product,
            product,
        )
    for user in (GONE, STAYS):
        shop.sql("INSERT INTO customers VALUES (%s, '25-34', 'DE')", user)
        act(shop, user)
    with local(shop) as engine:
        assert isinstance(engine, LocalEngine)
        eventually(lambda: len(shop.documents("user_recommendations")) == 2)
        eventually(lambda: engine.query("SELECT count(*) AS n FROM dead_letters").column("n")[0].as_py() == 4)
        yield shop, replace(shop.settings, engine_url=engine.url, engine_token="secret-token")
    shop.close()


def act(shop: Shop, user: int) -> None:
    now = datetime.now(UTC).isoformat()
    shop.send("user_activity", [
        *({"event_type": "page_view", "user_id": user, "product_id": p, "timestamp": now} for p in PRODUCTS[:2]),
        {"event_type": "page_view", "user_id": f" {user}", "product_id": "a1", "timestamp": now},
        {"event_type": "page_view", "user_id": user, "timestamp": now}, f'{{"user_id": {user}, "event_ty'.encode()])  # fmt: skip
    shop.send("purchases", [
        {"event_type": "purchase", "user_id": user, "product_id": p, "timestamp": now, "quantity": 1, "price": 2.0}
        for p in PRODUCTS[:2]])  # fmt: skip


def environment(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    for field in Settings.__dataclass_fields__.values():
        monkeypatch.setenv(field.metadata["variable"], str(getattr(settings, field.name)))


def counted(
    settings: Settings, user: int, where: Callable[[Settings, StreamEngine, Pipeline, int], Traces] = traces
) -> dict[tuple[str, str], int]:
    with LocalEngine(settings) as engine:
        return dict(where(settings, engine, Pipeline.load(settings.sql_dir), user))


def test_nothing_is_left_anywhere_but_in_kafka_and_nobody_else_is_touched(shop: tuple[Shop, Settings]) -> None:
    floor, settings = shop
    before, other = counted(settings, GONE), counted(settings, STAYS)
    assert {(KAFKA, f"{floor.prefix}user_activity"), ("the engine", "dead_letters"), ("PostgreSQL", "public.customers"),
            ("the engine", "user_activity_raw"), ("Redis", "user_recommendations")} <= {k for k, n in before.items() if n}  # fmt: skip
    report = forget(settings, GONE)
    assert report.before == before
    assert not report.left
    assert {place[0] for place, count in report.after.items() if count} == {KAFKA}
    assert counted(settings, STAYS) == other
    floor.log = [_with_number(m) for m in floor.log if not _is_of_user(m.payload, GONE)]
    eventually(lambda: _is_right(floor))


def test_what_comes_of_them_later_is_refused_also_after_a_restart(shop: tuple[Shop, Settings]) -> None:
    floor, settings = shop
    forget(settings, GONE)
    act(floor, GONE)
    floor.send("user_activity", [{"event_type": "page_view", "user_id": STAYS, "product_id": "b1",
                                  "timestamp": datetime.now(UTC).isoformat()}])  # fmt: skip
    with LocalEngine(settings) as engine:
        eventually(lambda: engine.query("SELECT 1 FROM user_activity WHERE product_id = 'b1'").num_rows == 1)
        eventually(lambda: engine.status()["refused"] == 7)
    assert not [p for p, count in counted(settings, GONE).items() if count and p[0] != KAFKA]


def test_a_database_remembers_whom_it_has_forgotten(shop: tuple[Shop, Settings]) -> None:
    floor, settings = shop
    forget(settings, GONE)
    assert floor.database is not None
    with floor.database.snapshot() as cursor:
        assert cursor.execute("SELECT user_id FROM recs.forgotten").fetchall() == [(GONE,)]
    with LocalEngine(settings) as engine:
        assert not engine.plan().steps


def test_the_command_shows_each_store_and_asks_first(
    shop: tuple[Shop, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, settings = shop
    environment(monkeypatch, settings)
    assert CliRunner().invoke(main, ["forget", str(GONE)], input="n\n").exit_code == 1
    assert counted(settings, GONE)["PostgreSQL", "public.customers"] == 1
    done = CliRunner().invoke(main, ["forget", str(GONE), "--yes"])
    assert (done.exit_code, "Nothing else is left." in done.output) == (0, True), done.output
    told = json.loads(CliRunner().invoke(main, ["forget", str(GONE), "--yes", "--json"]).output)
    assert told["is_forgotten"] is True
    assert CliRunner().invoke(main, ["forget", "abc", "--yes"]).exit_code == 2


@pytest.mark.parametrize("catalog", [UPSERTS, DEBEZIUM])
def test_a_customer_that_came_through_a_topic_goes_and_is_refused(
    catalog: str, tmp_path: Path, kafka_servers: str, postgres_url: str, redis_url: str, topic_prefix: str
) -> None:
    floor = Shop(tmp_path, kafka_servers, postgres_url, redis_url, topic_prefix, catalog)
    for user in (GONE, STAYS):
        floor.sql("INSERT INTO customers VALUES (%s, '25-34', 'DE')", user)
    with local(floor) as engine:
        assert isinstance(engine, LocalEngine)
        settings = replace(floor.settings, engine_url=engine.url, engine_token="secret-token")
        customers = "SELECT user_id FROM customers ORDER BY user_id"
        eventually(lambda: engine.query(customers).num_rows == 2)
        before = counted(settings, GONE)
        assert before["the engine", "customers_changes"] == before[KAFKA, f"{floor.prefix}{TOPIC[catalog]}"] == 1
        assert not forget(settings, GONE).left
        for user in (GONE, STAYS):
            floor.sql("UPDATE customers SET country = 'FR' WHERE user_id = %s", user)
        eventually(lambda: engine.status()["refused"] == 1)
        eventually(lambda: engine.query("SELECT 1 FROM customers WHERE country = 'FR'").num_rows == 1)
        assert engine.query(customers).column("user_id").to_pylist() == [STAYS]
        assert counted(settings, GONE)["the engine", "customers_changes"] == 0
    floor.close()


def test_a_customer_in_a_file_is_not_read_again_and_the_file_is_named(
    tmp_path: Path,
    kafka_servers: str,
    postgres_url: str,
    redis_url: str,
    topic_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    floor = Shop(tmp_path, kafka_servers, postgres_url, redis_url, topic_prefix, FILE)
    for user in (GONE, STAYS):
        floor.sql("INSERT INTO customers VALUES (%s, '25-34', 'DE')", user)
    with local(floor) as engine:
        assert isinstance(engine, LocalEngine)
        settings = replace(floor.settings, engine_url=engine.url, engine_token="secret-token")
        customers = "SELECT user_id FROM customers ORDER BY user_id"
        eventually(lambda: engine.query(customers).num_rows == 2)
        environment(monkeypatch, settings)
        told = CliRunner().invoke(main, ["forget", str(GONE), "--yes"])
        assert (told.exit_code, "Something is left." in told.output) == (1, True), told.output
        path = settings.catalog_dir / "customers.csv"
        assert f"the shopper's line out of {path}:".replace(" ", "") in "".join(told.output.split())
        assert engine.query(customers).column("user_id").to_pylist() == [STAYS]
        floor.sql("UPDATE customers SET country = 'FR' WHERE user_id IN (%s, %s)", GONE, STAYS)
        eventually(lambda: engine.query("SELECT 1 FROM customers WHERE country = 'FR'").num_rows == 1)
        assert engine.query(customers).column("user_id").to_pylist() == [STAYS]
        floor.sql("DELETE FROM customers WHERE user_id = %s", GONE)
        assert CliRunner().invoke(main, ["forget", str(GONE), "--yes"]).exit_code == 0
    floor.close()


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ({"user_id": 7}, True), ({"user_id": " 7"}, True), ({"user_id": 7, "payload": {"x": 1}, "after": "noon"}, True),
        ({"op": "d", "before": {"user_id": 7}, "after": None}, True), ({"payload": {"after": {"user_id": 7}}}, True),
        ({"user_id": 8, "after": {"user_id": 7}}, False), ({"user_id": True}, False), ([], False), ({"payload": 7}, False),
    ],
)  # fmt: skip
def test_whose_a_message_is(message: object, names: bool) -> None:
    is_whose(json.dumps(message), names)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"event_type": "page_view", "user_id": 7, "prod', True), ('[{"user_id": 7}]', True), ('{"a": {"user_id":"7"}}', True),
        ('{"a":' * 300 + "1" + "}" * 299 + ', "user_id": 7}', True), ('{"user_id": 77, "prod', False), ("[" * 2_000, False),
        ('{"user_id": null, "note": "\\"user_id\\": 7"}', False), ('{"user_id": 7.5}', False), ("user_id: 7", False), ("", False),
    ],
)  # fmt: skip
def test_whose_a_message_is_that_is_none(text: str, names: bool) -> None:
    """Cut off, no object, or nested more deeply than anybody reads."""
    is_whose(text, names)


def is_whose(text: str, names: bool) -> None:
    raw = text.encode()
    assert _is_of_user(raw, 7) is names
    with closing(Database()) as database:
        (found,) = database.connection.execute(
            f"SELECT {user_of('x')} FROM (SELECT ?::BLOB AS x)", [raw]
        ).fetchone() or (0,)
    assert (found == 7) is names, "the engine says the same"


def test_an_engine_that_cannot_says_why_and_nothing_is_deleted(shop: tuple[Shop, Settings]) -> None:
    """A PostgreSQL stands for the RisingWave, of which nothing is asked."""
    floor, settings = shop
    before = counted(settings, GONE, _but_in_kafka)
    elsewhere = replace(settings, engine=RISINGWAVE, risingwave_url=floor.postgres)
    with pytest.raises(EngineError, match="a RisingWave cannot forget one shopper: let the messages leave the topics"):
        forget(elsewhere, GONE)
    assert counted(settings, GONE, _but_in_kafka) == before


def _with_number(message: Message) -> Message:
    """As the oracle wants it: for it an id is no text."""
    try:
        event = json.loads(message.payload)
    except ValueError:
        return message
    return replace(message, payload=json.dumps({**event, "user_id": int(event["user_id"])}).encode())


def _is_right(shop: Shop) -> bool:
    try:
        assert_documents_are_right(shop.oracle(), shop.documents)
    except AssertionError:
        return False
    return True
