"""A service of the stack as a value: how it is started, how one sees that it is well, how it is stopped."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from recs_platform.errors import StackError

HOST = "127.0.0.1"
# Below the ephemeral ranges of Linux and macOS: a client that keeps connecting to a service that is down can be
# given that very port as its own local one, and then the service cannot come back to it.
FREE_PORTS = range(20_000, 30_000)


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Service:
    """One part of the stack. Without a command it is the user's own: probed, never started.

    `probe` returns when the service answers and raises otherwise, within seconds. `ready` runs whenever the probe
    succeeds after it had not; the service counts as healthy after it. `prepare` runs before each start.
    """

    name: str
    probe: Callable[[], None]
    url: str = ""
    command: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    directory: Path = Path("/")
    user: str | None = None
    prepare: Callable[[], None] = _nothing
    ready: Callable[[], None] = _nothing

    @property
    def yours(self) -> bool:
        return not self.command


def is_free(port: int, host: str = HOST) -> bool:
    """Whether a server could listen on this port now."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            candidate.bind(address)
    except OSError:
        return False
    return True


def reached_at(host: str) -> str:
    """Where in a URL a server is that listens there: one that listens everywhere is here, too."""
    if host in ("", "0.0.0.0", "::"):
        return HOST
    return f"[{host}]" if ":" in host else host


def free_port(but: Collection[int] = ()) -> int:
    """A loopback port nothing listens on, none of `but`. Raises `StackError` when 100 tries find none."""
    for port in random.sample(FREE_PORTS, 100):
        if port not in but and is_free(port):
            return port
    raise StackError(f"no free port found on {HOST} between {FREE_PORTS.start} and {FREE_PORTS.stop}")
