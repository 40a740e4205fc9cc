"""What Dagster writes down is kept for a while: observations and evaluations of checks have no end of their own.

Materializations stay: by them Dagster knows what is deployed. So does the newest evaluation of each check.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage

from recs_platform.defs.resources import QUICK, Platform

JOB = "trim_records"
CHECKS = "freshness_check"  # the job of which only the checks' results matter
CRON = "23 4 * * *"
AT_ONCE = 500  # runs
OF_NO_USE = ("ASSET_OBSERVATION", "ASSET_CHECK_EVALUATION", "ASSET_CHECK_EVALUATION_PLANNED", "FRESHNESS_STATE_CHANGE")


@dg.definitions
def definitions() -> dg.Definitions:
    job = dg.JobDefinition(
        name=JOB,
        graph_def=dg.GraphDefinition(name=JOB, node_defs=[trim]),
        description="Removes observations, evaluations and runs of checks that are older than RECS_RECORDS_RETENTION_DAYS.",
        executor_def=dg.in_process_executor,
        tags=QUICK,
    )
    schedule = dg.ScheduleDefinition(
        name=JOB, job=job, cron_schedule=CRON, default_status=dg.DefaultScheduleStatus.RUNNING
    )
    return dg.Definitions(jobs=[job], schedules=[schedule])


@dg.op(name="trim")
def trim(context: dg.OpExecutionContext, platform: dg.ResourceParam[Platform]) -> None:
    before = datetime.now(UTC) - timedelta(days=platform.settings().records_retention_days)
    records, runs = trim_records(context.instance, before), trim_runs(context.instance, before)
    context.log.info(f"{records:,} records and {runs:,} runs of checks from before {before:%Y-%m-%d %H:%M} UTC removed")


def trim_records(instance: dg.DagsterInstance, before: datetime) -> int:
    """Removes what is older from the event log; returns how many records. Nothing where the log is not kept in SQL."""
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        return 0
    log, checks = SqlEventLogStorageTable, AssetCheckExecutionsTable
    moment = before.astimezone(UTC).replace(tzinfo=None)  # as the log has it
    old = sa.delete(log).where(log.c.dagster_event_type.in_(OF_NO_USE), log.c.timestamp < moment)
    newest = sa.select(sa.func.max(checks.c.id)).group_by(checks.c.asset_key, checks.c.check_name)
    outdated = sa.delete(checks).where(checks.c.create_timestamp < moment, checks.c.id.not_in(newest))
    with storage.index_connection() as connection:
        removed = _removed(connection.execute(old)) + _removed(connection.execute(outdated))
    with storage.run_connection("") as connection:  # of no run: a file of its own in SQLite
        connection.execute(old)
    return removed


def trim_runs(instance: dg.DagsterInstance, before: datetime) -> int:
    """Removes older runs that did nothing but check; returns how many, `AT_ONCE` at most."""
    ended = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    filters = dg.RunsFilter(job_name=CHECKS, statuses=ended, updated_before=before)
    runs = instance.get_runs(filters=filters, limit=AT_ONCE)
    for run in runs:
        instance.delete_run(run.run_id)
    return len(runs)


def _removed(result: Any) -> int:
    return int(result.rowcount)
