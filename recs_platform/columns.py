"""Columns of a query: names, types, lineage and the key that identifies a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlglot import exp
from sqlglot.dialects.risingwave import RisingWave
from sqlglot.optimizer.annotate_types import annotate_types
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import Scope, build_scope

DIALECT = "risingwave"


@dataclass(frozen=True)
class Origin:
    """A column some value comes from; `field` is set where it is taken out of a JSON column."""

    relation: str
    column: str
    field: str | None = None

    def __str__(self) -> str:
        return f"{self.relation}.{self.column}" + (f"→{self.field}" if self.field else "")


@dataclass(frozen=True)
class Column:
    """A column with its type in RisingWave's words and the upstream columns its values come from."""

    name: str
    type: str
    lineage: tuple[Origin, ...] = ()


Upstream = tuple[tuple[Column, ...], tuple[str, ...]]  # columns, key

# What functions give that sqlglot has no word for, or no type.
_FUNCTION_TYPES = {
    "jsonb_path_query_array": "JSONB",
    "to_jsonb": "JSONB",
    "jsonb_agg": "JSONB",
    "jsonb_build_object": "JSONB",
    "convert_from": "VARCHAR",
    "to_char": "VARCHAR",
    "jsonb_typeof": "VARCHAR",
}


def _function_type(annotator: Any, call: exp.Anonymous) -> exp.Expr:
    kind = _FUNCTION_TYPES.get(call.name.lower(), "UNKNOWN")
    return cast(exp.Expr, annotator._set_type(call, exp.DataType.build(kind, dialect=DIALECT)))


_METADATA = {
    **RisingWave.EXPRESSION_METADATA,
    exp.Anonymous: {"annotator": _function_type},
    exp.JSONExtractScalar: {"returns": exp.DataType.Type.VARCHAR},
    exp.JSONExtract: {"returns": exp.DataType.Type.JSONB},
    exp.JSONArrayAgg: {"returns": exp.DataType.Type.JSONB},
}


def describe_query(
    query: exp.Query, upstreams: Mapping[str, Upstream]
) -> tuple[exp.Query, tuple[Column, ...], tuple[str, ...]]:
    """The query with every column qualified and typed, its columns, and its key.

    `TUMBLE(…)` becomes a subquery on the way, so that all that follows sees plain SQL.
    Raises sqlglot's `OptimizeError` for a column no upstream has.
    """
    schema: dict[str, object] = {name: {c.name: c.type for c in columns} for name, (columns, _) in upstreams.items()}
    plain = expand_tumble(query.copy())
    qualified = qualify(
        plain, schema=schema, dialect=DIALECT, quote_identifiers=False, identify=False, validate_qualify_columns=True
    )
    typed = annotate_types(qualified, schema=schema, dialect=DIALECT, expression_metadata=_METADATA)
    scope = build_scope(typed)
    assert scope is not None
    columns = tuple(
        Column(name, _type_of(_first_select(typed).selects[i]), tuple(sorted(_lineage(scope, i), key=str)))
        for i, name in enumerate(typed.named_selects)
    )
    keys = {name: key for name, (_, key) in upstreams.items()}
    return typed, columns, _key_of(scope, keys)


def expand_tumble(query: exp.Query) -> exp.Query:
    """`TUMBLE(t, c, i)` → `(SELECT *, tumble_start(c, i) AS window_start, tumble_end(c, i) AS window_end FROM t)`."""
    for table in list(query.find_all(exp.Table)):
        call = table.this
        if not isinstance(call, exp.Anonymous) or call.name.upper() != "TUMBLE":
            continue
        source, column, width = call.expressions
        windows = [
            exp.alias_(
                exp.cast(exp.func(f"tumble_{edge}", column.copy(), width.copy()), "TIMESTAMPTZ"), f"window_{edge}"
            )
            for edge in ("start", "end")
        ]
        inner = exp.select("*", *windows).from_(exp.to_table(source.name))
        table.replace(inner.subquery(table.alias or source.name))
    return query


def _type_of(select: exp.Expr) -> str:
    kind = select.unalias().type
    return kind.sql(DIALECT) if isinstance(kind, exp.DataType) else "UNKNOWN"


def _first_select(query: exp.Query) -> exp.Select:
    return cast(exp.Select, query if isinstance(query, exp.Select) else query.find(exp.Select))


