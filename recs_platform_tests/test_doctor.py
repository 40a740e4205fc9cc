"""`recs doctor`: what it finds well, what it finds ill, and the remedy it names."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import redis

from recs_platform.catalog import ensure_catalog
from recs_platform.doctor import Diagnosis, Verdict, diagnose
from recs_platform.settings import Settings
from recs_platform.stack.service import free_port


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


def test_topics_are_named_with_their_partitions(settings: Settings, kafka_servers: str) -> None:
    found = of("Kafka", replace(settings, kafka_bootstrap_servers=kafka_servers))
    assert found[0].verdict is Verdict.WELL
    assert {d.verdict for d in found} <= {Verdict.WELL, Verdict.WARNING}
