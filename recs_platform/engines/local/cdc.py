"""Reads the catalog tables of PostgreSQL: a snapshot once, then every change through a logical replication slot.

A poll peeks at the slot; the slot moves on only when the engine has committed and says so (`advance`). So a change
may be handed over twice and is never lost; handing over a row's state twice changes nothing.

All values are text as PostgreSQL's own output functions write it (a boolean is t or f, times are UTC).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import psycopg
import pyarrow as pa
from psycopg import sql

from recs_platform.engines.local.changes import CatalogTable, Changes, TableChanges, TextRow, text_table
from recs_platform.engines.local.pgoutput import decode
from recs_platform.errors import SourceError
from recs_platform.settings import masked

CONNECT_SECONDS = 5
SLOT_SECONDS = 30
LOCK_SECONDS = 10  # a migration may hold a table for longer; all else would wait with it
WHILE_SILENT: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""After half a minute a server that has gone without a word is away."""
SNAPSHOT_ROWS = 10_000
REREAD_ROWS = 1_000
# what PostgreSQL writes must not depend on how a server or a role is set up
TEXT_FORMAT = (
    "-c datestyle=ISO -c timezone=UTC -c intervalstyle=postgres -c bytea_output=hex -c extra_float_digits=1 "
    "-c client_encoding=UTF8"
)
REMEDIES = {
    "42501": "the role needs ALTER ROLE … REPLICATION, to own or read the catalog tables, and CREATE on the database; "
    "or an administrator creates the publication beforehand",
    "42704": "what is missing is created again at the next attempt, and the tables are read anew",
    "53400": "raise max_replication_slots, or drop a slot nobody uses",
    "55000": "the slot is given up and created again at the next attempt, and the tables are read anew",
    "55P03": "a transaction holds the table: see pg_locks and pg_stat_activity",
    "55006": "another engine reads this slot: stop it, or give this one its own with RECS_REPLICATION_SLOT",
    "57014": "a transaction that is open in the database must end first: see pg_stat_activity",
}
_CATALOG_REMEDY = "the catalog stands still until that is undone, or followed in sql/catalog/cdc/ and applied"
Connection: TypeAlias = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True)
class CatalogBatch:
    """Whole transactions, by relation name. Once they are committed, `end_lsn` is what to `advance` to, and the
    `after` of the next poll.
    """

    changes: Mapping[str, TableChanges]
    end_lsn: int


