"""Whether a document in Redis says what the row it was made of does, in whichever engine's words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
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
    """As JSON: a time as text, a number of any kind, null for what is none, JSON that an engine hands over as text."""
    if isinstance(value, datetime):
        return isinstance(found, str) and _instant(found) == value.astimezone(UTC)
    if isinstance(value, float | Decimal):
        return found is None if not isfinite(value) else isinstance(found, int | float) and float(value) == float(found)
    if isinstance(value, str) and not isinstance(found, str):
        return bool(_from_json(value) == found)
    if isinstance(value, list):
        return isinstance(found, list) and len(value) == len(found) and all(map(_same, value, found))
    if isinstance(value, dict):
        return isinstance(found, dict) and all(_same(part, found.get(name)) for name, part in value.items())
    return bool(value == found)


def _instant(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return None


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
