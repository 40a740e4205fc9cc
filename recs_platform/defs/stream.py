"""The asset graph: one asset for each box of the lineage, and one op that deploys what is selected."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import dagster as dg
from pydantic import Field

from recs_platform.defs.resources import Platform
from recs_platform.defs.specs import asset_spec, reading_metadata
from recs_platform.errors import EngineUnavailable, RecsError
from recs_platform.lineage import Lineage, relation_key
from recs_platform.pipeline import Kind, Pipeline, Relation
from recs_platform.plan import Plan
from recs_platform.readings import Reading, of_relations
from recs_platform.settings import Settings

RETRIES, BETWEEN_RETRIES = 5, 15.0  # seconds, for an engine that is just being started


class Deploy(dg.Config):
    """How the selected relations are deployed."""

    rebuild: bool = Field(default=False, description="Build the selected relations anew though their SQL is unchanged.")


@dg.definitions
def definitions() -> dg.Definitions:
    pipeline = Pipeline.load(Settings.load().sql_dir)
    lineage = Lineage.of(pipeline)
    outside = [asset_spec(node, lineage) for node in lineage if node.relation is None]
    return dg.Definitions(
        assets=[*outside, deployment(pipeline, lineage)],
        jobs=[
            dg.define_asset_job(
                "rebuild",
                selection=[r.name for r in pipeline if r.kind in (Kind.VIEW, Kind.SINK)],
                config={"ops": {"stream": {"config": {"rebuild": True}}}},
                description="Builds every view and sink anew from what the engine keeps, though no SQL has changed.",
            )
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
        plan, readings = deploy(platform, pipeline, selected if config.rebuild else ())
        for step in plan.steps:
            context.log.info(str(step))
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


def deploy(platform: Platform, pipeline: Pipeline, rebuild: Collection[str]) -> tuple[Plan, Mapping[str, Reading]]:
    """Applies `sql/`; the plan that did it, and a reading of each relation by name.

    An engine that is away is asked again later; a refusal is a failure, with the engine's own words.
    """
    try:
        with platform.engine() as engine:
            plan = engine.apply(rebuild)
            readings = of_relations(engine.status(), pipeline)
    except EngineUnavailable as error:
        raise dg.RetryRequested(RETRIES, BETWEEN_RETRIES) from error
    except RecsError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    return plan, {reading.key[-1]: reading for reading in readings}


def _materialized(relation: Relation, plan: Plan, reading: Reading | None) -> dg.MaterializeResult[Any]:
    steps = [f"- {step}" for step in plan.steps if step.name == relation.name]
    return dg.MaterializeResult(
        asset_key=dg.AssetKey(relation_key(relation.name)),
        metadata={
            **(reading_metadata(reading) if reading else {}),
            "plan": dg.MetadataValue.md("\n".join(steps) or "nothing to do: deployed as `sql/` says"),
        },
    )
