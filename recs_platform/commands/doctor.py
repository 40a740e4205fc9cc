"""`recs doctor`: what is wrong with the surroundings, and the remedy."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recs_platform.commands.reporting import reported
from recs_platform.doctor import Verdict, diagnose
from recs_platform.settings import Settings

MARKS = {
    Verdict.WELL: "[green]✓[/]",
    Verdict.WARNING: "[yellow]![/]",
    Verdict.ILL: "[red]✗[/]",
    Verdict.SKIPPED: "[dim]–[/]",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """What is wrong with settings, servers, versions, ports, disk and clocks, each with its remedy.

    Changes nothing; sends a canary through Kafka and one through PostgreSQL. Exit code 1 where something is ill.
    """
    with reported():
        found = list(diagnose(Settings.load()))
    if as_json:
        click.echo(json.dumps([asdict(diagnosis) for diagnosis in found], indent=2))
    else:
        table = Table(box=None, padding=(0, 1, 0, 0), show_header=False)
        for diagnosis in found:
            remedy = f"\n[dim]→ {escape(diagnosis.remedy)}[/]" if diagnosis.remedy else ""
            table.add_row(MARKS[diagnosis.verdict], diagnosis.thing, escape(diagnosis.words) + remedy)
        Console().print(table)
    context.exit(1 if any(diagnosis.verdict is Verdict.ILL for diagnosis in found) else 0)
