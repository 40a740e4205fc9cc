"""What others want done between two ticks, in the loop's own thread, and for how long nothing is taken in because of it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from recs_platform.errors import EngineBusy, EngineError

LONGEST_REQUEST = 3300.0  # seconds that whoever asked waits for; whoever asks over Flight waits for an hour in all
HELD_UP = 5.0  # seconds; a shorter request is noticed by nobody


class Requests:
    """Asked from any thread, answered by the loop's. `busy`: what the loop is at, in words, for whoever waits in vain."""

    def __init__(self, busy: Callable[[], str]) -> None:
        self._busy = busy
        self._waiting: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._is_over = threading.Event()
        self._held_since: float | None = None  # Unix seconds; while one is answered
        self._held_until = 0.0  # when the last long one was

    def ask(self, request: Callable[[], Any], patience: float) -> Any:
        """Has it done, and returns what it returned. Raises `EngineBusy` where it is not come to within `patience` seconds, and then
        it is not done; once begun it is waited for, an hour at most."""
        answer: Future[Any] = Future()
        self._waiting.append((request, answer))
        if not self._is_over.is_set():
            wait([answer], patience)
        if answer.cancel():
            raise EngineBusy(f"the engine has been {self._busy()}, and this is not done: ask again when it is over")
        wait([answer], LONGEST_REQUEST)
        if not answer.done():
            raise EngineError("it is still being done, and goes on: `recs status` shows how far it is")
        return answer.result()

    def answer(self, begin: Callable[[], None]) -> None:
        """Does all that is asked for; `begin` is called before each."""
        while self._waiting:
            request, answer = self._waiting.popleft()
            if not answer.set_running_or_notify_cancel():
                continue
            begin()
            self._held_since = since = time.time()
            try:
                answer.set_result(request())
            except Exception as error:  # handed to whoever asked
                answer.set_exception(error)
            finally:
                self._held_since = None
                if time.time() - since >= HELD_UP:
                    self._held_until = time.time()

    def end(self) -> None:
        """Nothing is answered any more."""
        self._is_over.set()
        for _, answer in self._waiting:
            answer.cancel()

    def held_up(self) -> tuple[float, float]:
        """For how many seconds nothing has been taken in because of one, 0.0 where that is not so; and when that was last so, in
        seconds since 1970."""
        since, now = self._held_since, time.time()
        if since is None or now - since < HELD_UP:
            return 0.0, self._held_until
        return round(now - since, 1), now
