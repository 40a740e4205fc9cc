"""The fields of events are told when they come, go, or change their type; what stays becomes usual."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import dagster as dg
import pytest

from recs_platform.defs import event_drift as definitions
from recs_platform.defs.resources import Platform
from recs_platform.event_drift import HALF_LIFE, FieldDrift, What, drifts, fields_read, learned, profile, sample
from recs_platform.events import EventProducer
from recs_platform.pipeline import Pipeline
from recs_platform.settings import default_sql_dir
from recs_platform.topics import ensure_topics
from recs_platform_tests.sensing import evaluations, ticked

READ = frozenset({"event_type", "user_id", "product_id"})
EVENT: Mapping[str, Any] = {"event_type": "page_view", "user_id": 1, "product_id": "p", "session_id": "s"}


def messages(count: int, changed: int = 0, **change: Any) -> list[bytes]:
    """`changed` of them with fields otherwise; a field that is None is left out."""
    other = {name: value for name, value in {**EVENT, **change}.items() if value is not None}
    return [json.dumps(other if i < changed else EVENT).encode() for i in range(count)]


def differences(changed: int, **change: Any) -> list[FieldDrift]:
    return drifts(profile(messages(100)), profile(messages(100, changed, **change)), READ)


@pytest.mark.parametrize(
    ("changed", "change", "what", "words"),
    [
        (30, {"brand": "b"}, What.NEW, "page_view.brand is new, text, in 30% of the messages; nothing reads it"),
        (30, {"user_id": "7"}, What.RETYPED, "page_view.user_id is text in 30%, usually in 0% of the messages; read by sql/"),
        (30, {"product_id": None}, What.MISSING, "page_view.product_id is missing in 30%, usually in 0% of the messages; read"),
        (100, {"session_id": {"id": 1}}, What.RETYPED, "page_view.session_id is object in 100%, usually in 0%"),
    ],
)  # fmt: skip
def test_a_field_that_is_otherwise(changed: int, change: dict[str, Any], what: What, words: str) -> None:
    [drift] = differences(changed, **change)
    assert drift.what is what
    assert str(drift).startswith(words)
    assert drift.matters == (bool(READ & change.keys()))


@pytest.mark.parametrize(("changed", "change"), [(0, {}), (4, {"user_id": "7"}), (4, {"product_id": None})])
def test_a_few_are_no_drift(changed: int, change: dict[str, Any]) -> None:
    assert differences(changed, **change) == []


@pytest.mark.parametrize("usual", [0, 1])
def test_one_odd_field_in_very_many_messages_says_nothing(usual: int) -> None:
    now = profile(messages(400, 1, odd="x"))
    assert drifts(profile(messages(400, usual, odd=1)), now, READ) == []


def test_what_matters_comes_first() -> None:
    assert [d.field for d in differences(50, brand="b", user_id="7")] == ["user_id", "brand"]


def test_event_types_are_looked_at_apart() -> None:
    searches = [json.dumps({"event_type": "search", "user_id": 1, "query": "q"}).encode()] * 30
    assert drifts(profile(messages(100)), profile(messages(100) + searches), READ) == []
    assert profile(searches)["search"].keys() == {"event_type", "user_id", "query"}


def test_a_type_with_few_messages_and_what_is_no_object_say_nothing() -> None:
    assert profile(messages(19)) == {}
    assert profile([b"no JSON", b"[]", b"\xff", b"null", b"[" * 2_000] * 30) == {}


def test_hostile_messages_do_not_make_it_grow() -> None:
    wide = [json.dumps({"event_type": "x" * 5000, **{f"f{i}{j}": i for i in range(50)}}).encode() for j in range(40)]
    kinds = [json.dumps({"event_type": f"t{i % 50}"}).encode() for i in range(50 * 20)]
    found = profile(wide + kinds)
    assert len(found) <= 30
    assert max(len(fields) for fields in found.values()) <= 100
    assert max(len(kind) for kind in found) <= 100


def test_what_stays_becomes_usual() -> None:
    usual, now = profile(messages(100)), profile(messages(100, 100, brand="b", user_id="7"))
    assert {d.field for d in drifts(usual, now, READ)} == {"brand", "user_id"}
    assert learned(usual, now, 0) == usual
    for _ in range(8):
        usual = learned(usual, now, HALF_LIFE / 4)
    assert drifts(usual, now, READ) == []


def test_a_new_event_type_is_usual_at_once() -> None:
    now = profile(messages(100))
    assert learned({}, now, 1) == now


def test_the_fields_that_are_read_are_those_of_the_lineage() -> None:
    pipeline = Pipeline.load(default_sql_dir())
    assert fields_read(pipeline, "purchases") >= {"user_id", "product_id", "timestamp", "price"}
    assert fields_read(pipeline, "nowhere") == frozenset()


# -- with a broker ----------------------------------------------------------------------------------------------------


@pytest.fixture
def topics(kafka_servers: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The pipeline over topics of the test's own; no period begins meanwhile after which what is no news is told again."""
    monkeypatch.setattr(definitions, "AT_LEAST_EVERY", 10**9)
    ensure_topics(kafka_servers, [topic_prefix + "user_activity", topic_prefix + "purchases"], 2)
    texts = {
        relation.name: relation.text.replace("topic = '", f"topic = '{topic_prefix}")
        for relation in Pipeline.load(default_sql_dir())
    }
    return Pipeline.of_texts(texts)


