"""How the cost of a tick grows when the shop grows."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from statistics import mean
from typing import Any

from bench import plots
from bench.inprocess import InProcess
from bench.machine import measured_cores, on_cores
from bench.options import Options
from bench.report import Figure, Section, keep_samples
from bench.session import Session
from bench.stats import number, significant, slope
from bench.traffic import Population

A_TICK = 1_000  # new events
TICKS, SETTLING = 20, 2  # two seconds: what is done once a second is in the mean
TIMES = 10
BASE = {"events": 100_000, "users": 10_000, "products": 1_000, "categories": 20}
QUICK_BASE = {"events": 500, "users": 50, "products": 50, "categories": 5}

Sizes = dict[str, int]


def measure(session: Session) -> Section:
    """Databases of all sizes side by side in one process, ticking in turn; no servers."""
    o, samples = session.options, list[dict[str, Any]]()
    with ExitStack() as opened, on_cores(measured_cores()):
        databases = {name: _open(session, opened, name, sizes) for name, sizes in sizes_of(o).items()}
        for n in range(SETTLING + (1 if o.quick else TICKS)):
            session.say(f"tick {n + 1}")
            for name, database in databases.items():
                cost = database.tick(A_TICK)
                if n >= SETTLING:
                    samples.append({"grown": name, "tick": n, **cost._asdict()})
    keep_samples(o, "slope", samples)
    return _section(session, samples)


def sizes_of(options: Options) -> dict[str, Sizes]:
    """The base, each dimension grown tenfold, and shoppers and products grown together."""
    base = QUICK_BASE if options.quick else BASE
    grown = {name: {**base, name: base[name] * TIMES} for name in base}
    both = {**base, "users": base["users"] * TIMES, "products": base["products"] * TIMES}
    return {"base": base, **grown, "users and products": both}


def _open(session: Session, opened: ExitStack, name: str, sizes: Sizes) -> InProcess:
    session.say(f"filling a database ({name})")
    dimensions = {dimension: size for dimension, size in sizes.items() if dimension != "events"}
    population = Population(seed=session.options.seed, **dimensions)
    directory = opened.enter_context(session.own_directory("slope"))
    database = InProcess(directory / "engine.duckdb", population, sizes["events"])
    opened.callback(database.close)
    return database


def _section(session: Session, samples: list[dict[str, Any]]) -> Section:
    section, o = Section("slope", "Growth"), session.options
    costs = {
        name: {what: [s[what] for s in samples if s["grown"] == name] for what in ("cpu", "wall")}
        for name in sizes_of(o)
    }
    slopes = {name: slope(mean(costs[name]["cpu"]), mean(costs["base"]["cpu"])) for name in costs if name != "base"}
    for name, found in slopes.items():
        aim = "≤ 1 (proportional to both would be 2)" if " and " in name else "≤ 1"
        section.add_claim(f"growth of a tick's CPU with ten times the {_words(name)}", aim, f"{found:.2f}", found <= 1)
    _table(section, o, costs, slopes)
    _figure(section, o, costs)
    return section


def _table(
    section: Section, o: Options, costs: Mapping[str, Mapping[str, list[float]]], slopes: Sizes | dict[str, float]
) -> None:
    base = sizes_of(o)["base"]
    section.notes.append(
        f"A tick of {A_TICK:,} new events over a base of {base['events']:,} events, {base['users']:,} shoppers, "
        f"{base['products']:,} products in {base['categories']} categories, then with ten times as many of one of "
        "them. The slope is log10 of the ratio of costs: 0 costs the same, 1 grows in proportion. All databases are in "
        "one process and tick in turn, ten ticks a second; means over the ticks, and the cheapest and dearest of them."
    )
    section.add_table(
        f"Milliseconds per {A_TICK:,} new events",
        ["grown tenfold", "CPU", "wall", "CPU, times the base", "slope"],
        [
            [
                _words(name),
                *(_means([1000 * v for v in found[what]]) for what in ("cpu", "wall")),
                significant(mean(found["cpu"]) / mean(costs["base"]["cpu"])),
                f"{slopes[name]:.2f}" if name in slopes else "",
            ]
            for name, found in costs.items()
        ],
    )


def _figure(section: Section, o: Options, costs: Mapping[str, Mapping[str, list[float]]]) -> None:
    grown = {name: (1000 * mean(costs["base"]["cpu"]), 1000 * mean(found["cpu"])) for name, found in costs.items()}
    start = grown.pop("base")[0]
    lines = {_words(name): ([1.0, float(TIMES)], list(values)) for name, values in grown.items()}
    lines["in proportion (slope 1)"] = ([1.0, float(TIMES)], [start, start * TIMES])
    plots.lines(
        o.out / "slope.svg",
        "A tick when one thing grows tenfold",
        lines,
        "times the base",
        f"CPU milliseconds per {A_TICK:,} events",
        log=True,
    )
    section.figures.append(Figure("slope.svg", "CPU of a tick, at the base and with ten times as many"))


def _means(values: list[float]) -> str:
    return f"{number(mean(values))} ({number(min(values))}..{number(max(values))})"


def _words(name: str) -> str:
    return name.replace("users", "shoppers")
