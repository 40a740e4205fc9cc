"""The asset graph: one asset for each box of the lineage, and one op that deploys what is selected."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import dagster as dg
from pydantic import Field

from recs_platform.changes import changes
from recs_platform.defs.resources import Platform
from recs_platform.defs.specs import asset_spec, reading_metadata
from recs_platform.engines.base import StreamEngine
from recs_platform.errors import EngineBusy, EngineUnavailable, RecsError, StoreUnavailable
from recs_platform.lineage import Lineage, relation_key
from recs_platform.pipeline import Kind, Pipeline, Relation
from recs_platform.plan import Plan, Step, Tell
from recs_platform.readers import downstream
from recs_platform.readings import Reading, of_relations
from recs_platform.settings import Settings

DEPLOY, REBUILD, RESYNC = "deploy_pipeline", "rebuild_views", "resync_sinks"
RETRIES, BETWEEN_RETRIES = 5, 15.0  # seconds, for an engine that is just being started
SENSOR_SECONDS = 10.0  # that a sensor, which Dagster gives a minute in all, waits for an answer
BETWEEN_WORDS = 5.0  # seconds between two lines on one step


class Deploy(dg.Config):
    """How the selected relations are deployed."""

    rebuild: bool = Field(default=False, description="Build the selected relations anew though their SQL is unchanged.")


@dg.definitions
def definitions() -> dg.Definitions:
    settings = Settings.load()
    pipeline = Pipeline.of(settings)
    lineage = Lineage.of(pipeline, settings.engine)
    outside = [asset_spec(node, lineage) for node in lineage if node.relation is None]
    return dg.Definitions(
        assets=[*outside, deployment(pipeline, lineage)],
        jobs=[
            dg.define_asset_job(
                DEPLOY,
                selection=[r.name for r in pipeline],
                description="Makes what is deployed what `sql/` says: what `recs apply` does.",
            ),
            dg.define_asset_job(
                REBUILD,
                selection=[r.name for r in pipeline if r.kind is not Kind.SOURCE],
                config={"ops": {"stream": {"config": {"rebuild": True}}}},
                description="Builds the chosen relations anew, with all that hangs on them, though no SQL has changed.",
            ),
            dg.define_asset_job(
                RESYNC,
                selection=[r.name for r in pipeline.of_kind(Kind.SINK)],
                config={"ops": {"stream": {"config": {"rebuild": True}}}},
                description="Writes every key of the chosen sinks to Redis again, and removes those no row stands for.",
            ),
        ],
        sensors=[automation(pipeline)],
        executor=dg.in_process_executor,
    )


def deployment(pipeline: Pipeline, lineage: Lineage) -> dg.AssetsDefinition:
    """All relations as one op: the engine makes one plan of them, whichever are selected."""
    specs = [asset_spec(node, lineage) for node in lineage if node.relation is not None]

    @dg.multi_asset(name="stream", specs=specs, can_subset=True)
    def stream(
        context: dg.AssetExecutionContext, config: Deploy, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.MaterializeResult[Any]]:
        """Makes what is deployed what `sql/` says; with `rebuild`, builds the selected relations anew in any case."""
        selected = {key.path[-1] for key in context.selected_asset_keys}
        is_attended = "dagster/sensor_name" not in context.run.tags
        below = {r.name for name in selected for r in downstream(pipeline, name)}
        rebuild = selected | below if config.rebuild else ()
        plan, readings = deploy(platform, pipeline, rebuild, is_attended, Progress(context.log.info).tell)
        context.log.info(f"{len(plan.steps)} steps" if plan else "nothing to do: what is deployed is what sql/ says")
        for relation in pipeline:
            if relation.name in selected:
                yield _materialized(relation, plan, readings.get(relation.name))

    return stream


def automation(pipeline: Pipeline) -> dg.AutomationConditionSensorDefinition:
    return dg.AutomationConditionSensorDefinition(
        "deploy_when_changed",
        target=dg.AssetSelection.assets(*(r.name for r in pipeline)),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Deploys a relation when its SQL has changed, or that of something it reads; sql/ is read every minute.",
    )


class Progress:
    """Tells of each step when it begins, when it ends, and every few seconds in between."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._told: dict[str, float] = {}

    def tell(self, step: Step, done: float | None, words: str) -> None:
        now, last = time.monotonic(), self._told.get(step.physical_name)
        if last is None or done == 1.0 or now - last >= BETWEEN_WORDS:
            self._told[step.physical_name] = now
            self._write(f"{step}: {words}")


def deploy(
    platform: Platform,
    pipeline: Pipeline,
    rebuild: Collection[str],
    is_attended: bool = True,
    tell: Tell | None = None,
) -> tuple[Plan, Mapping[str, Reading]]:
    """Applies `sql/`; the plan that did it, and a reading of each relation by name.

    An engine or a Redis that is away is asked again later; a refusal is a failure, with the engine's own words. What breaks a reader
    is not done where nobody has asked for it, unless the settings say so; nor are files deployed again that were rolled back.
    """
    try:
        with platform.engine() as engine:
            if not is_attended and (failure := refusal(engine, rebuild)):
                raise failure
            plan = engine.apply(rebuild, tell)
            readings = of_relations(engine.status(), pipeline)
    except (EngineUnavailable, EngineBusy, StoreUnavailable) as error:
        raise dg.RetryRequested(RETRIES, BETWEEN_RETRIES) from error
    except RecsError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return plan, {reading.key[-1]: reading for reading in readings}


def refusal(engine: StreamEngine, rebuild: Collection[str]) -> dg.Failure | None:
    """Why a run that nobody has asked for deploys nothing; None where it would."""
    if engine.status().get("gone_back"):
        return dg.Failure(
            "not deployed: somebody has gone back from these files (`recs rollback`) or deployed a part of them (`recs apply "
            "--only`). Materialize by hand or `recs apply` to deploy them all the same, or change them",
            allow_retries=False,
        )
    settings = Settings.load()
    if settings.follow_breaking_changes:
        return None
    meaning = changes(engine.plan(rebuild), engine.deployed_pipeline(), Pipeline.of(settings), engine.capabilities)
    if broken := [f"{change.name}: {what}" for change in meaning for what in change.breaks]:
        return dg.Failure(
            "not deployed, for it breaks what reads it, and nobody has asked for this run: materialize it by hand, `recs "
            "apply`, or set RECS_FOLLOW_BREAKING_CHANGES=true",
            metadata={"breaks": dg.MetadataValue.md("\n".join(f"- {line}" for line in broken))},
            allow_retries=False,
        )
    return None


def held_back(platform: Platform, rebuild: Collection[str]) -> str:
    """Why a repair would come to nothing just now and is put off, "" where it would not."""
    try:
        with platform.engine(SENSOR_SECONDS) as engine:
            failure = refusal(engine, rebuild)
    except RecsError as error:
        return str(error)
    return str(failure.description) if failure else ""


def _materialized(relation: Relation, plan: Plan, reading: Reading | None) -> dg.MaterializeResult[Any]:
    steps = [f"- {step}" for step in plan.steps if step.name == relation.name]
    return dg.MaterializeResult(
        asset_key=dg.AssetKey(relation_key(relation.name)),
        metadata={
            **(reading_metadata(reading) if reading else {}),
            "plan": dg.MetadataValue.md("\n".join(steps) or "nothing to do: deployed as `sql/` says"),
        },
    )
