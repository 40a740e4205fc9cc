"""The highest rate that is held."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from statistics import mean
from typing import Any

from bench import plots
from bench.costs import since
from bench.driver import drive
from bench.load import Outcome
from bench.probes import Kind
from bench.report import Figure, Section, keep_samples
from bench.session import Preloaded, Session
from bench.stats import number, percentile

P99_MS = 500.0
STEP = 1.4  # each step of the staircase is so many times the one before
HALVINGS = 2  # between the last rate held and the first that was not
LESS, ATTEMPTS = 0.85, 4  # a rate that turns out not to be held is lowered so far, so often
GROWTH_SECONDS = 0.5  # of events: the lag of a held rate ends no further above where it began
BETWEEN_LOOKS = 2.0  # seconds
BIN = 5.0  # seconds of a hold that make a point of the plot


@dataclass
class Try:
    """One rate, tried. `lags` are (seconds since 1970, messages not taken in)."""

    rate: float
    outcome: Outcome
    lags: list[tuple[float, int]]
    cpu: dict[str, float]

    @property
    def p99(self) -> float:
        """Of recommendations, in milliseconds."""
        return 1000 * percentile(self.outcome.latencies(Kind.RECOMMENDATIONS), 99)

    @property
    def growth(self) -> float:
        """By how many seconds' worth of events the lag of the last fifth is above that of the first."""
        lags = [lag for at, lag in self.lags if at >= self.outcome.began] or [0]
        fifth = max(1, len(lags) // 5)
        return (mean(lags[-fifth:]) - mean(lags[:fifth])) / self.rate

    @property
    def held(self) -> bool:
        return self.p99 < P99_MS and self.growth <= GROWTH_SECONDS


def measure(session: Session) -> Section:
    """A staircase in short steps to find the rate, which then is held for minutes."""
    stack = session.shared()
    steps = _climb(session, stack)
    held = [step.rate for step in steps if step.held]
    rate = max(held) if held else min(step.rate for step in steps)
    attempts = ATTEMPTS if held and not session.options.quick else 1  # where no step was held, none is held for longer
    holds: list[Try] = []
    while len(holds) < attempts and not (holds and holds[-1].held):
        holds.append(_try(session, stack, rate * LESS ** len(holds), session.options.hold))
    return _section(session, steps, holds)


def _climb(session: Session, stack: Preloaded) -> list[Try]:
    o, steps = session.options, list[Try]()
    rate = float(o.first_rate)
    while len(steps) < o.steps and (not steps or steps[-1].held):
        steps.append(_try(session, stack, rate, o.step_seconds))
        rate *= STEP
    while len(steps) < o.steps and not any(step.held for step in steps):
        steps.append(_try(session, stack, steps[-1].rate / STEP, o.step_seconds))
    for _ in range(HALVINGS):
        good, bad = [s.rate for s in steps if s.held], [s.rate for s in steps if not s.held]
        if good and bad:
            steps.append(_try(session, stack, math.sqrt(max(good) * min(bad)), o.step_seconds))
    return steps


def _try(session: Session, stack: Preloaded, rate: float, seconds: float) -> Try:
    session.say(f"{rate:,.0f} events/s for {seconds:.0f} s")
    session.renew_broker(stack)
    before, lags = stack.cpu(), list[tuple[float, int]]()
    load = session.load(stack, rate=rate, seconds=seconds)
    session.driver.start(drive, load)
    while session.driver.busy():
        lags.append((time.time(), int(stack.engine.status()["lag"])))
        session.driver.wait(BETWEEN_LOOKS)
    outcome: Outcome = session.driver.result()
    stack.note(outcome)
    cpu = since(before, stack.cpu())
    session.await_tail(stack.engine.redis_url, session.send_backlog(stack, 100))
    return Try(rate, outcome, [(at, lag) for at, lag in lags if at <= outcome.ended], cpu)


def _section(session: Session, steps: list[Try], holds: list[Try]) -> Section:
    section, last = Section("sustained", "Sustained rate"), holds[-1]
    tried = [("step", t) for t in steps] + [("hold", t) for t in holds]
    keep_samples(session.options, "sustained", [row for name, t in tried for row in _samples(name, t)])
    seconds = session.options.hold
    section.add_claim(
        f"highest rate held for {seconds:.0f} s with p99 < {P99_MS:.0f} ms and a lag that does not grow",
        "",
        f"{number(last.rate)} events/s"
        if last.held
        else f"none; at {number(last.rate)} events/s p99 is {number(last.p99)} ms",
        None,
    )
    per_cpu = last.outcome.sent / last.cpu["engine"] if last.cpu["engine"] else math.nan
    section.add_claim("events per CPU second of the engine, at that rate", "", number(per_cpu), None)
    section.notes.append(
        f"Steps of {session.options.step_seconds:.0f} s upwards, then between the last rate held and the first that "
        f"was not; the rate found is held, and lowered by {1 - LESS:.0%} when it turns out not to be. Held means: p99 of "
        f"recommendations below {P99_MS:.0f} ms, and a lag in the last fifth of the time that is at most "
        f"{GROWTH_SECONDS} s worth of events above that of the first. Each begins with an empty broker; the embedded one gets "
        "slower to read with every small batch it holds, which a long hold shows."
    )
    rows = [[*_row(t), "held" if t.held else "not held"] for t in [*steps, *holds]]
    columns = ["events/s", "for", "p50 ms", "p99 ms", "lost", "lag grew by", "engine's CPU a second", "late p99 ms", ""]
    section.add_table("Rates tried, in this order", columns, rows)
    _figures(section, session, steps, last)
    return section


def _row(tried: Try) -> list[str]:
    outcome = tried.outcome
    return [
        number(tried.rate),
        f"{outcome.ended - outcome.began:.0f} s",
        number(1000 * percentile(outcome.latencies(Kind.RECOMMENDATIONS), 50)),
        number(tried.p99),
        number(outcome.lost(Kind.RECOMMENDATIONS)),
        f"{max(0.0, tried.growth):.1f} s",
        f"{tried.cpu['engine'] / outcome.sent * tried.rate:.2f}",
        number(outcome.lateness.p99, 1),
    ]


def _figures(section: Section, session: Session, steps: list[Try], last: Try) -> None:
    climbed = sorted(steps, key=lambda step: step.rate)
    plots.lines(
        session.options.out / "sustained_steps.svg",
        "p99 of recommendations, step by step",
        {"a step": ([s.rate for s in climbed], [s.p99 for s in climbed])},
        "events/s",
        "p99, milliseconds",
        P99_MS,
        log=True,
    )
    began = last.outcome.began
    lags = [(at - began, float(lag)) for at, lag in last.lags if at >= began]
    plots.panels(
        session.options.out / "sustained.svg",
        f"{last.rate:,.0f} events/s",
        "seconds",
        {
            "p99, milliseconds": _over_time(last),
            "lag, events": ([at for at, _ in lags], [lag for _, lag in lags]),
        },
    )
    section.figures.append(Figure("sustained_steps.svg", "p99 by rate"))
    section.figures.append(Figure("sustained.svg", "p99 and lag while the rate is held"))


def _over_time(tried: Try) -> tuple[list[float], list[float]]:
    bins: dict[int, list[float]] = {}
    for sample in tried.outcome.samples:
        if sample.kind == Kind.RECOMMENDATIONS:
            bins.setdefault(int((sample.intended - tried.outcome.began) // BIN), []).append(1000 * sample.latency)
    return [BIN * (n + 0.5) for n in sorted(bins)], [percentile(bins[n], 99) for n in sorted(bins)]


def _samples(name: str, tried: Try) -> list[dict[str, Any]]:
    run = {"run": name, "rate": tried.rate}
    lags = [{**run, "kind": "lag", "intended": at, "messages": lag} for at, lag in tried.lags]
    return [*({**run, **sample._asdict()} for sample in tried.outcome.samples), *lags]
