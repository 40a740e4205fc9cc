"""What the parts of one run share: the options, the driver, and a stack that is filled once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import redis
from rich.console import Console

from bench.costs import cpu_of
from bench.driver import Driver, drive
from bench.load import Load, Outcome
from bench.options import Options
from bench.stack import Engine, Servers, await_pointers, remove
from bench.tail import Tail, send_with_tail
from bench.traffic import Population, Traffic, history, micros
from recs_platform.awaiting import wait_until
from recs_platform.serving import keys

SINKS = (keys.USER_RECOMMENDATIONS, keys.TRENDING_PRODUCTS, keys.PRODUCTS)
PRELOAD_HOURS = 24.0


@dataclass
class Preloaded:
    """A stack with a day's events, its catalog and its shoppers.

    `sent` counts what the topics have got so far, `activity` what the topic user_activity has of it.
    """

    servers: Servers
    engine: Engine
    sent: int
    activity: int
    has_renewed: bool = False

    def note(self, sent: Outcome | Tail) -> None:
        self.sent += sent.sent
        self.activity += sent.activity

    def parts(self) -> dict[str, list[psutil.Process]]:
        """The processes by part."""
        return {**self.servers.processes(), "engine": self.engine.processes()}

    def cpu(self) -> dict[str, float]:
        return cpu_of(self.parts())


class Session:
    """Give it to every part. Closing it ends the driver and the stack."""

    def __init__(self, options: Options, home: Path, console: Console) -> None:
        self.options, self.home, self.console = options, home, console
        self._streams = itertools.count(1)
        self._owned = ExitStack()
        self.driver = self._owned.enter_context(Driver())
        self._shared: tuple[Preloaded, ExitStack] | None = None
        self._directories = itertools.count(1)
        self._status = self._owned.enter_context(console.status("starting"))

    def close(self) -> None:
        try:
            self.close_shared()
        finally:
            self._owned.close()

    def say(self, text: str) -> None:
        """What is going on now."""
        self._status.update(text)
        if not self.console.is_terminal:
            self.console.print(f"  {text}", highlight=False)

    def directory(self, name: str) -> Path:
        """A state directory that has not been used."""
        return self.home / f"{name}-{next(self._directories)}"

    @contextmanager
    def own_directory(self, name: str) -> Iterator[Path]:
        """One that is there, and is gone afterwards: ten million events fill ten gigabytes."""
        directory = self.directory(name)
        directory.mkdir(mode=0o711)  # PostgreSQL's own user may pass through it
        try:
            yield directory
        finally:
            remove(directory)

    def population(self, **changes: Any) -> Population:
        """The one of the options, with these fields changed."""
        o = self.options
        return replace(Population(o.users, o.products, o.categories, o.seed), **changes)

    def stream(self) -> int:
        """A number that no other run of traffic has."""
        return next(self._streams)

    # -- the stack that parts share -------------------------------------------------------------------------------

    def shared(self) -> Preloaded:
        """The stack with the preload; started when the first part asks."""
        if self._shared is None:
            owned = ExitStack()
            try:
                self._shared = owned.enter_context(self.preloaded(self.population(), self.options.events)), owned
            except BaseException:
                owned.close()
                raise
        return self._shared[0]

    def close_shared(self) -> None:
        """For parts that want the machine to themselves."""
        if self._shared is not None:
            self.say("stopping the stack")
            owned, self._shared = self._shared[1], None
            owned.close()

    @contextmanager
    def servers(self, population: Population) -> Iterator[Servers]:
        """Servers of their own with that catalog."""
        self.say("starting PostgreSQL, Valkey and the broker")
        servers = Servers(self.directory("servers"))
        try:
            servers.fill(population)
            yield servers
        finally:
            servers.close()

    @contextmanager
    def engine(self, servers: Servers, sql_dir: Path | None = None) -> Iterator[Engine]:
        """An engine with nothing in it, not started yet."""
        engine = Engine(servers, self.directory("engine"), sql_dir=sql_dir)
        try:
            yield engine
        finally:
            engine.close()
            remove(engine.state_dir)

    @contextmanager
    def preloaded(self, population: Population, events: int, sql_dir: Path | None = None) -> Iterator[Preloaded]:
        """A stack of its own that has taken in that many events of the last 24 hours."""
        with self.servers(population) as servers, self.engine(servers, sql_dir) as engine:
            tail = self.send_history(servers, population, events, PRELOAD_HOURS)
            self.say(f"the engine takes in {events:,} events")
            engine.start()
            await_pointers(engine.redis_url, *SINKS)
            self.await_tail(engine.redis_url, tail)
            yield Preloaded(servers, engine, tail.sent, tail.activity)

    def send_history(self, servers: Servers, population: Population, events: int, hours: float) -> Tail:
        """Sends the past to Kafka; returns what is to be seen when all of it has arrived."""
        self.say(f"sending {events:,} events of the last {hours:.0f} hours")
        batches = history(population, events, datetime.now(UTC), hours)
        return send_with_tail(servers.settings.kafka_bootstrap_servers, batches)

    # -- traffic --------------------------------------------------------------------------------------------------

    def load(self, stack: Preloaded, **changes: Any) -> Load:
        """A run of traffic with the session's times, and no probe of the catalog."""
        o, settings = self.options, stack.servers.settings
        given = Load(
            kafka=settings.kafka_bootstrap_servers,
            redis_url=stack.engine.redis_url,
            population=self.population(),
            stream=self.stream(),
            rate=o.rate,
            seconds=o.seconds,
            warmup=o.warmup,
            postgres_url=settings.postgres_url,
            lost_after=o.lost_after,
        )
        return replace(given, **changes)

    def drive(self, stack: Preloaded, load: Load) -> Outcome:
        outcome = self.driver.run(drive, load)
        stack.note(outcome)
        return outcome

    def renew_broker(self, stack: Preloaded) -> None:
        """An empty broker: the embedded one gets slower to read with every small batch it holds, and runs are to be
        alike. The engine keeps what it has and goes over to the new topics. In a quick run once a stack is enough.
        """
        if self.renews(stack):
            stack.servers.renew_broker()
            stack.has_renewed = True
        self.await_tail(stack.engine.redis_url, self.send_backlog(stack, 100))

    def renews(self, stack: Preloaded) -> bool:
        """Whether `renew_broker` would."""
        return not (self.options.quick and stack.has_renewed)

    def send_backlog(self, stack: Preloaded, events: int) -> Tail:
        """Events of this moment, all at once."""
        now = micros(datetime.now(UTC))
        traffic = Traffic(self.population(), self.stream())
        batch = traffic.draw(now - events + np.arange(events, dtype=np.int64))
        tail = send_with_tail(stack.servers.settings.kafka_bootstrap_servers, [batch])
        stack.note(tail)
        return tail

    def await_tail(self, redis_url: str, tail: Tail) -> float:
        """Returns when Redis shows the effect of the last events sent (seconds since 1970).

        Raises `TimeoutError` when it does not within the session's patience.
        """
        limit = self.options.patience
        with redis.Redis.from_url(redis_url) as connection:
            if not wait_until(lambda: tail.arrived(connection), limit, 0.02):
                raise TimeoutError(f"Redis does not show the last events after {limit:.0f} s")
        return time.time()