def send(servers: str, topic: str, payloads: list[bytes]) -> None:
    """In small batches: the embedded broker may not tell of the last one."""
    with EventProducer(servers) as producer:
        for i, payload in enumerate(payloads):
            producer.send_raw(topic, str(i).encode(), payload)
            if i % 50 == 49:
                producer.flush()


def tick(pipeline: Pipeline, cursor: str | None) -> tuple[dict[str, dg.AssetCheckEvaluation], str]:
    result = ticked(definitions.watcher(pipeline), cursor)
    return evaluations(result), result.cursor or ""


def test_the_sensor_sees_a_type_change_once(
    kafka_servers: str, topics: Pipeline, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECS_KAFKA_BOOTSTRAP_SERVERS", kafka_servers)
    topic = topic_prefix + "user_activity"
    send(kafka_servers, topic, messages(600))
    found, cursor = tick(topics, None)
    assert all(evaluation.passed for evaluation in found.values())

    send(kafka_servers, topic, messages(300, 200, user_id="7"))
    found, cursor = tick(topics, cursor)
    assert found.keys() == {"user_activity_raw"}
    assert not found["user_activity_raw"].passed
    assert "page_view.user_id is text in" in str(found["user_activity_raw"].metadata["what"].value)
    found, cursor = tick(topics, cursor)
    assert found == {}, "told once"


def test_the_check_by_hand_compares_with_the_oldest_messages(
    kafka_servers: str, topics: Pipeline, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECS_KAFKA_BOOTSTRAP_SERVERS", kafka_servers)
    topic = topic_prefix + "user_activity"
    send(kafka_servers, topic, [*messages(600), *messages(600, 300, product_id=None)])
    result = dg.materialize(
        [definitions.checks(topics)], resources={"platform": Platform()}, selection=dg.AssetSelection.all_asset_checks()
    )
    passed = {e.asset_key.to_user_string(): e.passed for e in result.get_asset_check_evaluations()}
    assert passed == {"user_activity_raw": False, "purchases_raw": True}


def test_a_sample_is_bounded(kafka_servers: str, topics: Pipeline, topic_prefix: str) -> None:
    topic = topic_prefix + "user_activity"
    send(kafka_servers, topic, messages(3000))
    found, count = sample(kafka_servers, topic)
    assert 2900 <= count <= 3000
    assert 250 <= len(found) <= 1000
