"""Draws the pictures of the docs from the real thing, into the directory this file is in.

python docs/images/draw.py lineage    # lineage.svg, from sql/
python docs/images/draw.py screen     # screen.svg, from the stack that is running
"""

from __future__ import annotations

import io
import itertools
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import mean

from rich.console import Console

from recs_platform.engines.local.client import LocalEngine
from recs_platform.lineage import Key, Lineage, Node
from recs_platform.pipeline import Kind, Pipeline
from recs_platform.serving.store import RecommendationStore
from recs_platform.settings import Settings
from recs_platform.stack.demo import Clicker
from recs_platform.stack.screen import Seen, render

HERE = Path(__file__).parent

# -- the lineage ------------------------------------------------------------------------------------------------------

COLOURS = {
    "topic": ("#fde8d7", "#c2621b"),
    "catalog": ("#dcebf7", "#2f6d9e"),
    "source": ("#f3f0e6", "#8a7a45"),
    "table": ("#e4eef0", "#4a7f86"),
    "view": ("#ffffff", "#7a7f87"),
    "sink": ("#fbe1e1", "#b23b3b"),
}
LETTER, HIGH, BETWEEN, LEVEL, MARGIN = 7.0, 34, 16, 74, 14  # pixels
SWEEPS, RELAXATIONS = 24, 60


@dataclass(eq=False)
class Box:
    """A box, or where a line that is longer than one level passes (`node` is None)."""

    level: int
    node: Node | None = None
    above: list[Box] = field(default_factory=list)
    below: list[Box] = field(default_factory=list)
    x: float = 0.0

    @property
    def width(self) -> float:
        return LETTER * len(_label(self.node)) + 18 if self.node else 10

    @property
    def y(self) -> float:
        return MARGIN + 48 + self.level * LEVEL


def lineage_svg(pipeline: Pipeline) -> str:
    """The graph from topics and catalog tables at the top to Redis at the bottom."""
    levels = _levels(_boxes(Lineage.of(pipeline)))
    _untangle(levels)
    _place(levels)
    return _drawn(levels)


def _label(node: Node) -> str:
    if node.relation is not None and node.relation.kind is Kind.SINK:
        return f"recs:{node.relation.redis_name}"
    return ".".join(node.key[-1:])


def _boxes(lineage: Lineage) -> list[Box]:
    """All boxes, each one level below the lowest it reads; sources as near to their readers as can be, sinks last."""
    boxes: dict[Key, Box] = {}
    for node in lineage:
        above = [boxes[key] for key in node.upstreams]
        boxes[node.key] = Box(1 + max((box.level for box in above), default=-1), node)
    bottom = max(box.level for box in boxes.values())
    for key in reversed(boxes):
        node, box = lineage.nodes[key], boxes[key]
        readers = [boxes[n.key].level for n in lineage if key in n.upstreams]
        if node.relation is None or not node.upstreams:
            box.level = min(readers) - 1
        elif node.relation.kind is Kind.SINK:
            box.level = bottom
    found = list(boxes.values())
    for key, box in boxes.items():
        for upstream in lineage.nodes[key].upstreams:
            found += _connect(boxes[upstream], box)
    return found


def _connect(upper: Box, lower: Box) -> list[Box]:
    """Joins two boxes, over a passing point on each level between them."""
    passing = [Box(level) for level in range(upper.level + 1, lower.level)]
    way = [upper, *passing, lower]
    for one, next_one in itertools.pairwise(way):
        one.below.append(next_one)
        next_one.above.append(one)
    return passing


def _levels(boxes: list[Box]) -> list[list[Box]]:
    return [[box for box in boxes if box.level == level] for level in range(1 + max(box.level for box in boxes))]


def _untangle(levels: list[list[Box]]) -> None:
    """Sorts each level by where its neighbours stand, to and fro; keeps the order with the fewest crossings."""
    best, fewest = [list(level) for level in levels], _crossings(levels)
    for sweep in range(SWEEPS):
        order = levels if sweep % 2 == 0 else levels[::-1]
        for level in order:
            place = {box: n / max(1, len(each)) for each in levels for n, box in enumerate(each)}
            level.sort(key=lambda box: mean([place[b] for b in _looks_at(box, sweep)] or [place[box]]))
        if (found := _crossings(levels)) < fewest:
            best, fewest = [list(level) for level in levels], found
    levels[:] = best


def _looks_at(box: Box, sweep: int) -> list[Box]:
    return box.above if sweep % 2 == 0 else box.below


def _crossings(levels: list[list[Box]]) -> int:
    total = 0
    for upper, lower in itertools.pairwise(levels):
        place = {box: n for n, box in enumerate(lower)}
        ends = [place[b] for box in upper for b in sorted(box.below, key=place.__getitem__)]
        total += sum(a > b for n, a in enumerate(ends) for b in ends[n + 1 :])
    return total


def _place(levels: list[list[Box]]) -> None:
    """Moves each box towards its neighbours, in order and without overlap."""
    for level in levels:
        _spread(level, [0.0] * len(level))
    for _ in range(RELAXATIONS):
        for level in levels:
            _spread(level, [mean([b.x for b in (*box.above, *box.below)] or [box.x]) for box in level])
    left = min(box.x - box.width / 2 for level in levels for box in level)
    for level in levels:
        for box in level:
            box.x += MARGIN - left


