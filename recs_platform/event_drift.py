"""How the fields of events look, in a sample of each topic, and what of it is otherwise than it used to be.

A field that nobody has seen before, one that has another type, one that is missing: told as a share of the messages of
one event type, before or although they are dead letters. What is usual is learned, so that what stays becomes usual.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice

from recs_platform.foreign_json import parsed
from recs_platform.lineage import Lineage, topic_key
from recs_platform.pipeline import Pipeline
from recs_platform.topic_reader import read, spans

SAMPLE = 500  # messages of a topic at a look
FEWEST = 20  # of an event type, for anything to be said of it
MOST_KINDS, MOST_FIELDS = 30, 100  # remembered, of a topic and of an event type
HALF_LIFE = 86_400.0  # seconds until half of what is usual is what came since

NEW_FROM, USUAL_FROM = 0.01, 0.05  # shares: a field that is new, and one that was there before
TYPE_FROM, TYPE_BEFORE = 0.05, 0.10  # of the messages that have the field
MISSING_FROM = 0.05  # by how much less often than usual

_TYPES = {
    str: "text",
    bool: "boolean",
    int: "number",
    float: "number",
    dict: "object",
    list: "array",
    type(None): "null",
}

Types = Mapping[str, float]  # JSON type → share of the messages; what is left to 1 is absent
Profile = Mapping[str, Mapping[str, Types]]  # event type → field → types


class What(StrEnum):
    NEW = "new"
    RETYPED = "retyped"
    MISSING = "missing"


@dataclass(frozen=True)
class FieldDrift:
    """One difference. `share` is of the messages of that event type: with the field, with the other type, or without it."""

    event_type: str
    field: str
    what: What
    share: float
    usual: float
    types: str
    is_read: bool

    @property
    def matters(self) -> bool:
        """Whether rows come out otherwise, or not at all."""
        return self.is_read and self.what is not What.NEW

    def __str__(self) -> str:
        words = {
            What.NEW: f"is new, {self.types}, in {self.share:.0%}",
            What.RETYPED: f"is {self.types} in {self.share:.0%}, usually in {self.usual:.0%}",
            What.MISSING: f"is missing in {self.share:.0%}, usually in {self.usual:.0%}",
        }
        read = "read by sql/" if self.is_read else "nothing reads it"
        return f"{self.event_type}.{self.field} {words[self.what]} of the messages; {read}"


def sample(servers: str, topic: str, oldest: bool = False) -> tuple[list[bytes], int]:
    """About `SAMPLE` messages, the newest or the oldest kept, and how many the topic has had. Raises `SourceError`."""
    found = spans(servers, topic)
    each = -(-SAMPLE // max(1, len(found)))
    parts = {p: s if oldest else replace(s, first=max(s.first, s.next - each)) for p, s in found.items()}
    messages = islice(read(servers, topic, parts), SAMPLE if oldest else 2 * SAMPLE) if parts else ()
    return [bytes(value) for message in messages if (value := message.value())], sum(s.next for s in found.values())


def profile(payloads: Iterable[bytes]) -> Profile:
    """Of the JSON objects among them. Event types with too few messages are left out."""
    counts: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    totals = Counter[str]()
    for event in _objects(payloads):
        kind = event.get("event_type")
        kind = kind if isinstance(kind, str) else "(no event_type)"
        totals[kind] += 1
        counts[kind].update((name[:100], _TYPES[type(value)]) for name, value in event.items())
    return {
        kind[:100]: _shares(counts[kind], total) for kind, total in totals.most_common(MOST_KINDS) if total >= FEWEST
    }


def _objects(payloads: Iterable[bytes]) -> Iterator[dict[str, object]]:
    for payload in payloads:
        try:
            found = parsed(payload)
        except ValueError:  # not JSON, not UTF-8, nested too deeply: a dead letter, counted as one
            continue
        if isinstance(found, dict):
            yield found


def _shares(counts: Counter[tuple[str, str]], total: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for (name, kind), count in counts.most_common():
        if name in found or len(found) < MOST_FIELDS:
            found[name][kind] = count / total
    return dict(found)


def learned(usual: Profile, now: Profile, seconds: float) -> Profile:
    """What is usual after it has been so for so long. An event type that is seen for the first time is usual at once."""
    share = 1 - 0.5 ** (max(0.0, seconds) / HALF_LIFE)
    mixed = {kind: _mixed(usual[kind], now[kind], share) if kind in usual else now[kind] for kind in now}
    return dict(islice(({**usual, **mixed}).items(), MOST_KINDS))


def _mixed(usual: Mapping[str, Types], now: Mapping[str, Types], share: float) -> dict[str, dict[str, float]]:
    mixed: dict[str, dict[str, float]] = {}
    for name in {**usual, **now}:
        before, after = usual.get(name, {}), now.get(name, {})
        types = {t: (1 - share) * before.get(t, 0.0) + share * after.get(t, 0.0) for t in {**before, **after}}
        mixed[name] = {t: round(value, 6) for t, value in types.items() if value > 0.0001}
    dearest = sorted((item for item in mixed.items() if item[1]), key=lambda item: -sum(item[1].values()))
    return dict(dearest[:MOST_FIELDS])


def drifts(usual: Profile, now: Profile, read: frozenset[str]) -> list[FieldDrift]:
    """What differs, what matters first. `read`: the fields that the SQL reads."""
    found = [drift for kind in now if kind in usual for drift in _of_kind(kind, usual[kind], now[kind], read)]
    return sorted(found, key=lambda d: (not d.matters, d.event_type, d.field))


def _of_kind(
    kind: str, usual: Mapping[str, Types], now: Mapping[str, Types], read: frozenset[str]
) -> Iterator[FieldDrift]:
    for name in {**usual, **now}:
        before, after = usual.get(name, {}), now.get(name, {})
        there, was_there = sum(after.values()), sum(before.values())
        words = " and ".join(sorted(after))
        if there >= NEW_FROM and was_there < USUAL_FROM:
            yield FieldDrift(kind, name, What.NEW, there, was_there, words, name in read)
            continue
        if was_there - there >= MISSING_FROM:
            yield FieldDrift(kind, name, What.MISSING, 1 - there, 1 - was_there, words, name in read)
        for other, share in after.items() if was_there >= USUAL_FROM else ():
            usually = before.get(other, 0.0)
            if share / there >= TYPE_FROM and usually / was_there < TYPE_BEFORE:
                yield FieldDrift(kind, name, What.RETYPED, share, usually, other, name in read)


def fields_read(pipeline: Pipeline, topic: str) -> frozenset[str]:
    """The fields of a topic's messages that the SQL reads."""
    node = Lineage.of(pipeline).nodes.get(topic_key(topic))
    names = (column.name for column in node.columns) if node else ()
    return frozenset(name.removeprefix("value.") for name in names if name.startswith("value."))
