"""What Redis is asked to write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis

from bench import plots
from bench.report import Figure, Section, keep_samples
from bench.session import Preloaded, Session
from bench.stats import Spread

AIM = 1.0  # keys written for an event
TRAFFIC: Mapping[str, Mapping[str, float]] = {"Zipf": {}, "uniform": {"exponent": 0.0, "skew": 0.0}}
WRITES = (
    "set",
    "mset",
    "setex",
    "del",
    "unlink",
    "hset",
    "hdel",
    "zadd",
    "zincrby",
    "sadd",
    "srem",
    "incrby",
    "expire",
)
FIGURES = ("keys", "commands", "bytes", "documents")


def measure(session: Session) -> Section:
    """Differences of what Redis counts itself, over runs without a single probe."""
    stack, samples = session.shared(), list[dict[str, Any]]()
    for repeat in range(session.options.repeats):
        for name, shape in TRAFFIC.items():
            session.say(f"counting writes under {name} traffic, repeat {repeat + 1} of {session.options.repeats}")
            samples.append({"traffic": name, "repeat": repeat, **_run(session, stack, shape)})
    keep_samples(session.options, "writes", samples)
    return _section(session, samples)


def _run(session: Session, stack: Preloaded, shape: Mapping[str, float]) -> dict[str, float]:
    probes = {"recommendation_probes": 0.0, "trending_probes": 0.0, "followed": 0}
    load = session.load(stack, population=session.population(**shape), warmup=0.0, **probes)
    session.renew_broker(stack)
    before, sent = _counted(stack), stack.sent
    session.drive(stack, load)
    session.await_tail(stack.engine.redis_url, session.send_backlog(stack, 100))
    after, events = _counted(stack), stack.sent - sent
    return {figure: (after[figure] - before[figure]) / events for figure in FIGURES}


def _counted(stack: Preloaded) -> dict[str, float]:
    with redis.Redis.from_url(stack.engine.redis_url) as connection:
        stats: dict[str, Any] = connection.info("stats")
        commands: dict[str, Any] = connection.info("commandstats")
        persistence: dict[str, Any] = connection.info("persistence")
    return {
        "keys": persistence["rdb_changes_since_last_save"],  # nothing is ever saved: all changes since the start
        "commands": sum(commands.get(f"cmdstat_{name}", {}).get("calls", 0) for name in WRITES),
        "bytes": stats["total_net_input_bytes"],
        "documents": stack.engine.status()["redis_writes"],
    }


def _section(session: Session, samples: list[dict[str, Any]]) -> Section:
    section, rate = Section("writes", "Writes to Redis"), session.options.rate
    keys_written = {name: _spread(samples, name, "keys") for name in TRAFFIC}
    for name, found in keys_written.items():
        aim, met = (f"≤ {AIM:.0f}", found.median <= AIM) if name == "Zipf" else ("", None)
        section.add_claim(f"keys written per event, {name} traffic at {rate:,}/s", aim, found.text(2), met)
    section.notes.append(
        "What Redis itself counts, per event sent: keys changed, commands that change something, bytes received. "
        "Documents are what the engine says it has written."
    )
    section.add_table(
        "Per event",
        ["traffic", "keys written", "write commands", "bytes received", "documents"],
        [[name, *(_spread(samples, name, f).text(0 if f == "bytes" else 2) for f in FIGURES)] for name in TRAFFIC],
    )
    plots.bars(
        session.options.out / "writes.svg",
        f"Writes to Redis at {rate:,} events/s",
        list(TRAFFIC),
        {"keys written": [(s.median, s.low, s.high) for s in keys_written.values()]},
        "keys written per event",
        AIM,
    )
    section.figures.append(Figure("writes.svg", "Keys written per event"))
    return section


def _spread(samples: list[dict[str, Any]], traffic: str, figure: str) -> Spread:
    return Spread.of([sample[figure] for sample in samples if sample["traffic"] == traffic])
