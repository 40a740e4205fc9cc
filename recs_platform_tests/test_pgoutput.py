"""The wire format of logical replication, byte by byte, as the PostgreSQL manual lays it out."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

import pytest

from recs_platform.engines.local.pgoutput import (
    UNCHANGED,
    Begin,
    Column,
    Commit,
    Delete,
    Insert,
    Message,
    Origin,
    Relation,
    Truncate,
    Type,
    Update,
    decode,
)

MOMENT = datetime(2000, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
MICROSECONDS = 1_500_000


def row(*values: str | None) -> bytes:
    """A row of texts; `UNCHANGED.value` marks a large value that was left alone."""
    return struct.pack("!H", len(values)) + b"".join(map(_value, values))


def _value(value: str | None) -> bytes:
    if value is None:
        return b"n"
    if value == UNCHANGED.value:
        return b"u"
    return b"t" + struct.pack("!I", len(value.encode())) + value.encode()


RELATION = struct.pack("!I", 16_400)

MESSAGES: list[tuple[bytes, Message]] = [
    (b"B" + struct.pack("!QqI", 0x1_0000_00A0, MICROSECONDS, 742), Begin(0x1_0000_00A0, MOMENT, 742)),
    (b"C" + struct.pack("!BQQq", 0, 10, 20, MICROSECONDS), Commit(10, 20, MOMENT)),
    (b"O" + struct.pack("!Q", 10) + b"elsewhere\0", Origin(10, "elsewhere")),
    (
        b"R"
        + RELATION
        + b"public\0product_catalog\0d"
        + struct.pack("!H", 2)
        + b"\1product_id\0"
        + struct.pack("!Ii", 25, -1)
        + b"\0price\0"
        + struct.pack("!Ii", 1700, 786_438),
        Relation(
            16_400,
            "public",
            "product_catalog",
            "d",
            (Column("product_id", 25, -1, True), Column("price", 1700, 786_438, False)),
        ),
    ),
    (b"Y" + struct.pack("!I", 16_500) + b"public\0mood\0", Type(16_500, "public", "mood")),
    (
        b"I" + RELATION + b"N" + row("p1", None, "Schrank für Übergrößen", ""),
        Insert(16_400, ("p1", None, "Schrank für Übergrößen", "")),
    ),
    (b"U" + RELATION + b"N" + row("p1", "unchanged"), Update(16_400, ("p1", UNCHANGED))),
    (b"U" + RELATION + b"K" + row("p1", None) + b"N" + row("p2", "x"), Update(16_400, ("p2", "x"), key=("p1", None))),
    (b"U" + RELATION + b"O" + row("p1", "x") + b"N" + row("p1", "y"), Update(16_400, ("p1", "y"), old=("p1", "x"))),
    (b"D" + RELATION + b"K" + row("p1", None), Delete(16_400, key=("p1", None))),
    (b"D" + RELATION + b"O" + row("p1", "x"), Delete(16_400, old=("p1", "x"))),
    (b"T" + struct.pack("!IBII", 2, 3, 16_400, 16_401), Truncate((16_400, 16_401), True, True)),
]


@pytest.mark.parametrize(("data", "message"), MESSAGES, ids=[type(message).__name__ for _, message in MESSAGES])
def test_a_message_is_decoded(data: bytes, message: Message) -> None:
    assert decode(data) == message


@pytest.mark.parametrize(("data", "message"), MESSAGES, ids=[type(message).__name__ for _, message in MESSAGES])
def test_a_message_cut_short_is_refused(data: bytes, message: Message) -> None:
    for end in range(1, len(data)):
        with pytest.raises(ValueError, match="cannot be decoded"):
            decode(data[:end])
    assert decode(data) == message


@pytest.mark.parametrize("data", [b"", b"X123", b"S\0\0\0\1\1"], ids=["empty", "unknown", "of a later version"])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a pgoutput message of protocol version 1"):
        decode(data)


def test_binary_values_are_refused() -> None:
    with pytest.raises(ValueError, match="kind 'b'"):
        decode(b"I" + RELATION + b"N" + struct.pack("!H", 1) + b"b" + struct.pack("!I", 1) + b"x")
