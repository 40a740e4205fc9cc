"""A database of the engine inside this process, fed as its readers of Kafka and PostgreSQL would: no servers."""

from __future__ import annotations

import time
from dataclasses import astuple
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from bench.traffic import Batch, Population, Traffic, history, micros, products, shoppers
from recs_platform.engines.local.arrivals import TickInput
from recs_platform.engines.local.changes import TableChanges
from recs_platform.engines.local.database import Database, TickResult
from recs_platform.events import TOPICS
from recs_platform.pipeline import Pipeline
from recs_platform.settings import Settings

AT_ONCE = 20_000  # messages a tick of the preload


class Cost(NamedTuple):
    """Of one tick, in seconds."""

    wall: float
    cpu: float


class InProcess:
    """One database with its catalog and a day's events; `tick` takes in new ones. `last` tells of the last one."""

    last: TickResult

    def __init__(self, path: Path, population: Population, events: int) -> None:
        self.population = population
        self.database = Database(path)
        self.traffic = Traffic(population, stream=1)
        self.now = datetime.now(UTC)
        self._offsets = dict.fromkeys(TOPICS, 0)
        self.database.deploy(Pipeline.of(Settings.load({})), self.now)
        self._load_catalog()
        for batch in history(population, events, self.now - timedelta(seconds=1), 24.0, AT_ONCE):
            self._take_in(batch)

    def tick(self, events: int) -> Cost:
        """A tenth of a second later, with that many new events."""
        self.now += timedelta(milliseconds=100)
        times = micros(self.now) - events + pa.array(range(events)).to_numpy()
        return self._take_in(self.traffic.draw(times))

    def close(self) -> None:
        self.database.close()

    def _take_in(self, batch: Batch) -> Cost:
        messages = self._messages(batch)
        wall, cpu = time.perf_counter(), time.process_time()
        now = self.now.replace(microsecond=0)  # time moves once a second
        self.last = self.database.tick(now, TickInput(messages=messages))
        self.database.outbox.note_written()
        return Cost(time.perf_counter() - wall, time.process_time() - cpu)

    def _messages(self, batch: Batch) -> dict[str, pa.Table]:
        payloads: dict[str, list[bytes]] = {}
        for topic, _, payload in batch.messages():
            payloads.setdefault(topic, []).append(payload)
        return {topic: self._table(topic, found) for topic, found in payloads.items()}

    def _table(self, topic: str, payloads: list[bytes]) -> pa.Table:
        """One partition, offsets counted on."""
        count, first = len(payloads), self._offsets[topic]
        self._offsets[topic] += count
        return pa.table(
            {
                "payload": pa.array(payloads, pa.binary()),
                "kafka_key": pa.nulls(count, pa.binary()),
                "kafka_partition": pa.array(["0"] * count, pa.string()),
                "kafka_offset": pa.array([str(first + i) for i in range(count)], pa.string()),
                "received_at": pa.array([self.now] * count, pa.timestamp("us", "UTC")),
            }
        )

    def _load_catalog(self) -> None:
        """All values as text, as PostgreSQL hands them over."""
        rows: dict[str, list[Any]] = {
            "product_catalog": products(self.population),
            "customers": shoppers(self.population),
        }
        for table, found in rows.items():
            names = [column.name for column in self.database.pipeline[table].columns]
            values = zip(*map(astuple, found), strict=True)
            columns = {n: pa.array([_text(v) for v in vs], pa.string()) for n, vs in zip(names, values, strict=True)}
            changes = TableChanges(truncated=True, upserts=pa.table(columns), deletes=None)
            self.database.tick(self.now, TickInput(changes={table: changes}))


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return "t" if value else "f"
    return None if value is None else str(value)
