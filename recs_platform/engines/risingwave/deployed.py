"""What a RisingWave's catalog and the pointers in Redis say of what is deployed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import redis

from recs_platform.deployment import Deployment, Version
from recs_platform.engines.risingwave.session import Session
from recs_platform.errors import EngineError
from recs_platform.physical_names import VersionId, mentioned, physical_name, physical_names, taken_apart
from recs_platform.pipeline import Kind, Relation
from recs_platform.serving import keys

RELATIONS = "SELECT id, name, relation_type, definition FROM rw_catalog.rw_relations ORDER BY id"
_KINDS = {
    "materialized view": Kind.VIEW,
    "view": Kind.VIEW,
    "table": Kind.TABLE,
    "source": Kind.SOURCE,
    "sink": Kind.SINK,
}
_SCHEMA = re.compile(r'\s*CREATE\s+(?:MATERIALIZED\s+)?\w+\s+(?:IF\s+NOT\s+EXISTS\s+)?"?(\w+)"?\s*\.', re.IGNORECASE)

Row = Mapping[str, Any]


def deployment_of(
    found: Sequence[Row],
    progress: Mapping[str, str],
    replaced: Mapping[str, float],
    pointed_to: Callable[[Iterable[Version]], set[str]],
) -> Deployment:
    """All versions of which the catalog has a row.

    A sink is live where the pointer in Redis says so, a connection where something live reads it, all else where
    the public view stands for it.
    """
    known = [
        Version(
            *parts,
            kind=_KINDS[row["relation_type"]],
            progress=progress.get(str(row["name"])),
            definition=str(row["definition"]),
            replaced_at=replaced.get(str(row["name"])),
        )
        for row in found
        if row["relation_type"] in _KINDS and (parts := taken_apart(str(row["name"])))
    ]
    live = set(physical_names(published(found)).values()) | pointed_to(known)
    read = {physical for version in known if version.physical_name in live for physical in version.reads}
    return Deployment(tuple(replace(v, is_live=v.physical_name in (read if v.is_connection else live)) for v in known))


def published(found: Sequence[Row]) -> dict[str, VersionId]:
    """Public name → the version its view selects from."""
    versions = {}
    for row in found:
        if row["relation_type"] == "view" and taken_apart(str(row["name"])) is None:
            for physical in mentioned(str(row["definition"])):
                name, version = taken_apart(physical) or ("", None)
                if version is not None and name == row["name"]:
                    versions[name] = version
    return versions


def check_names(found: Sequence[Row], names: Collection[str]) -> None:
    """Raises `EngineError` where a public name is somebody else's: a switch would never succeed, or take a view of theirs."""
    ours = published(found)
    for row in found:
        name, what = str(row["name"]), str(row["relation_type"])
        if name in names and name not in ours and not what.startswith("system") and not _is_elsewhere(row):
            raise EngineError(
                f"there is a {what} {name} that `recs apply` has not made, and readers are to find the pipeline's own under that "
                f"name: ALTER {what.upper()} {name} RENAME TO another, or drop it"
            )


def _is_elsewhere(row: Row) -> bool:
    """Whether it was created in another schema, as far as its statement says so."""
    schema = _SCHEMA.match(str(row["definition"]))
    return schema is not None and schema[1] != "public"


def pointed_to(connection: redis.Redis, known: Iterable[Version]) -> set[str]:
    """The physical names of the sinks that the pointers in Redis name."""
    sinks = [version for version in known if version.redis_name]
    pointers = connection.mget([keys.pointer(str(sink.redis_name)) for sink in sinks]) if sinks else []
    return {sink.physical_name for sink, id in zip(sinks, cast(list[str], pointers), strict=True) if id == str(sink.id)}


def without_sink(connection: redis.Redis, sinks: Sequence[Relation], deployment: Deployment) -> dict[str, VersionId]:
    """Sink → the version that its pointer names, where the catalog has none such."""
    pointers = connection.mget([keys.pointer(sink.redis_name) for sink in sinks]) if sinks else []
    named = {s.name: taken_apart(physical_name(s.name, str(id))) for s, id in zip(sinks, pointers, strict=True) if id}
    return {name: parts[1] for name, parts in named.items() if parts and not deployment.get(name, parts[1])}


def progress_of(session: Session) -> dict[str, str]:
    """Physical name → the engine's word on how far its build is, of all that are under way."""
    found = {}
    for row in session.rows("SELECT ddl_statement, progress FROM rw_catalog.rw_ddl_progress"):
        for physical in list(mentioned(str(row["ddl_statement"])))[:1]:
            found[physical] = str(row["progress"])
    return found


def standing(deployment: Deployment) -> list[Version]:
    """What is live, and the sinks that would be if Redis still had their pointers."""
    return [*(version for version in deployment.versions if version.is_live), *deployment.unread]
