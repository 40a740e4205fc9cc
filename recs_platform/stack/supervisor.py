"""The supervisor: one background process that starts the parts, watches them and starts again what died.

`python -m recs_platform.stack.supervisor [PART …]` is what `recs up` starts. It may be killed at any moment: the parts
go on without it, and the next one takes them over. SIGTERM makes it stop all parts and end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime

from recs_platform.errors import RecsError
from recs_platform.settings import ENDPOINTS_FILE, Settings, save_endpoints
from recs_platform.signals import stopping_on
from recs_platform.stack.part import Part
from recs_platform.stack.parts import PARTS, chosen, services
from recs_platform.stack.process import SUPERVISOR, main_process, marked, stop_everything, sweep
from recs_platform.stack.state import LOG_DIR, StackState, State, load, save, supervising

ROUND_SECONDS = 0.1
ROUNDS_A_LOG_CHECK = 100


class Supervisor:
    """Looks after the chosen parts of one state directory. Raises `StackError` when they cannot be planned."""

    def __init__(self, settings: Settings, names: Collection[str]) -> None:
        self.stack = settings.state_dir
        before = load(self.stack)
        living = marked(self.stack)
        settings, wanted = services(settings, names, before.ports() if before else {}, living)
        for name in living.keys() - {service.name for service in wanted if not service.yours} - {SUPERVISOR}:
            sweep(living[name])
        found = {s.name: None if s.yours else main_process(living.get(s.name, [])) for s in wanted}
        self.parts = [Part(s, self.stack, found[s.name], settings.restart_hung_seconds) for s in wanted]
        self.written: StackState | None = None
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self._write(State.STARTING)  # the ports, before anything listens on them
        save_endpoints(self.stack, settings)

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set; then ends all parts, the last started first."""
        with ThreadPoolExecutor(max_workers=len(self.parts) or 1, thread_name_prefix="probe") as probes:
            rounds = 0
            while not stop.wait(ROUND_SECONDS):
                self._round(probes)
                rounds += 1
                if rounds % ROUNDS_A_LOG_CHECK == 0:
                    for part in self.parts:
                        with suppress(OSError):  # on a full disk no log grows
                            part.bound_log()
            self._close()  # ends the parts, and so the probes that still wait for one

    def _round(self, probes: ThreadPoolExecutor) -> None:
        for part in self.parts:
            healthy = {p.service.name for p in self.parts if p.state is State.HEALTHY}
            part.step(healthy, probes, lambda: marked(self.stack).get(part.service.name, []))  # noqa: B023  # called at once
        all_well = all(part.state is State.HEALTHY for part in self.parts)
        self._write(State.HEALTHY if all_well else State.STARTING)

    def _close(self) -> None:
        (self.stack / ENDPOINTS_FILE).unlink(missing_ok=True)
        for part in reversed(self.parts):
            part.stopping()
            self._write(State.STOPPING)
            part.stop()
        stop_everything(self.stack, PARTS)  # what the parts started and left behind
        self._write(State.STOPPED)

    def _write(self, state: State) -> None:
        pid = None if state is State.STOPPED else os.getpid()
        now = StackState(state, pid, self.started, parts=[part.report() for part in self.parts])
        if now != self.written:
            with suppress(
                OSError
            ):  # a full disk: what it looks after goes on, and it is written when there is room again
                save(self.stack, now)
                self.written = now


def main(arguments: list[str]) -> int:
    """Runs until SIGTERM; 1 when the stack cannot be started, with the reason in `stack.json`."""
    state_dir = Settings.load().state_dir
    (state_dir / LOG_DIR).mkdir(parents=True, exist_ok=True)
    stop = stopping_on(signal.SIGTERM)
    with supervising(state_dir) as mine:
        if not mine:
            print(f"another supervisor looks after {state_dir}")
            return 0
        (state_dir / ENDPOINTS_FILE).unlink(missing_ok=True)  # of a stack that runs no more, not settings of the user's
        try:
            Supervisor(Settings.load(), chosen(arguments)).run(stop)
        except (RecsError, OSError) as error:
            print(error)
            with suppress(OSError):
                save(state_dir, StackState(State.STOPPED, problem=str(error)))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
