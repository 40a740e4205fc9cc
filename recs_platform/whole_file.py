"""Small files that others read meanwhile: they see the old one or the new one, and never half of one."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, text: str, mode: int = 0o666) -> None:
    """`mode`: who may read and write it, less what this process' umask takes away. Raises `OSError` where it cannot be written;
    what was there stays then."""
    temporary = path.with_name(f"{path.name}.{time.monotonic_ns()}")
    try:
        temporary.touch(mode=mode)
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def keep_whole(path: Path, text: str, mode: int = 0o666) -> None:
    """The same as far as it can be done: on a full disk, or in a directory that may only be read, nothing is kept."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text, mode)