class CatalogFeed:
    """The change feed of some tables. After a `SourceError`, call `prepare` before the next poll: it mends what it can.

    Used by one thread. Needs PostgreSQL 14 or later.
    """

    def __init__(self, postgres_url: str, publication: str, slot: str, tables: Iterable[CatalogTable]) -> None:
        self.publication, self.slot, self.tables = publication, slot, tuple(tables)
        self._url = postgres_url
        self._connection: Connection | None = None
        self._numbers: dict[str, dict[str, int]] = {}
        self._absent: dict[str, frozenset[str]] = {}
        self._afresh = False

    def prepare(self) -> bool:
        """Checks database and tables, creates publication and slot where missing; safe to repeat.

        True when the slot is new: it knows nothing of what was before, so read the snapshots, and poll from 0 on.
        A table that was not published until now makes the slot new, too. Raises `SourceError` with the remedy.
        """
        with self._session() as connection:
            self._check_wal_level(connection)
            for table in self.tables:
                self._check_table(connection, table)
            self._afresh |= self._publish(connection)
            return self._ensure_slot(connection)

    def snapshot(self, table: CatalogTable) -> Iterator[pa.Table]:
        """The table as it is now, in at least one piece, all columns as text. Raises `SourceError`."""
        query = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(
            self._selected(table), sql.Identifier(*table.qualified)
        )
        with self._explaining(), self._connect() as connection, connection.cursor().copy(query) as copy:
            rows = copy.rows()
            piece = list(islice(rows, SNAPSHOT_ROWS))
            yield text_table(table.columns, piece)
            while piece := list(islice(rows, SNAPSHOT_ROWS)):
                yield text_table(table.columns, piece)

    def poll(self, max_changes: int, after: int) -> CatalogBatch:
        """The transactions that were committed since; at least one if there is any, however large it is.

        Transactions that end at `after` or before are left out. A large value an update left alone, which is not in
        the stream, is read from the table as it is now; if that row is gone by now, the update is left out and its
        deletion follows. A column that the stream had otherwise than the table has it by now is read from there, too.
        Raises `SourceError`, one that is needed and not there among the reasons; the next poll connects anew.
        """
        changes = Changes(self.tables, after)
        with self._session() as connection:
            end_of_log = self._check_feed(connection, after)
            for (data,) in self._peek(connection, max_changes):
                changes.take(decode(data))
            for table in self.tables:
                self._settle(connection, table, changes.lacking.get(table.name, ()))
                self._read_again(connection, table, changes)
        return CatalogBatch(changes.outcome(), max(after, changes.end_lsn or end_of_log))

    def advance(self, lsn: int) -> None:
        """Tells PostgreSQL that everything up to there is committed here, so that it may forget. Raises `SourceError`.

        The `end_lsn` of an empty batch does, too: otherwise an idle catalog would keep the log of a busy database.
        """
        with self._session() as connection:
            connection.execute(
                "SELECT pg_replication_slot_advance(slot_name, '0/0'::pg_lsn + %(lsn)s::numeric) "
                "FROM pg_replication_slots "
                "WHERE slot_name = %(slot)s AND confirmed_flush_lsn < '0/0'::pg_lsn + %(lsn)s::numeric",
                {"lsn": lsn, "slot": self.slot},
            )

    def close(self) -> None:
        """Closes the connection; anything asked later connects anew."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _check_wal_level(self, connection: Connection) -> None:
        (level,) = _one(connection, "SHOW wal_level")
        if level != "logical":
            raise SourceError(
                f"PostgreSQL at {masked(self._url)} has wal_level={level}: "
                "ALTER SYSTEM SET wal_level = 'logical' and restart it"
            )

    def _check_table(self, connection: Connection, table: CatalogTable) -> None:
        found = connection.execute(_TABLE_QUERY, table.qualified).fetchone()
        if found is None:
            raise SourceError(
                f"PostgreSQL at {masked(self._url)} has no table {table.source}, which {table.name} reads"
            )
        columns, types, numbers, key, identity, replica_identity = found
        there = dict(zip(columns, types, strict=True))
        lacking = table.lacks(there)
        if missing := [column for column in lacking if table.is_needed(column)]:
            raise SourceError(self._without(table, missing, there, dict(zip(numbers, columns, strict=True))))
        if set(key) != set(table.key):
            raise SourceError(
                f"the primary key of {table.source} is ({', '.join(key) or 'missing'}), where {table.name} says "
                f"({', '.join(table.key)}): make them agree"
            )
        if replica_identity != "f" and not set(table.key) <= set(identity):
            raise SourceError(
                f"updates and deletes of {table.source} do not tell which row: "
                f"ALTER TABLE {table.source} REPLICA IDENTITY DEFAULT"
            )
        self._numbers[table.name] = dict(zip(columns, numbers, strict=True))
        self._absent[table.name] = frozenset(lacking) - there.keys()

    def _without(
        self, table: CatalogTable, missing: list[str], there: Mapping[str, str], names: Mapping[int, str]
    ) -> str:
        """What is said of columns that are needed and not there as they should be."""
        retyped = {c: there[c] for c in missing if c in there}
        if retyped:
            words = ", ".join(f"{c} {kind}" for c, kind in retyped.items())
            return f"table {table.source} has {words}, which {table.name} has with another type; {_CATALOG_REMEDY}"
        numbers = self._numbers.get(table.name, {})
        renamed = [f"{c} is called {names[numbers[c]]} now" for c in missing if numbers.get(c) in names]
        has = "; ".join(renamed) or f"it has {', '.join(there)}"
        return f"table {table.source} has no column {', '.join(missing)}, which {table.name} reads; {has}; {_CATALOG_REMEDY}"

    def _settle(self, connection: Connection, table: CatalogTable, lacking: Collection[str]) -> None:
        """Looks at the table itself when the stream has had it otherwise than it is wanted."""
        if not lacking:
            return
        self._check_table(connection, table)
        if changed := set(lacking) & set(table.key):
            self._afresh = True
            raise SourceError(f"the key {', '.join(sorted(changed))} of {table.source} had changed: it is read anew")

    def _publish(self, connection: Connection) -> bool:
        """Whether a table had to be added to the publication, or the publication itself created."""
        publication = sql.Identifier(self.publication)
        found = connection.execute(
            "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_publication WHERE pubname = %s",
            [self.publication],
        ).fetchone()
        if found == (False,):
            raise SourceError(
                f"publication {self.publication} leaves out some changes: ALTER PUBLICATION {self.publication} "
                "SET (publish = 'insert, update, delete, truncate')"
            )
        published = self._published(connection)
        missing = sorted({table.qualified for table in self.tables} - published)
        if not missing:
            return False
        tables = sql.SQL(", ").join(sql.Identifier(*name) for name in missing)
        statement = (
            sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)")
            if found is None
            else sql.SQL("ALTER PUBLICATION {} ADD TABLE {}")
        )
        connection.execute(statement.format(publication, tables))
        return True

    def _ensure_slot(self, connection: Connection) -> bool:
        found = connection.execute(
            "SELECT plugin = 'pgoutput' AND database = current_database(), wal_status = 'lost' "
            "FROM pg_replication_slots WHERE slot_name = %s",
            [self.slot],
        ).fetchone()
        if found and not found[0]:
            raise SourceError(
                f"replication slot {self.slot} belongs to another database or plugin: choose another name "
                "with RECS_REPLICATION_SLOT"
            )
        if found and not self._afresh and not found[1]:
            return False
        if found:
            connection.execute("SELECT pg_drop_replication_slot(%s)", [self.slot])
        connection.execute(f"SET statement_timeout = '{SLOT_SECONDS}s'")
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [self.slot])
        connection.execute("RESET statement_timeout")
        self._afresh = False
        return True

    def _check_feed(self, connection: Connection, after: int) -> int:
        """Where the log ends now. Raises `SourceError` when changes would be missed without anyone noticing."""
        (end,) = _one(connection, "SELECT (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint")
        unpublished = {table.qualified for table in self.tables} - self._published(connection)
        if unpublished:
            names = ", ".join(".".join(name) for name in sorted(unpublished))
            raise SourceError(f"publication {self.publication} no longer has {names}: it is put back, and read anew")
        if end < after:
            self._afresh = True
            raise SourceError(
                f"PostgreSQL at {masked(self._url)} is not the one the catalog was read from, or was set back: "
                "the catalog is read anew"
            )
        return int(end)

    def _published(self, connection: Connection) -> set[tuple[str, str]]:
        query = "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s"
        return {(schema, name) for schema, name in connection.execute(query, [self.publication])}

    def _peek(self, connection: Connection, max_changes: int) -> Iterator[tuple[bytes]]:
        query = (
            "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, %s, "
            "'proto_version', '1', 'publication_names', %s)"
        )
        publication = '"' + self.publication.replace('"', '""') + '"'
        yield from connection.cursor().stream(query, [self.slot, max_changes, publication], binary=True)

    def _read_again(self, connection: Connection, table: CatalogTable, changes: Changes) -> None:
        state = changes.states.get(table.name)
        if state:
            state.leave_out(self._absent.get(table.name, ()))
        incomplete = iter(state.incomplete() if state else ())
        while state and (keys := list(islice(incomplete, REREAD_ROWS))):
            state.complete(keys, self._rows(connection, table, keys))

    def _rows(self, connection: Connection, table: CatalogTable, keys: list[TextRow]) -> list[TextRow]:
        """The rows of these keys, as far as they exist, all columns as text."""
        key = sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Identifier, table.key)))
        one = sql.SQL("({})").format(sql.SQL(", ").join([sql.Placeholder()] * len(table.key)))
        query = sql.SQL("SELECT {} FROM {} WHERE {} IN ({})").format(
            self._selected(table),
            sql.Identifier(*table.qualified),
            key,
            sql.SQL(", ").join([one] * len(keys)),
        )
        result = connection.execute(query, [value for values in keys for value in values]).pgresult
        assert result is not None, "a SELECT has a result"
        cells = [[result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)]
        return [tuple(None if cell is None else bytes(cell).decode() for cell in row) for row in cells]

    def _selected(self, table: CatalogTable) -> sql.Composed:
        """Its columns for a SELECT, NULL for those that are not there."""
        absent = self._absent.get(table.name, frozenset())
        columns = [sql.SQL("NULL") if c in absent else sql.Identifier(c) for c in table.columns]
        return sql.SQL(", ").join(columns)

    @contextmanager
    def _session(self) -> Iterator[Connection]:
        """The one connection, opened when needed and closed at any error."""
        try:
            with self._explaining():
                if self._connection is None or self._connection.closed:
                    self._connection = self._connect()
                yield self._connection
        except SourceError:
            self.close()
            raise

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            remedy = REMEDIES.get(error.sqlstate or "")
            text = f"PostgreSQL at {masked(self._url)}: {reason}" + (f" ({remedy})" if remedy else "")
            raise SourceError(text) from None
        except ValueError as error:
            raise SourceError(f"replication slot {self.slot}: {error}") from error

    def _connect(self) -> Connection:
        if urlsplit(self._url).scheme not in ("postgresql", "postgres"):  # and not shown: it may hold a password
            raise SourceError("RECS_POSTGRES_URL is not of the form postgresql://user:password@host:port/database")
        return psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=CONNECT_SECONDS,
            options=f"{TEXT_FORMAT} -c lock_timeout={LOCK_SECONDS}s",
            application_name="recs-platform",
            **WHILE_SILENT,
        )


def _one(connection: Connection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None, "the query gives one row"
    return row


_INDEX_COLUMNS = """
ARRAY(SELECT a.attname::text FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid
      WHERE i.indrelid = c.oid AND a.attnum = ANY (i.indkey) AND {})"""
_COLUMNS = """
ARRAY(SELECT {} FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum)"""
_TABLE_QUERY = f"""
SELECT {_COLUMNS.format("a.attname::text")},
  {_COLUMNS.format("format_type(COALESCE(NULLIF(t.typbasetype, 0), a.atttypid), NULL)")},
  {_COLUMNS.format("a.attnum::int")},
  {_INDEX_COLUMNS.format("i.indisprimary")},
  {_INDEX_COLUMNS.format("CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END")},
  c.relreplident::text
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
""".encode()
