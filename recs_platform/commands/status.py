"""`recs status`: the parts of the stack, and every box of the pipeline, as they are now."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from recs_platform.commands.reporting import reported
from recs_platform.commands.stack import COLOURS
from recs_platform.engines.status import Status
from recs_platform.health import Finding
from recs_platform.health import State as Health
from recs_platform.lineage import label
from recs_platform.monitor import Report, Watch
from recs_platform.settings import LOCAL, RISINGWAVE, Settings
from recs_platform.stack import control
from recs_platform.stack.process import marked
from recs_platform.stack.state import PartState, StackState, load

BROKER_WARNING_BYTES = 1_000_000_000
DISK_BYTES = 50_000_000  # with less the engine is about to stop
BETWEEN_LOOKS = 2.0  # seconds of --watch
HEALTH_COLOURS = {Health.BEHIND: "yellow", Health.STALLED: "red", Health.BROKEN: "red"}


@dataclass(frozen=True)
class Seen:
    """`stack` is None where none is running here, `report` where nothing could be looked at."""

    state_dir: Path
    stack: StackState | None
    report: Report | None
    problem: str = ""
    free: int | None = None  # bytes on the disk of the state directory, None where that is not there

    @property
    def healthy(self) -> bool:
        parts_are = self.stack.healthy if self.stack else not self.problem
        boxes_are = self.report is None or self.report.state.is_well
        problems = self.report.engine.get("problems") if self.report else None
        has_room = self.free is None or self.free >= DISK_BYTES
        watched = not (self.report and self.report.late_watchers)
        files_are = not (self.report and self.report.files_problem)
        return parts_are and boxes_are and files_are and watched and has_room and not problems


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--watch", "keep", is_flag=True, help="Keep looking, until ctrl-C.")
@click.pass_context
def status(context: click.Context, as_json: bool, keep: bool) -> None:
    """How every part and every box of the pipeline is. Exit code 0 when all is well, 1 otherwise.

    A box is fresh, idle (nothing is sent), behind, stalled or broken; one that merely waits for another is not listed.
    """
    watch = Watch()
    with reported():
        seen = look(watch)
        if keep and not as_json:
            _keep_looking(watch, seen)
            return
    if as_json:
        click.echo(json.dumps(_as_json(seen), indent=2))
    elif seen.problem:
        click.echo(seen.problem)
    else:
        Console().print(_shown(seen))
    context.exit(0 if seen.healthy else 1)


def look(watch: Watch) -> Seen:
    """Takes one look. Raises `SettingsError` and `PipelineError`."""
    settings = Settings.load()
    stack = control.read_stack(settings.state_dir)
    if stack is None and not _is_elsewhere(settings):
        return Seen(settings.state_dir, None, None, _why_not_running(settings.state_dir))
    has_engine = stack is None or settings.engine != LOCAL or any(part.name == "engine" for part in stack.parts)
    if not has_engine:  # `recs up --only …`: nothing is to be fresh
        return Seen(settings.state_dir, stack, None)
    return Seen(settings.state_dir, stack, watch.report(), free=_free(settings.state_dir))


def _free(state_dir: Path) -> int | None:
    return shutil.disk_usage(state_dir).free if state_dir.is_dir() else None


def _is_elsewhere(settings: Settings) -> bool:
    """Whether the engine is the user's own, so that no stack has to run here."""
    return bool(settings.engine == RISINGWAVE and settings.risingwave_url)


def _why_not_running(state_dir: Path) -> str:
    if orphans := marked(state_dir):
        left = ", ".join(orphans)
        return f"The supervisor is gone, but {left} still run: `recs up` takes them over, `recs down` stops them."
    state = load(state_dir)
    last = f" The last start failed: {state.problem}" if state and state.problem else ""
    return f"No stack is running in {state_dir}: `recs up` starts one.{last}"


def _keep_looking(watch: Watch, seen: Seen) -> None:
    with Live(_shown(seen), console=Console(), screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(BETWEEN_LOOKS)
                live.update(_shown(look(watch)), refresh=True)
        except KeyboardInterrupt:
            return


def _as_json(seen: Seen) -> dict[str, Any]:
    found: dict[str, Any] = {"healthy": seen.healthy}
    if seen.problem:
        found["problem"] = seen.problem
    if seen.stack:
        parts = [{**asdict(part), "memory_bytes": control.memory(part)} for part in seen.stack.parts]
        found = {**asdict(seen.stack), **found, "parts": parts}
    if seen.report:
        found["engine"] = dict(seen.report.engine)
        found["watchers"] = [asdict(watcher) for watcher in seen.report.watchers]
        found["files_problem"] = seen.report.files_problem
        found["boxes"] = [_box(finding) for finding in seen.report.findings]
    return found


def _box(finding: Finding) -> dict[str, Any]:
    named = {"key": label(finding.key), "blame": label(finding.blame)}
    return {**asdict(finding), **named, "evidence": dict(finding.evidence)}


# -- as a person reads it ---------------------------------------------------------------------------------------------


def _shown(seen: Seen) -> RenderableType:
    if seen.problem:
        return Text(seen.problem)
    lines: list[RenderableType] = []
    if seen.stack:
        lines += [_parts(seen.stack), *_troubles(seen.stack)]
    if seen.report:
        lines += [
            *_engine(seen.report.engine),
            *_canaries(seen.report),
            *_letters(seen.report),
            *_gaps(seen.report),
            *_watchers(seen.report),
            *_files(seen.report),
            *_boxes(seen.report),
        ]
    if seen.free is not None and seen.free < DISK_BYTES:
        words = (
            f"disk: {seen.free / 1e6:,.0f} MB are free where the state lies: make room, the engine cannot write without"
        )
        lines.append(Text(words, "red"))
    return Group(*lines, Text(f"state and logs: {seen.state_dir}"))


def _parts(stack: StackState) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))  # 80 columns hold it
    for heading in ("part", "state", "address", "pid", "since", "restarts", "memory"):
        table.add_column(heading, overflow="fold")
    for part in stack.parts:
        colour, used = COLOURS.get(part.state, "yellow"), control.memory(part)
        table.add_row(
            part.name,
            f"[{colour}]{part.state}[/]",
            escape(_address(part.url)),
            "yours" if part.yours else str(part.pid or ""),
            _since(part),
            str(part.restarts),
            f"{used / 1e6:,.0f} MB" if used else "",
        )
    return table


