"""`sql/` → `Pipeline`: the relation graph that everything else is derived from.

One relation a file, in RisingWave's dialect; the file's stem is the relation's name. Nothing here knows an
engine: an engine gets the file's own text (RisingWave) or a translation of the tree (`engines.transpile`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

from sqlglot import exp
from sqlglot.errors import SqlglotError

from recs_platform import statements
from recs_platform.columns import Column, describe_query
from recs_platform.errors import PipelineError
from recs_platform.physical_names import physical_name
from recs_platform.serving import keys
from recs_platform.settings import CDC, LOCAL, Settings
from recs_platform.statements import Statement

CATALOGS, ENGINES = "catalog", "engine"
"""The directories with one directory for each place the catalog may come from, and for what only one engine needs."""

VARIABLE = re.compile(r"\$\{(\w+)\}")
_KAFKA_SERVERS = re.compile(r"\bproperties\.bootstrap\.server\s*=\s*'(?:[^']|'')*'")
VARIABLES = frozenset(
    {
        "kafka_bootstrap_servers",
        "redis_url",
        "postgres_host",
        "postgres_port",
        "postgres_user",
        "postgres_password",
        "postgres_database",
        "publication",
        "replication_slot",
        "version",
    }
)


class Kind(StrEnum):
    SOURCE = "source"
    TABLE = "table"
    VIEW = "view"
    SINK = "sink"


USER = "user_id"
"""What a shopper is called by in events, columns and keys."""


@dataclass(frozen=True)
class Relation:
    """One file of `sql/`.

    `columns` are what the relation has, in order; `key` is the subset that identifies a row where one is known.
    `options` are the connector's `WITH (…)` options, with their `${variables}` as they stand in the file.
    """

    name: str
    kind: Kind
    path: Path
    statement: Statement
    upstreams: tuple[str, ...]
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    fingerprint: str
    query: exp.Query | None = field(default=None, repr=False, compare=False)

    @property
    def text(self) -> str:
        """The file as it stands."""
        return self.statement.text

    @property
    def description(self) -> str:
        """The comment the file begins with."""
        return self.statement.comment

    @property
    def options(self) -> Mapping[str, str]:
        return self.statement.options

    @property
    def connector(self) -> str | None:
        return self.options.get("connector")

    @property
    def is_materialized(self) -> bool:
        """Whether an engine keeps rows for it: false for a plain view and for a database that is merely connected to."""
        return self.statement.is_materialized

    @property
    def is_materialized_query(self) -> bool:
        """Whether an engine keeps the rows of its query: of a view or a sink."""
        return self.is_materialized and self.query is not None

    @property
    def is_connection(self) -> bool:
        """Whether it is a database that is merely connected to: nothing can be selected from it."""
        return self.kind is Kind.SOURCE and self.connector == "postgres-cdc"

    @property
    def catalog_table(self) -> str:
        """The table of PostgreSQL that it is a copy of, "" where it is none."""
        return self.options.get("table", "")

    @property
    def is_from_file(self) -> bool:
        """Whether it is a table that nothing feeds but a file."""
        return self.kind is Kind.TABLE and not self.options

    @property
    def names_shoppers(self) -> bool:
        """Whether a column says whose a row is."""
        return any(column.name == USER for column in self.columns)

    @property
    def is_keyed(self) -> bool:
        """Whether it reads a topic whose messages replace each other by their key."""
        return self.topic is not None and "key" in self.statement.includes.values()

    @property
    def physical_name(self) -> str:
        """The name it is deployed under; the public name is a plain view over it."""
        return physical_name(self.name, self.fingerprint)

    @property
    def topic(self) -> str | None:
        """The Kafka topic a source reads."""
        return self.options.get("topic") if self.connector == "kafka" else None

    @property
    def redis_name(self) -> str:
        """The `<name>` of `recs:<name>:<version>:<row key>` that a sink writes."""
        name = keys.name_in_sql(self.text, keys.VERSION_VARIABLE)
        if name is None:
            raise PipelineError(
                f"a sink's key starts with '{keys.marker('<name>', keys.VERSION_VARIABLE)}:'", self.path
            )
        return name


Files = tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class Pipeline:
    """All relations, upstreams before what reads them."""

    relations: Mapping[str, Relation]

    @classmethod
    def of(cls, settings: Settings) -> Pipeline:
        """The files that the settings name: see `load`."""
        return cls.load(settings.sql_dir, settings.catalog, settings.engine)

    @classmethod
    def load(cls, sql_dir: Path, catalog: str = CDC, engine: str = LOCAL) -> Pipeline:
        """Reads and checks every `*.sql` below `sql_dir`, but of `catalog/` only what is below `catalog/<catalog>`: there is
        one directory for each place the catalog may come from. And of `engine/`, there or below it, only what is for that
        engine alone.

        Raises `PipelineError` with file and line: SQL that does not parse, a name that is not the file's stem,
        one name in two files, a file that is no text, a missing upstream or column, a cycle, an unknown `${variable}`.
        Files that read as they did at the last time give the same pipeline again, at once.
        """
        files = tuple((path, _text(path)) for path in _paths(sql_dir, catalog, engine))
        if not files:
            raise PipelineError(f"no *.sql files below {sql_dir}")
        return _built(files)

    @classmethod
    def of_files(cls, files: Iterable[tuple[Path, str]]) -> Pipeline:
        """Of files with what was in them. Raises what `load` raises."""
        return _built(tuple(files))

    @classmethod
    def of_relations(cls, relations: Iterable[Relation]) -> Pipeline:
        """Of files that were read before, maybe at different times. Raises what `load` raises."""
        return cls.of_files((relation.path, relation.text) for relation in relations)

    @classmethod
    def of_texts(cls, texts: Mapping[str, str]) -> Pipeline:
        """Of statements by name, as far as they can be read: one that cannot is left out, with what reads it."""
        left = dict(texts)
        while left:
            try:
                return _built(tuple((Path(f"{name}.sql"), text) for name, text in sorted(left.items())))
            except PipelineError as error:
                if error.path is None:
                    break
                del left[error.path.stem]
        return cls({})

    @property
    def fingerprints(self) -> dict[str, str]:
        """Name → fingerprint of what has rows or a query: all but databases that are merely connected to."""
        return {r.name: r.fingerprint for r in self if not r.is_connection}

    @property
    def digest(self) -> str:
        """The same as long as every fingerprint is."""
        prints = sorted(self.fingerprints.items())
        return hashlib.blake2b(repr(prints).encode(), digest_size=8).hexdigest()

    def __getitem__(self, name: str) -> Relation:
        try:
            return self.relations[name]
        except KeyError:
            raise PipelineError(f"no relation {name!r}; there are {', '.join(self.relations)}") from None

    def __iter__(self) -> Iterator[Relation]:
        return iter(self.relations.values())

    def of_kind(self, kind: Kind) -> list[Relation]:
        return [relation for relation in self if relation.kind is kind]

    @property
    def topics(self) -> dict[str, Relation]:
        """Topic → the source that reads it."""
        return {relation.topic: relation for relation in self if relation.topic}

    @property
    def keyed_topics(self) -> set[str]:
        """Those whose messages replace each other by their key."""
        return {topic for topic, source in self.topics.items() if source.is_keyed}

    def with_ancestors(self, names: set[str]) -> list[Relation]:
        """The named relations and everything they need, in order of deployment."""
        wanted = set(names)
        for relation in reversed(list(self)):
            if relation.name in wanted:
                wanted.update(relation.upstreams)
        return [relation for relation in self if relation.name in wanted]


def render(text: str, variables: Mapping[str, str], kafka_options: Mapping[str, str] | None = None) -> str:
    """The text with each `${name}` replaced, quotes doubled since variables stand inside SQL strings.

    `kafka_options` are given to every Kafka source, beside its servers.
    """
    filled = VARIABLE.sub(lambda match: variables.get(match[1], match[0]).replace("'", "''"), text)
    options = "".join(
        f",\n  {name} = '{value.replace(chr(39), chr(39) * 2)}'" for name, value in (kafka_options or {}).items()
    )
    return _KAFKA_SERVERS.sub(lambda match: match[0] + options, filled) if options else filled


def _paths(sql_dir: Path, catalog: str, engine: str) -> list[Path]:
    catalogs = sql_dir / CATALOGS
    if catalogs.is_dir() and not (catalogs / catalog).is_dir():
        there = ", ".join(sorted(path.name for path in catalogs.iterdir() if path.is_dir()))
        raise PipelineError(f"RECS_CATALOG={catalog}: no directory {catalogs / catalog}; there are {there}")
    return [path for path in sorted(sql_dir.rglob("*.sql")) if _is_for(path.relative_to(sql_dir), catalog, engine)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise PipelineError("not UTF-8 text", path) from None
    except OSError as error:
        raise PipelineError(f"cannot be read: {error.strerror}", path) from None


def _is_for(path: Path, catalog: str, engine: str) -> bool:
    first, *_ = parts = path.parent.parts or ("",)
    if first == CATALOGS and parts[1:2] != (catalog,):
        return False
    return all(below == engine for above, below in pairwise((*parts, "")) if above == ENGINES)


@lru_cache(maxsize=4)
def _built(files: Files) -> Pipeline:
    parsed = _parsed(files)
    relations: dict[str, Relation] = {}
    for name in _in_order(parsed):
        relations[name] = _relation(parsed[name], relations)
    return Pipeline(relations)


def _parsed(files: Files) -> dict[str, Statement]:
    parsed: dict[str, Statement] = {}
    for path, text in files:
        statement = statements.parse(path, text)
        if statement.name in parsed:
            raise PipelineError(
                f"{statement.name} is defined in {parsed[statement.name].path} too", path, statement.line
            )
        if statement.name != path.stem:
            raise PipelineError(
                f"defines {statement.name!r}, so the file must be {statement.name}.sql", path, statement.line
            )
        _check_variables(statement)
        parsed[statement.name] = statement
    return parsed


def _check_variables(statement: Statement) -> None:
    for match in VARIABLE.finditer(statement.text):
        if match[1] not in VARIABLES:
            line = statement.text.count("\n", 0, match.start()) + 1
            raise PipelineError(
                f"unknown variable {match[0]}; known: {', '.join(sorted(VARIABLES))}", statement.path, line
            )


def _in_order(parsed: Mapping[str, Statement]) -> list[str]:
    for statement in parsed.values():
        for upstream in statement.upstreams:
            if upstream not in parsed:
                raise PipelineError(f"no file defines {upstream!r}", statement.path, statement.line_of(upstream))
    try:
        # sorted first, so that the order does not depend on the file system
        return list(TopologicalSorter({name: sorted(parsed[name].upstreams) for name in sorted(parsed)}).static_order())
    except CycleError as error:
        cycle: list[str] = error.args[1]
        first = parsed[cycle[0]]
        raise PipelineError(f"a cycle: {' → '.join(reversed(cycle))}", first.path, first.line_of(cycle[1])) from None


def _relation(statement: Statement, known: Mapping[str, Relation]) -> Relation:
    upstreams = statement.upstreams
    query, columns, key = None, statement.columns, statement.key
    if statement.query is not None:
        schema = {name: known[name] for name in upstreams}
        try:
            query, columns, key = describe_query(statement.query, {n: (r.columns, r.key) for n, r in schema.items()})
        except SqlglotError as error:
            raise PipelineError(str(error), statement.path, statement.line_in(str(error))) from None
    return Relation(
        name=statement.name,
        kind=Kind(statement.kind),
        path=statement.path,
        statement=statement,
        upstreams=upstreams,
        columns=columns,
        key=key,
        query=query,
        fingerprint=_fingerprint(statement, [known[name].fingerprint for name in upstreams]),
    )


def _fingerprint(statement: Statement, upstreams: list[str]) -> str:
    """Eight hex digits of the tokens and the upstreams: comments and white space change nothing, a changed
    upstream changes everything that reads it. Variables are unfilled, so a new password changes nothing."""
    return hashlib.sha256("\0".join([*statement.tokens, *upstreams]).encode()).hexdigest()[:8]