def _lineage(scope: Scope, index: int) -> set[Origin]:
    """The upstream columns that output column `index` of the scope is computed from."""
    if scope.set_operation_scopes:
        return {origin for branch in scope.set_operation_scopes for origin in _lineage(branch, index)}
    found: set[Origin] = set()
    for column in cast(exp.Select, scope.expression).selects[index].find_all(exp.Column):
        found |= _origins(scope, column)
    return found


def _origins(scope: Scope, column: exp.Column) -> set[Origin]:
    source = scope.sources.get(column.table)
    field = _json_field(column)
    if isinstance(source, Scope):
        inner = cast(exp.Query, source.expression).named_selects.index(column.name)
        deeper = _lineage(source, inner)
        return {Origin(o.relation, o.column, field) if field and o.field is None else o for o in deeper}
    return {Origin(source.name, column.name, field)} if isinstance(source, exp.Table) else set()


def _json_field(column: exp.Column) -> str | None:
    parent = column.parent
    if isinstance(parent, exp.JSONExtractScalar | exp.JSONExtract) and parent.this is column:
        path = parent.expression
        keys = [part.name for part in path.find_all(exp.JSONPathKey)]
        return ".".join(keys) or path.name or None
    return None


def _key_of(scope: Scope, keys: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Output columns that identify a row, or () where none are known.

    A grouped query is identified by its groups; any other by the key of what it selects from, and for joins
    by the keys of both sides (a looked-up side adds none: it has one row a left row).
    """
    if scope.set_operation_scopes:
        branches = [_key_of(branch, keys) for branch in scope.set_operation_scopes]
        literals = list(_telling(scope.set_operation_scopes))
        return tuple(literals) + branches[0] if literals and len(set(branches)) == 1 and branches[0] else ()
    select = cast(exp.Select, scope.expression)
    group = select.args.get("group")
    if group is not None:
        wanted = [expression.sql() for expression in group.expressions]
        return _named(select, wanted)
    wanted = []
    for alias, source in scope.selected_sources.items():
        node, origin = source
        if is_lookup(node):
            continue
        inner = _key_of(origin, keys) if isinstance(origin, Scope) else keys.get(origin.name, ())
        if not inner:
            return ()
        wanted += [exp.column(name, alias).sql() for name in inner]
    return _named(select, _without_equals(select, wanted))


def _telling(branches: Sequence[Scope]) -> Iterator[str]:
    """The columns that say of which branch a row is: a literal in each, and another one in each."""
    selects = [branch.expression.selects for branch in branches if isinstance(branch.expression, exp.Select)]
    for columns in zip(*selects, strict=False) if len(selects) == len(branches) else ():
        values = {column.unalias().sql() for column in columns if isinstance(column.unalias(), exp.Literal)}
        if len(values) == len(branches):
            yield columns[0].alias_or_name


def is_lookup(node: exp.Expr) -> bool:
    """Whether a table stands as `FOR SYSTEM_TIME AS OF PROCTIME()`: the right side of a lookup join."""
    return isinstance(node, exp.Table) and node.args.get("version") is not None


def _without_equals(select: exp.Select, wanted: list[str]) -> list[str]:
    """Key columns less those an inner join equates with one that is kept."""
    kept: list[str] = []
    equal = equalities(select)
    for column in wanted:
        if not any(frozenset((column, other)) in equal for other in kept):
            kept.append(column)
    return kept


def equalities(select: exp.Select) -> set[frozenset[str]]:
    """Pairs of columns that the joins of a SELECT equate, closed under transitivity."""
    pairs = [
        {condition.left.sql(), condition.right.sql()}
        for join in select.args.get("joins") or []
        for condition in conjuncts(join.args.get("on"))
        if isinstance(condition, exp.EQ)
    ]
    classes: list[set[str]] = []
    for pair in pairs:
        touching = [c for c in classes if c & pair]
        classes = [c for c in classes if not c & pair] + [set().union(pair, *touching)]
    return {frozenset((a, b)) for c in classes for a in c for b in c if a != b}


def conjuncts(condition: exp.Expr | None) -> list[exp.Expr]:
    """The parts of a condition that are joined by AND."""
    if condition is None:
        return []
    return list(condition.flatten()) if isinstance(condition, exp.And) else [condition.unnest()]


def _named(select: exp.Select, wanted: list[str]) -> tuple[str, ...]:
    """The output names of the wanted expressions, or () where one is not selected."""
    names: dict[str, str] = {}
    for projection in select.selects:
        names.setdefault(projection.unalias().sql(), projection.alias_or_name)
    return tuple(names[w] for w in wanted) if all(w in names for w in wanted) else ()
