"""Ending a process in good order when a signal asks for it."""

from __future__ import annotations

import signal
import threading
from queue import SimpleQueue


def stopping_on(*numbers: signal.Signals) -> threading.Event:
    """An event that is set when one of the signals comes. For the main thread.

    Not set by the handler itself: that runs wherever the main thread happens to be, within the event's own `wait`
    too, and would wait for ever for the lock that is held there. What it does instead is made for that.
    """
    stop, told = threading.Event(), SimpleQueue[int]()

    def set_when_told() -> None:
        told.get()
        stop.set()

    threading.Thread(target=set_when_told, name="signals", daemon=True).start()
    for number in numbers:
        signal.signal(number, lambda number, _: told.put(number))
    return stop
