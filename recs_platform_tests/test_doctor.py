"""`recs doctor`: what it finds well, what it finds ill, and the remedy it names."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import redis

from recs_platform.catalog import ensure_catalog
from recs_platform.doctor import Diagnosis, Verdict, diagnose
from recs_platform.engines.local.client import LocalEngine
from recs_platform.settings import CDC, Settings
from recs_platform.stack.postgres import Cluster, cluster, postgres
from recs_platform.stack.process import running
from recs_platform.stack.service import free_port
from recs_platform.topics import ensure_topics
from recs_platform_tests.conftest import FAST_POSTGRES
from recs_platform_tests.shop_floor import Shop, own_topics
from recs_platform_tests.test_contract import local


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Without any server."""
    return Settings(state_dir=tmp_path)


def of(thing: str, settings: Settings, environ: dict[str, str] | None = None) -> list[Diagnosis]:
    return [diagnosis for diagnosis in diagnose(settings, environ or {}) if diagnosis.thing == thing]


def ill(thing: str, settings: Settings) -> list[tuple[str, str]]:
    return [(d.words, d.remedy) for d in of(thing, settings) if d.verdict is Verdict.ILL]


def test_a_variable_that_is_no_setting_is_named(settings: Settings) -> None:
    found = of("settings", settings, {"RECS_REDSI_URL": "redis://…", "RECS_STATE_DIR": "/x", "HOME": "/root"})
    assert [(d.verdict, d.words) for d in found] == [
        (Verdict.WARNING, "RECS_REDSI_URL is set, and no such setting is known"),
        (Verdict.WELL, "set: RECS_STATE_DIR"),
    ]


