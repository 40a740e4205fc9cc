"""`recs simulate`, `recs replay`, `recs catalog`: what brings the shop to life."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from recs_platform import catalog as catalogs
from recs_platform import replay as replays
from recs_platform import simulator
from recs_platform.catalog_carrier import carry_all, check_carried
from recs_platform.commands.reporting import reported
from recs_platform.settings import Settings

_ABOVE_0 = click.FloatRange(min=0, min_open=True)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--rate", type=_ABOVE_0, help="Events a second. [default: $RECS_SIMULATE_RATE]")
@click.option("--users", type=click.IntRange(1), help="How many shoppers, ids from 1. [default: $RECS_SIMULATE_USERS]")
@click.option("--seed", default=simulator.DEFAULT_SEED, show_default=True, help="The same seed, the same shoppers.")
@click.option("--seconds", type=_ABOVE_0, help="Stop by itself after that long.")
@click.option("--day-rhythm", is_flag=True, help="Busy evenings, quiet mornings (UTC); the rate is the mean.")
@click.option(
    "--changes", default=simulator.CHANGES_PER_MINUTE, show_default=True, type=click.FloatRange(min=0),
    help="Catalog changes a minute: new and dropped products, prices, sold out, back. Only made-up products change.",
)  # fmt: skip
def simulate(
    rate: float | None, users: int | None, seed: int, seconds: float | None, day_rhythm: bool, changes: float
) -> None:
    """Send the events of simulated shoppers, until ctrl-C.

    They browse, search, fill carts and buy, in sessions, each with tastes of their own, among the products of
    the catalog. The rate is held: what could not be sent in time is sent as soon as it can be. Runs beside the
    simulated shoppers of `recs up`, if there are any.
    """
    console = Console(stderr=True)
    with reported(), _until_stopped(seconds) as stop, console.status("Shoppers arrive …") as status:
        settings = Settings.load()
        rate = settings.simulate_rate if rate is None else rate
        users = settings.simulate_users if users is None else users
        if not rate > 0:
            raise click.UsageError("RECS_SIMULATE_RATE is 0: name a rate with --rate")
        done = simulator.simulate(
            settings, rate, users, seed, stop, lambda report: status.update(_status(report)),
            rhythm=day_rhythm, changes_per_minute=changes,
        )  # fmt: skip
    click.echo(f"{_summary(done)} in {done.seconds:.1f} s.")
    if done.problem:
        raise click.ClickException(done.problem)


@click.command()
@click.argument("file", type=_FILE)
@click.option(
    "--speed", default="max", show_default=True, metavar="FACTOR|max",
    help="1 is as it happened, 60 a minute in a second, max as fast as the broker takes it.",
)  # fmt: skip
@click.option("--session", help="Column of the session or user. [default: the first that looks like one]")
@click.option("--item", help="Column of the item or product. [default: the first that looks like one]")
@click.option("--time", "time_column", help="Column of the time: Unix seconds or ms, or ISO 8601. [default: likewise]")
@click.option("--add-missing-items", is_flag=True, help="Add items to product_catalog that it lacks.")
@click.option("--category", default="replayed", show_default=True, help="The category of added items.")
def replay(
    file: Path, speed: str, session: str | None, item: str | None, time_column: str | None,
    add_missing_items: bool, category: str,
) -> None:  # fmt: skip
    """Send a real click log as page views, its times shifted so that it ends now.

    FILE is CSV or TSV, plain or gzip, with a line that names the columns. Whole-number session ids become user ids;
    others become a number that stays the same. Items that are not in the catalog are counted in the trends but never
    recommended: --add-missing-items adds them.
    """
    columns = replays.Columns(session, item, time_column)
    with reported(), _bar() as bar:
        task = bar.add_task(file.name, total=None)
        done = replays.replay(
            file, Settings.load(), _speed(speed), columns, add_missing_items=add_missing_items, category=category,
            progress=lambda sent, total: bar.update(task, completed=sent, total=total),
        )  # fmt: skip
    added = f", {done.items_added:,} items added to the catalog" if add_missing_items else ""
    click.echo(
        f"{done.events:,} page views of {done.sessions:,} sessions and {done.items:,} items{added}: "
        f"{done.seconds:.1f} s, {done.events / max(done.seconds, 1e-9):,.0f} a second, "
        f"event times {done.first:%Y-%m-%d %H:%M:%S} to {done.last:%Y-%m-%d %H:%M:%S} UTC."
    )


@click.group()
def catalog() -> None:
    """The products of the shop."""


@catalog.command()
@click.argument("file", type=_FILE)
def load(file: Path) -> None:
    """Add and update products in PostgreSQL from FILE: CSV, TSV or JSON Lines, plain or gzip.

    It names its columns: product_id and name, and any of category, price, description, image_url and in_stock. Columns
    it does not have keep their values. All of the file is loaded or, when a line is wrong, nothing.
    """
    with reported():
        settings = Settings.load()
        check_carried(settings)
        done = catalogs.load_catalog(file, settings.require("postgres_url"))
        sent = carry_all(settings)
    click.echo(f"{done.added:,} products added, {done.changed:,} changed, {done.unchanged:,} as they were.")
    if sent:
        click.echo(f"{sent:,} rows of PostgreSQL sent to the topics the catalog comes from.")
    if done.ignored_columns:
        click.echo(f"Columns left out, the catalog has none of that name: {', '.join(done.ignored_columns)}.", err=True)


@contextmanager
def _until_stopped(seconds: float | None) -> Iterator[simulator.Stop]:
    """A function that turns true on ctrl-C, SIGTERM or after so many seconds."""
    stopped = threading.Event()
    deadline = None if seconds is None else time.monotonic() + seconds
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stopped.set()) for number in numbers]
    try:
        yield lambda: stopped.is_set() or (deadline is not None and time.monotonic() >= deadline)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if 1 <= speed < float("inf"):
        return speed
    raise click.BadParameter(f"{text!r} is neither max nor a number from 1 on", param_hint="--speed")


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _status(report: simulator.Progress) -> str:
    trouble = f" [red]{escape(report.problem)}[/red]" if report.problem else ""
    behind = f", {report.behind:.1f} s behind" if report.behind > 1 else ""
    return f"{_summary(report)}, {report.sent / max(report.seconds, 1e-9):,.0f} a second{behind}{trouble}"


def _summary(report: simulator.Progress) -> str:
    failed = f", {report.failed:,} not delivered" if report.failed else ""
    return f"{report.sent:,} events, {report.changes:,} catalog changes{failed}"
