"""Runs whose process is gone: Dagster would show them as started, and have all others wait, until their time is up."""

from collections.abc import Iterator
from contextlib import suppress

import dagster as dg
import psutil
from dagster._core.events import EngineEventData

EVERY = 60  # seconds between looks
AT_ONCE = 20  # runs
SLACK = 2.0  # seconds that a process may have begun after its event, as clocks are read


@dg.definitions
def definitions() -> dg.Definitions:
    return dg.Definitions(sensors=[dead_runs])


@dg.sensor(
    name="dead_runs",
    target=None,
    minimum_interval_seconds=EVERY,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Gives up runs whose process is gone, such as those of before this machine was started, so that others go on.",
)
def dead_runs(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Runs and this sensor are processes of the same machine, or of the same container."""
    given_up = list(give_up_dead(context.instance))
    return dg.SensorResult(
        skip_reason=f"given up: {', '.join(given_up)}" if given_up else "all that are started are at work"
    )


def give_up_dead(instance: dg.DagsterInstance) -> Iterator[str]:
    """Has each run whose process is gone fail; gives their ids."""
    started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])
    for run in instance.get_runs(filters=started, limit=AT_ONCE):
        processes = list(_processes(instance, run))
        if processes and not any(_is_alive(pid, began) for pid, began in processes):
            instance.report_run_failed(run, "Its process is gone: it was killed, or the machine was started anew.")
            yield run.run_id


def _processes(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Iterator[tuple[int, float]]:
    """Process id, and when it was said to run, in seconds since 1970."""
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        data = entry.dagster_event.event_specific_data if entry.dagster_event else None
        if isinstance(data, EngineEventData) and (pid := data.metadata.get("pid")) is not None:
            yield int(str(pid.value)), entry.timestamp


def _is_alive(pid: int, began: float) -> bool:
    """Whether that process runs, and not another that has its number now."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return bool(process.create_time() <= began + SLACK and process.status() != psutil.STATUS_ZOMBIE)
    return False
