"""The fields of events: a check on the source of each topic that says which are otherwise than they used to be."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from recs_platform.defs.resources import Platform, pipeline_now
from recs_platform.defs.verdict import News, Verdict, parts
from recs_platform.errors import RecsError
from recs_platform.event_drift import FieldDrift, drifts, fields_read, learned, profile, sample
from recs_platform.pipeline import Pipeline, Relation

EVERY = 60  # seconds between looks
AT_LEAST_EVERY = 3600  # seconds between evaluations that say the same
CHECK = "event_drift"


@dg.definitions
def definitions() -> dg.Definitions:
    pipeline = pipeline_now()
    return dg.Definitions(asset_checks=[checks(pipeline)], sensors=[watcher(pipeline)])


def checks(pipeline: Pipeline) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(
            CHECK,
            asset=dg.AssetKey(source.name),
            description=f"Whether the fields of {topic} are there as usual, with their usual types.",
        )
        for topic, source in _of_events(pipeline).items()
    ]

    @dg.multi_asset_check(specs=specs, can_subset=True)
    def event_drift(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        """Compares the newest messages with the oldest that the topic keeps; what is usual is known to the sensor alone."""
        for topic, source in _of_events(pipeline).items():
            key = dg.AssetCheckKey(dg.AssetKey(source.name), CHECK)
            if key not in context.selected_asset_check_keys:
                continue
            try:
                servers = platform.settings().require("kafka_bootstrap_servers")
                usual, payloads = (profile(sample(servers, topic, oldest=True)[0]), sample(servers, topic)[0])
            except RecsError as error:
                raise dg.Failure(str(error)) from error
            found = drifts(usual, profile(payloads), fields_read(pipeline, topic))
            yield _judged(source.name, found, len(payloads)).result()

    return event_drift


def watcher(pipeline: Pipeline) -> dg.SensorDefinition:
    read = {topic: fields_read(pipeline, topic) for topic in _of_events(pipeline)}

    @dg.sensor(
        name="event_drift",
        target=None,
        minimum_interval_seconds=EVERY,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Samples the newest messages of each topic, and sees fields come, go and change their type.",
    )
    def event_drift(context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.SensorResult:
        """Costs one read of a few hundred messages a topic. What is usual is learned only while something comes."""
        told, remembered = parts(context.cursor, 2)
        news, known = News.load(told), _loaded(remembered)
        verdicts, words, now = list[Verdict](), [], time.time()
        for topic, source in _of_events(pipeline).items():
            entry = known.setdefault(topic, {"count": -1, "at": now, "usual": {}})
            try:
                payloads, count = sample(platform.settings().require("kafka_bootstrap_servers"), topic)
            except RecsError as error:
                words.append(str(error))
                continue
            seen = profile(payloads)
            found = drifts(entry["usual"], seen, read[topic])
            verdicts.append(_judged(source.name, found, len(payloads)))
            usual = learned(entry["usual"], seen, now - entry["at"]) if count != entry["count"] else entry["usual"]
            known[topic] = {"count": count, "at": now, "usual": usual}
            words.append(f"{topic}: {len(found)} differences")
        events = news.to_tell(verdicts, context.instance, now, AT_LEAST_EVERY)
        cursor = f"{news.dump()}\n{json.dumps(known)}"
        return dg.SensorResult(asset_events=events, skip_reason="; ".join(words), cursor=cursor)

    return event_drift


def _of_events(pipeline: Pipeline) -> Mapping[str, Relation]:
    """The topics with fields that something reads."""
    return {topic: source for topic, source in pipeline.topics.items() if fields_read(pipeline, topic)}


def _loaded(text: str) -> dict[str, dict[str, Any]]:
    """What the last look left; nothing where it cannot be read: what is there now is usual then."""
    try:
        found = json.loads(text or "{}")
        return found if isinstance(found, dict) else {}
    except ValueError:
        return {}


def _judged(source: str, found: Sequence[FieldDrift], looked_at: int) -> Verdict:
    return Verdict(
        dg.AssetKey(source),
        CHECK,
        passed=not any(drift.matters for drift in found),
        metadata=_evidence(found, looked_at),
        severity=dg.AssetCheckSeverity.WARN,
        said=[(d.event_type, d.field, d.what) for d in found],  # not by how much, which changes all the time
    )


def _evidence(found: Sequence[FieldDrift], looked_at: int) -> dict[str, dg.MetadataValue[Any]]:
    mattering = [drift for drift in found if drift.matters]
    evidence: dict[str, dg.MetadataValue[Any]] = {
        "messages": dg.MetadataValue.int(looked_at),
        "differences": dg.MetadataValue.int(len(found)),
        "worst share": dg.MetadataValue.float(max((drift.share for drift in mattering), default=0.0)),
    }
    if found:
        evidence["what"] = dg.MetadataValue.text("\n".join(map(str, found)))
    if mattering:
        evidence["next"] = dg.MetadataValue.text(
            "Messages that cannot be used are dead letters: `recs dead-letters`. If the new shape is meant, follow it in the "
            "`_parsed` view of sql/views/ and `recs apply`; what has come meanwhile is judged anew."
        )
    return evidence
