"""What Dagster is told: the asset graph as the SQL says it, deploying by materializing, and what is observed.

After a change of `sql/` that is meant to change the graph: `python -m recs_platform_tests.test_definitions`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import dagster as dg
import psycopg
import pytest
from click.testing import CliRunner
from dagster._core.events import EngineEventData

from recs_platform import repairs
from recs_platform.audit import audit as audited
from recs_platform.audit import remembered
from recs_platform.catalog import ensure_catalog
from recs_platform.cli import main
from recs_platform.definitions import defs
from recs_platform.defs import catalog, deploying, files, health, stream
from recs_platform.defs.dead_runs import give_up_dead
from recs_platform.defs.incidents import failed, run_of
from recs_platform.defs.observe import observer
from recs_platform.defs.resources import Platform
from recs_platform.engines import connect
from recs_platform.engines.local.client import LocalEngine
from recs_platform.engines.risingwave.engine import CAPABILITIES
from recs_platform.engines.status import BACKLOG, PartitionStatus
from recs_platform.errors import EngineBusy, EngineError, PipelineError, SourceError
from recs_platform.health import Finding, State
from recs_platform.lineage import Lineage
from recs_platform.monitor import Report
from recs_platform.pipeline import Kind, Pipeline
from recs_platform.plan import Action, Plan, Step, Tell
from recs_platform.readings import WHILE_IDLE, WHILE_MOVING, Journal, Reading
from recs_platform.schema import drifts
from recs_platform.settings import LOCAL, RISINGWAVE, Settings, default_sql_dir
from recs_platform.stack.service import free_port
from recs_platform_tests.sensing import evaluations, ticked
from recs_platform_tests.shop_floor import Shop, eventually
from recs_platform_tests.sql_copies import sql_copy
from recs_platform_tests.test_contract import local

SNAPSHOT = Path(__file__).parent / "snapshots" / "asset_graph.json"


@pytest.fixture(autouse=True)
def at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No period begins between two ticks, after which what is no news is told again."""
    for sensors in (health, catalog):
        monkeypatch.setattr(sensors, "AT_LEAST_EVERY", 10**9)


def loaded() -> dg.Definitions:
    """The definitions as a code server loads them."""
    return defs()


def specs(definitions: dg.Definitions) -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in definitions.resolve_all_asset_specs()}


def asset_graph() -> dict[str, Any]:
    return {
        key: {
            "deps": sorted(dep.asset_key.to_user_string() for dep in spec.deps),
            "group": spec.group_name,
            "kinds": sorted(spec.kinds),
            "owners": list(spec.owners),
        }
        for key, spec in sorted(specs(loaded()).items())
    }


def as_text(graph: Mapping[str, Any]) -> str:
    return json.dumps(graph, indent=1) + "\n"


@pytest.fixture(autouse=True)
def no_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No service runs, unless a test starts one."""
    monkeypatch.setenv("RECS_STATE_DIR", str(tmp_path / "no_stack"))


# -- the graph --------------------------------------------------------------------------------------------------------


def test_the_asset_graph_is_the_one_committed() -> None:
    assert asset_graph() == json.loads(SNAPSHOT.read_text()), (
        "the asset graph has changed; if it is meant to: python -m recs_platform_tests.test_definitions"
    )


def test_it_loads_while_nothing_runs() -> None:
    dg.Definitions.validate_loadable(loaded())


def test_an_asset_carries_its_sql_version_schema_and_lineage() -> None:
    spec = specs(loaded())["user_recommendations_sink"]
    relation = Pipeline.load(default_sql_dir())["user_recommendations_sink"]
    assert spec.code_version == relation.fingerprint
    assert "FORMAT UPSERT" in spec.metadata["sql"].value
    assert spec.metadata["redis_keys"].value == f"recs:user_recommendations:{relation.fingerprint}:*"
    columns = {column.name: column for column in spec.metadata["dagster/column_schema"].value.columns}
    assert columns["user_id"].type == "BIGINT"
    assert "postgres/product_catalog.product_id" in (columns["recommended_products"].description or "")
    lineage = spec.metadata["dagster/column_lineage"].value.deps_by_column
    assert lineage["as_of"] == [dg.TableColumnDep(dg.AssetKey("user_recommendations"), "as_of")]


@pytest.mark.parametrize(
    ("relation", "column", "origins"),
    [
        ("user_recommendations_sink", "key", {"kafka/user_activity value.user_id"}),
        (
            "user_recommendations_sink",
            "recommended_products",
            {
                "postgres/product_catalog product_id",
                "postgres/product_catalog category",
                "kafka/user_activity value.product_id",
            },
        ),
        ("products_sink", "price", {"postgres/product_catalog price"}),
        ("trending_by_segment_sink", "segment", {"postgres/customers age_band", "postgres/customers country"}),
        ("also_bought_sink", "as_of", {"kafka/purchases value.timestamp"}),
        ("dead_letters", "kafka_offset", {"kafka/user_activity offset", "kafka/purchases offset"}),
    ],
)
def test_a_value_is_followed_to_the_event_field_or_catalog_column_it_is_from(
    relation: str, column: str, origins: set[str]
) -> None:
    found = Lineage.of(Pipeline.load(default_sql_dir())).origins(((relation,), column))
    assert {f"{'/'.join(key)} {name}" for key, name in found} == origins


def test_a_box_is_labelled_with_the_engine_that_keeps_it() -> None:
    for engine, technology in ((LOCAL, "duckdb"), (RISINGWAVE, "risingwave")):
        nodes = Lineage.of(Pipeline.load(default_sql_dir(), engine=engine), engine).nodes
        assert nodes["trending_products",].kinds == {"sql", technology}
        assert nodes["trending_products_sink",].kinds == {"sql", "redis"}


def test_the_types_of_event_fields_are_those_they_are_cast_to() -> None:
    topic = Lineage.of(Pipeline.load(default_sql_dir())).nodes["kafka", "purchases"]
    assert {c.name: c.type for c in topic.columns}.items() >= {
        "value.quantity": "BIGINT", "value.price": "DOUBLE PRECISION", "value.event_type": "JSON", "partition": "VARCHAR",
    }.items()  # fmt: skip


def test_no_secret_is_in_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECS_POSTGRES_URL", "postgresql://shop:hunter2@db/shop")
    monkeypatch.setenv("RECS_REDIS_URL", "redis://:hunter2@cache/0")
    monkeypatch.setenv("RECS_ENGINE_TOKEN", "hunter2")
    assert "hunter2" not in str(list(specs(loaded()).values()))


# -- a file that is wrong ---------------------------------------------------------------------------------------------


@pytest.fixture
def sql_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files that have been loaded once."""
    directory = sql_copy(tmp_path / "sql")
    monkeypatch.setenv("RECS_SQL_DIR", str(directory))
    loaded()
    return directory


