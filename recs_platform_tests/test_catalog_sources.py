"""A catalog from topics or files is the same catalog: whatever was told of it, the tables hold what it is now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recs_platform.catalog import Customer, Product
from recs_platform.catalog_carrier import Message, messages, write_files
from recs_platform.catalog_file import find_file, read_rows, typed_rows
from recs_platform.columns import Column
from recs_platform.engines.local.arrivals import TickInput
from recs_platform.engines.local.catalog_files import FileFeed
from recs_platform.engines.local.changes import CatalogTable
from recs_platform.engines.local.database import Database
from recs_platform.errors import SourceError
from recs_platform.pipeline import Pipeline
from recs_platform.settings import DEBEZIUM, UPSERTS, default_sql_dir
from recs_platform_tests.feeding import differences
from recs_platform_tests.feeding import messages as batch

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MONTH = timedelta(days=31)
PRODUCT = {"name": "Hat", "category": "hats", "price": 9.5, "description": None, "image_url": None, "in_stock": True}

# -- topics -----------------------------------------------------------------------------------------------------------


class Topics:
    """A database that reads the catalog from topics, and what it is told."""

    def __init__(self, form: str) -> None:
        self.form, self.now, self._next = form, NOW, 0
        self.database = Database()
        wanted = {"product_catalog", "customers", "catalog_dead_letters", "products_sink"}
        whole = Pipeline.load(default_sql_dir(), form)
        self.pipeline = Pipeline({relation.name: relation for relation in whole.with_ancestors(wanted)})
        self.database.deploy(self.pipeline, NOW)
        self._topics = {source.name: topic for topic, source in self.pipeline.topics.items()}

    def tell(self, table: str, sent: Sequence[Message]) -> None:
        """One tick with these messages, which the broker got one after another."""
        self.now += timedelta(seconds=1)
        taken = batch([value for _, value in sent], self._next, self.now)
        keys = pa.array([key for key, _ in sent], pa.binary())
        taken = taken.set_column(taken.column_names.index("kafka_key"), "kafka_key", keys)
        self._next += len(sent)
        self.database.tick(self.now, TickInput(messages={self._topics[f"{table}_changes"]: taken}))

    def product(self, id: str, **values: Any) -> list[Message]:
        return messages(self.form, "product_id", id, {"product_id": id, **PRODUCT, **values})

    def gone(self, id: str) -> list[Message]:
        return messages(self.form, "product_id", id, None)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.database.connection.execute(sql).fetchall()

    def products(self) -> dict[str, tuple[Any, ...]]:
        columns = "product_id, name, category, price, in_stock"
        return {row[0]: row[1:] for row in self.rows(f"SELECT {columns} FROM product_catalog")}

    def reasons(self) -> list[str]:
        return [row[0] for row in self.rows("SELECT reason FROM catalog_dead_letters ORDER BY kafka_offset::BIGINT")]


@pytest.fixture(params=[UPSERTS, DEBEZIUM])
def topics(request: pytest.FixtureRequest) -> Iterator[Topics]:
    topics = Topics(request.param)
    yield topics
    topics.database.close()


products = st.tuples(
    st.sampled_from([f"p{i}" for i in range(5)]),
    st.one_of(
        st.none(),
        st.fixed_dictionaries(
            {
                "name": st.sampled_from(["Hat", 'Schöner "Hut"', "帽子"]),
                "category": st.sampled_from(["hats", None]),
                "price": st.sampled_from([None, 0.0, 19.99]),
                "in_stock": st.booleans(),
            }
        ),
    ),
)
days = st.lists(st.lists(products, max_size=6), min_size=1, max_size=6)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=days, trimmed=st.integers(0, 5), rebuilt=st.integers(0, 5))
@pytest.mark.parametrize("form", [UPSERTS, DEBEZIUM])
def test_the_newest_of_each_product_counts(
    form: str, told: list[list[tuple[str, dict[str, Any] | None]]], trimmed: int, rebuilt: int
) -> None:
    """Also after the log is trimmed of what is old, and after all is built anew from it."""
    topics, wanted = Topics(form), dict[str, tuple[Any, ...]]()
    for i, tick in enumerate(told):
        sent: list[Message] = []
        for id, values in tick:
            sent += topics.gone(id) if values is None else topics.product(id, **values)
            if values is None:
                wanted.pop(id, None)
            else:
                wanted[id] = tuple(values[name] for name in ("name", "category", "price", "in_stock"))
        if sent:
            topics.tell("product_catalog", sent)
        if i == trimmed:
            topics.database.trim_logs(NOW + MONTH)
        if i == rebuilt:
            topics.database.deploy(topics.pipeline, topics.now, ["product_catalog", "products_sink"])
        assert topics.products() == wanted
        assert differences(topics.database) == {}
    assert topics.reasons() == []
    topics.database.close()


def test_a_trimmed_log_holds_one_message_a_key(topics: Topics) -> None:
    for price in range(5):
        topics.tell("product_catalog", topics.product("p1", price=price) + topics.product("p2", price=price))
    topics.tell("product_catalog", topics.gone("p2"))
    topics.database.trim_logs(NOW + MONTH)
    assert topics.rows("SELECT count(*), count(DISTINCT kafka_key) FROM product_catalog_changes") == [(2, 2)]
    topics.database.deploy(topics.pipeline, topics.now, ["product_catalog"])
    assert topics.products() == {"p1": ("Hat", "hats", 4.0, True)}


def test_customers_come_the_same_way(topics: Topics) -> None:
    for user, country in ((7, "DE"), (8, "FR"), (7, "NL")):
        row = {"user_id": user, "age_band": "25-34", "country": country}
        topics.tell("customers", messages(topics.form, "user_id", user, row))
    topics.tell("customers", messages(topics.form, "user_id", 8, None))
    assert topics.rows("SELECT * FROM customers") == [(7, "25-34", "NL")]


@pytest.mark.parametrize(
    ("form", "message", "reason"),
    [
        (UPSERTS, (b"p1", b"no json"), "not a JSON object"),
        (UPSERTS, (b"p1", b"[1]"), "not a JSON object"),
        (UPSERTS, (b"p1", b"\xff\xfe"), "not a JSON object"),
        (UPSERTS, (None, b"{}"), "product_id missing"),
        (UPSERTS, (None, None), "product_id missing"),
        (UPSERTS, (None, b'{"product_id": "p1"}'), "no key: the newest message of each key is what is kept"),
        (UPSERTS, (b"p1", b'{"price": "dear"}'), "price is not a number"),
        (UPSERTS, (b"p1", b'{"in_stock": "perhaps"}'), "in_stock is neither true nor false"),
        (DEBEZIUM, (b"{}", b"no json"), "not a change as Debezium writes them"),
        (DEBEZIUM, (b"{}", b'{"after": {"product_id": "p1"}}'), "not a change as Debezium writes them"),
        (DEBEZIUM, (b"{}", b'{"op": "t"}'), "a change of another kind"),
        (
            DEBEZIUM,
            (None, b'{"op": "u", "after": {"product_id": "p1"}}'),
            "no key: the newest message of each key is what is kept",
        ),
        (DEBEZIUM, (b"{}", b'{"op": "u", "after": null}'), "no row after the change"),
        (DEBEZIUM, (b"{}", b'{"op": "c", "after": {"name": "x"}}'), "product_id missing"),
        (
            DEBEZIUM,
            (b"{}", b'{"op": "u", "after": {"product_id": "p1", "description": "__debezium_unavailable_value"}}'),
            "description was not sent: the table needs REPLICA IDENTITY FULL",
        ),
    ],
)
def test_a_message_that_cannot_be_used_is_kept_and_changes_nothing(
    form: str, message: tuple[bytes, bytes | None], reason: str
) -> None:
    topics = Topics(form)
    topics.tell("product_catalog", topics.product("p1"))
    topics.tell("product_catalog", [message])
    assert topics.reasons() == [reason]
    assert topics.products() == {"p1": ("Hat", "hats", 9.5, True)}
    topics.database.close()


@pytest.mark.parametrize("key", [b"p1", b'"p1"', b'{"product_id": "p1"}'], ids=["text", "JSON text", "a JSON object"])
def test_the_id_of_an_upsert_may_stand_in_its_key_alone(key: bytes) -> None:
    topics = Topics(UPSERTS)
    topics.tell("product_catalog", [(key, json.dumps(PRODUCT).encode())])
    assert list(topics.products()) == ["p1"]
    topics.tell("product_catalog", [(key, None)])
    assert topics.products() == {}
    topics.database.close()


def test_debezium_with_schemas_and_a_deletion_that_compaction_left_the_tombstone_of() -> None:
    topics = Topics(DEBEZIUM)
    key = b'{"schema": {}, "payload": {"product_id": "p1"}}'
    change = {"schema": {}, "payload": {"before": None, "after": {"product_id": "p1", **PRODUCT}, "op": "r"}}
    topics.tell("product_catalog", [(key, json.dumps(change).encode())])
    assert list(topics.products()) == ["p1"]
    topics.tell("product_catalog", [(key, None)])
    assert topics.products() == {}
    topics.database.close()


# -- files ------------------------------------------------------------------------------------------------------------

TABLE = CatalogTable(
    "product_catalog",
    "product_catalog",
    ("product_id", "name", "price", "in_stock"),
    ("product_id",),
    ("VARCHAR", "VARCHAR", "DOUBLE PRECISION", "BOOLEAN"),
)
COLUMNS = [Column(*column) for column in zip(TABLE.columns, TABLE.types, strict=True)]


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    feed = FileFeed(tmp_path, [TABLE])
    path = tmp_path / "product_catalog.csv"
    path.write_text("product_id,name,price,in_stock,colour\np1,Hat,9.5,yes,red\n")
    assert feed.prepare() is False
    assert pa.concat_tables(feed.snapshot(TABLE)).to_pylist() == [
        {"product_id": "p1", "name": "Hat", "price": "9.5", "in_stock": "True"}
    ]
    assert feed.poll(10, 0).changes == {}
    path.write_text("name,product_id\nHat,p1\nBag,p2\n")
    changes = feed.poll(10, 0).changes["product_catalog"]
    assert changes.truncated, "rows that are not in the file have gone"
    assert changes.upserts["product_id"].to_pylist() == ["p1", "p2"]
    assert changes.upserts["in_stock"].to_pylist() == [None, None]
    assert feed.poll(10, 0).changes == {}


def test_a_good_file_is_not_lost_for_a_bad_one_beside_it(tmp_path: Path) -> None:
    other = replace(TABLE, name="customers", source="customers")
    feed = FileFeed(tmp_path, [TABLE, other])
    for name in ("product_catalog", "customers"):
        (tmp_path / f"{name}.csv").write_text("product_id,name\np1,Hat\n")
    assert feed.poll(10, 0).changes.keys() == {"product_catalog", "customers"}
    (tmp_path / "product_catalog.csv").write_text("product_id,name\np1,New hat\n")
    (tmp_path / "customers.csv").write_text("product_id,price\np1,dear\n")
    for _ in range(2):
        with pytest.raises(SourceError, match="'dear' is not a number"):
            feed.poll(10, 0)
    (tmp_path / "customers.csv").write_text("product_id,price\np1,1\n")
    changes = feed.poll(10, 0).changes
    assert changes.keys() == {"product_catalog", "customers"}
    assert changes["product_catalog"].upserts["name"].to_pylist() == ["New hat"]


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("name\nHat\n", "no column product_id; it has name"),
        ("product_id,price\np1,dear\n", ":2: price: 'dear' is not a number"),
        ("product_id,price\np1,nan\n", ":2: price: 'nan' is not a number"),
        ("product_id,in_stock\np1,perhaps\n", ":2: in_stock: 'perhaps' is neither true nor false"),
        ("product_id,name\np1,a\n,b\n", ":3: product_id: must not be empty"),
        ("product_id,name\np1,a\np1,b\n", ":3: product_id: p1 is on line 2 already"),
        ("", "empty; the first line must name the columns"),
    ],
)
def test_a_file_with_a_wrong_line_is_refused_whole(tmp_path: Path, text: str, refusal: str) -> None:
    path = tmp_path / "product_catalog.csv"
    path.write_text(text)
    with pytest.raises(SourceError) as raised:
        read_rows(path, COLUMNS, TABLE.key)
    assert refusal in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("user_id\n7\n007\n", ":3: user_id: 7 is on line 2 already"),
        ("user_id\n1_000\n", "'1_000' is not a whole number"),
        ("user_id\n99999999999999999999\n", "is not a whole number"),
        ("user_id\n9223372036854775808\n", "is not a whole number"),
    ],
)
def test_a_number_is_a_key_by_its_value(tmp_path: Path, text: str, refusal: str) -> None:
    path = tmp_path / "customers.csv"
    path.write_text(text)
    customers = Pipeline.load(default_sql_dir(), "file")["customers"]
    with pytest.raises(SourceError, match=refusal):
        read_rows(path, customers.columns, customers.key)
    path.write_text("user_id\n-9223372036854775808\n+7\n")
    assert [row[0] for row in read_rows(path, customers.columns, customers.key)] == ["-9223372036854775808", "7"]


def test_one_file_a_table(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no product_catalog\.csv .*RECS_CATALOG_DIR"):
        find_file(tmp_path, "product_catalog")
    (tmp_path / "product_catalog.jsonl").write_text('{"product_id": "p1"}\n')
    assert read_rows(find_file(tmp_path, "product_catalog"), COLUMNS, TABLE.key) == [("p1", None, None, None)]
    (tmp_path / "product_catalog.tsv.gz").touch()
    with pytest.raises(SourceError, match="which of them is product_catalog"):
        find_file(tmp_path, "product_catalog")


def test_the_files_that_are_written_for_a_try_are_read_as_they_were_meant(tmp_path: Path) -> None:
    write_files(tmp_path, [Product("p1", 'Hat, "new"', None, None, "two\nlines")], [Customer(7, None, "DE")])
    pipeline = Pipeline.load(default_sql_dir(), "file")
    for name, row in (
        (
            "product_catalog_file",
            {"product_id": "p1", "name": 'Hat, "new"', "description": "two\nlines", "in_stock": True},
        ),
        ("customers", {"user_id": 7, "country": "DE"}),
    ):
        relation = pipeline[name]
        (found,) = typed_rows(find_file(tmp_path, name), relation.columns, relation.key)
        assert {k: v for k, v in found.items() if v is not None} == row
    write_files(tmp_path, [], [])
    assert len(read_rows(find_file(tmp_path, "customers"), pipeline["customers"].columns, ("user_id",))) == 1


def test_a_product_of_a_file_that_does_not_say_so_is_in_stock(tmp_path: Path) -> None:
    """As of a topic, and of a file that is loaded into PostgreSQL: otherwise nothing would be recommended."""
    (tmp_path / "product_catalog.csv").write_text("product_id,name,category\np1,Hat,hats\n")
    pipeline = Pipeline.load(default_sql_dir(), "file")
    file = pipeline["product_catalog_file"]
    names, types = tuple(c.name for c in file.columns), tuple(c.type for c in file.columns)
    feed = FileFeed(tmp_path, [CatalogTable(file.name, file.name, names, file.key, types)])
    database = Database()
    database.deploy(pipeline, NOW)
    database.load_snapshot(file.name, feed.snapshot(feed.tables[0]), NOW)
    found = database.connection.execute("SELECT product_id, in_stock FROM product_catalog").fetchall()
    lists = database.connection.execute("SELECT category, products FROM category_candidates").fetchall()
    database.close()
    assert found == [("p1", True)]
    assert lists == [("hats", ["p1"])]
