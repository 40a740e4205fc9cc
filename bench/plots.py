"""Plots as SVG: every axis has a label with its unit, every aim is a dashed line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

Series = Mapping[str, Sequence[float]]
Points = Mapping[str, tuple[Sequence[float], Sequence[float]]]

COLOURS = ("#2563a8", "#d1622b", "#3a8f5c", "#8757a5", "#b03a5b", "#6b6b6b", "#b58a1b", "#2a9d9d")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bench",  # the same data give the same file
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "legend.frameon": False,
    "figure.figsize": (7.6, 4.2),
    "figure.constrained_layout.use": True,
}


@contextmanager
def figure(path: Path, title: str, x: str, y: str, panels: int = 1) -> Iterator[list[Axes]]:
    """One panel above the other; the lowest has the x label, the first the y label."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        drawn, grid = plt.subplots(panels, 1, squeeze=False, sharex=True, figsize=(7.6, 3.0 + 1.4 * panels))
        axes = list(grid[:, 0])
        axes[0].set_title(title, loc="left", fontweight="bold", fontsize=11)
        axes[0].set_ylabel(y)
        axes[-1].set_xlabel(x)
        yield axes
        drawn.savefig(path, format="svg", metadata={"Date": None})
        plt.close(drawn)


def distributions(path: Path, title: str, series: Series, x: str, aim: float | None = None) -> None:
    """How many samples were at most so large: logarithmic both ways, so that the slowest hundredth can be read."""
    with figure(path, title, x, "share that took longer") as (axes,):
        for name, values in series.items():
            ordered = np.sort(np.asarray(values, dtype=float))
            longer = 1.0 - np.arange(len(ordered)) / max(1, len(ordered))
            axes.step(np.maximum(ordered, 1e-3), longer, where="post", label=name)
        _logarithmic(axes.xaxis, "x", axes)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(_share))
        axes.yaxis.set_minor_formatter(NullFormatter())
        _aim(axes, aim, vertical=True)
        _legend(axes)


def lines(path: Path, title: str, points: Points, x: str, y: str, aim: float | None = None, log: bool = False) -> None:
    with figure(path, title, x, y) as (axes,):
        for name, (at, values) in points.items():
            axes.plot(at, values, label=name, marker="o" if len(at) < 40 else "", markersize=4)
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        if log:
            _logarithmic(axes.xaxis, "x", axes)
            _logarithmic(axes.yaxis, "y", axes)
        _aim(axes, aim)
        if len(points) > 1 or aim is not None:
            _legend(axes)


def panels(path: Path, title: str, x: str, drawn: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Several quantities over the same x, each in a panel of its own with its label."""
    with figure(path, title, x, "", len(drawn)) as axes:
        for axis, colour, (label, (at, values)) in zip(axes, COLOURS, drawn.items(), strict=False):
            axis.plot(at, values, color=colour, marker=".", markersize=4)
            axis.set_ylabel(label)
            axis.set_ylim(0.0, 1.08 * max(1.0, *values) if len(values) else 1.0)
            axis.yaxis.set_major_formatter(FuncFormatter(_plain))


def bars(
    path: Path,
    title: str,
    labels: Sequence[str],
    groups: Mapping[str, Sequence[tuple[float, float, float]]],
    x: str,
    aim: float | None = None,
) -> None:
    """Horizontal bars: for each label one of each group, its median with a whisker from lowest to highest."""
    height = 1.4 + 0.3 * len(labels) * max(1, len(groups))
    with figure(path, title, x, "") as (axes,):
        axes.figure.set_size_inches(7.6, max(2.6, height))  # type: ignore[union-attr]
        width = 0.8 / len(groups)
        for n, (name, values) in enumerate(groups.items()):
            places = [i + (n - (len(groups) - 1) / 2) * width for i in range(len(labels))]
            middles = [median for median, _, _ in values]
            spread = [[m - low for m, low, _ in values], [high - m for m, _, high in values]]
            drawn = axes.barh(places, middles, width * 0.9, xerr=spread, label=name, error_kw={"elinewidth": 1})
            axes.bar_label(drawn, labels=[_brief(value) for value in middles], padding=4, fontsize=8)
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        _aim(axes, aim, vertical=True)
        if len(groups) > 1 or aim is not None:
            _legend(axes)


def _aim(axes: Axes, aim: float | None, vertical: bool = False) -> None:
    if aim is not None:
        draw = axes.axvline if vertical else axes.axhline
        draw(aim, color="#444444", linestyle="--", linewidth=1, label=f"aim {_brief(aim)}")


def _legend(axes: Axes) -> None:
    """Beside the plot, where it hides nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)


def _logarithmic(axis: Axis, name: str, axes: Axes) -> None:
    """With numbers at 1, 2 and 5, written out."""
    axes.set(**{f"{name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float, _: object = None) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value - round(value)) < 1e-9 else f"{value:.6g}"


def _share(value: float, _: object = None) -> str:
    return f"{value * 100:g} %"


def _brief(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
