"""The simulator: a believable shop, the same for the same seed, and traffic at the rate asked for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path
from random import Random

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql

from recs_platform.awaiting import wait_until
from recs_platform.catalog import Product, ensure_catalog, read_catalog, seed
from recs_platform.commands.traffic import simulate as simulate_command
from recs_platform.errors import SourceError
from recs_platform.events import Event
from recs_platform.settings import Settings
from recs_platform.shop import CatalogChange, Change, Shop, catalog, customers, is_made_up, zipf_pick
from recs_platform.shoppers import Simulator, history
from recs_platform.simulator import Progress, prefill, simulate
from recs_platform.stack.broker import broker
from recs_platform.stack.postgres import Cluster
from recs_platform.stack.process import running
from recs_platform.stack.service import free_port
from recs_platform_tests.test_events import consumed

NOON = datetime(2024, 7, 27, 12, tzinfo=UTC)
PRODUCTS = catalog(1, 300)


def shoppers(seed: int = 1, users: int = 200, rate: float = 20, **options: float) -> Simulator:
    return Simulator(seed, users, PRODUCTS, rate=rate, start=NOON, **options)  # type: ignore[arg-type]


def events(simulator: Simulator, count: int) -> list[Event]:
    return [item for item in islice(simulator, count) if isinstance(item, Event)]


class TestShoppers:
    """What they do, without sending anything."""

    def test_the_same_seed_gives_the_same_stream(self) -> None:
        once, again, other = (list(islice(shoppers(seed, changes_per_minute=30), 2000)) for seed in (1, 1, 2))
        assert once == again != other

    def test_the_rate_is_exact_and_time_never_runs_back(self) -> None:
        found = events(shoppers(rate=30_000), 60_000)
        assert found[-1].timestamp - NOON == timedelta(seconds=2)
        assert all(a.timestamp <= b.timestamp for a, b in pairwise(found))

    def test_popularity_has_the_head_and_the_tail_of_zipf(self) -> None:
        views = Counter(e.product_id for e in events(shoppers(), 30_000) if e.event_type == "page_view")
        top_tenth = sum(count for _, count in views.most_common(len(PRODUCTS) // 10))
        assert 0.25 < top_tenth / views.total() < 0.75
        assert len(views) > 0.9 * len(PRODUCTS)

    def test_zipf_makes_the_second_half_as_frequent_as_the_first(self) -> None:
        rng = Random(1)
        drawn = Counter(zipf_pick(rng, range(100)) for _ in range(50_000))
        assert 1.5 < drawn[0] / drawn[1] < 2.0  # log 2 over log 1.5
        assert 0 < drawn[99] < drawn[9]

    def test_a_shopper_prefers_the_same_few_categories_in_every_session(self) -> None:
        category = {product.product_id: product.category for product in PRODUCTS}
        views: dict[int, Counter[str | None]] = {}
        for event in events(shoppers(users=20), 20_000):
            if event.event_type == "page_view":
                views.setdefault(event.user_id, Counter())[category[event.product_id or ""]] += 1
        shares = [sum(count for _, count in seen.most_common(3)) / seen.total() for seen in views.values()]
        assert min(shares) > 0.6
        assert len({seen.most_common(1)[0][0] for seen in views.values()}) > 1

    def test_one_session_at_a_time_and_it_buys_only_what_it_put_into_the_cart(self) -> None:
        carts: dict[str, Counter[str]] = {}
        for event in events(shoppers(), 20_000):
            cart = carts.setdefault(event.session_id or "", Counter())
            if event.event_type == "add_to_cart":
                cart[event.product_id or ""] += 1
            if event.event_type == "purchase":
                cart[event.product_id or ""] -= 1
                assert cart[event.product_id or ""] >= 0
                assert event.quantity
                assert event.price

    def test_every_kind_of_event_occurs_and_only_a_search_has_no_product(self) -> None:
        found = events(shoppers(), 20_000)
        share = {kind: count / len(found) for kind, count in Counter(e.event_type for e in found).items()}
        assert share.keys() == {"page_view", "click", "search", "add_to_cart", "purchase"}
        assert share["page_view"] > 0.5 > share["add_to_cart"] > share["purchase"] > 0.01
        assert all((e.product_id is None) == (e.event_type == "search") == bool(e.query) for e in found)

    def test_a_user_is_in_one_session_at_a_time_however_high_the_rate(self) -> None:
        open_sessions: dict[int, list[str]] = {}
        for event in events(shoppers(users=5, rate=1000), 5000):
            seen = open_sessions.setdefault(event.user_id, [])
            if (event.session_id or "") not in seen[-1:]:
                assert event.session_id not in seen
                seen.append(event.session_id or "")
        assert set(open_sessions) == {1, 2, 3, 4, 5}

    def test_one_shopper_and_one_product_are_enough(self) -> None:
        lonely = Simulator(1, 1, PRODUCTS[:1], rate=1, start=NOON)
        assert {event.user_id for event in events(lonely, 500)} == {1}

    @pytest.mark.parametrize(("users", "rate"), [(0, 1.0), (1, 0.0), (1, float("nan"))])
    def test_without_shoppers_or_a_rate_there_is_no_traffic(self, users: int, rate: float) -> None:
        with pytest.raises(ValueError, match="at least one shopper and a rate above 0"):
            shoppers(users=users, rate=rate)

    def test_history_has_the_rhythm_of_the_day_and_ends_when_told(self) -> None:
        past = list(history(1, 200, PRODUCTS, hours=48, events=20_000, until=NOON))
        assert len(past) == pytest.approx(20_000, rel=0.01)
        assert NOON - timedelta(hours=48) <= past[0].timestamp
        assert past[-1].timestamp <= NOON
        hours = Counter(event.timestamp.hour for event in past)
        assert hours[20] > 5 * hours[8] > 0


class TestCatalogChanges:
    """What happens to products while shoppers look at them."""

    def test_all_kinds_occur_at_the_rate_asked_for(self) -> None:
        simulator = shoppers(rate=1, changes_per_minute=60)
        changes = [item for item in islice(simulator, 2000) if isinstance(item, CatalogChange)]
        assert len(changes) == pytest.approx(1000, abs=2)
        assert {change.kind for change in changes} == set(Change)

    def test_the_shop_keeps_its_size_and_little_is_sold_out(self) -> None:
        shop, rng = Shop(PRODUCTS), Random(1)
        for _ in range(3000):
            shop.change(rng, NOON)
            assert sum(not product.in_stock for product in shop.products.values()) <= 0.06 * len(shop.products)
        assert 0.5 * len(PRODUCTS) < len(shop.products) < 2 * len(PRODUCTS)

    def test_a_dropped_product_is_not_looked_at_again_and_its_id_not_given_away(self) -> None:
        dropped: set[str] = set()
        for item in islice(shoppers(changes_per_minute=600), 20_000):
            if isinstance(item, CatalogChange):
                assert item.product.product_id not in dropped
                if item.kind is Change.DROPPED:
                    dropped.add(item.product.product_id)
            elif item.event_type == "page_view":
                assert item.product_id not in dropped
        assert dropped

    def test_products_of_ones_own_are_never_touched(self) -> None:
        own = [replace(product, image_url=None) for product in PRODUCTS]
        assert Shop(own).change(Random(1), NOON) is None
        mixed = Shop([*own[:150], *PRODUCTS[150:]])
        changed = [mixed.change(Random(n), NOON) for n in range(300)]
        assert all(change and is_made_up(change.product) for change in changed)

    def test_new_stock_is_taken_over_but_an_emptied_catalog_is_not(self) -> None:
        shop = Shop(PRODUCTS)
        shop.restock([Product("own", "My own", "books")])
        shop.restock([])
        assert shop.pick(Random(1), "toys").product_id == "own"


def test_made_up_products_and_customers_fit_the_tables_and_are_the_same_again(postgres_url: str) -> None:
    ensure_catalog(postgres_url)
    assert seed(postgres_url, catalog(1, 300), customers(1, 50)) == (300, 50)
    assert {p.product_id: p for p in read_catalog(postgres_url)} == {p.product_id: p for p in PRODUCTS}
    assert customers(1, 50) == customers(1, 50) != customers(2, 50)


@pytest.fixture
def settings(kafka_servers: str, postgres_url: str, tmp_path: Path) -> Settings:
    ensure_catalog(postgres_url)
    seed(postgres_url, PRODUCTS, [])
    return Settings(state_dir=tmp_path, kafka_bootstrap_servers=kafka_servers, postgres_url=postgres_url)


def after(seconds: float) -> Callable[[], bool]:
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() > deadline


class TestSending:
    """Real traffic to a real broker and a real PostgreSQL."""

    @pytest.mark.parametrize("rate", [100, 5000])
    def test_the_rate_is_held(self, settings: Settings, rate: float) -> None:
        watch = Timekeeper(rate)
        done = simulate(settings, rate, 500, 1, watch.is_satisfied, watch.look, changes_per_minute=0)
        assert (done.failed, done.waiting, done.problem) == (0, 0, None)

    def test_what_was_held_up_is_caught_up_with(self, settings: Settings) -> None:
        watch, held_up = Timekeeper(500), iter([0.7])

        def look(done: Progress) -> None:
            watch.look(done)
            time.sleep(next(held_up, 0))

        simulate(settings, 500, 500, 1, watch.is_satisfied, look, changes_per_minute=0)

    def test_catalog_changes_reach_postgresql(self, settings: Settings) -> None:
        done = simulate(settings, 100, 500, 1, after(1.5), changes_per_minute=3000)
        before, now = ({p.product_id: p for p in found} for found in (PRODUCTS, read_catalog(settings.postgres_url)))
        assert done.changes > 50
        assert now.keys() - before.keys()
        assert before.keys() - now.keys()
        assert any(before[name].price != now[name].price for name in before.keys() & now.keys())
        assert any(not product.in_stock for product in now.values())

    def test_a_product_deleted_by_someone_else_does_not_come_back(self, settings: Settings) -> None:
        stopped = after(1.5)
        with psycopg.connect(settings.postgres_url, autocommit=True) as connection:
            deletion = iter([lambda: connection.execute("DELETE FROM product_catalog")])

            def delete_all_then_stop_in_time() -> bool:
                next(deletion, lambda: None)()
                return stopped()

            done = simulate(settings, 100, 500, 1, delete_all_then_stop_in_time, changes_per_minute=3000)
        left = {product.product_id for product in read_catalog(settings.postgres_url)}
        assert done.changes > 50
        assert left.isdisjoint(product.product_id for product in PRODUCTS)

    def test_an_empty_catalog_is_an_error_with_a_remedy(self, settings: Settings) -> None:
        with psycopg.connect(settings.postgres_url) as connection:
            connection.execute("TRUNCATE product_catalog")
        with pytest.raises(SourceError, match=r"no product.*recs catalog load FILE"):
            simulate(settings, 1, 1, 1, after(1))

    def test_the_command_stops_by_itself_and_sums_up(self, settings: Settings) -> None:
        result = CliRunner().invoke(simulate_command, ["--rate", "100", "--seconds", "1"], env=environment(settings))
        assert result.exit_code == 0, result.output
        told = re.fullmatch(r"(\d+) events, \d catalog changes in \d\.\d s\.\n", result.output)
        assert told
        assert 50 <= int(told[1]) <= 110, "the second includes starting up, on a busy machine too"


class TestFaults:
    """A broker and a PostgreSQL that go away and come back under a run."""

    def test_a_broker_restart_delivers_what_was_to_be_sent_meanwhile(self, settings: Settings, tmp_path: Path) -> None:
        service = broker(free_port())
        own = replace(settings, kafka_bootstrap_servers=service.url)
        with running(service, tmp_path) as first, simulating(own) as reports:
            eventually(lambda: reports and reports[-1].sent > 50)
            first.process.kill()
            eventually(lambda: reports[-1].waiting > 100)
            with running(service, tmp_path) as second:
                eventually(lambda: reports[-1].waiting < 100)
                done = reports.end()
                arrived = consumed(service.url, "user_activity", lambda found: len(found) > 100)
                second.process.kill()  # it takes its time to leave its clients
        assert done.failed == 0
        assert done.sent == pytest.approx(200 * done.seconds, rel=0.1)
        assert arrived

    def test_a_postgresql_that_is_away_stops_changes_but_not_events(
        self, settings: Settings, postgres_cluster: tuple[Cluster, int]
    ) -> None:
        cluster, port = postgres_cluster
        name = settings.postgres_url.rpartition("/")[2].partition("?")[0]
        database = sql.Identifier(name)
        allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        with psycopg.connect(cluster.url(port, "postgres"), autocommit=True) as admin, simulating(settings) as reports:
            eventually(lambda: reports and reports[-1].changes > 0)
            admin.execute(allow.format(database, sql.SQL("false")))
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            eventually(lambda: reports[-1].problem)
            problem, sent, changes = reports[-1].problem, reports[-1].sent, reports[-1].changes
            admin.execute(allow.format(database, sql.SQL("true")))
            eventually(lambda: reports[-1].changes > changes and not reports[-1].problem)
            assert reports[-1].sent > sent
        assert problem
        assert "PostgreSQL at" in problem
        assert cluster.password not in problem

    def test_stopping_is_quick_even_without_a_broker(self, settings: Settings, tmp_path: Path) -> None:
        service = broker(free_port())
        own = replace(settings, kafka_bootstrap_servers=service.url)
        with running(service, tmp_path) as process, simulating(own) as reports:
            eventually(lambda: reports)
            process.process.kill()
            eventually(lambda: reports[-1].waiting > 50)  # more than what is on its way at any moment
            begun = time.monotonic()
            done = reports.end()
        assert time.monotonic() - begun < 8
        assert done.problem
        assert "not delivered" in done.problem


class TestProcess:
    """`python -m recs_platform.simulator`, the stack's part."""

    def test_it_fills_in_the_past_once_and_ends_when_asked(self, settings: Settings, tmp_path: Path) -> None:
        service = broker(free_port())
        own = replace(settings, kafka_bootstrap_servers=service.url)
        with running(service, tmp_path):
            first, again = run_process(own), run_process(own)
            past = consumed(service.url, "user_activity", lambda found: len(found) > 30_000)
        assert "events of the past 48 hours" in first
        assert "sent " in first
        assert "events of the past" not in again
        assert len(past) < 45_000

    def test_history_is_not_sent_into_a_topic_that_is_in_use(self, settings: Settings) -> None:
        simulate(settings, 100, 10, 1, after(0.5))
        assert prefill(settings, 10, 1) == 0