def _spread(level: list[Box], wanted: list[float]) -> None:
    """The mean of pushing boxes apart from the left and from the right."""
    gaps = [(a.width + b.width) / 2 + BETWEEN for a, b in itertools.pairwise(level)]
    right, left = list(wanted), list(wanted)
    for n, gap in enumerate(gaps):
        right[n + 1] = max(right[n + 1], right[n] + gap)
    for n, gap in reversed(list(enumerate(gaps))):
        left[n] = min(left[n], left[n + 1] - gap)
    for box, a, b in zip(level, right, left, strict=True):
        box.x = (a + b) / 2


def _drawn(levels: list[list[Box]]) -> str:
    boxes = [box for level in levels for box in level]
    width = max(box.x + box.width / 2 for box in boxes) + MARGIN
    height = boxes[-1].y + HIGH / 2 + MARGIN
    style = "text{font:12px ui-monospace,Menlo,Consolas,monospace;text-anchor:middle;fill:#22262b}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="Lineage from topics and catalog tables to Redis"><style>{style}</style>'
        f'<rect width="100%" height="100%" rx="8" fill="#fafbfc"/>'
    )
    return "\n".join([head, *_lines(boxes), *_rectangles(boxes), *_legend(width), "</svg>\n"])


def _lines(boxes: list[Box]) -> Iterator[str]:
    """A smooth line from each box to each that reads it: upright at both ends, slanting where it only passes."""
    for box in boxes:
        for lower in box.below if box.node else ():
            way = [box, lower]
            while way[-1].node is None:
                way += way[-1].below
            path = " ".join(_curves(way))
            yield f'<path d="{path}" fill="none" stroke="#b4bac2" stroke-width="1.4"/>'


def _curves(way: list[Box]) -> Iterator[str]:
    points = [(box.x, box.y) for box in way]
    points[0] = (points[0][0], points[0][1] + HIGH / 2)
    points[-1] = (points[-1][0], points[-1][1] - HIGH / 2)
    middle = [((c[0] - a[0]) / 2, (c[1] - a[1]) / 2) for a, c in zip(points, points[2:], strict=False)]
    slants = [(0.0, LEVEL * 0.9), *middle, (0.0, LEVEL * 0.9)]
    yield f"M{points[0][0]:.0f} {points[0][1]:.0f}"
    for (x, y), (u, v), (dx, dy), (du, dv) in zip(points, points[1:], slants, slants[1:], strict=False):
        yield f"C{x + dx / 3:.0f} {y + dy / 3:.0f} {u - du / 3:.0f} {v - dv / 3:.0f} {u:.0f} {v:.0f}"


def _rectangles(boxes: list[Box]) -> Iterator[str]:
    for box in boxes:
        if box.node is None:
            continue
        fill, stroke = COLOURS[box.node.kind]
        yield (
            f'<g><title>{escape(box.node.description)}</title><rect x="{box.x - box.width / 2:.0f}" '
            f'y="{box.y - HIGH / 2:.0f}" width="{box.width:.0f}" height="{HIGH}" rx="6" fill="{fill}" '
            f'stroke="{stroke}"/><text x="{box.x:.0f}" y="{box.y + 4:.0f}">{escape(_label(box.node))}</text></g>'
        )


def _legend(width: float) -> Iterator[str]:
    names = ["Kafka topic", "PostgreSQL table", "source", "table", "view", "Redis"]
    x = width - MARGIN
    for name, (fill, stroke) in reversed(list(zip(names, COLOURS.values(), strict=True))):
        x -= LETTER * len(name)
        yield f'<text x="{x + LETTER * len(name) / 2:.0f}" y="{MARGIN + 8}">{name}</text>'
        x -= 18
        yield f'<rect x="{x:.0f}" y="{MARGIN - 2}" width="12" height="12" rx="3" fill="{fill}" stroke="{stroke}"/>'
        x -= 14


# -- the live screen --------------------------------------------------------------------------------------------------


def screen_svg(settings: Settings, clicks: int = 8) -> str:
    """What `recs up` shows, after some clicks. Raises `RecsError` when the stack does not run."""
    seen, clicker = Seen(), Clicker(settings)
    with LocalEngine(settings) as engine, RecommendationStore(settings.require("redis_url")) as store:
        while len(seen.waits) < clicks:
            if (click := clicker.click(threading.Event())) is not None:
                seen.click = click
                seen.waits.append(click.milliseconds)
            seen.status = engine.status()
            seen.rates.append(float(seen.status["events_per_second"]))
            time.sleep(1)
        found = store.get_trending_products()
        products = {p.product_id: p for p in store.get_products([row.product_id for row in found])}
        seen.trending = [(row, products.get(row.product_id)) for row in found]
    clicker.close()
    console = Console(record=True, width=118, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(render(settings, seen))
    return console.export_svg(title="recs up")


def main(arguments: list[str]) -> int:
    settings = Settings.load()
    match arguments:
        case ["lineage"]:
            (HERE / "lineage.svg").write_text(lineage_svg(Pipeline.load(settings.sql_dir)), encoding="utf-8")
        case ["screen"]:
            (HERE / "screen.svg").write_text(screen_svg(settings), encoding="utf-8")
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
