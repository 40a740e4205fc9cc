"""Sinks against Redis: is this the Redis that was filled, are readers on the version that is deployed, are the keys there."""

from __future__ import annotations

import time
from dataclasses import dataclass

import redis

from recs_platform.engines.base import StreamEngine
from recs_platform.errors import StoreUnavailable
from recs_platform.pipeline import Kind, Pipeline, Relation
from recs_platform.serving import keys
from recs_platform.settings import masked

SAMPLE = 200
SECONDS = 5.0
ON_THE_WAY, BETWEEN_LOOKS = 3.0, 0.2  # seconds that a key may take from its row to Redis


@dataclass(frozen=True)
class Audit:
    """Of one sink. `pointer`: the version that readers are on, None where Redis has none. `missing` of `looked_at` keys.
    `away`: why nothing could be looked at.
    """

    sink: str
    pointer: str | None
    deployed: str
    looked_at: int = 0
    missing: tuple[str, ...] = ()
    away: str = ""

    @property
    def problem(self) -> str:
        """What is wrong, "" where nothing is."""
        if self.away:
            return self.away
        if self.pointer is None:
            return "Redis has no pointer for it: it was emptied, or is another one"
        if not self.pointer.startswith(self.deployed):
            return f"readers are on version {self.pointer}, and {self.deployed} is deployed"
        if self.missing:
            return f"{len(self.missing)} of {self.looked_at} keys looked at are missing, {self.missing[0]} among them"
        return ""


def audit(engine: StreamEngine, pipeline: Pipeline, redis_url: str, sample: int = SAMPLE) -> list[Audit]:
    """One of each deployed sink. Raises `StoreUnavailable`, and what the engine raises."""
    deployed = engine.deployed()
    sinks = [sink for sink in pipeline.of_kind(Kind.SINK) if sink.name in deployed]
    try:
        with redis.Redis.from_url(redis_url, decode_responses=True, socket_timeout=SECONDS) as connection:
            return [_audited(engine, connection, sink, deployed[sink.name], sample) for sink in sinks]
    except redis.RedisError as error:
        raise StoreUnavailable(f"Redis at {masked(redis_url)}: {error}") from None


def _audited(engine: StreamEngine, connection: redis.Redis, sink: Relation, deployed: str, sample: int) -> Audit:
    found = connection.get(keys.pointer(sink.redis_name))
    pointer = str(found) if found is not None else None
    wanted = engine.sampled_keys(sink.name, sample)
    if pointer is None:
        return Audit(sink.name, None, deployed, len(wanted))
    missing = _missing(connection, wanted)
    deadline = time.monotonic() + ON_THE_WAY
    while missing and time.monotonic() < deadline:
        time.sleep(BETWEEN_LOOKS)
        missing = _missing(connection, engine.sampled_keys(sink.name, sample, among=missing))
    return Audit(sink.name, pointer, deployed, len(wanted), tuple(missing))


def _missing(connection: redis.Redis, wanted: list[str]) -> list[str]:
    with connection.pipeline(transaction=False) as pipe:
        for key in wanted:
            pipe.exists(key)
        found = pipe.execute()
    return [key for key, there in zip(wanted, found, strict=True) if not there]
