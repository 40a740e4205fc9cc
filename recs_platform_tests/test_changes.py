"""A plan says what becomes of columns, what hangs on a change, what it costs and what it breaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from recs_platform.capabilities import Capabilities
from recs_platform.changes import Change, changes, diff_of
from recs_platform.deployment import Deployment
from recs_platform.engines.local.capabilities import CAPABILITIES as LOCAL
from recs_platform.engines.risingwave.engine import CAPABILITIES as RISINGWAVE
from recs_platform.pipeline import Kind, Pipeline
from recs_platform.plan import make_plan
from recs_platform.serving import keys
from recs_platform.settings import default_sql_dir
from recs_platform_tests.sql_copies import sql_copy


@pytest.fixture(scope="module")
def standing() -> Pipeline:
    return Pipeline.load(default_sql_dir())


def edited(directory: Path, name: str, old: str, new: str) -> Pipeline:
    """`sql/` with one edit."""

    def edit(relation: str, text: str) -> str:
        assert relation != name or old in text
        return text.replace(old, new) if relation == name else text

    return Pipeline.load(sql_copy(directory, edit))


def found(before: Pipeline, after: Pipeline, capabilities: Capabilities = LOCAL) -> dict[str, Change]:
    deployed = Deployment.of_live({r.name: r.fingerprint for r in before})
    plan = make_plan(after, deployed, capabilities)
    return {change.name: change for change in changes(plan, before, after, capabilities)}


def test_an_edit_that_keeps_the_columns(standing: Pipeline, tmp_path: Path) -> None:
    after = edited(tmp_path, "trending_products", "rank <= 10", "rank <= 8")
    change = found(standing, after)["trending_products"]
    assert (change.what, change.reason, change.gone, change.added, change.retyped) == (
        "rebuilt",
        "its SQL changed",
        (),
        (),
        (),
    )
    assert change.feeds == ("trending_products_sink",)
    assert change.prefixes == (keys.prefix("trending_products", after["trending_products_sink"].fingerprint),)
    assert change.reads == ("trending_candidates",), "which stays as it is"
    assert not change.breaks
    assert [line.strip() for line in change.diff.splitlines() if line.startswith(("-", "+"))] == [
        "-  rank <= 10",
        "+  rank <= 8",
    ]


def test_a_field_the_serving_library_reads_is_gone(standing: Pipeline, tmp_path: Path) -> None:
    after = edited(
        tmp_path, "user_recommendations_sink", "recommended_products, as_of", "recommended_products AS list, as_of"
    )
    change = found(standing, after)["user_recommendations_sink"]
    assert change.gone == ("recommended_products",)
    assert change.added == ("list",)
    assert change.breaks == ("recommended_products is gone; read by the serving library in recs:user_recommendations",)


def test_a_column_that_is_gone_and_followed_breaks_nothing(standing: Pipeline, tmp_path: Path) -> None:
    sql_copy(tmp_path)
    for name, old, new in (
        ("product_catalog", "price DOUBLE", "cost DOUBLE"),
        ("products_sink", "price, ", "cost AS price, "),
    ):
        path = tmp_path / f"{name}.sql"
        path.write_text(path.read_text().replace(old, new))
    changed = found(standing, Pipeline.load(tmp_path))
    assert changed["product_catalog"].gone == ("price",)
    assert not any(change.breaks for change in changed.values())


def test_a_column_of_another_type_names_who_reads_it(standing: Pipeline, tmp_path: Path) -> None:
    after = edited(tmp_path, "product_catalog", "price DOUBLE PRECISION", "price VARCHAR")
    change = found(standing, after)["product_catalog"]
    assert change.retyped == ("price: DOUBLE PRECISION → VARCHAR",)
    assert change.breaks == ("price becomes VARCHAR; read by products_sink",)
    assert change.reads == ("postgres/product_catalog", "shop")
    sink = found(standing, after)["products_sink"]
    assert sink.breaks == ("price becomes VARCHAR; read by the serving library in recs:products",)


def test_a_column_nobody_reads_breaks_nothing(standing: Pipeline, tmp_path: Path) -> None:
    after = edited(tmp_path, "product_catalog", "  description VARCHAR,\n", "")
    assert found(standing, after)["product_catalog"].gone == ("description",)
    assert not any(change.breaks for change in found(standing, after).values())


def test_history_is_lost_where_only_the_topic_has_it(standing: Pipeline, tmp_path: Path) -> None:
    after = edited(tmp_path, "user_activity", "INTERVAL '8 days'", "INTERVAL '7 days'")
    lost = {name for name, change in found(standing, after, RISINGWAVE).items() if change.loses_history}
    assert lost == {"user_activity"}
    assert not any(change.loses_history for change in found(standing, after, LOCAL).values()), "it keeps the messages"


def test_a_sink_that_is_served_and_has_no_file_any_more(standing: Pipeline, tmp_path: Path) -> None:
    after = edited(tmp_path, "shop", "", "")
    (tmp_path / "also_bought_sink.sql").unlink()
    after = Pipeline.load(tmp_path)
    change = found(standing, after)["also_bought_sink"]
    assert (change.what, change.breaks) == ("dropped", ("the serving library reads recs:also_bought",))


def test_the_served_fields_are_those_the_sinks_have(standing: Pipeline) -> None:
    for sink in standing.of_kind(Kind.SINK):
        assert keys.SERVED[sink.redis_name] <= {column.name for column in sink.columns}
    assert keys.SERVED.keys() == {sink.redis_name for sink in standing.of_kind(Kind.SINK)}


def test_a_diff_says_nothing_of_layout() -> None:
    assert diff_of("CREATE VIEW a AS\nSELECT x FROM b -- why", "create view a as select x   from b") == ""
    assert "+  y" in diff_of("CREATE VIEW a AS SELECT x FROM b", "CREATE VIEW a AS SELECT x, y FROM b").splitlines()
