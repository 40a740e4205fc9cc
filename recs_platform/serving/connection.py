"""A connection to Redis for those who look at it or write to it now and then; the store has pools of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from recs_platform.errors import StoreUnavailable
from recs_platform.settings import masked


@contextmanager
def connected(url: str, seconds: float = 5.0) -> Iterator[redis.Redis]:
    """Decodes what it reads; waits so many seconds to connect, and for each reply.

    A Redis that does not answer, or refuses, is a `StoreUnavailable` that names it without its password.
    """
    bounds = {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    try:
        with redis.Redis.from_url(url, decode_responses=True, **bounds) as connection:
            yield connection
    except (redis.RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis at {masked(url)}: {error}") from None
