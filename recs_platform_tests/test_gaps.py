"""What was gone before it was read is told for a day: by the engine, a reading, `recs status` and a check."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from recs_platform.commands.status import _gaps
from recs_platform.defs import dead_letters as definitions
from recs_platform.defs.resources import Platform
from recs_platform.engines.base import StreamEngine
from recs_platform.engines.local.arrivals import TickInput
from recs_platform.engines.local.bookmarks import RESETS_KEPT
from recs_platform.engines.local.intake import RETENTION, Position, TopicReset
from recs_platform.engines.local.server import RESETS_TOLD
from recs_platform.monitor import Report
from recs_platform.pipeline import Pipeline
from recs_platform.readings import of_topics
from recs_platform_tests.sensing import evaluations, ticked
from recs_platform_tests.shop_floor import Shop, eventually
from recs_platform_tests.test_contract import local


@pytest.fixture
def shop(tmp_path: Path, kafka_servers: str, postgres_url: str, redis_url: str, topic_prefix: str) -> Iterator[Shop]:
    shop = Shop(tmp_path, kafka_servers, postgres_url, redis_url, topic_prefix)
    yield shop
    shop.close()


@pytest.fixture
def engine(shop: Shop) -> Iterator[StreamEngine]:
    with local(shop) as engine:
        yield engine


def lose(shop: Shop, *resets: TopicReset, ago: timedelta = timedelta(0)) -> None:
    engine, now = shop.engine, datetime.now(UTC)
    assert engine is not None
    engine.ask(lambda: engine.database.tick(now, TickInput(resets=resets)))
    if ago:
        engine.ask(lambda: engine.database.connection.execute("UPDATE recs.resets SET noticed_at = ?", [now - ago]))


def evaluated(engine: StreamEngine, shop: Shop, cursor: str | None = None) -> tuple[dict[str, Any], str | None]:
    """Source → its evaluation in one tick of the sensor, and the cursor after it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Platform, "settings", lambda self: shop.settings)
        patched.setattr(Platform, "engine", lambda self, timeout: nullcontext(engine))
        result = ticked(definitions.watcher(Pipeline.of(shop.settings)), cursor)
    return evaluations(result, definitions.GAPS), result.cursor


def test_messages_that_were_gone_are_told_of_for_a_day(shop: Shop, engine: StreamEngine) -> None:
    topic = shop.prefix + "user_activity"
    eventually(lambda: len(engine.status()["partitions"]) > 1)
    found, cursor = evaluated(engine, shop)
    assert {e.passed for e in found.values()} == {True}
    assert not evaluated(engine, shop, cursor)[0], "nothing is news"
    lose(shop, TopicReset(topic, 0, 100, RETENTION, 40), TopicReset(topic, 1, 7, "another"))

    [reset] = engine.status()["resets"]
    assert (reset["topic"], reset["lost"], reset["partitions"]) == (topic, 40, 2)
    [reading] = [r for r in of_topics(engine.status()) if "messages_lost" in r.numbers]
    assert (reading.key, reading.numbers["messages_lost"]) == (("kafka", topic), 40)
    [line] = _gaps(Report(0.0, (reading,), ()))
    assert f"kafka/{topic}: at least 40 messages of 2 partitions are lost, 20" in line.plain
    assert RETENTION in line.plain

    found, cursor = evaluated(engine, shop, cursor)
    assert [(source, e.passed, e.severity.value) for source, e in found.items()] == [
        ("user_activity_raw", False, "WARN")
    ]
    lose(shop, ago=RESETS_TOLD)
    assert engine.status()["resets"] == []
    assert [e.passed for e in evaluated(engine, shop, cursor)[0].values()] == [True]


def test_a_topic_that_begins_anew_when_all_of_it_was_read_is_told_of_and_no_trouble(
    shop: Shop, engine: StreamEngine
) -> None:
    topic = shop.prefix + "user_activity"
    lose(shop, TopicReset(topic, 0, 100, "it began anew"))
    [reading] = [r for r in of_topics(engine.status()) if "messages_lost" in r.numbers]
    assert "nothing that was sent to 1 partition is known to be lost" in reading.state["gap"]
    assert not list(_gaps(Report(0.0, (reading,), ())))
    found, _ = evaluated(engine, shop)
    assert found["user_activity_raw"].passed
    assert "it began anew" in str(found["user_activity_raw"].description)


def test_a_partition_that_is_gone_is_not_told_of_at_each_start(shop: Shop, engine: StreamEngine) -> None:
    topic, running = shop.prefix + "user_activity", shop.engine
    assert running is not None
    position = Position(topic, 99, 5, "of a topic with more partitions")
    running.ask(lambda: running.database.tick(datetime.now(UTC), TickInput(positions=[position])))
    assert position in running.ask(running.database.bookmarks.positions)
    lose(shop, TopicReset(topic, 99, 5, "it is gone"))
    assert position not in running.ask(running.database.bookmarks.positions)
    anew = TickInput(positions=[position], resets=[TopicReset(topic, 99, 5, "it began anew")])
    running.ask(lambda: running.database.tick(datetime.now(UTC), anew))
    running.ask(lambda: running.database.tick(datetime.now(UTC), anew))
    assert position in running.ask(running.database.bookmarks.positions)


def test_no_more_of_them_are_kept_than_a_person_reads(shop: Shop, engine: StreamEngine) -> None:
    topic = shop.prefix + "user_activity"
    lose(shop, *(TopicReset(topic, n, 0, RETENTION, 1) for n in range(RESETS_KEPT + 10)))
    assert engine.status()["resets"][0]["lost"] == RESETS_KEPT
