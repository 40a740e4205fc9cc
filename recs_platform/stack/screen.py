"""The live screen of `recs up`: what comes in, how fresh it is, what trends, and one shopper clicking."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from recs_platform.engines.local.client import LocalEngine
from recs_platform.engines.status import Status
from recs_platform.errors import RecsError
from recs_platform.serving.keys import Product, TrendingProduct
from recs_platform.serving.store import RecommendationStore
from recs_platform.settings import Settings
from recs_platform.stack.demo import Click, Clicker

BETWEEN_LOOKS = 1.0  # seconds
BETWEEN_CLICKS = 4.0
BARS = " ▁▂▃▄▅▆▇█"


@dataclass
class Seen:
    """What the screen shows; each watcher fills in its part."""

    status: Status = field(default_factory=Status)
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=60))
    trending: list[tuple[TrendingProduct, Product | None]] = field(default_factory=list)
    click: Click | None = None
    waits: deque[float] = field(default_factory=lambda: deque(maxlen=200))
    problems: dict[str, str] = field(default_factory=dict)


def run(settings: Settings, stop: threading.Event) -> None:
    """Shows the running stack until `stop` is set. Parts that are away are named, and shown again when they are back."""
    seen = Seen()
    watchers = [
        threading.Thread(target=_watch, args=(name, look, pause, seen, stop), daemon=True)
        for name, look, pause in _looks(settings, seen, stop)
    ]
    for watcher in watchers:
        watcher.start()
    with Live(console=Console(), screen=True, refresh_per_second=4, get_renderable=lambda: render(settings, seen)):
        stop.wait()
    for watcher in watchers:
        watcher.join(5)


def _looks(settings: Settings, seen: Seen, stop: threading.Event) -> list[tuple[str, Callable[[], None], float]]:
    engine, store, clicker = (
        LocalEngine(settings, timeout=5),
        RecommendationStore(settings.require_reader()),
        Clicker(settings),
    )

    def figures() -> None:
        seen.status = engine.status()
        seen.rates.append(float(seen.status["events_per_second"]))

    def trending() -> None:
        found = store.get_trending_products()
        products = {p.product_id: p for p in store.get_products([row.product_id for row in found])}
        seen.trending = [(row, products.get(row.product_id)) for row in found]

    def click() -> None:
        made = clicker.click(stop)
        if made is not None:
            seen.click = made
            seen.waits.append(made.milliseconds)

    return [
        ("engine", figures, BETWEEN_LOOKS),
        ("trending", trending, BETWEEN_LOOKS),
        ("shopper", click, BETWEEN_CLICKS),
    ]


def _watch(name: str, look: Callable[[], None], pause: float, seen: Seen, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            look()
            seen.problems.pop(name, None)
        except RecsError as error:
            seen.problems[name] = str(error)
        stop.wait(pause)


def render(settings: Settings, seen: Seen) -> RenderableType:
    """The whole screen."""
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(ratio=4)
    table.add_column(ratio=5)
    table.add_row(_trending(seen), _shopper(seen))
    return Group(_figures(settings, seen), table, _problems(seen), _hints(settings))


def _figures(settings: Settings, seen: Seen) -> Panel:
    status = seen.status
    facts = [
        _fact("events a second", f"{status.get('events_per_second', 0):,.0f}", _sparkline(seen.rates)),
        _fact("sent → in Redis, p50", _milliseconds(status.get("freshness_p50_ms"))),
        _fact("p99", _milliseconds(status.get("freshness_p99_ms"))),
        _fact("waiting", f"{status.get('lag', 0):,}", "events"),
        _fact("events so far", f"{_rows(status, 'user_activity'):,}"),
        _fact("dead letters", f"{_rows(status, 'dead_letters'):,}"),
    ]
    return Panel(
        Columns(facts, expand=True, equal=True), title="[bold]recs-platform[/bold]", subtitle=settings.dagster_url
    )


def _fact(name: str, value: str, more: str = "") -> Text:
    return Text.assemble((name + "\n", "dim"), (value, "bold cyan"), (f" {more}", "dim") if more else "")


def _trending(seen: Seen) -> Panel:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(justify="right", style="dim")
    table.add_column(ratio=1, no_wrap=True)
    table.add_column(justify="right", style="cyan")
    for place, (row, product) in enumerate(seen.trending, start=1):
        table.add_row(str(place), product.name if product else row.product_id, f"{row.view_count:,}")
    return Panel(table, title="Trending this hour", subtitle="views", height=14)


def _shopper(seen: Seen) -> Panel:
    click = seen.click
    if click is None:
        return Panel(Text("waiting for the first click …", style="dim"), title="One shopper", height=14)
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(ratio=1, no_wrap=True)
    table.add_column(ratio=1, no_wrap=True)
    table.add_row(Text("before", style="dim"), Text("after", style="dim"))
    new = {p.product_id for p in click.after} - {p.product_id for p in click.before}
    for before, after in zip(_padded(click.before), _padded(click.after), strict=False):
        table.add_row(
            _item(before, "red" if before and before == click.product else ""),
            _item(after, "green" if after and after.product_id in new else ""),
        )
    waits = sorted(seen.waits)
    head = Text.assemble(
        f"shopper {click.user_id} looks at ",
        (click.product.name, "bold"),
        f" ({click.product.category})\nnew list after ",
        (f"{click.milliseconds:,.0f} ms", "bold green"),
        (f", median of {len(waits)}: {waits[len(waits) // 2]:,.0f} ms", "dim"),
    )
    return Panel(Group(head, table), title="One shopper clicking", height=14)


def _padded(products: Iterable[Product]) -> list[Product | None]:
    return [*products, *[None] * 8][:8]


def _item(product: Product | None, style: str) -> Text:
    return Text(product.name, style=style) if product else Text("")


def _problems(seen: Seen) -> RenderableType:
    found = {**seen.problems, **seen.status.get("problems", {})}
    return Group(
        *(Text(f"{name}: {problem}", style="red", no_wrap=True, overflow="ellipsis") for name, problem in found.items())
    )


def _hints(settings: Settings) -> Text:
    return Text.assemble(
        ("In a second terminal: ", "dim"),
        "recs recommend 123",
        ("  ·  ", "dim"),
        "recs trending",
        ("  ·  ", "dim"),
        "recs status",
        ("  ·  ", "dim"),
        'recs query "FROM trending_products"',
        ("  ·  Dagster: ", "dim"),
        settings.dagster_url,
        ("  ·  ctrl-C leaves", "dim"),
    )


def _rows(status: Status, name: str) -> int:
    return next((r["rows"] or 0 for r in status.get("relations", []) if r["name"] == name), 0)


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f} ms"


def _sparkline(values: Iterable[float]) -> str:
    recent = list(values)[-12:]
    top = max(recent, default=0) or 1
    return "".join(BARS[round(v / top * (len(BARS) - 1))] for v in recent)