def test_while_a_file_is_wrong_all_that_watches_stays_loaded(sql_dir: Path) -> None:
    before = asset_graph()
    (sql_dir / "trending_products.sql").write_text("CREATE MATERIALIZED VIEW trending_products AS SELEKT 1;")
    assert asset_graph() == before
    assert {"view_freshness", "sink_health"} <= {sensor.name for sensor in loaded().sensors or ()}


def test_files_that_never_could_be_read_are_refused(
    sql_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (sql_dir / "trending_products.sql").write_text("SELEKT")
    monkeypatch.setenv("RECS_SQL_DIR", str(shutil.copytree(sql_dir, tmp_path / "others")))
    with pytest.raises(PipelineError, match=r"others/trending_products.sql:1"):
        loaded()


@pytest.mark.parametrize(
    ("file", "text", "boxes"),
    [
        ("trending_products", "CREATE MATERIALIZED VIEW trending_products AS SELEKT 1;", {"trending_products"}),
        ("extra", "CREATE VIEW extra AS SELECT x FROM user_seen JOIN nowhere USING (user_id);", {"user_seen"}),
        ("extra", "SELEKT", {sink.name for sink in Pipeline.load(default_sql_dir()).of_kind(Kind.SINK)}),
    ],
)
def test_the_check_of_a_file_that_is_wrong_fails_until_it_is_right(
    sql_dir: Path, file: str, text: str, boxes: set[str]
) -> None:
    sensor = files.watcher(Pipeline.load(sql_dir))
    first = ticked(sensor)
    assert all(evaluation.passed for evaluation in evaluations(first).values())
    path = sql_dir / f"{file}.sql"
    right = path.read_text() if path.exists() else None
    path.write_text(text)
    second = ticked(sensor, first.cursor)
    assert {asset for asset, evaluation in evaluations(second).items() if not evaluation.passed} == boxes
    words = {str(evaluation.description) for evaluation in evaluations(second).values()}
    assert all(f"{file}.sql:1: " in told and "nothing is deployed until" in told for told in words)
    assert not ticked(sensor, second.cursor).asset_events, "nothing is news"
    path.write_text(right) if right else path.unlink()
    third = evaluations(ticked(sensor, second.cursor))
    assert {asset for asset, evaluation in third.items() if evaluation.passed} == boxes


# -- with an engine ---------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(
    tmp_path: Path,
    kafka_servers: str,
    postgres_url: str,
    redis_url: str,
    topic_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Shop]:
    """A running engine, and the environment that a code server of its stack has."""
    shop = Shop(tmp_path, kafka_servers, postgres_url, redis_url, topic_prefix)
    monkeypatch.setenv("RECS_SQL_DIR", str(shop.settings.sql_dir))
    monkeypatch.setenv("RECS_KAFKA_BOOTSTRAP_SERVERS", kafka_servers)
    monkeypatch.setenv("RECS_REDIS_URL", redis_url)
    monkeypatch.setenv("RECS_POSTGRES_URL", postgres_url)
    monkeypatch.setenv("RECS_REPLICATION_SLOT", shop.settings.replication_slot)
    with local(shop) as engine:
        assert isinstance(engine, LocalEngine)
        monkeypatch.setenv("RECS_ENGINE_URL", engine.url)
        monkeypatch.setenv("RECS_ENGINE_TOKEN", "secret-token")
        yield shop
    shop.close()


def materialize(*names: str, rebuild: bool = False) -> dict[str, str]:
    """Relation → what the run says was done for it."""
    job = loaded().resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        run_config={"ops": {"stream": {"config": {"rebuild": rebuild}}}},
        asset_selection=[dg.AssetKey(name) for name in names] or None,
    )
    events = result.get_asset_materialization_events()
    materializations = [event.step_materialization_data.materialization for event in events]
    return {m.asset_key.path[-1]: str(m.metadata["plan"].value) for m in materializations}


def test_materializing_brings_what_is_deployed_up_to_date(shop: Shop) -> None:
    done = materialize()
    assert done.keys() == Pipeline.load(shop.settings.sql_dir).relations.keys()
    assert set(done.values()) == {"nothing to do: deployed as `sql/` says"}

    view = shop.settings.sql_dir / "trending_products.sql"
    view.write_text(view.read_text().replace("rank <= 10", "rank <= 5"))
    done = materialize("trending_products", "user_seen")
    assert "its SQL changed" in done["trending_products"]
    assert done["user_seen"].startswith("nothing to do")
    assert Pipeline.load(shop.settings.sql_dir)["trending_products"].fingerprint in done["trending_products"]


