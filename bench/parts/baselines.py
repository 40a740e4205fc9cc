"""What one would do without the platform, on the same traffic, in turn with it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench import plots
from bench.baselines.agreement import disagreements
from bench.baselines.contenders import PLATFORM, SINKS, Contender, await_shown, contenders
from bench.costs import cpu_of, since
from bench.floors import Floors, broker_trips, redis_trips
from bench.load import Outcome
from bench.probes import Kind
from bench.report import Figure, Section, keep_samples
from bench.session import Preloaded, Session
from bench.stats import Spread, number, percentile, significant

MEASURES: Mapping[str, tuple[str, bool]] = {
    "recommendations p50": ("ms", False),
    "recommendations p99": ("ms", False),
    "trending p50": ("ms", False),
    "trending p99": ("ms", False),
    "own CPU": ("ms per event", False),
    "Valkey's CPU": ("ms per event", False),
    "broker's CPU": ("ms per event", False),
    "backlog": ("events/s", True),
}
"""Unit, and whether more of it is better."""

NOTE = """\
All read the same topic and write to databases of the same Valkey; each has taken in the whole preload before. In its
turn one runs and the others stand still (SIGSTOP); all have caught up before it is measured. *The same SQL in full* is
the engine with every view over the parsed events computed anew in every tick. *PostgreSQL views* is a consumer that copies events into a
tuned server of its own, with materialized views of the same meaning refreshed in a loop and changed rows copied to
Redis. *Redis sorted sets* is a consumer with ZINCRBY in a pipeline a batch: trending alone, read with ZREVRANGE,
without the guarantee that an event counts once. The platform also keeps segments, purchases, dead letters and the
catalog up to date meanwhile, and its own CPU is for all of that."""


@dataclass
class Turn:
    """One contender's turn, once. A measure it has no answer to is missing."""

    contender: str
    repeat: int
    measured: dict[str, float]
    outcome: Outcome
    lost: int


def measure(session: Session) -> Section:
    """On a stack of its own: everyone reads the preload from a broker that has nothing else."""
    o, turns, floors = session.options, list[Turn](), list[dict[str, Any]]()
    with session.preloaded(session.population(), o.events) as stack, contenders(session, stack) as found:
        for repeat in range(o.repeats):
            floors += [{"repeat": repeat, **row} for row in _floors(session, stack)]
            rates = _backlog(session, stack, found)
            for contender in found:
                _make_even(session, stack, found)
                session.say(f"{contender.name}, repeat {repeat + 1} of {o.repeats}")
                turns.append(_turn(session, stack, contender, repeat, rates[contender.name]))
        wrong = _compare(session, stack, found)
    keep_samples(o, "baselines", [row for turn in turns for row in _rows(turn)])
    keep_samples(o, "floors", floors)
    return _section(session, turns, floors, wrong)


def _compare(session: Session, stack: Preloaded, found: list[Contender]) -> dict[str, int]:
    session.say("comparing what trends")
    _catch_up(session, stack, found)
    return disagreements({contender.name: contender.redis_url for contender in found})


def _backlog(session: Session, stack: Preloaded, found: list[Contender]) -> dict[str, float]:
    """Events a second, from going on until the last event of the backlog shows."""
    _make_even(session, stack, found)
    tail, rates = session.send_backlog(stack, session.options.backlog), {}
    for contender in found:
        session.say(f"{contender.name}: a backlog of {session.options.backlog:,} events")
        began = time.monotonic()
        contender.go_on()
        await_shown(session, contender, tail)
        rates[contender.name] = session.options.backlog / (time.monotonic() - began)
        contender.stop()
    return rates


def _make_even(session: Session, stack: Preloaded, found: list[Contender]) -> None:
    """Nobody has anything left from before, the broker is empty, and all stand still."""
    _catch_up(session, stack, found)
    if session.renews(stack):
        found[0].go_on()  # the session waits for the platform to go over
        session.renew_broker(stack)
        for contender in found:
            contender.renewed()
        _catch_up(session, stack, found)


def _catch_up(session: Session, stack: Preloaded, found: list[Contender]) -> None:
    """One after the other: some are never idle, and would slow down those that have much left."""
    tail = session.send_backlog(stack, 100)
    for contender in found:
        contender.go_on()
        await_shown(session, contender, tail)
        contender.stop()


def _turn(session: Session, stack: Preloaded, contender: Contender, repeat: int, backlog: float) -> Turn:
    contender.go_on()
    before = _cpu(stack, contender)
    has_lists = Kind.RECOMMENDATIONS in contender.kinds
    probes = {} if has_lists else {"recommendation_probes": 0.0}
    outcome = session.drive(stack, session.load(stack, redis_url=contender.redis_url, followed=0, **probes))
    spent = since(before, _cpu(stack, contender))
    await_shown(session, contender, session.send_backlog(stack, 100))
    contender.stop()
    measured = {f"{what}'s CPU" if what != "own" else "own CPU": 1000 * s / outcome.sent for what, s in spent.items()}
    for kind in contender.kinds:
        for percent in (50, 99):
            measured[f"{kind} p{percent}"] = 1000 * percentile(outcome.latencies(kind), percent)
    lost = sum(outcome.lost(kind) for kind in contender.kinds)
    return Turn(contender.name, repeat, {**measured, "backlog": backlog}, outcome, lost)


def _cpu(stack: Preloaded, contender: Contender) -> dict[str, float]:
    servers = stack.servers.processes()
    return cpu_of({"own": contender.processes(), "Valkey": servers["valkey"], "broker": servers["broker"]})


