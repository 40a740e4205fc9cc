"""What a run is asked to do: sizes, times and where the results go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

SLOWEST = 5_000
"""Events a second at which a backlog is still waited for, however large it is."""


@dataclass(frozen=True)
class Options:
    """Sizes are counts, times are seconds, rates are events a second."""

    out: Path = Path(".bench")
    quick: bool = False
    seed: int = 1
    repeats: int = 3
    events: int = 1_000_000
    users: int = 100_000
    products: int = 10_000
    categories: int = 50
    seconds: float = 20.0  # measured in one run at one rate
    warmup: float = 5.0  # sent before that, and left out
    hold: float = 300.0
    rates: tuple[int, ...] = (100, 1_000, 5_000)
    rate: int = 1_000  # where a part measures at one rate only
    first_rate: int = 1_000  # the lowest step of the staircase
    steps: int = 12
    step_seconds: float = 10.0
    backlog: int = 100_000
    lost_after: float = 60.0
    patience: float = 900.0  # for a backlog to be worked off; more of it for a large one
    command: str = "python -m bench"

    @classmethod
    def of(cls, quick: bool, given: Mapping[str, Any]) -> Self:
        """The defaults of a full or a quick run, and over them whatever is given and not None."""
        base = cls(**QUICK) if quick else cls()
        found = replace(base, **{name: value for name, value in given.items() if value is not None})
        return replace(found, patience=max(found.patience, found.events / SLOWEST))


QUICK: dict[str, Any] = {
    "out": Path(".bench/quick"),  # what an hour has measured stays
    "quick": True,
    "repeats": 1,
    "events": 4_000,
    "users": 400,
    "products": 200,
    "categories": 10,
    "seconds": 1.5,
    "warmup": 0.5,
    "hold": 2.0,
    "rates": (50, 200),
    "rate": 200,
    "first_rate": 200,
    "steps": 1,
    "step_seconds": 1.5,
    "backlog": 2_000,
    "lost_after": 20.0,
    "patience": 60.0,
}
