"""The catalog: a check on the columns of each copy of a table, a sensor that has built anew what a change made wrong, and one
that has a lost replication slot retaken."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg

from recs_platform import repairs
from recs_platform.catalog_watch import Memory, look
from recs_platform.defs.incidents import built_since, failed, requests
from recs_platform.defs.resources import Platform, pipeline_now
from recs_platform.defs.stream import REBUILD, held_back
from recs_platform.defs.verdict import News, Verdict, parts
from recs_platform.errors import RecsError
from recs_platform.pipeline import Pipeline
from recs_platform.readings import is_lost, of_catalog
from recs_platform.schema import CatalogColumn, Drift, copies, drifts, read_columns

EVERY, SLOT_EVERY = 30, 60  # seconds between looks
AT_LEAST_EVERY = 3600  # seconds between evaluations that say the same
CHECK = "catalog_schema"
NEXT = (
    "Undo the change in PostgreSQL, or follow it in sql/catalog/cdc/ and what reads it, then `recs plan` and `recs apply` (or "
    "materialize what has changed). Until then the local engine takes in no change of the catalog, and a RisingWave goes on "
    "with NULL. RECS_FOLLOW_BREAKING_CHANGES=true goes on with NULL on both and has the affected relations built anew at once."
)


@dg.definitions
def definitions() -> dg.Definitions:
    pipeline = pipeline_now()
    if not copies(pipeline):  # the catalog comes from topics or files
        return dg.Definitions()
    return dg.Definitions(asset_checks=[checks(pipeline)], sensors=[watcher(pipeline), slot_health(pipeline)])


def checks(pipeline: Pipeline) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(
            CHECK,
            asset=dg.AssetKey(copy.name),
            description=f"Whether {copy.options['table']} has the columns that are read.",
        )
        for copy in copies(pipeline)
    ]

    @dg.multi_asset_check(specs=specs, can_subset=True)
    def catalog_schema(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        """Looks at PostgreSQL itself. A renamed column is told from one that is gone by the sensor, which has a memory."""
        try:
            found = drifts(pipeline, columns(platform, pipeline))
        except RecsError as error:
            raise dg.Failure(str(error)) from error
        for key in context.selected_asset_check_keys:
            of_it = [drift for drift in found if drift.name == key.asset_key.path[-1]]
            yield _judged(key.asset_key.path[-1], of_it).result()

    return catalog_schema


def watcher(pipeline: Pipeline) -> dg.SensorDefinition:
    @dg.sensor(
        name="schema_change",
        job_name=REBUILD,
        minimum_interval_seconds=EVERY,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Sees columns of the catalog change; builds anew what a change that can be followed has made wrong.",
    )
    def schema_change(context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.SensorResult:
        """One change starts one run, which is asked for again where it came to nothing; the check fails until it has been. What
        breaks a reader fails the check, and starts a run only where settings say so."""
        told, remembered, owed_before = parts(context.cursor, 3)
        try:
            follow = platform.settings().follow_breaking_changes
            report = look(pipeline, columns(platform, pipeline), Memory.load(remembered or None), follow)
        except RecsError as error:
            return dg.SensorResult(skip_reason=str(error), cursor=context.cursor)
        news, now, instance = News.load(told), time.time(), context.instance
        known = {n: i for n, i in repairs.load(owed_before).items() if n in pipeline.relations}
        wrong = {*report.rebuild, *(n for n, i in known.items() if not built_since(instance, n, i.since))}
        put_off = held_back(platform, pipeline, wrong)
        # in their order, and by what has been asked for already
        owed, due = repairs.follow(
            known, [r.name for r in pipeline if r.name in wrong], now, (), not put_off, failed(instance, known), looks=1
        )
        verdicts = [_judged(c.name, report.of(c.name), _waiting(owed.get(c.name), put_off)) for c in copies(pipeline)]
        return dg.SensorResult(
            asset_events=news.to_tell(verdicts, instance, now, AT_LEAST_EVERY),
            run_requests=requests(due, owed),
            skip_reason=None if due else put_off or f"{len(report.drifts)} differences",
            cursor="\n".join((news.dump(), report.memory.dump(), repairs.dump(owed))),
        )

    return schema_change


def slot_health(pipeline: Pipeline) -> dg.SensorDefinition:
    @dg.sensor(
        name="slot_health",
        job_name=REBUILD,
        minimum_interval_seconds=SLOT_EVERY,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Sees that PostgreSQL has lost the slot the catalog is read through; where the engine does not make it anew by "
        "itself, has the catalog read anew, once an incident.",
    )
    def sensor(context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.SensorResult:
        """What is lost at two looks starts one run of `rebuild_views`, where the settings allow it."""
        before, connections = repairs.load(context.cursor), [r.name for r in pipeline if r.is_connection]
        try:
            may_repair = platform.settings().repair_slot
            lost, words = _lost_slots(platform, pipeline)
        except RecsError as error:
            after, due = repairs.follow(before, [], time.time(), unseen=connections)
            words = str(error)
        else:
            put_off = held_back(platform, pipeline, lost)
            words = f"{words}; {put_off}" if put_off else words
            came_to_nothing = failed(context.instance, before)
            after, due = repairs.follow(
                before, lost, time.time(), may_repair=may_repair and not put_off, failed=came_to_nothing
            )
        return dg.SensorResult(
            run_requests=requests(due, after),
            skip_reason=None if due else words,
            cursor=repairs.dump(after),
        )

    return sensor


def _lost_slots(platform: Platform, pipeline: Pipeline) -> tuple[list[str], str]:
    """The connections whose slot is lost and that are not made anew by the engine itself, and how that is in words.

    Raises `RecsError` where the engine or PostgreSQL does not answer.
    """
    with platform.engine() as engine:
        status = engine.status()
    slot = status.get("slot")
    if not slot or not status.get("slot_remedy"):
        return [], "there is no slot" if not slot else "the engine makes its slot anew by itself"
    readings = of_catalog(platform.settings().require("postgres_url"), slot, pipeline)
    lost = [reading.key[0] for reading in readings if "slot" in reading.state and is_lost(reading)]
    return lost, f"PostgreSQL has {'lost' if lost else 'kept'} the slot {slot}"


def columns(platform: Platform, pipeline: Pipeline) -> dict[str, tuple[CatalogColumn, ...]]:
    """The catalog tables' columns as they are. Raises `SourceError`, or `SettingsError` when no stack runs."""
    tables = {copy.catalog_table for copy in copies(pipeline)}
    return read_columns(platform.settings().require("postgres_url"), tables)


