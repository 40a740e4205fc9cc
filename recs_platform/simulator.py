"""Simulated traffic, sent for real: events to Kafka at a rate that is held, catalog changes to PostgreSQL.

`python -m recs_platform.simulator` is the stack's part that does so, with the settings of the stack.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from recs_platform.catalog import Product, read_catalog, refused
from recs_platform.catalog_carrier import CatalogTopics, is_in_topics
from recs_platform.errors import RecsError, SourceError
from recs_platform.events import TOPICS, USER_ACTIVITY, Event, EventProducer
from recs_platform.settings import FILE, Settings
from recs_platform.shop import CatalogChange, Change
from recs_platform.shoppers import Simulator, history
from recs_platform.signals import stopping_on
from recs_platform.topic_reader import spans
from recs_platform.topics import ensure_topics

Stop = Callable[[], bool]
"""Asked again and again; true ends the run."""

DEFAULT_SEED = 1
CHANGES_PER_MINUTE = 6.0
HISTORY_HOURS, HISTORY_EVENTS = 48.0, 40_000

MAX_BEHIND_SECONDS = 60.0
"""Further behind than this (a machine that slept), what was missed is left out instead of sent late."""

_PAUSE = 0.005  # waiting for less than this costs more than sending a few events together
_LONGEST_WAIT = 0.1  # how long `stop` may go unasked
_REPORT_SECONDS = 1.0
_RESTOCK_SECONDS = 30.0
_STOP_SECONDS = 3.0
_CATALOG_SECONDS = 2.0


@dataclass(slots=True)
class Progress:
    """What a run has done so far. `problem` is what went wrong since the last report, None if nothing did."""

    seconds: float = 0.0
    sent: int = 0
    failed: int = 0
    waiting: int = 0
    changes: int = 0
    behind: float = 0.0
    """Seconds between when the latest event was meant to be sent and when it was."""
    problem: str | None = None


def simulate(
    settings: Settings,
    rate: float,
    users: int,
    seed: int,
    stop: Stop,
    progress: Callable[[Progress], None] | None = None,
    *,
    rhythm: bool = False,
    changes_per_minute: float = CHANGES_PER_MINUTE,
) -> Progress:
    """Sends events of simulated shoppers until `stop()` says so, and returns what was done.

    The rate (events a second) is held open loop: every event has its time, and what could not be sent then is caught up
    with. `progress` is called about once a second. Needs the Kafka and PostgreSQL endpoints and a catalog with products
    in it: `SettingsError`, `SourceError` otherwise. Once it runs, it outlasts both going away and coming back.
    """
    if settings.catalog == FILE:  # a file that is read as it is: nothing happens to it meanwhile
        changes_per_minute = 0.0
    run = _Run(settings, stop, progress or (lambda _: None))
    products = run.catalog.read()
    ensure_topics(run.servers, TOPICS, settings.kafka_partitions)
    simulator = Simulator(
        seed, users, products, rate=rate, start=datetime.now(UTC), rhythm=rhythm, changes_per_minute=changes_per_minute
    )
    return run.send_all(simulator)


def prefill(settings: Settings, users: int, seed: int, events: int = HISTORY_EVENTS) -> int:
    """Sends about that many events of the past two days at once, so that windows and lists are alive; returns how many.

    Nothing is sent to a `user_activity` that holds messages already.
    """
    servers = settings.require("kafka_bootstrap_servers")
    products = _Catalog(settings.require("postgres_url")).read()
    ensure_topics(servers, TOPICS, settings.kafka_partitions)
    if any(span.first < span.next for span in spans(servers, USER_ACTIVITY).values()):
        return 0
    sent = 0
    with EventProducer(servers) as producer:
        for event in history(seed, users, products, hours=HISTORY_HOURS, events=events, until=datetime.now(UTC)):
            producer.send(event)
            sent += 1
    return sent


class _Run:
    """One run of `simulate`: the loop, and what it reports."""

    def __init__(self, settings: Settings, stop: Stop, report: Callable[[Progress], None]) -> None:
        self.servers = settings.require("kafka_bootstrap_servers")
        self._producer = EventProducer(self.servers)
        topics = CatalogTopics(settings, self._producer) if is_in_topics(settings) else None
        self.catalog = _Catalog(settings.require("postgres_url"), topics)
        self._partitions = settings.kafka_partitions
        self._stop, self._report = stop, report
        self._begun = 0.0
        self._next_report, self._next_restock = _REPORT_SECONDS, _RESTOCK_SECONDS
        self._done = Progress()

    def send_all(self, simulator: Simulator) -> Progress:
        self._begun = time.monotonic()
        for item in simulator:
            try:
                if not self._await(item.timestamp.timestamp()):
                    break
                self._carry_out(item)
                self._look_around(simulator)
            except SourceError as error:
                self._trouble(error)
        self.catalog.close()
        try:
            self._producer.flush(_STOP_SECONDS)
        except SourceError as error:
            self._done.problem = str(error)
        return self._progress()

    def _await(self, moment: float) -> bool:
        """Waits until it is time; False when the run is to stop."""
        while not self._stop():
            self._done.behind = time.time() - moment
            if self._done.behind >= 0:
                return True
            self._producer.poll(min(max(-self._done.behind, _PAUSE), _LONGEST_WAIT))
        return False

    def _carry_out(self, item: Event | CatalogChange) -> None:
        if isinstance(item, Event):
            self._producer.send(item)
            self._done.sent += 1
        else:
            self.catalog.apply(item)
            self._done.changes += 1

    def _look_around(self, simulator: Simulator) -> None:
        """What is to be done now and then, between events."""
        seconds = time.monotonic() - self._begun
        if self._done.behind > MAX_BEHIND_SECONDS:
            simulator.skip_to(datetime.now(UTC))
        if seconds >= self._next_report:
            self._next_report = seconds + _REPORT_SECONDS
            self._report(self._progress())
            self._done.problem = None
        if seconds >= self._next_restock:
            self._next_restock = seconds + _RESTOCK_SECONDS
            simulator.shop.restock(self.catalog.read())

    def _trouble(self, error: SourceError) -> None:
        """Keeps the problem for the report; a broker that came back without its topics gets them again."""
        self._done.problem = str(error)
        if self._producer.failed > self._done.failed:
            self._done.failed = self._producer.failed
            try:
                ensure_topics(self.servers, TOPICS, self._partitions)
            except SourceError as still:
                self._done.problem = str(still)

    def _progress(self) -> Progress:
        seconds = time.monotonic() - self._begun
        return replace(self._done, seconds=seconds, failed=self._producer.failed, waiting=self._producer.waiting)


class _Catalog:
    """The catalog in PostgreSQL over one connection, opened again when it broke."""

    def __init__(self, postgres_url: str, topics: CatalogTopics | None = None) -> None:
        self._url, self._topics = postgres_url, topics
        self._connection: psycopg.Connection | None = None

    def read(self) -> list[Product]:
        """All products. Raises `SourceError` when there is none."""
        products = read_catalog(self._url)
        if not products:
            raise SourceError("product_catalog holds no product to look at: `recs catalog load FILE` fills it")
        return products

    def apply(self, change: CatalogChange) -> None:
        """Carries out the change; it touches nothing but that product, and never brings a deleted one back."""
        try:
            statement, parameters = _statement(change)
            self._connected().execute(statement, parameters)
        except psycopg.Error as error:
            self.close()
            raise refused(self._url, error) from None
        if self._topics:
            self._topics.carry_product(change.product.product_id)

    def close(self) -> None:
        """Closes the connection; the next change opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> psycopg.Connection:
        if self._connection is None:
            self._connection = psycopg.connect(self._url, autocommit=True, connect_timeout=3)
            self._connection.execute("SET statement_timeout = '5s'")  # a lock held by someone must not stop the traffic
        return self._connection


