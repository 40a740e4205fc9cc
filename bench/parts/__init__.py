"""What is measured, one module each: `measure(session)` returns the part's section of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from bench.report import Section
from bench.session import Session

ORDER = (
    "freshness", "sustained", "catchup", "rebuild", "switch", "slope", "writes", "memory", "serving", "restart", "faults",
    "ticks", "baselines",
)  # fmt: skip
"""As they stand in the report."""

SHARING = ("memory", "rebuild", "freshness", "writes", "serving", "sustained")
"""These use one stack with its preload, in this order: what it costs at rest before what makes it grow."""

ALONE = ("baselines", "catchup", "faults", "restart", "slope", "switch", "ticks")
"""These have the machine to themselves."""


def in_turn(wanted: Mapping[str, object] | tuple[str, ...]) -> list[str]:
    """The parts wanted (all, when none is named), in the order of measuring."""
    return [part for part in (*SHARING, *ALONE) if part in wanted or not wanted]


def measurement(part: str) -> Callable[[Session], Section]:
    """The part's `measure`; imported only when wanted."""
    found: Callable[[Session], Section] = import_module(f"bench.parts.{part}").measure
    return found
