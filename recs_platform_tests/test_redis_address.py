"""One server or a cluster, in one text."""

from __future__ import annotations

import json

import pytest

from recs_platform.errors import SettingsError
from recs_platform.redis_address import RedisAddress
from recs_platform.serving.connection import client
from recs_platform.settings import Settings, masked, passwords_of


@pytest.mark.parametrize(
    ("text", "urls", "is_cluster"),
    [
        ("redis://127.0.0.1:6379/0", ["redis://127.0.0.1:6379/0"], False),
        ("redis://", ["redis://"], False),
        ("unix:///run/redis.sock?db=1", ["unix:///run/redis.sock?db=1"], False),
        ("redis://:p,w@a:1/0", ["redis://:p,w@a:1/0"], False),
        ("redis://:p@w@a:1,b:2", ["redis://:p@w@a:1", "redis://:p@w@b:2"], True),
        ("rediss://u:pw@a:1,b:2/0?ssl_ca_certs=/x", [f"rediss://u:pw@{h}/0?ssl_ca_certs=%2Fx" for h in ("a:1", "b:2")], True),
        ("redis://:pw@a:1,redis://:pw@b:2", ["redis://:pw@a:1", "redis://:pw@b:2"], True),
        ("redis://a:1?cluster=true", ["redis://a:1"], True),
        ("redis://[::1]:1,[::1]:2", ["redis://[::1]:1", "redis://[::1]:2"], True),
    ],
)  # fmt: skip
def test_an_address_is_one_server_or_a_cluster(text: str, urls: list[str], is_cluster: bool) -> None:
    address = RedisAddress.parse(text)
    assert list(address.urls) == urls
    assert address.is_cluster == is_cluster
    assert address.for_risingwave() == (json.dumps(urls) if is_cluster else urls[0])


@pytest.mark.parametrize(
    "text",
    [
        "hunter2@a:1",
        "http://:hunter2@a:1",
        "redis://u:hunter2/x@a:1",
        "redis://:12/hunter@a:1",
        "redis://a:1?socket_timeout=hunter",
        "redis://:hunter2@a:1,b:x",
        "redis://:hunter2@a:1,",
        "redis://:hunter2@a:1,b:2/1",
        "redis://:hunter2@a:1,redis://:hunter3@b:2",
        "redis://:hunter2@a:1,rediss://:hunter2@b:2",
        "redis://:hunter2@a:1?cluster=perhaps",
    ],
)
def test_what_is_no_address_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(SettingsError, match="is no Redis URL") as caught:
        Settings.load({"RECS_REDIS_URL": text})
    assert "hunter" not in str(caught.value)


def test_no_password_of_a_cluster_is_shown() -> None:
    for text in ("redis://u:hunter2@a:1,b:2", "redis://u:hunter2@a:1,redis://u:hunter2@b:2"):
        assert "hunter2" not in masked(text)
        assert "b:2" in masked(text)
        assert passwords_of(text) == {"hunter2"}
        assert "hunter2" not in repr(client(text, 1))
