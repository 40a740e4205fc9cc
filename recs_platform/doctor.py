"""What is wrong with the surroundings before anything fails by it: settings, servers, versions, disk, clocks.

Changes nothing, but sends canaries. Each check is one sentence, with the remedy where there is something to mend.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import psutil
from confluent_kafka import KafkaException
from psycopg.rows import dict_row

from recs_platform.canary import fly
from recs_platform.catalog import connected
from recs_platform.engines import connect
from recs_platform.engines.status import Status
from recs_platform.errors import RecsError
from recs_platform.kafka_address import hosts
from recs_platform.monitor import slot_of
from recs_platform.pipeline import Kind, Pipeline
from recs_platform.redis_address import RedisAddress
from recs_platform.schema import copies
from recs_platform.serving.cluster import nodes_of
from recs_platform.serving.connection import connected as redis_at
from recs_platform.settings import LOCAL, RISINGWAVE, Settings, masked
from recs_platform.stack.service import is_free
from recs_platform.topics import admin_client, describe, describe_topics

SECONDS = 5
CLOCK_SECONDS = 5.0  # two clocks may differ so much
DISK_BYTES = 2 << 30  # that should be free
OLDEST_POSTGRES = 14
NOT_SETTINGS = ("RECS_TEST_", "RECS_STACK")
"""Variables of the tests and of the stack's own processes."""


class Verdict(StrEnum):
    WELL = "well"
    WARNING = "warning"
    ILL = "ill"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Diagnosis:
    """One fact about one thing; `remedy` is "" where there is nothing to do."""

    thing: str
    verdict: Verdict
    words: str
    remedy: str = ""


Check = Callable[[Settings, Pipeline], Iterator[Diagnosis]]
"""Of one server, of whose relations the pipeline tells."""


def diagnose(settings: Settings, environ: Mapping[str, str] = os.environ) -> Iterator[Diagnosis]:
    """All checks, the nearest things first; each is made when it is asked for. Never raises for what it looks at."""
    yield from _settings(environ)
    yield _disk(settings)
    yield _memory(settings)
    yield from _ports(settings)
    try:
        pipeline = Pipeline.of(settings)
        yield Diagnosis("sql/", Verdict.WELL, f"{len(pipeline.relations)} relations in {settings.sql_dir}")
    except RecsError as error:
        pipeline = None
        yield Diagnosis("sql/", Verdict.ILL, str(error), "mend the file; `recs plan` says the same")
    checks: list[tuple[str, str, Check]] = [
        ("PostgreSQL", settings.postgres_url, _postgres),
        ("Redis", settings.redis_url, _redis),
        ("Kafka", settings.kafka_bootstrap_servers, _kafka),
        ("the engine", settings.risingwave_url if settings.engine == RISINGWAVE else settings.engine_url, _engine),
    ]
    for thing, address, check in checks:
        if not address:
            yield Diagnosis(thing, Verdict.SKIPPED, "no address is set, and no stack runs here", "`recs up` starts one")
        elif pipeline is None:
            yield Diagnosis(thing, Verdict.SKIPPED, "which relations it serves is not known while sql/ is ill")
        else:
            yield from _tried(thing, check, settings, pipeline)


def _tried(thing: str, check: Check, settings: Settings, pipeline: Pipeline) -> Iterator[Diagnosis]:
    try:
        yield from check(settings, pipeline)
    except RecsError as error:
        yield Diagnosis(thing, Verdict.ILL, str(error), "is it running, are the address and the password right?")


# -- here -------------------------------------------------------------------------------------------------------------


def _settings(environ: Mapping[str, str]) -> Iterator[Diagnosis]:
    known = {field.metadata["variable"] for field in fields(Settings)}
    unknown = sorted(name for name in environ if name.startswith("RECS_") and name not in known)
    for name in unknown:
        if not name.startswith(NOT_SETTINGS):
            yield Diagnosis(
                "settings", Verdict.WARNING, f"{name} is set, and no such setting is known", "is it misspelt?"
            )
    used = sorted(name for name in environ if name in known and environ[name])
    yield Diagnosis("settings", Verdict.WELL, f"set: {', '.join(used)}" if used else "all are as they are by default")


def _disk(settings: Settings) -> Diagnosis:
    place = next(path for path in (settings.state_dir, *settings.state_dir.parents) if path.exists())
    free = shutil.disk_usage(place).free
    words = f"{free / 1e9:,.1f} GB are free where the state lies ({settings.state_dir})"
    if not os.access(place, os.W_OK):
        return Diagnosis(
            "disk", Verdict.ILL, f"{place} cannot be written to", "set RECS_STATE_DIR to another directory"
        )
    if free < DISK_BYTES:
        return Diagnosis("disk", Verdict.ILL, words, "make room: the engine keeps eight days of events there")
    return Diagnosis("disk", Verdict.WELL, words)


