"""Sinks against Redis: is this the Redis that was filled, are readers on the version that is deployed, and is each key
there, as its row is now.

A sample of a sink's rows, or all of them and all of Redis' keys. What differs is looked at again for a few seconds: a
change may be on its way.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import redis

from recs_platform.engines.base import StreamEngine
from recs_platform.pipeline import Kind, Pipeline, Relation
from recs_platform.serving import keys, versions
from recs_platform.serving.connection import connected
from recs_platform.serving.documents import Row, is_document_of
from recs_platform.whole_file import keep_whole

SAMPLE = 200
ON_THE_WAY, BETWEEN_LOOKS = 3.0, 0.2  # seconds that a key may take from its row to Redis
AT_ONCE = 1_000  # keys
REMEMBERED, KEPT = "wrong_keys.json", 50  # keys of a sink
NOTHING: Mapping[str, Sequence[str]] = MappingProxyType({})

Rows = Mapping[str, Row]
"""Redis key → the columns of its document."""


@dataclass(frozen=True)
class Audit:
    """Of one sink. `pointer`: the version that readers are on, None where Redis has none. Of the `looked_at` rows the keys
    that are `missing`, and those that hold something else (`stale`); of all keys, where all were looked at, those that no
    row stands for (`orphaned`). `away`: why nothing could be looked at; `not_compared`: why only its pointer was.
    """

    sink: str
    pointer: str | None
    deployed: str
    looked_at: int = 0
    missing: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    orphaned: tuple[str, ...] = ()
    away: str = ""
    not_compared: str = ""
    names_shoppers: bool = False  # in its keys, which are for nobody's log then

    @property
    def kind(self) -> str:
        """What sort of problem it is, "" where there is none."""
        if self.away:
            return "away"
        if self.pointer is None:
            return "no pointer"
        if not self.pointer.startswith(self.deployed):
            return "another version"
        return "rows" if self.wrong or self.orphaned else ""

    @property
    def wrong(self) -> tuple[str, ...]:
        """The keys of rows that Redis does not have as they are."""
        return self.missing + self.stale

    @property
    def problem(self) -> str:
        """What is wrong, "" where nothing is."""
        if self.kind == "away":
            return self.away
        if self.kind == "no pointer":
            return "Redis has no pointer for it: it was emptied, or is another one"
        if self.kind == "another version":
            return f"readers are on version {self.pointer}, and {self.deployed} is deployed"
        wrong = {"missing": self.missing, "stale": self.stale, "orphaned": self.orphaned}
        told = [f"{len(found):,} {what}{self._example(found)}" for what, found in wrong.items() if found]
        return f"of {self.looked_at:,} rows looked at: {', '.join(told)}" if told else ""

    def _example(self, found: Sequence[str]) -> str:
        return "" if self.names_shoppers else f" ({found[0]} among them)"

    @property
    def can_be_mended(self) -> bool:
        """Whether writing the sink anew would put it right."""
        return bool(self.problem) and not self.away

    @property
    def is_known(self) -> bool:
        """Whether it is known to be well or ill."""
        return not self.away and (bool(self.problem) or not self.not_compared)


def remember(state_dir: Path, wrong: Mapping[str, Sequence[str]]) -> None:
    """Of each sink the keys that were wrong, for the next look. They name shoppers: in a file of the owner's alone."""
    keep_whole(state_dir / REMEMBERED, json.dumps({sink: list(found)[:KEPT] for sink, found in wrong.items()}), 0o600)


def remembered(state_dir: Path) -> dict[str, list[str]]:
    """What `remember` was given last; none where it cannot be read."""
    try:
        found = json.loads((state_dir / REMEMBERED).read_text())
        return {sink: list(map(str, wrong)) for sink, wrong in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def audit(
    engine: StreamEngine,
    pipeline: Pipeline,
    redis_url: str,
    sample: int | None = SAMPLE,
    sinks: Iterable[str] | None = None,
    again: Mapping[str, Sequence[str]] = NOTHING,
) -> Iterator[Audit]:
    """One of each deployed sink, or of those named; of a `sample` of its rows, or with None of all rows and all keys.

    `again`: keys of a sink that are looked at in any case, such as those that were wrong before. With a sample of 0 and
    none of these only its pointer is.
    Raises `StoreUnavailable`, and what the engine raises.
    """
    deployed = engine.deployed()
    chosen = [s for s in pipeline.of_kind(Kind.SINK) if s.name in deployed and (sinks is None or s.name in sinks)]
    with connected(redis_url) as connection:
        for sink in chosen:
            yield _Auditor(engine, connection, sink, deployed[sink.name]).audited(sample, again.get(sink.name, ()))


@dataclass(frozen=True)
class _Auditor:
    engine: StreamEngine
    connection: redis.Redis
    sink: Relation
    deployed: str

    def audited(self, sample: int | None, again: Sequence[str]) -> Audit:
        found = self.connection.get(keys.pointer(self.sink.redis_name))
        pointer = str(found) if found is not None else None
        rows = {} if sample == 0 else self._rows(sample)
        if again:
            rows = {**rows, **self._rows(None, among=again)}
        if pointer is None:
            return Audit(self.sink.name, None, self.deployed, len(rows))
        orphans = self._orphans(pointer, rows) if sample is None else set[str]()
        missing, stale = self._compared(rows)
        deadline = time.monotonic() + ON_THE_WAY
        while (missing or stale or orphans) and time.monotonic() < deadline:
            time.sleep(BETWEEN_LOOKS)
            now = self._rows(None, among=[*missing, *stale, *orphans])
            missing, stale = self._compared({key: row for key, row in now.items() if key not in orphans})
            orphans = {key for key in orphans - now.keys() if self.connection.exists(key)}
        return Audit(
            self.sink.name,
            pointer,
            self.deployed,
            len(rows),
            tuple(missing),
            tuple(stale),
            tuple(sorted(orphans)),
            names_shoppers=self.sink.names_shoppers,
        )

    def _rows(self, count: int | None, among: Sequence[str] | None = None) -> Rows:
        return {str(row.pop("key")): row for row in self.engine.sink_rows(self.sink.name, count, among).to_pylist()}

    def _orphans(self, pointer: str, rows: Rows) -> set[str]:
        return {
            key for key in versions.document_keys(self.connection, self.sink.redis_name, pointer) if key not in rows
        }

    def _compared(self, rows: Rows) -> tuple[list[str], list[str]]:
        missing, stale = [], []
        remaining = iter(rows.items())
        while some := list(islice(remaining, AT_ONCE)):
            found: list[Any] = self.connection.mget([key for key, _ in some])
            for (key, row), text in zip(some, found, strict=True):
                if text is None:
                    missing.append(key)
                elif not is_document_of(row, text):
                    stale.append(key)
        return missing, stale
