"""`recs plan`, `recs apply`, `recs sql`: from the files of `sql/` to what is deployed."""

from __future__ import annotations

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from recs_platform.commands.reporting import reported
from recs_platform.engines import connect
from recs_platform.pipeline import Pipeline, Relation, render
from recs_platform.plan import Plan, Step
from recs_platform.settings import Settings

REBUILD = click.option(
    "--rebuild", multiple=True, metavar="NAME", help="Build this relation anew although nothing changed."
)


@click.command()
@REBUILD
def plan(rebuild: tuple[str, ...]) -> None:
    """What `recs apply` would do, and why."""
    with reported(), connect() as engine:
        _show(engine.plan(rebuild), "Nothing to do: what is deployed is what sql/ says.")


@click.command()
@REBUILD
def apply(rebuild: tuple[str, ...]) -> None:
    """Make what is deployed what the files of sql/ say.

    Only what changed, and what reads it, is built anew; readers go over when the new version is complete.
    """
    with reported(), connect() as engine, Watched() as watched:
        done = engine.apply(rebuild, watched.tell)
    _show(done, "Nothing to do: what is deployed is what sql/ says.")


@click.command()
def rollback() -> None:
    """Let readers go back to what was live before the last switch, while that is still kept."""
    with reported(), connect() as engine, Watched() as watched:
        done = engine.roll_back(watched.tell)
    _show(done, "")


@click.command()
@click.argument("name", required=False)
@click.option("--secrets", is_flag=True, help="Fill in passwords too; without it they are ***.")
def sql(name: str | None, secrets: bool) -> None:
    """The statements for a RisingWave, in order, settings filled in.

    NAME prints one relation alone. The statements name relations as the files do.
    """
    with reported():
        settings = Settings.load()
        pipeline = Pipeline.load(settings.sql_dir)
        for relation in [pipeline[name]] if name else pipeline:
            click.echo(_filled(relation, settings, secrets).rstrip() + "\n")


class Watched:
    """One bar a step that is under way, on a terminal; nothing in a pipe."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[words]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Watched:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, step: Step, done: float | None, words: str) -> None:
        name = f"{step.action} {step.name}__{step.version}"
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=None, words=words)
        total = None if done is None else 1.0
        self._progress.update(self._tasks[name], total=total, completed=done or 0.0, words=words)


def _filled(relation: Relation, settings: Settings, secrets: bool) -> str:
    variables = settings.sql_variables() | {"version": relation.fingerprint}
    if not secrets:
        variables |= {"postgres_password": "***", "redis_url": settings.shown("redis_url")}
    return render(relation.text, variables)


def _show(plan: Plan, nothing: str) -> None:
    if not plan:
        click.echo(nothing)
        return
    table = Table("", "relation", "version", "because", box=None, header_style="bold")
    for step in plan.steps:
        table.add_row(str(step.action), step.name, step.version, step.reason)
    Console().print(table)
