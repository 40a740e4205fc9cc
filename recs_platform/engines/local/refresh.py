"""Keeps one relation's rows right, tick by tick: the SQL that an `Analysis` amounts to, and its execution.

A relation's rows live in the table `<physical name>`, or are a view of that name where they are cheap to work out.
Within a tick `getvariable('now')` is the tick's time and `getvariable('then')` the time of the tick before.

What a small tick costs is mostly what DuckDB takes to plan its statements, one to three milliseconds each: so they are few.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from sqlglot import exp

from recs_platform.engines.local.connection import Connection
from recs_platform.engines.local.deltas import Rows, Tick, delta_name, delta_table, from_pairs, names, paired
from recs_platform.engines.local.incremental import Analysis, Mode, analyse, expiring_columns
from recs_platform.engines.local.ranking import GHOST, with_ghosts
from recs_platform.engines.local.storage import Storage, quoted
from recs_platform.engines.local.touching import Touching, bound, sql_of
from recs_platform.engines.local.tracing import Occurrence
from recs_platform.engines.transpile import to_duckdb
from recs_platform.pipeline import Pipeline, Relation

_OCCURRENCE = re.compile(r'"occurrence_(\d+)"')


class Refresher:
    """One deployed relation with a query: creates its table, and refreshes it."""

    def __init__(self, relation: Relation, pipeline: Pipeline, storage: Storage) -> None:
        """Raises `UnsupportedSql` where the local engine could not keep the relation right."""
        self.relation, self._storage = relation, storage
        self.analysis = analyse(relation, pipeline)
        self.table = relation.physical_name
        self.columns = [column.name for column in relation.columns]
        self._physical = {o.index: pipeline[o.relation].physical_name for o in self.analysis.occurrences}
        self._columns_of = {o.index: [c.name for c in pipeline[o.relation].columns] for o in self.analysis.occurrences}
        self._touching = Touching(self.analysis, self._physical, self._columns_of)
        self._template = _template(self.analysis, self.analysis.query)
        self._template_then = self._template.replace("GETVARIABLE('now')", "GETVARIABLE('then')")
        top = self.analysis.top
        self._ranking = _template(self.analysis, with_ghosts(self.analysis.query)) if top else ""
        expiry = list(expiring_columns(self.analysis)) if self.mode is Mode.APPEND else []
        self._expired = " OR ".join(f"NOT ({quoted(column)} {f.op} {bound(f, 'now')})" for column, f in expiry)
        self._ways = {
            Mode.PASSING: self._derive,
            Mode.DERIVED: self._derive,
            Mode.APPEND: self._append,
            Mode.LINEAR: self._refresh_rows,
            Mode.ADDITIVE: self._add,
            Mode.TOP: self._rank,
            Mode.KEYED: self._refresh_pieces,
            Mode.DOCUMENTS: self._hand_on,
            Mode.FULL: self._recompute,
        }

    @property
    def mode(self) -> Mode:
        return self.analysis.mode

    @property
    def driving(self) -> set[str]:
        """Physical names of what it reads, lookups apart."""
        return {self._physical[o.index] for o in self.analysis.driving}

    @property
    def is_view(self) -> bool:
        """Whether no rows of it are kept."""
        return self.mode in (Mode.PASSING, Mode.DERIVED, Mode.DOCUMENTS)

    @property
    def looks_at_time(self) -> bool:
        """Whether its rows come and go as time passes."""
        return bool(self.analysis.time_filters or self.analysis.clock_bound)

    def full_sql(self) -> str:
        """The whole query over the upstreams' tables: what the rows must equal after every tick."""
        return self._query({i: quoted(name) for i, name in self._physical.items()})

    @property
    def kept_in(self) -> str | None:
        """The table that holds its rows; None where none are kept."""
        return None if self.is_view else self._storage.table(self.table)

    def open(self, connection: Connection) -> None:
        """To be called before anything else is, when what it reads is there."""
        if self._may_hold_lists and not self.is_view:
            self._storage.learn(connection, self.table, self.full_sql())

    def create(self, connection: Connection) -> None:
        """Computes the relation anew from what it reads."""
        if self.is_view:
            connection.execute(f"CREATE OR REPLACE VIEW {quoted(self.table)} AS {self.full_sql()}")
        else:
            self._storage.create(connection, self.table, self.columns, self.full_sql())

    def put_back(self, connection: Connection) -> None:
        """Adds the rows that it should have and has not: after a clock that was ahead, and took them away. All others stay."""
        own, table = names(self.columns), self._storage.table(self.table)
        missing = f"SELECT {own} FROM ({self.full_sql()}) AS wanted EXCEPT ALL SELECT {own} FROM {quoted(self.table)}"
        packed = self._storage.packed(self.table, self.columns)
        connection.execute(f"INSERT INTO {table} SELECT {packed} FROM ({missing}) AS missing")

    def refresh(self, tick: Tick) -> None:
        """Brings the table up to date with what has changed in this tick so far, and adds its own change to that."""
        reads = any(self._physical[o.index] in tick.changed for o in self.analysis.driving)
        if reads or self._is_moved(tick):
            self._ways[self.mode](tick)

    def _is_moved(self, tick: Tick) -> bool:
        """Whether time alone may have changed something here."""
        return tick.has_moved and self.looks_at_time

    def _only_gains(self, tick: Tick) -> bool:
        """Whether what is read has new rows in this tick, and that is all."""
        reads = [o for o in self.analysis.driving if self._physical[o.index] in tick.changed]
        return not self._is_moved(tick) and not any(tick.changed[self._physical[o.index]] for o in reads)

    # -- the ways -------------------------------------------------------------------------------------------------

    def _derive(self, tick: Tick) -> None:
        (read,) = self.analysis.driving
        own, lost = names(self.columns), tick.changed[self._physical[read.index]]
        signs = (1, -1) if lost else (1,)
        parts = (
            f"SELECT {own}, {sign} AS _sign, NULL::BIGINT AS _rowid "
            f"FROM ({self._query({read.index: self._rows(read, tick, sign)})}) AS derived"
            for sign in signs
        )
        if tick.put(delta_name(self.table), " UNION ALL ".join(parts)):
            tick.changed[self.table] = lost

    def _append(self, tick: Tick) -> None:
        fresh = self._query({o.index: self._rows(o, tick, 1) for o in self.analysis.driving})
        if tick.has_moved and self._has_expired(tick.connection):
            stale = f"{self._own_rows()} WHERE {self._expired}"
            tick.replace(self.table, self.columns, fresh, stale, Rows.DISJOINT)
        elif any(self._physical[o.index] in tick.changed for o in self.analysis.driving):
            tick.add(self.table, self.columns, fresh)

    def _has_expired(self, connection: Connection) -> bool:
        if not self._expired:
            return False
        return bool(connection.execute(f"SELECT 1 FROM {quoted(self.table)} WHERE {self._expired} LIMIT 1").fetchall())

    def _refresh_rows(self, tick: Tick) -> None:
        """Of a linear query: what is new, and what came or went by the clock."""
        (read,) = self.analysis.driving
        if self._only_gains(tick):
            tick.add(self.table, self.columns, self._query({read.index: self._rows(read, tick, 1)}))
        else:
            self._put_touched(tick)
            self._replace(tick, self._query(self._changed_rows(tick)), self._nulls(tick, "touched"))

    def _add(self, tick: Tick) -> None:
        """What came is added to the row that stands; pieces that lost a row, or that time touched, are computed anew."""
        if self.analysis.tally and not self._only_gains(tick):
            self._count(tick, self.analysis.tally)
            return
        lost = 0 if self._only_gains(tick) else self._put_touched(tick)
        if lost is None:
            self._recompute(tick)
            return
        (read,) = self.analysis.driving
        came = self._query({read.index: self._rows(read, tick, 1)})
        pairs = []
        if lost:
            nulls = self._nulls(tick, "touched")
            pairs.append(paired(self.columns, self.analysis.key, self._pieces(nulls), self._stale(nulls)))
            came = f"SELECT * FROM ({came}) AS f ANTI JOIN temp.touched AS t ON {_same(self.analysis.key, 'f', 't', nulls)}"
        if tick.put("fresh", came):
            pairs.append(self._added(self._nulls(tick, "fresh")))
        delta = from_pairs(self.columns, self.analysis.key, " UNION ALL BY NAME ".join(pairs)) if pairs else None
        if delta and tick.put(delta_name(self.table), delta):
            tick.write(self.table, self.columns)

    def _count(self, tick: Tick, tally: str) -> None:
        """Where all is counted, what went is taken off the row that stands; one that counts no row any more goes."""
        (read,) = self.analysis.driving
        counts, key = self.analysis.combined, names(self.analysis.key)
        signed = " UNION ALL ".join(
            f"SELECT {key}{''.join(f', {sign} * {quoted(c)} AS {quoted(c)}' for c in counts)} FROM ({query}) AS counted"
            for sign, query in self._came_and_went(read, tick)
        )
        sums = "".join(f", sum({quoted(c)})::BIGINT AS {quoted(c)}" for c in counts)
        moves = " OR ".join(f"sum({quoted(c)}) <> 0" for c in counts)
        if tick.put("fresh", f"SELECT {key}{sums} FROM ({signed}) AS signed GROUP BY {key} HAVING {moves}"):
            pairs = self._added(self._nulls(tick, "fresh"), f"COALESCE(o.{quoted(tally)}, 0) + f.{quoted(tally)} > 0")
            if tick.put(delta_name(self.table), from_pairs(self.columns, self.analysis.key, pairs)):
                tick.write(self.table, self.columns)

    def _came_and_went(self, read: Occurrence, tick: Tick) -> Iterator[tuple[int, str]]:
        """Queries over the rows that came (1) and those that had been counted and went (-1): of the delta, and by the clock.

        A row that came too late to be counted is among those the clock takes, and is put back.
        """
        yield 1, self._query({read.index: self._rows(read, tick, 1)})
        if tick.changed.get(self._physical[read.index]):
            yield -1, self._query({read.index: self._rows(read, tick, -1)}, self._template_then)
        for gone in self._touching.gone_by_clock(read) if tick.has_moved else ():
            for sign, rows in ((-1, quoted(self._physical[read.index])), (1, self._rows(read, tick, 1))):
                crossed = f"(SELECT {names(self._columns_of[read.index])} FROM {rows} AS {read.alias} WHERE {gone})"
                yield sign, self._query({read.index: crossed}, self._template_then)

    def _added(self, nulls: frozenset[str], is_there: str = "true") -> str:
        """The rows that `temp.fresh` adds to, before and after."""
        ways, key = self.analysis.combined, self.analysis.key
        values = "".join(
            f", {_combined(way, f'o.{quoted(c)}', f'f.{quoted(c)}')} AS {quoted(c)}, o.{quoted(c)} AS {quoted('old ' + c)}"
            for c, way in ways.items()
        )
        return (
            f"SELECT {names(key, 'f')}{values}, {is_there} AS _is_there, o._rowid "
            f"FROM temp.fresh AS f LEFT JOIN ({self._own_rows('o')}) AS o ON {_same(key, 'o', 'f', nulls)}"
        )

    def _rank(self, tick: Tick) -> None:
        """Of the first rows of each partition: those that still stand and those that came, ranked; see `ranking`."""
        has_changed = tick.put(delta_name(self.table), self._ranked())
        if has_changed and self._has_ghost(tick.connection):
            self._refresh_pieces(tick)
        elif has_changed:
            tick.write(self.table, self.columns)

    def _has_ghost(self, connection: Connection) -> bool:
        return bool(connection.execute(f"SELECT 1 FROM {delta_table(self.table)} WHERE {GHOST} LIMIT 1").fetchall())

    def _ranked(self) -> str:
        """The delta of the touched partitions, with a ghost for the last row of each that was full, where it moved up."""
        (read,) = self.analysis.driving
        top, came = self.analysis.top, delta_table(self._physical[read.index])
        assert top is not None
        own, kept_names = names(self.columns), top.kept_as
        kept = ", ".join(f"r.{quoted(name)} AS {quoted(column)}" for column, name in kept_names.items())
        went = f"ANTI JOIN (FROM {came} WHERE _sign = -1) AS d ON {_same_as(top.key, 'd', 'r', kept_names)}"
        candidates = (
            f"(SELECT {kept}, false AS {GHOST} FROM standing AS r {went} UNION ALL "
            f"SELECT {names(kept_names)}, false FROM {came} WHERE _sign = 1 UNION ALL "
            f"SELECT {kept}, true FROM standing AS r WHERE r.{quoted(top.rank)} = {top.limit})"
        )
        partition = _same_as(top.partition, "d", "r", kept_names)
        return (
            f"WITH standing AS MATERIALIZED ({self._own_rows()} SEMI JOIN {came} AS d ON {partition}) "
            f"SELECT {own}, {GHOST}, sum(_sign)::INTEGER AS _sign, max(_rowid) AS _rowid FROM ("
            f"SELECT {own}, {GHOST}, 1 AS _sign, NULL::BIGINT AS _rowid "
            f"FROM ({self._query({read.index: candidates}, self._ranking)}) AS ranked "
            f"UNION ALL SELECT {own}, false, -1, _rowid FROM standing) AS signed "
            f"GROUP BY {own}, {GHOST} HAVING sum(_sign) <> 0"
        )

    def _hand_on(self, tick: Tick) -> None:
        """A document for each touched key that has one, and the bare key of each that has none any more."""
        if not self._put_touched(tick):
            return
        fresh = self._pieces(self._nulls(tick, "touched"))
        delta = (
            f"WITH fresh AS MATERIALIZED ({fresh}) SELECT *, 1 AS _sign, NULL::BIGINT AS _rowid FROM fresh "
            "UNION ALL BY NAME SELECT DISTINCT t.key, -1 AS _sign FROM temp.touched AS t ANTI JOIN fresh USING (key)"
        )
        if tick.put(delta_name(self.table), delta):
            tick.changed[self.table] = True

    def _refresh_pieces(self, tick: Tick) -> None:
        touched = self._put_touched(tick)
        if touched is None:
            self._recompute(tick)
        elif touched:
            nulls = self._nulls(tick, "touched")
            self._replace(tick, self._pieces(nulls), nulls)

    def _pieces(self, nulls: frozenset[str]) -> str:
        fresh = self._query(self._touched_rows(nulls))
        if all(self._has_whole_key(o) for o in self.analysis.driving):
            return fresh
        # an occurrence without the key was read whole, so that other keys may come out too
        same = _same(self.analysis.key, "fresh", "touched", nulls)
        return f"SELECT fresh.* FROM ({fresh}) AS fresh SEMI JOIN temp.touched ON {same}"

    def _recompute(self, tick: Tick) -> None:
        tick.replace(self.table, self.columns, self.full_sql(), self._own_rows(), self._told_apart, self.relation.key)

    def _put_touched(self, tick: Tick) -> int | None:
        """Leaves the keys that this tick touches in `temp.touched` and counts them; None where they cannot be told."""
        query = self._touching.keys(tick)
        if query is None:
            return None
        return tick.put("touched", query) if query else 0

    def _nulls(self, tick: Tick, table: str) -> frozenset[str]:
        """The key columns that are NULL in a row of a temporary table: only those need a NULL-safe join."""
        has_null = ", ".join(f"bool_or({quoted(k)} IS NULL)" for k in self.analysis.key)
        row = tick.connection.execute(f"SELECT {has_null} FROM temp.{table}").fetchone() or ()
        return frozenset(k for k, null in zip(self.analysis.key, row, strict=True) if null)

    def _replace(self, tick: Tick, fresh: str, nulls: frozenset[str]) -> None:
        """Puts fresh rows for all that have a touched key."""
        tick.replace(self.table, self.columns, fresh, self._stale(nulls), self._told_apart, self.relation.key)

    def _stale(self, nulls: frozenset[str]) -> str:
        """Its rows that have a touched key."""
        return f"{self._own_rows()} SEMI JOIN temp.touched ON {_same(self.analysis.key, 'r', 'touched', nulls)}"

    @property
    def _told_apart(self) -> Rows:
        if not self.relation.key:
            return Rows.ALIKE
        return Rows.KEYED if self._may_hold_lists else Rows.UNIQUE

    @property
    def _may_hold_lists(self) -> bool:
        return any(column.type.endswith("[]") or column.type == "JSONB" for column in self.relation.columns)

    def _own_rows(self, alias: str = "r") -> str:
        columns = self._storage.unpacked(self.table, self.columns, alias)
        return f"SELECT {alias}.rowid AS _rowid, {columns} FROM {self._storage.table(self.table)} AS {alias}"

    def _has_whole_key(self, occurrence: Occurrence) -> bool:
        return all(occurrence.index in self.analysis.traced_key[k] for k in self.analysis.key)

    # -- the SQL --------------------------------------------------------------------------------------------------

    def _query(self, sources: dict[int, str], template: str | None = None) -> str:
        return _OCCURRENCE.sub(
            lambda match: sources.get(int(match[1])) or quoted(self._physical[int(match[1])]),
            template or self._template,
        )

    def _rows(self, occurrence: Occurrence, tick: Tick, sign: int) -> str:
        """The rows of a base relation that came (1) or went (-1) in this tick."""
        physical, columns = self._physical[occurrence.index], names(self._columns_of[occurrence.index])
        lost = tick.changed.get(physical)
        if lost is None:
            return f"(SELECT {columns} FROM {quoted(physical)} WHERE false)"
        return f"(SELECT {columns} FROM {delta_table(physical)}{f' WHERE _sign = {sign}' if lost else ''})"

    def _changed_rows(self, tick: Tick) -> dict[int, str]:
        """Of a linear query: new rows, and rows that came or went by the clock."""
        (occurrence,) = self.analysis.driving
        physical = quoted(self._physical[occurrence.index])
        parts = [f"SELECT * FROM {self._rows(occurrence, tick, 1)}"]
        parts += [
            f"SELECT * FROM {physical} AS {occurrence.alias} WHERE {between}"
            for between in (self._touching.clock_ranges(occurrence) if tick.has_moved else ())
        ]
        return {occurrence.index: f"({' UNION '.join(parts)})"}

    def _touched_rows(self, nulls: frozenset[str]) -> dict[int, str]:
        """Each occurrence cut down to the rows of touched keys, as far as it has key columns."""
        sources = {}
        for occurrence in self.analysis.driving:
            own = [k for k in self.analysis.key if occurrence.index in self.analysis.traced_key[k]]
            if own:
                keys = (
                    "temp.touched"
                    if len(own) == len(self.analysis.key)
                    else f"(SELECT DISTINCT {names(own)} FROM temp.touched)"
                )
                on = " AND ".join(
                    f"{sql_of(self.analysis.traced_key[k][occurrence.index])} {_equals(k, nulls)} t.{quoted(k)}"
                    for k in own
                )
                sources[occurrence.index] = (
                    f"(SELECT {self._unpacked(occurrence)} FROM {self._storage.table(self._physical[occurrence.index])} "
                    f"AS {occurrence.alias} SEMI JOIN {keys} AS t ON {on})"
                )
        return sources

    def _unpacked(self, occurrence: Occurrence) -> str:
        index = occurrence.index
        return self._storage.unpacked(self._physical[index], self._columns_of[index], occurrence.alias)


