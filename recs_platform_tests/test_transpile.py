"""Each construct the local engine takes over from RisingWave, with the answer RisingWave gives."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from recs_platform.columns import Column, describe_query
from recs_platform.engines.transpile import install, to_duckdb
from recs_platform.errors import UnsupportedSql
from recs_platform.statements import parse

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect()
    install(connection)
    connection.execute("SET VARIABLE now = TIMESTAMPTZ '2026-03-01 12:00:00+00'")
    connection.execute('CREATE TABLE t (body VARCHAR, raw BLOB, "at" TIMESTAMPTZ, n BIGINT, names VARCHAR[])')
    yield connection
    connection.close()


COLUMNS = (
    Column("body", "VARCHAR"), Column("raw", "BYTEA"), Column("at", "TIMESTAMPTZ"), Column("n", "BIGINT"),
    Column("names", "VARCHAR[]"))  # fmt: skip


def evaluate(connection: duckdb.DuckDBPyConnection, tmp_path: Path, expression: str, **row: object) -> object:
    """One expression over one row of `t`, as the local engine computes it."""
    connection.execute("DELETE FROM t")
    values = [row.get(c.name) for c in COLUMNS]
    connection.execute("INSERT INTO t VALUES (?, ?, ?, ?, ?)", values)
    path = tmp_path / "v.sql"
    path.write_text(f"CREATE VIEW v AS SELECT {expression} AS x FROM t")
    statement = parse(path, path.read_text())
    assert statement.query is not None
    query, _, _ = describe_query(statement.query, {"t": (COLUMNS, ())})
    found = connection.execute(to_duckdb(query, path)).fetchone()
    assert found is not None
    return found[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("7", 7), ("-7", -7), (" 7 ", 7), ("1e2", None), ("5.5", None), ("true", None), ("", None), (None, None),
     ("99999999999999999999", None), ("0x10", None)],
)  # fmt: skip
def test_text_to_bigint(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, text: str | None, expected: int | None
) -> None:
    assert evaluate(connection, tmp_path, "body::bigint", body=text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-01T12:00:00Z", NOON),
        ("2026-03-01 12:00:00", NOON),
        ("2026-03-01T13:00:00+01:00", NOON),
        ("2026-03-01T12:00:00.000Z", NOON),
        ("yesterday", None), ("infinity", None), ("epoch", None), ("1772366400", None), ("2026-02-30T00:00:00Z", None), ("", None),
    ],
)  # fmt: skip
def test_text_to_time(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, text: str, expected: datetime | None
) -> None:
    assert evaluate(connection, tmp_path, "body::timestamptz", body=text) == expected


@pytest.mark.parametrize(
    ("payload", "is_object"),
    [(b'{"a": 1}', True), (b"{}", True), (b"[1]", False), (b'"x"', False), (b"null", False), (b"", None), (b"not json", None),
     (b'{"a": NaN}', None), (b'{"a": 1,}', None), (b"\xff\xfe{", None), (b'{"a": 1e400}', None), (b'{"a": "\\ud800"}', None),
     (b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}", None), (b"[" * 2_000, None)],
)  # fmt: skip
def test_what_is_a_json_object(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, payload: bytes, is_object: bool | None
) -> None:
    assert evaluate(connection, tmp_path, "convert_from(raw, 'UTF8') IS JSON OBJECT", raw=payload) is is_object


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"a": "x"}', "x"),
        ('{"a": 12}', "12"),
        ('{"a": null}', None),
        ("{}", None),
        ('{"a": 1, "a": 2}', "2"),
        ('{"a": true}', "true"),
    ],
)
def test_a_field_as_text_the_last_of_repeated_ones(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, body: str, expected: str | None
) -> None:
    assert evaluate(connection, tmp_path, "body::jsonb->>'a'", body=body) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [('{"a": "x"}', "string"), ('{"a": 1}', "number"), ('{"a": 1.5}', "number"), ('{"a": {}}', "object"), ('{"a": []}', "array"),
     ('{"a": false}', "boolean"), ('{"a": null}', "null"), ("{}", None)],
)  # fmt: skip
def test_the_type_of_a_field(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, body: str, expected: str | None
) -> None:
    assert evaluate(connection, tmp_path, "jsonb_typeof((body::jsonb->'a'))", body=body) == expected


def test_arrays_in_json(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    assert evaluate(connection, tmp_path, "to_jsonb(names) - names", names=names) == []
    assert evaluate(connection, tmp_path, "jsonb_path_query_array(to_jsonb(names), '$[1 to 2]')", names=names) == [
        "b",
        "c",
    ]
    assert evaluate(connection, tmp_path, "jsonb_path_query_array(to_jsonb(names), '$[3 to 9]')", names=names) == ["d"]
    assert evaluate(connection, tmp_path, "(COALESCE(to_jsonb(names), '[]'::jsonb) || to_jsonb(names)) - names") == []


def test_now_is_the_time_of_the_tick(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    assert (
        evaluate(
            connection, tmp_path, "at > NOW() - INTERVAL '24 hours'", at=datetime(2026, 2, 28, 12, 0, 1, tzinfo=UTC)
        )
        is True
    )
    assert (
        evaluate(
            connection, tmp_path, "at > NOW() - INTERVAL '24 hours'", at=datetime(2026, 2, 28, 12, 0, 0, tzinfo=UTC)
        )
        is False
    )


@pytest.mark.parametrize(("number", "expected"), [("2.5", 2), ("3.5", 4), ("-2.5", -2), ("2.4", 2)])
def test_the_half_of_a_float_goes_to_the_even_number(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, number: str, expected: int
) -> None:
    assert evaluate(connection, tmp_path, "ROUND(body::double precision)", body=number) == expected


@pytest.mark.parametrize(
    ("expression", "expected"), [("n * 4", None), ("n + n", None), ("1 / (n - n)", None), ("n - 1", 2**62 - 1)]
)
def test_whole_numbers_that_are_too_large_are_null(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, expression: str, expected: int | None
) -> None:
    assert evaluate(connection, tmp_path, expression, n=2**62) == expected


def test_a_window_start_in_a_key(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    expression = (
        "to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD') || 'T' || to_char(at AT TIME ZONE 'UTC', 'HH24:MI:SS') || 'Z'"
    )
    assert evaluate(connection, tmp_path, expression, at=NOON) == "2026-03-01T12:00:00Z"


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("md5(body)", "MD5"),
        ("convert_from(raw, 'LATIN1')", "convert_from"),
        ("at - INTERVAL '1 month'", "month"),
        ("jsonb_path_query_array(to_jsonb(names), '$.x')", "jsonb_path_query_array"),
        ("to_jsonb(n)", "to_jsonb"),
        ("""'{"a": 1}'::jsonb""", "jsonb"),
        ("body IS JSON ARRAY", "ARRAY"),
        ("to_char(at, 'Day')", "to_char"),
        ("to_char(at, 'HH24:MI:SS.MS')", "to_char"),
        ("to_char(at, 'YYYY\"T\"HH24')", "to_char"),
        ("jsonb_build_object('at', at)", "jsonb_build_object"),
    ],
)
def test_what_has_no_exact_translation_is_refused_by_name(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, expression: str, named: str
) -> None:
    with pytest.raises(UnsupportedSql, match=named):
        evaluate(connection, tmp_path, expression, body="x", raw=b"x", at=NOON, n=1, names=[])
