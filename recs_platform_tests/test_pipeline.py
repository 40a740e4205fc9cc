"""`sql/` is read into a graph, or refused with the file and the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from recs_platform.deployment import Deployment
from recs_platform.engines.local.capabilities import CAPABILITIES
from recs_platform.errors import PipelineError
from recs_platform.pipeline import Kind, Pipeline, render
from recs_platform.plan import Action, make_plan
from recs_platform.settings import CDC, DEBEZIUM, FILE, RISINGWAVE, UPSERTS, Settings, default_sql_dir

CATALOGS = (CDC, UPSERTS, DEBEZIUM, FILE)

SOURCE = """CREATE SOURCE clicks (payload BYTEA)
INCLUDE partition AS kafka_partition INCLUDE offset AS kafka_offset INCLUDE timestamp AS received_at
WITH (connector = 'kafka', topic = 'clicks') FORMAT PLAIN ENCODE BYTES;
"""


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(default_sql_dir())


def load(directory: Path, **files: str) -> Pipeline:
    for name, text in files.items():
        (directory / f"{name}.sql").write_text(text)
    return Pipeline.load(directory)


def refused(directory: Path, **files: str) -> str:
    with pytest.raises(PipelineError) as raised:
        load(directory, **files)
    return str(raised.value)


def test_every_file_is_one_relation_named_as_its_stem(pipeline: Pipeline) -> None:
    assert all(relation.path.stem == relation.name for relation in pipeline)


@pytest.mark.parametrize("catalog", CATALOGS)
def test_the_catalog_comes_from_one_place_and_all_else_reads_it_alike(pipeline: Pipeline, catalog: str) -> None:
    other = Pipeline.load(default_sql_dir(), catalog)
    of_it = {path.stem for path in (default_sql_dir() / "catalog" / catalog).glob("*.sql")}
    everywhere = {path.stem for path in default_sql_dir().rglob("*.sql") if not {"catalog", "engine"} & set(path.parts)}
    assert set(other.relations) == everywhere | of_it
    for name in ("product_catalog", "customers"):
        assert [(c.name, c.type) for c in other[name].columns] == [(c.name, c.type) for c in pipeline[name].columns]
    assert {name: other[name].text for name in everywhere} == {name: pipeline[name].text for name in everywhere}


def test_directories_below_may_be_called_anything(tmp_path: Path) -> None:
    for place in (
        "views/catalog/books",
        "views/engine/local",
        "views/engine/risingwave",
        "catalog/cdc/x",
        "catalog/upserts",
    ):
        (tmp_path / place).mkdir(parents=True)
        name = place.replace("/", "_")
        (tmp_path / place / f"{name}.sql").write_text(f"CREATE VIEW {name} AS SELECT 1 AS n")
    assert set(Pipeline.load(tmp_path).relations) == {"views_catalog_books", "views_engine_local", "catalog_cdc_x"}


def test_an_engine_may_have_relations_of_its_own(pipeline: Pipeline) -> None:
    more = Pipeline.load(default_sql_dir(), engine=RISINGWAVE)
    of_it = {path.stem for path in (default_sql_dir() / "engine" / RISINGWAVE).iterdir()}
    assert set(more.relations) == set(pipeline.relations) | of_it
    topics = Pipeline.load(default_sql_dir(), UPSERTS, RISINGWAVE)
    assert {f"{topics.topics[topic].name}_progress" for topic in ("customers", "product_catalog")} <= set(
        topics.relations
    )
    assert {r.name: r.fingerprint for r in pipeline}.items() <= {r.name: r.fingerprint for r in more}.items()


def test_a_catalog_from_nowhere_is_refused() -> None:
    with pytest.raises(PipelineError, match="RECS_CATALOG=mysql: .* there are cdc, debezium, file, upserts"):
        Pipeline.load(default_sql_dir(), "mysql")


def test_a_file_that_cannot_be_read_as_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.sql").write_bytes("-- für".encode("latin-1"))
    with pytest.raises(PipelineError, match=r"latin\.sql:1: not UTF-8 text"):
        Pipeline.load(tmp_path)
    (tmp_path / "latin.sql").unlink()
    (tmp_path / "gone.sql").symlink_to(tmp_path / "nowhere")
    with pytest.raises(PipelineError, match=r"gone\.sql:1: cannot be read: No such file"):
        Pipeline.load(tmp_path)


def test_files_that_read_the_same_are_read_once(tmp_path: Path) -> None:
    first = load(tmp_path, clicks=SOURCE)
    assert Pipeline.load(tmp_path) is first
    assert load(tmp_path, clicks=SOURCE.replace("'clicks'", "'taps'")).topics.keys() == {"taps"}


def test_folders_are_kinds(pipeline: Pipeline) -> None:
    for relation in pipeline:
        assert relation.path.parent.name in (f"{relation.kind}s", "cdc")


def test_upstreams_come_first(pipeline: Pipeline) -> None:
    order = list(pipeline.relations)
    assert all(order.index(u) < order.index(r.name) for r in pipeline for u in r.upstreams)


def test_every_column_has_a_type(pipeline: Pipeline) -> None:
    assert [(r.name, c.name) for r in pipeline for c in r.columns if c.type == "UNKNOWN"] == []


def test_columns_of_sources_and_tables_are_read(pipeline: Pipeline) -> None:
    catalog = {c.name: c.type for c in pipeline["product_catalog"].columns}
    assert catalog["price"] == "DOUBLE PRECISION"
    assert catalog["in_stock"] == "BOOLEAN"
    assert pipeline["product_catalog"].key == ("product_id",)
    assert pipeline["product_catalog"].upstreams == ("shop",)
    assert pipeline["user_activity_raw"].key == ("kafka_partition", "kafka_offset", "received_at")


def test_topics_are_found(pipeline: Pipeline) -> None:
    assert {topic: source.name for topic, source in pipeline.topics.items()} == {
        "user_activity": "user_activity_raw",
        "purchases": "purchases_raw",
        "recs_canary": "canary_raw",
    }


def test_a_sink_names_the_redis_keys_it_writes(pipeline: Pipeline) -> None:
    assert {sink.redis_name for sink in pipeline.of_kind(Kind.SINK)} == {
        "user_recommendations", "trending_products", "trending_by_segment", "also_bought", "products", "canary", "heartbeat"}  # fmt: skip


def test_the_fingerprint_tells_meaning_not_spelling(tmp_path: Path) -> None:
    first = load(tmp_path, clicks=SOURCE)["clicks"].fingerprint
    assert load(tmp_path, clicks="-- a comment\n" + SOURCE.replace("\n", "  \n"))["clicks"].fingerprint == first
    assert load(tmp_path, clicks=SOURCE.replace("topic = 'clicks'", "topic = 'taps'"))["clicks"].fingerprint != first


def test_a_change_reaches_everything_that_reads_it_and_nothing_else(tmp_path: Path) -> None:
    view = "CREATE MATERIALIZED VIEW {} AS SELECT kafka_offset FROM {}"
    files = {
        "clicks": SOURCE,
        "a": view.format("a", "clicks"),
        "b": view.format("b", "a"),
        "c": view.format("c", "clicks"),
    }
    before = load(tmp_path, **files)
    after = load(tmp_path, **files | {"a": view.format("a", "clicks") + " WHERE kafka_offset <> '0'"})
    changed = {name for name in files if before[name].fingerprint != after[name].fingerprint}
    assert changed == {"a", "b"}


def test_the_plan_says_what_and_why(tmp_path: Path) -> None:
    view = "CREATE MATERIALIZED VIEW {} AS SELECT kafka_offset FROM {}"
    files = {"clicks": SOURCE, "a": view.format("a", "clicks"), "b": view.format("b", "a")}
    before = load(tmp_path, **files)
    standing = {r.name: r.fingerprint for r in before}
    assert make_plan(before, Deployment.of_live(standing), CAPABILITIES).steps == ()
    after = load(tmp_path, **files | {"a": view.format("a", "clicks") + " WHERE kafka_offset <> '0'"})
    deployed = Deployment.of_live(standing | {"old": "12345678"})
    steps = [(s.action, s.name, s.reason) for s in make_plan(after, deployed, CAPABILITIES).steps]
    assert steps == [
        (Action.CREATE, "a", "its SQL changed"),
        (Action.CREATE, "b", "reads a, which changed"),
        (Action.SWITCH, "a", f"readers go over from {before['a'].fingerprint}"),
        (Action.SWITCH, "b", f"readers go over from {before['b'].fingerprint}"),
        (Action.DROP, "old", "no file defines it any more"),
        (Action.DROP, "b", "replaced"),
        (Action.DROP, "a", "replaced"),
    ]


def test_a_cycle(tmp_path: Path) -> None:
    view = "CREATE MATERIALIZED VIEW {} AS\nSELECT x FROM {}"
    message = refused(tmp_path, a=view.format("a", "b"), b=view.format("b", "a"))
    assert "a cycle: " in message
    assert ".sql:2:" in message


def test_a_missing_upstream(tmp_path: Path) -> None:
    message = refused(tmp_path, a="-- reads nothing\nCREATE VIEW a AS\nSELECT x\nFROM nowhere")
    assert message == f"{tmp_path}/a.sql:4: no file defines 'nowhere'"


def test_two_files_one_name(tmp_path: Path) -> None:
    (tmp_path / "views").mkdir()
    (tmp_path / "views" / "clicks.sql").write_text(SOURCE)
    message = refused(tmp_path, clicks=SOURCE)
    assert "clicks is defined in" in message
    assert "clicks.sql:1:" in message


def test_a_name_that_is_not_the_stem(tmp_path: Path) -> None:
    message = refused(tmp_path, taps="\n" + SOURCE)
    assert message == f"{tmp_path}/taps.sql:2: defines 'clicks', so the file must be clicks.sql"


def test_sql_that_does_not_parse(tmp_path: Path) -> None:
    message = refused(tmp_path, clicks=SOURCE, a="CREATE MATERIALIZED VIEW a AS\nSELECT FROM WHERE clicks")
    assert message.startswith(f"{tmp_path}/a.sql:2: ")


def test_a_column_no_upstream_has(tmp_path: Path) -> None:
    message = refused(
        tmp_path, clicks=SOURCE, a="CREATE MATERIALIZED VIEW a AS\nSELECT kafka_offset,\n  pric\nFROM clicks"
    )
    assert message.startswith(f"{tmp_path}/a.sql:3: ")
    assert "pric" in message


def test_an_unknown_variable(tmp_path: Path) -> None:
    message = refused(tmp_path, clicks=SOURCE.replace("topic = 'clicks'", "topic = '${tpoic}'"))
    assert "clicks.sql:3: unknown variable ${tpoic}" in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("SELECT 1", "CREATE SOURCE, TABLE, VIEW"),
        ("CREATE VIEW a AS SELECT 1 AS x; CREATE VIEW b AS SELECT 1 AS x", "holds 2 statements"),
        ("", "holds 0 statements"),
        ("CREATE INDEX a ON b (c)", "not a relation"),
    ],
)
def test_what_is_not_one_relation(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in refused(tmp_path, a=text)


def test_no_files_at_all(tmp_path: Path) -> None:
    assert "no *.sql files" in refused(tmp_path)


def test_variables_are_filled_in_and_quotes_doubled() -> None:
    assert render("x = '${redis_url}' ${other}", {"redis_url": "it's"}) == "x = 'it''s' ${other}"


def test_secrets_are_not_in_what_is_shown() -> None:
    settings = Settings(postgres_url="postgresql://u:pa/s@s@h/db", redis_url="redis://:secret@h")
    assert "secret" not in repr(settings)
    assert "pa/s" not in repr(settings)
