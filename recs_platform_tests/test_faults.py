"""A short soak: faults that a whole stack has to bear, under load, with pages asked all the while. `make soak` has more."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from tempfile import mkdtemp

import pytest

from recs_platform_tests.soak import Outcome, opened, run

SECONDS = 900  # each fault has a time of its own, and says what is not well: this is for what hangs beside them
pytestmark = pytest.mark.timeout(SECONDS)

FAULTS = (
    "engine killed", "Redis flushed", "poison", "valkey killed", "Redis full", "replication slot dropped", "doubled and late",
    "catalog emptied and filled", "a second engine", "keys lost in Redis", "topic deleted and created", "broker killed",
    "postgres killed",
)  # fmt: skip
AT_ONCE = (("engine killed", "broker killed"), ("valkey killed", "postgres killed"))


def test_after_every_fault_all_is_well_again_and_redis_is_right_at_the_end() -> None:
    home = Path(mkdtemp(prefix="recs-faults-"))  # PostgreSQL's own user must get through
    home.chmod(0o711)
    outcomes: list[Outcome] = []
    try:
        with opened(home / "state", rate=100) as floor:
            run(floor, [*((name,) for name in FAULTS), *AT_ONCE], Random(1), outcomes.append)
            assert floor.pages > 100
    finally:
        shutil.rmtree(home, ignore_errors=True)
    assert [outcome.fault for outcome in outcomes] == [*FAULTS, *map(" + ".join, AT_ONCE)]