def _since(part: PartState) -> str:
    return _ago((datetime.now(UTC) - datetime.fromisoformat(part.since)).total_seconds())


def _troubles(stack: StackState) -> Iterator[Text]:
    for part in stack.parts:
        used = control.memory(part) if part.name == "broker" else None
        if used and used > BROKER_WARNING_BYTES:
            yield Text("The broker keeps every message in memory; `recs down` and `recs up` empty it.", "yellow")
        if part.problem:
            yield Text(f"{part.name}: {part.problem}" + (f" (log: {part.log})" if part.log else ""))


def _address(url: str) -> str:
    """Where a part listens; of a web page all that a browser needs."""
    return url if url.startswith("http") else url.rpartition("://")[2].rpartition("@")[2].partition("?")[0]


def _engine(engine: Status) -> Iterator[Text]:
    facts = {
        "events/s": engine.get("events_per_second"),
        "lag": engine.get("lag"),
        "freshness p50 ms": engine.get("freshness_p50_ms"),
        "p99 ms": engine.get("freshness_p99_ms"),
    }
    known = [f"{name} {value:,.0f}" for name, value in facts.items() if isinstance(value, int | float)]
    if known:
        yield Text("engine: " + ", ".join(known))
    for part, problem in (engine.get("problems") or {}).items():
        yield Text(f"engine: {part}: {problem}")


def _canaries(report: Report) -> Iterator[Text]:
    took = {label(r.key): r.numbers["canary_seconds"] for r in report.readings if "canary_seconds" in r.numbers}
    if took:
        words = ", ".join(f"{sink.removesuffix('_sink')} {1000 * seconds:,.0f} ms" for sink, seconds in took.items())
        yield Text(f"canaries, from being sent to Redis: {words}")


def _letters(report: Report) -> Iterator[Text]:
    """Of topics on which something came that cannot be used."""
    shares = {label(r.key): r.numbers for r in report.readings if r.numbers.get("dead_letters")}
    if shares:
        told = ", ".join(
            f"{n['dead_letter_share']:.1%} of {topic} ({n['dead_letters']:,})" for topic, n in shares.items()
        )
        yield Text(f"dead letters in the last five minutes: {told}: `recs dead-letters` says why", "yellow")


def _gaps(report: Report) -> Iterator[Text]:
    for reading in report.readings:
        if reading.numbers.get("messages_lost"):  # a topic that began anew when all of it was read is no news
            yield Text(f"{label(reading.key)}: {reading.state['gap']}", "yellow")


def _watchers(report: Report) -> Iterator[Text]:
    late = report.late_watchers
    if report.watchers and not late:
        yield Text(f"watchers: {len(report.watchers)} sensors and daemons of Dagster are at work")
    for watcher in late:
        seen = _ago(report.at - watcher.seen_at) + " ago" if watcher.seen_at else "never"
        words = watcher.problem or f"was last seen {seen}: look at dagster-daemon's log"
        yield Text(f"watchers: {watcher.name} {words}", "red")


def _files(report: Report) -> Iterator[Text]:
    if report.files_problem:
        words = f"{report.files_problem}: nothing is deployed until it can be read, and what is goes on"
        yield Text(f"files: {words}", "red")


def _boxes(report: Report) -> Iterator[RenderableType]:
    yield Text(f"boxes: {report.counts}")
    for finding in report.findings:
        is_awaited = finding.state is Health.UNKNOWN and finding.next and finding.blame == finding.key
        if finding.state is Health.REBUILDING or is_awaited:
            yield Text(f"{label(finding.key)}: {finding.words}" + (f"; {finding.next}" if finding.next else ""), "dim")
    if not report.causes:
        return
    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading in ("box", "state", "since", "what, and what next"):
        table.add_column(heading, overflow="fold")
    alike: dict[tuple[str, str], list[Finding]] = {}
    for cause in report.causes:
        alike.setdefault((cause.state, cause.words), []).append(cause)
    for cause, *others in alike.values():
        words = escape(cause.words) + (f"\n[dim]→ {escape(cause.next)}[/]" if cause.next else "")
        colour = HEALTH_COLOURS.get(cause.state, "default")
        since = _ago(report.at - min(found.since for found in (cause, *others)))
        boxes = ", ".join(label(found.blame) for found in (cause, *others))
        table.add_row(escape(boxes), f"[{colour}]{cause.state}[/]", since, words)
    yield table


def _ago(since: float) -> str:
    minutes, seconds = divmod(max(int(since), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {seconds}s" if minutes else f"{seconds}s"
