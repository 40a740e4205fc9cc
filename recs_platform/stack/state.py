"""What the supervisor writes down about the stack, for everyone else to read: `<state_dir>/stack.json`."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from recs_platform.whole_file import write_whole

STATE_FILE, LOCK_FILE, LOG_DIR = "stack.json", "supervisor.lock", "logs"


class State(StrEnum):
    WAITING = "waiting"  # for another part to be healthy
    STARTING = "starting"  # runs, does not answer yet
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"  # answered before, now it does not
    RESTARTING = "restarting"  # died, about to be started again
    FAILING = "failing"  # died again and again; still tried, at growing intervals
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass
class PartState:
    """One part as the supervisor last saw it; `url` holds no secret, `since` is ISO 8601 in UTC."""

    name: str
    state: State
    url: str = ""
    yours: bool = False
    pid: int | None = None
    port: int | None = None
    since: str = ""
    restarts: int = 0
    problem: str = ""
    log: str = ""


@dataclass
class StackState:
    """The whole stack. `problem` says why the supervisor itself gave up."""

    state: State
    pid: int | None = None
    started: str = ""
    problem: str = ""
    parts: list[PartState] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return bool(self.parts) and all(part.state is State.HEALTHY for part in self.parts)

    def ports(self) -> dict[str, int]:
        """The port each part had, to be had again."""
        return {part.name: part.port for part in self.parts if part.port}


def save(state_dir: Path, stack: StackState) -> None:
    """Replaces `stack.json` at one stroke: a reader sees the old or the new."""
    write_whole(state_dir / STATE_FILE, json.dumps(asdict(stack), indent=2))


def load(state_dir: Path) -> StackState | None:
    """The state last written, or None when no stack was ever started here (or the file is not one of ours)."""
    try:
        found: dict[str, Any] = json.loads((state_dir / STATE_FILE).read_text())
        parts = [PartState(**{**part, "state": State(part["state"])}) for part in found.pop("parts")]
        return StackState(**{**found, "state": State(found["state"]), "parts": parts})
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def supervising(state_dir: Path) -> Iterator[bool]:
    """Makes this process the one supervisor of the state directory; False when there already is one.

    The lock ends with the process however it ends, so whether it is held says whether a supervisor lives.
    """
    with (state_dir / LOCK_FILE).open("a+") as lock:
        mine = _locked(lock, fcntl.LOCK_EX, seconds=1.0)  # one who only looks holds it for a moment
        if mine:
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
        yield mine


def supervisor_pid(state_dir: Path) -> int | None:
    """The pid of the live supervisor, None when there is none."""
    try:
        with (state_dir / LOCK_FILE).open() as lock:
            return None if _locked(lock, fcntl.LOCK_SH, seconds=0) else int(lock.read() or 0) or None
    except FileNotFoundError:
        return None


def secret(state_dir: Path, name: str) -> str:
    """A random secret, made once and kept in the state directory, readable by its owner alone."""
    kept = state_dir / name
    if not kept.exists() or not kept.read_text():  # a kill or a full disk may have left it empty
        write_whole(kept, secrets.token_urlsafe(24), mode=0o600)
    return kept.read_text()


def _locked(lock: IO[str], kind: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        else:
            return True
