"""What `recs up`, `down` and `status` do to a stack: start its supervisor, wait, stop it, read its state."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from recs_platform.awaiting import wait_until
from recs_platform.errors import StackError
from recs_platform.settings import ENDPOINTS_FILE, project_root
from recs_platform.stack.parts import PARTS, chosen
from recs_platform.stack.process import SUPERVISOR, Running, last_lines, start, stop_everything
from recs_platform.stack.service import Service
from recs_platform.stack.state import LOG_DIR, PartState, StackState, State, load, save, supervisor_pid

START_SECONDS = 10.0
STOP_SECONDS = 120.0
SHOW_SECONDS = 0.1

Show = Callable[[StackState], None]


def ignore(_: object) -> None:
    """Shows nothing."""


def start_stack(state_dir: Path, parts: Collection[str] = (), environment: Mapping[str, str] | None = None) -> bool:
    """Starts a supervisor in the background unless one runs already; whether it did.

    `parts` limits the stack to those named, `environment` adds settings. Returns before anything is healthy. Raises
    `StackError` with the end of the supervisor's log when it does not come up.
    """
    names = chosen(parts)
    state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    (state_dir / LOG_DIR).mkdir(mode=0o700, exist_ok=True)
    if supervisor_pid(state_dir) is not None:
        return False
    log = state_dir / LOG_DIR / f"{SUPERVISOR}.log"
    command = (sys.executable, "-m", "recs_platform.stack.supervisor", *names)
    settings = {**(environment or {}), "RECS_STATE_DIR": str(state_dir), "PYTHONUNBUFFERED": "1"}
    service = Service(SUPERVISOR, lambda: None, command=command, environment=settings, directory=project_root())
    child = start(service, log, state_dir)
    if not wait_until(lambda: _has_written(state_dir) or not child.alive(), START_SECONDS):
        raise StackError(_end_of(log, "the supervisor does not come up"))
    return supervisor_pid(state_dir) in {child.pid, None}


def await_healthy(state_dir: Path, show: Show, seconds: float) -> None:
    """Returns when every part is healthy, after calling `show` with each state on the way.

    Raises `StackError` with the end of the log concerned: when the supervisor is gone, when a part died again and
    again, or when `seconds` have passed.
    """
    deadline = time.monotonic() + seconds
    while True:
        alive = supervisor_pid(state_dir) is not None
        state = load(state_dir)
        if state is not None:
            show(state)
            if state.healthy and alive:
                return
            _raise_if_failed(state, overdue=time.monotonic() > deadline)
        if not alive:
            log = state_dir / LOG_DIR / f"{SUPERVISOR}.log"
            raise StackError((state and state.problem) or _end_of(log, "the supervisor ended"))
        time.sleep(SHOW_SECONDS)


def stop_stack(state_dir: Path, show: Show = ignore) -> bool:
    """Stops every process of the stack, also those a killed supervisor left behind; whether there were any.

    Raises `StackError` naming what cannot be stopped.
    """
    supervised = _stop_supervisor(state_dir, show)
    orphans = list[str]()
    stop_everything(state_dir, PARTS, orphans.append)
    (state_dir / ENDPOINTS_FILE).unlink(missing_ok=True)
    if (state := load(state_dir)) is not None and state.state is not State.STOPPED:
        save(state_dir, _all_stopped(state))
    return supervised or bool(orphans)


def read_stack(state_dir: Path) -> StackState | None:
    """The state of the running stack; None when no supervisor runs."""
    return load(state_dir) if supervisor_pid(state_dir) is not None else None


def memory(part: PartState) -> int | None:
    """Bytes a part and what it started keep in memory, None when it is not ours. Shared pages count more than once."""
    if part.pid is None:
        return None
    with suppress(psutil.Error):
        main = psutil.Process(part.pid)
        return sum(int(process.memory_info().rss) for process in [main, *main.children(recursive=True)])
    return None


def _stop_supervisor(state_dir: Path, show: Show) -> bool:
    pid = supervisor_pid(state_dir)
    if pid is None:
        return False

    def gone() -> bool:
        ended = not supervisor.alive()  # asked first, so that its last state is shown too
        if (state := load(state_dir)) is not None:
            show(state)
        return ended

    with suppress(psutil.NoSuchProcess):
        supervisor = Running(psutil.Process(pid))
        for end in (supervisor.process.terminate, supervisor.process.kill):
            end()
            if wait_until(gone, STOP_SECONDS, SHOW_SECONDS):
                return True
        raise StackError(f"the supervisor (pid {pid}) cannot be stopped")
    return True  # it went by itself meanwhile


def _raise_if_failed(state: StackState, overdue: bool) -> None:
    bad = {State.FAILING} if not overdue else {*State} - {State.HEALTHY}
    for part in state.parts:
        if part.state in bad:
            what = f"{part.name} is {part.state}" + (f": {part.problem}" if part.problem else "")
            raise StackError(_end_of(Path(part.log), what) if part.log else what)


def _end_of(log: Path, what: str) -> str:
    lines = last_lines(log)
    return f"{what}\nthe end of {log}:\n{lines}" if lines else f"{what}; {log} is empty"


def _has_written(state_dir: Path) -> bool:
    """Whether `stack.json` is by the supervisor that lives now, not by one before."""
    state = load(state_dir)
    return state is not None and state.pid is not None and supervisor_pid(state_dir) == state.pid


def _all_stopped(state: StackState) -> StackState:
    for part in state.parts:
        part.state, part.pid, part.problem = State.STOPPED, None, ""
    state.state, state.pid = State.STOPPED, None
    return state
