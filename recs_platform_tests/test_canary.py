"""Canaries go the whole path; one that does not come says why, and those who do not send any hear of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from recs_platform.canary import LATE, NEWS, Flight, fly, remember, remembered
from recs_platform.defs import canary as definitions
from recs_platform.engines.local import redis_sink
from recs_platform.engines.local.client import LocalEngine
from recs_platform.health import Finding, Seen, State
from recs_platform.lineage import Key
from recs_platform.monitor import Report, look
from recs_platform.pipeline import Pipeline
from recs_platform.settings import Settings
from recs_platform.stack.service import free_port
from recs_platform.topics import admin_client
from recs_platform_tests.sensing import evaluations, ticked
from recs_platform_tests.shop_floor import Shop, eventually
from recs_platform_tests.test_contract import local


@pytest.fixture
def shop(tmp_path: Path, kafka_servers: str, postgres_url: str, redis_url: str, topic_prefix: str) -> Iterator[Shop]:
    shop = Shop(tmp_path, kafka_servers, postgres_url, redis_url, topic_prefix)
    shop.open()
    yield shop
    shop.close()


@contextmanager
def at_work(shop: Shop) -> Iterator[None]:
    """The engine goes on by itself meanwhile."""
    assert shop.engine is not None
    stop = threading.Event()
    thread = threading.Thread(target=shop.engine.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_both_paths_are_flown_and_nothing_else_holds_a_canary(shop: Shop) -> None:
    pipeline = Pipeline.of(shop.settings)
    with at_work(shop):
        first, again = fly(shop.settings, pipeline), fly(shop.settings, pipeline)
    assert {flight.sink for flight in first} == {"canary_sink", "heartbeat_sink"}
    for flight in (*first, *again):
        assert flight.seconds is not None, flight.problem
        assert 0 < flight.seconds < 10
    assert len(shop.documents("canary")) == 2, "each has a key of its own, for five minutes"
    assert list(shop.documents("heartbeat")) == ["canary"]
    for name in ("user_recommendations", "trending_products", "products"):
        assert shop.documents(name) == {}
    assert shop.database is not None
    for relation in ("user_activity", "dead_letters", "product_catalog"):
        assert shop.database.connection.execute(f"SELECT count(*) FROM {relation}").fetchall() == [(0,)]


def test_senders_do_not_overwrite_each_others_row(shop: Shop) -> None:
    pipeline = Pipeline.of(shop.settings)
    with at_work(shop), ThreadPoolExecutor() as pool:
        flown = list(pool.map(lambda sender: fly(shop.settings, pipeline, 10.0, sender), ("canary", "check", "doctor")))
    assert all(flight.seconds is not None for flights in flown for flight in flights), flown
    assert sorted(shop.documents("heartbeat")) == ["canary", "check", "doctor"]


def test_an_engine_that_stands_still_loses_them_and_what_is_away_is_named(shop: Shop) -> None:
    pipeline = Pipeline.of(shop.settings)
    lost = fly(shop.settings, pipeline, wait=0.2)
    assert [(f.sink, f.problem) for f in lost] == [
        ("canary_sink", "nothing came within 0 s"),
        ("heartbeat_sink", "nothing came within 0 s"),
    ]
    away = replace(shop.settings, kafka_bootstrap_servers=f"127.0.0.1:{free_port()}")
    problems = {f.sink: f.problem for f in fly(away, pipeline, wait=0.2)}
    assert "Kafka at 127.0.0.1" in problems["canary_sink"]
    empty = replace(shop.settings, redis_url=f"redis://:s3cret@127.0.0.1:{free_port()}/0")
    told = {f.problem for f in fly(empty, pipeline, wait=0.2)}
    assert all("Redis at redis://:***@127.0.0.1" in problem for problem in told)


def test_those_that_came_late_are_not_missed(shop: Shop) -> None:
    pipeline = Pipeline.of(shop.settings)

    def flown() -> dict[str, int]:
        flights = fly(shop.settings, pipeline, wait=0.2)
        assert {flight.seconds for flight in flights} == {None}
        remember(shop.settings.state_dir, flights)
        return {flight.sink: len(flight.missing) for flight in flights}

    assert flown() == {"canary_sink": 0, "heartbeat_sink": 0}, "there was none before"
    assert flown() == {"canary_sink": 1, "heartbeat_sink": 1}
    assert flown() == {"canary_sink": 2, "heartbeat_sink": 2}
    with at_work(shop):
        eventually(lambda: len(shop.documents("canary")) == 3 and bool(shop.documents("heartbeat")))
    assert flown() == {"canary_sink": 0, "heartbeat_sink": 0}, "those before came late"


@pytest.mark.parametrize(("since", "is_told"), [(1.0, False), (2 * LATE, True)])
def test_one_that_is_lost_for_good_is_told_of_beside_other_trouble(
    tmp_path: Path,
    kafka_servers: str,
    postgres_url: str,
    redis_url: str,
    topic_prefix: str,
    since: float,
    is_told: bool,
) -> None:
    """Here a topic is missing, which has nothing to do with rows."""
    shop = Shop(tmp_path, kafka_servers, postgres_url, redis_url, topic_prefix)
    admin, topic = admin_client(shop.kafka), f"{shop.prefix}purchases"
    admin.delete_topics([topic])[topic].result(10)
    now = time.time()
    lost = Flight("heartbeat_sink", "a row", now, problem="nothing came", canary="b", missing=(("a", now - since),))
    remember(shop.settings.state_dir, [lost])
    with local(shop) as engine:
        assert isinstance(engine, LocalEngine)
        settings = replace(shop.settings, engine_url=engine.url, engine_token="secret-token")

        def ill() -> dict[str, str]:
            report, _ = look(settings, Pipeline.of(settings), {})
            return {f.key[0]: f.words for f in report.findings if f.state is State.BROKEN}

        eventually(lambda: "also_bought" in ill())
        assert ("heartbeat_sink" in ill()) is is_told
    shop.close()


def test_one_that_was_sent_while_something_else_was_wrong_says_nothing_of_now(
    tmp_path: Path, kafka_servers: str, postgres_url: str, redis_url: str, topic_prefix: str
) -> None:
    shop = Shop(tmp_path, kafka_servers, postgres_url, redis_url, topic_prefix)
    with local(shop) as engine:
        assert isinstance(engine, LocalEngine)
        settings = replace(shop.settings, engine_url=engine.url, engine_token="secret-token")
        pipeline, memory = Pipeline.of(settings), dict[Key, Seen]()

        def is_well() -> bool:
            nonlocal memory
            report, memory = look(settings, pipeline, memory)
            return report.state.is_well

        eventually(is_well)
        lost = Flight("heartbeat_sink", "a row", time.time() - 100, problem="nothing came", canary="a")
        remember(settings.state_dir, [lost])
        assert is_well()
        remember(settings.state_dir, [replace(lost, sent_at=time.time())])
        assert not is_well()
    shop.close()


def test_an_emptied_redis_counts_as_lost_until_it_is_filled(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shop.engine is not None
    sink, pipeline = shop.engine.sink, Pipeline.of(shop.settings)
    with at_work(shop):
        assert all(flight.seconds is not None for flight in fly(shop.settings, pipeline))
        with monkeypatch.context() as blind:
            blind.setattr(redis_sink, "_LOOK_EVERY", 10**9)
            eventually(lambda: sink._next_look > time.monotonic() + 10**6)
            shop.redis.flushall()
            assert [flight.seconds for flight in fly(shop.settings, pipeline, wait=0.2)] == [None, None]
        sink._next_look = 0.0
        eventually(lambda: all(flight.seconds is not None for flight in fly(shop.settings, pipeline)))


def test_what_was_seen_is_remembered_while_it_is_news(tmp_path: Path) -> None:
    now = time.time()
    flight = Flight("canary_sink", "a message", now - 10, 0.2)
    remember(tmp_path, [flight])
    assert remembered(tmp_path, now) == [flight]
    assert remembered(tmp_path, now + NEWS) == []
    (tmp_path / "canary.json").write_text("[{")
    assert remembered(tmp_path, now) == []
    late = Flight("canary_sink", "a message", now, problem="nothing came", canary="b", missing=(("a", now - 30),))
    remember(tmp_path, [late])
    assert remembered(tmp_path, now) == [late]
    remember(tmp_path / "canary.json", [flight])  # no directory: nothing is kept, and nothing fails


def test_what_does_not_come_is_late_for_a_minute_and_lost_from_then_on() -> None:
    late = Flight("canary_sink", "a message", 1_000.0, problem="nothing came")
    assert (late.lost_since, late.is_lost_since(0.0)) == (1_000.0, False)
    later = replace(late, missing=(("a", 1_000.0 - LATE), ("b", 990.0)))
    assert (later.lost_since, later.is_lost_since(0.0)) == (1_000.0 - LATE, False)
    lost = replace(late, missing=(("a", 999.0 - LATE),))
    assert lost.is_lost_since(0.0)
    assert not replace(lost, seconds=0.2).is_lost_since(0.0)
    assert not lost.is_lost_since(lost.sent_at - LATE), (
        "where nothing could come before, it has been late for no longer"
    )


def test_a_lost_canary_is_a_finding_only_where_nothing_else_explains_it(shop: Shop) -> None:
    """Here the engine does not answer, which does."""
    remember(shop.settings.state_dir, [Flight("canary_sink", "a message", time.time(), problem="nothing came")])
    report, _ = look(
        replace(shop.settings, engine_url=f"grpc://127.0.0.1:{free_port()}"), Pipeline.of(shop.settings), {}
    )
    assert report.state is State.BROKEN
    assert not [finding for finding in report.findings if "nothing came" in finding.words]


@pytest.mark.parametrize(
    ("state", "severity", "words"),
    [
        (State.BEHIND, dg.AssetCheckSeverity.WARN, "nothing came; behind: kafka/user_activity"),
        (State.STALLED, dg.AssetCheckSeverity.ERROR, "nothing came"),
    ],
)
def test_one_that_waits_with_everything_else_is_a_warning(
    state: State, severity: dg.AssetCheckSeverity, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECS_STATE_DIR", str(tmp_path))
    late = Flight("canary_sink", "a message", time.time(), problem="nothing came")
    topic = Finding(("kafka", "user_activity"), state, 0.0, "many wait", blame=("kafka", "user_activity"))
    monkeypatch.setattr(definitions, "fly", lambda *_: [late])
    monkeypatch.setattr(definitions, "look_and_remember", lambda *_: Report(time.time(), (), (topic,)))
    (found,) = evaluations(ticked(definitions.sender(Pipeline.of(Settings())))).values()
    assert (found.passed, found.severity) == (False, severity)
    assert str(found.description).endswith(words)


def test_dagster_sends_one_and_writes_it_down_when_it_is_news(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RECS_STATE_DIR": str(shop.settings.state_dir), "RECS_SQL_DIR": str(shop.settings.sql_dir),
        "RECS_KAFKA_BOOTSTRAP_SERVERS": shop.kafka, "RECS_POSTGRES_URL": shop.postgres, "RECS_REDIS_URL": shop.redis_url,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(definitions, "AT_LEAST_EVERY", 10**9)
    sensor = definitions.sender(Pipeline.of(shop.settings))

    def tick(cursor: str | None) -> tuple[dict[str, dg.AssetCheckEvaluation], dg.SensorResult]:
        result = ticked(sensor, cursor)
        return evaluations(result), result

    with at_work(shop):
        found, result = tick(None)
        assert all(e.passed and float(str(e.metadata["milliseconds"].value)) > 0 for e in found.values())
        assert found.keys() == {"canary_sink", "heartbeat_sink"}
        again, result = tick(result.cursor)
        assert not again, "nothing is news"
    monkeypatch.setattr(definitions, "fly", lambda settings, pipeline: fly(settings, pipeline, 0.2))
    lost, _ = tick(result.cursor)
    assert not any(e.passed for e in lost.values())
    assert "did not come to Redis" in str(lost["canary_sink"].description)
    assert {f.seconds for f in remembered(shop.settings.state_dir, time.time())} == {None}
