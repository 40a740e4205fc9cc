"""Folds a stream of row changes into what came of it: the last state of every row it touched. Does no I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import pyarrow as pa
from psycopg.postgres import types as postgres_types

from recs_platform.engines.local.pgoutput import (
    UNCHANGED,
    Begin,
    Commit,
    Delete,
    Insert,
    Message,
    Relation,
    Row,
    Truncate,
    Update,
    Value,
)
from recs_platform.schema import fits

TextRow: TypeAlias = tuple[str | None, ...]


@dataclass(frozen=True)
class CatalogTable:
    """A table as the pipeline wants it: its relation name, where it comes from (`schema.table`), columns, key.

    `types` are the columns' in RisingWave's words (none: any will do); `needed` are the columns that must be there, the
    others are NULL where they are not (None: all are needed).
    """

    name: str
    source: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    types: tuple[str, ...] = ()
    needed: frozenset[str] | None = None

    def lacks(self, there: Mapping[str, str]) -> list[str]:
        """Its columns that are not there or of a type that does not fit; `there`: name → PostgreSQL's type."""
        types = dict(zip(self.columns, self.types, strict=False))
        return [c for c in self.columns if c not in there or (c in types and not fits(types[c], there[c]))]

    def is_needed(self, column: str) -> bool:
        return self.needed is None or column in self.needed

    @property
    def qualified(self) -> tuple[str, str]:
        """Schema and table, exactly as spelt in PostgreSQL's catalogs."""
        schema, _, name = self.source.rpartition(".")
        return schema or "public", name


@dataclass(frozen=True)
class TableChanges:
    """What came of a batch for one table: if `truncated`, all rows it had are gone; then rows to put and to remove.

    `upserts` has all columns of the table, `deletes` its key columns, both as text; no key is in both, or twice.
    """

    truncated: bool
    upserts: pa.Table
    deletes: pa.Table | None

    @property
    def count(self) -> int:
        """How many rows are put and removed."""
        return int(self.upserts.num_rows) + (int(self.deletes.num_rows) if self.deletes else 0)


@dataclass
class TableState:
    """What a batch has done to one table so far; a row that is gone is None."""

    table: CatalogTable
    truncated: bool = False
    rows: dict[Row, Row | None] = field(default_factory=dict)

    def put(self, new: Mapping[str, Value], before: Mapping[str, Value]) -> None:
        """A row is now `new`; it was `before`, as far as that was told."""
        known = {name: value for name, value in before.items() if value is not None}
        values = {name: known.get(name, value) if value is UNCHANGED else value for name, value in new.items()}
        key = self._key(values)
        former = self._key({**values, **known})
        row = tuple(values.get(column) for column in self.table.columns)
        pending = self.rows.get(former)
        if pending is not None:
            row = _filled(row, pending)
        if former != key:
            self.rows[former] = None
        self.rows[key] = row

    def remove(self, before: Mapping[str, Value]) -> None:
        self.rows[self._key(before)] = None

    def truncate(self) -> None:
        self.truncated = True
        self.rows.clear()

    def incomplete(self) -> list[TextRow]:
        """The keys of the rows with a value that was not sent."""
        return [cast(TextRow, key) for key, row in self.rows.items() if row is not None and UNCHANGED in row]

    def leave_out(self, columns: Collection[str]) -> None:
        """The values of columns that are not there are NULL."""
        at = [i for i, column in enumerate(self.table.columns) if column in columns]
        for key, row in self.rows.items() if at else ():
            self.rows[key] = row and tuple(None if i in at else value for i, value in enumerate(row))

    def complete(self, keys: Iterable[TextRow], stored: Iterable[TextRow]) -> None:
        """Fills these rows from the stored ones; the state of a row that is no longer stored is forgotten."""
        at = [self.table.columns.index(column) for column in self.table.key]
        found = {tuple(row[i] for i in at): row for row in stored}
        for key in keys:
            row = self.rows[key]
            if row is not None and key in found:
                self.rows[key] = _filled(row, found[key])
            else:
                del self.rows[key]

    def outcome(self) -> TableChanges:
        upserts = [cast(TextRow, row) for row in self.rows.values() if row is not None]
        deletes = [cast(TextRow, key) for key, row in self.rows.items() if row is None]
        return TableChanges(
            self.truncated, text_table(self.table.columns, upserts), text_table(self.table.key, deletes)
        )

    def _key(self, values: Mapping[str, Value]) -> Row:
        return tuple(values.get(column, UNCHANGED) for column in self.table.key)


