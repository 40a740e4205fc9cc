"""Who reads a column, and how far it is felt."""

from __future__ import annotations

import pytest

from recs_platform.pipeline import Pipeline
from recs_platform.readers import columns_read, downstream, fed_by, readers_of
from recs_platform.settings import default_sql_dir


@pytest.fixture(scope="module")
def standing() -> Pipeline:
    return Pipeline.load(default_sql_dir())


def test_columns_are_read_in_any_clause(standing: Pipeline) -> None:
    assert columns_read(standing["category_candidates"]) == {
        "product_catalog": {"category", "product_id", "in_stock"},
        "product_popularity": {"product_id", "view_count"},
    }
    assert "event_time" in columns_read(standing["recent_views"])["user_activity"], "a filter reads, too"


def test_a_column_that_is_merely_picked_is_felt_there_alone() -> None:
    pipeline = Pipeline.of_texts(
        {
            "t": "CREATE TABLE t (a BIGINT PRIMARY KEY, b BIGINT, c BIGINT);",
            "picked": "CREATE MATERIALIZED VIEW picked AS SELECT a, b AS d FROM t;",
            "of_a": "CREATE MATERIALIZED VIEW of_a AS SELECT a FROM picked;",
            "of_b": "CREATE MATERIALIZED VIEW of_b AS SELECT d FROM picked;",
            "filtered": "CREATE MATERIALIZED VIEW filtered AS SELECT a FROM picked WHERE d > 1;",
            "counted": "CREATE MATERIALIZED VIEW counted AS SELECT a, COUNT(*) AS n FROM filtered GROUP BY a;",
        }
    )
    assert [r.name for r in fed_by(pipeline, "t", "b")] == ["picked", "filtered", "of_b", "counted"]
    assert fed_by(pipeline, "t", "c") == []


def test_a_catalog_column_is_followed_to_redis(standing: Pipeline) -> None:
    assert [r.name for r in fed_by(standing, "product_catalog", "price")] == ["products_sink"]
    felt = {r.name for r in fed_by(standing, "customers", "country")}
    assert felt >= {"product_views_by_segment", "trending_by_segment_sink"}
    assert "trending_products_sink" not in felt
    assert fed_by(standing, "product_catalog", "description") == []
    assert {r.name for r in fed_by(standing, "product_catalog", "category")} <= {
        r.name for r in downstream(standing, "product_catalog")
    }
    assert readers_of(standing, "product_catalog", "price") == ["products_sink"]