def test_a_rebuild_builds_what_is_selected_anew_with_what_hangs_on_it(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = set[str]()
    apply = LocalEngine.apply

    def noting(engine: LocalEngine, rebuild: Iterable[str] = (), tell: Tell | None = None) -> Plan:
        asked.update(rebuild)
        return apply(engine, rebuild, tell)

    monkeypatch.setattr(LocalEngine, "apply", noting)
    done = materialize("trending_products", rebuild=True)
    assert list(done) == ["trending_products"]
    assert "asked for" in done["trending_products"]
    assert asked == {"trending_products", "trending_products_sink"}


def test_there_is_a_job_for_each_thing_a_person_asks_for() -> None:
    jobs = {job.name for job in loaded().resolve_all_job_defs()}
    assert jobs >= {"deploy_pipeline", "rebuild_views", "resync_sinks", "replay_dead_letters"}
    sinks = {r.name for r in Pipeline.load(default_sql_dir()).of_kind(Kind.SINK)}
    selected = loaded().resolve_job_def("resync_sinks").asset_layer.executable_asset_keys
    assert {key.to_user_string() for key in selected} == sinks


def test_a_refusal_fails_the_run_in_the_engines_words(shop: Shop) -> None:
    pipeline = Pipeline.load(shop.settings.sql_dir)
    (shop.settings.sql_dir / "broken.sql").write_text("CREATE VIEW broken AS SELECT x FROM nowhere;")
    with pytest.raises(dg.Failure, match="no file defines 'nowhere'"):
        stream.deploy(Platform(), pipeline, ())


def test_a_rebuild_deploys_nothing_else(shop: Shop) -> None:
    view = shop.settings.sql_dir / "trending_products.sql"
    view.write_text(view.read_text().replace("rank <= 10", "rank <= 5"))
    pipeline = Pipeline.load(shop.settings.sql_dir)
    with pytest.raises(dg.Failure, match=r"would be as well \(trending_products, trending_products_sink\)"):
        stream.deploy(Platform(), pipeline, ["products_sink"])
    assert stream.deploy(Platform(), pipeline, ["trending_products", "trending_products_sink"])[0], (
        "it is rebuilt itself"
    )
    with Platform().engine() as engine:
        engine.roll_back()
    with pytest.raises(dg.Failure, match="somebody has gone back from these files"):
        stream.deploy(Platform(), pipeline, ["products_sink"])


def test_a_run_that_a_person_starts_once_more_is_asked_for() -> None:
    by_sensor = dg.DagsterRun(job_name="j", tags={"dagster/sensor_name": "deploy_when_changed"})
    assert not stream.is_attended(by_sensor)
    assert stream.is_attended(dg.DagsterRun(job_name="j"))
    tags = dict(by_sensor.tags)
    again = dg.DagsterRun(job_name="j", tags=tags, root_run_id=by_sensor.run_id, parent_run_id=by_sensor.run_id)
    assert stream.is_attended(again)


@pytest.mark.parametrize("error", [EngineBusy("a build is under way"), SourceError("PostgreSQL does not answer")])
def test_what_the_engine_cannot_do_just_now_is_asked_for_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, error: EngineError
) -> None:
    def refuse(*_: object) -> Plan:
        raise error

    assert shop.engine is not None
    monkeypatch.setattr(shop.engine, "apply", refuse)
    with pytest.raises(dg.RetryRequested) as asked:
        stream.deploy(Platform(), Pipeline.load(shop.settings.sql_dir), ())
    assert type(asked.value.__cause__) is type(error)
    assert str(asked.value.__cause__) == str(error)


def test_no_deployment_takes_checks_along() -> None:
    """They would be shown as failed where the deployment is refused."""
    for name in ("deploy_pipeline", "rebuild_views", "resync_sinks"):
        assert not loaded().resolve_job_def(name).asset_layer.asset_graph.asset_check_keys, name
    assert run_of("one of them", ["products_sink"]).asset_check_keys == []
    assert run_of("all of the job", []).asset_check_keys is None


def started(request: dg.RunRequest, instance: dg.DagsterInstance, status: dg.DagsterRunStatus) -> dg.DagsterRun:
    tags = {"dagster/run_key": str(request.run_key)}
    return instance.add_run(dg.DagsterRun(job_name="deploy_pipeline", status=status, tags=tags))


def materialized(instance: dg.DagsterInstance, pipeline: Pipeline, names: Iterable[str]) -> None:
    """A run has deployed them as their files are."""
    for name in names:
        tags = {"dagster/code_version": pipeline[name].fingerprint}
        instance.report_runless_asset_event(dg.AssetMaterialization(name, tags=tags))


class Deploying:
    """Ticks of the sensor `deploy_when_changed`, the files read before each as the daemon does."""

    def __init__(self, shop: Shop, instance: dg.DagsterInstance) -> None:
        self._sql, self._instance, self._cursor = shop.settings.sql_dir, instance, ""

    @property
    def pipeline(self) -> Pipeline:
        return Pipeline.load(self._sql)

    def edit(self, limit: int) -> None:
        view = self._sql / "trending_products.sql"
        view.write_text(re.sub(r"rank <= \d+", f"rank <= {limit}", view.read_text()))

    def asked(self) -> list[dg.RunRequest]:
        result = ticked(deploying.deploy_when_changed(self.pipeline), self._cursor, self._instance)
        self._cursor = result.cursor or ""
        return list(result.run_requests or ())


def selected(requests: Sequence[dg.RunRequest]) -> list[list[str]]:
    return [[key.to_user_string() for key in request.asset_selection or ()] for request in requests]


def test_what_is_saved_is_deployed_once_also_while_a_deployment_runs(shop: Shop) -> None:
    edited = ["trending_products", "trending_products_sink"]
    with dg.DagsterInstance.ephemeral() as instance:
        sensor = Deploying(shop, instance)
        assert selected(sensor.asked()) == [list(sensor.pipeline.relations)], "nobody has seen any of it deployed"
        materialized(instance, sensor.pipeline, sensor.pipeline.relations)
        assert sensor.asked() == []
        sensor.edit(9)
        [request] = sensor.asked()
        assert selected([request]) == [edited]
        sensor.edit(8)
        run = started(request, instance, dg.DagsterRunStatus.STARTED)
        assert sensor.asked() == [], "one is under way"
        instance.report_run_canceled(run)
        assert selected(sensor.asked()) == [edited]
        assert sensor.asked() == [], "once"


