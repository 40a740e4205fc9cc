"""Shoppers that are forgotten: their rows leave the log and what is made from it, and what comes of them later is refused.

The id itself is kept: without it a message that comes tomorrow could not be told from any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from recs_platform.engines.local.connection import Connection
from recs_platform.engines.local.storage import quoted
from recs_platform.pipeline import USER, Pipeline, Relation
from recs_platform.readers import downstream

STATE = "CREATE TABLE IF NOT EXISTS recs.forgotten (user_id BIGINT PRIMARY KEY, forgotten_at TIMESTAMPTZ);"
# of an event or a row, and of a change as Debezium tells it, without its schema and with
PLACES = ("", "after.", "before.", "payload.after.", "payload.before.")
# and in what is cut off, or no object, or nested too deeply: the first that is named there
NAMED = r'"user_id"[ \t\r\n]*:[ \t\r\n]*"?[ \t\r\n]*([+-]?[0-9]+)'


def forgotten(connection: Connection) -> frozenset[int]:
    return frozenset(row[0] for row in connection.execute("SELECT user_id FROM recs.forgotten").fetchall())


def user_of(payload: str) -> str:
    """SQL for the shopper that a message is of, NULL where it names none: an event, a row, a change as Debezium tells it, or
    text that is none of these."""
    text = f"TRY(decode({payload}))"
    places = ", ".join(f"rw_jsonb({text}) ->> '$.{place}{USER}'" for place in PLACES)
    return f"rw_bigint(COALESCE({places}, NULLIF(regexp_extract({text}, '{NAMED}', 1), '')))"


def remove(connection: Connection, pipeline: Pipeline, user_id: int, now: datetime) -> None:
    """Notes that the shopper is forgotten, and takes the rows out of the raw log, of what is read straight from it, and of what
    is read from files."""
    connection.execute("INSERT OR IGNORE INTO recs.forgotten VALUES (?, ?)", [user_id, now])
    for relation in (*pipeline.topics.values(), *_first(pipeline)):
        if whose := owner_of(relation):
            connection.execute(f"DELETE FROM {quoted(relation.physical_name)} WHERE {whose} = ?", [user_id])
    for relation in from_files(pipeline):
        connection.execute(
            f"DELETE FROM {quoted(relation.physical_name)} WHERE TRY_CAST({USER} AS BIGINT) = ?", [user_id]
        )


def welcome(table: Relation) -> str:
    """A condition on rows of a file: a forgotten shopper stays in it until somebody takes the line out."""
    if not (table.is_from_file and table.names_shoppers):
        return ""
    return f"WHERE COALESCE(TRY_CAST({USER} AS BIGINT) NOT IN (SELECT user_id FROM recs.forgotten), true)"


def to_rebuild(pipeline: Pipeline) -> list[str]:
    """What is made from those: to be built anew. They themselves may hold more than the raw log still does."""
    first = [*_first(pipeline), *from_files(pipeline)]
    below = {r.name for relation in first for r in downstream(pipeline, relation.name)} - {r.name for r in first}
    return [relation.name for relation in pipeline if relation.name in below]


def owner_of(relation: Relation) -> str | None:
    """SQL for the shopper that a row is of; None where no column tells."""
    if relation.names_shoppers:
        return quoted(USER)
    columns = {column.name: column.type for column in relation.columns}
    payloads = [name for name, kind in columns.items() if kind == "BYTEA" and name not in relation.statement.includes]
    return user_of(quoted(payloads[0])) if len(payloads) == 1 else None


def from_files(pipeline: Pipeline) -> list[Relation]:
    """The tables of shoppers that nothing but a file feeds."""
    return [relation for relation in pipeline if relation.is_from_file and relation.names_shoppers]


def _first(pipeline: Pipeline) -> list[Relation]:
    """The relations with rows that are read from topics, with none with rows in between."""
    return [relation for relation in pipeline if relation.is_materialized_query and _is_first(relation, pipeline)]


def _is_first(relation: Relation, pipeline: Pipeline) -> bool:
    beyond: Iterable[Relation] = [r for r in pipeline.with_ancestors({relation.name}) if r is not relation]
    return any(r.topic for r in beyond) and not any(r.is_materialized_query for r in beyond)
