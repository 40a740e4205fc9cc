"""The real services the tests run against: started once a session (and xdist worker), clean for every test."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from recs_platform.stack.broker import broker, probe_kafka
from recs_platform.stack.postgres import Cluster, cluster, postgres
from recs_platform.stack.process import running
from recs_platform.stack.service import free_port
from recs_platform.stack.valkey import valkey
from recs_platform_tests.filled_redis import emptied
from recs_platform_tests.valkey_cluster import redis_cluster

FAST_POSTGRES = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "shared_buffers=32MB")


@pytest.fixture(scope="session", autouse=True)
def only_settings_of_tests() -> Iterator[None]:
    """What is set for one's own work, such as the address of a real Redis, is nothing to test against."""
    with pytest.MonkeyPatch.context() as patched:
        for name in list(os.environ):
            if name.startswith("RECS_") and not name.startswith("RECS_TEST_"):
                patched.delenv(name)
        yield


@pytest.fixture(scope="session")
def services_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and logs of the session's servers."""
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="session")
def valkey_url(services_dir: Path) -> Iterator[str]:
    """A Valkey for the session; a test wants `redis_url`."""
    service = valkey(services_dir / "valkey", free_port())
    with running(service, services_dir):
        yield service.url


@pytest.fixture
def redis_url(valkey_url: str) -> str:
    """An empty Valkey."""
    return emptied(valkey_url)


@pytest.fixture(scope="session")
def redis_cluster_url(services_dir: Path) -> Iterator[str]:
    """A cluster of three nodes for the session; a test wants `cluster_url`."""
    with redis_cluster(services_dir / "cluster") as cluster:
        yield cluster.url


@pytest.fixture
def cluster_url(redis_cluster_url: str) -> str:
    """An empty Redis Cluster."""
    return emptied(redis_cluster_url)


@pytest.fixture(scope="session")
def kafka_servers(services_dir: Path) -> Iterator[str]:
    """Bootstrap servers of a broker for the session: the embedded one, or the real Kafka of $RECS_TEST_KAFKA.

    Topics stay until the session ends: name yours with `topic_prefix`.
    """
    if given := os.environ.get("RECS_TEST_KAFKA"):
        probe_kafka(given)
        yield given
        return
    service = broker(free_port())
    with running(service, services_dir):
        yield service.url


@pytest.fixture
def topic_prefix() -> str:
    """A beginning of topic names that no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}_"


@pytest.fixture(scope="session")
def postgres_cluster(services_dir: Path) -> Iterator[tuple[Cluster, int]]:
    """A PostgreSQL with wal_level=logical for the session, and its port; a test wants `postgres_url`."""
    found, port = cluster(services_dir), free_port()
    try:
        with running(postgres(found, port, FAST_POSTGRES), services_dir):
            yield found, port
    finally:
        shutil.rmtree(found.home)  # run by root it may lie outside pytest's own directory


@pytest.fixture
def postgres_url(postgres_cluster: tuple[Cluster, int]) -> Iterator[str]:
    """A new, empty database, of a superuser; dropped after the test with its replication slots."""
    with _database(*postgres_cluster) as url:
        yield url


@pytest.fixture(scope="module")
def lasting_postgres_url(postgres_cluster: tuple[Cluster, int]) -> Iterator[str]:
    """The same for all tests of a file."""
    with _database(*postgres_cluster) as url:
        yield url


@contextmanager
def _database(found: Cluster, port: int) -> Iterator[str]:
    name = f"t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(found.url(port, "postgres"), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield found.url(port, name)
        _drop_database(admin, name)


def _drop_database(admin: psycopg.Connection[tuple[object, ...]], name: str) -> None:
    slots = "FROM pg_replication_slots WHERE database = %s"
    admin.execute(f"SELECT pg_terminate_backend(active_pid, 5000) {slots} AND active_pid IS NOT NULL", [name])
    admin.execute(f"SELECT pg_drop_replication_slot(slot_name) {slots}", [name])
    admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
