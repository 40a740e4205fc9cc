"""A connection to Redis for those who look at it or write to it now and then; the store has pools of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from recs_platform.errors import StoreUnavailable
from recs_platform.redis_address import RedisAddress
from recs_platform.serving.cluster import ClusterClient
from recs_platform.settings import masked


def client(url: str, seconds: float, connect_seconds: float | None = None) -> redis.Redis:
    """Connects when it is first used; waits so many seconds for each reply. Decodes what it reads.

    Raises `SettingsError` for what is no URL.
    """
    address = RedisAddress.parse(url)
    bounds: dict[str, Any] = {"socket_timeout": seconds, "socket_connect_timeout": connect_seconds or seconds}
    if address.is_cluster:
        return ClusterClient(address, decode_responses=True, **bounds)
    return redis.Redis.from_url(address.urls[0], decode_responses=True, **bounds)


@contextmanager
def connected(url: str, seconds: float = 5.0) -> Iterator[redis.Redis]:
    """Decodes what it reads; waits so many seconds to connect, and for each reply. What goes wrong is as in `answering`."""
    with answering(url), client(url, seconds) as connection:
        yield connection


@contextmanager
def answering(url: str) -> Iterator[None]:
    """A Redis that does not answer in there, or refuses, is a `StoreUnavailable` that names it without its password."""
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis at {masked(url)}: {error}") from None
