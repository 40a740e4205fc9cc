"""Follows what a query reads down to the base relations: each output column, join condition and time filter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

from sqlglot import exp
from sqlglot.optimizer.scope import Scope, build_scope

from recs_platform.columns import conjuncts, equalities, is_lookup
from recs_platform.engines.transpile import micros
from recs_platform.errors import UnsupportedSql
from recs_platform.pipeline import Relation

Traced = dict[int, exp.Expr]  # occurrence → the expression in columns of that occurrence, as b<i>.<column>


@dataclass(frozen=True)
class Occurrence:
    """One place where a query reads a base relation."""

    index: int
    relation: str
    is_lookup: bool

    @property
    def alias(self) -> str:
        return f"b{self.index}"


@dataclass(frozen=True)
class TimeFilter:
    """`subject op NOW() + offset`: rows come or go by the clock alone. `offset` is in microseconds. `home`: the occurrence that the
    column itself is of; others have it by a join, and may have no row."""

    subject: Traced
    op: str
    offset: int
    home: int

    @property
    def keeps_newer(self) -> bool:
        return self.op in (">", ">=")


@dataclass(frozen=True)
class Edge:
    """A join condition between two occurrences."""

    left: int
    right: int
    condition: exp.Expr


@dataclass
class Tracer:
    """Follows columns of a query down to the base relations they come from."""

    query: exp.Query
    relation: Relation
    occurrences: dict[int, Occurrence] = field(default_factory=dict)
    time_filters: list[TimeFilter] = field(default_factory=list)
    clock_bound: bool = False
    _keeps_home: bool = False  # what is traced then leads to no side that an outer join may lack
    _numbers: dict[int, int] = field(default_factory=dict)  # id of the table node → occurrence

    def __post_init__(self) -> None:
        root = build_scope(self.query)
        assert root is not None
        self.root = root
        self.scopes = list(root.traverse())
        for scope in self.scopes:
            if scope.is_correlated_subquery or scope.scope_type.name == "SUBQUERY":
                raise UnsupportedSql("a subquery in an expression; join it instead", self.relation.path)
        for number, table in enumerate(self.query.find_all(exp.Table)):
            self._numbers[id(table)] = number
            self.occurrences[number] = Occurrence(number, table.name, is_lookup(table))

    @property
    def selects(self) -> Iterator[Scope]:
        return (scope for scope in self.scopes if isinstance(scope.expression, exp.Select))

    @property
    def is_row_wise(self) -> bool:
        """No grouping, no aggregate, no window, no DISTINCT anywhere."""
        return not any(
            select.expression.args.get("group")
            or select.expression.args.get("distinct")
            or _own(select, exp.AggFunc, exp.Window)
            for select in self.selects
        )

    @property
    def is_linear(self) -> bool:
        """Row-wise, and each SELECT reads one relation beside those it looks up."""
        return self.is_row_wise and all(
            sum(not is_lookup(node) for node, _ in scope.selected_sources.values()) == 1 for scope in self.selects
        )

    def used(self) -> dict[int, frozenset[str]]:
        """The columns that are read of each occurrence."""
        found: dict[int, set[str]] = {number: set() for number in self.occurrences}
        for scope in self.selects:
            for column in scope.columns:
                source = scope.selected_sources.get(column.table, (None, None))[1]
                if isinstance(source, exp.Table):
                    found[self._numbers[id(source)]].add(column.name)
        return {number: frozenset(names) for number, names in found.items()}

    def combined(self) -> dict[str, str]:
        """How each aggregate of a plain GROUP BY over one relation's rows is carried on; {} for any other query."""
        root, below = self.root, [scope for scope in self.selects if scope is not self.root]
        if not isinstance(root.expression, exp.Select) or root.expression.args.get("having") or _own(root, exp.Window):
            return {}
        grouped = root.expression.args.get("group")
        is_plain = not any(
            s.expression.args.get("group") or s.expression.args.get("distinct") or _own(s, exp.AggFunc, exp.Window)
            for s in below
        )
        if not grouped or not is_plain or len(self.occurrences) != 1:
            return {}
        ways = {select.alias_or_name: _way(select.unalias()) for select in _select(root).selects}
        return {name: way for name, way in ways.items() if way is not None}

    def output(self, scope: Scope, index: int) -> Traced:
        """An output column in base terms, or {} where the query does not fall apart by it."""
        if scope.set_operation_scopes:
            branches = [self.output(branch, index) for branch in scope.set_operation_scopes]
            return {i: e for branch in branches for i, e in branch.items()} if all(branches) else {}
        projection = _select(scope).selects[index].unalias()
        return self.expression(scope, projection) if self._partitions(scope, projection) else {}

    def _partitions(self, scope: Scope, projection: exp.Expr) -> bool:
        group = scope.expression.args.get("group")
        if group is not None and not _is_of(projection, group.expressions):
            return False
        windows = _own(scope, exp.Window)
        if not all(_is_of(projection, window.args.get("partition_by") or []) for window in windows):
            return False
        return group is not None or bool(windows) or not _own(scope, exp.AggFunc)

    def expression(self, scope: Scope, expression: exp.Expr) -> Traced:
        """An expression in terms of each occurrence that has all of its columns."""
        columns = list(expression.find_all(exp.Column))
        if not columns or expression.find(exp.AggFunc, exp.Window):
            return {}
        traced = [self.column(scope, column) for column in columns]
        shared = set.intersection(*(set(t) for t in traced))
        return {i: _substituted(expression, [t[i] for t in traced]) for i in sorted(shared)}

    def column(self, scope: Scope, column: exp.Column) -> Traced:
        nullable = _nullable(scope)
        if column.table in nullable:
            return {}
        equal = {other for pair in equalities(_select(scope)) if column.sql() in pair for other in pair}
        if self._keeps_home:
            equal = {other for other in equal if other.rpartition(".")[0] not in nullable}
        found: Traced = {}
        for name in sorted({column.sql()} | equal, key=lambda other: (other != column.sql(), other)):
            alias, _, field_name = name.rpartition(".")
            found = {**self._of_source(scope, alias, field_name, column), **found}
        return found

    def _of_source(self, scope: Scope, alias: str, name: str, like: exp.Column) -> Traced:
        node, source = scope.selected_sources.get(alias, (None, None))
        if node is None or is_lookup(node):
            return {}
        if isinstance(source, Scope):
            return self.output(source, _query(source).named_selects.index(name))
        number = self._numbers[id(source)]
        base = exp.column(name, table=f"b{number}")
        base.type = like.type
        return {number: base}

    def edges(self) -> Iterator[Edge]:
        """Every equality between columns of two occurrences."""
        for scope in self.selects:
            for condition in _join_equalities(_select(scope)):
                left, right = self._side(scope, condition.left), self._side(scope, condition.right)
                for i, one in left.items():
                    for j, other in right.items():
                        if i != j:
                            yield Edge(i, j, exp.EQ(this=one.copy(), expression=other.copy()))

    def _side(self, scope: Scope, side: exp.Expr) -> Traced:
        """A column of a join condition; unlike an output it may stand on the nullable side."""
        if not isinstance(side, exp.Column):
            return {}
        return self._of_source(scope, side.table, side.name, side)

    def filters(self) -> dict[int, list[exp.Expr]]:
        """Conditions on rows of one occurrence that hold or not whatever else is there; time filters on the way."""
        found: dict[int, list[exp.Expr]] = {}
        for scope in self.selects:
            where = scope.expression.args.get("where")
            for condition in conjuncts(where.this if where else None):
                if condition.find(exp.CurrentTimestamp):
                    self._add_time_filter(scope, condition)
                    continue
                for i, traced in self.expression(scope, condition).items():
                    found.setdefault(i, []).append(traced)
            if any(node.find(exp.CurrentTimestamp) for node in _parts_beside_where(scope)):
                self.clock_bound = True
        return found

    def _add_time_filter(self, scope: Scope, condition: exp.Expr) -> None:
        parsed = _time_comparison(condition)
        traced = self.expression(scope, parsed[0]) if parsed else {}
        self._keeps_home = True
        at_home = self.expression(scope, parsed[0]) if parsed else {}
        self._keeps_home = False
        if parsed and traced and at_home:
            self.time_filters.append(TimeFilter(traced, parsed[1], parsed[2], min(at_home)))
        else:
            self.clock_bound = True


