"""`recs plan`, `recs apply`, `recs sql`: from the files of `sql/` to what is deployed."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from recs_platform.changes import Change, changes
from recs_platform.commands.reporting import reported
from recs_platform.engines import connect
from recs_platform.pipeline import Pipeline, Relation, render
from recs_platform.plan import Action, Plan, Step
from recs_platform.settings import Settings

NOTHING = "Nothing to do: what is deployed is what sql/ says."
REBUILD = click.option(
    "--rebuild", multiple=True, metavar="NAME", help="Build this relation anew although nothing changed."
)


@click.command()
@REBUILD
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--check", is_flag=True, help="Exit code 2 when there is something to do, 3 when that breaks a reader.")
def plan(rebuild: tuple[str, ...], as_json: bool, check: bool) -> None:
    """What `recs apply` would do, why, what it costs and what it breaks."""
    with reported(), connect() as engine:
        made = engine.plan(rebuild)
        meaning = changes(made, engine.deployed_pipeline(), Pipeline.load(Settings.load().sql_dir), engine.capabilities)
    if as_json:
        click.echo(
            json.dumps({"steps": [asdict(s) for s in made.steps], "changes": [asdict(c) for c in meaning]}, indent=2)
        )
    else:
        show(made, meaning, Console())
    if check and made:
        raise SystemExit(3 if any(change.breaks for change in meaning) else 2)


@click.command()
@REBUILD
def apply(rebuild: tuple[str, ...]) -> None:
    """Make what is deployed what the files of sql/ say.

    Only what changed, and what reads it, is built anew; readers go over when the new version is complete.
    """
    with reported(), connect() as engine, Watched() as watched:
        done = engine.apply(rebuild, watched.tell)
    _show(done, NOTHING)


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
    """One bar a step that is under way on a terminal; in a pipe, how each ended."""

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
        name = f"{step.action} {step.physical_name}"
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=None, words=words)
        total = None if done is None else 1.0
        self._progress.update(self._tasks[name], total=total, completed=done or 0.0, words=words)


def _filled(relation: Relation, settings: Settings, secrets: bool) -> str:
    variables = settings.sql_variables() | {"version": relation.fingerprint}
    if not secrets:
        variables |= {"postgres_password": "***", "redis_url": settings.shown("redis_url")}
    return render(relation.text, variables)


def show(plan: Plan, meaning: list[Change], console: Console) -> None:
    """A tree: what is built, with all that hangs on it, then what is switched and removed."""
    if not plan:
        console.print(NOTHING)
        return
    counts = {action: len(plan.of(action)) for action in Action}
    title = f"{counts[Action.CREATE]} to build, {counts[Action.SWITCH]} to switch, {counts[Action.DROP]} to remove"
    tree = Tree(Text(title, "bold"))
    for change in meaning:
        _grow(
            tree.add(
                Text.assemble((f"{change.what} ", "bold"), f"{change.name}__{change.version}  ", (change.reason, "dim"))
            ),
            change,
        )
    replaced = [
        step for step in plan.of(Action.DROP) if step.name not in {c.name for c in meaning if c.what == "dropped"}
    ]
    if replaced:
        tree.add(Text("removed afterwards: " + ", ".join(step.physical_name for step in replaced), "dim"))
    console.print(tree)


def _grow(branch: Tree, change: Change) -> None:
    for what in change.breaks:
        branch.add(Text(f"breaks: {what}", "bold red"))
    columns = [*(f"+ {name}" for name in change.added), *(f"- {name}" for name in change.gone), *change.retyped]
    lines = {
        "columns": ", ".join(columns) if change.what == "rebuilt" else "",
        "made from": ", ".join(change.reads),
        "history": "older than the topic reaches is lost" if change.loses_history else "",
        "feeds": ", ".join(change.feeds),
        "Redis": ", ".join(f"{prefix}*" for prefix in change.prefixes),
    }
    for label, text in lines.items():
        if text:
            branch.add(Text.assemble((f"{label}: ", "dim"), text))
    if change.diff:
        branch.add(Syntax(change.diff, "diff", background_color="default"))


def _show(plan: Plan, nothing: str) -> None:
    if not plan:
        click.echo(nothing)
        return
    table = Table("", "relation", "version", "because", box=None, header_style="bold")
    for step in plan.steps:
        table.add_row(str(step.action), step.name, step.version, step.reason)
    Console().print(table)
