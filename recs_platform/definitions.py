"""What Dagster loads: the thin faces in `defs/`, put together. Nothing here is in the path of the data."""

from __future__ import annotations

import dagster as dg

from recs_platform.defs import (
    canary,
    catalog,
    dead_letters,
    dead_runs,
    deploying,
    event_drift,
    files,
    health,
    observe,
    repairs,
    resources,
    retention,
    stream,
)

FACES = (
    resources,
    stream,
    deploying,
    files,
    observe,
    health,
    canary,
    catalog,
    event_drift,
    dead_letters,
    repairs,
    dead_runs,
    retention,
)


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions.merge(*(face.definitions() for face in FACES))
