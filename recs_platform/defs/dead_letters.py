"""Messages that did not get in: checks on the source of each topic that say how many cannot be used, and how many were gone before
they were read."""

import time
from collections.abc import Iterator
from typing import Any

import dagster as dg

from recs_platform.dead_letters import MOST_REASONS, Recent, kept_of, recent, share_wanted
from recs_platform.defs.resources import Platform, pipeline_now
from recs_platform.defs.verdict import News, Verdict
from recs_platform.engines.status import Status
from recs_platform.errors import RecsError
from recs_platform.pipeline import Pipeline
from recs_platform.readings import gap_in_words

EVERY = 60  # seconds between looks
AT_LEAST_EVERY = 3600  # seconds between evaluations that say the same
WHILE_THEY_COME = 300  # seconds between evaluations while dead letters do
ENGINE_SECONDS = 10.0
LETTERS, GAPS = "dead_letters", "messages_lost"


@dg.definitions
def definitions() -> dg.Definitions:
    pipeline = pipeline_now()
    return dg.Definitions(asset_checks=[letter_checks(pipeline), gap_checks(pipeline)], sensors=[watcher(pipeline)])


def letter_checks(pipeline: Pipeline) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(
            LETTERS,
            asset=dg.AssetKey(pipeline.topics[topic].name),
            description=f"Which share of what has come on {topic} in the last five minutes cannot be used, and why.",
        )
        for topic in kept_of(pipeline)
    ]

    @dg.multi_asset_check(specs=specs, can_subset=True)
    def dead_letters(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        """Counts the letters that are kept, and the messages in Kafka, by the messages' own timestamps."""
        try:
            with platform.engine(ENGINE_SECONDS) as engine:
                found = recent(
                    engine, pipeline, engine.status(), platform.settings().require("kafka_bootstrap_servers")
                )
        except RecsError as error:
            raise dg.Failure(str(error)) from error
        verdicts = [_judged_letters(pipeline, of_topic) for of_topic in found]
        yield from (verdict.result() for verdict in verdicts if verdict.key in context.selected_asset_check_keys)

    return dead_letters


def gap_checks(pipeline: Pipeline) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(
            GAPS,
            asset=dg.AssetKey(source.name),
            description=f"Whether all that was sent to {topic} within a day was still there when it was read.",
        )
        for topic, source in pipeline.topics.items()
    ]

    @dg.multi_asset_check(specs=specs, can_subset=True)
    def messages_lost(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        """By what the engine noted when it read on."""
        try:
            with platform.engine(ENGINE_SECONDS) as engine:
                status = engine.status()
        except RecsError as error:
            raise dg.Failure(str(error)) from error
        verdicts = _judged_gaps(pipeline, status)
        yield from (verdict.result() for verdict in verdicts if verdict.key in context.selected_asset_check_keys)

    return messages_lost


def watcher(pipeline: Pipeline) -> dg.SensorDefinition:
    @dg.sensor(
        name="dead_letters",
        target=None,
        minimum_interval_seconds=EVERY,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Counts the messages of each topic that cannot be used, and those that were gone before they were read.",
    )
    def sensor(context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.SensorResult:
        """Evaluates the checks `dead_letters` and `messages_lost` when they turn well or ill, every few minutes while letters come,
        and every hour."""
        news, now = News.load(context.cursor), time.time()
        events = list[dg.AssetCheckEvaluation]()
        try:
            with platform.engine(ENGINE_SECONDS) as engine:
                status = engine.status()
                events += news.to_tell(_judged_gaps(pipeline, status), context.instance, now, AT_LEAST_EVERY)
                letters = recent(engine, pipeline, status, platform.settings().require("kafka_bootstrap_servers"))
        except RecsError as error:
            return dg.SensorResult(asset_events=events, skip_reason=str(error), cursor=news.dump())
        for found in letters:
            every = WHILE_THEY_COME if found.letters else AT_LEAST_EVERY
            events += news.to_tell([_judged_letters(pipeline, found)], context.instance, now, every)
        words = "; ".join(f"{found.topic}: {found.letters} dead letters" for found in letters)
        return dg.SensorResult(asset_events=events, skip_reason=words, cursor=news.dump())

    return sensor


def _judged_gaps(pipeline: Pipeline, status: Status) -> Iterator[Verdict]:
    gaps = {reset["topic"]: reset for reset in status.get("resets", ())}
    for topic, source in pipeline.topics.items():
        lost = gaps[topic]["lost"] if topic in gaps else 0
        metadata: dict[str, dg.MetadataValue[Any]] = {"messages": dg.MetadataValue.int(lost)}
        if lost:
            metadata["next"] = dg.MetadataValue.text(
                "Send them again from where they came from, if that still has them."
            )
        words = gap_in_words(gaps[topic]) if topic in gaps else "it was read without a gap"
        warning = dg.AssetCheckSeverity.WARN
        yield Verdict(dg.AssetKey(source.name), GAPS, lost == 0, words, metadata, warning, said=words)


def _judged_letters(pipeline: Pipeline, found: Recent) -> Verdict:
    source = pipeline.topics[found.topic]
    wanted = share_wanted(source)
    evidence: dict[str, dg.MetadataValue[Any]] = {
        "share": dg.MetadataValue.float(round(found.share, 4)),
        "dead letters": dg.MetadataValue.int(found.letters),
        "messages": dg.MetadataValue.int(found.messages),
    }
    if found.letters:
        rows = [dg.TableRecord({"reason": reason, "messages": count}) for reason, count in found.reasons[:MOST_REASONS]]
        evidence["reasons"] = dg.MetadataValue.table(rows)
        evidence["next"] = dg.MetadataValue.text(
            "`recs dead-letters` shows one of each; `recs dead-letters replay` sends back what can be put right"
        )
    return Verdict(
        dg.AssetKey(source.name),
        LETTERS,
        found.share <= wanted,
        f"of the last five minutes: {found}; up to {wanted:.1%} are no trouble",
        evidence,
        dg.AssetCheckSeverity.WARN,
    )
