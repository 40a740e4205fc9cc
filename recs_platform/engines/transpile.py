"""RisingWave's SQL → DuckDB's, exactly or not at all.

The tree handed in is qualified and typed (`columns.describe_query`). Every construct is on a list: one that is
not is refused by name, never passed through in the hope that both engines mean the same by it.

What differs between the two, and is put right here:

- a failed cast gives NULL in a streaming view: `TRY_CAST`, and text becomes a number or a time only where
  RisingWave would read it (`'1e2'` and `'5.5'` are no integers, `'infinity'` is no time);
- JSON is what a strict parser takes: no NaN, no trailing comma, the last of repeated fields counts;
- arrays in JSON (`to_jsonb(array)`, `'[]'::jsonb`, `||`, `-`, `jsonb_path_query_array`) are kept as lists;
- `NOW()` is the time of the tick, the same in every view of it;
- the right side of a lookup join is read as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import duckdb
import orjson
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType
from sqlglot import exp

from recs_platform.columns import is_lookup
from recs_platform.errors import UnsupportedSql

_MACROS = r"""
CREATE OR REPLACE MACRO rw_bigint(t) AS CASE WHEN regexp_full_match(trim(t), '[+-]?[0-9]+') THEN TRY_CAST(trim(t) AS BIGINT) END;
CREATE OR REPLACE MACRO rw_timestamptz(t) AS CASE WHEN regexp_full_match(t,
  '[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt_ ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.,][0-9]{1,9})?)?\s?([Zz]|[+-][0-9]{2}(:?[0-9]{2})?)?)?')
  THEN TRY_CAST(replace(replace(t, '_', ' '), ',', '.') AS TIMESTAMPTZ) END;
CREATE OR REPLACE MACRO rw_jsonb_typeof(j) AS CASE json_type(j)
  WHEN 'VARCHAR' THEN 'string' WHEN 'OBJECT' THEN 'object' WHEN 'ARRAY' THEN 'array' WHEN 'BOOLEAN' THEN 'boolean'
  WHEN 'NULL' THEN 'null' WHEN 'BIGINT' THEN 'number' WHEN 'UBIGINT' THEN 'number' WHEN 'DOUBLE' THEN 'number' END;
