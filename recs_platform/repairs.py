"""When a repair is due: for what has been ill at two looks, and once an incident, so that one that does not help is not
tried for ever."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import astuple, dataclass, replace

LOOKS = 2  # what is gone at the second look has mended itself


@dataclass(frozen=True)
class Incident:
    """From the first look at which a thing was ill until it is well again. Times are seconds since 1970, 0 for never."""

    since: float
    looks: int = 1
    repaired_at: float = 0.0


Incidents = Mapping[str, Incident]


def follow(
    before: Incidents, ill: Collection[str], now: float, unseen: Collection[str] = (), may_repair: bool = True
) -> tuple[dict[str, Incident], list[str]]:
    """The incidents after a look that found these ill, and which of them are to be repaired now: noted as done.

    Of the `unseen` nothing is known, so that their incidents go on. Where one may not, none is repaired.
    """
    after = {
        name: replace(before[name], looks=before[name].looks + 1) if name in before else Incident(now) for name in ill
    } | {name: before[name] for name in unseen if name in before}
    due = [n for n in ill if may_repair and after[n].looks >= LOOKS and not after[n].repaired_at]
    return after | {name: replace(after[name], repaired_at=now) for name in due}, due


def dump(incidents: Incidents) -> str:
    return json.dumps({name: astuple(incident) for name, incident in incidents.items()})


def load(text: str | None) -> dict[str, Incident]:
    """What `dump` gave; none where it cannot be read."""
    try:
        return {name: Incident(*values) for name, values in json.loads(text or "{}").items()}
    except (ValueError, TypeError, AttributeError):
        return {}
