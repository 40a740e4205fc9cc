"""Asking the stream engine itself: any SQL over any relation, fresher than a sink and slower than Redis."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, overload

from recs_platform.errors import QueryError
from recs_platform.serving.keys import checked_user_id
from recs_platform.settings import Settings

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

RECOMMENDATIONS = "SELECT recommended_products FROM user_recommendations WHERE user_id = $1"

TOKEN = re.compile(
    r"""
      (?<!\w)[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*"     # text and quoted names
    | (?<![\w$])\$(?P<tag>(?:[A-Za-z_]\w*)?)\$ .*? \$(?P=tag)\$      # dollar-quoted text
    | --[^\n]* | /\*.*?\*/                                           # comments
    | (?P<numbered>(?<![\w$])\$(?P<number>\d+)) | (?P<mark>\?) | (?P<format>%s\b)
    """,
    re.VERBOSE | re.DOTALL,
)


class OutputFormat(Enum):
    """What `fetch` gives back."""

    DATAFRAME = "dataframe"
    """A pandas DataFrame, a column for each of the query's."""
    RAW = "raw"
    """A list of tuples of plain Python values, None for NULL."""


@overload
def fetch(
    sql: str,
    params: Sequence[object] | None = None,
    *,
    format: Literal[OutputFormat.DATAFRAME] = OutputFormat.DATAFRAME,
) -> pd.DataFrame: ...
@overload
def fetch(
    sql: str, params: Sequence[object] | None = None, *, format: Literal[OutputFormat.RAW]
) -> list[tuple[Any, ...]]: ...
def fetch(
    sql: str, params: Sequence[object] | None = None, *, format: OutputFormat = OutputFormat.DATAFRAME
) -> pd.DataFrame | list[tuple[Any, ...]]:
    """Runs one query in the engine the settings name, with `params` bound to its placeholders.

    A placeholder is `$1`, `?` or `%s`, one style in a query; without `params` the query is sent as it stands.
    Raises `QueryError` when placeholders and parameters do not match or the engine refuses the query,
    `EngineUnavailable` when the engine does not answer, `SettingsError` when none is known.
    """
    table = query(sql, params)
    if OutputFormat(format) is OutputFormat.DATAFRAME:
        frame: pd.DataFrame = table.to_pandas()
        return frame
    return rows(table)


def get_recommendations_direct(user_id: int | str) -> list[str]:
    """The product ids the engine holds for a shopper right now, best first; an unknown shopper has none.

    This is the view's own row, not filled up and not looked through for products sold out since. Raises
    `ValueError` for an id that is none, and what `fetch` raises.
    """
    found = fetch(RECOMMENDATIONS, [checked_user_id(user_id)], format=OutputFormat.RAW)
    listed = found[0][0] if found else []
    return list(json.loads(listed) if isinstance(listed, str) else listed or [])


def query(sql: str, params: Sequence[object] | None = None) -> pa.Table:
    """Like `fetch`, as an Arrow table."""
    from recs_platform.engines import connect  # here: Arrow is not for those who only read Redis

    with connect(Settings.load()) as engine:
        return engine.query(sql if params is None else numbered(sql, params), params)


def rows(table: pa.Table) -> list[tuple[Any, ...]]:
    """The table's rows as tuples of plain Python values."""
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def numbered(sql: str, params: Sequence[object]) -> str:
    """The query with its placeholders as `$1`, `$2`, …; text, quoted names and comments are left alone.

    Raises `QueryError` when styles are mixed or placeholders and `params` do not match in number.
    """
    if isinstance(params, (str, bytes)) or not isinstance(params, Sequence):
        raise QueryError(f"params is to be a list or tuple of values, one a placeholder, not {type(params).__name__}")
    found = list(_placeholders(sql))
    styles = {match.lastgroup for match in found}
    if len(styles) > 1:
        raise QueryError("the query mixes placeholder styles: use one of $1, ? and %s")
    numbers = {int(match["number"]) for match in found} if styles == {"numbered"} else set(range(1, len(found) + 1))
    if numbers != set(range(1, len(params) + 1)):
        raise QueryError(
            f"the query has {len(numbers)} placeholders ($1, ? or %s), and {len(params)} parameters are given"
        )
    return sql if styles == {"numbered"} else _renumbered(sql, found)


def _placeholders(sql: str) -> Iterator[re.Match[str]]:
    return (match for match in TOKEN.finditer(sql) if match["numbered"] or match["mark"] or match["format"])


def _renumbered(sql: str, found: list[re.Match[str]]) -> str:
    parts, end = [], 0
    for number, match in enumerate(found, start=1):
        parts += [sql[end : match.start()], f"${number}"]
        end = match.end()
    return "".join([*parts, sql[end:]])