def _waiting(owed: repairs.Incident | None, put_off: str) -> str:
    """What becomes of rows that a change of the columns has made wrong; "" where there are none."""
    if owed is None:
        return ""
    if owed.tries:
        ended = f"; try {owed.tries} of {repairs.TRIES}: where the last has failed, its run says why, and `{REBUILD}` by hand tries again"
        return f"its rows are of before a change of its columns, until it is built anew{ended}"
    return f"its rows are of before a change of its columns, and are not built anew yet: {put_off}"


def _judged(copy: str, found: Sequence[Drift], waiting: str = "") -> Verdict:
    """`waiting`: what becomes of rows that are wrong though the columns may be right again."""
    is_right = not any(drift.breaks for drift in found)
    return Verdict(
        dg.AssetKey(copy),
        CHECK,
        is_right and not waiting,
        waiting or None,
        _evidence(found),
        dg.AssetCheckSeverity.WARN if is_right else dg.AssetCheckSeverity.ERROR,
        said=([str(drift) for drift in found], waiting),
    )


def _evidence(found: Sequence[Drift]) -> dict[str, dg.MetadataValue[Any]]:
    """What breaks with all that feels it, and what is merely otherwise."""
    broken, others = [d for d in found if d.breaks], [d for d in found if not d.breaks]
    evidence: dict[str, dg.MetadataValue[Any]] = {
        "differences": dg.MetadataValue.int(len(found)),
        "breaking": dg.MetadataValue.int(len(broken)),
    }
    if broken:
        evidence["what"] = dg.MetadataValue.text("\n".join(map(str, broken)))
        evidence["next"] = dg.MetadataValue.text(NEXT)
    if others:
        evidence["notes"] = dg.MetadataValue.text("\n".join(map(str, others)))
    return evidence
