"""Percentiles, medians and spreads, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np


@dataclass(frozen=True)
class Spread:
    """What repeats of the same measurement gave: their median, the lowest and the highest."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value; NaNs (nothing could be measured) are left out as long as there are others."""
        known = [value for value in values if not math.isnan(value)] or [math.nan]
        return cls(median(known), min(known), max(known), len(values))

    def text(self, digits: int = 0) -> str:
        """`412 (398..430)`; one value stands alone."""
        if math.isnan(self.median):
            return "not measured"
        if self.repeats == 1 or self.low == self.high:
            return number(self.median, digits)
        return f"{number(self.median, digits)} ({number(self.low, digits)}..{number(self.high, digits)})"


def percentile(values: Sequence[float], percent: float) -> float:
    """NaN of nothing. Lost probes are in `values` with the time after which they were given up on, never left out."""
    return float(np.percentile(np.asarray(values, dtype=np.float64), percent)) if len(values) else math.nan


def number(value: float, digits: int = 0) -> str:
    if math.isnan(value):
        return "not measured"
    return f"{value:,.{digits}f}"


def significant(value: float) -> str:
    """Three significant digits, whatever the size."""
    if math.isnan(value) or value == 0:
        return number(value)
    return number(value, max(0, 2 - math.floor(math.log10(abs(value)))))


def slope(cost: float, base: float) -> float:
    """The exponent by which a cost grew while what it depends on grew tenfold: 1 is proportional, 0 not at all."""
    return math.log10(cost / base) if cost > 0 and base > 0 else math.nan
