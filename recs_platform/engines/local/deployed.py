"""What is deployed, as the engine's file says: one version of each relation."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from recs_platform.engines.local.connection import Connection
from recs_platform.pipeline import Relation

STATE = """
CREATE TABLE IF NOT EXISTS recs.deployed (
  name VARCHAR PRIMARY KEY, kind VARCHAR, fingerprint VARCHAR, deployed_at TIMESTAMPTZ, changed_at TIMESTAMPTZ);
"""


class Entry(NamedTuple):
    """One relation. `changed_at`: what NOW() was when its rows changed last."""

    name: str
    kind: str
    fingerprint: str
    deployed_at: datetime
    changed_at: datetime


def entries(connection: Connection) -> list[Entry]:
    """All that is deployed, by name."""
    rows = connection.execute(
        "SELECT name, kind, fingerprint, deployed_at, changed_at FROM recs.deployed ORDER BY name"
    ).fetchall()
    return [Entry(*row) for row in rows]


def fingerprints(connection: Connection) -> dict[str, str]:
    """Public name → live fingerprint."""
    return {entry.name: entry.fingerprint for entry in entries(connection)}


def note(connection: Connection, relation: Relation, now: datetime) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO recs.deployed VALUES (?, ?, ?, ?, ?)",
        Entry(relation.name, str(relation.kind), relation.fingerprint, now, now),
    )


def note_changed(connection: Connection, names: Collection[str], now: datetime) -> None:
    marks = ", ".join("?" for _ in names) or "NULL"
    connection.execute(f"UPDATE recs.deployed SET changed_at = ? WHERE name IN ({marks})", [now, *sorted(names)])


def remove(connection: Connection, name: str) -> None:
    connection.execute("DELETE FROM recs.deployed WHERE name = ?", [name])
