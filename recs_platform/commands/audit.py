"""`recs audit`: every key of every sink in Redis against the row it stands for."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recs_platform.audit import Audit
from recs_platform.audit import audit as audited
from recs_platform.commands.reporting import reported
from recs_platform.engines import connect
from recs_platform.errors import EngineError, SettingsError
from recs_platform.pipeline import Kind, Pipeline
from recs_platform.settings import Settings

SHOWN = 5  # keys of each kind


@click.command()
@click.argument("sinks", nargs=-1)
@click.option("--repair", is_flag=True, help="Write the sinks anew that are not as their rows are, and look again.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def audit(context: click.Context, sinks: tuple[str, ...], repair: bool, as_json: bool) -> None:
    """Compare every key in Redis with the row it stands for, of all SINKS or those named.

    Missing keys, stale ones (what they hold is not what the row says) and orphaned ones (no row stands for them); what is
    merely on its way does not count. Exit code 1 where something is wrong.
    """
    with reported():
        settings = Settings.load()
        found = _audits(settings, sinks)
        if repair and (ill := [a.sink for a in found if a.can_be_mended]):
            click.echo(f"writing {', '.join(ill)} anew", err=True)
            with connect(settings) as engine:
                _check_nothing_else(engine.plan().creates - set(ill))
                engine.apply(ill)
            found = _audits(settings, sinks)
    if as_json:
        click.echo(json.dumps([{**asdict(a), "problem": a.problem} for a in found], indent=2))
    else:
        _print(found)
    context.exit(1 if any(a.problem for a in found) else 0)


def _check_nothing_else(waiting: Collection[str]) -> None:
    if waiting:
        raise EngineError(
            f"nothing is repaired, for what is deployed is not what sql/ says, and would be as well ({', '.join(sorted(waiting))}): "
            "`recs plan` shows what differs, `recs apply` deploys it"
        )


def _audits(settings: Settings, names: tuple[str, ...]) -> list[Audit]:
    pipeline = Pipeline.of(settings)
    known = [sink.name for sink in pipeline.of_kind(Kind.SINK)]
    if unknown := sorted(set(names) - set(known)):
        raise SettingsError(f"no such sink: {', '.join(unknown)}; there are {', '.join(known)}")
    with connect(settings) as engine:
        return list(audited(engine, pipeline, settings.require("redis_url"), None, names or None))


def _print(found: list[Audit]) -> None:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("sink")
    for heading in ("rows", "missing", "stale", "orphaned"):
        table.add_column(heading, justify="right")
    for a in found:
        counts = (f"[red]{len(k):,}[/]" if k else "0" for k in (a.missing, a.stale, a.orphaned))
        table.add_row(a.sink, f"{a.looked_at:,}", *counts)
    console = Console()
    console.print(table)
    for a in found:
        if a.problem:
            console.print(f"[red]{a.sink}[/]: {escape(a.problem)}", highlight=False)
        for what, wrong in {"missing": a.missing, "stale": a.stale, "orphaned": a.orphaned}.items():
            for key in wrong[:SHOWN]:
                console.print(f"  {what}: {escape(key)}", highlight=False, soft_wrap=True)
