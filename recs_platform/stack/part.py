"""One part under supervision: started when what it needs is well, looked at, started again when it died."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection
from concurrent.futures import Executor, Future
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from recs_platform.errors import StackError
from recs_platform.settings import masked
from recs_platform.stack.process import LOG_LIMIT, Running, last_lines, start, stop, sweep, turn_over, why_not
from recs_platform.stack.service import Service
from recs_platform.stack.state import LOG_DIR, PartState, State

LOOK_SECONDS = 1.0
SILENCE_SECONDS = 10.0
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a part that died is started again
SETTLED_SECONDS = 30.0  # healthy this long, its earlier deaths are forgotten
DEATHS_TO_FAIL = 3
HUNG_SECONDS = 60.0  # without a good answer, after which a process is killed and started again; 0 for never


class Part:
    """Calling `step` often moves the part on; it never blocks for longer than starting a process takes."""

    def __init__(
        self, service: Service, stack: Path, found: Running | None = None, hung_seconds: float = HUNG_SECONDS
    ) -> None:
        self.service, self.stack, self.running, self._hung_seconds = service, stack, found, hung_seconds
        self.log = stack / LOG_DIR / f"{service.name}.log"
        self.state = State.STARTING if found or service.yours else State.WAITING
        self.problem, self.restarts, self._deaths = "", 0, 0
        self._killed_for = ""
        self.since = datetime.now(UTC)
        self._changed = self._next_start = self._next_look = self._asked = time.monotonic()
        self._answer: Future[str | None] | None = None

    def step(self, healthy: Collection[str], probes: Executor, leftovers: Callable[[], list[psutil.Process]]) -> None:
        """One round. `leftovers` are marked processes of this part, to be ended before it is started."""
        if self.running is None and not self.service.yours:
            self._start_if_due(healthy, leftovers)
        elif self.running is not None and not self.running.alive():
            self._died()
        elif self._is_hung(healthy):
            self._kill()
        else:
            self._look(probes)

    def report(self) -> PartState:
        """What `stack.json` shows of the part."""
        return PartState(
            name=self.service.name,
            state=self.state,
            url=masked(self.service.url),
            yours=self.service.yours,
            pid=self.running.pid if self.running else None,
            port=self._port(),
            since=self.since.isoformat(timespec="seconds"),
            restarts=self.restarts,
            problem=self.problem,
            log="" if self.service.yours else str(self.log),
        )

    def bound_log(self) -> None:
        """Keeps the part's log and the previous one under the limit each."""
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT:
            turn_over(self.log)

    def stopping(self) -> None:
        self._become(State.STOPPING, "")

    def stop(self) -> None:
        """Returns when its process is gone."""
        if self.running is not None:
            stop(self.running, self.service.name)
        self.running = None
        self._become(State.STOPPED, "")

    def _start_if_due(self, healthy: Collection[str], leftovers: Callable[[], list[psutil.Process]]) -> None:
        missing = [name for name in self.service.needs if name not in healthy]
        if missing:
            self.problem = f"waits for {', '.join(missing)}"
        elif time.monotonic() >= self._next_start:
            sweep(leftovers())
            self._start()

    def _start(self) -> None:
        try:
            self.service.prepare()
            self.running = start(self.service, self.log, self.stack)
        except (StackError, OSError) as error:
            self._failed(str(error))
        else:
            self._become(State.STARTING if self._deaths < DEATHS_TO_FAIL else State.FAILING, self.problem)

    def _died(self) -> None:
        child = self.running.child if self.running else None
        how = f" ({_ending(child.returncode)})" if child is not None else ""
        ended = f"ended{how}: {(last_lines(self.log, 1) or 'nothing in its log').strip()}"
        problem, self._killed_for = self._killed_for or ended, ""
        self.running, self._answer = None, None
        self.restarts += 1
        self._failed(problem)

    def _is_hung(self, healthy: Collection[str]) -> bool:
        """Whether it was well, has not been for long, and nothing it needs is to blame."""
        return (
            self.state is State.UNHEALTHY
            and self.running is not None
            and 0 < self._hung_seconds < time.monotonic() - self._changed
            and set(self.service.needs) <= set(healthy)
        )

    def _kill(self) -> None:
        """It is found dead at the next round."""
        assert self.running is not None
        self._killed_for = f"killed, for it was not well for {self._hung_seconds:.0f} s: {self.problem}"
        with suppress(psutil.NoSuchProcess):
            self.running.process.kill()

    def _failed(self, problem: str) -> None:
        self._next_start = time.monotonic() + min(FIRST_WAIT * 2**self._deaths, LONGEST_WAIT)
        self._deaths += 1
        self._become(State.FAILING if self._deaths >= DEATHS_TO_FAIL else State.RESTARTING, problem)

    def _look(self, probes: Executor) -> None:
        now = time.monotonic()
        if self._answer is None:
            if now >= self._next_look:
                self._asked = now
                self._answer = probes.submit(why_not, self.service, self.state is not State.HEALTHY)
        elif self._answer.done():
            problem, self._answer = self._answer.result(), None
            self._next_look = now + (LOOK_SECONDS if problem is None else LOOK_SECONDS / 4)
            self._judge(problem)
        elif now - self._asked > SILENCE_SECONDS:
            self._judge(f"has not answered for {now - self._asked:.0f} s")

    def _judge(self, problem: str | None) -> None:
        if problem is None:
            if self.state is State.HEALTHY and time.monotonic() - self._changed > SETTLED_SECONDS:
                self._deaths = 0
            self._become(State.HEALTHY, "")
        elif self.state is State.HEALTHY:
            self._become(State.UNHEALTHY, problem)
        else:
            self._become(self.state, problem)

    def _become(self, state: State, problem: str) -> None:
        self.problem = problem
        if state is not self.state:
            self.state, self.since, self._changed = state, datetime.now(UTC), time.monotonic()

    def _port(self) -> int | None:
        if self.service.yours or not self.service.url:
            return None
        url = self.service.url
        return urlsplit(url if "//" in url else f"//{url}").port


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
