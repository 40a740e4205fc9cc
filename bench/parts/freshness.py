"""How long after an event its effect can be read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench import plots
from bench.costs import since
from bench.load import Lateness, Outcome
from bench.probes import Kind
from bench.report import Figure, Section, keep_samples
from bench.session import Preloaded, Session
from bench.stats import Spread, number, percentile

AIM_MS, AIM_RATE = 500.0, 1_000
CATALOG_PROBES = 2.0  # price changes a second
STAGES = ("broker", "engine", "sink")


@dataclass
class Run:
    """One rate, measured once."""

    rate: int
    repeat: int
    outcome: Outcome
    cpu: Mapping[str, float]
    status: Mapping[str, Any]


@dataclass
class Runs:
    runs: list[Run] = field(default_factory=list)

    def rates(self) -> list[int]:
        return sorted({run.rate for run in self.runs})

    def of(self, rate: int) -> list[Run]:
        return [run for run in self.runs if run.rate == rate]

    def latencies(self, rate: int, kind: Kind) -> list[float]:
        """Milliseconds, of all repeats."""
        return [1000 * value for run in self.of(rate) for value in run.outcome.latencies(kind)]

    def spread(self, rate: int, kind: Kind, percent: float) -> Spread:
        """Of a percentile over the repeats, in milliseconds."""
        return Spread.of([1000 * percentile(run.outcome.latencies(kind), percent) for run in self.of(rate)])

    def lost(self, rate: int, kind: Kind) -> int:
        return sum(run.outcome.lost(kind) for run in self.of(rate))


def measure(session: Session) -> Section:
    """At each rate, from the event's due time to the document in Redis."""
    stack, runs = session.shared(), Runs()
    for repeat in range(session.options.repeats):
        for rate in session.options.rates:
            session.say(f"freshness at {rate:,} events/s, repeat {repeat + 1} of {session.options.repeats}")
            runs.runs.append(_run(session, stack, rate, repeat))
    section = Section("freshness", "Freshness")
    keep_samples(session.options, "freshness", [row for run in runs.runs for row in _rows(run)])
    _claims(section, runs)
    _tables(section, runs)
    _figures(section, runs, session)
    return section


def _run(session: Session, stack: Preloaded, rate: int, repeat: int) -> Run:
    session.renew_broker(stack)
    before = stack.cpu()
    outcome = session.drive(stack, session.load(stack, rate=rate, catalog_probes=CATALOG_PROBES))
    cpu, status = since(before, stack.cpu()), stack.engine.status(window=time.time() - outcome.began)
    session.await_tail(stack.engine.redis_url, session.send_backlog(stack, 100))  # before its messages are taken away
    return Run(rate, repeat, outcome, cpu, status)


def _claims(section: Section, runs: Runs) -> None:
    rate = AIM_RATE if AIM_RATE in runs.rates() else runs.rates()[-1]
    p99 = runs.spread(rate, Kind.RECOMMENDATIONS, 99)
    section.add_claim(
        f"recommendations, p99 at {rate:,} events/s", f"< {AIM_MS:.0f} ms", f"{p99.text()} ms", p99.median < AIM_MS
    )
    lost = sum(run.outcome.lost(kind) for run in runs.runs for kind in Kind)
    section.add_claim("probes lost, at all rates", "0", number(lost), lost == 0)


def _tables(section: Section, runs: Runs) -> None:
    section.notes.append(
        "From the time an event is due to the time its effect is read from Redis; a catalog change counts from its "
        "commit in PostgreSQL. The followed shoppers are a hundred of those present, with every view of theirs."
    )
    section.add_table(
        "Milliseconds from event to Redis",
        ["events/s", "what", "p50", "p99", "max", "probes", "lost"],
        [_latency_row(runs, rate, kind) for rate in runs.rates() for kind in Kind],
    )
    parts = list(runs.runs[0].cpu)
    section.add_table(
        "CPU seconds a second, and the driver's lateness in milliseconds (part of the latencies above)",
        ["events/s", *parts, "late p50", "late p99", "late max"],
        [[number(rate), *_cpu(runs.of(rate), parts), *_late(runs.of(rate))] for rate in runs.rates()],
    )
    if rows := [row for rate in runs.rates() for row in _stage_rows(runs.of(rate))]:
        section.add_table("By stage, as the engine tells it (ms)", ["events/s", "stage", "p50", "p99"], rows)


def _latency_row(runs: Runs, rate: int, kind: Kind) -> list[str]:
    """The slowest is that of all repeats."""
    figures, took = [runs.spread(rate, kind, percent).text() for percent in (50, 99)], runs.latencies(rate, kind)
    return [
        number(rate),
        kind,
        *figures,
        number(percentile(took, 100)),
        number(len(took)),
        number(runs.lost(rate, kind)),
    ]


def _cpu(runs: list[Run], parts: list[str]) -> list[str]:
    """Over the run with its warm-up and the wait for the last probe, hence by events: seconds a second at this rate."""
    return [Spread.of([run.cpu.get(part, 0.0) / run.outcome.sent * run.rate for run in runs]).text(2) for part in parts]


def _late(runs: list[Run]) -> list[str]:
    late: list[Lateness] = [run.outcome.lateness for run in runs]
    return [Spread.of(v).text(1) for v in ([x.p50 for x in late], [x.p99 for x in late], [x.longest for x in late])]


def _stage_rows(runs: list[Run]) -> list[list[str]]:
    rows = []
    for stage in STAGES:
        figures = [[run.status.get(f"{stage}_p{p}_ms") for run in runs] for p in (50, 99)]
        if all(value is not None for values in figures for value in values):
            rows.append(
                [number(runs[0].rate), stage, *(Spread.of([float(v or 0) for v in f]).text(1) for f in figures)]
            )
    return rows


def _figures(section: Section, runs: Runs, session: Session) -> None:
    out = session.options.out
    plots.distributions(
        out / "freshness.svg",
        "From event to recommendations in Redis",
        {f"{rate:,} events/s": runs.latencies(rate, Kind.RECOMMENDATIONS) for rate in runs.rates()},
        "milliseconds",
        AIM_MS,
    )
    spreads = {kind: [runs.spread(rate, kind, 99) for rate in runs.rates()] for kind in Kind}
    plots.bars(
        out / "freshness_p99.svg",
        "The slowest hundredth, by what is looked at",
        [f"{rate:,} events/s" for rate in runs.rates()],
        {kind: [(s.median, s.low, s.high) for s in found] for kind, found in spreads.items()},
        "p99, milliseconds",
        AIM_MS,
    )
    section.figures.append(Figure("freshness.svg", "How many probes took longer than so many milliseconds, by rate"))
    section.figures.append(Figure("freshness_p99.svg", "p99 of recommendations, trending and catalog changes, by rate"))


def _rows(run: Run) -> list[dict[str, Any]]:
    return [{"rate": run.rate, "repeat": run.repeat, **sample._asdict()} for sample in run.outcome.samples]
