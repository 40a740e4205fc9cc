"""Who is compared: the platform and what one would do without it, all on the same topic and the same Valkey."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import psycopg
import redis

from bench.baselines.materialized import OPTIONS, SCHEMA
from bench.baselines.reader import CONSUMED
from bench.costs import family
from bench.machine import measured_cores, on_cores
from bench.probes import Kind
from bench.session import Preloaded, Session
from bench.stack import Engine, live_versions
from bench.tail import Tail
from bench.traffic import products
from recs_platform.awaiting import wait_until
from recs_platform.engines.local.client import LocalEngine
from recs_platform.errors import StackError
from recs_platform.serving import keys
from recs_platform.settings import Settings, project_root
from recs_platform.stack import parts
from recs_platform.stack.postgres import cluster, postgres
from recs_platform.stack.process import Running, marked, running
from recs_platform.stack.service import HOST, Service, free_port

PLATFORM, FULL, VIEWS, SETS = "the platform", "the same SQL in full", "PostgreSQL views", "Redis sorted sets"
DATABASES = {PLATFORM: 0, FULL: 1, VIEWS: 2, SETS: 3}
BOTH = (Kind.RECOMMENDATIONS, Kind.TRENDING)
SINKS = {Kind.RECOMMENDATIONS: keys.USER_RECOMMENDATIONS, Kind.TRENDING: keys.TRENDING_PRODUCTS}
START_SECONDS = 60.0


@dataclass(frozen=True)
class Contender:
    """One of them. `processes` are all that it alone needs: they stand still while others have their turn."""

    name: str
    kinds: tuple[Kind, ...]
    redis_url: str
    processes: Callable[[], list[psutil.Process]]
    shows: Callable[[Tail], bool]
    renewed: Callable[[], None] = lambda: None
    """Tells it that the topic is a new one; an engine sees it by itself."""
    alive: Callable[[], bool] = lambda: True
    """Whether it can still show anything. The platform's supervisor starts its engine again."""

    def signal(self, number: signal.Signals) -> None:
        for process in family(self.processes()):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def stop(self) -> None:
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)


@contextmanager
def contenders(session: Session, stack: Preloaded) -> Iterator[list[Contender]]:
    """All of them, each with the whole topic taken in, one after the other; all but the platform end afterwards."""
    engine = stack.engine
    found = [Contender(PLATFORM, BOTH, engine.redis_url, engine.processes, _as_engine(engine.redis_url))]
    with ExitStack() as opened:
        opened.callback(found[0].go_on)
        for name, start in ((SETS, sorted_sets), (VIEWS, materialized), (FULL, full)):
            session.say(f"{name}: takes in what the topic holds")
            found[-1].stop()
            contender = opened.enter_context(start(session, stack))
            opened.callback(contender.go_on)  # one that stands still cannot end in good order
            found.append(contender)
            await_shown(session, contender, session.send_backlog(stack, 100))
        found[-1].stop()
        yield found


def await_shown(session: Session, contender: Contender, tail: Tail) -> None:
    """Returns when it shows the end of a backlog.

    Raises `RuntimeError` when it has died and `TimeoutError` when it does not within the session's patience.
    """

    def shown() -> bool:
        if not contender.alive():
            raise RuntimeError(f"{contender.name} has ended by itself")
        return contender.shows(tail)

    if not wait_until(shown, session.options.patience, 0.02):
        raise TimeoutError(f"{contender.name} does not show the last events after {session.options.patience:.0f} s")


@contextmanager
def sorted_sets(session: Session, stack: Preloaded) -> Iterator[Contender]:
    """A consumer and sorted sets: trending alone."""
    url = stack.servers.redis_url(DATABASES[SETS])
    arguments = (stack.servers.settings.kafka_bootstrap_servers, url)
    with _program(session, "bench.baselines.sorted_sets", arguments, url, (Kind.TRENDING,)) as found:
        processes, renewed = partial(_alive, found), partial(found.process.send_signal, signal.SIGHUP)
        shows = _as_consumer(stack, url, (Kind.TRENDING,))
        yield Contender(SETS, (Kind.TRENDING,), url, processes, shows, renewed, found.alive)


