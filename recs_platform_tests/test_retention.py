"""What Dagster writes down has an end, but for what it needs to know what is deployed and how things are."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

from recs_platform.defs import retention
from recs_platform.defs.resources import Platform

ASSET, CHECK = dg.AssetKey("trending_products"), "freshness"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """With three observations, three evaluations and one materialization."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization(ASSET))
        for _ in range(3):
            instance.report_runless_asset_event(dg.AssetObservation(ASSET))
            instance.report_runless_asset_event(
                dg.AssetCheckEvaluation(asset_key=ASSET, check_name=CHECK, passed=False)
            )
        yield instance


def kinds(instance: dg.DagsterInstance) -> dict[str, list[str]]:
    """Where → the types of the events that are there."""
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    found = {}
    for where, connect in (("index", storage.index_connection()), ("runless", storage.run_connection(""))):
        with connect as connection:
            rows = connection.execute(sa.select(SqlEventLogStorageTable.c.dagster_event_type)).fetchall()
        found[where] = sorted({row[0] for row in rows})
    return found


def evaluations(instance: dg.DagsterInstance) -> int:
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    with storage.index_connection() as connection:
        rows = connection.execute(sa.select(sa.func.count()).select_from(AssetCheckExecutionsTable)).fetchall()
    return int(rows[0][0])


def test_what_is_old_goes_and_what_tells_how_things_are_stays(instance: dg.DagsterInstance) -> None:
    assert evaluations(instance) == 3
    removed = retention.trim_records(instance, datetime.now(UTC) + timedelta(minutes=1))
    assert removed == 3 + 3 + 2
    assert kinds(instance) == {"index": ["ASSET_MATERIALIZATION"], "runless": ["ASSET_MATERIALIZATION"]}
    assert evaluations(instance) == 1
    assert instance.get_latest_materialization_event(ASSET) is not None
    key = dg.AssetCheckKey(ASSET, CHECK)
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])
    assert latest[key].event is not None, "the box stays red"


def test_what_is_young_stays(instance: dg.DagsterInstance) -> None:
    before = kinds(instance)
    assert retention.trim_records(instance, datetime.now(UTC) - timedelta(minutes=1)) == 0
    assert kinds(instance) == before
    assert evaluations(instance) == 3


def test_only_runs_that_did_nothing_but_check_go(instance: dg.DagsterInstance) -> None:
    @dg.op
    def nothing() -> None: ...

    for name in (retention.CHECKS, "deploy_pipeline"):
        graph = dg.GraphDefinition(name=name, node_defs=[nothing])
        graph.to_job(name).execute_in_process(instance=instance)
    assert retention.trim_runs(instance, datetime.now(UTC) - timedelta(minutes=1)) == 0
    assert retention.trim_runs(instance, datetime.now(UTC) + timedelta(minutes=1)) == 1
    assert [run.job_name for run in instance.get_runs()] == ["deploy_pipeline"]


def test_the_job_runs_every_night(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECS_RECORDS_RETENTION_DAYS", "0")
    found = retention.definitions()
    [schedule] = found.schedules or []
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    [job] = found.jobs or []
    assert isinstance(job, dg.JobDefinition)
    done = job.execute_in_process(instance=instance, resources={"platform": Platform()})
    assert done.success
    assert "ASSET_OBSERVATION" not in kinds(instance)["index"]