def _same(columns: Iterable[str], left: str, right: str, nulls: frozenset[str]) -> str:
    return " AND ".join(f"{left}.{quoted(c)} {_equals(c, nulls)} {right}.{quoted(c)}" for c in columns)


def _same_as(columns: Iterable[str], left: str, right: str, named: dict[str, str]) -> str:
    """Columns are the same as those of other names; NULL is the same as NULL."""
    return " AND ".join(f"{left}.{quoted(c)} IS NOT DISTINCT FROM {right}.{quoted(named[c])}" for c in columns)


def _equals(column: str, nulls: frozenset[str]) -> str:
    """DuckDB prunes what it scans by the keys of a plain equality alone."""
    return "IS NOT DISTINCT FROM" if column in nulls else "="


def _combined(way: str, old: str, new: str) -> str:
    """An aggregate over the rows of two groups; one over no rows, or none but NULLs, is NULL, and so is a sum that is too large."""
    if way == "sum":
        return f"CASE WHEN {old} IS NULL THEN {new} WHEN {new} IS NULL THEN {old} ELSE TRY({old} + {new}) END"
    return f"{way}({old}, {new})"


def _template(analysis: Analysis, query: exp.Query) -> str:
    """A query with `"occurrence_<n>"` for each base relation it reads."""
    query = query.copy()
    for number, table in enumerate(list(query.find_all(exp.Table))):
        table.set("this", exp.to_identifier(f"occurrence_{number}"))
    return to_duckdb(query, analysis.relation.path)