def _memory(settings: Settings) -> Diagnosis:
    if settings.engine != LOCAL:
        return Diagnosis("memory", Verdict.SKIPPED, "the engine runs elsewhere")
    there = psutil.virtual_memory().total
    words = f"{there / 1e9:,.0f} GB, of which the engine may use {settings.engine_memory}"
    wanted = _bytes(settings.engine_memory)
    if wanted is not None and wanted > there * 0.8:
        return Diagnosis("memory", Verdict.WARNING, words, "set RECS_ENGINE_MEMORY to less, such as 2GB")
    return Diagnosis("memory", Verdict.WELL, words)


def _bytes(size: str) -> float | None:
    """Of a size such as 4GB; None where it is written otherwise."""
    for unit, factor in {"GB": 1e9, "MB": 1e6, "GiB": 2**30, "MiB": 2**20}.items():
        number = size.removesuffix(unit).strip()
        if size.endswith(unit) and number.replace(".", "", 1).isdigit():
            return float(number) * factor
    return None


def _ports(settings: Settings) -> Iterator[Diagnosis]:
    """Those a person has set; while a stack runs they are its own."""
    if settings.engine_url or settings.dagster_url:
        return
    for name in ("kafka_port", "postgres_port", "redis_port", "engine_port", "api_port", "dagster_port"):
        field = Settings.__dataclass_fields__[name]
        port, variable = getattr(settings, name), field.metadata["variable"]
        if port and not is_free(port):
            is_chosen = port != field.default
            remedy = f"set {variable} to another, or 0" if is_chosen else "a free one will be taken"
            verdict = Verdict.ILL if is_chosen else Verdict.WARNING
            yield Diagnosis("ports", verdict, f"{variable}={port}: something else listens there", remedy)


# -- servers ----------------------------------------------------------------------------------------------------------


def _clock(thing: str, theirs: float) -> Diagnosis:
    apart = abs(theirs - time.time())
    words = f"its clock and this one are {apart:.1f} s apart"
    if apart > CLOCK_SECONDS:
        return Diagnosis(
            thing, Verdict.ILL, words, "set the clocks by NTP: events more than 5 minutes ahead are refused"
        )
    return Diagnosis(thing, Verdict.WELL, words)


_POSTGRES = """
SELECT current_setting('server_version_num')::int / 10000 AS version, current_setting('wal_level') AS wal_level,
  current_setting('max_slot_wal_keep_size') AS keeps, extract(epoch FROM now())::float8 AS now,
  (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user) AS may_replicate, current_user AS role,
  (SELECT count(*) FROM pg_replication_slots) AS slots, current_setting('max_replication_slots')::int AS most_slots,
  (SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s) AS slot"""


def _postgres(settings: Settings, pipeline: Pipeline) -> Iterator[Diagnosis]:
    thing = "PostgreSQL"
    tables = [copy.catalog_table for copy in copies(pipeline)]
    status = _status(settings)
    slot = slot_of(settings, status)
    with connected(settings.postgres_url, SECONDS) as server, server.cursor(row_factory=dict_row) as cursor:
        found: Mapping[str, Any] = cursor.execute(_POSTGRES, [slot]).fetchone() or {}
        missing = [t for t in tables if server.execute("SELECT to_regclass(%s)", [t]).fetchone() == (None,)]
    yield _version_of_postgres(settings, int(found["version"]))
    yield _clock(thing, float(found["now"]))
    if not tables:  # the catalog is not read from here
        return
    if found["wal_level"] != "logical":
        yield Diagnosis(
            thing, Verdict.ILL, f"wal_level is {found['wal_level']}", "set wal_level = logical and restart it"
        )
    if not found["may_replicate"]:
        yield Diagnosis(
            thing, Verdict.ILL, f"{found['role']} may not replicate", f"ALTER ROLE {found['role']} REPLICATION"
        )
    if found["keeps"] == "-1":
        remedy = "set max_slot_wal_keep_size, such as 2GB: an engine that is away would fill its disk"
        yield Diagnosis(thing, Verdict.WARNING, "it keeps its log for a slot without a bound", remedy)
    if found["slot"] == "lost":
        remedy = status.get("slot_remedy") or "the engine makes another when it runs"
        yield Diagnosis(thing, Verdict.ILL, f"it has given up the slot {slot}", remedy)
    if found["slot"] is None and found["slots"] >= found["most_slots"]:
        yield Diagnosis(
            thing, Verdict.ILL, "all its replication slots are taken", "raise max_replication_slots, or drop one"
        )
    for table in missing:
        yield Diagnosis(
            thing, Verdict.ILL, f"it has no table {table}", "`recs up` creates it; `recs catalog load` fills it"
        )


