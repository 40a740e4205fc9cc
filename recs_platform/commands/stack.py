"""`recs up`, `recs down`: the embedded stack, from nothing to healthy and back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from recs_platform.commands.reporting import reported
from recs_platform.errors import RecsError
from recs_platform.settings import LOCAL, RISINGWAVE, Settings
from recs_platform.signals import stopping_on
from recs_platform.stack import control
from recs_platform.stack.parts import PARTS
from recs_platform.stack.state import PartState, StackState, State, load, supervisor_pid

COLOURS: dict[State, str] = {
    State.HEALTHY: "green",
    State.UNHEALTHY: "red",
    State.FAILING: "red",
    State.RESTARTING: "yellow",
}


@click.command()
@click.option("--detach", is_flag=True, help="Come back once all is healthy; `recs down` stops it later.")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Start only this part (may be repeated).")
@click.option("--rate", type=click.FloatRange(min=0), help="Events a second of the simulated shoppers, 0 for none.")
@click.option("--users", type=click.IntRange(1), help="How many simulated shoppers.")
@click.option("--engine", type=click.Choice([LOCAL, RISINGWAVE]), help="The stream engine; `RECS_ENGINE` by default.")
@click.option(
    "--risingwave-url",
    help="Where your RisingWave is; `RECS_RISINGWAVE_URL` by default, which shows a password to nobody.",
)
@click.option("--timeout", default=180.0, show_default=True, help="Seconds to wait for all to be healthy.")
def up(
    detach: bool,
    only: tuple[str, ...],
    rate: float | None,
    users: int | None,
    engine: str | None,
    risingwave_url: str | None,
    timeout: float,
) -> None:
    """Start everything and watch it work; ctrl-C stops everything.

    Starts PostgreSQL, Valkey, a Kafka broker, the engine, simulated shoppers and Dagster on this machine, each part
    watched and started again if it dies. A part whose URL you set (RECS_KAFKA_BOOTSTRAP_SERVERS, RECS_POSTGRES_URL,
    RECS_REDIS_URL) is yours: it is used and not started. When a stack runs already, this one only looks at it.

    With `--engine risingwave` the engine is yours, too: `recs apply` deploys the pipeline there.
    """
    options = {
        "RECS_SIMULATE_RATE": rate,
        "RECS_SIMULATE_USERS": users,
        "RECS_ENGINE": engine,
        "RECS_RISINGWAVE_URL": risingwave_url,
    }
    given = {name: str(value) for name, value in options.items() if value is not None}
    with reported():
        chosen = {"engine": engine, "risingwave_url": risingwave_url}
        wanted = Settings.load(None, **{name: value for name, value in chosen.items() if value})
        state_dir, stop = wanted.state_dir, _stop_on_signals()
        if wanted.engine == RISINGWAVE:
            wanted.require("risingwave_url")
        mine = control.start_stack(state_dir, only, given)
        click.echo(f"{'Starting' if mine else 'Found a stack running'} in {state_dir}")
        stays = not mine
        try:
            _show_coming_up(state_dir, stop, timeout)
            stays = stays or detach
            if not detach:
                _watch(state_dir, stop, given)
        except KeyboardInterrupt:
            pass
        except RecsError:
            stays = stays or detach
            raise
        finally:
            _leave(state_dir, stays)


@click.command()
def down() -> None:
    """Stop everything `recs up` started, and leave no process behind. The data stays."""
    with reported():
        if not _stop(Settings.load().state_dir):
            click.echo("Nothing was running.")


class _ComingUp:
    """Prints a line when a part becomes healthy or gets into trouble, and keeps what is awaited in the last line."""

    def __init__(self, console: Console, status: Status, stop: threading.Event) -> None:
        self._console, self._status, self._stop = console, status, stop
        self._seen: dict[str, State] = {}

    def __call__(self, stack: StackState) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt
        for part in stack.parts:
            if part.state is not self._seen.get(part.name) and part.state in COLOURS:
                self._console.print(_line(part), highlight=False, soft_wrap=True)
            self._seen[part.name] = part.state
        awaited = [f"{p.name} ({p.problem or p.state})" for p in stack.parts if p.state is not State.HEALTHY]
        self._status.update(escape(f"waiting for {', '.join(awaited)}"))


def _show_coming_up(state_dir: Path, stop: threading.Event, timeout: float) -> None:
    console = Console()
    with console.status("starting") as line:
        control.await_healthy(state_dir, _ComingUp(console, line, stop), timeout)


def _watch(state_dir: Path, stop: threading.Event, given: Mapping[str, str]) -> None:
    """The live screen, until `stop`; meanwhile a supervisor that was killed is replaced."""
    settings = Settings.load()
    watcher = threading.Thread(target=_keep_supervised, args=(state_dir, stop, given), daemon=True)
    watcher.start()
    click.echo(f"All healthy. Dagster: {settings.dagster_url or 'not started'}. ctrl-C to leave.")
    if Console().is_terminal and settings.engine_url:
        from recs_platform.stack import screen

        screen.run(settings, stop)
    stop.wait()
    watcher.join()


def _keep_supervised(state_dir: Path, stop: threading.Event, given: Mapping[str, str]) -> None:
    while not stop.wait(0.5):
        if supervisor_pid(state_dir) is None:
            state = load(state_dir)
            if state is None or state.state is State.STOPPED:
                stop.set()  # `recs down` in another terminal
            else:
                with suppress(RecsError):  # it is tried again, and the parts go on meanwhile
                    control.start_stack(state_dir, [part.name for part in state.parts], given)


def _leave(state_dir: Path, stays: bool) -> None:
    if not stays:
        _stop(state_dir)
    elif supervisor_pid(state_dir) is not None:
        click.echo("The stack goes on in the background; `recs down` stops it.")


def _stop(state_dir: Path) -> bool:
    seen = set[str]()

    def show(stack: StackState) -> None:
        for part in stack.parts:
            if part.state in (State.STOPPING, State.STOPPED) and not part.yours and part.name not in seen:
                seen.add(part.name)
                click.echo(f"stopping {part.name}")

    stopped = control.stop_stack(state_dir, show)
    if stopped:
        click.echo("Stopped.")
    return stopped


def _stop_on_signals() -> threading.Event:
    """Set by ctrl-C, by SIGTERM and by the terminal going away; a second ctrl-C does not cut the stopping short."""
    return stopping_on(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _line(part: PartState) -> str:
    restarts = f" (started again {part.restarts} times)" if part.restarts else ""
    mine = "yours" if part.yours else f"pid {part.pid}" if part.pid else ""
    colour = COLOURS.get(part.state, "default")
    return f"[{colour}]{part.state:>10}[/] {part.name:<18} {escape(part.problem or part.url)} [dim]{mine}{restarts}[/]"
