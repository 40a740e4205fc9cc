"""A small tick is done in two threads; killed between its transactions, the engine does what is left over first."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from recs_platform.engines.local import branches
from recs_platform.engines.local.branches import Branches, split
from recs_platform.engines.local.connection import Connection
from recs_platform.engines.local.database import Database
from recs_platform.pipeline import Pipeline
from recs_platform.settings import default_sql_dir
from recs_platform_tests.feeding import Feeder, Written, differences, utc
from recs_platform_tests.sql_copies import sql_copy

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Killed(Exception):
    """The process ends here."""


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(default_sql_dir())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "engine.duckdb"


@pytest.fixture
def database(file: Path, pipeline: Pipeline) -> Iterator[Database]:
    database = opened(file, pipeline)
    yield database
    database.close()


def opened(file: Path, pipeline: Pipeline) -> Database:
    database = Database(file)
    database.deploy(pipeline, START)
    return database


def view(user: int, product: str, at: datetime) -> dict[str, object]:
    return {"event_type": "page_view", "user_id": user, "product_id": product, "timestamp": utc(at)}


def day(feeder: Feeder) -> None:
    """A catalog and some views; the last tick is yet to come."""
    products = [{"product_id": f"p{i}", "name": "n", "category": "shoes", "in_stock": True} for i in range(4)]
    shoppers = [{"user_id": u, "age_band": "25-34", "country": "DE"} for u in range(4)]
    feeder.tick(
        START,
        catalog=feeder.catalog_changes("product_catalog", products) | feeder.catalog_changes("customers", shoppers),
    )
    for hour in range(3):
        now = START + timedelta(hours=hour)
        feeder.tick(
            now,
            [view(u, f"p{hour}", now) for u in range(4)],
            [view(u, "p1", now) | {"event_type": "purchase"} for u in (0, 1)],
        )


def last_tick(feeder: Feeder) -> None:
    """Rows come, others leave."""
    now = START + timedelta(hours=25)
    feeder.tick(now, [view(1, "p3", now), view(2, "p0", now)], [view(2, "p1", now) | {"event_type": "purchase"}])


def test_what_reads_one_another_is_in_one_part_lookups_apart(database: Database) -> None:
    first, parts = split(database.refreshers)
    assert {r.relation.name for r in first} == {
        "user_activity_parsed", "user_activity", "purchases_parsed", "purchases", "dead_letters", "canaries"}  # fmt: skip
    names = [{r.relation.name for r in part} for part in parts]
    shoppers = next(part for part in names if "user_recommendations" in part)
    assert {"recent_views", "user_seen", "user_categories"} <= shoppers
    assert "category_lists" not in shoppers, "it is looked up"
    assert sum(map(len, names)) + len(first) == len(database.refreshers)
    for part in parts:
        places = [database.refreshers.index(refresher) for refresher in part]
        assert places == sorted(places), "upstreams first"


def test_both_threads_have_something_to_do(database: Database) -> None:
    day(Feeder(database))
    here, there = database._branches._shares(split(database.refreshers)[1])
    assert here
    assert there


def killed_after(monkeypatch: pytest.MonkeyPatch, commits: int) -> None:
    """Of the transactions of the parts so many are committed; the others are not."""
    refresh, left = Branches._refresh, [commits]

    def dying(self: Branches, connection: Connection, parts: object, handed: object) -> object:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return refresh(self, connection, parts, handed)  # type: ignore[arg-type]

    monkeypatch.setattr(Branches, "_refresh", dying)


@pytest.mark.parametrize("edited", [False, True], ids=["", "and the files have changed meanwhile"])
@pytest.mark.parametrize("commits", [0, 1])
def test_killed_within_a_tick_nothing_is_lost_or_doubled(
    file: Path, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commits: int, edited: bool
) -> None:
    database = opened(file, pipeline)
    redis = Written(database)
    day(Feeder(database))
    redis.write()
    with monkeypatch.context() as patched:
        killed_after(patched, commits)
        with pytest.raises(Killed):
            last_tick(Feeder(database))
    database.close()

    database = opened(file, edited_pipeline(tmp_path / "sql") if edited else pipeline)
    assert differences(database) == {}
    if not edited:
        redis.database = database
        redis.write()
        assert redis.wrong() == []
    last_tick(Feeder(database))
    assert differences(database) == {}
    database.close()


@pytest.mark.parametrize("commits", [0, 1])
def test_what_a_failed_tick_left_over_reaches_redis_with_the_next_one(
    database: Database, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    redis, feeder = Written(database), Feeder(database)
    day(feeder)
    redis.write()
    with monkeypatch.context() as patched:
        killed_after(patched, commits)
        with pytest.raises(Killed):
            last_tick(feeder)
    redis.write()
    last_tick(feeder)
    redis.write()
    assert differences(database) == {}
    assert redis.wrong() == []


def edited_pipeline(directory: Path) -> Pipeline:
    return Pipeline.load(sql_copy(directory, lambda _, text: text.replace("rank <= 10", "rank <= 2")))


def test_a_part_that_fails_is_done_before_the_next_tick(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    feeder = Feeder(database)
    day(feeder)
    with monkeypatch.context() as patched:
        killed_after(patched, 1)
        with pytest.raises(Killed):
            last_tick(feeder)
    feeder.tick(START + timedelta(hours=25))
    assert differences(database) == {}


def test_what_is_handed_on_is_what_parts_read_and_comes_back_as_it_was(database: Database) -> None:
    day(Feeder(database))
    last_tick(Feeder(database))
    kept = branches.Handed.kept(database.connection)
    assert kept is not None
    assert {name.rpartition("__")[0] for name in kept.changed} == {"user_activity", "purchases"}, "no raw messages"
    assert (kept.then, kept.now) == (START + timedelta(hours=2), START + timedelta(hours=25))
    activity = next(rows for name, rows in kept.rows.items() if name.startswith("user_activity"))
    assert sorted(zip(activity["user_id"].to_pylist(), activity["product_id"].to_pylist(), strict=True)) == [
        (1, "p3"),
        (2, "p0"),
    ]
