"""When a repair is due: for what has been ill at two looks, and once an incident, so that one that does not help is not
tried for ever. One that came to nothing, because something was away, has not been made: it is tried again, a few times."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import astuple, dataclass, replace

LOOKS = 2  # what is gone at the second look has mended itself
TRIES, BETWEEN_TRIES = 3, 300.0  # seconds


@dataclass(frozen=True)
class Incident:
    """From the first look at which a thing was ill until it is well again. Times are seconds since 1970, 0 for never. `run`: the
    key of the last of its `tries`."""

    since: float
    looks: int = 1
    repaired_at: float = 0.0
    tries: int = 0
    run: str = ""


Incidents = Mapping[str, Incident]


def follow(
    before: Incidents,
    ill: Collection[str],
    now: float,
    unseen: Collection[str] = (),
    may_repair: bool = True,
    failed: Collection[str] = (),
    looks: int = LOOKS,
) -> tuple[dict[str, Incident], list[str]]:
    """The incidents after a look that found these ill, and which of them are to be repaired now, by one run: noted as done.

    Of the `unseen` nothing is known, so that their incidents go on. Where one may not, none is repaired. `failed`: those whose
    last try came to nothing. `looks`: at how many it must have been ill, where it may mend itself.
    """
    after = {
        name: replace(before[name], looks=before[name].looks + 1) if name in before else Incident(now) for name in ill
    } | {name: before[name] for name in unseen if name in before}
    due = [n for n in ill if may_repair and _is_due(after[n], now, n in failed, looks)]
    run = "; ".join(_in_words(name, after[name]) for name in due)
    done = {n: replace(after[n], repaired_at=now, tries=after[n].tries + 1, run=run) for n in due}
    return after | done, due


def _is_due(incident: Incident, now: float, has_failed: bool, looks: int) -> bool:
    if not incident.repaired_at:
        return incident.looks >= looks
    return has_failed and incident.tries < TRIES and now - incident.repaired_at >= BETWEEN_TRIES


def _in_words(name: str, incident: Incident) -> str:
    return f"{name} since {incident.since:.0f}" + (f", again ({incident.tries})" if incident.tries else "")


def dump(incidents: Incidents) -> str:
    return json.dumps({name: astuple(incident) for name, incident in incidents.items()})


def load(text: str | None) -> dict[str, Incident]:
    """What `dump` gave; none where it cannot be read."""
    try:
        return {name: Incident(*values) for name, values in json.loads(text or "{}").items()}
    except (ValueError, TypeError, AttributeError):
        return {}
