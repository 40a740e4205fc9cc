"""What can be measured of the stream from outside, and what of it is worth writing down.

A `Reading` is of one box of the lineage graph. Taking one never changes anything; a part that is away raises, so that
the caller can go on with the others.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import psycopg
from psycopg.rows import dict_row

from recs_platform.dead_letters import Recent
from recs_platform.engines.status import PartitionStatus, RelationStatus, ResetStatus, Status
from recs_platform.errors import SourceError
from recs_platform.lineage import Key, catalog_key, relation_key, topic_key
from recs_platform.physical_names import taken_apart
from recs_platform.pipeline import Kind, Pipeline, Relation
from recs_platform.schema import copies
from recs_platform.settings import masked

WHILE_MOVING = 300.0  # seconds between records of a thing whose numbers move
WHILE_IDLE = 3600.0  # and of one where nothing does
CONNECT_SECONDS = 5
STATEMENT_MILLISECONDS = 5_000

Number = int | float

_SLOT = """
SELECT wal_status, active, pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint AS lag_bytes,
  pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint AS retained_bytes, safe_wal_size AS bytes_until_lost
FROM pg_replication_slots WHERE slot_name = %s"""
_TABLE = """
SELECT s.n_live_tup AS rows, pg_total_relation_size(s.relid) AS bytes,
  s.n_tup_ins + s.n_tup_upd + s.n_tup_del AS changes
FROM pg_stat_user_tables AS s WHERE s.relid = to_regclass(%s)"""


@dataclass(frozen=True)
class Reading:
    """`numbers` are plotted; `counters` only grow and give a rate as well; a change of `state` is news.

    `changed_at` is when the thing itself last changed, where that is known. `waiting`: of a topic, partition → the offsets from and
    up to which its messages wait.
    """

    key: Key
    numbers: Mapping[str, Number] = field(default_factory=dict)
    counters: Mapping[str, int] = field(default_factory=dict)
    state: Mapping[str, str] = field(default_factory=dict)
    changed_at: datetime | None = None
    waiting: Mapping[int, tuple[int, int]] = field(default_factory=dict)


# -- the engine -------------------------------------------------------------------------------------------------------


def of_stream(status: Status, pipeline: Pipeline) -> list[Reading]:
    """Topics and deployed relations, from `StreamEngine.status()`."""
    return [*of_topics(status, pipeline.topics), *of_relations(status, pipeline)]


def of_topics(status: Status, topics: Iterable[str] = ()) -> list[Reading]:
    """`lag_messages` (sent, not taken in), `lag_seconds` (at most how old the oldest of these is), and the counter `messages`
    (sent so far) of each topic; where reading it had a gap within a day, how many `messages_lost` at least, and of what `gap`.
    While the engine takes nothing in because it changes what is deployed, for how long: `held_up_seconds`. Of one of which
    nothing is known but a problem, that."""
    partitions: dict[str, list[PartitionStatus]] = {}
    for partition in status["partitions"]:
        partitions.setdefault(partition["topic"], []).append(partition)
    unknown = (t for t in topics if t not in partitions)
    gaps = {reset["topic"]: reset for reset in status.get("resets", ())}
    held_up = status.get("held_up_seconds", 0.0)
    problems = [Reading(topic_key(t), state=state) for t in unknown if (state := _problem(status, "kafka", t))]
    return problems + [
        Reading(
            topic_key(topic),
            state=_problem(status, "kafka", topic) | ({"gap": gap_in_words(gaps[topic])} if topic in gaps else {}),
            counters={"messages": sum(p["end_offset"] for p in found)},
            numbers={
                "lag_messages": sum(p["lag"] for p in found),
                "lag_seconds": max(p.get("lag_seconds", 0.0) for p in found),
                "partitions": len(found),
            }
            | ({"messages_lost": gaps[topic]["lost"]} if topic in gaps else {})
            | ({"held_up_seconds": held_up} if held_up else {}),
            waiting={p["partition"]: (p["next_offset"], p["end_offset"]) for p in found if p["lag"]},
        )
        for topic, found in partitions.items()
    ]


def gap_in_words(reset: ResetStatus) -> str:
    """A topic's entry among a status' `resets`."""
    at, partitions = datetime.fromisoformat(reset["at"]).astimezone(UTC), reset["partitions"]
    where = f"{partitions} partitions" if partitions != 1 else "1 partition"
    lost = f"at least {reset['lost']:,} messages of {where} are lost"
    words = lost if reset["lost"] else f"nothing that was sent to {where} is known to be lost"
    return f"{words}, {at:%Y-%m-%d %H:%M} UTC: {reset['reason']}"


def with_dead_letters(readings: Iterable[Reading], letters: Iterable[Recent]) -> list[Reading]:
    """Topics with `dead_letters`, how many of the last minutes' messages could not be used, and `dead_letter_share` of them."""
    recent = {topic_key(found.topic): found for found in letters}
    return [
        replace(
            reading,
            numbers={**reading.numbers, "dead_letters": found.letters, "dead_letter_share": round(found.share, 4)},
        )
        if (found := recent.get(reading.key))
        else reading
        for reading in readings
    ]


