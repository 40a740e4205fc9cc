"""A process that is asked to stop does, wherever it happens to be."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHIN_WAIT = """
import signal
from recs_platform.signals import stopping_on

stop = stopping_on(signal.SIGTERM)
{where}signal.raise_signal(signal.SIGTERM)
print(stop.wait(10))
"""


@pytest.mark.parametrize(
    "where", ["", "with stop._cond: "], ids=["at rest", "within wait, which holds the event's lock"]
)
def test_a_signal_sets_the_event(where: str) -> None:
    command = [sys.executable, "-c", WITHIN_WAIT.format(where=where)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "True\n", done.stderr
