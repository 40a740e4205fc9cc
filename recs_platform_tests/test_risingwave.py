"""What a RisingWave is sent, word for word, and what is kept from it and from anyone who reads along."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pyarrow as pa
import pytest
import redis
from confluent_kafka import Producer

from recs_platform import applying
from recs_platform.audit import audit
from recs_platform.engines.risingwave import engine as driver
from recs_platform.engines.risingwave import lag, session, tables
from recs_platform.engines.risingwave.checks import check_licence, check_postgres, risingwave_version
from recs_platform.engines.risingwave.engine import RisingWaveEngine
from recs_platform.engines.risingwave.masking import secrets_of, without_secrets
from recs_platform.engines.risingwave.postgres import count_rows, drop_slot
from recs_platform.engines.risingwave.statements import differences, helpers, is_one_question, publication, statement
from recs_platform.engines.status import PartitionStatus
from recs_platform.errors import (
    EngineError,
    EngineUnavailable,
    PipelineError,
    QueryError,
    SourceError,
    StoreUnavailable,
)
from recs_platform.events import EventProducer
from recs_platform.health import State, judge
from recs_platform.physical_names import VersionId, physical_name
from recs_platform.pipeline import Kind, Pipeline
from recs_platform.plan import Action
from recs_platform.readings import of_stream
from recs_platform.schema import CatalogColumn
from recs_platform.serving import keys
from recs_platform.settings import CDC, DEBEZIUM, FILE, RISINGWAVE, UPSERTS, Settings, default_sql_dir
from recs_platform.stack.service import free_port
from recs_platform.topics import TopicInfo, admin_client, ensure_topics

SETTINGS = Settings.load(
    {
        "RECS_KAFKA_BOOTSTRAP_SERVERS": "kafka:9092",
        "RECS_POSTGRES_URL": "postgresql://reader:it%27s%20secret@shop-db:5433/shop",
        "RECS_REDIS_URL": "redis://:redis-secret@redis:6379/0",
    }
)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(default_sql_dir(), engine=RISINGWAVE)


@pytest.fixture(scope="module")
def targets(pipeline: Pipeline) -> dict[str, VersionId]:
    return {relation.name: VersionId(relation.fingerprint) for relation in pipeline}


def without_comments(sql: str) -> str:
    return "\n".join(line for line in sql.splitlines() if not line.startswith("--"))


def test_a_view_reads_physical_relations_and_nothing_else_of_it_changes(
    pipeline: Pipeline, targets: dict[str, VersionId]
) -> None:
    sent = without_comments(statement(pipeline["product_views_by_window"], targets, SETTINGS))
    own, read = (physical_name(n, targets[n]) for n in ("product_views_by_window", "user_activity"))
    assert sent == (
        f"CREATE MATERIALIZED VIEW {own} AS\n"
        "SELECT window_start, product_id, COUNT(*) AS view_count, MAX(event_time) AS last_view\n"
        f"FROM TUMBLE({read}, event_time, INTERVAL '1 hour')\n"
        "WHERE event_type = 'page_view' AND window_start > NOW() - INTERVAL '48 hours'\n"
        "GROUP BY window_start, product_id"
    )


def test_columns_qualified_with_a_public_name_still_find_it(pipeline: Pipeline, targets: dict[str, VersionId]) -> None:
    read = physical_name("also_bought", targets["also_bought"])
    assert f"FROM {read} AS also_bought GROUP BY" in statement(pipeline["also_bought_sink"], targets, SETTINGS)


def test_a_lookup_join_keeps_its_form(pipeline: Pipeline, targets: dict[str, VersionId]) -> None:
    read = physical_name("category_lists", targets["category_lists"])
    sent = statement(pipeline["user_recommendations"], targets, SETTINGS)
    assert sent.count(f"LEFT JOIN {read} FOR SYSTEM_TIME AS OF PROCTIME() AS ") == 3


def test_every_statement_is_filled_in_and_names_physical_relations_alone(
    pipeline: Pipeline, targets: dict[str, VersionId]
) -> None:
    for relation in pipeline:
        sent = without_comments(statement(relation, targets, SETTINGS))
        assert "${" not in sent
        assert not sent.endswith(";")
        for name in (relation.name, *relation.upstreams):
            assert physical_name(name, targets[name]) in sent


def test_each_version_of_the_catalog_has_a_slot_of_its_own(pipeline: Pipeline, targets: dict[str, VersionId]) -> None:
    first = statement(pipeline["shop"], targets, SETTINGS)
    again = statement(pipeline["shop"], targets | {"shop": VersionId(targets["shop"].fingerprint, 1)}, SETTINGS)
    assert f"slot.name = 'recs_{targets['shop']}'" in first
    assert f"slot.name = 'recs_{targets['shop']}_1'" in again
    assert "password = 'it''s secret'" in first, "a quote in a password is doubled"


def test_a_sink_writes_under_the_prefix_of_its_version(pipeline: Pipeline, targets: dict[str, VersionId]) -> None:
    anew = targets | {"products_sink": VersionId(targets["products_sink"].fingerprint, 2)}
    assert f"'recs:products:{targets['products_sink']}_2:' || product_id" in statement(
        pipeline["products_sink"], anew, SETTINGS
    )


def test_a_sink_is_told_all_nodes_of_a_redis_cluster(pipeline: Pipeline, targets: dict[str, VersionId]) -> None:
    settings = replace(SETTINGS, redis_url="redis://:it's secret@a:6379,b:6379")
    sent = statement(pipeline["products_sink"], targets, settings)
    assert """redis.url = '["redis://:it''s secret@a:6379", "redis://:it''s secret@b:6379"]'""" in sent
    assert "secret" not in without_secrets(sent, secrets_of(settings))


@pytest.mark.parametrize(
    ("views", "sent"),
    [
        (set[str](), ["CREATE VIEW trending AS SELECT * FROM trending__3f2a91c0"]),
        (
            {"trending"},
            [
                "CREATE VIEW trending__next_3f2a91c0 AS SELECT * FROM trending__3f2a91c0",
                "ALTER VIEW trending SWAP WITH trending__next_3f2a91c0",
            ],
        ),
        (
            {"trending", "trending__next_3f2a91c0"},
            [
                "CREATE VIEW trending__next_3f2a91c0x1 AS SELECT * FROM trending__3f2a91c0",
                "ALTER VIEW trending SWAP WITH trending__next_3f2a91c0x1",
            ],
        ),
    ],
    ids=["the first version", "another version", "a switch was cut short, or somebody reads what it left"],
)
def test_a_public_name_goes_over_in_one_step(views: set[str], sent: list[str]) -> None:
    assert publication("trending", VersionId("3f2a91c0"), views) == sent


def test_what_switches_leave_is_known_by_its_name() -> None:
    ours = {"a__next", "a__next_3f2a91c0", "a__next_3f2a91c0_2x1"}
    assert helpers("a", ours | {"a", "a__next_big", "a__next3", "b__next", "a__3f2a91c0"}) == ours


def test_no_secret_is_left_in_what_is_shown(pipeline: Pipeline, targets: dict[str, VersionId]) -> None:
    secrets = secrets_of(SETTINGS)
    for relation in pipeline:
        shown = without_secrets(statement(relation, targets, SETTINGS), secrets)
        assert "secret" not in shown.replace("secrets", "")
    assert without_secrets("WITH (password = 'unknown to us')", secrets) == "WITH (password = '***')"
    assert without_secrets('{"password": "x", "user": "y"}', []) == '{"password": \'***\', "user": "y"}'


def test_a_password_that_is_a_word_spoils_nothing_else(pipeline: Pipeline, targets: dict[str, VersionId]) -> None:
    settings = replace(
        SETTINGS, postgres_url="postgresql://recs:recs@db/shop", redis_url="redis://:recs@redis:6379/0")  # fmt: skip
    secrets = secrets_of(settings)
    shown = without_secrets(statement(pipeline["shop"], targets, settings), secrets)
    assert "password = '***'" in shown
    assert "username = 'recs'" in shown
    shown = without_secrets(statement(pipeline["products_sink"], targets, settings), secrets)
    assert "redis.url = 'redis://:***@redis:6379/0'" in shown
    assert "'recs:products:" in shown


def test_versions_are_checked_before_anything_is_sent() -> None:
    assert risingwave_version("PostgreSQL 13.14.0-RisingWave-2.8.1 (abcdef)") == (2, 8)
    with pytest.raises(EngineError, match=r"RisingWave 2\.6 is too old: 2\.8 or later is wanted"):
        risingwave_version("PostgreSQL 13.14.0-RisingWave-2.6.0 (abcdef)")
    with pytest.raises(EngineError, match="no RisingWave"):
        risingwave_version("PostgreSQL 17.2 on x86_64-pc-linux-gnu")
    check_postgres((2, 8), 17)
    check_postgres((3, 1), 18)
    with pytest.raises(
        EngineError, match=r"RisingWave 2\.9 reads changes of PostgreSQL up to 17, and the catalog is in 18"
    ):
        check_postgres((2, 9), 18)


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        (
            "CREATE SINK b AS SELECT 'recs:b:${version}:' || x AS key FROM a WITH (connector = 'redis', redis_value_type = 'stream')",
            "Redis streams",
        ),
        ("CREATE VIEW b AS SELECT x FROM a FOR SYSTEM_TIME AS OF NOW() AS b", "questions about the past"),
    ],
)
def test_what_needs_a_licence_is_named_with_its_line(tmp_path: Path, text: str, feature: str) -> None:
    (tmp_path / "a.sql").write_text("CREATE TABLE a (x VARCHAR PRIMARY KEY)")
    (tmp_path / "b.sql").write_text(f"-- a comment\n{text}")
    with pytest.raises(PipelineError, match=rf"b\.sql:2: {feature} of RisingWave need a licence"):
        check_licence(Pipeline.load(tmp_path)["b"])


def test_the_pipeline_needs_no_licence(pipeline: Pipeline) -> None:
    for relation in pipeline:
        check_licence(relation)


# -- a whole plan, against what answers as a RisingWave's catalog would -----------------------------------------------


class Catalog:
    """A connection to a cluster that knows CREATE, DROP and SWAP, and nothing of rows. It notes what it is sent."""

    closed = False

    def __init__(self, connection: redis.Redis) -> None:
        self.redis, self.sent = connection, list[str]()
        self.relations: dict[str, tuple[int, str, str]] = {}
        self.building: dict[str, int] = {}
        self.progress: dict[str, list[dict[str, Any]]] = {}
        self.events: list[dict[str, Any]] = []
        self.refuses: str | None = None  # statements with this in them
        self.refusal = "Catalog error: not found"
        self._answer: list[dict[str, Any]] = []
        self._ids = itertools.count(1)

    def execute(self, sql: bytes, params: object = None) -> Catalog:
        text = without_comments(sql.decode())
        self.sent.append(text)
        if self.refuses and self.refuses in text:
            raise psycopg.errors.InternalError_(f"{self.refusal}: {self.refuses}")
        head = " ".join(text.split()[:3]).upper()
        for start, what in {
            "CREATE MATERIALIZED VIEW": "materialized view", "CREATE VIEW": "view", "CREATE TABLE": "table",
            "CREATE SOURCE": "source", "CREATE SINK": "sink",
        }.items():  # fmt: skip
            if head.startswith(start):
                self._create(what, text)
        if head.startswith("DROP"):
            self._drop(text.split()[-1])
        if swapped := re.fullmatch(r"ALTER VIEW (\w+) SWAP WITH (\w+)", text):
            one, other = swapped.groups()
            self.relations[one], self.relations[other] = self.relations[other], self.relations[one]
        self._answer = self._rows(text)
        return self

    def _create(self, what: str, text: str) -> None:
        name = re.findall(r"CREATE (?:MATERIALIZED )?(?:VIEW|TABLE|SOURCE|SINK) (\w+)", text)[0]
        assert name not in self.relations, f"{name} is there"
        self.relations[name] = (next(self._ids), what, text)
        if what == "materialized view":
            self.building[name] = 2

    def _drop(self, name: str) -> None:
        # not the name it was created by: views have swapped theirs
        reads = {other: sql.partition(" AS ")[2] or sql for other, (*_, sql) in self.relations.items()}
        readers = [other for other, sql in reads.items() if name in re.findall(r"\w+", sql)]
        if name in self.relations and set(readers) - {name}:
            raise psycopg.errors.DependentObjectsStillExist(f"{readers} read {name}")
        self.relations.pop(name, None)

    def _rows(self, text: str) -> list[dict[str, Any]]:
        if "rw_relations" in text:
            found = sorted((number, name, what, sql) for name, (number, what, sql) in self.relations.items())
            return [{"id": i, "name": n, "relation_type": w, "definition": d} for i, n, w, d in found]
        if "rw_ddl_progress" in text:
            self.building = {name: looks - 1 for name, looks in self.building.items() if looks}
            return [
                {"ddl_statement": self.relations[n][2], "progress": "Snapshot [50.00% (1/2)]"} for n in self.building
            ]
        if "rw_views" in text:
            return [{"name": name} for name, (_, what, _) in self.relations.items() if what == "view"]
        if text == "SHOW PARAMETERS":
            return [{"Name": "barrier_interval_ms", "Value": "1000"}]
        if text.startswith("SELECT * FROM"):
            return self.progress.get(text.split()[-1], [])
        if "rw_event_logs" in text:
            return sorted(self.events, key=lambda event: event["timestamp"], reverse=True)
        if text.startswith("SELECT COUNT(*)"):
            return [{"rows": 0}]
        return [{"version": "PostgreSQL 13.14.0-RisingWave-2.8.0 (abc)"}] if "version()" in text else []

    def fetchall(self) -> list[dict[str, Any]]:
        return self._answer

    def cursor(self, row_factory: object = None) -> Catalog:
        return self

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None: ...


class Cluster(NamedTuple):
    catalog: Catalog
    engine: RisingWaveEngine
    redis: redis.Redis
    made: list[str]  # topics and tables that were there to be


@pytest.fixture
def cluster(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    shutil.copytree(default_sql_dir(), tmp_path / "sql")
    settings = replace(
        SETTINGS, sql_dir=tmp_path / "sql", redis_url=redis_url, risingwave_url="postgresql://root:rw-secret@rw:4566/dev",
        risingwave_redis_url=SETTINGS.redis_url, engine=RISINGWAVE, grace_seconds=600.0)  # fmt: skip
    with redis.Redis.from_url(redis_url, decode_responses=True) as connection:
        connection.flushdb()
        catalog, made = Catalog(connection), list[str]()
        monkeypatch.setattr(psycopg, "connect", lambda *_, **__: catalog)
        monkeypatch.setattr(driver, "major_version", lambda url: 17)
        monkeypatch.setattr(driver, "read_columns", lambda url, tables: {})
        monkeypatch.setattr(driver, "ensure_topics", lambda servers, names, partitions, compacted: made.extend(names))
        monkeypatch.setattr(driver, "ensure_catalog", lambda url: made.append("catalog"))
        monkeypatch.setattr(tables, "count_rows", lambda url, table: 0)
        monkeypatch.setattr(applying, "BETWEEN_LOOKS", 0.0)
        monkeypatch.setattr(applying, "BETWEEN_COUNTS", 0.0)
        no_keys = pa.table({"key": pa.array([], pa.string())})
        monkeypatch.setattr(RisingWaveEngine, "sink_keys", lambda *_: no_keys)
        monkeypatch.setattr(RisingWaveEngine, "rows_of", lambda *_: no_keys)
        with RisingWaveEngine(settings) as engine:
            yield Cluster(catalog, engine, connection, made)


def test_from_an_empty_cluster_to_the_whole_pipeline(cluster: Cluster) -> None:
    plan = cluster.engine.apply()
    pipeline = Pipeline.of(cluster.engine.settings)
    assert [step.name for step in plan.steps] == list(pipeline.relations)
    assert cluster.engine.deployed() == {r.name: r.fingerprint for r in pipeline}
    assert not cluster.engine.plan()
    assert set(cluster.made) == {"user_activity", "purchases", "recs_canary", "catalog"}
    assert "ALTER SYSTEM SET barrier_interval_ms = 250" in cluster.catalog.sent
    for sink in pipeline.of_kind(Kind.SINK):
        assert cluster.redis.get(keys.pointer(sink.redis_name)) == sink.fingerprint


def test_views_are_built_in_the_background_sinks_are_not(cluster: Cluster) -> None:
    cluster.engine.apply()
    background = ""
    for text in cluster.catalog.sent:
        background = text.partition(" = ")[2] if text.startswith("SET BACKGROUND_DDL") else background
        if text.startswith("CREATE MATERIALIZED VIEW"):
            assert background == "true"
        if text.startswith("CREATE SINK"):
            assert background == "false"


def test_an_edited_view_is_built_beside_the_old_one_and_swapped_in(cluster: Cluster) -> None:
    cluster.engine.apply()
    path = cluster.engine.settings.sql_dir / "views" / "trending_products.sql"
    path.write_text(path.read_text().replace("rank <= 10", "rank <= 8"))
    cluster.catalog.sent.clear()
    told = list[str]()
    plan = cluster.engine.apply(tell=lambda step, done, words: told.append(f"{step} {words}"))
    changed = {name for name, version in plan.targets.items() if f"__{version}" in "".join(cluster.catalog.sent)}
    assert {"trending_products", "trending_products_sink"} <= changed
    assert [s.action for s in plan.steps] == ["create"] * 2 + ["switch"] * 2 + ["drop"] * 2
    swap = [text for text in cluster.catalog.sent if "trending_products__next_" in text]
    assert [text.split()[0] for text in swap] == ["CREATE", "ALTER", "DROP"]
    assert not any(text.startswith("DROP MATERIALIZED VIEW") for text in cluster.catalog.sent), "kept for a way back"
    assert any("Snapshot [50.00%" in line for line in told)


def test_a_helper_that_a_switch_has_left_does_not_keep_the_old_version_for_ever(cluster: Cluster) -> None:
    cluster.engine.apply()
    path = cluster.engine.settings.sql_dir / "views" / "trending_products.sql"
    path.write_text(path.read_text().replace("rank <= 10", "rank <= 8"))
    cluster.catalog.refuses = "DROP VIEW IF EXISTS trending_products__next_"
    cluster.engine.apply()
    assert [name for name in cluster.catalog.relations if "__next_" in name]
    cluster.catalog.refuses = None
    cluster.engine.settings = replace(cluster.engine.settings, grace_seconds=0.0)
    cluster.engine.apply()
    assert not [name for name in cluster.catalog.relations if "__next_" in name]
    assert len(cluster.engine.deployment().of("trending_products")) == 1


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("product_catalog", "CREATE TABLE product_catalog (product_id VARCHAR PRIMARY KEY)", "table"),
        ("trending_products", "CREATE MATERIALIZED VIEW trending_products AS SELECT 1 AS x", "materialized view"),
        ("trending_products", "CREATE VIEW trending_products AS SELECT 1 AS x", "view"),
    ],
)
def test_a_public_name_that_is_taken_is_told_before_anything_is_sent(
    cluster: Cluster, name: str, text: str, what: str
) -> None:
    cluster.catalog.execute(text.encode())
    cluster.catalog.sent.clear()
    remedy = rf"there is a {what} {name} that `recs apply` has not made.*: ALTER {what.upper()} {name} RENAME TO"
    for refused in (cluster.engine.plan, cluster.engine.apply):
        with pytest.raises(EngineError, match=remedy):
            refused()
    assert not [sent for sent in cluster.catalog.sent if not sent.startswith(("SELECT", "SHOW"))]
    assert cluster.made == []


def test_a_name_that_is_only_like_one_of_the_files_is_not_taken(cluster: Cluster) -> None:
    cluster.catalog.execute(b"CREATE TABLE products_sink (x BIGINT)")
    cluster.catalog.execute(b"CREATE SOURCE shop WITH (connector = 'kafka')")
    cluster.catalog.relations["trending_products"] = (0, "view", "CREATE VIEW analytics.trending_products AS SELECT 1")
    assert cluster.engine.plan().creates == set(Pipeline.of(cluster.engine.settings).relations), (
        "no public name stands for a sink or a connection, and each schema has names of its own"
    )


@pytest.mark.parametrize(
    ("sql", "asks"),
    [
        ("SELECT 1", True), ("  select ';' AS semicolon ; ", True), ("WITH a AS (SELECT 1) SELECT * FROM a", True),
        ("SELECT 1; DROP TABLE a", False), ("DROP TABLE a", False), ("/* SELECT */ DELETE FROM a", False), ("", False),
        ("-- only a comment", False), ("SELECT 'open", False),
    ],
)  # fmt: skip
def test_a_question_is_one_statement_that_changes_nothing(sql: str, asks: bool) -> None:
    assert is_one_question(sql) is asks


def test_the_keys_of_a_live_sink_are_asked_of_its_own_query(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.engine.apply()
    asked = list[tuple[str, object]]()

    def query(engine: RisingWaveEngine, sql: str, params: object = None) -> pa.Table:
        asked.append((" ".join(sql.split()), params))
        return pa.table({"key": ["recs:products:x:1"]})

    monkeypatch.setattr(RisingWaveEngine, "query", query)
    assert cluster.engine.sink_rows("products_sink", 5).column("key").to_pylist() == ["recs:products:x:1"]
    cluster.engine.sink_rows("products_sink", among=["a"])
    live = cluster.engine.deployment().live
    inner = (
        f"SELECT 'recs:products:{live['products_sink']}:' || product_id AS key, product_id, name, category, price, image_url, "
        f"in_stock FROM {physical_name('product_catalog', live['product_catalog'])} AS product_catalog"
    )
    assert asked == [
        (f"SELECT * FROM ({inner}) AS documents LIMIT 5", None),
        (f"SELECT * FROM ({inner}) AS documents WHERE key IN ($1)", ["a"]),
    ]
    asked.clear()
    monkeypatch.setattr(driver, "AT_ONCE", 2)
    found = cluster.engine.sink_rows("products_sink", among=["a", "b", "c"])
    assert ([params for _, params in asked], found.num_rows) == ([["a", "b"], ["c"]], 2)


def test_an_emptied_redis_is_filled_by_sinks_that_are_written_anew(
    cluster: Cluster, kafka: dict[tuple[str, int], tuple[int, int]]
) -> None:
    """What a RisingWave has sent it never sends again."""
    cluster.engine.apply()
    before = cluster.engine.deployed()
    sinks = {relation.name for relation in Pipeline.of(cluster.engine.settings).of_kind(Kind.SINK)}
    products = next(v for v in cluster.engine.deployment().versions if v.name == "products_sink")
    cluster.redis.flushdb()
    cluster.redis.set(keys.document("products", str(products.id), "p1"), "{}")  # and goes on with what comes
    assert cluster.engine.deployed() == before, "they are there, and write"
    told = {relation["name"] for relation in cluster.engine.status()["relations"]}
    assert told == set(before)
    plan = cluster.engine.plan()
    assert {(step.name, step.reason) for step in plan.of(Action.CREATE)} == {
        (name, "Redis has lost its keys") for name in sinks
    }
    cluster.engine.apply()
    pointers = {cluster.redis.get(keys.pointer(s.redis_name)) for s in Pipeline.of(SETTINGS).of_kind(Kind.SINK)}
    assert all(str(pointer).endswith("_1") for pointer in pointers)
    assert not cluster.engine.plan().creates


def test_an_emptied_risingwave_writes_beside_what_readers_are_on(cluster: Cluster) -> None:
    cluster.engine.apply()
    sinks = Pipeline.of(cluster.engine.settings).of_kind(Kind.SINK)
    before = cluster.engine.deployment().live["products_sink"]
    cluster.redis.set(document := keys.document("products", str(before), "p1"), "{}")
    cluster.catalog.relations.clear()
    cluster.catalog.refuses = "CREATE SINK products_sink"
    with pytest.raises(EngineError):
        cluster.engine.apply()
    assert cluster.redis.exists(document)
    assert cluster.redis.get(keys.pointer("products")) == str(before)
    cluster.catalog.refuses = None
    cluster.engine.apply()
    live = cluster.engine.deployment().live
    assert {live[sink.name].generation for sink in sinks} == {1}
    assert live["trending_products"].generation == 0
    assert not cluster.redis.exists(document), "which nobody would remove any more"
    assert not cluster.engine.plan()


def test_an_audit_sees_that_redis_was_emptied_and_how_to_mend_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.engine.apply()
    cluster.redis.flushdb()
    empty = pa.table({"key": pa.array([], pa.string())})
    monkeypatch.setattr(RisingWaveEngine, "query", lambda *_: empty)
    settings = cluster.engine.settings
    found = list(audit(cluster.engine, Pipeline.of(settings), settings.redis_url))
    assert {a.kind for a in found} == {"no pointer"}
    assert all(a.can_be_mended for a in found)


def test_a_sink_that_readers_have_not_gone_over_to_yet_is_not_written_anew(cluster: Cluster) -> None:
    cluster.engine.apply()
    version = cluster.engine.deployment().live["products_sink"]
    cluster.redis.unlink(keys.pointer("products"))
    assert "products_sink" not in cluster.engine.plan().creates
    cluster.engine.apply()
    assert cluster.redis.get(keys.pointer("products")) == str(version)


def test_an_emptied_redis_is_filled_while_postgresql_and_kafka_are_away(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.engine.apply()
    cluster.redis.flushdb()
    cluster.made.clear()
    assert cluster.engine.apply().creates == {s.name for s in Pipeline.of(SETTINGS).of_kind(Kind.SINK)}
    assert cluster.made == [], "nobody has asked them for anything"


def test_a_sink_that_lost_its_pointer_alone_does_not_look_gone_back(
    cluster: Cluster, kafka: dict[tuple[str, int], tuple[int, int]]
) -> None:
    cluster.engine.apply()
    cluster.engine.apply(rebuild=["products_sink"])
    cluster.redis.unlink(keys.pointer("products"))
    assert not cluster.engine.status()["gone_back"]


def test_gone_back_is_what_somebody_has_gone_back_from_and_no_edit_that_was_undone(
    cluster: Cluster, kafka: dict[tuple[str, int], tuple[int, int]]
) -> None:
    path = cluster.engine.settings.sql_dir / "views" / "trending_products.sql"
    before = path.read_text()
    cluster.engine.apply()
    path.write_text(before.replace("rank <= 10", "rank <= 8"))
    cluster.engine.apply()
    path.write_text(before)
    assert not cluster.engine.status()["gone_back"], "an edit that was undone is one as any other"
    path.write_text(before.replace("rank <= 10", "rank <= 8"))
    cluster.engine.roll_back()
    assert cluster.engine.status()["gone_back"]
    path.write_text(before)
    assert not cluster.engine.status()["gone_back"], "these files are live"
    path.write_text(before.replace("rank <= 10", "rank <= 8"))
    cluster.engine.roll_back()
    assert not cluster.engine.status()["gone_back"], "and forth again"
    cluster.engine.roll_back()
    cluster.engine.apply()
    assert not cluster.engine.status()["gone_back"], "somebody has asked for them"


def test_one_can_go_back_from_files_that_cannot_be_read(cluster: Cluster) -> None:
    path = cluster.engine.settings.sql_dir / "views" / "trending_products.sql"
    before = path.read_text()
    cluster.engine.apply()
    path.write_text(before.replace("rank <= 10", "rank <= 8"))
    cluster.engine.apply()
    path.write_text("CREATE VIEW")
    assert {step.name for step in cluster.engine.roll_back().steps} == {"trending_products", "trending_products_sink"}


def test_a_redis_that_is_away_makes_sinks_ill_and_nothing_else(
    cluster: Cluster, kafka: dict[tuple[str, int], tuple[int, int]]
) -> None:
    cluster.engine.apply()
    away = replace(cluster.engine.settings, redis_url=f"redis://:secret@127.0.0.1:{free_port()}/0")
    pipeline = Pipeline.of(away)
    with RisingWaveEngine(away) as engine:
        status = engine.status()
        for refused in (engine.deployed, engine.plan, engine.apply, engine.roll_back):
            with pytest.raises(StoreUnavailable, match=r"Redis at redis://:\*\*\*@127"):
                refused()
    found = judge(pipeline, of_stream(status, pipeline), {}, datetime.now(UTC).timestamp())[0]
    broken = {finding.key[0] for finding in found if finding.state is State.BROKEN}
    assert broken == {sink.name for sink in pipeline.of_kind(Kind.SINK)}


def test_a_question_that_is_not_answered_in_time_is_given_up(redis_url: str, postgres_url: str) -> None:
    """Of a PostgreSQL, which can be made to keep silent, too."""
    settings = replace(SETTINGS, redis_url=redis_url, risingwave_url=postgres_url, engine=RISINGWAVE)
    with RisingWaveEngine(settings, timeout=0.3) as engine:
        assert engine.query("SELECT 1 AS one").to_pylist() == [{"one": 1}]
        with pytest.raises(QueryError, match="division by zero"):
            engine.query("SELECT 1 / 0")
        with pytest.raises(EngineUnavailable, match=r"does not answer within 0\.3 s"):
            engine.query("SELECT pg_sleep(60)")
        with pytest.raises(EngineUnavailable):
            engine.query("SELECT 1 AS one")


@pytest.mark.parametrize(
    ("refused", "part"),
    [("rw_event_logs", "events"), ("rw_ddl_progress", "progress"), ("user_activity_raw_progress", "partitions")],
)
def test_what_cannot_be_asked_keeps_nothing_else_from_being_told(
    cluster: Cluster, kafka: dict[tuple[str, int], tuple[int, int]], refused: str, part: str
) -> None:
    cluster.engine.apply()
    before = cluster.engine.deployed()
    cluster.catalog.refuses = f"FROM rw_catalog.{refused}" if refused.startswith("rw_") else f"SELECT * FROM {refused}"
    status = cluster.engine.status()
    assert status["problems"].keys() == {part}
    assert {relation["name"] for relation in status["relations"]} == set(before)


@pytest.mark.parametrize(
    "words",
    [
        "Service unavailable: The cluster is starting or recovering", "The cluster is bootstrapping",
        "failed to run command: cluster is under recovering", "DML is not permitted during cluster recovery",
    ],
)  # fmt: skip
def test_a_recovery_in_the_middle_is_no_refusal(
    cluster: Cluster, kafka: dict[tuple[str, int], tuple[int, int]], words: str
) -> None:
    cluster.catalog.refuses, cluster.catalog.refusal = "CREATE SINK products_sink", words
    with pytest.raises(EngineUnavailable, match="is not ready yet"):
        cluster.engine.apply()
    cluster.catalog.refuses = None
    cluster.engine.apply()
    cluster.catalog.refuses = "SELECT * FROM user_activity_raw_progress"
    assert cluster.engine.status()["problems"].keys() == {"partitions"}, "and the rest is told meanwhile"


def test_the_status_tells_the_slot_the_catalog_is_read_through(
    cluster: Cluster, kafka: dict[tuple[str, int], tuple[int, int]]
) -> None:
    assert cluster.engine.status()["slot"] is None
    cluster.engine.apply()
    status = cluster.engine.status()
    assert status["slot"] == f"recs_{cluster.engine.deployment().live['shop']}"
    assert status["slot_remedy"] == "`recs apply --rebuild shop` makes a new one and reads the tables anew"


def test_postgresql_is_asked_only_where_it_is_read_anew(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.engine.apply()

    def away(*_: object) -> int:
        raise SourceError("PostgreSQL is away")

    monkeypatch.setattr(driver, "major_version", away)
    path = cluster.engine.settings.sql_dir / "views" / "trending_products.sql"
    path.write_text(path.read_text().replace("rank <= 10", "rank <= 8"))
    assert cluster.engine.plan().creates == {"trending_products", "trending_products_sink"}
    with pytest.raises(SourceError):
        cluster.engine.plan(["product_catalog"])


@pytest.mark.parametrize(
    ("actual", "words"),
    [("numeric", "as DOUBLE PRECISION: declare it as DECIMAL"), ("integer", "declare it as INTEGER"), ("double precision", "")],
)  # fmt: skip
def test_a_column_that_would_not_be_copied_is_told_before_anything_is_sent(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, actual: str, words: str
) -> None:
    monkeypatch.setattr(
        driver, "read_columns", lambda url, tables: {"public.product_catalog": (CatalogColumn("price", actual, 4),)}
    )
    if words:
        with pytest.raises(PipelineError, match=words):
            cluster.engine.plan()
    else:
        assert cluster.engine.plan()


def test_a_sink_that_was_merely_written_anew_is_no_way_back(cluster: Cluster) -> None:
    cluster.engine.apply()
    cluster.engine.apply(["products_sink"])
    with pytest.raises(EngineError, match="there is nothing to go back to"):
        cluster.engine.roll_back()


def test_why_a_build_failed_is_told_without_a_password(cluster: Cluster) -> None:
    definition = """CREATE SINK "a" AS SELECT 1 WITH (password = 'hunter2', user = "it's")"""
    cluster.catalog.events = [
        happened("CREATE_STREAM_JOB_FAIL", datetime.now(UTC), name="a__12345678", definition=definition)
    ]
    told = cluster.engine.failure("a__12345678")
    assert "hunter2" not in told
    assert "password = '***'" in told


def test_a_table_is_filled_from_its_file_by_few_statements(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 2)
    directory = cluster.engine.settings.sql_dir.parent / "catalog"
    directory.mkdir()
    (directory / "customers.csv").write_text("user_id,age_band,country\n" + "".join(f"{i},a,DE\n" for i in range(5)))
    cluster.engine.settings = replace(cluster.engine.settings, catalog=FILE, catalog_dir=directory)
    relation = Pipeline.load(default_sql_dir(), FILE)["customers"]
    assert cluster.engine.filling(relation, VersionId(relation.fingerprint)) is None
    inserts = [text for text in cluster.catalog.sent if text.startswith("INSERT")]
    assert [text.count("(%s") for text in inserts] == [2, 2, 1]
    assert cluster.catalog.sent[-1] == "FLUSH"


def test_a_table_that_takes_no_rows_is_not_waited_for_without_an_end(
    postgres_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a PostgreSQL, which can be made to keep silent, too."""
    monkeypatch.setattr(session, "PATIENT_SECONDS", 0.3)
    (tmp_path / "customers.csv").write_text("user_id,age_band,country\n1,a,DE\n")
    settings = replace(SETTINGS, redis_url=redis_url, risingwave_url=postgres_url, catalog=FILE, catalog_dir=tmp_path)
    relation = Pipeline.load(default_sql_dir(), FILE)["customers"]
    version = VersionId(relation.fingerprint)
    with psycopg.connect(postgres_url, autocommit=True) as somebody:
        name = physical_name("customers", version)
        somebody.execute(
            f"CREATE TABLE {name} (user_id BIGINT PRIMARY KEY, age_band VARCHAR, country VARCHAR)".encode()
        )
        with somebody.transaction(), RisingWaveEngine(settings, timeout=5.0) as engine:
            somebody.execute(f"LOCK TABLE {name} IN SHARE MODE".encode())
            with pytest.raises(EngineUnavailable, match=r"does not answer within 0\.3 s"):
                engine.filling(relation, version)
        somebody.execute(f"DROP TABLE {name}".encode())