def _is_of(expression: exp.Expr, parts: list[exp.Expr]) -> bool:
    """Whether rows that agree in the parts agree in the expression: it is one of them, or made of them alone."""
    texts, columns = [part.sql() for part in parts], list(expression.find_all(exp.Column))
    return expression.sql() in texts or (bool(columns) and all(column.sql() in texts for column in columns))


def _way(aggregate: exp.Expr) -> str | None:
    """How an aggregate over more rows follows from those over the parts. A sum of floats depends on their order."""
    if isinstance(aggregate, exp.Cast):
        is_sum = aggregate.is_type(*_EXACT_NUMBERS) and _way(aggregate.this) == "sum"
        return "sum" if is_sum and not _is_rounded(aggregate) else None
    call = aggregate.this if isinstance(aggregate, exp.Filter) else aggregate
    if isinstance(call.this, exp.Distinct) or (isinstance(call, exp.Sum) and not call.this.is_type(*_EXACT_NUMBERS)):
        return None
    return next((way for kind, way in _WAYS.items() if isinstance(call, kind)), None)


def _is_rounded(cast: exp.Cast) -> bool:
    """Whether a sum of decimals loses its fraction: what is lost with each part is not lost with the whole."""
    call = cast.this.this if isinstance(cast.this, exp.Filter) else cast.this
    return isinstance(call, exp.Sum) and not call.this.is_type(*exp.DataType.INTEGER_TYPES)


