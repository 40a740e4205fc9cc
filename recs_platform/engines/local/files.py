"""The files of `sql/` as they are deployed, kept with the rows, so that a plan can say what differs; and those before."""

from __future__ import annotations

from itertools import chain

from recs_platform.engines.local.connection import Connection
from recs_platform.pipeline import Pipeline

STATE = """
CREATE TABLE IF NOT EXISTS recs.texts (name VARCHAR PRIMARY KEY, text VARCHAR);
CREATE TABLE IF NOT EXISTS recs.former_texts (name VARCHAR PRIMARY KEY, text VARCHAR);
"""


def keep(connection: Connection, pipeline: Pipeline, is_other: bool) -> None:
    """Notes what is deployed from now on; where it `is_other` than what was, that is noted as what to go back to."""
    if is_other:
        connection.execute("DELETE FROM recs.former_texts")
        connection.execute("INSERT INTO recs.former_texts SELECT * FROM recs.texts")
    connection.execute("DELETE FROM recs.texts")
    if pipeline.relations:
        marks = ", ".join("(?, ?)" for _ in pipeline)
        texts = chain(*((relation.name, relation.text) for relation in pipeline))
        connection.execute(f"INSERT INTO recs.texts VALUES {marks}", list(texts))


def kept(connection: Connection, former: bool = False) -> Pipeline:
    """What is deployed, or what was before it last changed. Empty where not all of it can be read any more: half of it
    would drop the other half."""
    kept = texts(connection, former)
    found = Pipeline.of_texts(kept)
    return found if len(found.relations) == len(kept) else Pipeline({})


def texts(connection: Connection, former: bool = False) -> dict[str, str]:
    """Name → the text of its file."""
    table = "former_texts" if former else "texts"
    return dict(connection.execute(f"SELECT name, text FROM recs.{table}").fetchall())