def test_what_is_no_question_is_not_sent(cluster: Cluster) -> None:
    with pytest.raises(QueryError, match="one SELECT is wanted"):
        cluster.engine.query("SELECT 1; DROP TABLE product_catalog")
    assert cluster.catalog.sent == []


def test_a_connection_takes_its_slot_along(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = list[str]()
    monkeypatch.setattr(driver, "drop_slot", lambda url, slot: dropped.append(slot))
    cluster.engine.apply()
    shop = next(v for v in cluster.engine.deployment().versions if v.name == "shop")
    for name in [n for n, (*_, sql) in cluster.catalog.relations.items() if shop.physical_name in sql]:
        del cluster.catalog.relations[name]
    cluster.engine.drop(shop)
    assert dropped == [f"recs_{shop.id}"]
    cluster.engine.settings = replace(cluster.engine.settings, replication_slot="another")
    cluster.engine.drop(shop)
    assert dropped == [f"recs_{shop.id}"] * 2, "whatever the settings name by now"


def test_a_slot_that_no_setting_leads_to_keeps_nothing_else_from_going(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.engine.apply()
    slot = f"recs_{cluster.engine.deployment().live['shop']}"
    moved = replace(cluster.engine.settings, catalog=UPSERTS, postgres_url="", grace_seconds=0.0)
    cluster.engine.settings = moved
    told = list[str]()
    cluster.engine.apply(tell=lambda step, _, words: told.append(f"{step.name} {words}"))
    assert any(f"pg_drop_replication_slot('{slot}')" in words and "RECS_POSTGRES_URL" in words for words in told)
    assert {name for name in map(str, cluster.redis.hgetall(keys.REPLACED)) if name.startswith("shop__")}, "noted still"
    assert not cluster.engine.apply(), "and all else is done"
    monkeypatch.setattr(driver, "drop_slot", lambda url, name: told.append(f"dropped {name}"))
    cluster.engine.settings = replace(moved, postgres_url="postgresql://reader@shop-db/shop")
    cluster.engine.apply()
    assert told[-1] == f"dropped {slot}"


def test_what_somebody_reads_of_one_version_keeps_no_other_of_that_name(cluster: Cluster) -> None:
    path = cluster.engine.settings.sql_dir / "views" / "trending_products.sql"
    before = path.read_text()
    cluster.engine.apply()
    read = physical_name("trending_products", cluster.engine.deployment().live["trending_products"])
    path.write_text(before.replace("rank <= 10", "rank <= 8"))
    cluster.catalog.refuses = "DROP VIEW IF EXISTS trending_products__next_"
    cluster.engine.apply()
    cluster.catalog.refuses = None
    helper = next(name for name in cluster.catalog.relations if "__next_" in name)
    cluster.catalog.execute(f"CREATE VIEW of_somebody AS SELECT * FROM {helper}".encode())
    cluster.engine.settings = replace(cluster.engine.settings, grace_seconds=0.0)
    path.write_text(before.replace("rank <= 10", "rank <= 6"))
    cluster.engine.apply()
    kept = [version.physical_name for version in cluster.engine.deployment().of("trending_products")]
    assert len(kept) == 2
    assert kept[0] == read, "and what is live"


def test_what_is_told_and_kept_holds_no_password(cluster: Cluster) -> None:
    told = list[str]()
    plan = cluster.engine.apply(tell=lambda step, done, words: told.append(f"{step} {words}"))
    kept = [relation.text for relation in cluster.engine.deployed_pipeline()]
    shown = "".join([*told, *map(str, plan.steps), *map(repr, cluster.engine.deployment().versions), *kept])
    assert "***" in shown
    assert "secret" not in shown


def test_a_password_that_is_a_word_of_the_sql_hides_nothing_of_what_is_deployed(cluster: Cluster) -> None:
    words = replace(
        cluster.engine.settings, postgres_url="postgresql://postgres:postgres@db/shop",
        risingwave_redis_url="redis://:products@redis:6379/0",
    )  # fmt: skip
    with RisingWaveEngine(words) as engine:
        engine.apply()
        versions = {version.name: version for version in engine.deployment().versions}
        assert versions["shop"].is_connection
        assert versions["products_sink"].redis_name == "products"
        assert versions["customers"].reads == {versions["shop"].physical_name}
        assert engine.deployed_pipeline().relations.keys() == Pipeline.of(words).relations.keys()
        assert not engine.plan()


def test_a_slot_nobody_reads_is_dropped_in_postgresql(postgres_url: str) -> None:
    slot = "recs_left_over"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
        drop_slot(postgres_url, slot)
        found = connection.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", [slot]).fetchall()
        assert found == []
        drop_slot(postgres_url, slot)  # nothing left: nothing to do


def test_only_what_was_all_leaves_nothing_and_what_was_not_all_is_noted(
    cluster: Cluster, kafka: dict[tuple[str, int], tuple[int, int]]
) -> None:
    cluster.engine.apply()
    for name in ("trending_products", "trending_by_segment"):
        path = next(cluster.engine.settings.sql_dir.rglob(f"{name}.sql"))
        path.write_text(path.read_text().replace("rank <= 10", "rank <= 3"))
        cluster.engine.apply(only=["trending_products"])
        assert cluster.engine.status()["gone_back"] is (name == "trending_by_segment"), (
            "versions in their grace are no part"
        )


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], tuple[int, int]]:
    """(topic, partition) → where it begins and ends."""
    found = {("user_activity", 0): (5, 100), ("user_activity", 1): (7, 9), ("purchases", 0): (0, 0)}
    topics = {topic: [n for t, n in found if t == topic] for topic, _ in found}
    monkeypatch.setattr(
        lag, "describe_topics", lambda _, names: {name: TopicInfo("id", tuple(topics[name])) for name in names}
    )
    monkeypatch.setattr(lag, "log_starts", lambda _, at: {place: found[place][0] for place in at})
    monkeypatch.setattr(lag, "log_ends", lambda _, at: {place: found[place][1] for place in at})
    monkeypatch.setattr(lag, "_messages", lambda kafka, place, first, end: end - first)
    monkeypatch.setattr(lag, "_sent_at", lambda kafka, place, offset: datetime.now(UTC) - timedelta(seconds=90))
    return found


