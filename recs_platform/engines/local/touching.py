"""Which pieces of a view a tick touches: the SQL for the keys that changed rows carry, and those that time touches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sqlglot import exp

from recs_platform.engines.local.deltas import Tick, delta_table, names
from recs_platform.engines.local.incremental import Analysis, Mode
from recs_platform.engines.local.storage import quoted
from recs_platform.engines.local.tracing import Edge, Occurrence, TimeFilter
from recs_platform.engines.transpile import micros, to_duckdb


class Touching:
    """Of one view. `physical` and `columns`: those of the relation at each occurrence."""

    def __init__(self, analysis: Analysis, physical: Mapping[int, str], columns: Mapping[int, Sequence[str]]) -> None:
        self._analysis, self._physical, self._columns_of = analysis, physical, columns
        # A row that is merely new leaves all that is there as it is, or is added to it.
        self._paths: dict[int, tuple[list[Edge], dict[str, exp.Expr]] | None] = {}
        self._keeps_what_stands = analysis.mode in (Mode.LINEAR, Mode.ADDITIVE)

    def keys(self, tick: Tick) -> str | None:
        """A query for the keys that this tick touches, "" where nothing can; None where they cannot be told."""
        changed = [o for o in self._analysis.driving if self._physical[o.index] in tick.changed]
        queries = [self._touched_by_delta(o, tick) for o in changed]
        if tick.has_moved:
            queries += self._touched_by_clock(tick)
        known = [query for query in queries if query is not None]
        return "\nUNION\n".join(known) if len(known) == len(queries) else None

    def _touched_by_delta(self, occurrence: Occurrence, tick: Tick) -> str | None:
        """The keys that changed rows of an occurrence touch; None where they cannot be told."""
        wanted = [_relaxed(f, occurrence.index) for f in self._analysis.time_filters if occurrence.index in f.subject]
        delta = self._delta_that_matters(occurrence, tick)
        if self._keeps_what_stands:
            wanted.append("_sign = -1")
        return self._keys_from(occurrence, delta, wanted, tick)

    def _delta_that_matters(self, occurrence: Occurrence, tick: Tick) -> str:
        """A delta without the rows that changed only in columns that are not read: a price moves no category."""
        delta, used = delta_table(self._physical[occurrence.index]), self._analysis.used[occurrence.index]
        columns = self._columns_of[occurrence.index]
        if self._keeps_what_stands or used.issuperset(columns) or not tick.changed[self._physical[occurrence.index]]:
            return delta
        own = names(column for column in columns if column in used)
        return f"(SELECT {own} FROM {delta} GROUP BY {own} HAVING sum(_sign) <> 0)"

    def _touched_by_clock(self, tick: Tick) -> list[str]:
        """The keys of rows that came or went because time passed."""
        queries = []
        for occurrence in self._analysis.driving:
            for between in self.clock_ranges(occurrence):
                query = self._keys_from(occurrence, quoted(self._physical[occurrence.index]), [between], tick)
                assert query is not None, "a time filter on an occurrence that does not lead to the key"
                queries.append(query)
        return queries

    def clock_ranges(self, occurrence: Occurrence) -> Iterator[str]:
        for time_filter in self._analysis.time_filters:
            if time_filter.home == occurrence.index:
                yield _crossed(time_filter, occurrence.index)

    def gone_by_clock(self, occurrence: Occurrence) -> Iterator[str]:
        """Of filters that keep what is newer: the rows that they kept at the last tick, and do not keep any more."""
        for time_filter, between in zip(self._analysis.time_filters, self.clock_ranges(occurrence), strict=True):
            subject = sql_of(time_filter.subject[occurrence.index])
            yield f"{between} AND NOT ({subject} {time_filter.op} {bound(time_filter, 'now')})"

    def _keys_from(self, start: Occurrence, table: str, wanted: list[str], tick: Tick) -> str | None:
        if start.index not in self._paths:
            self._paths[start.index] = self._analysis.path_to_key(start.index)
        path = self._paths[start.index]
        if path is None:
            return None
        edges, key = path
        selected = ", ".join(f"{sql_of(expression)} AS {quoted(name)}" for name, expression in key.items())
        wanted = wanted + [sql_of(f) for f in self._analysis.filters.get(start.index, [])]
        where = f" WHERE {' AND '.join(f'({w})' for w in wanted)}" if wanted else ""
        joins = " ".join(self._joins(start.index, edges, tick))
        return f"SELECT DISTINCT {selected} FROM {table} AS {start.alias} {joins}{where}"

    def _joins(self, start: int, edges: list[Edge], tick: Tick) -> Iterator[str]:
        reached = {start}
        for edge in edges:
            other = edge.right if edge.left in reached else edge.left
            reached.add(other)
            yield f"JOIN {self._before_and_after(other, tick)} AS b{other} ON {sql_of(edge.condition)}"

    def _before_and_after(self, index: int, tick: Tick) -> str:
        """All rows an occurrence has, and those it had until this tick."""
        physical = self._physical[index]
        if not tick.changed.get(physical):
            return quoted(physical)
        columns = names(self._columns_of[index])
        return (
            f"(SELECT {columns} FROM {quoted(physical)} UNION ALL "
            f"SELECT {columns} FROM {delta_table(physical)} WHERE _sign = -1)"
        )


_translated: dict[int, tuple[exp.Expr, str]] = {}  # the expressions of an analysis never change


def sql_of(expression: exp.Expr) -> str:
    """An expression of an analysis as DuckDB has it."""
    known = _translated.get(id(expression))
    if known is None:
        known = _translated[id(expression)] = (expression, to_duckdb(expression))
    return known[1]


def bound(time_filter: TimeFilter, variable: str) -> str:
    """Where the filter ends at the time in a variable: `now`, or `then` at the tick before."""
    return f"rw_after(getvariable('{variable}'), {time_filter.offset})"


def _relaxed(time_filter: TimeFilter, index: int) -> str:
    """The filter as it held either at the last tick or at this one."""
    edge = "then" if time_filter.keeps_newer else "now"
    return f"{sql_of(time_filter.subject[index])} {time_filter.op} {bound(time_filter, edge)}"


def _crossed(time_filter: TimeFilter, index: int) -> str:
    """The rows for which the filter may have changed between the last tick and this one."""
    subject = time_filter.subject[index]
    then, now = bound(time_filter, "then"), bound(time_filter, "now")
    text = f"{sql_of(subject)} BETWEEN {then} AND {now}"
    window = subject
    while isinstance(window, exp.Cast | exp.Paren):
        window = window.this
    if isinstance(window, exp.Anonymous) and window.name.lower() == "tumble_start":
        # the same on the column itself, so that only the blocks of those hours are read
        column, width = window.expressions
        text += f" AND {sql_of(column)} BETWEEN {then} AND rw_after({now}, {micros(width)})"
    return text
