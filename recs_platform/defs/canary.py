"""Canaries through the whole path, as an asset check on the sinks they come out of, and as a plot over time."""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from recs_platform.canary import Flight, fly, remember
from recs_platform.defs.resources import Platform, pipeline_now
from recs_platform.defs.verdict import News, Verdict
from recs_platform.errors import RecsError
from recs_platform.health import State
from recs_platform.lineage import label
from recs_platform.monitor import look_and_remember
from recs_platform.pipeline import Pipeline
from recs_platform.settings import Settings

CHECK = "canary"
EVERY = 30  # seconds between flights
AT_LEAST_EVERY = 300  # seconds between evaluations that say the same
SINKS = ("canary_sink", "heartbeat_sink")


@dg.definitions
def definitions() -> dg.Definitions:
    pipeline = pipeline_now()
    sinks = [name for name in SINKS if name in pipeline.relations]
    if not sinks:
        return dg.Definitions()
    return dg.Definitions(asset_checks=[checks(pipeline, sinks)], sensors=[sender(pipeline)])


def checks(pipeline: Pipeline, sinks: Collection[str]) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(
            CHECK, asset=dg.AssetKey(sink), description="Whether what is sent now comes to Redis, how soon."
        )
        for sink in sinks
    ]

    @dg.multi_asset_check(specs=specs, can_subset=True)
    def canary(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        """Sends one along each path and waits for it."""
        try:
            settings = platform.settings()
            flights = fly(settings, pipeline, sender="check")
            trouble = _trouble(settings, pipeline, flights)
        except RecsError as error:
            raise dg.Failure(str(error)) from error
        wanted = {key.asset_key for key in context.selected_asset_check_keys}
        verdicts = [_judged(flight, trouble) for flight in flights]
        yield from (verdict.result() for verdict in verdicts if verdict.asset in wanted)

    return canary


def sender(pipeline: Pipeline) -> dg.SensorDefinition:
    @dg.sensor(
        name="canary",
        target=None,
        minimum_interval_seconds=EVERY,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Sends a message and a row of its own through the whole path, and sees how soon they are in Redis.",
    )
    def canary(context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.SensorResult:
        """Evaluates the check `canary` when one is lost or comes again, and every few minutes."""
        try:
            settings = platform.settings()
            flights = fly(settings, pipeline)
            trouble = _trouble(settings, pipeline, flights)
        except RecsError as error:
            return dg.SensorResult(skip_reason=str(error), cursor=context.cursor)
        remember(settings.state_dir, flights)
        news, verdicts = News.load(context.cursor), [_judged(flight, trouble) for flight in flights]
        return dg.SensorResult(
            asset_events=news.to_tell(verdicts, context.instance, time.time(), AT_LEAST_EVERY),
            skip_reason="; ".join(verdict.description or "" for verdict in verdicts),
            cursor=news.dump(),
        )

    return canary


@dataclass(frozen=True)
class _Trouble:
    """What explains that one has not come. `behind`: the boxes that are, where nothing is worse: it waits with everything else.
    `held_up_until`: before that moment none could have come."""

    behind: tuple[str, ...] = ()
    held_up_until: float = 0.0

    def explains(self, flight: Flight) -> bool:
        return flight.seconds is None and not flight.is_lost_since(self.held_up_until) and bool(self.behind)


def _trouble(settings: Settings, pipeline: Pipeline, flights: Sequence[Flight]) -> _Trouble:
    if all(flight.seconds is not None for flight in flights):
        return _Trouble()
    report = look_and_remember(settings, pipeline)
    behind = tuple(label(cause.blame) for cause in report.causes) if report.state is State.BEHIND else ()
    return _Trouble(behind, report.engine.get("held_up_until", 0.0))


def _judged(flight: Flight, trouble: _Trouble) -> Verdict:
    is_late = trouble.explains(flight)
    took: dict[str, dg.MetadataValue[Any]] = {}
    if flight.seconds is not None:
        took["milliseconds"] = dg.MetadataValue.float(round(1000 * flight.seconds, 1))
    return Verdict(
        dg.AssetKey(flight.sink),
        CHECK,
        flight.seconds is not None,
        flight.words + (f"; behind: {', '.join(trouble.behind)}" if is_late else ""),
        {"sent_at": dg.MetadataValue.timestamp(flight.sent_at), **took},
        dg.AssetCheckSeverity.WARN if is_late else dg.AssetCheckSeverity.ERROR,
        said=is_late,
    )
