"""How rows lie in the engine's file: lists are packed, and nobody who reads a relation notices."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from recs_platform.engines.local.connection import Connection
from recs_platform.engines.local.database import Database
from recs_platform.engines.local.storage import Storage, drop
from recs_platform.pipeline import Pipeline
from recs_platform.settings import default_sql_dir
from recs_platform_tests.feeding import Feeder, differences, utc

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LISTS = "SELECT * FROM (VALUES (1, ['b', NULL, 'ü\"\\,[']), (2, []), (3, NULL)) AS v(user_id, seen)"


@pytest.fixture
def connection() -> Connection:
    return Connection(duckdb.connect())


def test_what_is_packed_comes_back_as_it_was(connection: Connection) -> None:
    storage = Storage()
    storage.learn(connection, "user_seen", LISTS)
    storage.create(connection, "user_seen", ["user_id", "seen"], LISTS)
    assert connection.execute("FROM user_seen ORDER BY user_id").fetchall() == connection.execute(LISTS).fetchall()
    held = connection.execute(f"DESCRIBE {storage.table('user_seen')}").fetchall()
    assert [kind for _, kind, *_ in held] == ["INTEGER", "BLOB"]


def test_a_relation_is_dropped_whatever_it_is_kept_as(connection: Connection) -> None:
    storage = Storage()
    for query in (LISTS, "SELECT 1 AS user_id, 2 AS seen", LISTS):
        storage.learn(connection, "user_seen", query)
        storage.create(connection, "user_seen", ["user_id", "seen"], query)
        drop(connection, "user_seen")
        assert (
            connection.execute(
                "SELECT 1 FROM duckdb_tables() UNION ALL SELECT 1 FROM duckdb_views() WHERE NOT internal"
            ).fetchall()
            == []
        )


def test_a_file_that_holds_lists_as_such_is_gone_over(tmp_path: Path) -> None:
    """As earlier releases wrote it."""
    pipeline, path = Pipeline.load(default_sql_dir()), tmp_path / "engine.duckdb"
    database = Database(path)
    database.deploy(pipeline, START)
    view = {"event_type": "page_view", "timestamp": utc(START)}
    feeder = Feeder(database)
    feeder.tick(START, [{**view, "user_id": user, "product_id": f"p{n}"} for user in range(4) for n in range(user)])
    seen = pipeline["user_seen"].physical_name
    before = database.connection.execute("FROM user_seen ORDER BY user_id").fetchall()
    database.connection.execute(f'CREATE TABLE earlier AS FROM "{seen}"')
    drop(database.connection, seen)
    database.connection.execute(f'ALTER TABLE earlier RENAME TO "{seen}"')
    database.close()

    database = Database(path)
    assert not database.deploy(pipeline, START).steps
    assert before
    assert database.connection.execute("FROM user_seen ORDER BY user_id").fetchall() == before
    assert differences(database) == {}
    database.close()
