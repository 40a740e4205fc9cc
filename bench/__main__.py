"""`python -m bench`: the command line."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console

from bench import parts
from bench.machine import driver_cores, on_cores
from bench.options import Options
from bench.report import REPORT, Section, keep, render
from bench.session import Session
from bench.stack import workspace

FROM_1 = click.IntRange(1)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("wanted", metavar="[PART]...", nargs=-1, type=click.Choice(parts.ORDER))
@click.option("--quick", is_flag=True, help="Only show that everything runs, in little more than a minute.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where results go; .bench by default, .bench/quick if quick.",
)
@click.option("--repeats", type=FROM_1, help="How often each measurement is made.")
@click.option("--seed", type=int, help="Of all traffic.")
@click.option("--events", type=FROM_1, help="How many events lie in the last 24 hours.")
@click.option("--users", type=FROM_1, help="How many shoppers.")
@click.option("--products", type=FROM_1, help="How many products in the catalog.")
@click.option("--categories", type=FROM_1, help="How many categories they are in.")
@click.option("--seconds", type=float, help="How long is measured at one rate.")
@click.option("--hold", type=float, help="Seconds for which the sustained rate is held.")
def main(wanted: tuple[str, ...], quick: bool, **given: Any) -> None:
    """Measure the platform and what one would do without it, all parts or those named.

    Everything is started for it and stopped afterwards. A part that is measured again replaces its section of the
    report alone.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    for name in [name for name in os.environ if name.startswith("RECS_")]:
        del os.environ[name]  # the stack that is measured is the embedded one, with its defaults
    options = Options.of(quick, {**given, "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]])})
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    with workspace() as home, on_cores(driver_cores()):
        failed = measure_all(Session(options, home, console), parts.in_turn(wanted))
    console.print(str(options.out / REPORT), highlight=False)
    if failed:
        raise click.ClickException(f"could not be measured: {', '.join(failed)}")


def measure_all(session: Session, wanted: list[str]) -> list[str]:
    """Measures in turn; each result is kept as soon as it is there. Returns the parts that could not be measured."""
    failed = []
    try:
        for part in wanted:
            if part in parts.ALONE:
                _reporting(session, session.close_shared)
            section = _measured(session, part)
            failed += [part] if section.failed else []
            keep(section, session.options)
            render(session.options.out, parts.ORDER)
    finally:
        session.close()
    return failed


def _measured(session: Session, part: str) -> Section:
    """One that fails says so in the report, and the others go on with a stack of their own."""
    began, minute = time.monotonic(), datetime.now(UTC).minute
    session.console.print(f"[bold]{part}[/]")
    try:
        section = parts.measurement(part)(session)
        section.facts["start_minute"] = minute
    except Exception as error:
        session.console.print_exception()
        _reporting(session, session.driver.replace)
        _reporting(session, session.close_shared)
        return Section.failure(part, error)
    for claim in section.claims:
        session.console.print(f"  {claim.what}: {claim.measured} {claim.verdict}", highlight=False, markup=False)
    session.console.print(f"  [dim]{time.monotonic() - began:.0f} s[/]", highlight=False)
    return section


def _reporting(session: Session, work: Callable[[], None]) -> None:
    """What cannot be stopped is told, and the parts that are left are measured all the same."""
    try:
        work()
    except Exception:
        session.console.print_exception()


def _end(*_: object) -> NoReturn:
    """Asked to end is like ctrl-C: all that was started is stopped on the way out."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
