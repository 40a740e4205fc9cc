"""`recs plan`, `recs apply`, `recs sql`: from the files of `sql/` to what is deployed."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any

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
from recs_platform.engines.base import StreamEngine
from recs_platform.errors import EngineError, RecsError
from recs_platform.pipeline import Pipeline, Relation, render
from recs_platform.plan import Action, Plan, Step
from recs_platform.schema import Drift, What, copies, drifts, read_columns
from recs_platform.settings import Settings

PATIENT_SECONDS = 150.0  # the local engine answers between two ticks, and a build is one

NOTHING = "Nothing to do: what is deployed is what sql/ says."
REBUILD = click.option(
    "--rebuild", multiple=True, metavar="NAME", help="Build this relation anew although nothing changed."
)


ONLY = click.option(
    "--only", multiple=True, metavar="NAME", help="Deploy this relation alone, with what must go along; the rest waits."
)


@click.command()
@REBUILD
@ONLY
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--check", is_flag=True, help="Exit code 2 when there is something to do, 3 when that breaks a reader.")
def plan(rebuild: tuple[str, ...], only: tuple[str, ...], as_json: bool, check: bool) -> None:
    """What `recs apply` would do, why, what it costs and what it breaks; and how the catalog differs."""
    with reported(), connect(timeout=PATIENT_SECONDS) as engine:
        found = Findings.of(engine, rebuild, only)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        show(found.plan, found.changes, Console())
        show_catalog(found.drifts, found.unseen, Console())
    if check and (found.plan or found.breaks):
        raise SystemExit(3 if found.breaks else 2)


@click.command()
@REBUILD
@ONLY
@click.option("--dry-run", is_flag=True, help="Show the plan and do nothing: the same as `recs plan`.")
@click.option("--yes", is_flag=True, help="Do it without asking, also when it breaks a reader.")
def apply(rebuild: tuple[str, ...], only: tuple[str, ...], dry_run: bool, yes: bool) -> None:
    """Make what is deployed what the files of sql/ say.

    Only what changed, and what reads it, is built anew; readers go over when the new version is complete. What breaks a
    reader is asked about first.
    """
    with reported(), connect(timeout=PATIENT_SECONDS) as engine:
        if dry_run or not yes:
            found = Findings.of(engine, rebuild, only)
            if dry_run:
                show(found.plan, found.changes, Console())
                return
            _agree(found)
        with Watched() as watched:
            done = engine.apply(rebuild, watched.tell, only)
    _show(done, NOTHING)


def _agree(found: Findings) -> None:
    """Asks about what breaks a reader; where nobody can be asked, the answer is no."""
    broken = [f"{change.name}: {what}" for change in found.changes for what in change.breaks]
    if not broken:
        return
    words = "This breaks what reads it:\n" + "\n".join(f"  {line}" for line in broken)
    if not sys.stdin.isatty():
        raise EngineError(f"{words}\nNothing is done; --yes does it all the same")
    click.confirm(f"{words}\nDo it all the same?", abort=True)


@dataclass(frozen=True)
class Findings:
    """A plan, what it means, and how the catalog differs from what `sql/` reads; `unseen`: why that is not known."""

    plan: Plan
    changes: list[Change]
    drifts: list[Drift]
    unseen: str = ""

    @classmethod
    def of(cls, engine: StreamEngine, rebuild: Iterable[str], only: Collection[str]) -> Findings:
        settings = Settings.load()
        wanted = Pipeline.of(settings)
        made = engine.plan(rebuild, only)
        meaning = changes(made, engine.deployed_pipeline(), wanted, engine.capabilities)
        tables = {copy.catalog_table for copy in copies(wanted)}
        if not tables:
            return cls(made, meaning, [])
        try:
            return cls(made, meaning, drifts(wanted, read_columns(settings.require("postgres_url"), tables)))
        except RecsError as error:
            return cls(made, meaning, [], str(error))

    @property
    def breaks(self) -> bool:
        return any(change.breaks for change in self.changes) or any(drift.breaks for drift in self.drifts)

    def as_json(self) -> dict[str, Any]:
        return {
            "steps": [asdict(step) for step in self.plan.steps],
            "changes": [asdict(change) for change in self.changes],
            "catalog": [{**asdict(drift), "breaks": drift.breaks} for drift in self.drifts],
        }


@click.command()
def rollback() -> None:
    """Let readers go back to what was live before the last switch, while that is still kept."""
    with reported(), connect(timeout=PATIENT_SECONDS) as engine, Watched() as watched:
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
        pipeline = Pipeline.of(settings)
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
    kafka = settings.kafka_options()
    if not secrets:
        variables |= {"postgres_password": "***", "redis_url": settings.shown("redis_url")}
        kafka |= {name: "***" for name in kafka if name.endswith("password")}
    return render(relation.text, variables, kafka)


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


def show_catalog(found: list[Drift], unseen: str, console: Console) -> None:
    """What of the catalog's columns is otherwise; those that are merely not taken up on one line a table."""
    if unseen:
        console.print(Text(f"The catalog was not looked at: {unseen}", "dim"))
    for drift in found:
        if drift.what is not What.ADDED:
            words = f"breaks: {drift}" if drift.breaks else str(drift)
            console.print(Text(words, "bold red" if drift.breaks else ""))
    for table in dict.fromkeys(drift.table for drift in found if drift.what is What.ADDED):
        names = ", ".join(f"{d.column} {d.now}" for d in found if d.table == table and d.what is What.ADDED)
        console.print(Text(f"{table} also has columns that no file takes up: {names}", "dim"))


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