@contextmanager
def materialized(session: Session, stack: Preloaded) -> Iterator[Contender]:
    """PostgreSQL with a server of its own, tuned for it."""
    url = stack.servers.redis_url(DATABASES[VIEWS])
    with ExitStack() as opened:
        state_dir = opened.enter_context(session.own_directory("views"))
        home, port = cluster(state_dir), free_port()
        opened.enter_context(on_cores(measured_cores()))
        opened.enter_context(running(postgres(home, port, OPTIONS), state_dir))
        _fill(session, home.url(port))
        arguments = (stack.servers.settings.kafka_bootstrap_servers, url, home.url(port))
        found = opened.enter_context(_program(session, "bench.baselines.materialized", arguments, url, BOTH))
        processes, renewed = partial(_with_server, found, state_dir), partial(found.process.send_signal, signal.SIGHUP)
        yield Contender(VIEWS, BOTH, url, processes, _as_consumer(stack, url, BOTH), renewed, found.alive)


@contextmanager
def full(session: Session, stack: Preloaded) -> Iterator[Contender]:
    """Our engine takes in the past as it does; from then on every view is computed as a whole."""
    engine = Engine(stack.servers, session.directory("full"), DATABASES[FULL], slot="recs_full")
    try:
        engine.start()
        session.await_tail(engine.redis_url, session.send_backlog(stack, 100))
        engine.close()
        url = f"grpc://{HOST}:{free_port()}"
        settings = Settings.load({**engine.environment(), "RECS_ENGINE_URL": url, "RECS_ENGINE_TOKEN": "bench"})
        service = _full_engine(settings)
        with on_cores(measured_cores()), running(service, engine.state_dir, START_SECONDS) as found:
            processes, shows = partial(_alive, found), _as_engine(engine.redis_url)
            yield Contender(FULL, BOTH, engine.redis_url, processes, shows, alive=found.alive)
    finally:
        engine.close_for_good()


def _full_engine(settings: Settings) -> Service:
    """With all that the platform's engine has in its environment."""
    command = (sys.executable, "-m", "bench.baselines.full_engine")
    probe = partial(_probe_engine, settings)
    environment = parts.environment(settings)
    return Service("engine", probe, settings.engine_url, command, environment=environment, directory=project_root())


@contextmanager
def _program(
    session: Session, module: str, arguments: tuple[str, ...], redis_url: str, kinds: tuple[Kind, ...]
) -> Iterator[Running]:
    """A program of bench/baselines/, running once its pointers are in Redis."""
    directory = session.directory("program")
    directory.mkdir()
    names = [SINKS[kind] for kind in kinds]

    def probe() -> None:
        if len(live_versions(redis_url, *names)) < len(names):
            raise StackError(f"{module} has not begun")

    service = Service("program", probe, redis_url, (sys.executable, "-m", module, *arguments), directory=project_root())
    with on_cores(measured_cores()), running(service, directory, START_SECONDS) as found:
        yield found


def _fill(session: Session, url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(SCHEMA.read_text())
        with (
            connection.cursor() as cursor,
            cursor.copy("COPY product_catalog (product_id, category) FROM STDIN") as copy,
        ):
            for product in products(session.population()):
                copy.write_row((product.product_id, product.category))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ANALYZE")


def _as_engine(redis_url: str) -> Callable[[Tail], bool]:
    connection = redis.Redis.from_url(redis_url)
    return lambda tail: tail.arrived(connection)


def _as_consumer(stack: Preloaded, redis_url: str, kinds: tuple[Kind, ...]) -> Callable[[Tail], bool]:
    """These count what they have shown: it must be all that was ever sent."""
    connection = redis.Redis.from_url(redis_url)
    counters = [CONSUMED + SINKS[kind] for kind in kinds]

    def shows(_: Tail) -> bool:
        found: list[bytes | None] = connection.mget(counters)  # type: ignore[assignment]
        return all(int(count or 0) >= stack.activity for count in found)

    return shows


def _probe_engine(settings: Settings) -> None:
    with LocalEngine(settings, timeout=5) as engine:
        engine.health()


def _alive(found: Running) -> list[psutil.Process]:
    return [found.process] if found.alive() else []


def _with_server(program: Running, state_dir: Path) -> list[psutil.Process]:
    return [*_alive(program), *(process for found in marked(state_dir).values() for process in found)]
