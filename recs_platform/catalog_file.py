"""Files of the catalog: CSV, TSV or JSON Lines, plain or gzip, checked value by value before anything reaches an engine."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TextIO

from recs_platform.columns import Column
from recs_platform.errors import SourceError
from recs_platform.foreign_json import parsed
from recs_platform.tabular import open_text, rows

COLUMNS = ("product_id", "name", "category", "price", "description", "image_url", "in_stock")
REQUIRED = ("product_id", "name")

_PRICE_LIMIT, _CENT = Decimal(10) ** 10, Decimal("0.01")
_TRUTH = {"": True, "true": True, "t": True, "yes": True, "y": True, "1": True,
          "false": False, "f": False, "no": False, "n": False, "0": False}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProductFile:
    """The columns of the catalog a file has, its rows in that order, and the columns that mean nothing to us."""

    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    ignored_columns: tuple[str, ...]


def read_products(path: Path) -> ProductFile:
    """Reads and checks the whole file. Raises `SourceError` naming file, line and column of what cannot be used."""
    with open_text(path) as text:
        names, records = _any(path, text)
        missing = [column for column in REQUIRED if column not in names]
        if missing:
            raise SourceError(f"{path}: no column {' and no '.join(missing)}; it has {', '.join(names)}")
        columns = tuple(column for column in COLUMNS if column in names)
        ignored = tuple(name for name in names if name not in COLUMNS)
        return ProductFile(columns, list(_checked(path, columns, records)), ignored)


SUFFIXES = tuple(f".{kind}{packed}" for kind in ("csv", "tsv", "jsonl") for packed in ("", ".gz"))
Stamp = tuple[str, int, int]
"""Of a file as it is now: another one, or one that is written again, has another."""


def find_file(directory: Path, table: str) -> Path:
    """The one file of a table, which is called after it, less `_file`. Raises `SourceError` where there is none, or more."""
    table = table.removesuffix("_file")
    found = [path for suffix in SUFFIXES if (path := directory / f"{table}{suffix}").is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise SourceError(f"{' and '.join(str(path) for path in found)}: which of them is {table}? Keep one")
    raise SourceError(f"no {table}.csv (or .tsv, .jsonl, each also .gz) in {directory}: RECS_CATALOG_DIR says where")


def stamp(path: Path) -> Stamp:
    """Raises `SourceError` where it has gone."""
    try:
        found = path.stat()
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from None
    return str(path), found.st_mtime_ns, found.st_size


def read_rows(path: Path, columns: Sequence[Column], key: Sequence[str]) -> list[tuple[str | None, ...]]:
    """Rows of a table with these columns, as text that fits their types; "" is NULL, and so is a column that is not there.

    Raises `SourceError` naming file, line and column: a value of another type, a key that is empty or there twice.
    """
    with open_text(path) as text:
        names, records = _any(path, text)
        if missing := [name for name in key if name not in names]:
            raise SourceError(f"{path}: no column {' and no '.join(missing)}; it has {', '.join(names)}")
        places = [[column.name for column in columns].index(name) for name in key]
        seen: dict[tuple[str | None, ...], int] = {}
        found = []
        for number, record in records:
            row = tuple(_typed(path, number, c, record.get(c.name, "").strip()) for c in columns)
            own = tuple(row[place] for place in places)  # as it is kept: 007 is 7
            told = f"{path}:{number}: {', '.join(key)}"
            if None in own:
                raise SourceError(f"{told}: must not be empty")
            if own in seen:
                raise SourceError(f"{told}: {', '.join(map(str, own))} is on line {seen[own]} already")
            seen[own] = number
            found.append(row)
        return found


def typed_rows(path: Path, columns: Sequence[Column], key: Sequence[str]) -> list[dict[str, object]]:
    """The same as values of Python. Raises what `read_rows` raises."""
    makers = [(c.name, _MAKERS.get(c.type, str)) for c in columns]
    return [
        {name: None if text is None else make(text) for (name, make), text in zip(makers, row, strict=True)}
        for row in read_rows(path, columns, key)
    ]


def _typed(path: Path, number: int, column: Column, text: str) -> str | None:
    if not text:
        return None
    try:
        match _MAKERS.get(column.type):
            case None:
                return _optional(text)
            case make:
                return str(make(text))
    except ValueError as error:
        raise SourceError(f"{path}:{number}: {column.name}: {error}") from None


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text) or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not a number")
    return number


Record = tuple[int, Mapping[str, str]]


def _any(path: Path, text: TextIO) -> tuple[list[str], Iterable[Record]]:
    is_json = text.readline().lstrip().startswith("{")
    text.seek(0)
    return _json_lines(path, text) if is_json else _delimited(path, text)


def _delimited(path: Path, text: TextIO) -> tuple[list[str], Iterable[Record]]:
    header, lines = rows(path, text)
    return header, ((number, dict(zip(header, fields, strict=True))) for number, fields in lines)


def _json_lines(path: Path, text: TextIO) -> tuple[list[str], Iterable[Record]]:
    """Values become the text a CSV file would hold; a field of one line is a column of the file."""
    records = [(number, _record(path, number, line)) for number, line in enumerate(text, 1) if line.strip()]
    return list({name: None for _, record in records for name in record}), records


def _record(path: Path, number: int, line: str) -> dict[str, str]:
    try:
        found = parsed(line, parse_float=str, parse_int=str)
    except ValueError as error:
        raise SourceError(f"{path}:{number}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise SourceError(f"{path}:{number}: a JSON object is wanted, not {line.strip()[:40]}")
    return {name: _as_text(path, number, name, value) for name, value in found.items()}


def _as_text(path: Path, number: int, name: str, value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, str) or name not in COLUMNS:
        return str(value)
    raise SourceError(f"{path}:{number}: {name}: a single value is wanted, not {json.dumps(value)[:40]}")


def _checked(path: Path, columns: tuple[str, ...], records: Iterable[Record]) -> Iterator[tuple[object, ...]]:
    seen: dict[str, int] = {}
    for number, record in records:
        yield tuple(_value(path, number, column, record.get(column, "").strip()) for column in columns)
        product_id = record["product_id"].strip()
        if product_id in seen:
            raise SourceError(f"{path}:{number}: product_id: {product_id!r} is on line {seen[product_id]} already")
        seen[product_id] = number


def _value(path: Path, number: int, column: str, text: str) -> object:
    try:
        return _CHECKS[column](text)
    except ValueError as error:
        raise SourceError(f"{path}:{number}: {column}: {error}") from None


def _required(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return _optional(text) or ""


def _optional(text: str) -> str | None:
    if "\0" in text:
        raise ValueError("holds a NUL character, which PostgreSQL cannot store")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds a half of a character (a lone surrogate), which no text can")
    return text or None


_MAKERS: Mapping[str, Callable[[str], object]] = {
    "BIGINT": _whole,
    "INT": _whole,
    "SMALLINT": _whole,
    "DOUBLE PRECISION": _number,
    "DOUBLE": _number,
    "REAL": _number,
    "BOOLEAN": lambda text: _truth(text),
}
"""Type → what makes a value of text, raising `ValueError`; any other type takes text as it is."""


def _price(text: str) -> Decimal | None:
    if not text:
        return None
    try:
        price = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a price; a number such as 19.90 is wanted") from None
    if not price.is_finite() or not 0 <= price < _PRICE_LIMIT:
        raise ValueError(f"{text!r} is not a price from 0 to {_PRICE_LIMIT:,}")
    return price.quantize(_CENT, ROUND_HALF_UP)


def _truth(text: str) -> bool:
    try:
        return _TRUTH[text.lower()]
    except KeyError:
        raise ValueError(f"{text!r} is neither true nor false") from None


_CHECKS: dict[str, Callable[[str], object]] = {
    "product_id": _required,
    "name": _required,
    "category": _optional,
    "price": _price,
    "description": _optional,
    "image_url": _optional,
    "in_stock": _truth,
}
