"""What one tick changes: for each relation the rows that came and went, left where the relations after it find them.

A relation's delta is the temporary table `delta_<physical name>`: the relation's columns, `_sign` (1 came, -1 went; a
row that changed is one of each) and `_rowid` (where a row was that went).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto

from recs_platform.engines.local.connection import Connection
from recs_platform.engines.local.storage import Storage, quoted


class Rows(Enum):
    """How fresh rows are told from stale ones."""

    UNIQUE = auto()  # no two are alike: by their values
    KEYED = auto()  # by their key, and then their values: cheaper than hashing values that are lists
    ALIKE = auto()  # some may be alike: by counting them
    DISJOINT = auto()  # none is in both


@dataclass
class Tick:
    """One tick under way. `changed`: physical name → whether rows went, too, for every relation with a delta."""

    connection: Connection
    storage: Storage
    has_moved: bool = False  # NOW() is later than at the tick before
    changed: dict[str, bool] = field(default_factory=dict)

    def put(self, name: str, query: str) -> int:
        """Makes a temporary table of what a query gives; returns how many rows that is."""
        row = self.connection.execute(f"CREATE OR REPLACE TEMP TABLE {quoted(name)} AS {query}").fetchone()
        return int(row[0]) if row else 0

    def replace(
        self,
        table: str,
        columns: Sequence[str],
        fresh: str,
        stale: str,
        rows: Rows = Rows.UNIQUE,
        key: Sequence[str] = (),
    ) -> None:
        """Puts the rows of one query for those of another, which has the columns of the table and its `_rowid`."""
        own = names(columns)
        if rows is Rows.ALIKE:
            self._replace_alike(table, columns, fresh, stale)
            return
        delta = (
            f"SELECT {own}, 1 AS _sign, NULL::BIGINT AS _rowid FROM ({fresh}) AS fresh UNION ALL "
            f"SELECT {own}, -1, _rowid FROM ({stale}) AS stale"
        )
        if rows is Rows.KEYED:
            delta = from_pairs(columns, key, paired(columns, key, fresh, stale))
        if rows is Rows.UNIQUE:
            delta = (
                f"SELECT {own}, sum(_sign)::INTEGER AS _sign, max(_rowid) AS _rowid FROM ({delta}) AS signed "
                f"GROUP BY {own} HAVING sum(_sign) <> 0"
            )
        if self.put(delta_name(table), delta):
            self.write(table, columns)

    def add(self, table: str, columns: Sequence[str], fresh: str) -> None:
        """Rows that come, while none goes."""
        query = f"SELECT {names(columns)}, 1 AS _sign, NULL::BIGINT AS _rowid FROM ({fresh}) AS fresh"
        if self.put(delta_name(table), query):
            self.write(table, columns, lost=False)

    def write(self, table: str, columns: Sequence[str], lost: bool = True) -> None:
        """Carries a delta into its table."""
        delta = delta_table(table)
        if lost:
            self.connection.execute(
                f"DELETE FROM {self.storage.table(table)} WHERE rowid IN (SELECT _rowid FROM {delta} WHERE _sign = -1)"
            )
        self.connection.execute(
            f"INSERT INTO {self.storage.table(table)} SELECT {self.storage.packed(table, columns)} FROM {delta}"
            f"{' WHERE _sign = 1' if lost else ''}"
        )
        self.changed[table] = lost

    def _replace_alike(self, table: str, columns: Sequence[str], fresh: str, stale: str) -> None:
        own, kept_in = names(columns), self.storage.table(table)
        self.put("fresh", fresh)
        self.put("stale", stale)
        came = f"SELECT {own} FROM temp.fresh EXCEPT ALL SELECT {own} FROM temp.stale"
        went = f"SELECT {own} FROM temp.stale EXCEPT ALL SELECT {own} FROM temp.fresh"
        if self.put(
            delta_name(table),
            f"SELECT *, 1 AS _sign, NULL::BIGINT AS _rowid FROM ({came}) UNION ALL SELECT *, -1, NULL FROM ({went})",
        ):
            self.connection.execute(f"DELETE FROM {kept_in} WHERE rowid IN (SELECT _rowid FROM temp.stale)")
            self.connection.execute(
                f"INSERT INTO {kept_in} SELECT {self.storage.packed(table, columns)} FROM temp.fresh"
            )
            self.changed[table] = True


def set_time(connection: Connection, then: datetime, now: datetime) -> None:
    """What NOW() is, and what it was at the tick before."""
    connection.execute(
        f"SET VARIABLE now = TIMESTAMPTZ '{now.isoformat()}'; SET VARIABLE \"then\" = TIMESTAMPTZ '{then.isoformat()}'"
    )


def names(columns: Iterable[str], of: str | None = None) -> str:
    """Columns as SQL lists them, of an alias or as they are."""
    return ", ".join(f"{of}.{quoted(column)}" if of else quoted(column) for column in columns)


def delta_name(physical: str) -> str:
    return "delta_" + physical


def delta_table(physical: str) -> str:
    """Where a tick leaves what it changed in a relation."""
    return f"temp.{quoted(delta_name(physical))}"


def from_pairs(columns: Sequence[str], key: Sequence[str], pairs: str) -> str:
    """A delta of rows before and after: the columns as they are, `old <column>` but for the key, `_is_there` and `_rowid`.

    `_rowid` is NULL where there was no row before, `_is_there` false where there is none after.
    """
    values = [column for column in columns if column not in key]
    before = ", ".join(quoted(c if c in key else f"old {c}") for c in columns)
    same = " AND ".join([f"{quoted(c)} IS NOT DISTINCT FROM {quoted('old ' + c)}" for c in values] or ["true"])
    return (
        f"WITH pairs AS MATERIALIZED (SELECT * FROM ({pairs}) AS p WHERE _rowid IS NULL OR NOT _is_there OR NOT ({same})) "
        f"SELECT {names(columns)}, 1 AS _sign, NULL::BIGINT AS _rowid FROM pairs WHERE _is_there "
        f"UNION ALL SELECT {before}, -1, _rowid FROM pairs WHERE _rowid IS NOT NULL"
    )


def paired(columns: Sequence[str], key: Sequence[str], fresh: str, stale: str) -> str:
    """Rows after and before, side by side, as `from_pairs` wants them."""
    keys = ", ".join(f"COALESCE(f.{quoted(k)}, s.{quoted(k)}) AS {quoted(k)}" for k in key)
    values = "".join(f", f.{quoted(c)}, s.{quoted(c)} AS {quoted('old ' + c)}" for c in columns if c not in key)
    same = " AND ".join(f"f.{quoted(k)} IS NOT DISTINCT FROM s.{quoted(k)}" for k in key)
    return (
        f"SELECT {keys}{values}, f._is_there IS NOT NULL AS _is_there, s._rowid "
        f"FROM (SELECT *, true AS _is_there FROM ({fresh}) AS fresh) AS f FULL JOIN ({stale}) AS s ON {same}"
    )
