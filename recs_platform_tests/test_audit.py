"""What counts as the document of a row, and when a repair is due."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from datetime import time as clock_time
from decimal import Decimal
from typing import Any

import pytest

from recs_platform import repairs
from recs_platform.audit import Audit
from recs_platform.repairs import Incident, follow
from recs_platform.serving.documents import is_document_of

NOON = datetime(2026, 11, 26, 12, 0, 0, 5, UTC)
LOCAL, DAY, CLOCK = datetime(2026, 11, 26, 12), date(2026, 11, 26), clock_time(1, 2, 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", '"a"'), (None, "null"), (3, "3"), (3.0, "3"), (2.5, "2.5"), (Decimal("2.50"), "2.5"), (True, "true"),
        (NOON, '"2026-11-26T12:00:00.000005Z"'), (NOON, '"2026-11-26T13:00:00.000005+01:00"'),
        (["a", "b"], '["a","b"]'), ('["a", "b"]', '["a","b"]'), ([{"n": 1, "at": None}], '[{"n":1,"at":null}]'),
        (DAY, '"2026-11-26"'), (DAY, "739946"), (CLOCK, '"01:02:03"'), (CLOCK, "3723000"), (Decimal("2.50"), '"2.50"'),
        (NOON.replace(tzinfo=None), '"2026-11-26 12:00:00.000005"'), (LOCAL, "1795694400000"),
        (LOCAL.replace(microsecond=1999), "1795694400001"), (b"x", '"eA=="'),
        (math.nan, "null"), (-math.inf, "null"), (Decimal("NaN"), "null"), ([1.0, math.nan], "[1,null]"),
    ],
)  # fmt: skip
def test_a_document_says_what_its_row_does(value: Any, text: str) -> None:
    assert is_document_of({"x": value}, f'{{"key":"recs:a:1:b","x":{text}}}')


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", '"b"'), ("a", "null"), (None, '"a"'), (3, "4"), (2.5, "2.6"), (NOON, '"2026-11-26T12:00:00Z"'), (NOON, '"noon"'),
        (["a", "b"], '["b","a"]'), (["a"], '["a","b"]'), ('["a"]', '["b"]'), ([{"n": 1}], '[{"n":2}]'), (True, '"true"'),
        (DAY, '"2026-11-27"'), (DAY, "739947"), (DAY, "null"), (CLOCK, '"01:02:04"'), (Decimal("2.50"), '"2.51"'), (2.5, "true"),
        (Decimal("2.50"), '"many"'), (LOCAL, "1795694400001"), (LOCAL, '"2026-11-26T12:00:00Z"'), (NOON, "null"), (NOON, "7"),
        (math.nan, "NaN"), (math.inf, "Infinity"), (2.5, "null"),
    ],
)  # fmt: skip
def test_another_value_is_stale(value: Any, text: str) -> None:
    assert not is_document_of({"x": value}, f'{{"x":{text}}}')


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"y":1}'])
def test_what_is_no_such_document_is_stale(text: str) -> None:
    assert not is_document_of({"x": 1}, text)


def test_an_audit_says_what_is_wrong_and_names_one_of_each() -> None:
    audit = Audit("products_sink", "v1", "v1", 1_200, ("a", "b"), ("c",), ("d",))
    assert audit.problem == (
        "of 1,200 rows looked at: 2 missing (a among them), 1 stale (c among them), 1 orphaned (d among them)"
    )
    assert audit.can_be_mended
    assert (audit.kind, audit.wrong) == ("rows", ("a", "b", "c"))
    assert not Audit("products_sink", "v1", "v1", 1_200).problem


def test_of_what_was_not_compared_only_the_pointer_is_known() -> None:
    behind = Audit("products_sink", "v1", "v1", not_compared="the engine is behind")
    assert (behind.problem, behind.kind, behind.is_known) == ("", "", False)
    emptied = Audit("products_sink", None, "v1", not_compared="the engine is behind")
    assert (emptied.kind, emptied.is_known, emptied.can_be_mended) == ("no pointer", True, True)


def test_what_cannot_be_looked_at_cannot_be_mended() -> None:
    assert not Audit("products_sink", None, "", away="Redis does not answer").can_be_mended


# Repairs


def test_a_repair_is_due_at_the_second_look_and_once() -> None:
    incidents, due = follow({}, ["a"], 100.0)
    assert not due, "it may mend itself"
    incidents, due = follow(incidents, ["a"], 160.0)
    assert due == ["a"]
    for now in (220.0, 280.0):
        incidents, due = follow(incidents, ["a"], now)
        assert not due, "what did not help is not tried again"
    assert incidents == {"a": Incident(100.0, 4, 160.0, 1, "a since 100")}


def test_one_that_came_to_nothing_is_tried_again_a_few_times() -> None:
    incidents, _ = follow({"a": Incident(100.0, 1), "b": Incident(100.0, 1)}, ["a", "b"], 160.0)
    runs = {incidents["a"].run}
    assert not follow(incidents, ["a", "b"], 220.0, failed=["a"])[1], "not at once"
    for now in (500.0, 900.0):
        incidents, due = follow(incidents, ["a", "b"], now, failed=["a"])
        assert due == ["a"]
        runs.add(incidents["a"].run)
    assert runs == {"a since 100; b since 100", "a since 100, again (1)", "a since 100, again (2)"}
    assert not follow(incidents, ["a", "b"], 9_000.0, failed=["a"])[1]


def test_what_was_well_again_in_between_is_another_incident() -> None:
    incidents, _ = follow({"a": Incident(100.0, 5, 160.0)}, [], 400.0)
    assert incidents == {}
    incidents, _ = follow(incidents, ["a"], 500.0)
    _, due = follow(incidents, ["a"], 560.0)
    assert due == ["a"]


def test_what_could_not_be_looked_at_goes_on_being_the_same_incident() -> None:
    before = {"a": Incident(100.0, 5, 160.0), "b": Incident(100.0, 1)}
    incidents, due = follow(before, [], 400.0, unseen=["a", "b", "c"])
    assert (incidents, due) == (before, [])
    _, due = follow(incidents, ["a", "b"], 460.0)
    assert due == ["b"], "the other was repaired"


def test_where_nothing_may_be_repaired_incidents_are_followed_all_the_same() -> None:
    incidents, due = follow({"a": Incident(100.0, 5)}, ["a"], 400.0, may_repair=False)
    assert (incidents, due) == ({"a": Incident(100.0, 6)}, [])
    assert follow(incidents, ["a"], 460.0)[1] == ["a"]


def test_incidents_outlive_the_process() -> None:
    incidents = {"a": Incident(100.0, 2, 160.0)}
    assert repairs.load(repairs.dump(incidents)) == incidents


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"a": 1}', '{"a": [1, 2, 3, 4, 5, 6]}'])
def test_incidents_that_cannot_be_read_are_begun_anew(text: str | None) -> None:
    assert repairs.load(text) == {}