CREATE OR REPLACE MACRO rw_tumble_start(t, width_us) AS make_timestamptz(epoch_us(t) // width_us * width_us);
CREATE OR REPLACE MACRO rw_after(t, us) AS make_timestamptz(epoch_us(t) + us);
"""

_NODES = (
    exp.Select,
    exp.Subquery,
    exp.From,
    exp.Join,
    exp.Where,
    exp.Group,
    exp.Having,
    exp.Union,
    exp.With,
    exp.CTE,
    exp.Table,
    exp.TableAlias,
    exp.Identifier,
    exp.Column,
    exp.Alias,
    exp.Star,
    exp.Literal,
    exp.Boolean,
    exp.Null,
    exp.Paren,
    exp.And,
    exp.Or,
    exp.Not,
    exp.EQ,
    exp.NEQ,
    exp.GT,
    exp.GTE,
    exp.LT,
    exp.LTE,
    exp.Is,
    exp.In,
    exp.Between,
    exp.Add,
    exp.Sub,
    exp.Mul,
    exp.Div,
    exp.Neg,
    exp.DPipe,
    exp.Case,
    exp.If,
    exp.Coalesce,
    exp.Nullif,
    exp.Cast,
    exp.DataType,
    exp.Interval,
    exp.Var,
    exp.Count,
    exp.Sum,
    exp.Max,
    exp.Min,
    exp.Filter,
    exp.ArrayAgg,
    exp.Order,
    exp.Ordered,
    exp.Window,
    exp.WindowSpec,
    exp.RowNumber,
    exp.Rank,
    exp.Lag,
    exp.CurrentTimestamp,
    exp.AtTimeZone,
    exp.TimeToStr,
    exp.Length,
    exp.Lower,
    exp.Replace,
    exp.Upper,
    exp.Distinct,
    exp.JSON,
    exp.JSONExtract,
    exp.JSONExtractScalar,
    exp.JSONPath,
    exp.JSONPathRoot,
    exp.JSONPathKey,
    exp.Version,
    exp.Anonymous,
    exp.Limit,
    exp.Parameter,
    exp.Greatest,
    exp.Least,
    exp.Round,
    exp.Abs,
    exp.Exists,
    exp.DataTypeParam,
    exp.NullSafeEQ,
    exp.IntDiv,
)
_UNITS = {"SECOND": 1, "MINUTE": 60, "HOUR": 3600, "DAY": 86400, "WEEK": 7 * 86400}


def install(connection: duckdb.DuckDBPyConnection) -> None:
    """Gives a DuckDB connection what translated SQL calls: macros, the strict JSON parser, time zone UTC."""
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(_MACROS)
    connection.create_function(
        "rw_jsonb",
        _canonical_json,
        ["VARCHAR"],
        "VARCHAR",
        type=PythonUDFType.ARROW,
        null_handling=FunctionNullHandling.SPECIAL,
    )


def _canonical_json(texts: pa.Array) -> pa.Array:
    return pa.array([_canonical(text) for text in texts.to_pylist()], pa.string())


def _canonical(text: str | None) -> str | None:
    """The JSON written anew, or NULL where a strict parser refuses it, or nothing so deeply nested can be written."""
    try:
        return None if text is None else orjson.dumps(orjson.loads(text)).decode()
    except (ValueError, TypeError):  # a TypeError is nested more than 254 times: it must not stop the tick
        return None


def to_duckdb(query: exp.Expr, path: Path | None = None) -> str:
    """The DuckDB text of a qualified RisingWave query, or of an expression of one.

    Raises `UnsupportedSql` naming the construct that has no exact translation.
    """
    _refuse_unknown(query, path)
    return _translated(query.copy(), path).sql(dialect="duckdb", identify=True)


def _refuse_unknown(query: exp.Expr, path: Path | None) -> None:
    for node in query.walk():
        if isinstance(node, exp.Anonymous) and node.name.lower() not in _FUNCTIONS:
            raise UnsupportedSql(f"the local engine does not know {node.name}()", path)
        if not isinstance(node, _NODES):
            text = node.sql(dialect="risingwave")
            raise UnsupportedSql(f"the local engine does not know {type(node).__name__}: {text[:80]}", path)
        if isinstance(node, exp.Limit):
            raise UnsupportedSql("LIMIT keeps rows that a streaming view cannot tell; rank with ROW_NUMBER()", path)


def _translated(tree: exp.Expr, path: Path | None) -> exp.Expr:
    """The tree rewritten from the leaves up; each rewritten node keeps the type of what it stands for."""
    for node in reversed(list(tree.bfs())):
        rewrite = _REWRITES.get(type(node))
        new = rewrite(node, path) if rewrite else node
        if new is not node:
            new.type = node.type
            if node is tree:
                return new
            node.replace(new)
    return tree


def _call(name: str, *arguments: exp.Expr) -> exp.Anonymous:
    return exp.Anonymous(this=name, expressions=list(arguments))


def micros(interval: exp.Interval, path: Path | None = None) -> int:
    """The length of an interval in microseconds; months and years have none."""
    unit = str(interval.args["unit"]).upper().removesuffix("S")
    amount = interval.this.name if interval.this is not None else ""
    if unit not in _UNITS or not re.fullmatch(r"\d+", amount):
        raise UnsupportedSql(f"INTERVAL '{amount} {unit.lower()}': a whole number of seconds to weeks is wanted", path)
    return int(amount) * _UNITS[unit] * 1_000_000


def is_json_list(node: exp.Expr) -> bool:
    """Whether an expression is JSON that is kept as a list."""
    node = node.unnest()
    if isinstance(node, exp.Coalesce):
        return is_json_list(node.this)
    if isinstance(node, exp.DPipe | exp.Sub):
        return is_json_list(node.left)
    if isinstance(node, exp.Anonymous) and node.name in ("list_concat", "list_filter", "list_slice"):
        return True
    return bool(node.is_type(exp.DataType.Type.JSONB, exp.DataType.Type.JSON))


def _cast(node: exp.Expr, path: Path | None) -> exp.Expr:
    target, inner = node.args["to"], node.this
    if target.is_type(exp.DataType.Type.JSONB, exp.DataType.Type.JSON):
        if isinstance(inner, exp.Literal):
            return _json_literal(inner, path)
        return exp.cast(_call("rw_jsonb", inner), "JSON")
    if inner.unnest().is_type(*exp.DataType.TEXT_TYPES):
        if target.is_type(exp.DataType.Type.BIGINT, exp.DataType.Type.INT, exp.DataType.Type.SMALLINT):
            return exp.TryCast(this=_call("rw_bigint", inner), to=target)
        if target.is_type(exp.DataType.Type.TIMESTAMPTZ):
            return _call("rw_timestamptz", inner)
    if isinstance(inner, exp.Anonymous) and inner.name.startswith("rw_"):  # tumble_start has the type already
        return inner
    return exp.TryCast(this=inner, to=target)


def _json_literal(literal: exp.Expr, path: Path | None) -> exp.Expr:
    if literal.name.strip() != "[]":
        raise UnsupportedSql(f"the local engine knows no JSON literal but '[]'::jsonb: {literal}", path)
    return exp.cast(exp.Array(expressions=[]), "VARCHAR[]", dialect="duckdb")


def _is(node: exp.Expr, path: Path | None) -> exp.Expr:
    if not isinstance(node.expression, exp.JSON):
        return node
    if str(node.expression.this).upper() != "OBJECT":
        raise UnsupportedSql(f"the local engine knows no IS {node.expression}", path)
    return exp.EQ(this=_call("json_type", _call("rw_jsonb", node.this)), expression=exp.Literal.string("OBJECT"))


def _table(node: exp.Expr, path: Path | None) -> exp.Expr:
    if is_lookup(node):
        node.set("version", None)
    return node


def _time_sum(node: exp.Expr, path: Path | None) -> exp.Expr:
    """`time ± INTERVAL` on microseconds: what DuckDB does itself for a time zone is six times slower."""
    if isinstance(node, exp.Sub) and is_json_list(node.left):
        return _call("list_filter", node.left, _lambda_not_in(node.right))
    if not isinstance(node.expression, exp.Interval):
        return node
    sign = 1 if isinstance(node, exp.Add) else -1
    return _call("rw_after", node.this, exp.Literal.number(sign * micros(node.expression, path)))


def _arithmetic(node: exp.Expr, path: Path | None) -> exp.Expr:
    """NULL for a whole number that is too large, as a RisingWave has it, and not an error that ends the tick."""
    new = _time_sum(node, path) if isinstance(node, exp.Add | exp.Sub) else node
    is_whole = node.is_type(*exp.DataType.INTEGER_TYPES) and not node.find(exp.AggFunc, exp.Window)
    return _call("try", node.copy()) if new is node and is_whole else new


def _to_char(node: exp.Expr, path: Path | None) -> exp.Expr:
    left = re.sub(r"%[YmdHMS]", "", node.args["format"].name)
    if re.search(r"[A-Za-z%\"]", left):
        raise UnsupportedSql(
            "to_char: the local engine knows YYYY, MM, DD, HH24, MI, SS and what stands between them alone", path
        )
    return node


def _round(node: exp.Expr, path: Path | None) -> exp.Expr:
    """Of a float the half goes to the even number; of a decimal, away from zero, as DuckDB has it."""
    is_float = node.this.is_type(exp.DataType.Type.DOUBLE, exp.DataType.Type.FLOAT)
    if is_float and node.args.get("decimals") is None:
        return _call("round_even", node.this, exp.Literal.number(0))
    return node


def _build_object(call: exp.Expr, path: Path | None) -> exp.Expr:
    for value in call.expressions[1::2]:
        if value.is_type(*exp.DataType.TEMPORAL_TYPES):
            raise UnsupportedSql(
                "jsonb_build_object: a time is spelt otherwise by each engine; give it as text, with to_char", path
            )
    return _call("json_object", *call.expressions)


def _lambda_not_in(seen: exp.Expr) -> exp.Expr:
    element = exp.to_identifier("element")
    contains = _call("list_contains", _call("coalesce", seen, exp.Array(expressions=[])), exp.column("element"))
    return exp.Lambda(this=exp.Not(this=contains), expressions=[element])


def _concatenation(node: exp.Expr, path: Path | None) -> exp.Expr:
    return _call("list_concat", node.this, node.expression) if is_json_list(node) else node


def _function(node: exp.Expr, path: Path | None) -> exp.Expr:
    return _FUNCTIONS[node.name.lower()](node, path)


def _convert_from(call: exp.Expr, path: Path | None) -> exp.Expr:
    if len(call.expressions) != 2 or call.expressions[1].name.upper() not in ("UTF8", "UTF-8"):
        raise UnsupportedSql("the local engine knows convert_from(…, 'UTF8') alone", path)
    return _call("try", _call("decode", call.expressions[0]))


def _tumble(call: exp.Expr, path: Path | None) -> exp.Expr:
    column, width = call.expressions
    length = micros(width, path)
    start = _call("rw_tumble_start", column, exp.Literal.number(length))
    return start if call.name.lower() == "tumble_start" else _call("rw_after", start, exp.Literal.number(length))


def _path_query_array(call: exp.Expr, path: Path | None) -> exp.Expr:
    bounds = re.fullmatch(r"\$\[(\d+) to (\d+)\]", call.expressions[1].name)
    if bounds is None:
        raise UnsupportedSql(f"jsonb_path_query_array: '$[m to n]' is wanted, not {call.expressions[1]}", path)
    first, last = int(bounds[1]) + 1, int(bounds[2]) + 1
    return _call("list_slice", call.expressions[0], exp.Literal.number(first), exp.Literal.number(last))


def _to_jsonb(call: exp.Expr, path: Path | None) -> exp.Expr:
    array: exp.Expr = call.expressions[0]
    if not array.is_type(exp.DataType.Type.ARRAY):
        raise UnsupportedSql("the local engine knows to_jsonb() of an array alone", path)
    return array


def _jsonb_agg(call: exp.Expr, path: Path | None) -> exp.Expr:
    return _call("to_json", _call("list", *call.expressions))


def _renamed(name: str) -> Callable[[exp.Expr, Path | None], exp.Expr]:
    return lambda call, path: _call(name, *call.expressions)


_FUNCTIONS: dict[str, Callable[[exp.Expr, Path | None], exp.Expr]] = {
    "convert_from": _convert_from,
    "tumble_start": _tumble,
    "tumble_end": _tumble,
    "jsonb_path_query_array": _path_query_array,
    "to_jsonb": _to_jsonb,
    "jsonb_agg": _jsonb_agg,
    "jsonb_build_object": _build_object,
    "jsonb_typeof": _renamed("rw_jsonb_typeof"),
    "proctime": _renamed("proctime"),
}

_REWRITES: dict[type[exp.Expr], Callable[[exp.Expr, Path | None], exp.Expr]] = {
    exp.Cast: _cast,
    exp.Is: _is,
    exp.Table: _table,
    exp.TimeToStr: _to_char,
    exp.Round: _round,
    exp.Add: _arithmetic,
    exp.Sub: _arithmetic,
    exp.Mul: _arithmetic,
    exp.Div: _arithmetic,
    exp.IntDiv: _arithmetic,
    exp.DPipe: _concatenation,
    exp.Anonymous: _function,
    exp.CurrentTimestamp: lambda node, path: _call("getvariable", exp.Literal.string("now")),
}
