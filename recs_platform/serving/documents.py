"""Whether a document in Redis says what the row it was made of does, in whichever engine's words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, tzinfo
from datetime import time as clock_time
from decimal import Decimal
from math import isfinite
from typing import Any

Row = Mapping[str, Any]
"""The columns of a sink's row, without its key."""


def is_document_of(row: Row, text: str) -> bool:
    """Whether a document says what the row does; what else it holds does not matter."""
    try:
        document = json.loads(text)
    except ValueError:
        return False
    return isinstance(document, dict) and all(_same(value, document.get(name)) for name, value in row.items())


def _same(value: Any, found: Any) -> bool:
    """As JSON: a time as text, a number of any kind, null for what is none, JSON that an engine hands over as text.

    A RisingWave writes NUMERIC as text, DATE as days, TIMESTAMP and TIME as milliseconds. Of what each engine writes in a way
    of its own, such as bytes, nothing is said.
    """
    if isinstance(value, datetime):
        exact = value if isinstance(found, str) else value.replace(microsecond=value.microsecond // 1000 * 1000)
        return _instant(found, value.tzinfo) == exact
    if isinstance(value, date):
        return found in (value.isoformat(), value.toordinal())
    if isinstance(value, clock_time):
        passed = datetime.combine(date.min, value) - datetime.min
        return found in (value.isoformat(), passed // timedelta(milliseconds=1))
    if isinstance(value, float | Decimal):
        return found is None if not isfinite(value) else _number(found) == float(value)
    if value is not None and not isinstance(value, str | int | list | dict):
        return True
    if isinstance(value, str) and not isinstance(found, str):
        return bool(_from_json(value) == found)
    if isinstance(value, list):
        return isinstance(found, list) and len(value) == len(found) and all(map(_same, value, found))
    if isinstance(value, dict):
        return isinstance(found, dict) and all(_same(part, found.get(name)) for name, part in value.items())
    return bool(value == found)


def _instant(found: Any, zone: tzinfo | None) -> datetime | None:
    """None where it is no time, or one in a zone where none is wanted."""
    try:
        if isinstance(found, int):
            return datetime.fromtimestamp(found / 1000, UTC).replace(tzinfo=zone)
        moment = datetime.fromisoformat(found)
    except (ValueError, TypeError, OverflowError, OSError):
        return None
    return moment if (moment.tzinfo is None) == (zone is None) else None


def _number(found: Any) -> float | None:
    try:
        return None if isinstance(found, bool) else float(found)
    except (ValueError, TypeError):
        return None


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
