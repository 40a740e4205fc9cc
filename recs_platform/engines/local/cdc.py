"""The catalog through PostgreSQL's logical replication: a snapshot once, then every change, at least once.

psycopg 3 has no replication protocol, so the slot is read with `pg_logical_slot_peek_binary_changes` and moved on
with `pg_replication_slot_advance` after the engine has committed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql

from recs_platform.engines.local.pgoutput import (
    UNCHANGED,
    Begin,
    Commit,
    Delete,
    Insert,
    Message,
    RelationInfo,
    Truncate,
    Tuple,
    Update,
    decode,
)
from recs_platform.errors import SourceError
from recs_platform.settings import masked

_SNAPSHOT_ROWS = 20_000
_TIMEOUTS = "-c statement_timeout=60000 -c lock_timeout=10000 -c idle_in_transaction_session_timeout=120000"

Row = dict[str, Any]
Key = tuple[Any, ...]


@dataclass(frozen=True)
class CatalogTable:
    """A relation of the pipeline and the PostgreSQL table it mirrors (`schema.table`)."""

    name: str
    source: str
    columns: tuple[str, ...]
    key: tuple[str, ...]


@dataclass(frozen=True)
class TableChanges:
    """What became of a table: emptied first if `truncated`, then `deletes` (key columns) go and `upserts` come.

    Both tables hold text; upserts have the last state of each key.
    """

    truncated: bool
    upserts: pa.Table
    deletes: pa.Table | None


@dataclass(frozen=True)
class CatalogBatch:
    """Changes by relation name up to `end_lsn` (0: nothing read); `columns` as PostgreSQL last announced them."""

    changes: Mapping[str, TableChanges] = field(default_factory=dict)
    end_lsn: int = 0
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass
class _Pending:
    """The last state of each key while a batch is read."""

    truncated: bool = False
    rows: dict[Key, Row | None] = field(default_factory=dict)  # None: deleted


class CatalogFeed:
    """Reads some tables of one PostgreSQL. Every method raises `SourceError` with the remedy where there is one."""

    def __init__(self, postgres_url: str, publication: str, slot: str, tables: Sequence[CatalogTable]) -> None:
        self.tables = tuple(tables)
        self._url, self._publication, self._slot = postgres_url, publication, slot
        self._by_source = {table.source: table for table in tables}
        self._relations: dict[int, RelationInfo] = {}
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def prepare(self) -> bool:
        """Publication and slot are there afterwards; returns whether the slot is new, so that snapshots are due."""
        with self._session() as connection:
            self._check_server(connection)
            for table in self.tables:
                self._check_table(connection, table)
            self._publish(connection)
            return self._ensure_slot(connection)

    def snapshot(self, table: CatalogTable) -> Iterator[pa.Table]:
        """All rows as text, in batches, as of one moment. At least one batch, empty for an empty table."""
        present = [c for c in table.columns if c in self._columns(table)]
        query = sql.SQL("SELECT {} FROM {}").format(
            sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(c)) for c in present),
            _identifier(table.source),
        )
        with self._session() as connection, connection.transaction(), connection.cursor("recs_snapshot") as cursor:
            cursor.execute(query)
            while rows := cursor.fetchmany(_SNAPSHOT_ROWS):
                yield _as_table([dict(zip(present, row, strict=True)) for row in rows], table.columns)
            yield _as_table([], table.columns)

    def poll(self, max_changes: int, after: int = 0) -> CatalogBatch:
        """Committed transactions after the LSN `after`, up to about `max_changes` changes (a transaction is never cut)."""
        with self._session() as connection:
            idle_at = self._current_lsn(connection)
            rows = connection.execute(
                "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, %s, 'proto_version', '1', 'publication_names', %s)",
                [self._slot, max_changes, self._publication],
                binary=True,
            ).fetchall()
            if not rows:
                return CatalogBatch(end_lsn=idle_at)
            pending, end_lsn = self._collected((decode(row[0]) for row in rows), after)
            changes = {name: self._changes(connection, name, found) for name, found in pending.items()}
        return CatalogBatch(
            changes,
            end_lsn,
            {
                self._by_source[r.qualified].name: r.columns
                for r in self._relations.values()
                if r.qualified in self._by_source
            },
        )

    def advance(self, lsn: int) -> None:
        """Lets PostgreSQL forget what was read; a slot of an idle table moves on too, so that WAL does not pile up."""
        with self._session() as connection:
            connection.execute(
                "SELECT pg_replication_slot_advance(slot_name, %s::text::pg_lsn) FROM pg_replication_slots "
                "WHERE slot_name = %s AND confirmed_flush_lsn < %s::text::pg_lsn",
                [_lsn_text(lsn), self._slot, _lsn_text(lsn)],
            )

    # -- connection -----------------------------------------------------------------------------------------------

    @contextmanager
    def _session(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        try:
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.connect(
                    self._url, autocommit=True, connect_timeout=5, options=_TIMEOUTS, application_name="recs engine"
                )
            yield self._connection
        except psycopg.Error as error:
            self.close()
            raise SourceError(f"PostgreSQL at {masked(self._url)}: {_first_line(error)}") from None

    def _check_server(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        level = _one(connection, "SHOW wal_level")
        if level != "logical":
            raise SourceError(
                f"PostgreSQL at {masked(self._url)} has wal_level = {level}; CDC needs `ALTER SYSTEM SET wal_level = logical` and a restart"
            )
        if not _one(connection, "SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user"):
            raise SourceError(f"the user of {masked(self._url)} may not replicate: `ALTER ROLE … REPLICATION`")

    def _check_table(self, connection: psycopg.Connection[tuple[Any, ...]], table: CatalogTable) -> None:
        if _one(connection, "SELECT to_regclass(%s)", table.source) is None:
            raise SourceError(
                f"PostgreSQL has no table {table.source}, which {table.name} is read from: create it, or load a catalog"
            )
        columns = self._columns(table)
        if missing := [c for c in table.key if c not in columns]:
            raise SourceError(f"{table.source} has no column {', '.join(missing)}, the key of {table.name}")
        identity = _one(connection, "SELECT relreplident FROM pg_class WHERE oid = %s::regclass", table.source)
        key = _one(
            connection, "SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass AND indisprimary", table.source
        )
        if identity in ("d", b"d") and not key:
            raise SourceError(
                f"{table.source} has no primary key: `ALTER TABLE {table.source} ADD PRIMARY KEY ({', '.join(table.key)})`"
            )

    def _columns(self, table: CatalogTable) -> set[str]:
        with self._session() as connection:
            rows = connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
                [table.source],
            )
            return {row[0] for row in rows}

    def _publish(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        if not _one(connection, "SELECT 1 FROM pg_publication WHERE pubname = %s", self._publication):
            connection.execute(
                sql.SQL("CREATE PUBLICATION {} FOR TABLE {}").format(
                    sql.Identifier(self._publication), sql.SQL(", ").join(_identifier(t.source) for t in self.tables)
                )
            )
            return
        published = {
            row[0]
            for row in connection.execute(
                "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = %s",
                [self._publication],
            )
        }
        for table in self.tables:
            if table.source not in published:
                connection.execute(
                    sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(
                        sql.Identifier(self._publication), _identifier(table.source)
                    )
                )

    def _ensure_slot(self, connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
        found = connection.execute(
            "SELECT plugin, wal_status FROM pg_replication_slots WHERE slot_name = %s", [self._slot]
        ).fetchone()
        if found and found[1] == "lost":
            connection.execute("SELECT pg_drop_replication_slot(%s)", [self._slot])
            found = None
        if found and found[0] != "pgoutput":
            raise SourceError(
                f"replication slot {self._slot} uses plugin {found[0]}: set RECS_REPLICATION_SLOT to another name"
            )
        if not found:
            connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [self._slot])
        return not found

    def _current_lsn(self, connection: psycopg.Connection[tuple[Any, ...]]) -> int:
        return int(_one(connection, "SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint"))

    # -- messages -------------------------------------------------------------------------------------------------

    def _collected(self, messages: Iterator[Message | None], after: int) -> tuple[dict[str, _Pending], int]:
        pending: dict[str, _Pending] = {}
        transaction: list[Message] = []
        end_lsn = 0
        for message in messages:
            if isinstance(message, Begin):
                transaction = []
            elif isinstance(message, RelationInfo):
                self._relations[message.oid] = message
            elif isinstance(message, Commit):
                end_lsn = message.end_lsn
                if end_lsn > after:
                    for change in transaction:
                        self._note(change, pending)
            elif message is not None:
                transaction.append(message)
        return pending, end_lsn

    def _note(self, change: Message, pending: dict[str, _Pending]) -> None:
        oids = change.oids if isinstance(change, Truncate) else (change.oid,)  # type: ignore[union-attr]
        for oid in oids:
            info = self._relations[oid]
            table = self._by_source.get(info.qualified)
            if table is None:
                continue
            found = pending.setdefault(table.name, _Pending())
            if isinstance(change, Truncate):
                found.truncated = True
                found.rows.clear()
            elif isinstance(change, Delete):
                found.rows[_key(info, table, change.old)] = None
            elif isinstance(change, Insert | Update):
                self._note_row(change, info, table, found)

    def _note_row(self, change: Insert | Update, info: RelationInfo, table: CatalogTable, found: _Pending) -> None:
        row: Row = dict(zip(info.columns, change.new, strict=True))
        key = _key(info, table, change.new)
        before = found.rows.get(key)
        if isinstance(change, Update) and change.old is not None:
            old_key = _key(info, table, change.old)
            if old_key != key:
                before = found.rows.get(old_key)
                found.rows[old_key] = None
            before = before or dict(zip(info.columns, change.old, strict=True))
        # what an update did not send is what it was, where this batch knows it
        found.rows[key] = {c: (before or {}).get(c, v) if v is UNCHANGED else v for c, v in row.items()}

    def _changes(self, connection: psycopg.Connection[tuple[Any, ...]], name: str, found: _Pending) -> TableChanges:
        table = next(t for t in self.tables if t.name == name)
        upserts = []
        deletes = [dict(zip(table.key, key, strict=True)) for key, row in found.rows.items() if row is None]
        for row in found.rows.values():
            if row is not None:
                upserts.append(self._completed(connection, table, row))
        present = [row for row in upserts if row is not None]
        return TableChanges(found.truncated, _as_table(present, table.columns), _as_table(deletes, table.key))

    def _completed(self, connection: psycopg.Connection[tuple[Any, ...]], table: CatalogTable, row: Row) -> Row | None:
        """A row with its unsent large values read from the table. One that is gone by now is deleted later in the slot."""
        unsent = [c for c in table.columns if row.get(c) is UNCHANGED]
        if not unsent:
            return row
        selected = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(c)) for c in unsent)
        wanted = sql.SQL(" AND ").join(
            sql.SQL("{}::text = {}").format(sql.Identifier(k), sql.Placeholder()) for k in table.key
        )
        found = connection.execute(
            sql.SQL("SELECT {} FROM {} WHERE {}").format(selected, _identifier(table.source), wanted),
            [row[k] for k in table.key],
        ).fetchone()
        return None if found is None else row | dict(zip(unsent, found, strict=True))


def _key(info: RelationInfo, table: CatalogTable, values: Tuple) -> Key:
    row = dict(zip(info.columns, values, strict=True))
    missing = [k for k in table.key if k not in row]
    if missing:
        raise SourceError(f"{table.source} has no column {', '.join(missing)} any more, the key of {table.name}")
    return tuple(row[k] for k in table.key)


def _as_table(rows: Sequence[Row], columns: Sequence[str]) -> pa.Table:
    return pa.table({c: pa.array([row.get(c) for row in rows], pa.string()) for c in columns})


def _identifier(source: str) -> sql.Composed:
    return sql.SQL(".").join(sql.Identifier(part) for part in source.split("."))


def _one(connection: psycopg.Connection[tuple[Any, ...]], query: str, *params: object) -> Any:
    row = connection.execute(query, params or None).fetchone()
    return row[0] if row else None


def _lsn_text(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def _first_line(error: Exception) -> str:
    return re.sub(
        r"password=\S+",
        "password=***",
        str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
    )
