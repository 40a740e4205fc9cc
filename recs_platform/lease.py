"""Two that apply at once are kept apart by a lock in Redis that its owner has to renew."""

from __future__ import annotations

import getpass
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import redis
from redis.exceptions import LockError

from recs_platform.errors import EngineBusy
from recs_platform.serving import keys

LOCK_SECONDS = 30.0


class Lease:
    """The right to apply, until it is lost: an emptied Redis knows of no lock, and one that is away for long lets it end."""

    def __init__(self) -> None:
        self.is_lost = threading.Event()

    def check(self) -> None:
        """Raises `EngineBusy` where somebody else may apply by now."""
        if self.is_lost.is_set():
            raise EngineBusy(
                "Redis has lost the lock of this run: somebody else may apply. `recs apply` goes on from here"
            )


@contextmanager
def locked(connection: redis.Redis) -> Iterator[Lease]:
    """Nobody else applies meanwhile. Raises `EngineBusy` naming who does. A dead owner's lock ends by itself."""
    owner = f"{getpass.getuser()} on {socket.gethostname()}, process {os.getpid()}"
    lock = connection.lock(keys.APPLY_LOCK, timeout=LOCK_SECONDS, thread_local=False)
    if not lock.acquire(blocking=False, token=f"{owner}, {os.urandom(8).hex()}"):
        holder = str(connection.get(keys.APPLY_LOCK) or "somebody").rpartition(",")[0]
        raise EngineBusy(f"{holder} applies just now; if that is not so, the lock ends within {LOCK_SECONDS:.0f} s")
    done, lease = threading.Event(), Lease()

    def renew() -> None:
        renewed = time.monotonic()
        while not done.wait(LOCK_SECONDS / 10):
            try:
                lock.reacquire()
                renewed = time.monotonic()
            except LockError:
                lease.is_lost.set()
                return
            except redis.RedisError:
                if time.monotonic() - renewed > LOCK_SECONDS:
                    lease.is_lost.set()
                    return

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        done.set()
        thread.join()
        with suppress(LockError, redis.RedisError):
            lock.release()
