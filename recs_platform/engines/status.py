"""What an engine says of itself, in the words that both have for it."""

from __future__ import annotations

from typing import TypedDict

BACKLOG = 5_000
"""Messages that wait from which on the local engine writes Redis only now and then: what one tick writes, the next writes over."""


class PartitionStatus(TypedDict):
    """How far a partition is read: `lag` in messages, `lag_seconds` at most how old the oldest of them is."""

    topic: str
    partition: int
    next_offset: int
    end_offset: int
    lag: int
    lag_seconds: float


class RelationStatus(TypedDict, total=False):
    """A live relation. `rows` is None where none are kept, or they are not counted; times are ISO 8601."""

    name: str
    kind: str
    fingerprint: str
    rows: int | None
    mode: str | None
    deployed_at: str
    changed_at: str


class ResetStatus(TypedDict):
    """A topic of which messages could not be had within a day: how many at least, of how many partitions, when and why."""

    topic: str
    lost: int
    partitions: int
    at: str
    reason: str


class Status(TypedDict, total=False):
    """Of each engine:

    `relations`, `partitions`, `problems` (part → what is wrong), `building` (physical name → how far a version is that is
    being built), `slot` (the replication slot it reads through), `gone_back` (the files are those that somebody has rolled
    back, or deployed a part of).

    Of the local engine: `resets`, `refused` (messages of forgotten shoppers), `lag` (messages not taken in), `messages` and
    `ticks` since `started_at`, `events_per_second`, `redis_writes`, `pid`, `memory_bytes`, `cpu_seconds`; `held_up_seconds` (how
    long nothing has been taken in because what is deployed is changed, 0.0 where that is not so) and `held_up_until` (when that
    was last so, in seconds since 1970, 0.0 for never); in milliseconds percentiles of the last minute: what a tick takes, how
    long a message is under way from being sent to Redis (`freshness_…`), and of that until it is taken in, committed, and
    written (`broker_…`, `engine_…`, `sink_…`).

    Of a RisingWave: `slot_remedy` (what a person does where PostgreSQL has lost the slot), `barrier_seconds`.
    """

    relations: list[RelationStatus]
    partitions: list[PartitionStatus]
    problems: dict[str, str]
    building: dict[str, str]
    slot: str | None
    gone_back: bool

    resets: list[ResetStatus]
    refused: int
    held_up_seconds: float
    held_up_until: float
    lag: int
    messages: int
    ticks: int
    started_at: str
    events_per_second: float
    redis_writes: int
    pid: int
    memory_bytes: int
    cpu_seconds: float
    tick_p50_ms: float | None
    tick_p99_ms: float | None
    broker_p50_ms: float | None
    broker_p99_ms: float | None
    engine_p50_ms: float | None
    engine_p99_ms: float | None
    sink_p50_ms: float | None
    sink_p99_ms: float | None
    freshness_p50_ms: float | None
    freshness_p99_ms: float | None
    freshness_now_ms: float | None

    slot_remedy: str
    barrier_seconds: float | None
