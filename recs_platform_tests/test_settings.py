"""What cannot be used of the environment is refused by the variable's name, before anything is asked of anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from recs_platform.errors import SettingsError
from recs_platform.settings import Settings, masked


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("RECS_KAFKA_BOOTSTRAP_SERVERS", "recs:hunter2@k1:9092", "a password or an option wants a protocol"),
        ("RECS_RISINGWAVE_KAFKA", "kafka://recs:hunter2@k1:9092", "kafka:// is none of ssl://"),
        ("RECS_REDIS_URL", "redis//:hunter2@h:6379", "redis://[user:password@]host:port[/db] is wanted"),
        ("RECS_REDIS_READER_URL", "redis//:hunter2@h:6379", "redis://[user:password@]host:port[/db] is wanted"),
        ("RECS_RISINGWAVE_REDIS_URL", "redis//:hunter2@h:6379", "redis://[user:password@]host:port[/db] is wanted"),
        (
            "RECS_POSTGRES_URL",
            "mysql://recs:hunter2@h/shop",
            "postgresql://[user:password@]host:port/database is wanted",
        ),
        ("RECS_POSTGRES_URL", "host=h password=hunter2", "postgresql://[user:password@]host:port/database is wanted"),
        ("RECS_POSTGRES_URL", "postgresql://u:hunter2/7@h/shop", "%40, %2F, … for @, /, … in a password"),
        ("RECS_POSTGRES_URL", "postgresql://u:22/hunter2@h/shop", "%40, %2F, … for @, /, … in a password"),
        ("RECS_POSTGRES_URL", "postgresql://u:hunter2@7@h/shop", "%40, %2F, … for @, /, … in a password"),
        ("RECS_POSTGRES_URL", "postgresql://u:hunter2%ret@h/shop", "is wanted"),
        ("RECS_POSTGRES_URL", "postgresql://u@h/shop?password=hunter2", "is wanted"),
        ("RECS_REDIS_URL", "redis://h:6379/0?password=hunter2", "a password stands before the host"),
        ("RECS_REDIS_URL", "unix:///run/valkey.sock?password=hunter2", "stands before its path"),
        ("RECS_RISINGWAVE_POSTGRES_URL", "postgresql://u:hunter2@h:port/shop", "is wanted"),
        ("RECS_RISINGWAVE_URL", "root:hunter2@h:4566/dev", "is wanted"),
        ("RECS_ENGINE", "duckdb", "'duckdb': local or risingwave is wanted"),
        ("RECS_KAFKA_PORT", "70000", "70000 is no port: 0 to 65535 is wanted"),
        ("RECS_DAGSTER_PORT", "-1", "-1 is no port"),
        ("RECS_SIMULATE_RATE", "many", "='many': a number is wanted"),
        ("RECS_REPAIR_SINKS", "maybe", "='maybe': true or false is wanted"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_its_variable(variable: str, value: str, why: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.load({variable: value})
    assert str(raised.value).startswith(variable)
    assert why in str(raised.value)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p%40ss%2F@db:5432/shop",
        "postgres://u@db/shop",
        "postgresql:///shop?host=/run/postgresql",
        "postgresql://u:p@h1:5432,h2:5432/shop",
    ],
)
def test_what_psycopg_takes_for_a_url_is_taken(url: str, tmp_path: Path) -> None:
    assert Settings.load({"RECS_POSTGRES_URL": url}, state_dir=tmp_path).postgres_url == url
    assert "p%40ss" not in masked(url)
