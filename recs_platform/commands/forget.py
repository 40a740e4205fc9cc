"""`recs forget`: one shopper out of every store, with a report that shows it."""

from __future__ import annotations

import json

import click
from rich import box
from rich.console import Console
from rich.table import Table

from recs_platform.commands.reporting import reported
from recs_platform.forget import FILES, KAFKA, Report
from recs_platform.forget import forget as forgotten
from recs_platform.settings import Settings


@click.command()
@click.argument("user_id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def forget(context: click.Context, user_id: str, yes: bool, as_json: bool) -> None:
    """Take one shopper out of every store, for good, and refuse what comes of them later.

    The log, the views and the dead letters of the engine, the catalog's tables in PostgreSQL, and Redis; each is counted
    before and after. Messages leave Kafka with the topic's retention. Exit code 1 where anything else is left, such as a line of a
    catalog's file.
    """
    if not yes:
        click.confirm(f"Forget shopper {user_id} everywhere? There is no way back", abort=True)
    with reported():
        report = forgotten(Settings.load(), user_id, (lambda _: None) if as_json else click.echo)
    if as_json:
        click.echo(json.dumps(_as_json(report), indent=2))
    else:
        _print(report)
    context.exit(1 if report.left else 0)


def _as_json(report: Report) -> dict[str, object]:
    rows = [{"store": s, "what": w, "before": n, "after": report.after[s, w]} for (s, w), n in report.before.items()]
    return {"user_id": report.user_id, "is_forgotten": not report.left, "traces": rows}


def _print(report: Report) -> None:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("store", "what"):
        table.add_column(heading)
    for heading in ("before", "after"):
        table.add_column(heading, justify="right")
    for (store, what), count in report.before.items():
        after = report.after[store, what]
        is_left = (store, what) in report.left
        table.add_row(store, what, f"{count:,}", f"[red]{after:,}[/]" if is_left else f"{after:,}")
    console = Console()
    console.print(table)
    if any(count for (store, _), count in report.after.items() if store == KAFKA):
        console.print("The messages in Kafka go with the topics' retention; they are not taken in again.")
    for path in (what for store, what in report.left if store == FILES):
        console.print(f"Take the shopper's line out of {path}: it is only read. It is not taken in again.")
    console.print("Something is left." if report.left else "Nothing else is left.")
