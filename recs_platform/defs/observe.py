"""What goes on in the stream, as observations that Dagster plots over time."""

from __future__ import annotations

from functools import partial

import dagster as dg

from recs_platform.defs.resources import Platform
from recs_platform.defs.specs import reading_metadata
from recs_platform.lineage import Key, Lineage
from recs_platform.pipeline import Pipeline
from recs_platform.readings import Journal, Reading, of_catalog, of_stream, try_all
from recs_platform.settings import Settings

EVERY = 30  # seconds between looks
ENGINE_SECONDS = 10.0


@dg.definitions
def definitions() -> dg.Definitions:
    pipeline = Pipeline.load(Settings.load().sql_dir)
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
        takers = (partial(read_engine, platform, pipeline), partial(read_catalog, platform, pipeline))
        readings, problems = try_all(*takers)
        journal = Journal.load(context.cursor)
        due = journal.due(readings, known)
        summary = f"{len(readings)} looked at, {len(due)} written down"
        return dg.SensorResult(
            asset_events=[dg.AssetObservation(dg.AssetKey(r.key), metadata=reading_metadata(r)) for r in due],
            cursor=journal.dump(),
            skip_reason="; ".join([*problems, summary]),
        )

    return observe


def read_engine(platform: Platform, pipeline: Pipeline) -> list[Reading]:
    """Raises `EngineUnavailable`, or `SettingsError` when no stack runs."""
    with platform.engine(ENGINE_SECONDS) as engine:
        return of_stream(engine.status(), pipeline)


def read_catalog(platform: Platform, pipeline: Pipeline) -> list[Reading]:
    """Raises `SourceError`, or `SettingsError` when no stack runs."""
    settings = platform.settings()
    return of_catalog(settings.require("postgres_url"), settings.replication_slot, pipeline)
