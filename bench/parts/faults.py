"""How soon faults are reported and mended, and what it costs to look all the time."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from math import nan
from pathlib import Path
from random import Random
from typing import Any

from bench import plots
from bench.costs import bytes_on_disk, cpu_of, since
from bench.machine import measured_cores, on_cores
from bench.parts.restart import RECS, UP_SECONDS
from bench.report import Figure, Section, keep_samples
from bench.session import Session
from bench.stack import remove
from bench.stats import Spread, number
from recs_platform.stack import control
from recs_platform.stack.dagster import DAEMON, WEBSERVER
from recs_platform.stack.parts import PARTS
from recs_platform.stack.process import SUPERVISOR, marked
from recs_platform_tests.soak import FAULTS, Outcome, carried_out, check_the_end, opened

SEEN_AIM = 60.0  # seconds
RATE = 200  # events a second during faults
QUICK = ("Redis flushed", "poison")
QUICK_PARTS = tuple(part for part in PARTS if part not in (WEBSERVER, DAEMON))
SETTLING = 60.0  # seconds after the start that are no measure of what watching costs
HOUR = 3600.0


def measure(session: Session) -> Section:
    """Every fault of `make soak` on a stack of its own; then stacks at rest but for a little traffic, watched and not."""
    o = session.options
    names = QUICK if o.quick else tuple(FAULTS)
    outcomes = list[Outcome]()
    with session.own_directory("faults") as home, on_cores(measured_cores()), opened(home / "state", RATE) as floor:
        for repeat in range(o.repeats):
            for name in Random(o.seed + repeat).sample(names, len(names)):
                session.say(f"{name}, repeat {repeat + 1} of {o.repeats}")
                outcomes.append(carried_out(floor, name, rng=Random(o.seed)))
        check_the_end(floor)
        asked = floor.pages, len(floor.failures)
    costs = [_watched(session, name, parts) for name, parts in _variants(o.quick).items()]
    return _section(session, outcomes, asked, costs)


# -- what watching costs ----------------------------------------------------------------------------------------------


def _variants(quick: bool) -> Mapping[str, tuple[str, ...]]:
    nobody = {"nobody looks": tuple(part for part in QUICK_PARTS if part != "api")}
    return nobody if quick else {**nobody, "Dagster looks": PARTS}


def _watched(session: Session, name: str, parts: tuple[str, ...]) -> dict[str, Any]:
    """CPU of each part as a share of a core, and how Dagster's records grow in an hour."""
    o = session.options
    with session.own_directory("watched") as home, _up(home / "state", parts) as state_dir:
        session.say(f"{name}, for {o.hold:.0f} s")
        time.sleep(0.0 if o.quick else SETTLING)
        before, records, size, began = _cpu(state_dir), *_records(state_dir), time.monotonic()
        time.sleep(o.hold)
        seconds = time.monotonic() - began
        cpu = since(before, _cpu(state_dir))
        more, grown = (now - then for now, then in zip(_records(state_dir), (records, size), strict=True))
    return {
        "name": name,
        "cpu": {part: used / seconds for part, used in cpu.items()},
        "records": more / seconds * HOUR,
        "bytes": grown / seconds * HOUR,
    }


@contextmanager
def _up(state_dir: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    only = [word for part in parts for word in ("--only", part)]
    given = {"RECS_STATE_DIR": str(state_dir), "RECS_DAGSTER_PORT": "0", "RECS_API_PORT": "0"}
    try:
        with on_cores(measured_cores()):
            command = [*RECS, "up", "--detach", *only]
            subprocess.run(
                command, env={**os.environ, **given}, stdout=subprocess.DEVNULL, timeout=UP_SECONDS, check=True
            )
        yield state_dir
    finally:
        control.stop_stack(state_dir)
        remove(state_dir)


def _cpu(state_dir: Path) -> dict[str, float]:
    """All parts are children of the supervisor, which is counted without them."""
    parts = marked(state_dir)
    own = [process.cpu_times() for process in parts.pop(SUPERVISOR, [])]
    return {**cpu_of(parts), SUPERVISOR: sum(times.user + times.system for times in own)}


def _records(state_dir: Path) -> tuple[int, int]:
    """Of Dagster's event log: how many, and its bytes."""
    count = 0
    for path in (state_dir / "dagster").rglob("index.db"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as log:
            count += log.execute("SELECT count(*) FROM event_logs").fetchone()[0]
    return count, bytes_on_disk(state_dir / "dagster")


# -- the section ------------------------------------------------------------------------------------------------------


def _section(session: Session, outcomes: list[Outcome], asked: tuple[int, int], costs: list[dict[str, Any]]) -> Section:
    section = Section("faults", "Faults, and watching for them")
    keep_samples(session.options, "faults", [asdict(outcome) for outcome in outcomes])
    section.notes.append(
        f"Each fault is done to a whole stack under {RATE} events/s, while pages are asked fifty times a second. Reported: until a look "
        "at everything (as `recs status` makes it, one after the other) names a trouble; a dash: it was over before any did. Mended: "
        "from the fault's end until nothing is wrong and an event and a catalog change sent then have reached Redis. After all of them "
        "every key in Redis was held against its row, and what is served against a count in plain Python: where one differs, there is no "
        "figure."
    )
    seen = [outcome.seen for outcome in outcomes if outcome.seen is not None]
    if seen:
        slowest = max(seen)
        section.add_claim(
            "the slowest of all faults to be reported", f"< {SEEN_AIM:.0f} s", f"{slowest:.1f} s", slowest < SEEN_AIM
        )
    pages, failed = asked
    section.add_claim(f"of {number(pages)} pages asked, not answered", "0", number(failed), failed == 0)
    found = {name: [o for o in outcomes if o.fault == name] for name in dict.fromkeys(o.fault for o in outcomes)}
    section.add_table("Seconds", ["fault", "reported", "mended"], [_row(name, of) for name, of in found.items()])
    _costs(section, costs)
    _figure(section, session, found)
    return section


def _row(name: str, outcomes: list[Outcome]) -> list[str]:
    seen = [outcome.seen for outcome in outcomes if outcome.seen is not None]
    return [name, Spread.of(seen).text(1) if seen else "–", Spread.of([o.mended for o in outcomes]).text(1)]


def _costs(section: Section, costs: list[dict[str, Any]]) -> None:
    parts = list(dict.fromkeys(part for cost in costs for part in cost["cpu"]))
    rows = [[part, *(f"{cost['cpu'][part]:.1%}" if part in cost["cpu"] else "–" for cost in costs)] for part in parts]
    rows.append(["all", *(f"{sum(cost['cpu'].values()):.1%}" for cost in costs)])
    section.add_table("CPU at 50 events/s, of one core", ["part", *(cost["name"] for cost in costs)], rows)
    for cost in costs:
        if "Dagster" in cost["name"]:
            grown = f"{number(round(cost['records']))} records, {cost['bytes'] / 1e6:.1f} MB"
            section.add_claim("Dagster's records grow in an hour by", "", grown, met=None)


def _figure(section: Section, session: Session, found: Mapping[str, list[Outcome]]) -> None:
    spreads = {
        "reported": [Spread.of([o.seen for o in of if o.seen is not None] or [nan]) for of in found.values()],
        "mended": [Spread.of([o.mended for o in of]) for of in found.values()],
    }
    plots.bars(
        session.options.out / "faults.svg",
        "Faults under load",
        list(found),
        {what: [(s.median, s.low, s.high) for s in values] for what, values in spreads.items()},
        "seconds",
    )
    section.figures.append(
        Figure("faults.svg", "Seconds until a fault is reported, and from its end until it is mended")
    )
