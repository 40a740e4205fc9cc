"""Health: two sensors and a scheduled run that judge the same, as asset checks."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import dagster as dg

from recs_platform import repairs
from recs_platform.audit import NOTHING, Audit, audit, remember, remembered
from recs_platform.defs.incidents import failed, requests
from recs_platform.defs.resources import QUICK, Platform, pipeline_now
from recs_platform.defs.stream import RESYNC, held_back
from recs_platform.defs.verdict import News, Verdict, parts
from recs_platform.engines.status import BACKLOG, Status
from recs_platform.errors import RecsError
from recs_platform.health import FRESHNESS_SECONDS, Finding, State
from recs_platform.lineage import label
from recs_platform.monitor import Report, look_and_remember
from recs_platform.pipeline import Kind, Pipeline

FRESHNESS, IN_REDIS = "freshness", "in_redis"
VIEWS_EVERY, SINKS_EVERY = 30, 60  # seconds between looks
LONG_BEHIND = 300  # seconds
AT_LEAST_EVERY = 900  # seconds between evaluations that say the same
CRON = "*/30 * * * *"
REDIS_ENGINE_SECONDS = 20.0

Keys = Mapping[str, Sequence[str]]


@dg.definitions
def definitions() -> dg.Definitions:
    pipeline = pipeline_now()
    both = [freshness_checks(pipeline), redis_checks(pipeline)]
    job = dg.define_asset_job(
        "freshness_check",
        selection=dg.AssetSelection.checks(*both),
        tags=QUICK,
        description="Judges what the sensors `view_freshness` and `sink_health` judge, as a run.",
    )
    schedule = dg.ScheduleDefinition(
        name="freshness_check", job=job, cron_schedule=CRON, default_status=dg.DefaultScheduleStatus.RUNNING
    )
    sensors = [view_freshness(pipeline), sink_health(pipeline)]
    return dg.Definitions(asset_checks=both, jobs=[job], schedules=[schedule], sensors=sensors)


# -- freshness --------------------------------------------------------------------------------------------------------


def freshness_checks(pipeline: Pipeline) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(
            FRESHNESS, asset=dg.AssetKey(relation.name), description="Whether what was sent is reflected in it by now."
        )
        for relation in pipeline
    ]

    @dg.multi_asset_check(specs=specs, can_subset=True)
    def freshness(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        """With the memory of whoever looked last, so that it says what the sensor says."""
        report = look_and_remember(platform.settings(), pipeline)
        wanted = {key.asset_key for key in context.selected_asset_check_keys}
        yield from (v.result() for v in map(_of_finding, report.findings) if v.asset in wanted)

    return freshness


def view_freshness(pipeline: Pipeline) -> dg.SensorDefinition:
    @dg.sensor(
        name="view_freshness",
        target=None,
        minimum_interval_seconds=VIEWS_EVERY,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells fresh, idle, behind, stalled and broken apart for every relation, and names the box to blame.",
    )
    def sensor(context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.SensorResult:
        """Evaluates the check `freshness` when a state changes or a run has said otherwise, and every quarter of an hour."""
        report = look_and_remember(platform.settings(), pipeline)
        ours = [finding for finding in report.findings if finding.key[0] in pipeline.relations]
        news = News.load(context.cursor)
        return dg.SensorResult(
            asset_events=news.to_tell(map(_of_finding, ours), context.instance, time.time(), AT_LEAST_EVERY),
            skip_reason=summary(report),
            cursor=news.dump(),
        )

    return sensor


def summary(report: Report) -> str:
    """How many boxes are in each state, and each cause of trouble once."""
    causes = dict.fromkeys(f"{label(cause.blame)}: {cause.words}" for cause in report.causes)
    return "; ".join([report.counts, *causes])


def _of_finding(finding: Finding) -> Verdict:
    severity = _severity(finding)
    return Verdict(
        dg.AssetKey(finding.key),
        FRESHNESS,
        finding.state.is_well,
        finding.words,
        _evidence(finding),
        severity,
        said=(severity.value, finding.state, finding.blame),
    )


def _severity(finding: Finding) -> dg.AssetCheckSeverity:
    """Dagster shows a warning in a box's checks and not in its colour, so what stays behind becomes an error."""
    is_short = finding.state is State.BEHIND and time.time() - finding.since < LONG_BEHIND
    return dg.AssetCheckSeverity.WARN if is_short else dg.AssetCheckSeverity.ERROR


def _evidence(finding: Finding) -> dict[str, dg.MetadataValue[Any]]:
    """Numbers as numbers, so that Dagster plots them."""
    found: dict[str, dg.MetadataValue[Any]] = {
        "state": dg.MetadataValue.text(str(finding.state)),
        "since": dg.MetadataValue.timestamp(finding.since),
    }
    if finding.blame != finding.key:
        found["because of"] = dg.MetadataValue.asset(dg.AssetKey(finding.blame))
    if finding.next:
        found["next"] = dg.MetadataValue.text(finding.next)
    for name, number in finding.evidence.items():
        found[name] = dg.MetadataValue.int(number) if isinstance(number, int) else dg.MetadataValue.float(number)
    return found


