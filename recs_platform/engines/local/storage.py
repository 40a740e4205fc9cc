"""How the rows of relations lie in the engine's file: a list of texts is packed into one value.

A tick reads the lists of a few hundred shoppers, in a scan over those of all. DuckDB passes over a packed value it does
not want, unless that is compressed; a list it takes apart first. The relation itself is then a view that unpacks.
"""

from __future__ import annotations

from collections.abc import Iterable

from recs_platform.engines.local.connection import Connection

LIST = "VARCHAR[]"


class Storage:
    """Which columns of which relation (physical names) are packed, and the SQL to read and write them."""

    def __init__(self) -> None:
        self._packed: dict[str, frozenset[str]] = {}

    def learn(self, connection: Connection, physical: str, query: str) -> None:
        """What is packed of a relation with the rows of that query."""
        columns = connection.execute(f"DESCRIBE {query}").fetchall()
        self._packed[physical] = frozenset(name for name, kind, *_ in columns if kind == LIST)

    def create(self, connection: Connection, physical: str, columns: Iterable[str], query: str) -> None:
        """Keeps the rows of a query; what was kept under that name is gone."""
        columns, lists, table = list(columns), self._packed.get(physical), self.table(physical)
        drop(connection, physical)
        if not lists:
            connection.execute(f"CREATE TABLE {table} AS {query}")
            return
        rows = f"SELECT {self.packed(physical, columns)} FROM ({query}) AS fresh"
        types = ", ".join(
            f"{quoted(name)} {kind}{' USING COMPRESSION uncompressed' if name in lists else ''}"
            for name, kind, *_ in connection.execute(f"DESCRIBE {rows}").fetchall()
        )
        connection.execute(f"CREATE TABLE {table} ({types})")
        connection.execute(f"INSERT INTO {table} {rows}")
        connection.execute(
            f"CREATE VIEW {quoted(physical)} AS SELECT {self.unpacked(physical, columns, 'kept')} FROM {table} AS kept"
        )

    def table(self, physical: str) -> str:
        """The table that holds the rows."""
        return quoted(_packed_name(physical) if self._packed.get(physical) else physical)

    def packed(self, physical: str, columns: Iterable[str]) -> str:
        """The columns of a relation as its table holds them."""
        return self._columns(physical, columns, "", "encode(to_json({})::VARCHAR)")

    def unpacked(self, physical: str, columns: Iterable[str], alias: str) -> str:
        """The columns of its table as the relation has them."""
        return self._columns(physical, columns, f"{alias}.", """from_json(decode({}), '["VARCHAR"]')""")

    def _columns(self, physical: str, columns: Iterable[str], prefix: str, form: str) -> str:
        lists = self._packed.get(physical, frozenset())
        return ", ".join(
            f"{form.format(prefix + quoted(c))} AS {quoted(c)}" if c in lists else prefix + quoted(c) for c in columns
        )


def drop(connection: Connection, physical: str) -> None:
    """Drops a relation, whatever it is kept as."""
    is_view = connection.execute("SELECT 1 FROM duckdb_views() WHERE view_name = ?", [physical]).fetchall()
    connection.execute(f"DROP {'VIEW' if is_view else 'TABLE'} IF EXISTS {quoted(physical)}")
    connection.execute(f"DROP TABLE IF EXISTS {quoted(_packed_name(physical))}")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _packed_name(physical: str) -> str:
    return f"{physical}_packed"
