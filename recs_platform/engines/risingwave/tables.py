"""The tables of the catalog in a RisingWave: how far one is filled, and how one is brought in step with its file."""

from __future__ import annotations

from recs_platform.catalog_file import find_file, typed_rows
from recs_platform.engines.risingwave.postgres import count_rows
from recs_platform.engines.risingwave.session import Session
from recs_platform.engines.risingwave.statements import differences
from recs_platform.physical_names import VersionId, physical_name
from recs_platform.pipeline import Relation
from recs_platform.settings import Settings

ROWS_AT_ONCE = 500  # of one statement


def filling(session: Session, relation: Relation, version: VersionId, settings: Settings) -> tuple[int, int] | None:
    """Of a table of PostgreSQL: the rows it has here, and there; None for what has none to wait for.

    A table of a file is filled from it. Raises `SourceError` where the file is not as it should be.
    """
    if relation.is_from_file:
        take_in_file(session, relation, version, settings)
    if "table" not in relation.options:
        return None
    here = session.rows(f"SELECT COUNT(*) AS rows FROM {physical_name(relation.name, version)}")[0]["rows"]
    return int(here), count_rows(settings.require("postgres_url"), relation.catalog_table)


def take_in_file(session: Session, relation: Relation, version: VersionId, settings: Settings) -> None:
    """Brings a table in step with its file, telling the rows that differ alone."""
    physical, columns = physical_name(relation.name, version), ", ".join(c.name for c in relation.columns)
    wanted = typed_rows(find_file(settings.catalog_dir, relation.name), relation.columns, relation.key)
    gone, changed = differences(relation.key, session.rows(f"SELECT {columns} FROM {physical}"), wanted)
    same = " AND ".join(f"{column} = %s" for column in relation.key)
    marks = f"({', '.join(['%s'] * len(relation.columns))})"
    for key in gone:
        session.do(f"DELETE FROM {physical} WHERE {same}", params=key)
    for at in range(0, len(changed), ROWS_AT_ONCE):
        some = changed[at : at + ROWS_AT_ONCE]
        # a row whose key is there already takes its place
        insert = f"INSERT INTO {physical} ({columns}) VALUES {', '.join([marks] * len(some))}"
        session.do(insert, params=[value for row in some for value in row])
    session.do("FLUSH")
