"""What has become of the catalog's columns since they were last looked at, and what must be built anew for it.

Pure: from columns seen before and columns seen now to a `Report`, and to the memory for the next look.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from recs_platform.pipeline import Pipeline, Relation
from recs_platform.readers import fed_by
from recs_platform.schema import CatalogColumn, Drift, What, copies, drifts

Columns = Mapping[str, Sequence[CatalogColumn]]


@dataclass(frozen=True)
class Memory:
    """`right`: table → its columns as they were when last right. `wrong`: relation → its columns that are not, and why."""

    right: Mapping[str, tuple[CatalogColumn, ...]]
    wrong: Mapping[str, Mapping[str, str]]

    @classmethod
    def load(cls, text: str | None) -> Memory:
        """What `dump` gave; empty where it cannot be read: what is there now counts as right then."""
        try:
            right, wrong = json.loads(text or "[{}, {}]")
            return cls({table: tuple(CatalogColumn(*c) for c in found) for table, found in right.items()}, wrong)
        except (ValueError, TypeError, AttributeError):
            return cls({}, {})

    def dump(self) -> str:
        right = {table: [[c.name, c.type, c.number] for c in found] for table, found in self.right.items()}
        return json.dumps([right, self.wrong])


@dataclass(frozen=True)
class Report:
    """`rebuild`: the relations whose rows a change has made, or left, wrong, and that can be put right now."""

    drifts: Sequence[Drift]
    rebuild: Sequence[str]
    memory: Memory

    def of(self, relation: str) -> list[Drift]:
        return [drift for drift in self.drifts if drift.name == relation]


def look(pipeline: Pipeline, now: Columns, memory: Memory, follow_breaking: bool = False) -> Report:
    """What differs, and what to build anew.

    A column that is as it should be, and was not or was another one when last looked at, has left wrong rows behind in
    an engine that went on: its table and all that feel it are built anew. With `follow_breaking` also at once when a column
    ceases to be as it should be.
    """
    found = drifts(pipeline, now, memory.right)
    wrong = {copy.name: _wrong(copy, found) for copy in copies(pipeline)}
    rebuild: set[str] = set()
    for copy in copies(pipeline):
        changed = set(_mended(copy, now, memory, wrong[copy.name]))
        if follow_breaking and copy.name in memory.wrong:
            changed |= wrong[copy.name].keys() - memory.wrong[copy.name].keys() - {""}
        for column in changed:
            rebuild |= {copy.name, *(r.name for r in fed_by(pipeline, copy.name, column))}
    return Report(found, [r.name for r in pipeline if r.name in rebuild], _remembered(pipeline, now, memory, wrong))


def _wrong(copy: Relation, found: Sequence[Drift]) -> dict[str, str]:
    return {d.column: str(d) for d in found if d.name == copy.name and d.what is not What.ADDED}


def _mended(copy: Relation, now: Columns, memory: Memory, wrong: Mapping[str, str]) -> Iterator[str]:
    """Its columns that are right, and were not, or were of another type or another column altogether."""
    table, were_wrong = copy.catalog_table, memory.wrong.get(copy.name)
    if were_wrong is None:
        return
    before = {column.name: column for column in memory.right.get(table, ())}
    ours = {column.name for column in copy.columns} - wrong.keys()
    for column in now.get(table, ()):
        was_other = before.get(column.name, column) != column
        if column.name in ours and (was_other or not were_wrong.keys().isdisjoint({"", column.name})):
            yield column.name


def _remembered(pipeline: Pipeline, now: Columns, memory: Memory, wrong: Mapping[str, Mapping[str, str]]) -> Memory:
    """Columns as they are, but those that are wrong as they were, so that one that is renamed is known by its number."""
    right = {}
    for table in {copy.catalog_table for copy in copies(pipeline)}:
        off = {name for c in copies(pipeline) if c.catalog_table == table for name in wrong[c.name]}
        kept = {column.name: column for column in memory.right.get(table, ()) if column.name in off}
        right[table] = tuple(({column.name: column for column in now.get(table, ())} | kept).values())
    return Memory(right, wrong)
