"""One tick of a sensor of Dagster, as its daemon would have it."""

from __future__ import annotations

import dagster as dg

from recs_platform.defs.resources import Platform


def ticked(
    sensor: dg.SensorDefinition, cursor: str | None = None, instance: dg.DagsterInstance | None = None
) -> dg.SensorResult:
    """Against an instance that knows of nothing, where none is given."""
    instance = instance or dg.DagsterInstance.ephemeral()
    with dg.build_sensor_context(instance, cursor, resources={"platform": Platform()}) as context:
        result = sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result


def evaluations(result: dg.SensorResult, check: str | None = None) -> dict[str, dg.AssetCheckEvaluation]:
    """Asset → what a tick says of it by that check, or by the only one."""
    found = [event for event in result.asset_events if isinstance(event, dg.AssetCheckEvaluation)]
    return {e.asset_key.to_user_string(): e for e in found if check is None or e.check_name == check}