def of_relations(status: Status, pipeline: Pipeline) -> list[Reading]:
    """Rows of each deployed relation, how far a new version of it is, and for sinks of events how fresh Redis is. Of one that is
    not deployed because somebody wants it so, that."""
    known = {entry["name"]: entry for entry in status["relations"]}
    building = {parts[0]: str(how) for p, how in status.get("building", {}).items() if (parts := taken_apart(p))}
    found = list[Reading]()
    for relation in pipeline:
        key, name = relation_key(relation.name), relation.name
        if name in known:
            found.append(_with_building(_of_relation(relation, known[name], status, pipeline), building))
        elif name in building:
            found.append(Reading(key, state={"building": building[name]}))
        elif known and status.get("gone_back"):
            found.append(
                Reading(key, state={"awaited": "somebody has gone back from these files, or deployed a part of them"})
            )
    return found


def _with_building(reading: Reading, building: Mapping[str, str]) -> Reading:
    progress = building.get(reading.key[-1])
    return replace(reading, state={**reading.state, "building": progress}) if progress else reading


def _of_relation(relation: Relation, entry: RelationStatus, status: Status, pipeline: Pipeline) -> Reading:
    numbers: dict[str, Number] = {} if entry["rows"] is None else {"rows": entry["rows"]}
    state = {"fingerprint": entry["fingerprint"]}
    if entry.get("deployed_at"):
        state["deployed_at"] = entry["deployed_at"]
    if mode := entry.get("mode"):
        state["refresh"] = mode
    if relation.kind is Kind.TABLE:
        state |= _problem(status, "catalog")
    if relation.kind is Kind.SINK:
        state |= _problem(status, "redis", relation.name)
        if any(ancestor.topic for ancestor in pipeline.with_ancestors({relation.name})):
            freshness = {
                "freshness_p50_ms": status.get("freshness_p50_ms"),
                "freshness_p99_ms": status.get("freshness_p99_ms"),
                "freshness_now_ms": status.get("freshness_now_ms"),
            }
            numbers |= {name: value for name, value in freshness.items() if value is not None}
        if (barrier := status.get("barrier_seconds")) is not None:
            numbers["barrier_seconds"] = barrier
    changed = datetime.fromisoformat(entry["changed_at"]) if entry.get("changed_at") else None
    return Reading(relation_key(relation.name), numbers, state=state, changed_at=changed)


def _problem(status: Status, part: str, thing: str = "") -> dict[str, str]:
    """Of a part as a whole, or of this one thing in it."""
    problems = status["problems"]
    return next(({"problem": problems[name]} for name in (part, f"{part}/{thing}") if name in problems), {})


# -- PostgreSQL -------------------------------------------------------------------------------------------------------


def of_catalog(url: str, slot: str | None, pipeline: Pipeline, remedy: str = "") -> list[Reading]:
    """The replication slot (as a reading of the source that reads through it), where it is known, and the catalog tables.

    `remedy`: what a person does where the slot is lost; "" where the engine does it by itself.

    Raises `SourceError`, password masked, when PostgreSQL does not answer.
    """
    tables = {copy.catalog_table for copy in copies(pipeline)}
    sources = [relation for relation in pipeline if relation.is_connection]
    options = f"-c statement_timeout={STATEMENT_MILLISECONDS}"
    try:
        with psycopg.connect(url, connect_timeout=CONNECT_SECONDS, options=options, row_factory=dict_row) as server:
            found = server.execute(_SLOT, [slot]).fetchone() if slot else None
            rows = {table: server.execute(_TABLE, [table]).fetchone() for table in sorted(tables)}
    except psycopg.Error as error:
        raise SourceError(f"PostgreSQL at {masked(url)} cannot be observed: {masked(str(error)).strip()}") from None
    of_slot = [_of_slot(source, slot, found, remedy) for source in sources] if slot else []
    return [*of_slot, *(_of_table(*item) for item in rows.items())]


