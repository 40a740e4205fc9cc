"""What the stack keeps in memory and on disk, and what a shopper, a product and an event add to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import redis

from bench import plots
from bench.costs import bytes_on_disk, memory
from bench.options import Options
from bench.report import Figure, Section, keep_samples
from bench.session import Preloaded, Session
from bench.stats import number, significant
from bench.traffic import Population
from recs_platform.stack.postgres import cluster

SHARE, GROWN = 5, 3  # sizes compared: a fifth of everything, and of one thing three times that
DIMENSIONS = ("events", "users", "products")
STORES = {
    "engine, memory": "engine_rss",
    "engine, file": "engine_file",
    "broker, memory": "broker_rss",
    "Valkey, data": "valkey_data",
    "PostgreSQL, database": "postgres_database",
}


def measure(session: Session) -> Section:
    """Stacks of several sizes one after the other, then the one that the other parts share, just filled."""
    o, samples = session.options, []
    for sizes in sizes_of(o):
        population = session.population(users=sizes["users"], products=sizes["products"])
        samples.append({**sizes, **_stored(session, population, sizes["events"])})
    samples.append({**{name: getattr(o, name) for name in DIMENSIONS}, **_sizes(session.shared())})
    keep_samples(o, "memory", samples)
    section = Section("memory", "Memory and disk")
    _whole(section, session)
    _growth(section, samples)
    return section


def sizes_of(options: Options) -> list[dict[str, int]]:
    """A base, and each dimension grown alone, beside the stack the parts share; in a quick run that one alone."""
    base = {name: max(50, getattr(options, name) // SHARE) for name in DIMENSIONS}
    grown = [{**base, name: base[name] * GROWN} for name in DIMENSIONS]
    return [] if options.quick else [base, *grown]


def _stored(session: Session, population: Population, events: int) -> dict[str, int]:
    with session.preloaded(population, events) as stack:
        return _sizes(stack)


def _sizes(stack: Preloaded) -> dict[str, int]:
    settings, parts = stack.servers.settings, stack.parts()
    with redis.Redis.from_url(stack.engine.redis_url) as connection:
        data: dict[str, Any] = connection.info("memory")
    with psycopg.connect(settings.postgres_url) as shop:
        (database,) = shop.execute("SELECT pg_database_size(current_database())").fetchone() or (0,)
    return {
        "engine_rss": memory(parts["engine"]).resident,
        "engine_file": bytes_on_disk(stack.engine.state_dir / "engine.duckdb")
        + bytes_on_disk(stack.engine.state_dir / "engine.duckdb.wal"),
        "broker_rss": memory(parts["broker"]).resident,
        "valkey_data": int(data["used_memory"]),
        "postgres_database": int(database),
    }


def _whole(section: Section, session: Session) -> None:
    """The stack the parts share."""
    stack = session.shared()
    found = {part: memory(processes) for part, processes in stack.parts().items()}
    section.add_claim(
        f"memory of the stack with {session.options.events:,} events, resident",
        "",
        f"{sum(m.resident for m in found.values()) / 1e6:,.0f} MB",
        None,
    )
    section.add_table(
        "Megabytes after the preload",
        ["part", "resident", "proportional (shared pages once)", "peak"],
        [[part, _mb(m.resident), _mb(m.proportional), _mb(m.peak)] for part, m in found.items()],
    )
    state = stack.servers.state_dir
    disk = {
        "`engine.duckdb` and its log": _sizes(stack)["engine_file"],
        "`valkey/`": bytes_on_disk(state / "valkey"),
        "`postgres/`, its log included": bytes_on_disk(cluster(state).data),
    }
    section.add_table("Megabytes on disk", ["what", "size"], [[what, _mb(size)] for what, size in disk.items()])
    plots.bars(
        session.options.out / "memory.svg",
        f"Memory after {session.options.events:,} events",
        list(found),
        {"resident": [(m.resident / 1e6,) * 3 for m in found.values()]},
        "megabytes",
    )
    section.figures.append(Figure("memory.svg", "Resident memory of each part"))


def _growth(section: Section, samples: list[dict[str, int]]) -> None:
    """Least squares over the sizes: so much at rest, and so much for each of what was grown."""
    matrix = np.array([[1.0, *(sample[name] for name in DIMENSIONS)] for sample in samples])
    rows = []
    for store, column in STORES.items():
        values = np.array([float(sample[column]) for sample in samples])
        rest, *each = np.linalg.lstsq(matrix, values, rcond=None)[0].tolist()
        rows.append([store, f"{rest / 1e6:,.1f} MB", *(significant(value) for value in each)])
    section.notes.append(
        "Bytes per shopper, product and event are least squares over stacks of "
        + "; ".join(
            ", ".join(f"{sample[n]:,} {n}" for n in DIMENSIONS).replace("users", "shoppers") for sample in samples
        )
        + ". A process keeps what it once had, so its figures are rough; those of stored data are not."
    )
    section.add_table(
        "Bytes for each", ["where", "at rest", *(n.replace("users", "shopper").rstrip("s") for n in DIMENSIONS)], rows
    )


def _mb(size: int | None) -> str:
    return "not known" if size is None else number(size / 1e6, 1)
