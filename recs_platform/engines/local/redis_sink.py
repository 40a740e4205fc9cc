"""Carries what the sinks changed into Redis, and keeps Redis what the sinks say.

At least once: what a tick changed stays marked in the engine's file until Redis has taken it; a key written
twice is the same key. A Redis that lost its memory (another server, or the pointers gone) is filled anew.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from itertools import islice

import redis

from recs_platform.engines.local.database import Database
from recs_platform.pipeline import Relation
from recs_platform.serving import keys, versions
from recs_platform.serving.cluster import nodes_of, one_of_each
from recs_platform.serving.connection import client
from recs_platform.settings import masked

_CHUNK = 1_000
_LOOK_EVERY = 1.0  # seconds between looks at whether Redis is still the one that was filled
_RETRY_EVERY = 0.5  # seconds between tries while Redis is away
_RUN_ID = "redis_run_id"
_IN_PIPELINE = re.compile(r"^Command # \d+ \(.*?\) of pipeline caused error: ", re.DOTALL)
"""What the client puts before the reason: a key, and with it a shopper's id."""


class RedisSink:
    """Writes what is dirty. `problem` says what is wrong, None while all is well."""

    def __init__(self, url: str, database: Database) -> None:
        self._redis = client(url, 5, connect_seconds=2)
        self._address = masked(url)
        self._database, self._outbox = database, database.outbox
        self._next_look = 0.0
        self._retry_at = 0.0
        self._run_id = database.facts.get(_RUN_ID)
        self._sentinels: frozenset[str] | None = None
        self._settled = -1  # the deployment whose sinks are all gone over to, nothing old being left
        self.problem: str | None = None
        self.written = 0

    def close(self) -> None:
        self._redis.close()

    def flush(self) -> bool:
        """Writes every dirty key; returns whether Redis has everything now. Never raises for a Redis that is away."""
        if time.monotonic() < self._retry_at:
            return False
        try:
            self._look()
            for sink in self._database.sinks():
                self._write(sink)
            self._settle()
            self._outbox.note_written()
        except redis.RedisError as error:
            self.problem = f"Redis at {self._address}: {_IN_PIPELINE.sub('', str(error))}"
            self._retry_at = time.monotonic() + _RETRY_EVERY
            self._next_look = 0.0
            return False
        self.problem = None
        return True

    def _write(self, sink: Relation) -> None:
        documents = iter(self._outbox.to_write(sink))
        while chunk := list(islice(documents, _CHUNK)):
            pipeline = self._redis.pipeline(transaction=False)
            for key, document in chunk:
                pipeline.set(key, document) if document is not None else pipeline.unlink(key)
            pipeline.execute()
            self.written += len(chunk)

    def _settle(self) -> None:
        """Once a deployment, and after a refill: sets the pointers and removes what is old.

        The pointers are set when all keys of all new versions are there, at one moment: that is the whole switch. What
        readers have stays while a catalog table of its successor has still to be read.
        """
        if self._settled == self._database.deployments:
            return
        live = self._outbox.live()
        going = [sink for sink in self._database.sinks() if live.get(sink.redis_name) != sink.fingerprint]
        if any(sink.redis_name in live and self._database.awaits_snapshot(sink) for sink in going):
            return
        for sink in going:
            self._verify(sink)
        self._go_over(going)
        self._guard(one_of_each(self._redis, keys.sentinel))
        self._drop_old_prefixes()
        self._settled = self._database.deployments

    def _go_over(self, going: Sequence[Relation]) -> None:
        versions.go_over(self._redis, {sink.redis_name: sink.fingerprint for sink in going})
        self._outbox.note_live(going)

    def _verify(self, sink: Relation) -> None:
        """Removes keys under the prefix that no row stands for; a key that is missing is an error to be retried."""
        rows = self._database.connection.execute(f'SELECT key FROM "{sink.physical_name}"').fetchall()
        wanted = {key for (key,) in rows if key is not None}
        found = set(versions.document_keys(self._redis, sink.redis_name, sink.fingerprint))
        versions.unlink_all(self._redis, sorted(found - wanted))
        if missing := wanted - found:
            self._outbox.note_all(sink)
            raise redis.RedisError(f"{len(missing)} keys of {sink.redis_name} are missing after they were written")

    def _look(self) -> None:
        """Is this the Redis that was filled? A restarted server may have lost writes, an emptied one has no sentinel."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_EVERY
        run_id = ",".join(str(node.info("server")["run_id"]) for node in nodes_of(self._redis))
        is_another = run_id != self._run_id or self._has_lost_keys()
        sinks = self._database.sinks()
        pointers = self._redis.mget([keys.pointer(s.redis_name) for s in sinks]) if sinks else []
        live = self._outbox.live()
        for sink, pointer in zip(sinks, pointers, strict=True):
            if sink.redis_name in live and (is_another or pointer != live[sink.redis_name]):
                self._refill(sink)
        if run_id != self._run_id:
            self._database.facts.set(_RUN_ID, run_id)
            self._run_id = run_id

    def _has_lost_keys(self) -> bool:
        """Whether a sentinel is gone. Where slots have moved since the last look, others stand for their nodes."""
        sentinels = one_of_each(self._redis, keys.sentinel)
        values = dict(zip(sentinels, self._redis.mget(sentinels), strict=True))
        known = sentinels if self._sentinels is None else self._sentinels.intersection(sentinels)
        if any(values[sentinel] is None for sentinel in known):
            return True
        if self._sentinels is not None:
            self._guard([sentinel for sentinel in sentinels if sentinel not in known])
        self._sentinels = frozenset(sentinels)
        return False

    def _guard(self, sentinels: Sequence[str]) -> None:
        for sentinel in sentinels:
            self._redis.set(sentinel, "1")

    def _refill(self, sink: Relation) -> None:
        self._settled = -1
        self._outbox.note_lost(sink)

    def _drop_old_prefixes(self) -> None:
        live = self._outbox.live()
        wanted = {sink.redis_name for sink in self._database.sinks()}
        for name, version in self._outbox.left_behind():
            if name in live or name not in wanted:
                self._remove(name, version)
        for name, version in live.items():
            if name not in wanted:
                self._redis.unlink(keys.pointer(name))
                self._remove(name, version)

    def _remove(self, name: str, version: str) -> None:
        versions.remove(self._redis, name, version)
        self._outbox.note_removed(name, version)
