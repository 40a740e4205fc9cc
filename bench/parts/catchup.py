"""How fast a backlog is worked off, and whether the views are right at its end."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from bench import plots
from bench.costs import cpu_of, since
from bench.recount import Truth, differences
from bench.report import Figure, Section, keep_samples
from bench.session import Session
from bench.stack import Engine, Servers
from bench.stats import Spread, number
from bench.tail import Tail, send_with_tail
from bench.traffic import history

AIM = 50_000  # events a second
HOURS = 23.0  # not 24: then nothing expires while it is counted again
BETWEEN_LOOKS = 0.2  # seconds


@dataclass
class Run:
    """One engine that began with nothing. Times are seconds from when it was started."""

    taken: list[tuple[float, int]]
    finished: float
    cpu: dict[str, float]
    wrong: dict[str, int]

    @property
    def first(self) -> float:
        """When the last look was at which it had taken in nothing."""
        return max((at for at, messages in self.taken if messages == 0), default=0.0)


def measure(session: Session) -> Section:
    """A backlog in Kafka, an engine started on it: until Redis shows the last of it."""
    o, runs, end = session.options, list[Run](), datetime.now(UTC)
    with session.servers(session.population()) as servers:
        session.say(f"sending a backlog of {o.events:,} events")
        kafka = servers.settings.kafka_bootstrap_servers
        tail = send_with_tail(kafka, history(session.population(), o.events, end, HOURS))
        truth = Truth.of(history(session.population(), o.events, end, HOURS))
        for repeat in range(o.repeats):
            session.say(f"an engine takes in {o.events:,} events, repeat {repeat + 1} of {o.repeats}")
            with session.engine(servers) as engine:
                runs.append(_run(session, servers, engine, tail, truth))
                engine.close_for_good()
    return _section(session, runs)


def _run(session: Session, servers: Servers, engine: Engine, tail: Tail, truth: Truth) -> Run:
    before, started, taken = cpu_of(servers.processes()), time.time(), [(0.0, 0)]
    engine.start()
    while taken[-1][1] < tail.sent and taken[-1][0] < session.options.patience:
        taken.append((time.time() - started, int(engine.status()["messages"])))
        time.sleep(BETWEEN_LOOKS)
    finished = session.await_tail(engine.redis_url, tail) - started
    cpu = {**since(before, cpu_of(servers.processes())), **cpu_of({"engine": engine.processes()})}
    session.say("counting the views again")
    return Run(taken, finished, cpu, differences(engine, truth))


def _section(session: Session, runs: list[Run]) -> Section:
    section, events = Section("catchup", "Catching up"), session.options.events
    rows = [{"repeat": n, "seconds": at, "messages": m} for n, run in enumerate(runs) for at, m in run.taken]
    keep_samples(session.options, "catchup", rows)
    whole = Spread.of([events / run.finished for run in runs])
    section.add_claim(
        f"a backlog of {events:,} events, from the start of the engine until Redis has it all",
        f"{AIM:,} events/s",
        f"{whole.text()} events/s",
        whole.median >= AIM,
    )
    wrong = sum(sum(run.wrong.values()) for run in runs)
    section.add_claim("rows that differ from what is counted again in plain Python", "0", number(wrong), wrong == 0)
    section.notes.append(
        "The engine begins with nothing: its supervisor and process start, it reads the catalog, then the backlog. Afterwards the "
        "trending products of every hour and the recent views of a sample of shoppers are counted again from the "
        "generated events, and the documents in Redis compared with the sinks' rows."
    )
    _tables(section, runs, whole, events)
    _figure(section, session, runs)
    return section


def _tables(section: Section, runs: list[Run], whole: Spread, events: int) -> None:
    rows = [
        ["events/s, from the start of the engine", whole.text()],
        ["seconds in all", Spread.of([run.finished for run in runs]).text(1)],
        [
            "seconds until the first tick is done (start, catalog, up to half of the events)",
            Spread.of([run.first for run in runs]).text(1),
        ],
    ]
    for part in runs[0].cpu:
        spread = Spread.of([run.cpu[part] / events * 1000 for run in runs])
        rows.append([f"CPU milliseconds per event, {part}", spread.text(4)])
    section.add_table("A backlog", ["", "measured"], rows)
    checks = {check: sum(run.wrong[check] for run in runs) for check in runs[0].wrong}
    section.add_table("Counted again", ["check", "differences"], [[k, number(v)] for k, v in checks.items()])


def _figure(section: Section, session: Session, runs: list[Run]) -> None:
    points = {f"repeat {n + 1}": ([at for at, _ in run.taken], [m for _, m in run.taken]) for n, run in enumerate(runs)}
    plots.lines(
        session.options.out / "catchup.svg",
        "A backlog being taken in",
        points,
        "seconds since the engine was started",
        "events taken in",
    )
    section.figures.append(Figure("catchup.svg", "Events taken in over time"))