def partitions(cluster: Cluster) -> dict[tuple[str, int], PartitionStatus]:
    return {(p["topic"], p["partition"]): p for p in cluster.engine.status()["partitions"]}


def test_how_far_topics_are_read(cluster: Cluster, kafka: dict[tuple[str, int], tuple[int, int]]) -> None:
    cluster.engine.apply()
    newest = datetime.now(UTC) - timedelta(seconds=40)
    cluster.catalog.progress["user_activity_raw_progress"] = [
        {"kafka_partition": "0", "last_offset": 89, "newest": newest}
    ]
    found = partitions(cluster)
    behind = found["user_activity", 0]
    assert (behind["next_offset"], behind["end_offset"], behind["lag"]) == (90, 100, 10)
    assert 40 <= behind["lag_seconds"] < 60
    assert found["user_activity", 1]["lag"] == 2, "nothing of it is read yet, and it begins at 7"
    assert 90 <= found["user_activity", 1]["lag_seconds"] < 120, "as Kafka tells of the first that waits"
    cluster.catalog.progress["user_activity_raw_progress"][0]["newest"] = datetime.now(UTC) + timedelta(days=365)
    assert 90 <= partitions(cluster)["user_activity", 0]["lag_seconds"] < 120, "nor is a producer's clock believed"
    assert found["purchases", 0]["lag"] == 0
    cluster.catalog.progress["user_activity_raw_progress"][0]["last_offset"] = 99
    assert partitions(cluster)["user_activity", 0]["lag"] == 0


