"""`Pipeline` → `Lineage`: every box of the picture, from topic and catalog table to sink, and whence each column.

All of it follows from the SQL. A field taken out of a JSON column is a column of its own here (`event.user_id`), and
a Kafka message is a `value` with its fields, a `partition`, an `offset` and a `timestamp`; so a value can be followed
from an event's field or a catalog's column to a key in Redis.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from recs_platform.columns import Origin
from recs_platform.pipeline import Kind, Pipeline, Relation
from recs_platform.settings import LOCAL, RISINGWAVE

Key = tuple[str, ...]
Place = tuple[Key, str]
"""A column of a box."""

ANY = "JSON"
"""The type of a field that nobody casts."""

_VIEWS_IN = {LOCAL: "duckdb", RISINGWAVE: "risingwave"}
_CONNECTORS = {"kafka": "kafka", "postgres-cdc": "postgres", "redis": "redis"}

Fields = Mapping[tuple[str, str], Mapping[str, str]]  # (relation, JSON column) → field → type


@dataclass(frozen=True)
class LineageColumn:
    """A column, its type, and the columns its values come from directly."""

    name: str
    type: str
    sources: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Node:
    """One box. `relation` is None for what lies outside the engine: a topic or a table of the shop's PostgreSQL.

    `kind` is that of the relation, or topic or catalog; `kinds` names the technologies, `upstreams` the boxes it reads.
    """

    key: Key
    kind: str
    kinds: frozenset[str]
    description: str
    columns: tuple[LineageColumn, ...]
    upstreams: tuple[Key, ...] = ()
    relation: Relation | None = None


@dataclass(frozen=True)
class Lineage:
    """All boxes, upstreams before what reads them."""

    nodes: Mapping[Key, Node]

    @classmethod
    def of(cls, pipeline: Pipeline, engine: str = LOCAL) -> Lineage:
        fields = _fields(pipeline)
        inside = [_inside(relation, fields, _VIEWS_IN[engine]) for relation in pipeline]
        return cls({node.key: node for node in [*_outside(inside), *inside]})

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def origins(self, place: Place) -> frozenset[Place]:
        """The columns outside the engine that a column's values come from at last."""
        key, name = place
        sources = next((c.sources for c in self.nodes[key].columns if c.name == name), ())
        if not sources:
            return frozenset({place}) if self.nodes[key].relation is None else frozenset()
        return frozenset().union(*(self.origins(source) for source in sources))


def topic_key(topic: str) -> Key:
    return "kafka", topic


def catalog_key(table: str) -> Key:
    """`public.customers` → `postgres/customers`; another schema is kept."""
    return "postgres", *table.removeprefix("public.").split(".")


def relation_key(name: str) -> Key:
    return (name,)


def label(key: Key) -> str:
    """A box as a person reads it, and as Dagster does: `kafka/user_activity`, `trending_products`."""
    return "/".join(key)


def outside_key(relation: Relation) -> Key | None:
    """What outside the engine a source or table is fed by; None for all others."""
    if relation.topic:
        return topic_key(relation.topic)
    table = relation.catalog_table
    return catalog_key(table) if table else None


def _inside(relation: Relation, fields: Fields, views_in: str) -> Node:
    connector = "postgres" if relation.kind is Kind.TABLE else _CONNECTORS.get(relation.connector or "", views_in)
    outside = outside_key(relation)
    return Node(
        key=relation_key(relation.name),
        kind=str(relation.kind),
        kinds=frozenset({"sql", connector}),
        description=relation.description,
        columns=tuple(_columns(relation, fields)),
        relation=relation,
        upstreams=(*([outside] if outside else []), *(relation_key(name) for name in relation.upstreams)),
    )


def _columns(relation: Relation, fields: Fields) -> Iterator[LineageColumn]:
    for column in relation.columns:
        origins = column.lineage or _outside_origins(relation, column.name)
        yield LineageColumn(column.name, column.type, tuple(_place(relation, origin) for origin in origins))
        for field, kind in sorted(fields.get((relation.name, column.name), {}).items()):
            deeper = tuple(_place(relation, _into(origin, field)) for origin in origins)
            yield LineageColumn(_spelt(column.name, field), kind, deeper)


def _outside_origins(relation: Relation, column: str) -> tuple[Origin, ...]:
    """A column of a source or table comes from outside; that has no relation's name, so it gets none."""
    if relation.topic:
        return (Origin("", relation.statement.includes.get(column, "value")),)
    return (Origin("", column),) if outside_key(relation) else ()


def _place(reader: Relation, origin: Origin) -> Place:
    key = relation_key(origin.relation) if origin.relation else outside_key(reader)
    assert key is not None
    return key, _spelt(origin.column, origin.field)


def _into(origin: Origin, field: str) -> Origin:
    return replace(origin, field=_spelt(origin.field, field) if origin.field else field)


def _spelt(column: str, field: str | None) -> str:
    return f"{column}.{field}" if field else column


def _fields(pipeline: Pipeline) -> Fields:
    """The fields that are read of each JSON column, directly or through views, with the type they are cast to."""
    found: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for relation in reversed(list(pipeline)):  # readers first
        for column in relation.columns:
            own = [("", column.type if len(column.lineage) == 1 else ANY), *found[relation.name, column.name].items()]
            for origin in column.lineage:
                for inner, kind in own:
                    field = (_into(origin, inner) if inner else origin).field
                    known = found[origin.relation, origin.column]
                    if field and known.get(field, ANY) == ANY:
                        known[field] = kind
    return found


def _outside(inside: list[Node]) -> list[Node]:
    """The topics and catalog tables that the pipeline reads, with the columns it reads of them."""
    columns: dict[Key, dict[str, str]] = defaultdict(dict)
    readers: dict[Key, list[str]] = defaultdict(list)
    for node in inside:
        for column in node.columns:
            for key, name in column.sources if node.relation and outside_key(node.relation) else ():
                columns[key].setdefault(name, column.type)
        if node.relation and (outside := outside_key(node.relation)):
            readers[outside].append(node.relation.name)
    return [_outside_node(key, names, columns[key]) for key, names in sorted(readers.items())]


def _outside_node(key: Key, readers: list[str], columns: Mapping[str, str]) -> Node:
    what = "The Kafka topic" if key[0] == "kafka" else "The PostgreSQL table"
    return Node(
        key=key,
        kind="topic" if key[0] == "kafka" else "catalog",
        kinds=frozenset({key[0]}),
        description=f"{what} that {' and '.join(readers)} reads.",
        columns=tuple(LineageColumn(name, kind) for name, kind in columns.items()),
    )
