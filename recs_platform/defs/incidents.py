"""Incidents and the runs that repair them, in Dagster's words."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from recs_platform.defs.stream import BUILT
from recs_platform.repairs import TRIES, Incidents

RUN_KEY = "dagster/run_key"


def requests(due: Sequence[str], incidents: Incidents) -> list[dg.RunRequest]:
    """One run for all that are due. Its key is the incidents': Dagster starts it once."""
    if not due:
        return []
    return [run_of(incidents[due[0]].run, due)]


def run_of(run_key: str, names: Sequence[str]) -> dg.RunRequest:
    """Of these relations; of all that its job selects where there are none. Without checks, as the job is: a selection would take
    them along."""
    chosen = [dg.AssetKey(name) for name in names]
    return dg.RunRequest(run_key=run_key, asset_selection=chosen or None, asset_check_keys=[] if chosen else None)


def failed(instance: dg.DagsterInstance, incidents: Incidents) -> set[str]:
    """Those whose last try ended without having done what it was to do."""
    return {
        name for name, incident in incidents.items() if 0 < incident.tries < TRIES and _failed(instance, incident.run)
    }


def built_since(instance: dg.DagsterInstance, name: str, since: float) -> bool:
    """Whether a run has built it anew after that moment, in seconds since 1970: the last that had to do with it, at least."""
    event = instance.get_latest_materialization_event(dg.AssetKey(name))
    if event is None or event.timestamp < since or event.asset_materialization is None:
        return False
    return event.asset_materialization.metadata.get(BUILT) == dg.MetadataValue.bool(True)


def _failed(instance: dg.DagsterInstance, run_key: str) -> bool:
    runs = instance.get_runs(filters=dg.RunsFilter(tags={RUN_KEY: run_key}), limit=1)
    return bool(runs) and runs[0].status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