class Changes:
    """The changes of a batch by relation name, without those of transactions that end at `after` or before.

    `end_lsn`: the end of the last transaction, 0 when there was none. `lacking`: by relation name, the columns that the
    stream does not have as the relation wants them; their values count as not sent.
    """

    def __init__(self, tables: Iterable[CatalogTable], after: int) -> None:
        self.end_lsn = 0
        self.states: dict[str, TableState] = {}
        self.lacking: dict[str, list[str]] = {}
        self._after, self._is_known = after, False
        self._tables: dict[tuple[str, str], list[CatalogTable]] = {}
        self._relations: dict[int, Relation] = {}
        for table in tables:
            self._tables.setdefault(table.qualified, []).append(table)

    def take(self, message: Message) -> None:
        match message:
            case Begin():
                self._is_known = message.final_lsn < self._after
            case Commit():
                self.end_lsn = message.end_lsn
            case Relation():
                self._announce(message)
            case Insert() | Update() | Delete() | Truncate() if not self._is_known:
                self._change(message)

    def outcome(self) -> dict[str, TableChanges]:
        return {name: state.outcome() for name, state in self.states.items()}

    def _announce(self, relation: Relation) -> None:
        self._relations[relation.id] = relation
        for table in self._tables_of(relation.id):
            self.lacking[table.name] = table.lacks({c.name: _type_name(c.type_oid) for c in relation.columns})

    def _change(self, message: Insert | Update | Delete | Truncate) -> None:
        match message:
            case Truncate():
                for relation_id in message.relation_ids:
                    for state in self._states(relation_id):
                        state.truncate()
            case Delete():
                for state in self._states(message.relation_id):
                    state.remove(self._named(message.relation_id, message.old or message.key))
            case Insert():
                for state in self._states(message.relation_id):
                    state.put(self._sent(state, message.relation_id, message.new), {})
            case Update():
                before = self._named(message.relation_id, message.old or message.key)
                for state in self._states(message.relation_id):
                    state.put(self._sent(state, message.relation_id, message.new), before)

    def _states(self, relation_id: int) -> Iterator[TableState]:
        for table in self._tables_of(relation_id):
            yield self.states.setdefault(table.name, TableState(table))

    def _tables_of(self, relation_id: int) -> Collection[CatalogTable]:
        relation = self._relations[relation_id]
        return self._tables.get((relation.schema, relation.name), ())

    def _sent(self, state: TableState, relation_id: int, row: Row) -> dict[str, Value]:
        return self._named(relation_id, row) | dict.fromkeys(self.lacking[state.table.name], UNCHANGED)

    def _named(self, relation_id: int, row: Row | None) -> dict[str, Value]:
        names = [column.name for column in self._relations[relation_id].columns]
        return dict(zip(names, row, strict=True)) if row is not None else {}


def _type_name(oid: int) -> str:
    """PostgreSQL's name of a built-in type, "" for any other."""
    found = postgres_types.get(oid)
    return str(found.regtype) if found else ""


def text_table(columns: Sequence[str], rows: Sequence[TextRow]) -> pa.Table:
    """Rows as an Arrow table of text."""
    return pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(columns)})


def _filled(row: Row, other: Row) -> Row:
    return tuple(there if value is UNCHANGED else value for value, there in zip(row, other, strict=True))
