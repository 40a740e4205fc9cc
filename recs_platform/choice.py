"""Deploying a part of what has changed: some relations with all that must go along, and the rest as it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from recs_platform.pipeline import Pipeline
from recs_platform.readers import downstream


def going_along(files: Pipeline, deployed: Mapping[str, str], only: Collection[str]) -> frozenset[str]:
    """The relations named, what has changed of what they are made from, and what is deployed and made from any of that.

    `deployed`: name → fingerprint. Raises `PipelineError` for a name nobody defines.
    """
    found = frozenset(files[name].name for name in only)
    while True:
        changed = {r.name for r in files.with_ancestors(set(found)) if deployed.get(r.name) != r.fingerprint}
        below = {r.name for name in changed for r in downstream(files, name) if r.name in deployed}
        if changed | below <= found:
            return found
        found |= changed | below


def narrowed(files: Pipeline, deployed: Pipeline, only: Collection[str]) -> Pipeline:
    """What is deployed, with those relations as the files have them. Raises `PipelineError` where the two do not fit."""
    chosen = going_along(files, {r.name: r.fingerprint for r in deployed}, only)
    kept = [r for r in deployed if r.name not in chosen]
    return Pipeline.of_relations([*kept, *(r for r in files if r.name in chosen)])
