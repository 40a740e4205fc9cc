"""Querying the engine: placeholders are bound whatever their style, results come as a DataFrame or as tuples."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from recs_platform.engines.local.client import _plain
from recs_platform.errors import QueryError
from recs_platform.serving import direct


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("SELECT $1, $2", "SELECT $1, $2"),
        ("SELECT $2, $1, $2", "SELECT $2, $1, $2"),
        ("SELECT ?, ?", "SELECT $1, $2"),
        ("SELECT %s WHERE a = %s", "SELECT $1 WHERE a = $2"),
        ("SELECT ?, '?', ?", "SELECT $1, '?', $2"),
        ("SELECT ?, 'it''s ?', \"odd ? name\", ?", "SELECT $1, 'it''s ?', \"odd ? name\", $2"),
        ("SELECT ?, E'\\'?', ?", "SELECT $1, E'\\'?', $2"),
        ("SELECT ?, $$ ? $1 $$, $tag$ ? $$ $tag$, ?", "SELECT $1, $$ ? $1 $$, $tag$ ? $$ $tag$, $2"),
        ("SELECT ? -- why?\n, ? /* or\nnot? */", "SELECT $1 -- why?\n, $2 /* or\nnot? */"),
        ("SELECT %s, 'a%s', 7 %sum, %s", "SELECT $1, 'a%s', 7 %sum, $2"),
        ("SELECT ?, DATE'2024-01-01', ?", "SELECT $1, DATE'2024-01-01', $2"),
    ],
)
def test_placeholders_of_any_style_become_numbered_ones(given: str, sent: str) -> None:
    assert direct.numbered(given, [1, 2]) == sent


def test_more_than_nine_placeholders_are_numbered_in_order() -> None:
    assert direct.numbered(", ".join("?" * 11), list(range(11))).endswith("$10, $11")


@pytest.mark.parametrize(
    ("sql", "params"),
    [
        ("SELECT ?", []),
        ("SELECT 1", [1]),
        ("SELECT ?, ?", [1]),
        ("SELECT $2", [1]),
        ("SELECT $1", [1, 2]),
        ("SELECT '?'", [1]),
    ],
)
def test_placeholders_and_parameters_are_to_match(sql: str, params: list[object]) -> None:
    with pytest.raises(QueryError, match="placeholders .* parameters are given"):
        direct.numbered(sql, params)


def test_mixed_styles_are_refused() -> None:
    with pytest.raises(QueryError, match="mixes placeholder styles"):
        direct.numbered("SELECT ?, $1", [1])


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(5), 5), (np.float64(0.5), 0.5), (np.bool_(True), True), ([np.int64(1), 2], [1, 2]), (None, None),
        (np.array([1, 2]), [1, 2]), (pd.Series(["a"]), ["a"]), (pd.Timestamp("2026-01-02T03:04:05Z"), "2026-01-02T03:04:05+00:00"),
        (np.datetime64("2026-01-02T03:04:05"), "2026-01-02T03:04:05"),
    ],
)  # fmt: skip
def test_parameters_may_come_from_a_dataframe(value: object, plain: object) -> None:
    assert _plain(value) == plain


@pytest.mark.parametrize("value", [{1}, b"x", object()])
def test_a_parameter_of_another_kind_is_refused_by_its_type(value: object) -> None:
    with pytest.raises(QueryError, match="is not supported"):
        _plain(value)


@pytest.mark.parametrize("params", ["abc", {"a": 1}, 5])
def test_parameters_are_a_sequence(params: object) -> None:
    with pytest.raises(QueryError, match="a list or tuple"):
        direct.numbered("SELECT ?", params)  # type: ignore[arg-type]


def test_raw_rows_are_tuples_of_plain_values() -> None:
    seen = datetime(2024, 3, 21, 10, tzinfo=UTC)
    table = pa.table({"id": [1, 2], "seen": pa.array([seen, None], pa.timestamp("us", "UTC")), "list": [["a"], []]})
    assert direct.rows(table) == [(1, seen, ["a"]), (2, None, [])]
    assert direct.rows(table.slice(0, 0)) == []


@pytest.mark.parametrize("user_id", ["abc", -1, True])
def test_what_is_no_shopper_id_is_named_before_anything_is_asked(user_id: int | str) -> None:
    with pytest.raises(ValueError, match="is no shopper id"):
        direct.get_recommendations_direct(user_id)
