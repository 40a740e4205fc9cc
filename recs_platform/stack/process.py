"""Processes of the stack: started in a session of their own, marked, found again, stopped with all they started.

The mark is two environment variables, inherited by whatever a service starts in its turn. So a stack's processes
are found by looking at what runs, not by trusting a file: a supervisor that was killed leaves nothing that the next
one, or `recs down`, does not find.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from click import unstyle

from recs_platform.awaiting import wait_until
from recs_platform.errors import StackError
from recs_platform.stack.service import Service

SUPERVISOR = "supervisor"
STACK_MARK, PART_MARK = "RECS_STACK", "RECS_STACK_PART"
LOG_LIMIT = 20_000_000  # bytes
STOP_SECONDS = 20.0
STOP_SIGNALS = {
    "postgres": signal.SIGINT,  # fast shutdown; at SIGTERM it would wait for every client to leave
    "broker": signal.SIGKILL,  # asked to stop it waits 5 s for its clients, and it has nothing on disk to leave in order
}


@dataclass(frozen=True)
class Running:
    """A running part: its main process, and the handle to reap it by when this process is its parent."""

    process: psutil.Process
    child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def alive(self) -> bool:
        if self.child is not None:
            return self.child.poll() is None
        try:
            return bool(self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


def start(service: Service, log: Path, stack: Path) -> Running:
    """Starts the service in a session of its own, its output appended to `log`; the log of the start before is kept.

    Raises `StackError` when there is nothing to execute.
    """
    turn_over(log)
    environment = {**os.environ, **service.environment, **mark(stack, service.name)}
    with log.open("ab") as output:
        try:
            child = subprocess.Popen(
                service.command,
                cwd=service.directory,
                env=environment,
                user=service.user,
                group=_group(service.user),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise StackError(f"{service.name} cannot be started: {error}") from error
    return Running(psutil.Process(child.pid), child)


def mark(stack: Path, part: str) -> dict[str, str]:
    """The environment by which the processes of a part are known; the stack's name is its state directory."""
    return {STACK_MARK: str(stack.resolve()), PART_MARK: part}


def marked(stack: Path) -> dict[str, list[psutil.Process]]:
    """Every live process of the stack by part, the oldest first."""
    wanted, found = str(stack.resolve()), dict[str, list[psutil.Process]]()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # someone else's process, or gone by now
            environment = process.environ()
            if environment.get(STACK_MARK) == wanted and process.status() != psutil.STATUS_ZOMBIE:
                found.setdefault(environment.get(PART_MARK, ""), []).append(process)
    return {part: sorted(processes, key=lambda p: (p.create_time(), p.pid)) for part, processes in found.items()}


def main_process(processes: Iterable[psutil.Process]) -> Running | None:
    """Of a part's processes the one that was started by a supervisor: the leader of their session."""
    for process in processes:
        with suppress(ProcessLookupError):
            if os.getsid(process.pid) == process.pid:
                return Running(process)
    return None


def stop(running: Running, part: str, seconds: float = STOP_SECONDS) -> None:
    """Asks the process to stop the way that part wants it, and kills it after `seconds`; returns when it is gone."""
    with suppress(psutil.NoSuchProcess):
        running.process.send_signal(STOP_SIGNALS.get(part, signal.SIGTERM))
        if not _gone(running, seconds):
            running.process.kill()
            _gone(running, seconds)


def sweep(processes: Iterable[psutil.Process], seconds: float = 3.0) -> None:
    """Ends processes whose part is gone: asked first, then killed."""
    left = [process for process in processes if process.pid != os.getpid()]
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                end(process)
        _, left = psutil.wait_procs(left, timeout=seconds)


def stop_everything(stack: Path, order: Iterable[str], stopping: Callable[[str], None] | None = None) -> None:
    """Ends every process of the stack but its supervisor, part by part; `order` is the order of starting;
    `stopping` is told each part before.

    Raises `StackError` naming what could not be ended.
    """
    ranks = {part: rank for rank, part in enumerate(order)}
    for _ in range(3):  # what is being stopped may just have started something
        found = {part: processes for part, processes in marked(stack).items() if part != SUPERVISOR}
        for part in sorted(found, key=lambda part: ranks.get(part, len(ranks)), reverse=True):
            if stopping is not None:
                stopping(part)
            stop(Running(found[part][0]), part)
            sweep(found[part][1:])
        if not found:
            return
    raise StackError(f"still running: {', '.join(f'{part} (pid {p[0].pid})' for part, p in found.items())}")


def turn_over(log: Path) -> None:
    """Keeps the log so far as the previous one and starts an empty one, without its writers noticing."""
    if log.exists() and log.stat().st_size:
        shutil.copyfile(log, log.with_suffix(".previous.log"))
        os.truncate(log, 0)  # writers append, so they go on at the new end


def last_lines(log: Path, lines: int = 15) -> str:
    """The end of a log, for an error message, without its colours; what can be read of its last 10,000 bytes."""
    try:
        text = unstyle(log.read_bytes()[-10_000:].decode(errors="replace"))
        return "\n".join(text.splitlines()[-lines:])
    except OSError:
        return ""


@contextmanager
def running(service: Service, directory: Path, seconds: float = 30.0) -> Iterator[Running]:
    """The service alone, without a supervisor: started, answering, and stopped at the end; its log in `directory`.

    Raises `StackError` with the end of the log when it does not answer within `seconds`.
    """
    log = directory / f"{service.name}.log"
    service.prepare()
    started = start(service, log, directory)
    try:
        await_answer(service, started, log, seconds)
        yield started
    finally:
        stop(started, service.name)


def await_answer(service: Service, started: Running, log: Path, seconds: float) -> None:
    """Returns once the service answers and is ready; `StackError` with its log's end when it died or stays silent."""

    def answered() -> bool:
        if not started.alive():
            raise StackError(f"{service.name} ended at once:\n{last_lines(log)}")
        return why_not(service, make_ready=True) is None

    if not wait_until(answered, seconds):
        why = why_not(service) or "it is not ready"
        raise StackError(f"{service.name} does not answer after {seconds:.0f} s ({why}):\n{last_lines(log)}")


def why_not(service: Service, make_ready: bool = False) -> str | None:
    """None when the service answers (and could be made ready, if asked), otherwise one line saying why not."""
    try:
        service.probe()
        if make_ready:
            service.ready()
    except Exception as error:  # a client library may fail in any way; each means "not well"
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def _gone(running: Running, seconds: float) -> bool:
    return wait_until(lambda: not running.alive(), seconds)


def _group(user: str | None) -> int | None:
    if user is None:
        return None
    import pwd  # not on every platform; only ever needed by root on Unix

    return pwd.getpwnam(user).pw_gid