def _statement(change: CatalogChange) -> tuple[str, tuple[object, ...]]:
    product = change.product
    match change.kind:
        case Change.NEW:
            columns = "product_id, name, category, price, description, image_url, in_stock"
            insert = f"INSERT INTO public.product_catalog ({columns}) VALUES (%s, %s, %s, %s, %s, %s, %s)"
            return f"{insert} ON CONFLICT (product_id) DO NOTHING", astuple(product)
        case Change.DROPPED:
            return "DELETE FROM public.product_catalog WHERE product_id = %s", (product.product_id,)
        case Change.PRICE:
            update = "UPDATE public.product_catalog SET price = %s WHERE product_id = %s"
            return update, (product.price, product.product_id)
        case Change.SOLD_OUT | Change.BACK:
            update = "UPDATE public.product_catalog SET in_stock = %s WHERE product_id = %s"
            return update, (product.in_stock, product.product_id)


def main() -> None:
    """Runs until SIGTERM or SIGINT, with the settings of the stack; a line a minute goes to standard output."""
    stop = stopping_on(signal.SIGTERM, signal.SIGINT)
    settings = Settings.load()
    try:
        if not _await_products(settings, stop):
            return
        _prefill_once(settings)
        simulate(settings, settings.simulate_rate, settings.simulate_users, DEFAULT_SEED, stop.is_set, _Printer())
    except (RecsError, ValueError) as error:
        sys.exit(f"recs_platform.simulator: {error}")


def _await_products(settings: Settings, stop: threading.Event) -> bool:
    """Shoppers come when there is something to look at; False when told to stop before."""
    said = False
    while not read_catalog(settings.require("postgres_url")):
        if not said:
            print("product_catalog is empty: waiting for a product (`recs catalog load FILE`)", flush=True)
            said = True
        if stop.wait(_CATALOG_SECONDS):
            return False
    return not stop.is_set()


def _prefill_once(settings: Settings) -> None:
    """The mark in the state directory outlives the broker's memory: the engine still holds what was sent before."""
    mark: Path = settings.state_dir / "prefilled"
    if not mark.exists():
        sent = prefill(settings, settings.simulate_users, DEFAULT_SEED)
        print(f"sent {sent} events of the past {HISTORY_HOURS:g} hours", flush=True)
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        mark.touch()


class _Printer:
    """Prints a report when a problem is new, and otherwise once a minute."""

    def __init__(self) -> None:
        self._next = 0.0
        self._problem: str | None = None

    def __call__(self, done: Progress) -> None:
        if done.seconds < self._next and done.problem in (None, self._problem):
            return
        self._next, self._problem = done.seconds + 60, done.problem or self._problem
        trouble = f"; {done.problem}" if done.problem else ""
        print(
            f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} sent {done.sent}, failed {done.failed}, waiting {done.waiting},"
            f" catalog changes {done.changes}, {max(done.behind, 0):.1f} s behind{trouble}",
            flush=True,
        )


if __name__ == "__main__":
    main()