def test_a_disk_that_is_nearly_full_is_ill(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ill("disk", settings)
    monkeypatch.setattr("recs_platform.doctor.DISK_BYTES", 1 << 60)
    assert "make room" in ill("disk", settings)[0][1]


def test_a_state_directory_that_cannot_be_written_to_is_ill(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so it is only said."""
    monkeypatch.setattr("os.access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    assert ill("disk", replace(settings, state_dir=tmp_path / "of" / "ours")) == [
        (f"{tmp_path} cannot be written to", "set RECS_STATE_DIR to another directory")
    ]


def test_more_memory_than_there_is_is_a_warning(settings: Settings) -> None:
    assert [d.verdict for d in of("memory", replace(settings, engine_memory="9000GB"))] == [Verdict.WARNING]
    assert [d.verdict for d in of("memory", replace(settings, engine_memory="100MB"))] == [Verdict.WELL]


def test_a_port_that_was_chosen_and_is_taken_is_ill(settings: Settings) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert ill("ports", replace(settings, redis_port=port)) == [
            (f"RECS_REDIS_PORT={port}: something else listens there", "set RECS_REDIS_PORT to another, or 0")
        ]


def test_a_file_that_is_wrong_is_named(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql" / "x.sql").write_text("SELEC 1")
    wrong = replace(settings, sql_dir=tmp_path / "sql")
    assert "x.sql" in ill("sql/", wrong)[0][0]
    # which is nothing that a server could be blamed for
    addressed = replace(wrong, postgres_url="postgresql://127.0.0.1:1/shop", kafka_bootstrap_servers="127.0.0.1:1")
    assert {d.verdict for thing in ("PostgreSQL", "Kafka") for d in of(thing, addressed)} == {Verdict.SKIPPED}


def test_what_has_no_address_is_left_out(settings: Settings) -> None:
    assert [d.verdict for thing in ("PostgreSQL", "Redis", "Kafka", "the engine") for d in of(thing, settings)] == [
        Verdict.SKIPPED
    ] * 4


def test_a_server_that_does_not_answer_is_ill_and_its_password_is_not_shown(settings: Settings) -> None:
    port = free_port()
    away = replace(
        settings,
        postgres_url=f"postgresql://recs:s3cret@127.0.0.1:{port}/shop",
        redis_url=f"redis://:s3cret@127.0.0.1:{port}/0",
        kafka_bootstrap_servers=f"127.0.0.1:{port}",
        engine_url=f"grpc://127.0.0.1:{port}",
        engine_token="s3cret",
    )
    found = list(diagnose(away, {}))
    for thing in ("PostgreSQL", "Redis", "Kafka", "the engine"):
        assert [d.verdict for d in found if d.thing == thing] == [Verdict.ILL]
    assert "s3cret" not in repr(found)


def test_a_postgres_without_our_tables_says_how_to_get_them(settings: Settings, postgres_url: str) -> None:
    there = replace(settings, postgres_url=postgres_url)
    assert [words for words, _ in ill("PostgreSQL", there)] == [
        "it has no table public.customers",
        "it has no table public.recs_heartbeat",
        "it has no table public.product_catalog",
    ]
    ensure_catalog(postgres_url)
    assert not ill("PostgreSQL", there)


def test_a_role_that_may_not_replicate_is_told_what_to_grant(settings: Settings, postgres_url: str) -> None:
    ensure_catalog(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute("CREATE ROLE reader_only LOGIN PASSWORD 'x'")
        try:
            head, _, tail = postgres_url.partition("@")
            limited = f"{head.partition('://')[0]}://reader_only:x@{tail}"
            assert ("reader_only may not replicate", "ALTER ROLE reader_only REPLICATION") in ill(
                "PostgreSQL", replace(settings, postgres_url=limited)
            )
        finally:
            admin.execute("DROP ROLE reader_only")


@pytest.fixture
def full_redis(redis_url: str) -> Iterator[str]:
    with redis.Redis.from_url(redis_url) as server:
        server.config_set("maxmemory", "1mb")
        server.config_set("maxmemory-policy", "allkeys-lru")
        yield redis_url
        server.config_set("maxmemory", "0")
        server.config_set("maxmemory-policy", "noeviction")


def test_a_redis_that_would_lose_keys_is_ill(settings: Settings, full_redis: str) -> None:
    words = [words for words, _ in ill("Redis", replace(settings, redis_url=full_redis))]
    assert words[0] == "it evicts keys when it is full (allkeys-lru)"
    assert words[1].startswith("it is full to ")


def test_a_clock_that_is_wrong_is_ill(settings: Settings, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ill("Redis", replace(settings, redis_url=redis_url))
    monkeypatch.setattr("recs_platform.doctor.CLOCK_SECONDS", -1.0)
    assert "set the clocks by NTP" in ill("Redis", replace(settings, redis_url=redis_url))[0][1]


def test_topics_are_named_with_their_partitions_and_those_that_are_missing_too(
    settings: Settings, kafka_servers: str, topic_prefix: str, tmp_path: Path
) -> None:
    there = replace(settings, kafka_bootstrap_servers=kafka_servers, sql_dir=own_topics(tmp_path, topic_prefix, CDC))
    assert of("Kafka", there)[0].words == f"at {kafka_servers}: no topics of ours yet"
    ensure_topics(kafka_servers, [f"{topic_prefix}purchases"], 3)
    found = [(d.verdict, d.words) for d in of("Kafka", there)]
    assert found[0] == (Verdict.WELL, f"at {kafka_servers}: {topic_prefix}purchases (3 partitions)")
    assert set(found[1:]) == {
        (Verdict.WARNING, f"there is no topic {topic_prefix}{name}") for name in ("user_activity", "recs_canary")
    }


# -- the slot in PostgreSQL -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A PostgreSQL whose settings a test may choose."""
    found = cluster(tmp_path_factory.mktemp("postgres"))
    yield found
    shutil.rmtree(found.home)


@contextmanager
def postgres_with(found: Cluster, logs: Path, **options: object) -> Iterator[str]:
    """It runs with the catalog's tables, and these settings of the server."""
    port = free_port()
    service = postgres(found, port, (*FAST_POSTGRES, *(f"{name}={value}" for name, value in options.items())))
    with running(service, logs):
        ensure_catalog(service.url)
        yield service.url


def test_a_postgres_that_is_not_set_up_for_replication_is_told_what_to_set(
    settings: Settings, own_cluster: Cluster, tmp_path: Path
) -> None:
    bare = {"wal_level": "replica", "max_slot_wal_keep_size": -1, "max_replication_slots": 1}
    with postgres_with(own_cluster, tmp_path, **bare) as url, psycopg.connect(url, autocommit=True) as admin:
        admin.execute("SELECT pg_create_physical_replication_slot('of_another')")
        found = of("PostgreSQL", replace(settings, postgres_url=url))
        admin.execute("SELECT pg_drop_replication_slot('of_another')")
    assert [(d.words, d.remedy.partition(":")[0]) for d in found if d.verdict is not Verdict.WELL] == [
        ("wal_level is replica", "set wal_level = logical and restart it"),
        ("it keeps its log for a slot without a bound", "set max_slot_wal_keep_size, such as 2GB"),
        ("all its replication slots are taken", "raise max_replication_slots, or drop one"),
    ]


def test_a_slot_that_postgres_has_given_up_is_named_with_who_makes_another(
    settings: Settings, own_cluster: Cluster, tmp_path: Path
) -> None:
    with (
        postgres_with(own_cluster, tmp_path, max_slot_wal_keep_size="1MB", max_replication_slots=1) as url,
        psycopg.connect(url, autocommit=True) as admin,
    ):
        there = replace(settings, postgres_url=url)
        admin.execute("SELECT pg_create_physical_replication_slot(%s, true)", [settings.replication_slot])
        assert not ill("PostgreSQL", there), "that the only slot is taken is no trouble: it is the engine's"
        for _ in range(3):
            admin.execute("SELECT pg_logical_emit_message(false, 'a', 'b'), pg_switch_wal()")
        admin.execute("CHECKPOINT")
        assert ill("PostgreSQL", there) == [
            (f"it has given up the slot {settings.replication_slot}", "the engine makes another when it runs")
        ]
        admin.execute("SELECT pg_drop_replication_slot(%s)", [settings.replication_slot])


# -- the engine -------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(
    tmp_path: Path, kafka_servers: str, postgres_url: str, redis_url: str, topic_prefix: str
) -> Iterator[Settings]:
    """A shop whose engine runs."""
    shop = Shop(tmp_path, kafka_servers, postgres_url, redis_url, topic_prefix)
    with local(shop) as engine:
        assert isinstance(engine, LocalEngine)
        yield replace(shop.settings, engine_url=engine.url, engine_token="secret-token")
    shop.close()


def told(found: list[Diagnosis], thing: str) -> list[tuple[Verdict, str]]:
    return [(d.verdict, d.words) for d in found if d.thing == thing]


def test_an_engine_is_well_while_it_has_deployed_what_the_files_say_and_canaries_arrive(served: Settings) -> None:
    well = list(diagnose(served, {}))
    assert not [d for d in well if d.verdict is Verdict.ILL and d.thing != "disk"]
    [(verdict, words)] = told(well, "the engine")
    assert (verdict, words.partition("deployed, ")[2]) == (Verdict.WELL, "7 of them sinks")
    assert [(verdict, words.partition(" took ")[0]) for verdict, words in told(well, "the path")] == [
        (Verdict.WELL, "a message"),
        (Verdict.WELL, "a row"),
    ]
    view = served.sql_dir / "trending_products.sql"
    view.write_text(view.read_text().replace("rank <= 10", "rank <= 8"))
    differs = (Verdict.WARNING, "what is deployed is not what sql/ says")
    assert told(list(diagnose(served, {})), "the engine") == [(verdict, words), differs]


def test_canaries_that_do_not_arrive_are_ill_while_the_engine_answers(served: Settings) -> None:
    found = list(diagnose(replace(served, redis_url=f"redis://:s3cret@127.0.0.1:{free_port()}/0"), {}))
    assert [verdict for verdict, _ in told(found, "the engine")] == [Verdict.WELL]
    lost = told(found, "the path")
    assert [verdict for verdict, _ in lost] == [Verdict.ILL] * 2
    assert all("did not come to Redis: Redis at redis://:***@127.0.0.1" in words for _, words in lost)