class Timekeeper:
    """Compares each report with the clock, and lets a run go on until a second one is not behind."""

    def __init__(self, rate: float, seconds: float = 60) -> None:
        self.rate, self.began, self.given_up = rate, time.time(), time.time() + seconds
        self.asked: list[float] = []
        self.reports: list[Progress] = []

    def is_satisfied(self) -> bool:
        now = time.time()
        assert now < self.given_up, f"the rate is not held: {self.reports}"
        self.asked = [*self.asked[:1], now]
        return len(self.reports) > 1 and self.reports[-1].behind < 0.1

    def look(self, done: Progress) -> None:
        """Nothing was sent too early, and all is sent that was to be by the time the latest event was due."""
        self.reports.append(done)
        due = done.sent / self.rate + done.behind  # seconds after the start, when the latest was sent
        assert done.behind >= 0
        assert self.asked[-1] - self.asked[0] - 0.001 < due < time.time() - self.began


class Reports(list[Progress]):
    """The reports of a run in the background; `end` stops it and gives the last word."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.result: Future[Progress] = Future()

    def end(self) -> Progress:
        self.stop.set()
        return self.result.result(timeout=20)


@contextmanager
def simulating(settings: Settings) -> Iterator[Reports]:
    reports = Reports()
    with ThreadPoolExecutor(1) as pool:
        reports.result = pool.submit(
            simulate, settings, 200, 500, 1, reports.stop.is_set, reports.append, changes_per_minute=300
        )
        try:
            yield reports
        finally:
            reports.end()


def eventually(condition: Callable[[], object], seconds: float = 20) -> None:
    assert wait_until(lambda: bool(condition()), seconds), "it did not come about in time"


def environment(settings: Settings) -> dict[str, str]:
    return {
        "RECS_STATE_DIR": str(settings.state_dir),
        "RECS_KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "RECS_POSTGRES_URL": settings.postgres_url,
        "RECS_SIMULATE_RATE": "100",
    }


def run_process(settings: Settings) -> str:
    """The output of the process, which is asked to end once it has sent something."""
    command = [sys.executable, "-m", "recs_platform.simulator"]
    env = {**os.environ, **environment(settings)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        lines = []
        for line in child.stdout:
            lines.append(line)
            if "catalog changes" in line:
                child.send_signal(signal.SIGTERM)
    assert child.returncode == 0
    return "".join(lines)
