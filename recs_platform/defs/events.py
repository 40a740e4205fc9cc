"""The events of each topic: checks on its source that say which fields are otherwise than they used to be, how many
messages cannot be used, and how many were gone before they were read."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import dagster as dg

from recs_platform.dead_letters import MOST_REASONS, Recent, kept_of, recent, share_wanted
from recs_platform.defs.resources import Platform
from recs_platform.engines.status import Status
from recs_platform.errors import RecsError
from recs_platform.event_drift import FieldDrift, drifts, fields_read, learned, profile, sample
from recs_platform.pipeline import Pipeline, Relation
from recs_platform.readings import gap_in_words
from recs_platform.settings import Settings

EVERY = 60  # seconds between looks
AT_LEAST_EVERY = 3600  # seconds between evaluations that say the same
WHILE_THEY_COME = 300  # seconds between evaluations while dead letters do
ENGINE_SECONDS = 10.0
CHECK, LETTERS, GAPS = "event_drift", "dead_letters", "messages_lost"


@dg.definitions
def definitions() -> dg.Definitions:
    pipeline = Pipeline.of(Settings.load())
    all_checks = [checks(pipeline), letter_checks(pipeline), gap_checks(pipeline)]
    return dg.Definitions(asset_checks=all_checks, sensors=[watcher(pipeline)])


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
            yield dg.AssetCheckResult(**_judged(source.name, found, len(payloads)))

    return event_drift


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
        for of_topic in found:
            result = _judged_letters(pipeline, of_topic)
            if dg.AssetCheckKey(result["asset_key"], LETTERS) in context.selected_asset_check_keys:
                yield dg.AssetCheckResult(**result)

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
        for result in _judged_gaps(pipeline, status).values():
            if dg.AssetCheckKey(result["asset_key"], GAPS) in context.selected_asset_check_keys:
                yield dg.AssetCheckResult(**result)

    return messages_lost


def watcher(pipeline: Pipeline) -> dg.SensorDefinition:
    read = {topic: fields_read(pipeline, topic) for topic in _of_events(pipeline)}

    @dg.sensor(
        name="event_drift",
        target=None,
        minimum_interval_seconds=EVERY,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Samples the newest messages of each topic, and sees fields come, go and change their type; counts those "
        "that cannot be used, and those that were gone before they were read.",
    )
    def event_drift(context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.SensorResult:
        """Costs one read of a few hundred messages a topic. What is usual is learned only while something comes."""
        known: dict[str, dict[str, Any]] = _loaded(context.cursor)
        events, words, now = [], [], time.time()
        for topic, source in _of_events(pipeline).items():
            entry = known.setdefault(topic, _unseen(now))
            try:
                payloads, count = sample(platform.settings().require("kafka_bootstrap_servers"), topic)
            except RecsError as error:
                words.append(str(error))
                continue
            seen = profile(payloads)
            found = drifts(entry["usual"], seen, read[topic])
            told = f"{_digest(found)} {int(now // AT_LEAST_EVERY)}"
            if told != entry["told"]:
                events.append(dg.AssetCheckEvaluation(**_judged(source.name, found, len(payloads))))
            usual = learned(entry["usual"], seen, now - entry["at"]) if count != entry["count"] else entry["usual"]
            known[topic] = entry | {"count": count, "at": now, "usual": usual, "told": told}
            words.append(f"{topic}: {len(found)} differences")
        try:
            with platform.engine(ENGINE_SECONDS) as engine:
                status = engine.status()
                events += _news_of_gaps(_judged_gaps(pipeline, status), known, now)
                letters = recent(engine, pipeline, status, platform.settings().require("kafka_bootstrap_servers"))
            events += _news_of_letters(letters, pipeline, known, now)
            words += [f"{found.topic}: {found.letters} dead letters" for found in letters]
        except RecsError as error:
            words.append(str(error))
        return dg.SensorResult(asset_events=events, skip_reason="; ".join(words), cursor=json.dumps(known))

    return event_drift


def _unseen(now: float) -> dict[str, Any]:
    """What is known of a topic at the first look."""
    return {"count": -1, "at": now, "usual": {}, "told": "", "letters": "", "gaps": ""}


def _news_of_letters(
    letters: Sequence[Recent], pipeline: Pipeline, known: dict[str, dict[str, Any]], now: float
) -> Iterator[dg.AssetCheckEvaluation]:
    """Those that turn well or ill, and now and then the others; `known` remembers them."""
    for found in letters:
        entry, result = known.setdefault(found.topic, _unseen(now)), _judged_letters(pipeline, found)
        told = f"{result['passed']} {int(now // (WHILE_THEY_COME if found.letters else AT_LEAST_EVERY))}"
        if told != entry.get("letters"):
            yield dg.AssetCheckEvaluation(**result)
        entry["letters"] = told


def _news_of_gaps(
    results: Mapping[str, Mapping[str, Any]], known: dict[str, dict[str, Any]], now: float
) -> Iterator[dg.AssetCheckEvaluation]:
    """As `_news_of_letters`."""
    for topic, result in results.items():
        entry = known.setdefault(topic, _unseen(now))
        told = f"{result['description']} {int(now // AT_LEAST_EVERY)}"
        if told != entry.get("gaps"):
            yield dg.AssetCheckEvaluation(**result)
        entry["gaps"] = told


def _judged_gaps(pipeline: Pipeline, status: Status) -> dict[str, dict[str, Any]]:
    """Topic → as `_judged`."""
    gaps = {reset["topic"]: reset for reset in status.get("resets", ())}
    found = dict[str, dict[str, Any]]()
    for topic, source in pipeline.topics.items():
        lost = gaps[topic]["lost"] if topic in gaps else 0
        metadata: dict[str, dg.MetadataValue[Any]] = {"messages": dg.MetadataValue.int(lost)}
        if lost:
            metadata["next"] = dg.MetadataValue.text(
                "Send them again from where they came from, if that still has them."
            )
        found[topic] = {
            "asset_key": dg.AssetKey(source.name),
            "check_name": GAPS,
            "passed": lost == 0,
            "severity": dg.AssetCheckSeverity.WARN,
            "description": gap_in_words(gaps[topic]) if topic in gaps else "it was read without a gap",
            "metadata": metadata,
        }
    return found


def _judged_letters(pipeline: Pipeline, found: Recent) -> dict[str, Any]:
    """As `_judged`."""
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
    return {
        "asset_key": dg.AssetKey(source.name),
        "check_name": LETTERS,
        "passed": found.share <= wanted,
        "severity": dg.AssetCheckSeverity.WARN,
        "description": f"of the last five minutes: {found}; up to {wanted:.1%} are no trouble",
        "metadata": evidence,
    }


def _of_events(pipeline: Pipeline) -> Mapping[str, Relation]:
    """The topics with fields that something reads."""
    return {topic: source for topic, source in pipeline.topics.items() if fields_read(pipeline, topic)}


def _loaded(cursor: str | None) -> dict[str, dict[str, Any]]:
    """What the last look left; nothing where it cannot be read: what is there now is usual then."""
    try:
        found = json.loads(cursor or "{}")
        return found if isinstance(found, dict) else {}
    except ValueError:
        return {}


def _judged(source: str, found: Sequence[FieldDrift], looked_at: int) -> dict[str, Any]:
    """What a result of a run and an evaluation of a sensor both take."""
    return {
        "asset_key": dg.AssetKey(source),
        "check_name": CHECK,
        "passed": not any(drift.matters for drift in found),
        "severity": dg.AssetCheckSeverity.WARN,
        "metadata": _evidence(found, looked_at),
    }


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


def _digest(found: Sequence[FieldDrift]) -> str:
    """Of what differs, not of by how much: that changes all the time."""
    return blake2b(repr([(d.event_type, d.field, d.what) for d in found]).encode(), digest_size=8).hexdigest()
