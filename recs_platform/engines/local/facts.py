"""Small facts that the engine keeps in its file, by name."""

from __future__ import annotations

from recs_platform.engines.local.connection import Connection

STATE = "CREATE TABLE IF NOT EXISTS recs.facts (name VARCHAR PRIMARY KEY, value VARCHAR);"


class Facts:
    """Set in whatever transaction is under way."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, name: str) -> str | None:
        row = self._connection.execute("SELECT value FROM recs.facts WHERE name = ?", [name]).fetchone()
        return row[0] if row else None

    def set(self, name: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO recs.facts VALUES (?, ?)", [name, value])

    def remove(self, name: str) -> None:
        self._connection.execute("DELETE FROM recs.facts WHERE name = ?", [name])

    def remove_all(self, prefix: str) -> None:
        self._connection.execute("DELETE FROM recs.facts WHERE starts_with(name, ?)", [prefix])
