"""The catalog in files: read whole when they are new, and again whenever one has changed.

Stands where `cdc.CatalogFeed` stands, and is asked the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from recs_platform.catalog_file import Stamp, find_file, read_rows, stamp
from recs_platform.columns import Column
from recs_platform.engines.local.cdc import CatalogBatch
from recs_platform.engines.local.changes import CatalogTable, TableChanges, text_table
from recs_platform.errors import SourceError


class FileFeed:
    """The tables that nothing but files feed; none is fine. Used by one thread."""

    def __init__(self, directory: Path, tables: Iterable[CatalogTable]) -> None:
        self.tables = tuple(tables)
        self._directory = directory
        self._stamps: dict[str, Stamp] = {}  # of the files as they were read

    def prepare(self) -> bool:
        """Looks whether the files are there. False: what was read before still counts. Raises `SourceError`."""
        for table in self.tables:
            find_file(self._directory, table.name)
        return False

    def snapshot(self, table: CatalogTable) -> Iterator[pa.Table]:
        """The rows of the file as it is now, all columns as text. Raises `SourceError` naming file, line and column."""
        path = find_file(self._directory, table.name)
        seen = stamp(path)
        columns = [Column(*column) for column in zip(table.columns, table.types, strict=True)]
        yield text_table(table.columns, read_rows(path, columns, table.key))
        self._stamps[table.name] = seen

    def poll(self, max_changes: int, after: int) -> CatalogBatch:
        """All rows of the files that have changed since they were last read. Raises `SourceError`; rows stay as they are then."""
        before = dict(self._stamps)
        changed = [table for table in self.tables if self._has_changed(table)]
        try:
            return CatalogBatch({table.name: self._whole(table) for table in changed}, after)
        except SourceError:
            self._stamps = before  # none of them is handed over: all are read again
            raise

    def advance(self, lsn: int) -> None:
        """Nobody needs to be told."""

    def close(self) -> None:
        """Nothing is open."""

    def _has_changed(self, table: CatalogTable) -> bool:
        return stamp(find_file(self._directory, table.name)) != self._stamps.get(table.name)

    def _whole(self, table: CatalogTable) -> TableChanges:
        return TableChanges(truncated=True, upserts=pa.concat_tables(self.snapshot(table)), deletes=None)
