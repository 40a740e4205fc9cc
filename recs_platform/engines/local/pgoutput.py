"""Decodes PostgreSQL's logical replication messages: output plugin `pgoutput`, protocol version 1, values as text.

The layout is that of the PostgreSQL manual, "Logical Replication Message Formats". Nothing here does I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TypeAlias

POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


class Unchanged(Enum):
    """Stands for a large value that an update left alone, so that PostgreSQL did not send it."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED
Value: TypeAlias = str | Unchanged | None
Row: TypeAlias = tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Begin:
    """A transaction begins; `final_lsn` is where its commit record starts."""

    final_lsn: int
    committed_at: datetime
    xid: int


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction ends; `end_lsn` is the first position after its commit record."""

    commit_lsn: int
    end_lsn: int
    committed_at: datetime


@dataclass(frozen=True, slots=True)
class Origin:
    """The server the transaction was first committed on."""

    commit_lsn: int
    name: str


@dataclass(frozen=True, slots=True)
class Column:
    """`is_key`: part of the replica identity."""

    name: str
    type_oid: int
    type_modifier: int
    is_key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as it is for the messages that follow; sent before the first of them and after each change of it."""

    id: int
    schema: str
    name: str
    replica_identity: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Type:
    """A data type that is not built in."""

    id: int
    schema: str
    name: str


@dataclass(frozen=True, slots=True)
class Insert:
    """A new row, in the order of the relation's columns."""

    relation_id: int
    new: Row


@dataclass(frozen=True, slots=True)
class Update:
    """A changed row. `key` is there when the replica identity changed and holds null elsewhere; `old` is the whole
    row before, there with REPLICA IDENTITY FULL."""

    relation_id: int
    new: Row
    key: Row | None = None
    old: Row | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """A row is gone: its `key`, null elsewhere, or with REPLICA IDENTITY FULL the whole `old` row."""

    relation_id: int
    key: Row | None = None
    old: Row | None = None


@dataclass(frozen=True, slots=True)
class Truncate:
    """All rows of the relations are gone."""

    relation_ids: tuple[int, ...]
    cascade: bool
    restart_identity: bool


Message: TypeAlias = Begin | Commit | Origin | Relation | Type | Insert | Update | Delete | Truncate


def decode(data: bytes) -> Message:
    """One message. Raises `ValueError` when it is none that protocol version 1 knows, or is cut short."""
    try:
        decoder = _DECODERS[data[:1]]
    except KeyError:
        raise ValueError(f"not a pgoutput message of protocol version 1: it begins with {data[:1]!r}") from None
    try:
        return decoder(_Cursor(data, 1))
    except (struct.error, IndexError, ValueError) as error:
        raise ValueError(f"a pgoutput message {data[:1]!r} that cannot be decoded: {error}") from error


class _Cursor:
    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def number(self, layout: str) -> int:
        """One integer: b and B 8 bits, h and H 16, i and I 32, q and Q 64; small letters are signed."""
        (value,) = struct.unpack_from("!" + layout, self.data, self.at)
        self.at += struct.calcsize("!" + layout)
        return int(value)

    def character(self) -> str:
        return chr(self.number("B"))

    def text(self) -> str:
        end = self.data.index(b"\0", self.at)
        value = self.data[self.at : end].decode()
        self.at = end + 1
        return value

    def moment(self) -> datetime:
        return POSTGRES_EPOCH + timedelta(microseconds=self.number("q"))

    def row(self) -> Row:
        return tuple(self._value() for _ in range(self.number("H")))

    def _value(self) -> Value:
        match self.character():
            case "n":
                return None
            case "u":
                return UNCHANGED
            case "t":
                return self._counted().decode()
            case other:
                raise ValueError(f"a value of kind {other!r}, where text was asked for")

    def _counted(self) -> bytes:
        size = self.number("I")
        value = self.data[self.at : self.at + size]
        if len(value) < size:
            raise ValueError(f"a value of {size} bytes, of which {len(value)} are there")
        self.at += size
        return value


def _begin(c: _Cursor) -> Begin:
    return Begin(c.number("Q"), c.moment(), c.number("I"))


def _commit(c: _Cursor) -> Commit:
    c.number("B")  # flags, unused
    return Commit(c.number("Q"), c.number("Q"), c.moment())


def _origin(c: _Cursor) -> Origin:
    return Origin(c.number("Q"), c.text())


def _relation(c: _Cursor) -> Relation:
    identifier, schema, name, identity = c.number("I"), c.text(), c.text(), c.character()
    return Relation(identifier, schema, name, identity, tuple(_column(c) for _ in range(c.number("H"))))


def _column(c: _Cursor) -> Column:
    is_key = bool(c.number("B") & 1)
    return Column(c.text(), c.number("I"), c.number("i"), is_key)


def _type(c: _Cursor) -> Type:
    return Type(c.number("I"), c.text(), c.text())


def _insert(c: _Cursor) -> Insert:
    relation_id = c.number("I")
    _expect(c.character(), "N")
    return Insert(relation_id, c.row())


def _update(c: _Cursor) -> Update:
    relation_id, kind = c.number("I"), c.character()
    before = c.row() if kind in "KO" else None
    _expect(kind if before is None else c.character(), "N")
    return Update(relation_id, c.row(), before if kind == "K" else None, before if kind == "O" else None)


def _delete(c: _Cursor) -> Delete:
    relation_id, kind = c.number("I"), c.character()
    _expect(kind, "KO")
    row = c.row()
    return Delete(relation_id, key=row) if kind == "K" else Delete(relation_id, old=row)


def _truncate(c: _Cursor) -> Truncate:
    count, options = c.number("I"), c.number("B")
    return Truncate(tuple(c.number("I") for _ in range(count)), bool(options & 1), bool(options & 2))


def _expect(kind: str, wanted: str) -> None:
    if kind not in wanted:
        raise ValueError(f"a row of kind {kind!r}, where {wanted!r} was expected")


_DECODERS: Mapping[bytes, Callable[[_Cursor], Message]] = {
    b"B": _begin,
    b"C": _commit,
    b"O": _origin,
    b"R": _relation,
    b"Y": _type,
    b"I": _insert,
    b"U": _update,
    b"D": _delete,
    b"T": _truncate,
}
