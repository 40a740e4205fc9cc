"""Where a tick's time goes, view by view."""

from __future__ import annotations

from typing import Any

from bench import plots
from bench.inprocess import InProcess
from bench.machine import measured_cores, on_cores
from bench.report import Figure, Section, keep_samples
from bench.session import Session
from bench.stats import number

A_TICK = 250  # new events
TICKS, SETTLING = 60, 3  # every tenth moves the time
WHOLE = "the whole tick, in two threads"

Sample = dict[str, Any]


def measure(session: Session) -> Section:
    """One database with the whole preload in this process, ticking; no servers."""
    o, samples = session.options, list[Sample]()
    with session.own_directory("ticks") as directory, on_cores(measured_cores()):
        session.say("filling a database")
        engine = InProcess(directory / "engine.duckdb", session.population(), o.events)
        try:
            for n in range(SETTLING + (10 if o.quick else TICKS)):
                took = engine.tick(A_TICK).wall
                if n >= SETTLING:
                    samples += _samples(engine, n, took)
        finally:
            engine.close()
    keep_samples(o, "ticks", samples)
    return _section(session, samples)


def _samples(engine: InProcess, n: int, took: float) -> list[Sample]:
    """Seconds by view, some of them at the same time as others, and of the whole tick."""
    modes = {refresher.relation.name: str(refresher.mode) for refresher in engine.database.refreshers}
    spent = {**engine.last.spent, WHOLE: took}
    return [
        {"tick": n, "moves_time": engine.last.has_moved, "view": view, "mode": modes.get(view, ""), "seconds": seconds}
        for view, seconds in spent.items()
    ]


def _section(session: Session, samples: list[Sample]) -> Section:
    section, views = Section("ticks", "Where a tick's time goes"), {s["view"]: s["mode"] for s in samples}
    cost = {(view, moves): _milliseconds(samples, view, moves) for view in views for moves in (False, True)}
    whole = {moves: cost[WHOLE, moves] for moves in (False, True)}
    section.add_claim(f"a tick of {A_TICK} new events", "", f"{number(whole[False])} ms", None)
    section.add_claim("one that also moves the time, once a second", "", f"{number(whole[True])} ms", None)
    dearest = sorted(views, key=lambda view: -cost[view, False])
    section.add_table(
        f"Milliseconds a tick of {A_TICK} new events, mean of {TICKS}",
        ["view", "how it is refreshed", "a tick", "one that moves the time"],
        [
            [f"`{view}`" if views[view] else view, views[view], *(number(cost[view, m], 1) for m in (False, True))]
            for view in dearest
        ],
    )
    plots.bars(
        session.options.out / "ticks.svg",
        "A tick, view by view",
        dearest,
        {
            name: [(cost[view, moves],) * 3 for view in dearest]
            for name, moves in (("a tick", False), ("one that moves the time", True))
        },
        "milliseconds",
    )
    section.figures.append(Figure("ticks.svg", "Milliseconds of each view in a tick"))
    return section


def _milliseconds(samples: list[Sample], view: str, moves_time: bool) -> float:
    """Of an average tick of that kind; views that did not change in one count with nothing."""
    ticks = {s["tick"] for s in samples if s["moves_time"] == moves_time}
    spent: list[float] = [s["seconds"] for s in samples if s["view"] == view and s["tick"] in ticks]
    return 1000 * sum(spent) / max(1, len(ticks))
