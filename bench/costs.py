"""What processes cost: CPU seconds and memory, with all that they started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

Parts = Mapping[str, Iterable[psutil.Process]]


class Memory(NamedTuple):
    """In bytes. `proportional` counts a page that n processes share as an n-th; None where the system does not say."""

    resident: int
    proportional: int | None
    peak: int | None


def family(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """The processes and all below them. PostgreSQL's children hide the environment that a stack's are known by."""
    found: dict[int, psutil.Process] = {}
    for process in processes:
        with suppress(psutil.Error):
            found |= {member.pid: member for member in (process, *process.children(recursive=True))}
    return list(found.values())


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """User and system time so far, also of children, those that have ended among them."""
    total = 0.0
    for process in family(processes):
        with suppress(psutil.Error):  # gone meanwhile: its parent has its times
            times = process.cpu_times()
            total += times.user + times.system
            total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return total


def cpu_of(parts: Parts) -> dict[str, float]:
    return {part: cpu_seconds(processes) for part, processes in parts.items()}


def since(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """CPU seconds between two looks, by part."""
    return {part: max(0.0, after[part] - before.get(part, 0.0)) for part in after}


def memory(processes: Iterable[psutil.Process]) -> Memory:
    """Of a part with all its processes; resident counts shared pages as often as they are shared."""
    resident, proportional, peak = list[int](), list[int](), list[int]()
    for process in family(processes):
        with suppress(psutil.Error):
            resident.append(process.memory_info().rss)
            proportional.append(_proportional(process))
            peak.append(_peak(process.pid))
    known = sum(proportional) if all(proportional) else 0  # one that is not known makes the sum too low
    return Memory(sum(resident), known or None, sum(peak) or None)


def bytes_on_disk(path: Path) -> int:
    """Of a file, or of all files below a directory."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for file in path.rglob("*"):
        with suppress(OSError):  # what a server just removed
            total += file.stat().st_size if file.is_file() else 0
    return total


def _proportional(process: psutil.Process) -> int:
    """0 where the system does not say: macOS refuses it for processes of others."""
    with suppress(psutil.AccessDenied):
        return int(getattr(process.memory_full_info(), "pss", 0))
    return 0


def _peak(pid: int) -> int:
    """The most a process ever had resident; 0 where the system does not say."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
