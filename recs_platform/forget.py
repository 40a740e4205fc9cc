"""Forgetting a person: every store that may know of a shopper, counted before and after."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from recs_platform import audit
from recs_platform.catalog import connected
from recs_platform.catalog_file import find_file, typed_rows
from recs_platform.engines import connect
from recs_platform.engines.base import StreamEngine
from recs_platform.engines.local.forgetting import NAMED, PLACES, from_files, owner_of
from recs_platform.foreign_json import parsed
from recs_platform.pipeline import USER, Kind, Pipeline
from recs_platform.schema import copies
from recs_platform.serving import keys
from recs_platform.serving.connection import connected as redis_at
from recs_platform.settings import Settings
from recs_platform.topic_reader import read, spans

FOLLOW_SECONDS, BETWEEN_LOOKS = 30.0, 0.5  # for the engine and Redis to follow PostgreSQL
KAFKA, FILES = "Kafka", "a file of yours"
Traces = Mapping[tuple[str, str], int]
"""(store, what of it) → how many rows, keys or messages name the shopper."""


@dataclass(frozen=True)
class Report:
    """What was found of a shopper before and after."""

    user_id: int
    before: Traces
    after: Traces

    @property
    def left(self) -> list[tuple[str, str]]:
        """Where something is left that should not be. Messages leave a topic with its retention alone."""
        return [place for place, count in self.after.items() if count and place[0] != KAFKA]


def forget(settings: Settings, user_id: object, tell: Callable[[str], None] = lambda _: None) -> Report:
    """Takes a shopper out of every store. Raises `ValueError` for an id that is none, and `RecsError` for what is away."""
    user, pipeline = keys.checked_user_id(user_id), Pipeline.of(settings)
    with connect(settings) as engine:
        if not engine.capabilities.forgets_shoppers:
            engine.forget(user)  # says why it cannot
        tell("looking for traces")
        before = traces(settings, engine, pipeline, user)
        tell("the engine takes the shopper out of its log and builds what is made from it anew")
        engine.forget(user)
        (settings.state_dir / audit.REMEMBERED).unlink(
            missing_ok=True
        )  # keys that are looked at again, whosever they are
        tell("PostgreSQL")
        _forget_in_catalog(settings, pipeline, user)
        tell("waiting for the engine and Redis to follow")
        deadline = time.monotonic() + FOLLOW_SECONDS
        while any((after := _traces(settings, engine, pipeline, user)).values()) and time.monotonic() < deadline:
            time.sleep(BETWEEN_LOOKS)
        return Report(user, before, {**{p: n for p, n in before.items() if p[0] in (KAFKA, FILES)}, **after})


def traces(settings: Settings, engine: StreamEngine, pipeline: Pipeline, user: int) -> Traces:
    """Everywhere a shopper could be found, also where nothing is."""
    kept = {**_in_kafka(settings, pipeline, user), **_in_files(settings, pipeline, user)}
    return {**kept, **_traces(settings, engine, pipeline, user)}


def _traces(settings: Settings, engine: StreamEngine, pipeline: Pipeline, user: int) -> Traces:
    """Everywhere but in what is read alone and forgets nothing: Kafka and files."""
    return {
        **_in_engine(engine, pipeline, user),
        **_in_catalog(settings, pipeline, user),
        **_in_redis(settings, pipeline, user),
    }


def _in_kafka(settings: Settings, pipeline: Pipeline, user: int) -> Traces:
    servers, found = settings.require("kafka_bootstrap_servers"), dict[tuple[str, str], int]()
    for topic in pipeline.topics:
        parts = spans(servers, topic)
        messages = read(servers, topic, parts) if parts else ()
        found[KAFKA, topic] = sum(_is_of(message.value(), user) for message in messages)
    return found


def _is_of(payload: Any, user: int) -> bool:
    try:
        named = _named(bytes(payload or b"").decode())
        return named is not None and int(str(named)) == user
    except ValueError:
        return False


def _named(text: str) -> Any:
    """What a message gives as the shopper's id."""
    body = None
    with suppress(ValueError):
        body = parsed(text)
    named = next((named for place in PLACES if (named := _at(body, place)) is not None), None)
    return found[1] if named is None and (found := re.search(NAMED, text)) else named


def _at(body: Any, place: str) -> Any:
    """What a message says at one of the places where an id may be."""
    for part in (*place.split(".")[:-1], USER):
        body = body.get(part) if isinstance(body, dict) else None
    return body


def _in_engine(engine: StreamEngine, pipeline: Pipeline, user: int) -> Traces:
    deployed = engine.deployed()
    owners = {r.name: owner for r in pipeline if r.name in deployed and r.is_materialized and (owner := owner_of(r))}
    return {("the engine", name): _count(engine, name, owner, user) for name, owner in owners.items()}


def _count(engine: StreamEngine, name: str, owner: str, user: int) -> int:
    found = engine.query(f'SELECT count(*) AS n FROM "{name}" WHERE {owner} = $1', [user])
    return int(found.column("n")[0].as_py())


def _catalog_tables(pipeline: Pipeline) -> Iterator[str]:
    return (copy.catalog_table for copy in copies(pipeline) if copy.names_shoppers)


def _in_files(settings: Settings, pipeline: Pipeline, user: int) -> Traces:
    tables = from_files(pipeline)
    paths = {table.name: find_file(settings.catalog_dir, table.name) for table in tables}
    return {
        (FILES, str(paths[t.name])): sum(row[USER] == user for row in typed_rows(paths[t.name], t.columns, t.key))
        for t in tables
    }


def _in_catalog(settings: Settings, pipeline: Pipeline, user: int) -> Traces:
    with connected(settings.require("postgres_url")) as connection:
        return {("PostgreSQL", table): _rows(connection, table, user) for table in _catalog_tables(pipeline)}


def _forget_in_catalog(settings: Settings, pipeline: Pipeline, user: int) -> None:
    with connected(settings.require("postgres_url")) as connection:
        for table in _catalog_tables(pipeline):
            connection.execute(sql.SQL("DELETE FROM {} WHERE user_id = %s").format(_identifier(table)), [user])


def _rows(connection: psycopg.Connection, table: str, user: int) -> int:
    statement = sql.SQL("SELECT count(*) FROM {} WHERE user_id = %s").format(_identifier(table))
    row = connection.execute(statement, [user]).fetchone()
    return int(row[0]) if row else 0


def _identifier(table: str) -> sql.Identifier:
    return sql.Identifier(*table.split("."))


def _in_redis(settings: Settings, pipeline: Pipeline, user: int) -> Traces:
    """Under every version that is kept, not only the live one."""
    sinks = [s for s in pipeline.of_kind(Kind.SINK) if s.names_shoppers]
    with redis_at(settings.require("redis_url")) as connection:
        return {
            ("Redis", sink.redis_name): sum(
                1 for _ in connection.scan_iter(match=f"{keys.ROOT}:{sink.redis_name}:*:{user}", count=1000)
            )
            for sink in sinks
        }
