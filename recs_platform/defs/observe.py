"""What goes on in the stream, as observations that Dagster plots over time."""

from __future__ import annotations

import dagster as dg

from recs_platform.defs.resources import Platform, pipeline_now
from recs_platform.defs.specs import reading_metadata
from recs_platform.lineage import Key, Lineage
from recs_platform.monitor import read_all
from recs_platform.pipeline import Pipeline
from recs_platform.readings import Journal

EVERY = 30  # seconds between looks


@dg.definitions
def definitions() -> dg.Definitions:
    pipeline = pipeline_now()
    return dg.Definitions(sensors=[observer(pipeline, [node.key for node in Lineage.of(pipeline)])])


def observer(pipeline: Pipeline, known: list[Key]) -> dg.SensorDefinition:
    @dg.sensor(
        name="observe",
        minimum_interval_seconds=EVERY,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Observes topics, catalog tables, the replication slot and all relations: lag, rates, sizes, age.",
    )
    def observe(context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.SensorResult:
        """Never fails for a part that is away: it observes the others and says in the tick which are."""
        read = read_all(platform.settings(), pipeline)
        problems = dict.fromkeys(filter(None, (read.engine_problem, read.catalog_problem)))
        journal = Journal.load(context.cursor)
        due = journal.due(read.readings, known)
        summary = f"{len(read.readings)} looked at, {len(due)} written down"
        return dg.SensorResult(
            asset_events=[dg.AssetObservation(dg.AssetKey(r.key), metadata=reading_metadata(r)) for r in due],
            cursor=journal.dump(),
            skip_reason="; ".join([*problems, summary]),
        )

    return observe