def test_a_deployment_that_came_to_nothing_is_tried_again_and_one_that_is_refused_is_not(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repairs, "BETWEEN_TRIES", 0.0)
    with dg.DagsterInstance.ephemeral() as instance:
        sensor = Deploying(shop, instance)
        materialized(instance, sensor.pipeline, sensor.pipeline.relations)
        sensor.edit(9)
        for tries in range(repairs.TRIES):
            [request] = sensor.asked()
            assert ("again" in str(request.run_key)) is bool(tries)
            started(request, instance, dg.DagsterRunStatus.FAILURE)
        assert sensor.asked() == [], "not for ever"
        sensor.edit(10)
        sink = shop.settings.sql_dir / "products_sink.sql"
        sink.write_text(sink.read_text().replace("price, image_url", "price AS cost, image_url"))
        [request] = sensor.asked()
        started(request, instance, dg.DagsterRunStatus.FAILURE)
        assert sensor.asked() == [], "it would be refused again"


def test_what_is_gone_from_the_files_is_dropped(shop: Shop) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        sensor = Deploying(shop, instance)
        extra = shop.settings.sql_dir / "extra.sql"
        extra.write_text("CREATE MATERIALIZED VIEW extra AS SELECT product_id, rank FROM trending_products;")
        assert stream.deploy(Platform(), sensor.pipeline, ())[0]
        extra.unlink()
        materialized(instance, sensor.pipeline, sensor.pipeline.relations)
        assert selected(sensor.asked()) == [[]], "all of the job"
        assert stream.deploy(Platform(), sensor.pipeline, (), is_attended=False)[0]
        assert sensor.asked() == []
        with Platform().engine() as engine:
            engine.roll_back()
        assert sensor.asked() == [], "somebody has gone back from that"


def test_what_an_engine_keeps_for_a_while_is_dropped_after_that(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairs, "BETWEEN_TRIES", 0.0)
    monkeypatch.setattr(LocalEngine, "deployed", lambda _: {"extra": "1" * 8})
    with dg.DagsterInstance.ephemeral() as instance:
        sensor = Deploying(shop, instance)
        materialized(instance, sensor.pipeline, sensor.pipeline.relations)
        [request] = sensor.asked()
        started(request, instance, dg.DagsterRunStatus.SUCCESS)
        assert sensor.asked() == [], "so that one can go back"
        monkeypatch.setenv("RECS_GRACE_SECONDS", "0")
        assert selected(sensor.asked()) == [[]]


def test_an_engine_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECS_ENGINE_URL", f"grpc://127.0.0.1:{free_port()}")
    with pytest.raises(dg.RetryRequested):
        stream.deploy(Platform(), Pipeline.load(default_sql_dir()), ())


# -- the sensor -------------------------------------------------------------------------------------------------------


def tick(cursor: str | None = None) -> tuple[dict[str, Mapping[str, Any]], dg.SensorResult]:
    """Asset → what one tick of the sensor observes of it, and the tick's result."""
    pipeline = Pipeline.load(Settings.load().sql_dir)
    sensor = observer(pipeline, [node.key for node in Lineage.of(pipeline)])
    result = ticked(sensor, cursor)
    observed = {event.asset_key.to_user_string(): event.metadata for event in result.asset_events}
    return {key: {name: entry.value for name, entry in found.items()} for key, found in observed.items()}, result


def said(result: dg.SensorResult) -> str:
    """What a tick says of itself."""
    assert result.skip_reason is not None
    return result.skip_reason.skip_message or ""


def test_a_tick_observes_topics_slot_catalog_and_relations(shop: Shop) -> None:
    shop.sql("INSERT INTO product_catalog (product_id, name) VALUES ('p1', 'One')")
    shop.send("purchases", [b"not JSON"] * 3)
    eventually(lambda: shop.engine is not None and sum(p["end_offset"] for p in shop.engine.lags) == 3)
    observed, result = tick()

    assert observed[f"kafka/{shop.prefix}purchases"]["messages"] == 3
    assert observed["shop"]["wal_status"] == "reserved"
    assert observed["shop"]["lag_bytes"] >= 0
    assert observed["postgres/product_catalog"]["bytes"] > 0
    assert observed["dead_letters"]["dagster/row_count"] == 3
    assert observed["dead_letters"]["age_seconds"] >= 0
    assert observed.keys() == specs(loaded()).keys()

    again, result = tick(result.cursor)
    assert not again, "nothing is news, and what moves is written down every few minutes"


