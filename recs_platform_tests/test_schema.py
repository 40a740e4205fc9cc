"""What differs between the catalog as PostgreSQL has it and as the pipeline reads it."""

from __future__ import annotations

import psycopg
import pytest

from recs_platform.catalog import ensure_catalog
from recs_platform.pipeline import Pipeline
from recs_platform.schema import CatalogColumn, Drift, What, copies, drifts, fits, needed_columns, read_columns
from recs_platform.settings import default_sql_dir

TABLES = ("public.product_catalog", "public.customers", "public.recs_heartbeat")


@pytest.fixture(scope="module")
def standing() -> Pipeline:
    return Pipeline.load(default_sql_dir())


def columns(url: str) -> dict[str, tuple[CatalogColumn, ...]]:
    return read_columns(url, TABLES)


def altered(url: str, change: str, pipeline: Pipeline) -> list[Drift]:
    """What differs after a change of the table the pipeline was made for."""
    ensure_catalog(url)
    before = columns(url)
    assert drifts(pipeline, before) == [], "the tables we make are those the files read"
    with psycopg.connect(url) as shop:
        shop.execute(change.encode())
    return drifts(pipeline, columns(url), before)


@pytest.mark.parametrize(
    ("change", "what", "now", "words"),
    [
        ("ADD COLUMN brand text", What.ADDED, "text", "is not taken up: where it is wanted, add it to product_catalog.sql"),
        ("DROP COLUMN description", What.GONE, "", "is gone; nothing reads it"),
        ("DROP COLUMN price", What.GONE, "", "is gone; read by products_sink, felt by products_sink, recs:products:*"),
        ("RENAME COLUMN price TO cost", What.RENAMED, "cost", "is called cost now; read by products_sink"),
        ("ALTER COLUMN price TYPE text", What.RETYPED, "text", "is text now; read by products_sink"),
    ],
)  # fmt: skip
def test_a_change_of_a_column(
    postgres_url: str, standing: Pipeline, change: str, what: What, now: str, words: str
) -> None:
    [drift] = altered(postgres_url, f"ALTER TABLE product_catalog {change}", standing)
    assert (drift.what, drift.now) == (what, now)
    assert words in str(drift)
    assert drift.breaks == ("price" in change)


def test_dropped_and_added_is_not_renamed(postgres_url: str, standing: Pipeline) -> None:
    change = "ALTER TABLE product_catalog DROP COLUMN price, ADD COLUMN cost double precision"
    assert [drift.what for drift in altered(postgres_url, change, standing)] == [What.GONE, What.ADDED]


def test_a_column_in_the_middle_is_felt_all_the_way_down(postgres_url: str, standing: Pipeline) -> None:
    [drift] = altered(postgres_url, "ALTER TABLE customers RENAME COLUMN country TO land", standing)
    assert "product_views_by_segment" in drift.feeds
    assert drift.keys == ("recs:trending_by_segment:*",)


def test_a_table_that_is_gone(postgres_url: str, standing: Pipeline) -> None:
    [drift] = altered(postgres_url, "DROP TABLE customers", standing)
    assert (drift.what, drift.breaks) == (What.TABLE_GONE, True)
    assert "table public.customers is gone" in str(drift)


@pytest.mark.parametrize(
    ("declared", "actual", "fit"),
    [
        ("VARCHAR", "uuid", True), ("VARCHAR", "my_enum", True), ("BIGINT", "integer", True), ("BIGINT", "numeric", False),
        ("DOUBLE PRECISION", "numeric", True), ("DOUBLE PRECISION", "text", False), ("BOOLEAN", "integer", False),
        ("TIMESTAMPTZ", "timestamp without time zone", False),
    ],
)  # fmt: skip
def test_types_that_fit(declared: str, actual: str, fit: bool) -> None:
    assert fits(declared, actual) is fit


def test_columns_are_needed_where_something_reads_them(standing: Pipeline) -> None:
    products = next(r for r in copies(standing) if r.name == "product_catalog")
    assert needed_columns(standing, products) == {c.name for c in products.columns} - {"description"}
