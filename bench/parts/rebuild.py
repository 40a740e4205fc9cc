"""How long it takes to build each view anew from the events that are kept."""

from __future__ import annotations

import time
from typing import Any

from bench import plots
from bench.costs import cpu_seconds
from bench.report import Figure, Section, keep_samples
from bench.session import Preloaded, Session
from bench.stats import Spread
from recs_platform.pipeline import Kind, Pipeline

AIM = 5.0  # seconds
QUICK_VIEWS = 4


def measure(session: Session) -> Section:
    """`recs apply --rebuild` of one view after the other, the rounds interleaved."""
    stack, samples = session.shared(), list[dict[str, Any]]()
    views = _views(stack)[: QUICK_VIEWS if session.options.quick else None]
    for repeat in range(session.options.repeats):
        for view in views:
            session.say(f"rebuilding {view}, repeat {repeat + 1} of {session.options.repeats}")
            samples.append({"view": view, "repeat": repeat, **_rebuild(session, stack, view)})
    keep_samples(session.options, "rebuild", samples)
    return _section(session, views, samples)


def _views(stack: Preloaded) -> list[str]:
    """The materialized ones, in the order they read each other."""
    pipeline = Pipeline.of(stack.engine.settings)
    return [relation.name for relation in pipeline if relation.kind is Kind.VIEW and relation.is_materialized]


def _rebuild(session: Session, stack: Preloaded, view: str) -> dict[str, float]:
    before, began = cpu_seconds(stack.engine.processes()), time.monotonic()
    client = stack.engine.client
    assert client is not None, "the engine has been started"
    client.apply(rebuild=[view])
    took = time.monotonic() - began
    cpu = cpu_seconds(stack.engine.processes()) - before
    session.await_tail(stack.engine.redis_url, session.send_backlog(stack, 50))
    whole = time.monotonic() - began
    return {"seconds": took, "until_redis": whole, "cpu": cpu}


class Spreads:
    """Of each figure of each view over the repeats."""

    def __init__(self, samples: list[dict[str, Any]]) -> None:
        self._samples = samples

    def of(self, view: str, figure: str) -> Spread:
        return Spread.of([sample[figure] for sample in self._samples if sample["view"] == view])


def _section(session: Session, views: list[str], samples: list[dict[str, Any]]) -> Section:
    section, spreads = Section("rebuild", "Rebuilding a view"), Spreads(samples)
    views = sorted(views, key=lambda view: -spreads.of(view, "seconds").median)
    slow = [view for view in views if spreads.of(view, "seconds").median >= AIM]
    worst = spreads.of(views[0], "seconds").text(2)
    section.add_claim(
        f"each of {len(views)} views built anew over {session.options.events:,} events, the slowest ({views[0]})",
        f"< {AIM:.0f} s each",
        f"{worst} s" + (f"; {len(slow)} views are slower than that" if slow else ""),
        not slow,
    )
    section.notes.append(
        "Wall time of `recs apply --rebuild VIEW`; events that come in meanwhile are shown in Redis after that."
    )
    columns = ["view", "wall", "engine's CPU", "until Redis shows newer events"]
    section.add_table("Seconds", columns, [_row(view, spreads) for view in views])
    _figure(section, session, views, spreads)
    return section


def _row(view: str, spreads: Spreads) -> list[str]:
    seconds = [spreads.of(view, figure).text(2) for figure in ("seconds", "cpu", "until_redis")]
    return [f"`{view}`", *seconds]


def _figure(section: Section, session: Session, views: list[str], spreads: Spreads) -> None:
    values = [spreads.of(view, "seconds") for view in views]
    plots.bars(
        session.options.out / "rebuild.svg",
        "A view built anew",
        views,
        {"wall time": [(s.median, s.low, s.high) for s in values]},
        "seconds",
        AIM,
    )
    section.figures.append(Figure("rebuild.svg", "Seconds to build each view anew"))
