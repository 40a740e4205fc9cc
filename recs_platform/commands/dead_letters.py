"""`recs dead-letters`: what could not be used, and sending it back put right."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC

import click
from rich.console import Console
from rich.text import Text

from recs_platform.commands.reporting import reported
from recs_platform.dead_letters import Choice, Group, groups
from recs_platform.engines import connect
from recs_platform.resend import Fix, resend
from recs_platform.settings import Settings

SAMPLE = 160  # bytes of a payload that are shown

_TOPIC = click.option("--topic", help="Those of this topic alone.")
_REASON = click.option("--reason", help="Those with this reason alone.")


@click.group("dead-letters", invoke_without_command=True)
@_TOPIC
@_REASON
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_context
def dead_letters(context: click.Context, topic: str | None, reason: str | None, as_json: bool) -> None:
    """Messages that could not be used, by reason, with the newest of each."""
    if context.invoked_subcommand:
        if topic or reason or as_json:
            raise click.UsageError(
                f"options stand after the command: recs dead-letters {context.invoked_subcommand} --topic …"
            )
        return
    with reported(), connect() as engine:
        found = groups(engine, Choice(topic, reason))
    if as_json:
        click.echo(
            json.dumps([asdict(group) | {"sample": shown(group.sample)} for group in found], default=str, indent=2)
        )
    elif found:
        _show(found, Console())
    else:
        click.echo("No dead letters.")


@dead_letters.command()
@_TOPIC
@_REASON
@click.option(
    "--fix", metavar="JQ", help="A jq program from each message to what it should have been: '.user_id |= tonumber'."
)
@click.option("--limit", type=click.IntRange(min=1), help="Send no more than so many.")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent.")
def replay(topic: str | None, reason: str | None, fix: str | None, limit: int | None, dry_run: bool) -> None:
    """Send back what would be taken in now, as it is or fixed, each letter once."""
    with reported(), connect() as engine, Console(stderr=True).status("reading the letters …") as status:
        report = resend(
            Settings.load(),
            engine,
            Choice(topic, reason),
            Fix(fix) if fix else None,
            limit,
            dry_run,
            lambda r: status.update(f"{r.looked_at:,} letters looked at, {r.sent:,} sent …"),
        )
    click.echo("\n".join(report.lines(dry_run)))


def shown(payload: bytes | None) -> str:
    """The beginning of a message, fit for a terminal."""
    if payload is None:
        return "(tombstone)"
    text = payload[:SAMPLE].decode(errors="backslashreplace")
    readable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return readable + (" …" if len(payload) > SAMPLE else "")


def _show(found: list[Group], console: Console) -> None:
    """Two lines a group, whatever the terminal's width: what, how many and when; and the newest message."""
    for group in found:
        first, last = (at.astimezone(UTC) for at in (group.first_at, group.last_at))
        head = Text.assemble((f"{group.count:>9,}  ", "bold"), f"{group.label}: {group.reason}  ")
        times = dict.fromkeys(f"{at:%Y-%m-%d %H:%M}" for at in (first, last))
        head.append(f"{' to '.join(times)} UTC", "dim")
        console.print(head, soft_wrap=True, highlight=False)
        sample = Text(" " * 11 + shown(group.sample), "dim")
        console.print(sample, no_wrap=True, overflow="ellipsis", highlight=False)
