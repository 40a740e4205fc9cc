"""The asset graph: one asset for each box of the lineage, and one op that deploys what is selected."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from recs_platform.changes import changes
from recs_platform.defs.resources import Platform, pipeline_now
from recs_platform.defs.specs import asset_spec, reading_metadata
from recs_platform.engines.base import StreamEngine
from recs_platform.errors import EngineBusy, EngineUnavailable, RecsError, SourceError, StoreUnavailable
from recs_platform.lineage import Lineage, relation_key
from recs_platform.pipeline import Kind, Pipeline, Relation
from recs_platform.plan import Plan, Step, Tell
from recs_platform.readers import downstream
from recs_platform.readings import Reading, of_relations
from recs_platform.settings import Settings

DEPLOY, REBUILD, RESYNC = "deploy_pipeline", "rebuild_views", "resync_sinks"
JOBS = {DEPLOY, REBUILD, RESYNC, "__ASSET_JOB"}  # the last is what materializing by hand is called
RETRIES, BETWEEN_RETRIES = 40, 15.0  # seconds: somebody else's deployment, or an engine that is just being started
FEW_RETRIES = 5  # for a catalog, of which a refusal may be final
SENSOR_SECONDS = 10.0  # that a sensor, which Dagster gives a minute in all, waits for an answer
BUILT = "built"  # of a materialization: whether its run has built the relation, or found it as it should be
BETWEEN_WORDS = 5.0  # seconds between two lines on one step


class Deploy(dg.Config):
    """How the selected relations are deployed."""

    rebuild: bool = Field(default=False, description="Build the selected relations anew though their SQL is unchanged.")


@dg.definitions
def definitions() -> dg.Definitions:
    pipeline = pipeline_now()
    lineage = Lineage.of(pipeline, Settings.load().engine)
    outside = [asset_spec(node, lineage) for node in lineage if node.relation is None]
    return dg.Definitions(
        assets=[*outside, deployment(pipeline, lineage)],
        jobs=[
            _job(
                DEPLOY,
                [r.name for r in pipeline],
                "Makes what is deployed what `sql/` says: what `recs apply` does.",
                rebuild=False,
            ),
            _job(
                REBUILD,
                [r.name for r in pipeline if r.kind is not Kind.SOURCE],
                "Builds the chosen relations anew, with all that hangs on them, though no SQL has changed.",
            ),
            _job(
                RESYNC,
                [r.name for r in pipeline.of_kind(Kind.SINK)],
                "Writes every key of the chosen sinks to Redis again, and removes those no row stands for.",
            ),
        ],
        executor=dg.in_process_executor,
    )


def _job(name: str, selection: Sequence[str], description: str, rebuild: bool = True) -> Any:
    """Without checks: a run that fails would show those of its assets as failed, and the sensors evaluate them anyway."""
    return dg.define_asset_job(
        name,
        selection=dg.AssetSelection.assets(*selection).without_checks(),
        config={"ops": {"stream": {"config": {"rebuild": True}}}} if rebuild else None,
        description=description,
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
        rebuild = with_downstream(pipeline, selected) if config.rebuild else ()
        plan, readings = deploy(platform, pipeline, rebuild, is_attended(context.run), Progress(context.log.info).tell)
        context.log.info(f"{len(plan.steps)} steps" if plan else "nothing to do: what is deployed is what sql/ says")
        for relation in pipeline:
            if relation.name in selected:
                yield _materialized(relation, plan, readings.get(relation.name))

    return stream


def with_downstream(pipeline: Pipeline, names: Collection[str]) -> set[str]:
    """What is built anew where these are."""
    return {*names, *(relation.name for name in names for relation in downstream(pipeline, name))}


def is_attended(run: dg.DagsterRun) -> bool:
    """Whether a person has asked for it, or for it once more."""
    return "dagster/sensor_name" not in run.tags or run.parent_run_id is not None


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

    An engine that is busy or away, a Redis or a catalog that is away are asked again later; a refusal is a failure, with the
    engine's own words: see `refusal`.
    """
    try:
        with platform.engine() as engine:
            if failure := refusal(engine, rebuild, is_attended):
                raise failure
            plan = engine.apply(rebuild, tell)
            readings = of_relations(engine.status(), pipeline)
    except (EngineUnavailable, EngineBusy, StoreUnavailable) as error:
        raise dg.RetryRequested(RETRIES, BETWEEN_RETRIES) from error
    except SourceError as error:
        raise dg.RetryRequested(FEW_RETRIES, BETWEEN_RETRIES) from error
    except RecsError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return plan, {reading.key[-1]: reading for reading in readings}


def refusal(engine: StreamEngine, rebuild: Collection[str], is_attended: bool = False) -> dg.Failure | None:
    """Why a run deploys nothing; None where it would.

    Files that were rolled back are deployed by whoever materializes them, and by no rebuild. A rebuild deploys nothing else. What
    breaks a reader is done where somebody has asked for it, or the settings say so.
    """
    if engine.status().get("gone_back") and (rebuild or not is_attended):
        return dg.Failure(
            "not deployed: somebody has gone back from these files (`recs rollback`) or deployed a part of them (`recs apply "
            f"--only`). Run `{DEPLOY}`, materialize by hand or `recs apply` to deploy them all the same, or change them",
            allow_retries=False,
        )
    plan = engine.plan(rebuild)
    if rebuild and (others := sorted(plan.creates - set(rebuild))):
        return dg.Failure(
            "nothing is built anew, for what is deployed is not what sql/ says, and would be as well "
            f"({', '.join(others)}): `recs plan` shows what differs, `{DEPLOY}` or `recs apply` deploys it",
            allow_retries=False,
        )
    return None if is_attended else _breakage(engine, plan)


def _breakage(engine: StreamEngine, plan: Plan) -> dg.Failure | None:
    settings = Settings.load()
    if settings.follow_breaking_changes:
        return None
    meaning = changes(plan, engine.deployed_pipeline(), Pipeline.of(settings), engine.capabilities)
    if broken := [f"{change.name}: {what}" for change in meaning for what in change.breaks]:
        return dg.Failure(
            "not deployed, for it breaks what reads it, and nobody has asked for this run: materialize it by hand, `recs "
            "apply`, or set RECS_FOLLOW_BREAKING_CHANGES=true",
            metadata={"breaks": dg.MetadataValue.md("\n".join(f"- {line}" for line in broken))},
            allow_retries=False,
        )
    return None


def held_back(platform: Platform, pipeline: Pipeline, names: Collection[str]) -> str:
    """Why having these built anew would come to nothing just now and is put off, "" where it would not."""
    if not names:
        return ""
    try:
        with platform.engine(SENSOR_SECONDS) as engine:
            failure = refusal(engine, with_downstream(pipeline, names))
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
            BUILT: dg.MetadataValue.bool(relation.name in plan.creates),
        },
    )