# -- sinks ------------------------------------------------------------------------------------------------------------


def audited(platform: Platform, pipeline: Pipeline, again: Keys = NOTHING) -> list[Audit]:
    """With keys that are looked at in any case. Rows are not compared while the engine is behind: what Redis lacks then is on
    its way. Raises `RecsError` where the engine or Redis does not answer."""
    url = platform.settings().require("redis_url")
    with platform.engine(REDIS_ENGINE_SECONDS) as engine:
        if _is_behind(engine.status()):
            why = "the engine is behind, and what Redis lacks is on its way"
            return [replace(found, not_compared=why) for found in audit(engine, pipeline, url, sample=0)]
        return list(audit(engine, pipeline, url, again=again))


def _is_behind(status: Status) -> bool:
    waiting = [partition for partition in status["partitions"] if partition["lag"]]
    return sum(p["lag"] for p in waiting) >= BACKLOG or any(p["lag_seconds"] > FRESHNESS_SECONDS for p in waiting)


def redis_checks(pipeline: Pipeline) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(IN_REDIS, asset=dg.AssetKey(sink.name), description="Whether its rows' keys are in Redis.")
        for sink in pipeline.of_kind(Kind.SINK)
    ]

    @dg.multi_asset_check(specs=specs, can_subset=True)
    def in_redis(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        """Looks at the pointer, and at some keys of each sink."""
        wanted = {key.asset_key for key in context.selected_asset_check_keys}
        found = _audits(partial(audited, platform, pipeline), pipeline)
        yield from (v.result() for v in map(_of_audit, found) if v.asset in wanted)

    return in_redis


def sink_health(pipeline: Pipeline) -> dg.SensorDefinition:
    @dg.sensor(
        name="sink_health",
        job_name=RESYNC,
        minimum_interval_seconds=SINKS_EVERY,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Sees an emptied Redis, readers on a version that is not deployed, keys that are missing or stale; has "
        "such a sink written anew, once an incident.",
    )
    def sensor(context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.SensorResult:
        """Evaluates the check `in_redis` when something changes or a run has said otherwise, and every quarter of an hour.
        What is ill at two looks and can be mended starts one run of `resync_sinks`, where the settings allow it."""
        told, incidents_before = parts(context.cursor, 2)
        news, now, wrong = News.load(told), time.time(), _wrong(platform)
        found = _audits(partial(audited, platform, pipeline, wrong), pipeline)
        problems = dict.fromkeys(f"{a.sink}: {a.problem}" for a in found if a.problem)
        mendable = [a.sink for a in found if a.can_be_mended]
        put_off = held_back(platform, pipeline, mendable)
        unseen = [a.sink for a in found if not a.is_known]
        known = repairs.load(incidents_before)
        incidents, to_mend = repairs.follow(
            known, mendable, now, unseen, _may_repair(platform) and not put_off, failed(context.instance, known)
        )
        still_wrong = {s: wrong[s] for s in unseen if s in wrong} | {a.sink: a.wrong for a in found if a.wrong}
        with suppress(RecsError):
            remember(platform.settings().state_dir, still_wrong)
        return dg.SensorResult(
            asset_events=news.to_tell(map(_of_audit, found), context.instance, now, AT_LEAST_EVERY),
            run_requests=requests(to_mend, incidents),
            skip_reason=None
            if to_mend
            else "; ".join([*problems, *([put_off] if put_off else [])]) or f"{len(found)} sinks are in Redis",
            cursor=f"{news.dump()}\n{repairs.dump(incidents)}",
        )

    return sensor


def _wrong(platform: Platform) -> Keys:
    """Of each sink the keys that were wrong at the last look."""
    with suppress(RecsError):  # a setting that is wrong: the checks say so
        return remembered(platform.settings().state_dir)
    return NOTHING


def _may_repair(platform: Platform) -> bool:
    try:
        return platform.settings().repair_sinks
    except RecsError:  # a setting that is wrong: the checks say so
        return False


def _audits(take: Callable[[], Sequence[Audit]], pipeline: Pipeline) -> Sequence[Audit]:
    """Of each sink; where Redis or the engine is away, that is what is wrong with all of them."""
    try:
        found = {a.sink: a for a in take()}
    except RecsError as error:
        found, away = {}, str(error)
    else:
        away = "it is not deployed"
    return [found.get(s.name, Audit(s.name, None, "", away=away)) for s in pipeline.of_kind(Kind.SINK)]


def _of_audit(found: Audit) -> Verdict:
    return Verdict(
        dg.AssetKey(found.sink),
        IN_REDIS,
        not found.problem,
        found.problem or found.not_compared or "its rows are in Redis",
        {
            "looked_at": dg.MetadataValue.int(found.looked_at),
            "missing": dg.MetadataValue.int(len(found.missing)),
            "stale": dg.MetadataValue.int(len(found.stale)),
            "readers_on": dg.MetadataValue.text(found.pointer or "–"),
        },
        said=found.kind,
    )
