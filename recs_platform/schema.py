"""The catalog's columns as PostgreSQL has them, against those the pipeline reads.

Streaming engines go on when a column is renamed or gets another type, and new rows are silently NULL there. What
differs is worked out here, purely, and told before it is felt: by a check in Dagster, by `recs plan`, and by the local
engine, which stands still rather than hand on what it cannot know.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from recs_platform.catalog import connected
from recs_platform.pipeline import Kind, Pipeline, Relation
from recs_platform.readers import fed_by, readers_of
from recs_platform.serving import keys

_WHOLE = ("bigint", "integer", "smallint")
_FITS: Mapping[str, Collection[str]] = {
    "BIGINT": _WHOLE,
    "INT": ("integer", "smallint"),
    "INTEGER": ("integer", "smallint"),
    "SMALLINT": ("smallint",),
    "DOUBLE PRECISION": ("double precision", "real", "numeric", *_WHOLE),
    "DOUBLE": ("double precision", "real", "numeric", *_WHOLE),
    "REAL": ("real",),
    "NUMERIC": ("numeric", *_WHOLE),
    "DECIMAL": ("numeric", *_WHOLE),
    "BOOLEAN": ("boolean",),
    "DATE": ("date",),
    "TIMESTAMP": ("timestamp without time zone",),
    "TIMESTAMPTZ": ("timestamp with time zone",),
    "JSONB": ("jsonb", "json"),
    "BYTEA": ("bytea",),
}

_COLUMNS = """
SELECT a.attname::text, format_type(COALESCE(NULLIF(t.typbasetype, 0), a.atttypid), NULL), a.attnum::int
FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""


def fits(declared: str, actual: str) -> bool:
    """Whether every value of a PostgreSQL type (`numeric`, without size) can be one of the declared type. Text holds all."""
    return actual in _FITS.get(declared.upper(), (actual,))


@dataclass(frozen=True)
class CatalogColumn:
    """A column in PostgreSQL. Its `number` stays when it is renamed; one that is dropped and added has a new one."""

    name: str
    type: str
    number: int


class What(StrEnum):
    ADDED = "added"
    GONE = "gone"
    RENAMED = "renamed"
    RETYPED = "retyped"
    TABLE_GONE = "table gone"


@dataclass(frozen=True)
class Drift:
    """One difference. `name` is the relation, `column` as the relation has it ("" for a whole table).

    `now`: the new name, the new type, or "". `readers` read the column themselves; `feeds` are all relations that
    feel it and `keys` the Redis keys, as `recs:products:*`.
    """

    name: str
    table: str
    column: str
    what: What
    now: str = ""
    readers: tuple[str, ...] = ()
    feeds: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    @property
    def breaks(self) -> bool:
        """Whether rows come out wrong where somebody reads them."""
        return self.what is What.TABLE_GONE or (self.what is not What.ADDED and bool(self.readers))

    def __str__(self) -> str:
        column = f"column {self.column} of {self.table}"
        if self.what is What.TABLE_GONE:
            return f"table {self.table} is gone, which {self.name} is a copy of; {self._felt}"
        if self.what is What.ADDED:
            return f"{column} ({self.now}) is not taken up: where it is wanted, add it to {self.name}.sql"
        words = {What.GONE: "is gone", What.RENAMED: f"is called {self.now} now", What.RETYPED: f"is {self.now} now"}
        return f"{column} {words[self.what]}; {self._felt}"

    @property
    def _felt(self) -> str:
        if not self.feeds:
            return "nothing reads it"
        read = f"read by {', '.join(self.readers)}, " if self.readers else ""
        return f"{read}felt by {', '.join((*self.feeds, *self.keys))}"


def read_columns(postgres_url: str, tables: Collection[str]) -> dict[str, tuple[CatalogColumn, ...]]:
    """Table (`public.customers`) → its columns; none for a table that is not there. Raises `SourceError`."""
    with connected(postgres_url) as connection:
        return {
            table: tuple(CatalogColumn(*row) for row in connection.execute(_COLUMNS, [table]))
            for table in sorted(tables)
        }


def copies(pipeline: Pipeline) -> list[Relation]:
    """The relations that are copies of catalog tables; `catalog_table` is which."""
    return [relation for relation in pipeline if relation.catalog_table]


def needed_columns(pipeline: Pipeline, relation: Relation) -> frozenset[str]:
    """Those that identify a row or that something reads."""
    return frozenset(relation.key) | {c.name for c in relation.columns if readers_of(pipeline, relation.name, c.name)}


def drifts(
    pipeline: Pipeline,
    now: Mapping[str, Sequence[CatalogColumn]],
    before: Mapping[str, Sequence[CatalogColumn]] | None = None,
) -> list[Drift]:
    """What differs between the pipeline's tables and PostgreSQL's, breaking ones first.

    `before`: columns as they were seen when they were right; by their numbers a rename is told from a column that was
    dropped and another that was added.
    """
    found = [drift for copy in copies(pipeline) for drift in _of(copy, pipeline, now, before or {})]
    return sorted(found, key=lambda drift: not drift.breaks)


def _of(
    relation: Relation,
    pipeline: Pipeline,
    now: Mapping[str, Sequence[CatalogColumn]],
    before: Mapping[str, Sequence[CatalogColumn]],
) -> Iterator[Drift]:
    table = relation.catalog_table
    there = {column.name: column for column in now.get(table, ())}
    if not there:
        yield _drift(relation, table, "", What.TABLE_GONE, "", pipeline)
        return
    numbers = {column.name: column.number for column in before.get(table, ())}
    names = {column.number: column.name for column in there.values()}
    renamed = set[str]()
    for column in relation.columns:
        actual = there.get(column.name)
        if actual is None:
            new = names.get(numbers.get(column.name, 0), "")
            renamed.add(new)
            yield _drift(relation, table, column.name, What.RENAMED if new else What.GONE, new, pipeline)
        elif not fits(column.type, actual.type):
            yield _drift(relation, table, column.name, What.RETYPED, actual.type, pipeline)
    known = {column.name for column in relation.columns} | renamed
    for other in there.values():
        if other.name not in known:
            yield Drift(relation.name, table, other.name, What.ADDED, other.type)


def _drift(relation: Relation, table: str, column: str, what: What, now: str, pipeline: Pipeline) -> Drift:
    columns = [column] if column else [c.name for c in relation.columns]
    felt = {r.name for c in columns for r in fed_by(pipeline, relation.name, c)}
    read = {name for c in columns for name in readers_of(pipeline, relation.name, c)}
    below = [r for r in pipeline if r.name in felt]
    return Drift(
        relation.name,
        table,
        column,
        what,
        now,
        readers=tuple(r.name for r in pipeline if r.name in read),
        feeds=tuple(r.name for r in below),
        keys=tuple(keys.pointer(r.redis_name) + ":*" for r in below if r.kind is Kind.SINK),
    )
