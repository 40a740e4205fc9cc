"""Keeps one relation's rows right, tick by tick: the SQL that an `Analysis` amounts to, and its execution.

A relation's rows live in the table `<physical name>`; what a tick changed in it is left in the temporary
table `delta_<physical name>`: its columns, and `_sign` (1 new, -1 gone). A changed row is one of each.
Within a tick `getvariable('now')` is the tick's time and `getvariable('then')` the time of the tick before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import duckdb
from sqlglot import exp

from recs_platform.engines.local.incremental import Analysis, Edge, Mode, Occurrence, TimeFilter, analyse
from recs_platform.engines.transpile import micros, to_duckdb
from recs_platform.errors import UnsupportedSql
from recs_platform.pipeline import Pipeline, Relation

_OCCURRENCE = re.compile(r'"occurrence_(\d+)"')


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def delta_table(physical: str) -> str:
    """Where a tick leaves what it changed in a relation."""
    return f"temp.{quoted('delta_' + physical)}"


class Refresher:
    """One deployed relation with a query: creates its table, and refreshes it."""

    def __init__(self, relation: Relation, pipeline: Pipeline) -> None:
        """Raises `UnsupportedSql` where the local engine could not keep the relation right."""
        self.relation = relation
        self.analysis = analyse(relation, pipeline)
        self.table = relation.physical_name
        self.columns = [column.name for column in relation.columns]
        self._physical = {o.index: pipeline[o.relation].physical_name for o in self.analysis.occurrences}
        self._template = _template(self.analysis)
        expiry = list(self._expiring_columns()) if self.analysis.mode is Mode.APPEND else []
        self._expired = (
            " OR ".join(f"NOT ({quoted(column)} {f.op} {_bound(f, 'now')})" for column, f in expiry) or "false"
        )

    @property
    def mode(self) -> Mode:
        return self.analysis.mode

    def full_sql(self) -> str:
        """The whole query over the upstreams' tables: what the rows must equal after every tick."""
        return self._query({i: quoted(name) for i, name in self._physical.items()})

    def create(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Computes the relation anew from what it reads."""
        connection.execute(f"CREATE OR REPLACE TABLE {quoted(self.table)} AS {self.full_sql()}")

    def refresh(self, connection: duckdb.DuckDBPyConnection, changed: set[str]) -> bool:
        """Brings the table up to date; `changed` are physical names of relations with a delta in this tick.

        Returns whether any row changed, in which case the delta table is there.
        """
        if self.mode is Mode.APPEND:
            return self._append(connection, changed)
        if self.mode is Mode.FULL:
            return self._recompute(connection, changed)
        touching = [o for o in self.analysis.driving if self._physical[o.index] in changed]
        queries = [self._touched_by_delta(o, changed) for o in touching]
        if any(query is None for query in queries):
            return self._recompute(connection, changed)
        queries += self._touched_by_clock(changed)
        if not queries:
            return False
        return self._refresh_touched(connection, [q for q in queries if q is not None], changed)

    # -- the modes ------------------------------------------------------------------------------------------------

    def _append(self, connection: duckdb.DuckDBPyConnection, changed: set[str]) -> bool:
        if not changed & set(self._physical.values()) and not self._has_expired(connection):
            return False
        sources = {o.index: self._new_rows(o, changed) for o in self.analysis.driving}
        _temp(connection, "fresh", self._query(sources))
        _temp(connection, "stale", f"SELECT rowid AS _rowid, * FROM {quoted(self.table)} WHERE {self._expired}")
        return self._apply(connection, compare=False)

    def _has_expired(self, connection: duckdb.DuckDBPyConnection) -> bool:
        return bool(connection.execute(f"SELECT 1 FROM {quoted(self.table)} WHERE {self._expired} LIMIT 1").fetchall())

    def _recompute(self, connection: duckdb.DuckDBPyConnection, changed: set[str]) -> bool:
        reads = {self._physical[o.index] for o in self.analysis.driving}
        if not (reads & changed) and not self.analysis.clock_bound and not self.analysis.time_filters:
            return False
        _temp(connection, "fresh", self.full_sql())
        _temp(connection, "stale", f"SELECT rowid AS _rowid, * FROM {quoted(self.table)}")
        return self._apply(connection)

    def _refresh_touched(self, connection: duckdb.DuckDBPyConnection, queries: list[str], changed: set[str]) -> bool:
        _temp(connection, "touched", "\nUNION\n".join(queries))
        linear = self.mode is Mode.LINEAR
        count, nulls = self._describe_touched(connection)
        if not linear and not count:
            return False
        sources = self._changed_rows(changed) if linear else self._touched_rows(nulls)
        fresh = self._query(sources)
        if not linear and not all(self._has_whole_key(o) for o in self.analysis.driving):
            # an occurrence without the key was read whole, so that other keys may come out too
            same = _same(self.analysis.key, "fresh", "touched", nulls)
            fresh = f"SELECT fresh.* FROM ({fresh}) AS fresh SEMI JOIN temp.touched ON {same}"
        _temp(connection, "fresh", fresh)
        _temp(
            connection,
            "stale",
            (
                f"SELECT r.rowid AS _rowid, r.* FROM {quoted(self.table)} AS r "
                f"SEMI JOIN temp.touched ON {_same(self.analysis.key, 'r', 'touched', nulls)}"
            ),
        )
        return self._apply(connection)

    def _describe_touched(self, connection: duckdb.DuckDBPyConnection) -> tuple[int, frozenset[str]]:
        """How many keys are touched, and the key columns that are NULL in one: only those need a NULL-safe join."""
        has_null = ", ".join(f"bool_or({quoted(k)} IS NULL)" for k in self.analysis.key)
        row = connection.execute(f"SELECT count(*), {has_null} FROM temp.touched").fetchone() or (0,)
        return int(row[0]), frozenset(k for k, null in zip(self.analysis.key, row[1:], strict=True) if null)

    def _has_whole_key(self, occurrence: Occurrence) -> bool:
        return all(occurrence.index in self.analysis.traced_key[k] for k in self.analysis.key)

    def _apply(self, connection: duckdb.DuckDBPyConnection, compare: bool = True) -> bool:
        return apply_changes(connection, self.table, self.columns, unique=bool(self.relation.key), compare=compare)

    # -- the SQL --------------------------------------------------------------------------------------------------

    def _query(self, sources: dict[int, str]) -> str:
        return _OCCURRENCE.sub(
            lambda match: sources.get(int(match[1])) or quoted(self._physical[int(match[1])]), self._template
        )

    def _new_rows(self, occurrence: Occurrence, changed: set[str]) -> str:
        physical = self._physical[occurrence.index]
        if physical not in changed:
            return f"(SELECT * FROM {quoted(physical)} WHERE false)"
        return f"(SELECT * EXCLUDE (_sign) FROM {delta_table(physical)} WHERE _sign = 1)"

    def _changed_rows(self, changed: set[str]) -> dict[int, str]:
        """Of a linear query: new rows, and rows that came or went by the clock."""
        (occurrence,) = self.analysis.driving
        physical = quoted(self._physical[occurrence.index])
        parts = [f"SELECT * FROM {self._new_rows(occurrence, changed)}"]
        parts += [
            f"SELECT * FROM {physical} AS {occurrence.alias} WHERE {between}"
            for between in self._clock_ranges(occurrence)
        ]
        return {occurrence.index: f"({' UNION '.join(parts)})"}

    def _touched_rows(self, nulls: frozenset[str]) -> dict[int, str]:
        """Each occurrence cut down to the rows of touched keys, as far as it has key columns."""
        sources = {}
        for occurrence in self.analysis.driving:
            own = [k for k in self.analysis.key if occurrence.index in self.analysis.traced_key[k]]
            if own:
                keys = ", ".join(map(quoted, own))
                on = " AND ".join(
                    f"{_sql(self.analysis.traced_key[k][occurrence.index])} {_equals(k, nulls)} t.{quoted(k)}"
                    for k in own
                )
                sources[occurrence.index] = (
                    f"(SELECT {occurrence.alias}.* FROM {quoted(self._physical[occurrence.index])} AS {occurrence.alias} "
                    f"SEMI JOIN (SELECT DISTINCT {keys} FROM temp.touched) AS t ON {on})"
                )
        return sources

    def _touched_by_delta(self, occurrence: Occurrence, changed: set[str]) -> str | None:
        """The keys that changed rows of an occurrence touch; None where they cannot be told."""
        wanted = [_relaxed(f, occurrence.index) for f in self.analysis.time_filters if occurrence.index in f.subject]
        delta = delta_table(self._physical[occurrence.index])
        if self.mode is Mode.LINEAR:  # what is merely new has no old row to replace
            wanted.append("_sign = -1")
        return self._keys_from(occurrence, delta, wanted, changed)

    def _touched_by_clock(self, changed: set[str]) -> list[str]:
        """The keys of rows that came or went because time passed."""
        queries = []
        for occurrence in self.analysis.driving:
            for between in self._clock_ranges(occurrence):
                query = self._keys_from(occurrence, quoted(self._physical[occurrence.index]), [between], changed)
                assert query is not None, "a time filter on an occurrence that does not lead to the key"
                queries.append(query)
        return queries

    def _clock_ranges(self, occurrence: Occurrence) -> Iterator[str]:
        for time_filter in self.analysis.time_filters:
            if min(time_filter.subject) == occurrence.index:
                yield _crossed(time_filter, occurrence.index)

    def _keys_from(self, start: Occurrence, table: str, wanted: list[str], changed: set[str]) -> str | None:
        path = self.analysis.path_to_key(start.index)
        if path is None:
            return None
        edges, key = path
        selected = ", ".join(f"{_sql(expression)} AS {quoted(name)}" for name, expression in key.items())
        wanted = wanted + [_sql(f) for f in self.analysis.filters.get(start.index, [])]
        where = f" WHERE {' AND '.join(f'({w})' for w in wanted)}" if wanted else ""
        joins = " ".join(self._joins(start.index, edges, changed))
        return f"SELECT DISTINCT {selected} FROM {table} AS {start.alias} {joins}{where}"

    def _joins(self, start: int, edges: list[Edge], changed: set[str]) -> Iterator[str]:
        reached = {start}
        for edge in edges:
            other = edge.right if edge.left in reached else edge.left
            reached.add(other)
            yield f"JOIN {self._before_and_after(other, changed)} AS b{other} ON {_sql(edge.condition)}"

    def _before_and_after(self, index: int, changed: set[str]) -> str:
        """All rows an occurrence has, and those it had until this tick."""
        physical = self._physical[index]
        if physical not in changed:
            return quoted(physical)
        return (
            f"(SELECT * FROM {quoted(physical)} UNION ALL "
            f"SELECT * EXCLUDE (_sign) FROM {delta_table(physical)} WHERE _sign = -1)"
        )

    def _expiring_columns(self) -> Iterator[tuple[str, TimeFilter]]:
        """The output columns by which rows of a source's view expire: its log may be shorter than the view."""
        (query_columns, filters) = self.relation.columns, self.analysis.time_filters
        for time_filter in filters:
            subjects = {expression.sql().partition(".")[2] for expression in time_filter.subject.values()}
            column = next((c.name for c in query_columns if c.name in subjects), None)
            if column is None or not time_filter.keeps_newer:
                raise UnsupportedSql(
                    "a view of a Kafka source may filter by time with `column > NOW() - INTERVAL …` alone, "
                    f"and must select that column ({', '.join(sorted(subjects))})",
                    self.relation.path,
                )
            yield column, time_filter


def apply_changes(
    connection: duckdb.DuckDBPyConnection, table: str, columns: list[str], *, unique: bool = True, compare: bool = True
) -> bool:
    """Replaces `temp.stale` rows of a table by `temp.fresh` ones and leaves the difference in its delta table.

    `unique`: no two rows are alike, so that a row may be told by its values. `compare`: rows may be in both.
    """
    delta, own = delta_table(table), ", ".join(map(quoted, columns))
    if not compare:
        rows = f"SELECT {own}, 1 AS _sign FROM temp.fresh UNION ALL SELECT {own}, -1 FROM temp.stale"
    elif unique:
        rows = (
            f"SELECT {own}, 1 AS _sign FROM temp.fresh AS f ANTI JOIN temp.stale AS s ON {_same(columns, 'f', 's')} UNION ALL "
            f"SELECT {own}, -1 FROM temp.stale AS s ANTI JOIN temp.fresh AS f ON {_same(columns, 'f', 's')}"
        )
    else:
        rows = (
            f"SELECT *, 1 AS _sign FROM (SELECT {own} FROM temp.fresh EXCEPT ALL SELECT {own} FROM temp.stale) UNION ALL "
            f"SELECT *, -1 FROM (SELECT {own} FROM temp.stale EXCEPT ALL SELECT {own} FROM temp.fresh)"
        )
    connection.execute(f"CREATE OR REPLACE TEMP TABLE {quoted('delta_' + table)} AS {rows}")
    counts = connection.execute(
        f"SELECT count(*) FILTER (_sign = 1), count(*) FILTER (_sign = -1) FROM {delta}"
    ).fetchone()
    added, removed = counts or (0, 0)
    if unique or not compare:
        if removed:
            gone = f"SELECT _rowid FROM temp.stale AS s SEMI JOIN {delta} AS d ON d._sign = -1 AND {_same(columns, 's', 'd')}"
            connection.execute(
                f"DELETE FROM {quoted(table)} WHERE rowid IN ({gone if compare else 'SELECT _rowid FROM temp.stale'})"
            )
        if added:
            connection.execute(f"INSERT INTO {quoted(table)} SELECT {own} FROM {delta} WHERE _sign = 1")
    elif added or removed:
        connection.execute(f"DELETE FROM {quoted(table)} WHERE rowid IN (SELECT _rowid FROM temp.stale)")
        connection.execute(f"INSERT INTO {quoted(table)} SELECT {own} FROM temp.fresh")
    return bool(added or removed)


def _temp(connection: duckdb.DuckDBPyConnection, name: str, query: str) -> None:
    connection.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {query}")


def _same(columns: Iterable[str], left: str, right: str, nulls: frozenset[str] | None = None) -> str:
    return " AND ".join(f"{left}.{quoted(c)} {_equals(c, nulls)} {right}.{quoted(c)}" for c in columns)


def _equals(column: str, nulls: frozenset[str] | None) -> str:
    """DuckDB prunes what it scans by the keys of a plain equality alone."""
    return "IS NOT DISTINCT FROM" if nulls is None or column in nulls else "="


_translated: dict[int, tuple[exp.Expr, str]] = {}  # the expressions of an analysis never change


def _sql(expression: exp.Expr) -> str:
    known = _translated.get(id(expression))
    if known is None:
        known = _translated[id(expression)] = (expression, to_duckdb(expression))
    return known[1]


def _bound(time_filter: TimeFilter, variable: str) -> str:
    return f"rw_after(getvariable('{variable}'), {time_filter.offset})"


def _relaxed(time_filter: TimeFilter, index: int) -> str:
    """The filter as it held either at the last tick or at this one."""
    edge = "then" if time_filter.keeps_newer else "now"
    return f"{_sql(time_filter.subject[index])} {time_filter.op} {_bound(time_filter, edge)}"


def _crossed(time_filter: TimeFilter, index: int) -> str:
    """The rows for which the filter may have changed between the last tick and this one."""
    subject = time_filter.subject[index]
    then, now = _bound(time_filter, "then"), _bound(time_filter, "now")
    text = f"{_sql(subject)} BETWEEN {then} AND {now}"
    window = subject.find(exp.Anonymous)
    if window is not None and window.name.lower() == "tumble_start":
        # the same on the column itself, so that only the blocks of those hours are read
        column, width = window.expressions
        text += f" AND {_sql(column)} BETWEEN {then} AND rw_after({now}, {micros(width)})"
    return text


def _template(analysis: Analysis) -> str:
    """The query with `"occurrence_<n>"` for each base relation it reads."""
    query = analysis.query.copy()
    for number, table in enumerate(list(query.find_all(exp.Table))):
        table.set("this", exp.to_identifier(f"occurrence_{number}"))
    return to_duckdb(query, analysis.relation.path)
