"""The stack that is measured, started by the project's own means: servers in one state directory, engines in others.

An engine of its own state directory can be started late, killed or begun anew while the servers go on.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import redis

from bench.machine import measured_cores, on_cores
from bench.traffic import Population, products, shoppers
from recs_platform.awaiting import wait_until
from recs_platform.catalog import connected, seed
from recs_platform.engines.local.client import LocalEngine
from recs_platform.engines.status import Status
from recs_platform.errors import StackError
from recs_platform.serving import keys
from recs_platform.settings import Settings
from recs_platform.stack import control
from recs_platform.stack.postgres import cluster
from recs_platform.stack.process import marked

BROKER, STORES = "broker", ("postgres", "valkey")
UP_SECONDS = 120.0
POLL_SECONDS = 0.02


@contextmanager
def workspace() -> Iterator[Path]:
    """A directory for state that is gone afterwards; PostgreSQL's own user may pass through it."""
    home = Path(tempfile.mkdtemp(prefix="recs-bench-"))
    home.chmod(0o711)
    try:
        yield home
    finally:
        for state_dir in home.iterdir():
            remove(state_dir)
        shutil.rmtree(home, ignore_errors=True)


def remove(state_dir: Path) -> None:
    """Takes away the files of a stack that is stopped; those of PostgreSQL may be elsewhere."""
    if (state_dir / "postgres.password").exists():
        shutil.rmtree(cluster(state_dir).home, ignore_errors=True)
    shutil.rmtree(state_dir, ignore_errors=True)


class Servers:
    """PostgreSQL, Valkey and the broker, empty but for the catalog that `fill` puts in.

    The broker has a supervisor of its own: it can be renewed, and one that died often would be started again late.
    """

    def __init__(self, state_dir: Path) -> None:
        self.state_dir, self._broker_dir = state_dir, state_dir.with_name(f"{state_dir.name}-{BROKER}")
        try:
            _up(state_dir, STORES, {"RECS_SIMULATE_USERS": "1"})
            _up(self._broker_dir, (BROKER,), {})
        except BaseException:
            self.close()
            raise
        kafka = Settings.load({}, state_dir=self._broker_dir).kafka_bootstrap_servers
        self.settings = replace(Settings.load({}, state_dir=state_dir), kafka_bootstrap_servers=kafka)

    def fill(self, population: Population) -> None:
        """The catalog tables hold this population's products and shoppers, and nothing else."""
        url = self.settings.postgres_url
        with connected(url) as connection:
            connection.execute("TRUNCATE public.product_catalog, public.customers")
        seed(url, products(population), shoppers(population))
        with connected(url) as connection:
            connection.execute("ANALYZE public.product_catalog, public.customers")

    def renew_broker(self) -> None:
        """Stops the broker and starts an empty one at the same address; returns once it has its topics."""
        control.stop_stack(self._broker_dir)
        _up(self._broker_dir, (BROKER,), {})

    def redis_url(self, database: int) -> str:
        return f"{self.settings.redis_url.rpartition('/')[0]}/{database}"

    def processes(self) -> dict[str, list[psutil.Process]]:
        found = {**marked(self.state_dir), **marked(self._broker_dir)}
        return {part: found[part] for part in (*STORES, BROKER) if part in found}

    def close(self) -> None:
        """Stops them and takes their files away; when one cannot be stopped, the others still are."""
        with ExitStack() as closing:
            closing.callback(_discard, self.state_dir)
            closing.callback(_discard, self._broker_dir)


class Engine:
    """One local engine on the servers. `database` is the number of the Redis database it writes to; `sql_dir` has the files,
    those of the checkout if not given."""

    def __init__(
        self, servers: Servers, state_dir: Path, database: int = 0, slot: str = "recs", sql_dir: Path | None = None
    ) -> None:
        self.servers, self.state_dir, self.slot = servers, state_dir, slot
        self._files = {"RECS_SQL_DIR": str(sql_dir)} if sql_dir else {}
        self.redis_url = servers.redis_url(database)
        self.client: LocalEngine | None = None

    def start(self) -> None:
        """Returns once it answers."""
        try:
            _up(self.state_dir, ("engine",), self.environment())
        except BaseException:
            control.stop_stack(self.state_dir)
            raise
        self.client = LocalEngine(self.settings)

    def environment(self) -> dict[str, str]:
        found = self.servers.settings
        return {
            "RECS_STATE_DIR": str(self.state_dir),
            "RECS_KAFKA_BOOTSTRAP_SERVERS": found.kafka_bootstrap_servers,
            "RECS_POSTGRES_URL": found.postgres_url,
            "RECS_REDIS_URL": self.redis_url,
            "RECS_REPLICATION_SLOT": self.slot,
            **self._files,
        }

    @property
    def settings(self) -> Settings:
        return Settings.load({}, state_dir=self.state_dir)

    def status(self, window: float = 60.0) -> Status:
        """See `LocalEngine.status`."""
        assert self.client is not None, "the engine has not been started"
        return self.client.status(window)

    def ask(self, sql: str, *params: object) -> list[dict[str, Any]]:
        """Rows of a query over the engine's relations."""
        assert self.client is not None, "the engine has not been started"
        rows: list[dict[str, Any]] = self.client.query(sql, params).to_pylist()
        return rows

    def process(self) -> psutil.Process:
        """Its main process. Raises `StackError` while there is none."""
        found = marked(self.state_dir).get("engine")
        if not found:
            raise StackError("the engine does not run")
        return found[0]

    def processes(self) -> list[psutil.Process]:
        return marked(self.state_dir).get("engine", [])

    def signal(self, number: signal.Signals) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def close(self) -> None:
        self.signal(signal.SIGCONT)  # one that stands still cannot end in good order
        client, self.client = self.client, None
        try:
            if client is not None:
                client.close()
        finally:
            control.stop_stack(self.state_dir)

    def close_for_good(self) -> None:
        """Ends it and takes away all it left: slot, keys and file. The next one begins from nothing."""
        self.close()
        with connected(self.servers.settings.postgres_url) as connection:
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", [self.slot]
            )
        with redis.Redis.from_url(self.redis_url) as connection_to_redis:
            connection_to_redis.flushdb()
        remove(self.state_dir)


def live_versions(redis_url: str, *names: str) -> dict[str, str]:
    """The live version of each sink that has one."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as connection:
        found = connection.mget([keys.pointer(name) for name in names])
    return {name: version for name, version in zip(names, found, strict=True) if version}


def await_pointers(redis_url: str, *names: str) -> None:
    """Returns once every sink has a live version. Raises `StackError` when one still has none."""
    if not wait_until(lambda: len(live_versions(redis_url, *names)) == len(names), UP_SECONDS, POLL_SECONDS):
        raise StackError(f"no live version of {', '.join(names)} in Redis after {UP_SECONDS:.0f} s")


def _discard(state_dir: Path) -> None:
    control.stop_stack(state_dir)
    remove(state_dir)


def _up(state_dir: Path, parts: tuple[str, ...], environment: Mapping[str, str]) -> None:
    with on_cores(measured_cores()):
        control.start_stack(state_dir, parts, environment)
    try:
        control.await_healthy(state_dir, control.ignore, UP_SECONDS)
    except BaseException:
        control.stop_stack(state_dir)
        raise