def test_a_topic_that_was_created_anew_is_broken_and_says_what_to_do(
    cluster: Cluster, kafka: dict[tuple[str, int], tuple[int, int]]
) -> None:
    cluster.engine.apply()
    rows = [{"kafka_partition": "0", "last_offset": 99, "newest": datetime.now(UTC)}]
    cluster.catalog.progress["user_activity_raw_progress"] = rows
    assert not cluster.engine.status()["problems"]
    kafka["user_activity", 0] = (0, 12)
    status, pipeline = cluster.engine.status(), Pipeline.of(cluster.engine.settings)
    found = {f.key: f for f in judge(pipeline, of_stream(status, pipeline), {}, 0.0)[0]}
    assert found["kafka", "user_activity"].state is State.BROKEN
    assert "ends at 12, and 100 were read before" in found["kafka", "user_activity"].words
    assert "`recs apply --rebuild user_activity_raw`" in found["kafka", "user_activity"].words
    assert found["kafka", "purchases"].state is not State.BROKEN


def test_the_end_of_a_transaction_is_no_message_that_waits(
    cluster: Cluster, kafka: dict[tuple[str, int], tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.engine.apply()
    newest = datetime.now(UTC) - timedelta(seconds=40)
    rows = [{"kafka_partition": "0", "last_offset": 98, "newest": newest}]
    cluster.catalog.progress["user_activity_raw_progress"] = rows
    assert partitions(cluster)["user_activity", 0]["lag"] == 1
    monkeypatch.setattr(lag, "_messages", lambda kafka, place, first, end: 0)
    found = partitions(cluster)["user_activity", 0]
    assert (found["lag"], found["lag_seconds"]) == (0, 0.0)
    assert found["end_offset"] == found["next_offset"], "so that what is taken in never seems to go on by itself"

    def nobody_answers(*_: object) -> int:
        raise SourceError("no answer")

    monkeypatch.setattr(lag, "_messages", nobody_answers)
    assert partitions(cluster)["user_activity", 0]["lag"] == 1, "where nobody can be asked, it is taken for a message"
    rows[0]["newest"] = datetime.now(UTC)
    assert partitions(cluster)["user_activity", 0]["lag"] == 1, "while it moves nothing is counted"


def test_messages_between_two_offsets_are_counted(kafka_servers: str, topic_prefix: str) -> None:
    topic = topic_prefix + "counted"
    ensure_topics(kafka_servers, [topic], 1)
    with EventProducer(kafka_servers) as producer:
        for i in range(5):
            producer.send_raw(topic, None, str(i).encode())
    assert lag._messages(kafka_servers, (topic, 0), 1, 4) == 3
    with pytest.raises(SourceError):
        lag._messages("127.0.0.1:1", (topic, 0), 1, 4)


def test_a_tombstone_without_a_key_is_not_counted_for_it_never_becomes_a_row(
    kafka_servers: str, topic_prefix: str
) -> None:
    topic = topic_prefix + "tombstones"
    ensure_topics(kafka_servers, [topic], 1)
    producer = Producer({"bootstrap.servers": kafka_servers})
    for key, value in ((b"a", b"1"), (b"a", None), (None, None)):
        producer.produce(topic, value, key, partition=0)
    producer.flush(20)
    assert lag._messages(kafka_servers, (topic, 0), 0, 3) == 2


def test_a_partition_of_which_no_row_came_waits_for_messages_alone(
    cluster: Cluster, kafka: dict[tuple[str, int], tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.engine.apply()
    assert partitions(cluster)["user_activity", 1]["lag"] == 2
    monkeypatch.setattr(lag, "_messages", lambda kafka, place, first, end: 0)
    assert partitions(cluster)["user_activity", 1]["lag"] == 0
    nothing = {"kafka_partition": "0", "last_offset": None, "newest": None}
    cluster.catalog.progress["user_activity_raw_progress"] = [nothing]
    assert partitions(cluster)["user_activity", 0]["next_offset"] == 5, "from where it begins"


def test_an_end_of_a_transaction_is_not_counted(topic_prefix: str) -> None:
    if not (servers := os.environ.get("RECS_TEST_KAFKA")):
        pytest.skip("RECS_TEST_KAFKA names no Kafka: the embedded broker's transactions are not a real one's")
    topic = topic_prefix + "transactions"
    ensure_topics(servers, [topic], 1)
    producer = Producer({"bootstrap.servers": servers, "transactional.id": topic})
    producer.init_transactions(20)
    for ends in (producer.commit_transaction, producer.abort_transaction, producer.commit_transaction):
        producer.begin_transaction()
        producer.produce(topic, b"1", partition=0)
        producer.flush(20)  # or there is nothing to abort
        ends(20)
    assert lag._messages(servers, (topic, 0), 0, 6) == 2
    assert lag._messages(servers, (topic, 0), 5, 6) == 0
    sent = lag._sent_at(servers, (topic, 0), 0)
    assert sent is not None
    assert timedelta(0) <= datetime.now(UTC) - sent < timedelta(minutes=1)


def test_a_sink_that_fails_is_told_of_while_it_is_news_without_a_password(
    cluster: Cluster, kafka: dict[tuple[str, int], tuple[int, int]]
) -> None:
    cluster.engine.apply()
    physical = next(name for name in cluster.catalog.relations if name.startswith("products_sink__"))
    error = "cannot reach redis://:redis-secret@redis:6379/0"
    now = datetime.now(UTC)
    event = happened("SINK_FAIL", now, sinkName=physical, error=error)
    cluster.catalog.events = [happened("SINK_FAIL", now + timedelta(seconds=1), sinkName="another"), event]
    told = cluster.engine.status()["problems"]["redis/products_sink"]
    assert told == f"products_sink failed at {now:%H:%M:%S} UTC: cannot reach redis://:***@redis:6379/0"
    prefix = f"products_sink failed at {now:%H:%M:%S} UTC: "
    padding = "x" * (driver.LONGEST_PROBLEM - len(prefix) - len(" redis-sec"))
    event["info"] = {"sinkFail": {"sinkName": physical, "error": f"{padding} redis-secret"}}
    assert "redis-sec" not in cluster.engine.status()["problems"]["redis/products_sink"], (
        "nor half of it, where the words are cut"
    )
    event["info"] = {"sinkFail": {"sinkName": f"{physical}_1", "error": f"of a later version than {physical}"}}
    assert cluster.engine.status()["problems"] == {}
    event["info"] = {"sinkFail": {"sinkName": physical, "error": "it is away"}}
    event["timestamp"] = now - timedelta(minutes=3)
    assert cluster.engine.status()["problems"], "it tries again every three minutes"
    event["timestamp"] = now - timedelta(minutes=5)
    assert cluster.engine.status()["problems"] == {}


def happened(kind: str, at: datetime, **told: object) -> dict[str, Any]:
    """An event of the log, as a RisingWave tells it."""
    first, *others = kind.lower().split("_")
    return {"event_type": kind, "info": {first + "".join(map(str.capitalize, others)): told}, "timestamp": at}


def test_a_barrier_that_takes_long_makes_sinks_behind(
    cluster: Cluster, kafka: dict[tuple[str, int], tuple[int, int]]
) -> None:
    cluster.engine.apply()
    kafka.update({("user_activity", 0): (0, 0), ("user_activity", 1): (0, 0)})  # nothing else is behind
    assert cluster.engine.status()["barrier_seconds"] is None
    now = datetime.now(UTC)
    cluster.catalog.events = [
        happened("BARRIER_COMPLETE", now - timedelta(minutes=age), durationSec=seconds)
        for age, seconds in ((0, 0.3), (1, 45.0), (5, 457.0))
    ]
    status = cluster.engine.status()
    assert status["barrier_seconds"] == 45.0, "the slowest that is news"
    pipeline = Pipeline.of(cluster.engine.settings)
    found = {f.key: f for f in judge(pipeline, of_stream(status, pipeline), {}, now.timestamp())[0]}
    assert found["user_recommendations_sink",].state is State.BEHIND
    assert found["user_recommendations_sink",].words == "a barrier takes 45 s, 10 s are wanted"


def test_a_barrier_that_never_ends_is_seen_too(cluster: Cluster, kafka: dict[tuple[str, int], tuple[int, int]]) -> None:
    cluster.engine.apply()
    cluster.catalog.events = [happened("BARRIER_COMPLETE", datetime.now(UTC) - timedelta(seconds=300), durationSec=0.2)]
    assert 300 <= (cluster.engine.status()["barrier_seconds"] or 0) < 330
    cluster.catalog.events = [happened("BARRIER_COMPLETE", datetime.now(UTC) - timedelta(seconds=30), durationSec=0.2)]
    assert cluster.engine.status()["barrier_seconds"] == 0.2, "clocks may differ a little"


def test_a_recovery_that_has_not_ended_is_a_problem(
    cluster: Cluster, kafka: dict[tuple[str, int], tuple[int, int]]
) -> None:
    cluster.engine.apply()
    now = datetime.now(UTC)
    cluster.catalog.events = [happened("GLOBAL_RECOVERY_START", now)]
    assert cluster.engine.status()["problems"]["engine"] == f"the RisingWave is recovering since {now:%H:%M:%S} UTC"
    cluster.catalog.events += [happened("GLOBAL_RECOVERY_SUCCESS", now + timedelta(seconds=1))]
    assert "engine" not in cluster.engine.status()["problems"]
    cluster.catalog.events += [happened("DATABASE_RECOVERY_START", now + timedelta(seconds=2))]
    assert "engine" in cluster.engine.status()["problems"], "of one database alone"
    cluster.catalog.events += [happened("DATABASE_RECOVERY_SUCCESS", now + timedelta(seconds=3))]
    assert "engine" not in cluster.engine.status()["problems"]
    cluster.catalog.events += [
        happened("DATABASE_RECOVERY_START", now + timedelta(seconds=4), databaseStart={"databaseId": 1}),
        happened("DATABASE_RECOVERY_SUCCESS", now + timedelta(seconds=5), databaseSuccess={"databaseId": 2}),
    ]
    assert "engine" in cluster.engine.status()["problems"], "that of another has ended"


def test_kafka_that_is_away_is_a_problem_of_the_status(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.engine.apply()
    monkeypatch.setattr(lag, "admin_client", lambda _: admin_client("127.0.0.1:1"))
    assert cluster.engine.status()["problems"] == {"kafka": "Kafka at kafka:9092: it does not answer"}


def test_rows_are_counted_in_postgresql(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute('CREATE SCHEMA IF NOT EXISTS "odd name"')
        connection.execute('CREATE TABLE IF NOT EXISTS "odd name".things AS SELECT 1 AS x UNION ALL SELECT 2')
        assert count_rows(postgres_url, "odd name.things") == 2
        connection.execute('DROP SCHEMA "odd name" CASCADE')


def test_a_table_is_brought_in_step_with_its_file_by_what_differs_alone() -> None:
    there: list[dict[str, object]] = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": "c"}]
    wanted: list[dict[str, object]] = [{"id": 2, "name": "b"}, {"id": 3, "name": None}, {"id": 4, "name": "d"}]
    assert differences(("id",), there, wanted) == ([(1,)], [(3, None), (4, "d")])
    assert differences(("id",), wanted, wanted) == ([], [])


@pytest.mark.parametrize("catalog", [CDC, UPSERTS, DEBEZIUM, FILE])
def test_wherever_the_catalog_comes_from_the_statements_name_physical_relations(catalog: str) -> None:
    pipeline = Pipeline.load(default_sql_dir(), catalog)
    targets = {relation.name: VersionId(relation.fingerprint) for relation in pipeline}
    for relation in pipeline:
        sent = without_comments(statement(relation, targets, SETTINGS))
        assert "${" not in sent
        for name in (relation.name, *relation.upstreams):
            assert physical_name(name, targets[name]) in sent
        check_licence(relation)