def _floors(session: Session, stack: Preloaded) -> Iterator[dict[str, Any]]:
    session.say("floors: round trips to Redis and through the broker")
    o = session.options
    floors = Floors(stack.servers.settings.kafka_bootstrap_servers, stack.servers.redis_url(4), o.rate, o.seconds / 2)
    for name, took in session.driver.run(redis_trips, floors).items():
        yield from ({"floor": f"Redis {name}", "seconds": seconds} for seconds in took)
    took = session.driver.run(broker_trips, floors)
    yield from ({"floor": f"broker, produce to consume at {o.rate:,}/s", "seconds": seconds} for seconds in took)


# -- the section ------------------------------------------------------------------------------------------------------


class Comparison:
    """Spreads by contender and measure, and ratios to the platform repeat by repeat."""

    def __init__(self, turns: list[Turn]) -> None:
        self.turns = turns
        self.names = list(dict.fromkeys(turn.contender for turn in turns))

    def values(self, name: str, measure: str) -> list[float]:
        return [t.measured[measure] for t in self.turns if t.contender == name and measure in t.measured]

    def spread(self, name: str, measure: str) -> Spread | None:
        values = self.values(name, measure)
        return Spread.of(values) if values else None

    def ratio(self, name: str, measure: str) -> Spread | None:
        """How many times the platform's."""
        pairs = list(zip(self.values(name, measure), self.values(PLATFORM, measure), strict=False))
        return Spread.of([value / platform if platform else math.nan for value, platform in pairs]) if pairs else None

    def words(self) -> Iterator[str]:
        """A sentence for everything a baseline does better."""
        for name in self.names:
            for measure, (unit, more_is_better) in MEASURES.items():
                ratio, theirs, ours = (
                    self.ratio(name, measure),
                    self.spread(name, measure),
                    self.spread(PLATFORM, measure),
                )
                if name == PLATFORM or ratio is None or theirs is None or ours is None:
                    continue
                if ratio.median > 1 if more_is_better else ratio.median < 1:
                    yield (
                        f"{name}: better than the platform in {measure}, {significant(theirs.median)} against "
                        f"{significant(ours.median)} {unit}, {_ratio(ratio)} times."
                    )


def _section(session: Session, turns: list[Turn], floors: list[dict[str, Any]], wrong: Mapping[str, int]) -> Section:
    section, compared = Section("baselines", "Without the platform"), Comparison(turns)
    for name in compared.names:
        if name != PLATFORM and (ratio := compared.ratio(name, "trending p99")):
            section.add_claim(f"{name}: trending p99, times the platform's", "", _ratio(ratio), None)
    for name, hours in wrong.items():
        section.add_claim(f"{name}: hours whose view counts are not the platform's", "0", number(hours), hours == 0)
    wins = list(compared.words())
    section.notes += [
        NOTE,
        "\n".join(f"- {win}" for win in wins) or "No baseline is better than the platform in anything measured.",
    ]
    _tables(section, compared, floors)
    _figures(section, session, compared)
    return section


def _tables(section: Section, compared: Comparison, floors: list[dict[str, Any]]) -> None:
    columns = [f"{measure}, {unit}" for measure, (unit, _) in MEASURES.items()]
    lost = {name: sum(turn.lost for turn in compared.turns if turn.contender == name) for name in compared.names}
    section.add_table(
        "Measured",
        ["", *columns, "lost"],
        [
            [name, *(_figure_text(compared.spread(name, m)) for m in MEASURES), number(lost[name])]
            for name in compared.names
        ],
    )
    section.add_table(
        "Times the platform's",
        ["", *MEASURES],
        [[name, *(_ratio(compared.ratio(name, m)) for m in MEASURES)] for name in compared.names if name != PLATFORM],
    )
    names = dict.fromkeys(row["floor"] for row in floors)
    took = {name: [1000 * row["seconds"] for row in floors if row["floor"] == name] for name in names}
    section.add_table(
        "Floors, milliseconds",
        ["round trip", "p50", "p99", "trips"],
        [[n, significant(percentile(v, 50)), significant(percentile(v, 99)), number(len(v))] for n, v in took.items()],
    )


def _figures(section: Section, session: Session, compared: Comparison) -> None:
    out = session.options.out
    series = {
        f"{turn}, {kind}": [1000 * v for t in compared.turns if t.contender == turn for v in t.outcome.latencies(kind)]
        for turn in compared.names
        for kind in SINKS
    }
    plots.distributions(
        out / "baselines.svg",
        f"From event to Redis at {session.options.rate:,} events/s",
        {name: values for name, values in series.items() if values},
        "milliseconds",
    )
    found = [compared.spread(name, "backlog") or Spread.of([math.nan]) for name in compared.names]
    plots.bars(
        out / "baselines_backlog.svg",
        "A backlog being worked off",
        compared.names,
        {"events/s": [(s.median, s.low, s.high) for s in found]},
        "events/s",
    )
    section.figures.append(Figure("baselines.svg", "How many probes took longer than so many milliseconds"))
    section.figures.append(Figure("baselines_backlog.svg", "Events a second on a backlog"))


def _figure_text(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    return spread.text(0 if spread.median >= 10 else 3)


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    if spread.repeats == 1 or math.isnan(spread.median):
        return significant(spread.median)
    return f"{significant(spread.median)} ({significant(spread.low)}..{significant(spread.high)})"


def _rows(turn: Turn) -> list[dict[str, Any]]:
    return [{"contender": turn.contender, "repeat": turn.repeat, **sample._asdict()} for sample in turn.outcome.samples]
