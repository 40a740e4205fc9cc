"""PostgreSQL's `pgoutput` protocol, version 1: bytes of one message → a value. Pure.

Source: PostgreSQL documentation, "Logical Replication Message Formats".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from recs_platform.errors import SourceError


class Unchanged:
    """Stands for a large (TOASTed) value that an update left alone and PostgreSQL does not send."""

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED = Unchanged()
Value = str | None | Unchanged
Tuple = tuple[Value, ...]


@dataclass(frozen=True)
class Begin:
    final_lsn: int


@dataclass(frozen=True)
class Commit:
    end_lsn: int


@dataclass(frozen=True)
class RelationInfo:
    """A table's shape, sent before its first change and after every change of the shape."""

    oid: int
    schema: str
    table: str
    columns: tuple[str, ...]
    key: tuple[str, ...]

    @property
    def qualified(self) -> str:
        return f"{self.schema}.{self.table}"


@dataclass(frozen=True)
class Insert:
    oid: int
    new: Tuple


@dataclass(frozen=True)
class Update:
    """`old` is there when the key changed (or the table has REPLICA IDENTITY FULL)."""

    oid: int
    old: Tuple | None
    new: Tuple


@dataclass(frozen=True)
class Delete:
    oid: int
    old: Tuple


@dataclass(frozen=True)
class Truncate:
    oids: tuple[int, ...]


Message = Begin | Commit | RelationInfo | Insert | Update | Delete | Truncate


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, layout: str) -> tuple[int, ...]:
        values = struct.unpack_from(">" + layout, self.data, self.at)
        self.at += struct.calcsize(">" + layout)
        return values

    def byte(self) -> bytes:
        self.at += 1
        return self.data[self.at - 1 : self.at]

    def text(self) -> str:
        end = self.data.index(b"\0", self.at)
        value = self.data[self.at : end].decode()
        self.at = end + 1
        return value

    def row(self) -> Tuple:
        (count,) = self.take("h")
        return tuple(self._value() for _ in range(count))

    def _value(self) -> Value:
        kind = self.byte()
        if kind == b"n":
            return None
        if kind == b"u":
            return UNCHANGED
        (length,) = self.take("i")
        self.at += length
        return self.data[self.at - length : self.at].decode()


def decode(data: bytes) -> Message | None:
    """One message; None for those that say nothing about rows (origin, type, logical messages).

    Raises `SourceError` for a message of another protocol version.
    """
    kind = data[:1]
    if kind in b"OYM":
        return None
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise SourceError(f"pgoutput message {kind!r} is not of protocol version 1")
    return decoder(_Reader(data[1:]))


def _begin(reader: _Reader) -> Begin:
    return Begin(reader.take("qqi")[0])


def _commit(reader: _Reader) -> Commit:
    return Commit(reader.take("bqqq")[2])


def _relation(reader: _Reader) -> RelationInfo:
    (oid,) = reader.take("I")
    schema, table = reader.text(), reader.text()
    _, count = reader.take("bh")
    columns, key = [], []
    for _ in range(count):
        (flags,) = reader.take("b")
        name = reader.text()
        reader.take("Ii")
        columns.append(name)
        if flags & 1:
            key.append(name)
    return RelationInfo(oid, schema, table, tuple(columns), tuple(key))


def _insert(reader: _Reader) -> Insert:
    (oid,) = reader.take("I")
    reader.byte()
    return Insert(oid, reader.row())


def _update(reader: _Reader) -> Update:
    (oid,) = reader.take("I")
    old = None
    if reader.byte() in b"KO":
        old = reader.row()
        reader.byte()
    return Update(oid, old, reader.row())


def _delete(reader: _Reader) -> Delete:
    (oid,) = reader.take("I")
    reader.byte()
    return Delete(oid, reader.row())


def _truncate(reader: _Reader) -> Truncate:
    count, _ = reader.take("ib")
    return Truncate(reader.take(f"{count}I"))


_DECODERS: dict[bytes, Callable[[_Reader], Message]] = {
    b"B": _begin, b"C": _commit, b"R": _relation, b"I": _insert, b"U": _update, b"D": _delete, b"T": _truncate,
}  # fmt: skip
