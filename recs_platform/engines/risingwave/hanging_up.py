"""A bound to how long an answer is waited for, kept by whoever asks: a server that hangs keeps none of its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Timer
from typing import Any

import psycopg


@contextmanager
def hung_up_after(seconds: float, connection: psycopg.Connection[Any]) -> Iterator[Callable[[], bool]]:
    """Ends the connection after so long, under whoever waits on it: `psycopg.OperationalError`. Gives whether it was that."""
    is_late = Event()

    def hang_up() -> None:
        is_late.set()
        with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)

    timer = Timer(seconds, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield is_late.is_set
    finally:
        timer.cancel()
