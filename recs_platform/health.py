"""Readings → findings: is it fresh, idle, being rebuilt, behind, stalled or broken, since when, and which box is to blame.

Pure: whoever takes readings hands them over, with what was known at the last look. Judged from offsets and the times of
messages, never from when something last ran.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from recs_platform.lineage import Key, outside_key, relation_key, topic_key
from recs_platform.pipeline import Kind, Pipeline, Relation
from recs_platform.readings import Reading, is_lost

FRESHNESS_SECONDS = 10.0  # lag that is no trouble, where a file's header does not say otherwise
STALLED_AFTER = 45.0  # seconds without a step forward while something waits
IDLE_AFTER = 60.0  # seconds without a new message
TRICKLE, FEW = 10, 100  # messages that wait
MANY = 1_000  # messages: a backlog, and not what comes just then
LONGEST_BLIND = 30.0  # seconds before a look for which what waits now may have waited already
RATE_OVER = 10.0  # seconds over which messages are counted for a rate
LOG_KEPT, LOG_LEFT = 2e9, 500e6  # bytes of PostgreSQL's log kept for the slot, and left until it gives the slot up
ENGINE = "engine"
NOTHING: Mapping[str, str] = {}
_HEADER = re.compile(r"^freshness:\s*(\d+(?:\.\d+)?)\s*(s|min)\b", re.IGNORECASE | re.MULTILINE)


class State(StrEnum):
    """From well to ill; a box is as ill as the illest it is made from."""

    FRESH = "fresh"
    IDLE = "idle"
    UNKNOWN = "unknown"
    REBUILDING = "rebuilding"
    BEHIND = "behind"
    STALLED = "stalled"
    BROKEN = "broken"

    @property
    def is_well(self) -> bool:
        return self in (State.FRESH, State.IDLE, State.UNKNOWN, State.REBUILDING)

    @property
    def rank(self) -> int:
        return list(State).index(self)


@dataclass(frozen=True)
class Finding:
    """One judged fact on one box. `since` is in seconds since 1970; `blame` is the box where it began."""

    key: Key
    state: State
    since: float
    words: str
    next: str = ""
    blame: Key = ()
    evidence: Mapping[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """What was known of a box at the last look: its state, since when, and the box that was because of (`blame`).

    Of a topic: how many messages were `taken` in, and since when as many or nothing waited; how many were `sent`, and since when as
    many; of each partition where some wait since when, and up to which offset some did then (`waits`).
    `took` and `came`: messages a second between the last two looks that were `RATE_OVER` apart, None where that is not known;
    `mark`: when the later of them was, and what was taken in and sent. `looked_at`: when it was last looked at. Of a replication
    slot: since when nobody reads it, 0.0 where somebody does (`unread_since`).
    """

    state: str = State.UNKNOWN
    since: float = 0.0
    taken: int = -1
    taken_at: float = 0.0
    sent: int = -1
    sent_at: float = 0.0
    took: float | None = None
    came: float | None = None
    mark: tuple[float, int, int] = (0.0, -1, -1)
    waits: tuple[tuple[int, float, int], ...] = ()
    looked_at: float = 0.0
    blame: Key = ()
    unread_since: float = 0.0

    @property
    def waited(self) -> bool:
        """Whether messages waited at that look."""
        return self.taken < self.sent

    @property
    def waits_at(self) -> float:
        """Since when the message that waits longest may; that look, where none does."""
        return min((since for _, since, _ in self.waits), default=self.looked_at)


Memory = Mapping[Key, Seen]


def load_memory(text: str | None) -> dict[Key, Seen]:
    """What `dump_memory` gave; empty where it cannot be read."""
    try:
        return {
            tuple(key): Seen(**{name: _whole(value) for name, value in seen.items()})
            for key, seen in json.loads(text or "[]")
        }
    except (ValueError, TypeError, AttributeError):  # also of another release
        return {}


def dump_memory(memory: Memory) -> str:
    return json.dumps([[key, asdict(seen)] for key, seen in memory.items()])


def _whole(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def judge(
    pipeline: Pipeline,
    readings: Sequence[Reading],
    memory: Memory,
    now: float,
    away: str = "",
    problems: Mapping[str, str] = NOTHING,
) -> tuple[list[Finding], dict[Key, Seen]]:
    """A finding for each topic, catalog table and relation, and what to remember.

    `away`: why the engine does not answer, "" when it does; nothing can be said of what it keeps then. `problems`: what is wrong
    with the engine that shows on no box.
    """
    found = {reading.key: reading for reading in readings}
    counted = {key: _counted(found.get(key), memory.get(key, Seen()), now) for key in _outside(pipeline)}
    unread = {
        relation_key(r.name): _unread_since(found.get(relation_key(r.name)), memory.get(relation_key(r.name)), now)
        for r in pipeline
        if r.is_connection
    }
    outside = {key: _of_outside(key, found, counted[key], unread, pipeline, now) for key in _outside(pipeline)}
    new = _new(pipeline, found, memory)
    relations = (_while_built(finding, found) for finding in _of_relations(pipeline, found, outside, new, away))
    of_engine = (
        Finding((ENGINE, part), State.BROKEN, now, words, "look at the engine's log")
        for part, words in problems.items()
    )
    findings = [*outside.values(), *relations, *of_engine]
    kept, after = [], {}
    for finding in findings:
        before, blame = memory.get(finding.key), finding.blame or finding.key
        is_the_same = (
            before is not None and before.state == finding.state and (before.blame == blame or finding.state.is_well)
        )
        since = before.since if before is not None and is_the_same else now
        counts = counted.get(finding.key, Seen())
        after[finding.key] = replace(
            counts, state=finding.state, since=since, blame=blame, unread_since=unread.get(finding.key, 0.0)
        )
        kept.append(replace(finding, since=since, blame=blame))
    return kept, after


def _new(pipeline: Pipeline, found: Mapping[Key, Reading], memory: Memory) -> set[Key]:
    """Relations of files that nobody has deployed yet, beside others that are: never seen before, or only as such."""
    keys = {relation_key(relation.name) for relation in pipeline}
    missing = keys - found.keys()
    if not memory or missing == keys:
        return set()
    return {
        key for key in missing if key not in memory or (memory[key].state, memory[key].blame) == (State.UNKNOWN, key)
    }


def _unread_since(slot: Reading | None, before: Seen | None, now: float) -> float:
    if slot is None:  # not looked at
        return before.unread_since if before else 0.0
    if slot.numbers.get("slot_active", 1):
        return 0.0
    return (before.unread_since if before else 0.0) or now


def _while_built(finding: Finding, found: Mapping[Key, Reading]) -> Finding:
    """A relation that is well but for a new version on its way."""
    progress = found[finding.key].state.get("building") if finding.key in found else None
    if progress is None or not finding.state.is_well:
        return finding
    words = f"a new version is being built ({progress}); readers stay on the one before until it is whole"
    return replace(finding, state=State.REBUILDING, words=words, next="", blame=finding.key)


def worst(findings: Sequence[Finding]) -> State:
    return max((finding.state for finding in findings), key=lambda state: state.rank, default=State.FRESH)


def freshness_wanted(relation: Relation) -> float:
    """Seconds of lag that are no trouble: `-- freshness: 30 s` in the header of its file, or the default."""
    match = _HEADER.search(relation.description)
    return float(match[1]) * (60 if match[2].lower() == "min" else 1) if match else FRESHNESS_SECONDS


# -- topics and catalog tables ----------------------------------------------------------------------------------------


def _outside(pipeline: Pipeline) -> list[Key]:
    return list(dict.fromkeys(key for relation in pipeline if (key := outside_key(relation))))


def _counted(reading: Reading | None, before: Seen, now: float) -> Seen:
    """Since when as many messages were sent and taken in as now."""
    if reading is None or "messages" not in reading.counters:
        return before
    sent = reading.counters["messages"]
    taken = sent - int(reading.numbers.get("lag_messages", 0))
    unseen = max(before.looked_at, now - LONGEST_BLIND)
    began = now if sent - taken < MANY else unseen  # a few may just have come
    return _with_rates(
        replace(
            before,
            taken=taken,
            taken_at=(before.taken_at if before.waited else unseen) if taken == before.taken else now,
            sent=sent,
            sent_at=before.sent_at if sent == before.sent else now,
            waits=tuple(_waits(reading, before, began, now)),
            looked_at=now,
        ),
        now,
    )


def _waits(reading: Reading, before: Seen, began: float, now: float) -> Iterator[tuple[int, float, int]]:
    """Of each partition where messages wait, since when the oldest may, and up to where they do now: since what it did at the last
    look, while one of those is left. Of what came since, the engine knows how old it is at most where much comes, and where little
    does it has just come. Where nobody has looked before, the engine alone knows."""
    known = {partition: (since, end) for partition, since, end in before.waits}
    for partition, (following, end) in reading.waiting.items():
        since, seen_end = known.get(partition, (began, end))
        if before.taken < 0:
            since = 0.0
        elif following >= seen_end:
            since = now if end - following < TRICKLE else max(before.looked_at, now - LONGEST_BLIND)
        yield partition, since, end


def _with_rates(seen: Seen, now: float) -> Seen:
    at, taken, sent = seen.mark
    if taken < 0 or seen.taken < taken or seen.sent < sent:  # never seen before, or counted anew
        return replace(seen, took=None, came=None, mark=(now, seen.taken, seen.sent))
    if now - at < RATE_OVER:
        return seen
    took, came = (seen.taken - taken) / (now - at), (seen.sent - sent) / (now - at)
    return replace(seen, took=round(took, 1), came=round(came, 1), mark=(now, seen.taken, seen.sent))


def _of_outside(
    key: Key,
    found: Mapping[Key, Reading],
    counts: Seen,
    unread: Mapping[Key, float],
    pipeline: Pipeline,
    now: float,
) -> Finding:
    reading = found.get(key)
    if reading is not None and (problem := reading.state.get("problem")):
        return Finding(
            key, State.BROKEN, now, problem, "the message says what to do; `recs status` shows the parts", key
        )
    return (
        _of_topic(key, reading, counts, pipeline, now)
        if key[0] == "kafka"
        else _of_catalog(key, found, unread, pipeline, now)
    )


def _of_topic(key: Key, reading: Reading | None, counts: Seen, pipeline: Pipeline, now: float) -> Finding:
    if reading is None:
        return Finding(key, State.UNKNOWN, now, "nobody has said how far it is read", "", key)
    lag = int(reading.numbers.get("lag_messages", 0))
    wanted = min(freshness_wanted(source) for topic, source in pipeline.topics.items() if topic_key(topic) == key)
    held_up = float(reading.numbers.get("held_up_seconds", 0.0))
    if held_up > wanted:
        words = f"nothing has been taken in for {_ago(held_up)}, while the engine changes what is deployed; what comes waits"
        next_step = "it catches up by itself when that is done"
        return Finding(key, State.BEHIND, now, words, next_step, key, {"held_up_seconds": held_up})
    # of a topic on which nothing came for long, the engine knows no better than that; it was not waited for before
    seconds = min(float(reading.numbers.get("lag_seconds", 0.0)), round(now - counts.waits_at, 1))
    evidence: dict[str, float | int] = {"lag_messages": lag, "lag_seconds": seconds}
    if lag == 0:
        quiet = now - counts.sent_at
        evidence["quiet_seconds"] = round(quiet, 1)
        if quiet >= IDLE_AFTER:
            return Finding(key, State.IDLE, now, f"nothing has been sent for {_ago(quiet)}", "", key, evidence)
        return Finding(key, State.FRESH, now, "all that was sent is taken in", "", key, evidence)
    still = now - counts.taken_at
    evidence["still_seconds"] = round(still, 1)
    if still >= STALLED_AFTER:
        words = f"{_waiting(lag)}, and none has been taken in for {_ago(still)}"
        return Finding(key, State.STALLED, now, words, "look at the engine's log, and at Kafka", key, evidence)
    if seconds > wanted:
        words = f"{_waiting(lag)}, the oldest for up to {_ago(seconds)}; {_pace(counts, still)}"
        next_step = "it catches up by itself, unless more comes than can be done"
        return Finding(key, State.BEHIND, now, words, next_step, key, evidence | _rates(counts))
    return Finding(key, State.FRESH, now, f"{_waiting(lag)}, none for longer than {_ago(seconds)}", "", key, evidence)


def _rates(counts: Seen) -> dict[str, float | int]:
    """Messages a second, and the seconds after which none would wait."""
    if counts.took is None or counts.came is None:
        return {}
    gain = counts.took - counts.came
    left = {"seconds_to_work_off": round((counts.sent - counts.taken) / gain, 1)} if gain > 0 else {}
    return {"taken_per_second": counts.took, "sent_per_second": counts.came, **left}


def _pace(counts: Seen, still: float) -> str:
    rates = _rates(counts)
    if not rates or (counts.took and counts.sent - counts.taken < FEW):  # how fast a few go says nothing
        return "they are being taken in"
    if not counts.took:  # a tick that takes in very many at once is under way
        return f"none has been taken in for {_ago(still)}"
    pace = f"{_rate(counts.took)} a second are taken in and {_rate(counts.came)} come"
    if "seconds_to_work_off" not in rates:
        return f"{pace}: it does not catch up"
    return f"{pace}: worked off in about {_ago(rates['seconds_to_work_off'])}"


def _of_catalog(
    key: Key, found: Mapping[Key, Reading], unread: Mapping[Key, float], pipeline: Pipeline, now: float
) -> Finding:
    """As its table and the slot it is read through are."""
    slots = [found.get(relation_key(r.name)) for r in pipeline if r.is_connection]
    for slot in filter(None, slots):
        remedy = _slot_remedy(slot)
        if is_lost(slot):
            words = slot.state.get("problem", "PostgreSQL has given up the replication slot")
            return Finding(key, State.BROKEN, now, words, remedy, key)
        if (since := unread.get(slot.key, 0.0)) and now - since >= STALLED_AFTER:
            words = f"nobody has read the replication slot {slot.state['slot']} for {_ago(now - since)}: no change is followed"
            next_step = "look at the engine's log: has the password or the address of PostgreSQL changed?"
            return Finding(key, State.STALLED, now, words, next_step, key, slot.numbers)
        if words := _kept_log(slot):
            next_step = "see whether the engine reads; `max_slot_wal_keep_size` bounds what is kept"
            return Finding(key, State.BEHIND, now, words, next_step, key, slot.numbers)
    if key not in found:
        return Finding(key, State.UNKNOWN, now, "PostgreSQL was not looked at", "", key)
    return Finding(key, State.FRESH, now, "its changes are followed", "", key)


def _slot_remedy(slot: Reading | None) -> str:
    """Who mends a slot that is lost."""
    return (slot.state.get("remedy") if slot else None) or "the engine makes a new one and reads the tables anew"


def _kept_log(slot: Reading) -> str:
    """What PostgreSQL keeps of its log for a slot, where that is too much for its disk or for its own bound."""
    kept, left = slot.numbers.get("retained_bytes", 0), slot.numbers.get("bytes_until_lost")
    words = f"PostgreSQL keeps {kept / 1e9:,.1f} GB of its log for the engine"
    if left is not None and left < LOG_LEFT:
        return f"{words}, and gives up the slot after {max(left, 0) / 1e6:,.0f} MB more"
    return f"{words}: its disk fills up until that is read" if kept > LOG_KEPT else ""


# -- relations --------------------------------------------------------------------------------------------------------


def _of_relations(
    pipeline: Pipeline,
    found: Mapping[Key, Reading],
    outside: Mapping[Key, Finding],
    new: Collection[Key],
    away: str,
) -> Iterator[Finding]:
    known: dict[str, Finding] = {}
    for relation in pipeline:
        known[relation.name] = finding = _of_relation(relation, found, outside, known, new, away)
        yield finding


def _of_relation(
    relation: Relation,
    found: Mapping[Key, Reading],
    outside: Mapping[Key, Finding],
    known: Mapping[str, Finding],
    new: Collection[Key],
    away: str,
) -> Finding:
    key, reading = relation_key(relation.name), found.get(relation_key(relation.name))
    if away:
        return Finding(key, State.BROKEN, 0.0, away, "`recs status` shows the parts, `recs up` starts them", (ENGINE,))
    if reading is not None and (why := reading.state.get("awaited")):
        return Finding(key, State.UNKNOWN, 0.0, f"it is not deployed: {why}", "`recs apply` deploys it", key)
    if key in new:
        next_step = "`recs apply` deploys it; Dagster does by itself, where nothing breaks by it"
        return Finding(key, State.UNKNOWN, 0.0, "it is new in sql/, and not deployed yet", next_step, key)
    is_connection = relation.is_connection
    if reading is None and not is_connection:
        return Finding(key, State.BROKEN, 0.0, "it is not deployed", "materialize it, or `recs apply`", key)
    problem = reading.state.get("problem") if reading else None
    if problem:
        after = "what is not written stays marked, and is when that is mended"
        if relation.kind is Kind.SOURCE:
            after = _slot_remedy(reading)
        if relation.kind is Kind.TABLE:
            after = "its rows stay as they are, and follow when that is mended"
        return Finding(key, State.BROKEN, 0.0, problem, after, key)
    own = _own_lag(relation, reading)
    made_from = [known[name] for name in relation.upstreams]
    beyond = outside_key(relation)
    made_from += [outside[beyond]] if beyond else []
    ill = _what_it_is_like(made_from)
    if own and (ill is None or own.state.rank > ill.state.rank):
        return own
    if ill is None:
        return Finding(key, State.FRESH, 0.0, "it is there", "", key)
    words = ill.words if ill.state.is_well else f"{'/'.join(ill.blame)} is {ill.state}: {_cause(ill)}"
    return Finding(key, ill.state, 0.0, words, ill.next, ill.blame, ill.evidence)


def _what_it_is_like(made_from: Sequence[Finding]) -> Finding | None:
    """The illest of what it is made from. Where all is well, a topic on which something comes counts more than an idle one,
    and either more than a catalog."""
    ill = max(made_from, key=lambda finding: finding.state.rank, default=None)
    if ill is None or ill.state not in (State.FRESH, State.IDLE):
        return ill
    of_topics = [finding for finding in made_from if finding.blame[:1] == ("kafka",)]
    return min(of_topics or made_from, key=lambda finding: finding.state.rank)


def _cause(ill: Finding) -> str:
    """Told once, however many boxes it went through."""
    return ill.words.partition(f" is {ill.state}: ")[2] or ill.words


def _own_lag(relation: Relation, reading: Reading | None) -> Finding | None:
    """What is known of a sink itself: how long an event takes to Redis, or a barrier, where the engine tells that."""
    if reading is None or relation.kind is not Kind.SINK:
        return None
    key, wanted = relation_key(relation.name), freshness_wanted(relation)
    late, barrier = reading.numbers.get("freshness_now_ms", 0.0), reading.numbers.get("barrier_seconds", 0.0)
    if max(late / 1000, barrier) <= wanted:
        return None
    what = (
        f"an event takes up to {_ago(late / 1000)} to Redis"
        if late / 1000 > wanted
        else f"a barrier takes {_ago(barrier)}"
    )
    evidence = {
        name: reading.numbers[name] for name in ("freshness_now_ms", "barrier_seconds") if name in reading.numbers
    }
    words = f"{what}, {_ago(wanted)} are wanted"
    return Finding(key, State.BEHIND, 0.0, words, "look at the load of the engine", key, evidence)


def _waiting(messages: int) -> str:
    return f"{messages:,} messages wait" if messages != 1 else "1 message waits"


def _rate(a_second: float | None) -> str:
    return f"{a_second or 0.0:,.{0 if a_second is None or a_second >= 10 else 1}f}"


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
