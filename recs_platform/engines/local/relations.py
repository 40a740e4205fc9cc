"""The pipeline's relations in DuckDB's words: types, plain views, documents, and which of them are refreshed."""

from __future__ import annotations

import pyarrow as pa
from sqlglot import exp

from recs_platform.columns import DIALECT
from recs_platform.engines import transpile
from recs_platform.engines.local.refresh import Refresher
from recs_platform.engines.local.storage import Storage, quoted
from recs_platform.errors import UnsupportedSql
from recs_platform.pipeline import Pipeline, Relation

FLOATS = ("DOUBLE PRECISION", "DOUBLE", "REAL")


def document(sink: Relation) -> str:
    """SQL for the JSON document of a sink's row: every column but the key, times as RisingWave writes them, and null for
    what is no number, as JSON has none of these."""
    parts = []
    for column in sink.columns:
        if column.name == "key":
            continue
        value = f"s.{quoted(column.name)}"
        if column.type == "TIMESTAMPTZ":
            value = f"strftime({value} AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%fZ')"
        if column.type in FLOATS:
            value = f"CASE WHEN isfinite({value}) THEN {value} END"
        parts.append(f"'{column.name}', {value}")
    return f"json_object({', '.join(parts)})::VARCHAR"


def over_physical(relation: Relation, pipeline: Pipeline) -> str:
    assert relation.query is not None
    query = relation.query.copy()
    for table in list(query.find_all(exp.Table)):
        table.set("this", exp.to_identifier(pipeline[table.name].physical_name))
    return transpile.to_duckdb(query, relation.path)


def duckdb_type(name: str) -> str:
    kind = exp.DataType.build(name, dialect=DIALECT)
    return "BLOB" if name == "BYTEA" else kind.sql("duckdb")


def check_source(relation: Relation) -> None:
    if relation.connector == "kafka":
        declared = [c for c in relation.columns if c.name not in relation.statement.includes]
        if [c.type for c in declared] != ["BYTEA"] or not {"partition", "offset", "timestamp"} <= set(
            relation.statement.includes.values()
        ):
            raise UnsupportedSql(
                "the local engine reads Kafka as one BYTEA column with INCLUDE partition, offset and timestamp "
                "(FORMAT PLAIN ENCODE BYTES)",
                relation.path,
            )
    elif not relation.catalog_table and not relation.is_from_file:
        raise UnsupportedSql(
            "a source is Kafka (connector = 'kafka'), a table of a PostgreSQL source or one without options, of a file",
            relation.path,
        )
    elif not relation.key:
        raise UnsupportedSql("a table needs a PRIMARY KEY", relation.path)
    elif odd := [c.name for c in relation.columns if c.type.endswith("[]") or c.type == "BYTEA"]:
        raise UnsupportedSql(
            f"the local engine cannot copy {', '.join(odd)}: arrays and bytes come from PostgreSQL in its own spelling",
            relation.path,
        )


def with_columns(table: pa.Table | None, names: list[str]) -> pa.Table:
    """The table with exactly these columns as text; one PostgreSQL does not have is NULL."""
    if table is None:
        return pa.table({name: pa.array([], pa.string()) for name in names})
    missing = pa.nulls(table.num_rows, pa.string())
    return pa.table({name: table[name] if name in table.column_names else missing for name in names})


def refreshers_of(pipeline: Pipeline, storage: Storage) -> list[Refresher]:
    """Of all relations with rows, and of the plain views that some of them append from.

    Raises `UnsupportedSql` for a relation the local engine could not keep right.
    """
    kept = {r.name: Refresher(r, pipeline, storage) for r in pipeline if r.is_materialized_query}
    read = {o.relation for refresher in kept.values() for o in refresher.analysis.occurrences}
    return [
        kept.get(r.name) or Refresher(r, pipeline, storage)
        for r in pipeline
        if r.query is not None and r.name in kept.keys() | read
    ]
