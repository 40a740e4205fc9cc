"""The driver: a process of its own, on a core of its own, that sends on time and looks at Redis.

Open loop: an event is sent when it is due, whatever has become of those before it, and its latency counts from when
it was due.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import psycopg
import redis

from bench.load import Load, Outcome, Schedule, schedule, soon
from bench.machine import driver_cores
from bench.probes import Kind, Probe, Watch
from bench.sending import flush, producer
from bench.stack import live_versions
from bench.traffic import product_id, texts
from recs_platform.serving import keys

BETWEEN_LOOKS = 0.002  # seconds: the resolution of a latency
GRAIN = 0.001  # events due within a millisecond are sent together
CHUNK_SECONDS = 0.05  # messages are made so far ahead
NAMES = (keys.USER_RECOMMENDATIONS, keys.TRENDING_PRODUCTS, keys.PRODUCTS)
T = TypeVar("T")


class Driver:
    """Hands work to the driver's process and takes what came of it; a context manager."""

    def __init__(self) -> None:
        self._begin()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def replace(self) -> None:
        """A process that has nothing to do: what the one before works at, and its answer, would be in the way."""
        self._end()
        self._begin()

    def start(self, work: Callable[..., T], *arguments: Any) -> None:
        """Begins a piece of work there and returns at once; `result` waits for it."""
        self._ours.send((work, arguments))

    def busy(self) -> bool:
        return not self._ours.poll()

    def wait(self, seconds: float) -> None:
        """Until the work is done, but no longer than that."""
        self._ours.poll(seconds)

    def result(self) -> Any:
        """Raises what the work raised."""
        outcome, error = self._ours.recv()
        if error is not None:
            raise error
        return outcome

    def run(self, work: Callable[..., T], *arguments: Any) -> T:
        self.start(work, *arguments)
        outcome: T = self.result()
        return outcome

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, driver_cores()), daemon=True)
        self._process.start()
        theirs.close()

    def _end(self) -> None:
        self._process.kill()
        self._process.join()
        self._ours.close()


def drive(load: Load) -> Outcome:
    """One run of traffic, watched until the last probe has come or is lost."""
    run = _Run(load)
    try:
        return run.outcome()
    finally:
        run.close()


class _Run:
    def __init__(self, load: Load) -> None:
        self.load = load
        self.redis = redis.Redis.from_url(load.redis_url)
        self.producer = producer(load.kafka)
        self.producer.list_topics(timeout=10)  # connected before the clock starts
        self.versions = live_versions(load.redis_url, *NAMES)
        self.watch = Watch(load.lost_after)
        self.changes = _CatalogChanges(load, self._key(keys.PRODUCTS, ""))
        self.schedule: Schedule = schedule(load, soon())
        self.next_event = self.made = 0
        self.pending: list[tuple[Any, ...]] = []

    def outcome(self) -> Outcome:
        self.changes.begin(self.schedule.due[0] + self.load.warmup)
        while self.next_event < len(self.schedule.batch):
            self._send_due()
            self._look()
            self._rest()
        ended = time.time()
        self.changes.end()
        flush(self.producer)
        while len(self.watch) or self.changes.made:
            self._look()
            time.sleep(BETWEEN_LOOKS)
        began = float(self.schedule.due[0]) + self.load.warmup
        run = self.schedule
        return Outcome(self.watch.samples, run.lateness(began), len(run.batch), began, ended, run.batch.activity)

    def close(self) -> None:
        self.changes.end()
        self.redis.close()

    def _send_due(self) -> None:
        now, due = time.time(), self.schedule.due
        while self.next_event < len(due) and due[self.next_event] <= now:
            if not self.pending:
                self._make_messages()
            topic, key, payload, probes = self.pending.pop()
            self.producer.produce(topic, payload, key)
            self.schedule.sent_at[self.next_event] = time.time()
            for probe in probes:
                self.watch.add(probe)
            self.next_event += 1
        self.producer.poll(0)

    def _make_messages(self) -> None:
        """The messages of the next moments, the first one last."""
        start = self.made
        self.made = min(len(self.schedule.due), start + max(20, round(self.load.rate * CHUNK_SECONDS)))
        probes = self._probes(start, self.made)
        messages = self.schedule.batch.cut(start, self.made).messages()
        self.pending = [(*message, probes.get(start + i, ())) for i, message in enumerate(messages)][::-1]

    def _probes(self, start: int, end: int) -> dict[int, list[Probe]]:
        found: dict[int, list[Probe]] = {}
        times = texts(self.schedule.batch.times[start:end])
        for kind, watched in self.schedule.watched.items():
            for i in (watched[start:end].nonzero()[0] + start).tolist():
                key, due = self._key_of(kind, i, times[i - start]), float(self.schedule.due[i])
                found.setdefault(i, []).append(Probe(kind, key, "as_of", times[i - start], due))
        return found

    def _key_of(self, kind: Kind, event: int, time_text: str) -> str:
        if kind is Kind.TRENDING:
            return self._key(keys.TRENDING_PRODUCTS, keys.window_key(keys.window_of(time_text)))
        return self._key(keys.USER_RECOMMENDATIONS, str(self.schedule.batch.users[event]))

    def _key(self, name: str, row: str) -> str:
        return keys.document(name, self.versions.get(name, ""), row)

    def _look(self) -> None:
        while self.changes.made:
            self.watch.add(self.changes.made.pop())
        if wanted := self.watch.due():
            self.watch.seen(wanted, self.redis.mget(wanted))  # type: ignore[arg-type]

    def _rest(self) -> None:
        due = self.schedule.due
        if self.next_event < len(due):
            time.sleep(min(BETWEEN_LOOKS, max(GRAIN, due[self.next_event] - time.time())))


class _CatalogChanges:
    """Changes prices by plain SQL in a thread of its own, each product once; a probe is in `made` once committed."""

    def __init__(self, load: Load, prefix: str) -> None:
        self.load, self._prefix = load, prefix
        self.made: list[Probe] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, start: float) -> None:
        if self.load.catalog_probes > 0:
            self._thread = threading.Thread(target=self._run, args=(start,), daemon=True)
            self._thread.start()

    def end(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, start: float) -> None:
        count = round(self.load.catalog_probes * self.load.seconds)
        with psycopg.connect(self.load.postgres_url, autocommit=True) as shop:
            for n in range(count):
                due = start + n / self.load.catalog_probes
                if self._stop.wait(max(0.0, due - time.time())):
                    return
                # a price nobody had: of this run, and of this product
                product, price = product_id(n % self.load.population.products + 1), self.load.stream * 1000 + n / 100
                shop.execute("UPDATE product_catalog SET price = %s WHERE product_id = %s", [price, product])
                self.made.append(Probe(Kind.CATALOG, self._prefix + product, "price", price, time.time()))


def _serve(channel: Connection, cores: set[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the one who asked; it ends this process
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    while True:
        try:
            work, arguments = channel.recv()
        except EOFError:
            return
        try:
            channel.send((work(*arguments), None))
        except Exception as error:  # handed to whoever asked
            channel.send((None, RuntimeError(f"{type(error).__name__}: {error}")))
