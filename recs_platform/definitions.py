"""What Dagster loads: the thin faces in `defs/`, put together. Nothing here is in the path of the data."""

from __future__ import annotations

import dagster as dg

from recs_platform.defs import canary, catalog, events, health, observe, repairs, resources, retention, stream


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions.merge(
        *(
            module.definitions()
            for module in (resources, stream, observe, health, canary, catalog, events, repairs, retention)
        )
    )
