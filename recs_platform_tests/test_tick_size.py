"""How much a tick takes in: as much as is worked off in a few seconds, on whatever machine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from recs_platform.engines.local.tick_size import FIRST, LEAST, LONGEST, TickSize

MOST = 500_000


def test_nothing_is_known_before_the_first_large_tick() -> None:
    size = TickSize(MOST)
    size.note(LEAST - 1, 60.0)
    assert size.messages == FIRST
    assert TickSize(400).messages == 400


@given(pace=st.floats(LEAST / LONGEST, MOST / LONGEST), ticks=st.integers(2, 5))
def test_a_backlog_is_taken_in_by_ticks_of_the_longest_time(pace: float, ticks: int) -> None:
    size = TickSize(MOST)
    for _ in range(ticks):
        size.note(size.messages, size.messages / pace)
    assert abs(size.messages / pace - LONGEST) < 0.01


@given(st.lists(st.tuples(st.integers(0, 2 * MOST), st.floats(0, 1e6))))
def test_it_stays_within_its_bounds(ticks: list[tuple[int, float]]) -> None:
    size = TickSize(MOST)
    for messages, seconds in ticks:
        size.note(messages, seconds)
        assert LEAST <= size.messages <= MOST
