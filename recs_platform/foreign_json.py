"""JSON that others wrote, who may mean harm."""

from __future__ import annotations

import json
from typing import Any


def parsed(text: str | bytes, **how: Any) -> Any:
    """What `json.loads` makes of it, asked with the same options. Raises `ValueError` also where it is nested too deeply."""
    try:
        return json.loads(text, **how)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
