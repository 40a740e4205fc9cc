"""A DuckDB connection that parses each text once: a tick runs the same hundred statements over and over."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import duckdb
import pyarrow as pa

REMEMBERED = 1_000  # texts; those that hold a time are new each time, and push each other out


class Connection:
    """What the engine uses of DuckDB's connection. For one thread; `cursor` gives another one its own."""

    def __init__(self, inner: duckdb.DuckDBPyConnection) -> None:
        self.inner = inner
        self._parsed = lru_cache(REMEMBERED)(inner.extract_statements)

    def execute(self, sql: str, parameters: Sequence[object] | None = None) -> duckdb.DuckDBPyConnection:
        """Runs one statement or several, and returns what has the result of the last."""
        statements = self._parsed(sql)
        for statement in statements[:-1]:
            self.inner.execute(statement)
        return self.inner.execute(statements[-1], parameters)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        return self.inner.cursor()

    def register(self, name: str, table: pa.Table) -> None:
        self.inner.register(name, table)

    def unregister(self, name: str) -> None:
        self.inner.unregister(name)

    def close(self) -> None:
        self._parsed.cache_clear()
        self.inner.close()
