"""What has changed in `sql/` is deployed by itself: a sensor that holds the files against what runs have deployed."""

import time

import dagster as dg

from recs_platform import repairs
from recs_platform.defs.incidents import failed, run_of
from recs_platform.defs.resources import Platform, pipeline_now
from recs_platform.defs.stream import DEPLOY, JOBS, SENSOR_SECONDS, refusal
from recs_platform.errors import RecsError
from recs_platform.pipeline import Pipeline

EVERY = 30  # seconds between looks
UNDER_WAY = [
    dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]  # fmt: skip


@dg.definitions
def definitions() -> dg.Definitions:
    return dg.Definitions(sensors=[deploy_when_changed(pipeline_now())])


def deploy_when_changed(pipeline: Pipeline) -> dg.SensorDefinition:
    @dg.sensor(
        name="deploy_when_changed",
        job_name=DEPLOY,
        minimum_interval_seconds=EVERY,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Deploys what has changed in sql/, is new or is gone: the files are read every minute.",
    )
    def sensor(context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.SensorResult:
        """One run for one state of the files, once none is under way; tried again where it came to nothing because something was
        away. One that is refused fails, and waits for a person or for other files."""
        instance, before, now = context.instance, repairs.load(context.cursor), time.time()
        if _is_under_way(instance):
            return dg.SensorResult(skip_reason="a deployment is under way", cursor=context.cursor)
        changed = _changed(instance, pipeline)
        try:
            with platform.engine(SENSOR_SECONDS) as engine:
                gone = sorted(engine.deployed().keys() - pipeline.relations.keys())
                is_rolled_back = bool(engine.status().get("gone_back"))
                refused = refusal(engine, ()) if changed or gone else None
            # what an engine keeps for a while, so that one can go back, goes with the first deployment after that
            kept_until = now - platform.settings().grace_seconds
        except RecsError as error:
            return dg.SensorResult(skip_reason=str(error), cursor=context.cursor)
        ill = [pipeline.digest] if changed or gone else []
        tried = pipeline.digest in before and before[pipeline.digest].tries
        may_deploy = not is_rolled_back and not (refused and tried)  # a breaking change is refused where it can be seen
        again = failed(instance, before) | {d for d, i in before.items() if not changed and i.repaired_at < kept_until}
        after, due = repairs.follow(before, ill, now, (), may_deploy, again, looks=1)
        words = str(refused.description) if refused else f"{len(changed)} changed, {len(gone)} gone"
        return dg.SensorResult(
            # of all where something is merely gone: that has no box any more
            run_requests=[run_of(after[pipeline.digest].run, changed)] if due else [],
            skip_reason=None if due else words,
            cursor=repairs.dump(after),
        )

    return sensor


def _is_under_way(instance: dg.DagsterInstance) -> bool:
    runs = instance.get_runs(filters=dg.RunsFilter(statuses=UNDER_WAY), limit=100)
    return any(run.job_name in JOBS for run in runs)


def _changed(instance: dg.DagsterInstance, pipeline: Pipeline) -> list[str]:
    """The relations that no run has deployed as their files are now."""
    deployed = instance.get_latest_materialization_code_versions([dg.AssetKey(r.name) for r in pipeline])
    return [r.name for r in pipeline if deployed.get(dg.AssetKey(r.name)) != r.fingerprint]