_WAYS: dict[type[exp.Expr], str] = {exp.Count: "sum", exp.Sum: "sum", exp.Max: "greatest", exp.Min: "least"}
_EXACT_NUMBERS = (*exp.DataType.INTEGER_TYPES, exp.DataType.Type.DECIMAL)


def _query(scope: Scope) -> exp.Query:
    return cast(exp.Query, scope.expression)


def _select(scope: Scope) -> exp.Select:
    return cast(exp.Select, scope.expression)


def _own(scope: Scope, *types: type[exp.Expr]) -> list[exp.Expr]:
    """Nodes of a SELECT itself, not of its subqueries. An aggregate used as a window function counts as a window."""
    found = [node for node in scope.walk() if isinstance(node, types)]
    return [
        n
        for n in found
        if not (isinstance(n, exp.AggFunc) and not isinstance(n, exp.Window) and n.find_ancestor(exp.Window))
    ]


def _parts_beside_where(scope: Scope) -> Iterator[exp.Expr]:
    select = _select(scope)
    yield from select.selects
    for join in select.args.get("joins") or []:
        if join.args.get("on") is not None:
            yield join.args["on"]
    if select.args.get("having") is not None:
        yield select.args["having"]


def _nullable(scope: Scope) -> set[str]:
    """Aliases on the side of an outer join that may be missing."""
    found: set[str] = set()
    preceding = []
    from_ = scope.expression.args.get("from_")
    if from_ is not None:
        preceding.append(from_.this.alias_or_name)
    for join in scope.expression.args.get("joins") or []:
        side, alias = (join.side or "").upper(), join.this.alias_or_name
        if side in ("LEFT", "FULL"):
            found.add(alias)
        if side in ("RIGHT", "FULL"):
            found.update(preceding)
        preceding.append(alias)
    return found


def _join_equalities(select: exp.Select) -> Iterator[exp.EQ]:
    for join in select.args.get("joins") or []:
        for condition in conjuncts(join.args.get("on")):
            if isinstance(condition, exp.EQ):
                yield condition


def _substituted(expression: exp.Expr, columns: list[exp.Expr]) -> exp.Expr:
    if isinstance(expression, exp.Column):
        return columns[0].copy()
    copy = expression.copy()
    for old, new in zip(list(copy.find_all(exp.Column)), columns, strict=True):
        old.replace(new.copy())
    return copy


_FLIPPED = {">": "<", ">=": "<=", "<": ">", "<=": ">="}
_OPS: dict[type[exp.Expr], str] = {exp.GT: ">", exp.GTE: ">=", exp.LT: "<", exp.LTE: "<="}


def _time_comparison(condition: exp.Expr) -> tuple[exp.Expr, str, int] | None:
    """`(subject, op, offset)` of `subject op NOW() ± INTERVAL` or its mirror image."""
    op = _OPS.get(type(condition))
    if op is None:
        return None
    comparison = cast(exp.Binary, condition)
    left, right = comparison.left, comparison.right
    if left.find(exp.CurrentTimestamp):
        left, right, op = right, left, _FLIPPED[op]
    offset = _offset_from_now(right.unnest())
    return None if offset is None or left.find(exp.CurrentTimestamp) else (left, op, offset)


def _offset_from_now(bound: exp.Expr) -> int | None:
    if isinstance(bound, exp.CurrentTimestamp):
        return 0
    if (
        isinstance(bound, exp.Add | exp.Sub)
        and isinstance(bound.left, exp.CurrentTimestamp)
        and isinstance(bound.right, exp.Interval)
    ):
        return micros(bound.right) * (1 if isinstance(bound, exp.Add) else -1)
    return None