def test_what_answers_is_observed_while_the_engine_is_away(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECS_ENGINE_URL", f"grpc://127.0.0.1:{free_port()}")
    observed, result = tick()
    assert observed.keys() == {"shop", "postgres/customers", "postgres/product_catalog", "postgres/recs_heartbeat"}
    assert "does not answer" in said(result)


def test_a_tick_without_a_stack_says_how_to_start_one() -> None:
    observed, result = tick()
    assert not observed
    assert "`recs up` starts one" in said(result)


def test_the_password_is_not_in_what_a_tick_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECS_POSTGRES_URL", f"postgresql://shop:hunter2@127.0.0.1:{free_port()}/shop")
    _, result = tick()
    assert "postgresql://shop:***@127.0.0.1" in said(result)
    assert "hunter2" not in said(result)


# -- health -----------------------------------------------------------------------------------------------------------


def evaluated(
    sensor: dg.SensorDefinition, cursor: str | None = None, instance: dg.DagsterInstance | None = None
) -> tuple[dict[str, Any], dg.SensorResult]:
    """Asset → its evaluation in one tick, and the tick's result."""
    result = ticked(sensor, cursor, instance)
    return evaluations(result), result


def test_freshness_is_judged_for_every_relation_and_told_on_a_change(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.load(shop.settings.sql_dir)
    eventually(lambda: shop.engine is not None and len(shop.engine.lags) == 9)
    found, result = evaluated(health.view_freshness(pipeline))
    assert found.keys() == pipeline.relations.keys()
    assert all(evaluation.passed for evaluation in found.values()), [e.description for e in found.values()]
    found, result = evaluated(health.view_freshness(pipeline), result.cursor)
    assert not found, "nothing is news"

    monkeypatch.setenv("RECS_ENGINE_URL", f"grpc://127.0.0.1:{free_port()}")
    found, result = evaluated(health.view_freshness(pipeline), result.cursor)
    assert not any(evaluation.passed for evaluation in found.values())
    assert "does not answer" in str(found["trending_products"].description)
    assert f"{len(pipeline.relations)} broken" in said(result)


@pytest.mark.parametrize(
    ("state", "since", "severity"),
    [(State.BEHIND, 200, "WARN"), (State.BEHIND, 400, "ERROR"), (State.STALLED, 1, "ERROR")],
)
def test_what_is_behind_is_a_warning_for_five_minutes(
    monkeypatch: pytest.MonkeyPatch, state: State, since: float, severity: str
) -> None:
    pipeline, now = Pipeline.load(default_sql_dir()), time.time()
    view = Finding(("trending_products",), state, now - since, "many wait", blame=("kafka", "user_activity"))
    monkeypatch.setattr(health, "look_and_remember", lambda *_: Report(now, (), (view,)))
    found, result = evaluated(health.view_freshness(pipeline))
    assert found["trending_products"].severity.value == severity
    assert not evaluated(health.view_freshness(pipeline), result.cursor)[0], "nothing is news"
    later = replace(view, since=now - since - 200)
    monkeypatch.setattr(health, "look_and_remember", lambda *_: Report(now, (), (later,)))
    assert bool(evaluated(health.view_freshness(pipeline), result.cursor)[0]) is (severity == "WARN")


def test_what_a_run_has_found_during_a_blip_is_put_right_at_the_next_look(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sensor saw nothing of it, so that its cursor says that nothing has changed."""
    pipeline = Pipeline.load(shop.settings.sql_dir)
    job = loaded().resolve_job_def("freshness_check")
    eventually(lambda: shop.engine is not None and len(shop.engine.lags) == 9)
    with dg.DagsterInstance.ephemeral() as instance:
        _, views = evaluated(health.view_freshness(pipeline), None, instance)
        _, sinks = evaluated(health.sink_health(pipeline), None, instance)
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("RECS_ENGINE_URL", f"grpc://127.0.0.1:{free_port()}")
            run = job.execute_in_process(instance=instance)
            assert not any(evaluation.passed for evaluation in run.get_asset_check_evaluations())
        found, _ = evaluated(health.view_freshness(pipeline), views.cursor, instance)
        assert found.keys() == pipeline.relations.keys()
        found, _ = evaluated(health.sink_health(pipeline), sinks.cursor, instance)
        assert found.keys() == {sink.name for sink in pipeline.of_kind(Kind.SINK)}
        job.execute_in_process(instance=instance)
        assert not evaluated(health.view_freshness(pipeline), views.cursor, instance)[0], "nothing is news"


def test_an_emptied_redis_and_a_lost_key_are_seen(shop: Shop) -> None:
    pipeline = Pipeline.load(shop.settings.sql_dir)
    shop.sql("INSERT INTO product_catalog (product_id, name) VALUES ('p1', 'One'), ('p2', 'Two')")
    eventually(lambda: len(shop.documents("products")) == 2)
    found, result = evaluated(health.sink_health(pipeline))
    assert {name: e.passed for name, e in found.items()} == {s.name: True for s in pipeline.of_kind(Kind.SINK)}
    assert found["products_sink"].metadata["looked_at"].value == 2

    shop.redis.delete(f"recs:products:{shop.redis.get('recs:products')}:p1")
    found, result = evaluated(health.sink_health(pipeline), result.cursor)
    assert list(found) == ["products_sink"]
    assert str(found["products_sink"].description).startswith("of 2 rows looked at: 1 missing (recs:products:")


def test_a_sink_that_stays_wrong_is_written_anew_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.load(shop.settings.sql_dir)
    shop.sql("INSERT INTO product_catalog (product_id, name) VALUES ('p1', 'One'), ('p2', 'Two')")
    eventually(lambda: len(shop.documents("products")) == 2)
    version = shop.redis.get("recs:products")
    shop.redis.delete(f"recs:products:{version}:p1")
    shop.redis.set(f"recs:products:{version}:p2", '{"product_id":"p2","name":"Another"}')
    shop.redis.set(f"recs:products:{version}:p3", "{}")

    _, first = evaluated(health.sink_health(pipeline))
    assert not first.run_requests, "it may mend itself"
    monkeypatch.setenv("RECS_REPAIR_SINKS", "false")
    assert not evaluated(health.sink_health(pipeline), first.cursor)[1].run_requests
    monkeypatch.delenv("RECS_REPAIR_SINKS")
    _, second = evaluated(health.sink_health(pipeline), first.cursor)
    [request] = second.run_requests or []
    assert request.asset_selection == [dg.AssetKey("products_sink")]
    assert not evaluated(health.sink_health(pipeline), second.cursor)[1].run_requests, "once an incident"
    known = repairs.load(str(second.cursor).split("\n")[1])
    assert "recs:" not in str(second.cursor), "keys name shoppers, and Dagster keeps cursors"
    assert set(remembered(Settings.load().state_dir)["products_sink"]) == {
        f"recs:products:{version}:p{n}" for n in (1, 2)
    }
    with dg.DagsterInstance.ephemeral() as instance:
        assert failed(instance, known) == set(), "nobody knows of a run"
        for status in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE):
            run = dg.DagsterRun(job_name="resync_sinks", status=status, tags={"dagster/run_key": str(request.run_key)})
            instance.add_run(run)
            assert failed(instance, known) == ({"products_sink"} if status is dg.DagsterRunStatus.FAILURE else set())

    with connect() as engine:
        [audit] = audited(engine, pipeline, shop.redis_url, None, ["products_sink"])
    assert [[k.rpartition(":")[2] for k in wrong] for wrong in (audit.missing, audit.stale, audit.orphaned)] == [
        ["p1"], ["p2"], ["p3"]]  # fmt: skip
    job = loaded().resolve_job_def("resync_sinks")
    assert job.execute_in_process(asset_selection=[dg.AssetKey("products_sink")]).success
    with connect() as engine:
        eventually(lambda: not any(a.problem for a in audited(engine, pipeline, shop.redis_url, None)))
    assert {key: row["name"] for key, row in shop.documents("products").items()} == {"p1": "One", "p2": "Two"}


def test_the_command_repairs_what_is_wrong_and_deploys_nothing_else(shop: Shop) -> None:
    shop.sql("INSERT INTO product_catalog (product_id, name) VALUES ('p1', 'One')")
    eventually(lambda: len(shop.documents("products")) == 1)
    version, view = shop.redis.get("recs:products"), shop.settings.sql_dir / "trending_products.sql"
    shop.redis.delete(f"recs:products:{version}:p1")
    before = view.read_text()
    view.write_text(before.replace("rank <= 10", "rank <= 5"))
    refused = CliRunner().invoke(main, ["audit", "products_sink", "--repair"])
    assert refused.exit_code != 0
    assert "nothing is repaired" in refused.output
    assert "(trending_products, trending_products_sink)" in refused.output
    view.write_text(before)
    assert CliRunner().invoke(main, ["audit", "products_sink", "--repair"]).exit_code == 0
    assert list(shop.documents("products")) == ["p1"]


def test_a_key_that_was_wrong_is_looked_at_again_until_it_is_right(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever rows a sample holds."""
    pipeline = Pipeline.load(shop.settings.sql_dir)
    shop.sql("INSERT INTO product_catalog (product_id, name) SELECT 'p' || i, 'Hat' FROM generate_series(1, 50) AS i")
    eventually(lambda: len(shop.documents("products")) == 50)
    shop.redis.delete(f"recs:products:{shop.redis.get('recs:products')}:p1")
    _, first = evaluated(health.sink_health(pipeline))
    monkeypatch.setattr(health, "audit", partial(audited, sample=1))
    _, second = evaluated(health.sink_health(pipeline), first.cursor)
    assert [r.asset_selection for r in second.run_requests or []] == [[dg.AssetKey("products_sink")]]


def test_rows_are_not_compared_while_the_engine_is_behind(shop: Shop) -> None:
    pipeline = Pipeline.load(shop.settings.sql_dir)
    shop.sql("INSERT INTO product_catalog (product_id, name) VALUES ('p1', 'One')")
    eventually(lambda: len(shop.documents("products")) == 1)
    shop.redis.delete(f"recs:products:{shop.redis.get('recs:products')}:p1")
    assert shop.engine is not None

    def waiting(lag: int, seconds: float) -> PartitionStatus:
        return {
            "topic": "user_activity", "partition": 0, "next_offset": 0, "end_offset": lag, "lag": lag, "lag_seconds": seconds,
        }  # fmt: skip

    assert health._is_behind({"partitions": [waiting(BACKLOG, 3.0)]})
    assert health._is_behind({"partitions": [waiting(1, 30.0)]})
    assert not health._is_behind({"partitions": [waiting(0, 30.0), waiting(10, 1.0)]})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(health, "_is_behind", lambda status: True)
        found, result = evaluated(health.sink_health(pipeline))
    assert found["products_sink"].passed
    assert "the engine is behind" in str(found["products_sink"].description)
    found, _ = evaluated(health.sink_health(pipeline), result.cursor)
    assert not found["products_sink"].passed


def test_redis_that_is_away_is_what_is_wrong_with_all_sinks(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECS_REDIS_URL", f"redis://:hunter2@127.0.0.1:{free_port()}/0")
    found, _ = evaluated(health.sink_health(Pipeline.load(shop.settings.sql_dir)))
    assert {e.passed for e in found.values()} == {False}
    assert "Redis at redis://:***@127.0.0.1" in str(found["products_sink"].description)


def test_the_scheduled_run_judges_the_same(shop: Shop) -> None:
    eventually(lambda: shop.engine is not None and len(shop.engine.lags) == 9)
    result = loaded().resolve_job_def("freshness_check").execute_in_process()
    found = {(e.asset_key.to_user_string(), e.check_name): e.passed for e in result.get_asset_check_evaluations()}
    pipeline = Pipeline.load(shop.settings.sql_dir)
    sinks = {(sink.name, "in_redis") for sink in pipeline.of_kind(Kind.SINK)}
    assert found.keys() == {(name, "freshness") for name in pipeline.relations} | sinks
    assert all(found.values())
    schedule = loaded().resolve_schedule_def("freshness_check")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


# -- the replication slot --------------------------------------------------------------------------------------------


class Answering:
    """An engine with which all is deployed; it says of itself what the test says."""

    capabilities = CAPABILITIES

    def __init__(self, status: dict[str, Any]) -> None:
        self._status = status

    def status(self) -> dict[str, Any]:
        return self._status

    def plan(self, rebuild: Iterable[str]) -> Plan:
        return Plan(tuple(Step(Action.CREATE, name, "1" * 8, "asked for") for name in sorted(rebuild)))

    def deployed_pipeline(self) -> Pipeline:
        return Pipeline.load(default_sql_dir())


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the engine says of itself."""
    status: dict[str, Any] = {}

    @contextmanager
    def engine(self: Platform, timeout: float = 30.0) -> Iterator[Answering]:
        yield Answering(status)

    monkeypatch.setattr(Platform, "engine", engine)
    return status


def test_a_slot_that_is_lost_under_an_engine_that_does_not_retake_it_has_the_catalog_read_anew_once(
    tables: psycopg.Connection[Any], answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = f"slot_{time.monotonic_ns()}"
    answers |= {"slot": slot, "slot_remedy": "`recs apply --rebuild shop`"}
    pipeline, cursor = Pipeline.load(default_sql_dir()), None

    def looked() -> list[str]:
        nonlocal cursor
        result = ticked(catalog.slot_health(pipeline), cursor)
        cursor = result.cursor
        return [key.to_user_string() for r in result.run_requests or () for key in r.asset_selection or ()]

    tables.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    assert looked() == looked() == []
    tables.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    assert looked() == [], "it may be about to be made"
    answers["gone_back"] = True
    assert looked() == [], "a run would deploy what somebody has gone back from"
    answers["gone_back"] = False
    assert looked() == ["shop"]
    assert looked() == [], "once an incident"
    with monkeypatch.context() as away:
        away.setenv("RECS_POSTGRES_URL", f"postgresql://recs@127.0.0.1:{free_port()}/shop")
        assert looked() == []
    assert looked() == [], "nor again after a look that could not look"
    cursor = None
    monkeypatch.setenv("RECS_REPAIR_SLOT", "false")
    assert [*looked(), *looked()] == []
    monkeypatch.delenv("RECS_REPAIR_SLOT")
    answers["slot_remedy"] = ""
    assert [*looked(), *looked()] == [], "the engine makes it anew by itself"


# -- the catalog's columns ---------------------------------------------------------------------------------------------


def look(cursor: str | None = None, instance: dg.DagsterInstance | None = None) -> dg.SensorResult:
    """One tick of `schema_change`."""
    return ticked(catalog.watcher(Pipeline.load(Settings.load().sql_dir)), cursor, instance)


def judged(result: dg.SensorResult) -> dict[str, bool]:
    """Asset → whether its columns are as they are read."""
    return {asset: evaluation.passed for asset, evaluation in evaluations(result).items()}


def rebuilt(result: dg.SensorResult) -> list[str]:
    return [key.to_user_string() for request in result.run_requests or () for key in request.asset_selection or ()]


@pytest.fixture
def tables(
    postgres_url: str, answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection[Any]]:
    """The catalog in PostgreSQL, beside an engine with which all is deployed."""
    ensure_catalog(postgres_url)
    monkeypatch.setenv("RECS_POSTGRES_URL", postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


def test_a_breaking_change_fails_the_check_and_names_what_feels_it(tables: psycopg.Connection[Any]) -> None:
    before = look()
    assert judged(before) == {"customers": True, "heartbeat": True, "product_catalog": True}
    assert not look(before.cursor).asset_events, "nothing is news"

    tables.execute("ALTER TABLE product_catalog RENAME COLUMN price TO cost")
    after = look(before.cursor)
    assert judged(after) == {"product_catalog": False}
    [broken] = [e for e in after.asset_events if isinstance(e, dg.AssetCheckEvaluation) and not e.passed]
    said = str(broken.metadata["what"].value)
    assert said == (
        "column price of public.product_catalog is called cost now; read by products_sink, felt by products_sink, "
        "recs:products:*"
    )
    assert "RECS_FOLLOW_BREAKING_CHANGES" in str(broken.metadata["next"].value)
    assert not after.run_requests

    tables.execute("ALTER TABLE product_catalog RENAME COLUMN cost TO price")
    undone = look(after.cursor)
    assert rebuilt(undone) == ["product_catalog", "products_sink"], "what went on with NULL is built anew"
    assert not look(undone.cursor).run_requests, "one change starts one run"


def columns() -> Any:
    return catalog.columns(Platform(), Pipeline.load(default_sql_dir()))


def built(instance: dg.DagsterInstance, *names: str) -> None:
    """A run has built them anew."""
    for name in names:
        metadata = {stream.BUILT: dg.MetadataValue.bool(True)}
        instance.report_runless_asset_event(dg.AssetMaterialization(name, metadata=metadata))


def test_rows_that_a_change_has_made_wrong_fail_the_check_until_they_are_built_anew(
    tables: psycopg.Connection[Any], answers: dict[str, Any]
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        before = look(None, instance)
        built(instance, "product_catalog", "products_sink")
        tables.execute("ALTER TABLE product_catalog ALTER COLUMN price TYPE real")
        answers["gone_back"] = True
        put_off = look(before.cursor, instance)
        assert not put_off.run_requests, "the run would be refused"
        assert not evaluations(put_off)["product_catalog"].passed
        assert "not built anew yet: not deployed: somebody has gone back" in str(
            evaluations(put_off)["product_catalog"].description
        )
        answers["gone_back"] = False
        asked = look(put_off.cursor, instance)
        assert rebuilt(asked) == ["product_catalog", "products_sink"], "put off, not forgotten"
        [request] = asked.run_requests or []
        tags = {"dagster/run_key": str(request.run_key)}
        instance.add_run(dg.DagsterRun(job_name="rebuild_views", status=dg.DagsterRunStatus.FAILURE, tags=tags))
        later = look(asked.cursor, instance)
        assert not judged(later).get("product_catalog", False), "it stays wrong"
        built(instance, "product_catalog", "products_sink")
        assert judged(look(later.cursor, instance)) == {"product_catalog": True}


def test_a_rebuild_that_came_to_nothing_is_asked_for_again(
    tables: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repairs, "BETWEEN_TRIES", 0.0)
    with dg.DagsterInstance.ephemeral() as instance:
        result, asked = look(None, instance), list[list[str]]()
        tables.execute("ALTER TABLE product_catalog ALTER COLUMN price TYPE real")
        for _ in range(repairs.TRIES + 1):
            result = look(result.cursor, instance)
            asked.append(rebuilt(result))
            for request in result.run_requests or ():
                tags = {"dagster/run_key": str(request.run_key)}
                instance.add_run(dg.DagsterRun(job_name="rebuild_views", status=dg.DagsterRunStatus.FAILURE, tags=tags))
    assert asked == [["product_catalog", "products_sink"]] * repairs.TRIES + [[]], "not for ever"


def test_a_breaking_change_is_followed_when_settings_say_so(
    tables: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECS_FOLLOW_BREAKING_CHANGES", "true")
    before = look()
    tables.execute("ALTER TABLE product_catalog DROP COLUMN price")
    assert rebuilt(look(before.cursor)) == ["product_catalog", "products_sink"]


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ("ADD COLUMN brand text", []),
        ("DROP COLUMN description", []),
        ("ALTER COLUMN price TYPE real", ["product_catalog", "products_sink"]),
    ],
)
def test_a_change_that_breaks_nothing(tables: psycopg.Connection[Any], change: str, anew: list[str]) -> None:
    before = look()
    tables.execute(f"ALTER TABLE product_catalog {change}".encode())
    after = look(before.cursor)
    assert not any(drift.breaks for drift in drifts(Pipeline.load(default_sql_dir()), columns()))
    assert rebuilt(after) == anew


def test_the_check_can_be_run_by_hand(tables: psycopg.Connection[Any]) -> None:
    tables.execute("ALTER TABLE customers DROP COLUMN country")
    check = catalog.checks(Pipeline.load(Settings.load().sql_dir))
    result = dg.materialize([check], resources={"platform": Platform()}, selection=dg.AssetSelection.all_asset_checks())
    found = {e.asset_key.to_user_string(): e.passed for e in result.get_asset_check_evaluations()}
    assert found == {"customers": False, "heartbeat": True, "product_catalog": True}


def test_a_run_nobody_asked_for_does_not_break_readers(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = shop.settings.sql_dir / "products_sink.sql"
    sink.write_text(sink.read_text().replace("price, image_url", "price AS cost, image_url"))
    pipeline = Pipeline.load(shop.settings.sql_dir)
    with pytest.raises(dg.Failure, match="nobody has asked for this run") as refused:
        stream.deploy(Platform(), pipeline, (), is_attended=False)
    assert "price is gone; read by the serving library" in str(refused.value.metadata["breaks"].value)
    monkeypatch.setenv("RECS_FOLLOW_BREAKING_CHANGES", "true")
    plan, _ = stream.deploy(Platform(), pipeline, (), is_attended=False)
    assert plan.creates == {"products_sink"}


def test_a_run_nobody_asked_for_does_not_undo_a_rollback(shop: Shop) -> None:
    view = shop.settings.sql_dir / "trending_products.sql"
    view.write_text(view.read_text().replace("rank <= 10", "rank <= 5"))
    pipeline = Pipeline.load(shop.settings.sql_dir)
    assert stream.deploy(Platform(), pipeline, (), is_attended=False)[0]
    with Platform().engine() as engine:
        engine.roll_back()
    with pytest.raises(dg.Failure, match="somebody has gone back from these files"):
        stream.deploy(Platform(), pipeline, (), is_attended=False)
    shop.sql("INSERT INTO product_catalog (product_id, name) VALUES ('p1', 'One')")
    eventually(lambda: len(shop.documents("products")) == 1)
    shop.redis.delete(f"recs:products:{shop.redis.get('recs:products')}:p1")
    looks = evaluated(health.sink_health(pipeline))[1]
    looks = evaluated(health.sink_health(pipeline), looks.cursor)[1]
    assert not looks.run_requests, "a repair would deploy them again"
    assert "somebody has gone back" in str(looks.skip_reason)
    assert stream.deploy(Platform(), pipeline, ())[0], "by hand they are deployed"
    looks = evaluated(health.sink_health(pipeline), looks.cursor)[1]
    assert [r.asset_selection for r in looks.run_requests or []] == [[dg.AssetKey("products_sink")]], (
        "put off, not done"
    )
    assert not stream.deploy(Platform(), pipeline, (), is_attended=False)[0], "and that is that"


# -- runs whose process is gone ----------------------------------------------------------------------------------------


def test_a_run_whose_process_is_gone_is_given_up() -> None:
    statuses = {}
    with (
        dg.DagsterInstance.ephemeral() as instance,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=PIPE) as p,
    ):
        for name, pid in {"mine": p.pid, "nobody's": 2**22 + 1, "not said": None}.items():
            run = instance.add_run(dg.DagsterRun(job_name=name, status=dg.DagsterRunStatus.STARTED))
            if pid:
                instance.report_engine_event("Started process", run, EngineEventData.in_process(pid))
            statuses[name] = run.run_id

        def now() -> dict[str, dg.DagsterRunStatus]:
            found = {name: instance.get_run_by_id(id) for name, id in statuses.items()}
            return {name: run.status for name, run in found.items() if run}

        started, failure = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.FAILURE
        assert list(give_up_dead(instance)) == [statuses["nobody's"]]
        assert now() == {"mine": started, "nobody's": failure, "not said": started}
        p.communicate(b"\n")
        assert list(give_up_dead(instance)) == [statuses["mine"]]


# -- what is worth writing down ---------------------------------------------------------------------------------------

KEY = ("kafka", "purchases")


def reading(messages: int = 100, lag: int = 0, problem: str | None = None) -> Reading:
    state = {"problem": problem} if problem else {}
    return Reading(KEY, {"lag_messages": lag}, counters={"messages": messages}, state=state)


@pytest.mark.parametrize(
    ("later", "seconds", "written"),
    [
        (reading(), WHILE_MOVING, False),
        (reading(), WHILE_IDLE, True),
        (reading(messages=101), WHILE_MOVING - 1, False),
        (reading(messages=101), WHILE_MOVING, True),
        (reading(lag=1), WHILE_MOVING, True),
        (reading(problem="Kafka is away"), 1, True),
    ],
)
def test_news_is_written_down_at_once_and_the_rest_now_and_then(later: Reading, seconds: float, written: bool) -> None:
    journal = Journal()
    assert journal.due([reading()], [KEY], now=1_000)
    assert bool(Journal.load(journal.dump()).due([later], [KEY], now=1_000 + seconds)) is written


def test_a_counter_gives_a_rate_unless_it_began_anew() -> None:
    journal = Journal()
    [first] = journal.due([reading(messages=100)], [KEY], now=1_000)
    [second] = journal.due([reading(messages=400)], [KEY], now=1_600)
    [third] = journal.due([reading(messages=5)], [KEY], now=2_200)
    assert second.numbers["messages_per_second"] == 0.5
    assert "messages_per_second" not in {**first.numbers, **third.numbers}


def test_what_is_gone_is_forgotten() -> None:
    journal = Journal()
    journal.due([reading()], [KEY], now=1_000)
    journal.due([], [], now=1_001)
    assert Journal.load(journal.dump()).due([reading()], [KEY], now=1_002)


def test_an_unreadable_cursor_is_begun_anew() -> None:
    assert Journal.load("not JSON").due([reading()], [KEY], now=1_000)


if __name__ == "__main__":
    SNAPSHOT.write_text(as_text(asset_graph()))