def is_lost(slot: Reading) -> bool:
    """Whether a reading of a replication slot says that it is gone, or given up."""
    return "problem" in slot.state or slot.state.get("wal_status") == "lost"


def _of_slot(source: Relation, slot: str, row: Mapping[str, Any] | None, remedy: str) -> Reading:
    key, state = relation_key(source.name), {"slot": slot} | ({"remedy": remedy} if remedy else {})
    if row is None:
        return Reading(key, state={**state, "problem": f"PostgreSQL has no replication slot {slot!r}"})
    numbers = {name: row[name] for name in ("lag_bytes", "retained_bytes", "bytes_until_lost") if row[name] is not None}
    if remedy:  # one that makes its slot anew by itself holds it only now and then, which says nothing
        numbers["slot_active"] = int(row["active"])
    return Reading(key, numbers, state={**state, "wal_status": row["wal_status"] or "unknown"})


def _of_table(table: str, row: Mapping[str, Any] | None) -> Reading:
    if row is None:
        return Reading(catalog_key(table), state={"problem": f"PostgreSQL has no table {table}"})
    numbers = {name: row[name] for name in ("rows", "bytes")}
    return Reading(catalog_key(table), numbers, counters={"changes": row["changes"]})


# -- what is worth writing down ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """What was last written down of a thing: when (Unix seconds), and enough to see whether it has moved since."""

    at: float
    state: str
    moving: str
    counters: Mapping[str, int]


class Journal:
    """Remembers what was written down, so that little is: news at once, what moves every few minutes, the rest hourly.

    It is as long as there are things to measure: what is not measured any more is forgotten.
    """

    def __init__(self, entries: Mapping[Key, Entry] | None = None) -> None:
        self._entries = dict(entries or {})

    @classmethod
    def load(cls, text: str | None) -> Journal:
        """What `dump` gave; empty where it cannot be read, which costs one record of each thing."""
        try:
            return cls({tuple(key): Entry(*entry) for key, *entry in json.loads(text or "[]")})
        except (ValueError, TypeError):
            return cls()

    def dump(self) -> str:
        return json.dumps([[key, e.at, e.state, e.moving, e.counters] for key, e in self._entries.items()])

    def due(self, readings: Iterable[Reading], known: Iterable[Key], now: float | None = None) -> list[Reading]:
        """The readings to write down now, rates added; notes that they are. `known` are all things there are."""
        now = time.time() if now is None else now
        self._entries = {key: entry for key, entry in self._entries.items() if key in set(known)}
        found = []
        for reading in readings:
            before = self._entries.get(reading.key)
            moving = _digest(reading.numbers, reading.counters, reading.changed_at)
            after = Entry(now, _digest(reading.state), moving, reading.counters)
            if before is None or _is_due(before, after):
                self._entries[reading.key] = after
                found.append(_with_rates(reading, before, now))
        return found


def _is_due(before: Entry, after: Entry) -> bool:
    wait = WHILE_IDLE if before.moving == after.moving else WHILE_MOVING
    return before.state != after.state or after.at - before.at >= wait


def _with_rates(reading: Reading, before: Entry | None, now: float) -> Reading:
    """With counters among the numbers, an average rate since the last record, and the age in seconds."""
    numbers = {**reading.numbers, **reading.counters}
    for name, count in reading.counters.items():
        grown = count - before.counters.get(name, count) if before else 0
        if before and now > before.at and grown >= 0:  # less than before: counted anew, nothing can be said
            numbers[f"{name}_per_second"] = round(grown / (now - before.at), 3)
    if reading.changed_at:
        numbers["age_seconds"] = round(max(0.0, now - reading.changed_at.timestamp()), 1)
    return Reading(reading.key, numbers, reading.counters, reading.state, reading.changed_at)


def _digest(*parts: object) -> str:
    return blake2b(repr(parts).encode(), digest_size=6).hexdigest()
