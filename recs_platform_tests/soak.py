"""Faults, one after another, on a whole stack under load: `make soak`, and a short one in the suite.

Pages are asked all the while, and must be answered. A fault is over when every box is well again and a new event and a new
name of a product have reached Redis. At the end input stops: each key in Redis is compared with its row, and what is served with a
count in plain Python of what the engine has taken in.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from random import Random

import psutil
import psycopg
import redis
from confluent_kafka import KafkaException

from recs_platform.audit import audit
from recs_platform.awaiting import wait_until
from recs_platform.engines import connect
from recs_platform.engines.base import StreamEngine
from recs_platform.errors import RecsError
from recs_platform.events import PURCHASES, USER_ACTIVITY, EventProducer
from recs_platform.health import Memory
from recs_platform.lineage import label
from recs_platform.monitor import look
from recs_platform.pipeline import Pipeline
from recs_platform.serving import keys
from recs_platform.settings import Settings, project_root
from recs_platform.simulator import prefill, simulate
from recs_platform.stack import control
from recs_platform.stack.parts import environment
from recs_platform.stack.postgres import cluster
from recs_platform.stack.process import marked
from recs_platform.topics import admin_client, ensure_topics
from recs_platform_tests.oracle import Message
from recs_platform_tests.shop_floor import assert_documents_are_right, documents, oracle_of

PARTS = ("postgres", "valkey", "broker", "engine", "api")
USERS, SEED = 300, 1
HUNG_SECONDS = 25
UP_SECONDS, MENDED_SECONDS, SEEN_SECONDS = 90.0, 120.0, 60.0
LAST_SECONDS = 20.0
BETWEEN_PAGES = 0.02
PROBES_FROM = 9_000_000  # ids of shoppers that only probe


@dataclass
class Outcome:
    """What became of one fault: seconds until it was reported (None: it was over before anybody looked), in what words,
    and seconds from its end until all was as before."""

    fault: str
    seen: float | None
    words: str
    mended: float


@dataclass
class Floor:
    """A stack of its own, traffic on it, and pages that are asked."""

    state_dir: Path
    rate: float
    pages: int = 0
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _memory: Memory = field(default_factory=dict)
    _probes: int = 0
    _threads: list[threading.Thread] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        return Settings.load({}, state_dir=self.state_dir)

    def open(self) -> None:
        given = {
            "RECS_API_PORT": "0",
            "RECS_SIMULATE_USERS": str(USERS),
            "RECS_RESTART_HUNG_SECONDS": str(HUNG_SECONDS),
        }
        # no fault is done to a Redis of one's own
        others = {name: value for name, value in os.environ.items() if not name.startswith("RECS_")}
        only = [word for part in PARTS for word in ("--only", part)]
        subprocess.run(
            [sys.executable, "-c", "from recs_platform.cli import main; main()", "up", "--detach", *only],
            env={**others, "RECS_STATE_DIR": str(self.state_dir), **given},
            stdout=subprocess.DEVNULL,
            timeout=UP_SECONDS,
            check=True,
        )
        prefill(self.settings, USERS, SEED, events=5_000)
        assert wait_until(self._serves, UP_SECONDS), "no page is answered"
        self._threads = [threading.Thread(target=work) for work in (self._send, self._ask)]
        for thread in self._threads:
            thread.start()

    def stop_sending(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        self.stop_sending()
        control.stop_stack(self.state_dir)
        shutil.rmtree(cluster(self.state_dir).home, ignore_errors=True)

    def _send(self) -> None:
        settings = self.settings
        simulate(settings, self.rate, USERS, SEED, self._stop.is_set, changes_per_minute=120)

    def _ask(self) -> None:
        rng = Random(SEED)
        while not self._stop.wait(BETWEEN_PAGES):
            self.pages += 1
            if problem := self._asked(rng.randint(1, USERS)):
                self.failures.append(f"{datetime.now(UTC):%H:%M:%S} {problem}")

    def _asked(self, user: int) -> str:
        url = f"{self.settings.api_url}/recommendations/{user}?limit=5"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return "" if json.load(answer)["recommended_products"] else f"nothing for {user}"
        except (OSError, ValueError) as error:
            return f"{url}: {error}"

    def _serves(self) -> bool:
        return not self._asked(1)

    # -- what faults do ---------------------------------------------------------------------------------------------

    def processes(self, part: str) -> list[psutil.Process]:
        return marked(self.state_dir).get(part, [])

    def signal(self, part: str, number: signal.Signals) -> None:
        for process in self.processes(part):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def send(self, topic: str, *payloads: bytes) -> None:
        with EventProducer(self.settings.kafka_bootstrap_servers) as producer:
            for payload in payloads:
                producer.send_raw(topic, None, payload)

    def sql(self, statement: str, *params: object) -> None:
        with psycopg.connect(self.settings.postgres_url, autocommit=True) as connection:
            connection.execute(statement, params or None)

    @contextmanager
    def redis(self) -> Iterator[redis.Redis]:
        with redis.Redis.from_url(self.settings.redis_url, decode_responses=True, socket_timeout=5) as server:
            yield server

    # -- how it is ---------------------------------------------------------------------------------------------------

    def trouble(self) -> str:
        """Why not all is well, "" where it is."""
        stack = control.read_stack(self.state_dir)
        if stack is None or not stack.healthy:
            ill = [f"{p.name}: {p.problem or p.state}" for p in stack.parts if p.state != "healthy"] if stack else []
            return "; ".join(ill) or "no supervisor"
        report, self._memory = look(self.settings, Pipeline.load(self.settings.sql_dir), self._memory)
        told = [f"{label(c.blame)} is {c.state}: {c.words}" for c in report.causes]
        return "; ".join(told) or "; ".join(report.engine.get("problems", {}).values())

    def is_fresh(self) -> bool:
        """Whether an event and a change of the catalog that are sent now reach Redis."""
        self._probes += 1
        user, name = PROBES_FROM + self._probes, f"probe {self._probes}"
        try:
            with psycopg.connect(self.settings.postgres_url, autocommit=True) as connection:
                row = connection.execute(
                    "SELECT product_id FROM product_catalog ORDER BY product_id LIMIT 1"
                ).fetchone()
                assert row is not None
                connection.execute("UPDATE product_catalog SET name = %s WHERE product_id = %s", [name, row[0]])
            self.send(USER_ACTIVITY, view(user, row[0]))
            with self.redis() as server:
                return wait_until(lambda: _is_shown(server, user, str(row[0]), name), 10, 0.1)
        except (psycopg.Error, redis.RedisError, RecsError):
            return False


def _is_shown(server: redis.Redis, user: int, product: str, name: str) -> bool:
    versions = [server.get(keys.pointer(n)) for n in (keys.USER_RECOMMENDATIONS, keys.PRODUCTS)]
    document = server.get(keys.document(keys.PRODUCTS, str(versions[1]), product))
    listed = server.exists(keys.document(keys.USER_RECOMMENDATIONS, str(versions[0]), str(user)))
    return bool(listed) and document is not None and json.loads(str(document))["name"] == name


def view(user: object, product: str, at: datetime | None = None) -> bytes:
    moment = (at or datetime.now(UTC)).isoformat()
    event = {"event_type": "page_view", "user_id": user, "product_id": product, "timestamp": moment}
    return json.dumps(event).encode()


# -- faults -----------------------------------------------------------------------------------------------------------

AWAY = (psycopg.Error, redis.RedisError, RecsError, KafkaException, OSError)
"""What a fault, or its end, is refused with by a part that another one has stopped."""


def in_the_end(work: Callable[[], object]) -> None:
    """Again and again until it is not refused any more."""

    def is_done() -> bool:
        with suppress(*AWAY):
            work()
            return True
        return False

    assert wait_until(is_done, MENDED_SECONDS, 0.5)


Fault = Callable[[Floor, Random], Iterator[None]]
"""Does it, yields while it lasts, and ends it."""


def killed(part: str) -> Fault:
    def fault(floor: Floor, rng: Random) -> Iterator[None]:
        floor.signal(part, signal.SIGKILL)
        yield

    return fault


def stopped(part: str) -> Fault:
    """Stands still until that is seen."""

    def fault(floor: Floor, rng: Random) -> Iterator[None]:
        processes = floor.processes(part)
        for process in processes:
            process.suspend()
        yield
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()

    return fault


def hung(part: str) -> Fault:
    """Stands still for good: the supervisor has to end it."""

    def fault(floor: Floor, rng: Random) -> Iterator[None]:
        for process in floor.processes(part):
            process.suspend()
        yield

    return fault


def flushed(floor: Floor, rng: Random) -> Iterator[None]:
    with floor.redis() as server:
        server.flushall()
    yield


def full(floor: Floor, rng: Random) -> Iterator[None]:
    """Redis refuses what is written, and goes on answering what is read."""
    with floor.redis() as server:
        server.config_set("maxmemory", "1")
        yield
        with suppress(redis.RedisError):  # it is another one by now, and not full
            server.config_set("maxmemory", "0")


def keys_lost(floor: Floor, rng: Random) -> Iterator[None]:
    """A tenth of the keys of one sink, and one that nobody has written. Nothing mends that but writing it anew."""
    with floor.redis() as server:
        prefix = keys.prefix(keys.PRODUCTS, str(server.get(keys.pointer(keys.PRODUCTS))))
        found = sorted(server.scan_iter(match=f"{prefix}*", count=1000))
        server.delete(*rng.sample(found, len(found) // 10))
        server.set(f"{prefix}nobody", "{}")
    yield

    def mended() -> None:
        with connect(floor.settings) as engine:
            engine.apply(["products_sink"])

    in_the_end(mended)


def slot_dropped(floor: Floor, rng: Random) -> Iterator[None]:
    def dropped() -> bool:
        slot = floor.settings.replication_slot
        with suppress(psycopg.Error):  # the engine reads from it right now, or stands still while it does
            floor.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", slot)
            floor.sql("SELECT pg_drop_replication_slot(%s)", slot)
            return True
        return False

    assert wait_until(dropped, 20)
    yield


def topic_recreated(floor: Floor, rng: Random) -> Iterator[None]:
    servers = floor.settings.kafka_bootstrap_servers
    admin = admin_client(servers)
    admin.delete_topics([PURCHASES])[PURCHASES].result(10)
    yield
    in_the_end(lambda: ensure_topics(servers, [PURCHASES], 1))


def poisoned(floor: Floor, rng: Random) -> Iterator[None]:
    now = datetime.now(UTC)
    users: list[object] = ["'; DROP TABLE user_activity; --", None, 1.5, True, 10**30, [], {}]
    floor.send(
        USER_ACTIVITY,
        *(b"", b"{", b"null", b"[]", b"\xff\xfe", b"\x00", b'{"event_type":"page_view"}', b"x" * 100_000),
        *(view(user, "product_1") for user in users),
        view(1, "product_1", now + timedelta(days=1)),
    )
    floor.send(PURCHASES, b"{}", view(1, "product_1"))
    yield


def doubled_and_late(floor: Floor, rng: Random) -> Iterator[None]:
    """The same events twice, out of order, up to a week old, of ids that are hard to quote."""
    now = datetime.now(UTC)
    events = [
        view(rng.randint(1, USERS), f"product_{rng.randint(1, 50)}", now - timedelta(hours=h)) for h in range(170)
    ]
    odd = [
        view(rng.randint(1, USERS), product)
        for product in ("a'b", 'a"b', "a:b*?[c]", "ключ", "x" * 5_000, "${version}")
    ]
    floor.send(USER_ACTIVITY, *rng.sample(events * 2, len(events) * 2), *odd)
    yield


def catalog_emptied(floor: Floor, rng: Random) -> Iterator[None]:
    """And filled again, in one transaction each: shoppers are never shown an empty shop."""
    with psycopg.connect(floor.settings.postgres_url) as connection:
        connection.execute("CREATE TEMP TABLE before AS SELECT * FROM product_catalog")
        connection.execute("TRUNCATE product_catalog")
        connection.execute("INSERT INTO product_catalog SELECT * FROM before")
    yield


def second_engine(floor: Floor, rng: Random) -> Iterator[None]:
    """On the same state directory: it ends by itself, and says why."""
    done = subprocess.run(
        [sys.executable, "-m", "recs_platform.engines.local"],
        env=environment(floor.settings),
        cwd=project_root(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    yield


def rebuilt(floor: Floor, rng: Random) -> Iterator[None]:
    with connect(floor.settings) as engine:
        engine.apply([rng.choice(["user_recommendations", "trending_products", "user_activity", "product_catalog"])])
    yield


FAULTS: Mapping[str, Fault] = {
    **{f"{part} killed": killed(part) for part in ("engine", "postgres", "valkey", "broker")},
    **{f"{part} stands still": stopped(part) for part in ("engine", "postgres", "valkey", "broker")},
    **{f"{part} hangs": hung(part) for part in ("engine", "valkey")},
    "Redis flushed": flushed,
    "Redis full": full,
    "keys lost in Redis": keys_lost,
    "replication slot dropped": slot_dropped,
    "topic deleted and created": topic_recreated,
    "poison": poisoned,
    "doubled and late": doubled_and_late,
    "catalog emptied and filled": catalog_emptied,
    "a second engine": second_engine,
    "rebuilt": rebuilt,
}
LASTING = {name for name in FAULTS if "stands still" in name or name == "Redis full"}
"""Those that go on until they are seen."""
ALONE = {"a second engine"}
"""Beside a dead one it is the first."""


@contextmanager
def lasting(floor: Floor, names: Sequence[str], rng: Random) -> Iterator[Sequence[str]]:
    """Begins faults, one after the other; gives those that could be done beside the ones before."""
    with ExitStack() as stack:
        done = []
        for name in names:
            try:
                stack.enter_context(contextmanager(FAULTS[name])(floor, rng))
                done.append(name)
            except AWAY:
                if not done:
                    raise
        yield done


def carried_out(floor: Floor, *names: str, rng: Random) -> Outcome:
    """Faults at once. Raises `AssertionError` where not all is well in time."""
    began, seen, words = time.monotonic(), None, ""
    with lasting(floor, names, rng) as done:
        name, is_lasting = " + ".join(done), not LASTING.isdisjoint(done)
        deadline = time.monotonic() + (SEEN_SECONDS if is_lasting else 0.5)
        while not words and time.monotonic() < deadline:
            words = floor.trouble()
            seen = time.monotonic() - began if words else None
    assert words or not is_lasting, f"{name} was not seen within {SEEN_SECONDS:.0f} s"
    ended, trouble = time.monotonic(), "not looked at"
    while trouble or not floor.is_fresh():
        assert time.monotonic() - ended < MENDED_SECONDS, f"{name}: not well after {MENDED_SECONDS:.0f} s: {trouble}"
        trouble = floor.trouble()
        if trouble and not words:
            seen, words = time.monotonic() - began, trouble
    return Outcome(name, seen, words, time.monotonic() - ended)


def check_the_end(floor: Floor) -> None:
    """Redis is what the views say, and the views are what was taken in."""
    floor.stop_sending()
    settings = floor.settings
    assert wait_until(floor.is_fresh, 60), "it does not get fresh"
    with connect(settings) as engine:
        problems = [a.problem for a in audit(engine, Pipeline.load(settings.sql_dir), settings.redis_url, None)]
        assert not any(problems), problems
        deadline = time.monotonic() + LAST_SECONDS
        while wrong := _difference(floor, engine):  # of a topic that brings little the last is taken in a moment later
            assert time.monotonic() < deadline, wrong
    assert not floor.failures, f"{len(floor.failures)} of {floor.pages} pages: {floor.failures[:3]}"


def _difference(floor: Floor, engine: StreamEngine) -> str:
    """Between what is served and a count in plain Python of what was taken in; "" where there is none."""
    log = [
        Message(topic, row["payload"], row["received_at"])
        for topic in (USER_ACTIVITY, PURCHASES)
        for row in engine.query(f"SELECT payload, received_at FROM {topic}_raw").to_pylist()
    ]
    oracle = oracle_of(floor.settings.postgres_url, datetime.now(UTC)).read(log)
    with floor.redis() as server:
        try:
            assert_documents_are_right(oracle, lambda name: documents(server, name))
        except AssertionError as error:
            return str(error) or "what is served is not what was taken in"
    return ""


@contextmanager
def opened(state_dir: Path, rate: float) -> Iterator[Floor]:
    floor = Floor(state_dir, rate)
    try:
        floor.open()
        yield floor
    finally:
        floor.close()


def run(floor: Floor, faults: Iterable[Sequence[str]], rng: Random, tell: Callable[[Outcome], None]) -> None:
    """Faults one after another, or several at once."""
    for names in faults:
        tell(carried_out(floor, *names, rng=rng))
    check_the_end(floor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--rate", type=float, default=200.0, help="events a second")
    parser.add_argument("--fault", action="append", choices=sorted(FAULTS), help="these alone, in this order")
    parser.add_argument("--at-once", type=int, default=1, help="how many faults, each begun beside the ones before")
    given = parser.parse_args()
    rng, until = Random(given.seed), time.monotonic() + 60 * given.minutes
    print(f"seed {given.seed}, {given.rate:g} events/s")

    def names() -> Iterator[str]:
        if given.fault:
            yield from given.fault
            return
        while time.monotonic() < until:
            chosen = sorted(FAULTS.keys() - (ALONE if given.at_once > 1 else set()))
            yield from rng.sample(chosen, len(chosen))

    def faults() -> Iterator[Sequence[str]]:
        left = iter(names())
        while chosen := [*islice(left, given.at_once)]:
            yield chosen

    def tell(outcome: Outcome) -> None:
        seen = f"{outcome.seen:5.1f} s" if outcome.seen is not None else "      –"
        print(f"{outcome.fault:28} seen {seen}  well {outcome.mended:5.1f} s  {outcome.words[:110]}", flush=True)

    home = Path(tempfile.mkdtemp(prefix="recs-soak-"))
    home.chmod(0o711)
    try:
        with opened(home / "state", given.rate) as floor:
            run(floor, faults(), rng, tell)
            print(f"Redis is right; {floor.pages:,} pages asked, all answered")
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
