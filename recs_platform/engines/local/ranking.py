"""The first K rows of each partition, kept without reading the rest: which queries are that, and how they are written.

Of a ranking's rows the first K are kept. Where rows of a partition change, the first K among *what is kept and still
stands* and *what came* are the right ones, unless one that is not kept should have moved up. The last row that was kept
tells: what is not kept ranked behind it. A copy of that row, a *ghost*, is ranked along; only where the ghost comes out
among the first K may others have to move up, and the partition is ranked anew from all of its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from sqlglot import exp

GHOST = "_is_ghost"


@dataclass(frozen=True)
class Top:
    """What a ranking keeps of the one relation it reads."""

    limit: int
    rank: str  # the column that holds the rank
    kept_as: dict[str, str]  # column of the relation → column of the ranking with the same value
    partition: tuple[str, ...]  # columns of the relation
    key: tuple[str, ...]  # of the relation


def top_of(query: exp.Query, key: Sequence[str]) -> Top | None:
    """How `SELECT … FROM (SELECT …, ROW_NUMBER() OVER (PARTITION BY … ORDER BY …) AS rank FROM relation) WHERE rank <= K`
    is kept; None for any other query, and where the relation's key does not settle each tie or is not kept.
    """
    levels = _levels(query)
    if levels is None:
        return None
    outer, inner = levels
    inner_columns = {s.alias_or_name: s.unalias() for s in inner.selects}
    shown = {s.alias_or_name: s.unalias().name for s in outer.selects if isinstance(s.unalias(), exp.Column)}
    windows = [name for name, node in inner_columns.items() if node.find(exp.Window)]
    others = [node for name, node in inner_columns.items() if name not in windows]
    if len(shown) < len(outer.selects) or len(windows) != 1 or not all(isinstance(o, exp.Column) for o in others):
        return None
    rank = next((name for name, column in shown.items() if column == windows[0]), None)
    limit = _limit(outer, windows[0])
    partition, order = _ranked_by(inner_columns[windows[0]])
    kept_as = {inner_columns[column].name: name for name, column in shown.items() if column != windows[0]}
    read = {column.name for column in inner.find_all(exp.Column)}
    is_settled = bool(key) and set(key) <= {*partition, *order} and bool(partition)
    if rank is None or limit is None or not is_settled or not read <= kept_as.keys():
        return None
    return Top(limit, rank, kept_as, tuple(partition), tuple(key))


def with_ghosts(query: exp.Query) -> exp.Query:
    """The same ranking over a relation with a column `_is_ghost`: a ghost comes after the row it is a copy of."""
    copy = query.copy()
    levels = _levels(copy)
    assert levels is not None, "not a ranking"
    outer, inner = levels
    alias = cast(exp.Table, inner.args["from_"].this).alias_or_name
    for window in inner.find_all(exp.Window):
        window.args["order"].append("expressions", exp.Ordered(this=exp.column(GHOST, table=alias)))
    inner.append("expressions", exp.alias_(exp.column(GHOST, table=alias), GHOST))
    outer.append("expressions", exp.alias_(exp.column(GHOST, table=outer.args["from_"].this.alias_or_name), GHOST))
    return copy


def _levels(query: exp.Query) -> tuple[exp.Select, exp.Select] | None:
    """A SELECT that only chooses from another, which only reads one table."""
    if not _only_chooses(query):
        return None
    below = query.args["from_"].this
    inner = below.this if isinstance(below, exp.Subquery) else None
    if inner is None or not _only_chooses(inner) or not isinstance(inner.args["from_"].this, exp.Table):
        return None
    return cast(exp.Select, query), cast(exp.Select, inner)


def _only_chooses(query: exp.Expr) -> bool:
    parts = {part for part, value in query.args.items() if value}
    return isinstance(query, exp.Select) and {"expressions", "from_"} <= parts <= {"expressions", "from_", "where"}


def _limit(outer: exp.Select, rank: str) -> int | None:
    """K of `WHERE rank <= K`."""
    where = outer.args.get("where")
    condition = where.this if where else None
    if not isinstance(condition, exp.LTE) or not isinstance(condition.this, exp.Column):
        return None
    bound = condition.expression
    is_bound = condition.this.name == rank and isinstance(bound, exp.Literal) and bound.is_int
    return int(bound.name) if is_bound else None


def _ranked_by(window: exp.Expr) -> tuple[list[str], list[str]]:
    """The columns of PARTITION BY and ORDER BY; none where it is another window, or by an expression."""
    order = window.args.get("order")
    if not isinstance(window, exp.Window) or not isinstance(window.this, exp.RowNumber) or order is None:
        return [], []
    partition, keys = window.args.get("partition_by") or [], [ordered.this for ordered in order.expressions]
    if not all(isinstance(node, exp.Column) for node in (*partition, *keys)):
        return [], []
    return [node.name for node in partition], [node.name for node in keys]