def _status(settings: Settings) -> Status:
    """What the engine says of itself; nothing where it does not answer."""
    with suppress(RecsError), connect(settings, SECONDS) as engine:
        return engine.status()
    return Status()


def _version_of_postgres(settings: Settings, version: int) -> Diagnosis:
    words = f"version {version} at {masked(settings.postgres_url)}"
    if version < OLDEST_POSTGRES:
        return Diagnosis("PostgreSQL", Verdict.ILL, words, f"{OLDEST_POSTGRES} or later is wanted")
    return Diagnosis("PostgreSQL", Verdict.WELL, words)


def _redis(settings: Settings, _: Pipeline) -> Iterator[Diagnosis]:
    with redis_at(settings.redis_url, SECONDS) as connection:
        servers = nodes_of(connection)
        found = [(getattr(node, "name", ""), node.info(), node.time()) for node in servers]
    versions = sorted({str(info.get("valkey_version") or info.get("redis_version")) for _, info, _ in found})
    nodes = f"a cluster of {len(servers)} primaries, " if len(servers) > 1 else ""
    yield Diagnosis("Redis", Verdict.WELL, f"{nodes}version {', '.join(versions)} at {masked(settings.redis_url)}")
    for name, info, (seconds, microseconds) in found:
        thing = f"Redis {name}".strip()
        yield _clock(thing, seconds + microseconds / 1e6)
        yield from _server(thing, info)
        if info.get("cluster_enabled") and not RedisAddress.parse(settings.redis_url).is_cluster:
            remedy = "name several of its nodes in RECS_REDIS_URL, or add ?cluster=true"
            yield Diagnosis(thing, Verdict.ILL, "it is a node of a cluster", remedy)


def _server(thing: str, info: Mapping[str, Any]) -> Iterator[Diagnosis]:
    policy, most, used = (
        info.get("maxmemory_policy", "noeviction"),
        int(info.get("maxmemory", 0)),
        int(info["used_memory"]),
    )
    if most and policy.startswith("allkeys"):
        remedy = "CONFIG SET maxmemory-policy noeviction: lists would go without anybody noticing"
        yield Diagnosis(thing, Verdict.ILL, f"it evicts keys when it is full ({policy})", remedy)
    if most and used > 0.9 * most:
        yield Diagnosis(thing, Verdict.ILL, f"it is full to {used / most:.0%}", "raise maxmemory")
    if info.get("aof_enabled") == 0 and not int(info.get("rdb_last_save_time", 0)):
        yield Diagnosis(thing, Verdict.WARNING, "it keeps nothing on disk", "the engine fills it anew after a restart")


def _kafka(settings: Settings, pipeline: Pipeline) -> Iterator[Diagnosis]:
    thing, servers = "Kafka", hosts(settings.kafka_bootstrap_servers)
    topics = list(pipeline.topics)
    try:
        found = describe_topics(admin_client(settings.kafka_bootstrap_servers), topics, SECONDS)
    except KafkaException as error:
        yield Diagnosis(thing, Verdict.ILL, f"{servers}: {describe(error)}", "is it running, is the address right?")
        return
    shown = ", ".join(f"{topic} ({len(info.partitions)} partitions)" for topic, info in found.items())
    yield Diagnosis(thing, Verdict.WELL, f"at {servers}: {shown or 'no topics of ours yet'}")
    for topic in topics:
        if topic not in found:
            yield Diagnosis(thing, Verdict.WARNING, f"there is no topic {topic}", "it is read as soon as it is created")


def _engine(settings: Settings, pipeline: Pipeline) -> Iterator[Diagnosis]:
    with connect(settings, SECONDS) as engine:
        deployed = engine.deployed()
        plan = engine.plan()
    sinks = sum(relation.name in deployed for relation in pipeline.of_kind(Kind.SINK))
    yield Diagnosis(
        "the engine", Verdict.WELL, f"{settings.engine}: {len(deployed)} relations are deployed, {sinks} of them sinks"
    )
    if plan.steps:
        yield Diagnosis(
            "the engine", Verdict.WARNING, "what is deployed is not what sql/ says", "`recs plan` shows what differs"
        )
    for flight in fly(settings, pipeline, sender="doctor"):
        if flight.seconds is None:
            yield Diagnosis("the path", Verdict.ILL, flight.words, "`recs status` names the box to blame")
        else:
            yield Diagnosis("the path", Verdict.WELL, flight.words)
