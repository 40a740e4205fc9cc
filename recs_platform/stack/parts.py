"""The parts of the stack and how they hang together, from the settings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from recs_platform import http_ask, shop
from recs_platform.catalog import ensure_catalog, seed
from recs_platform.catalog_carrier import carry_all, is_in_topics, write_files
from recs_platform.errors import StackError
from recs_platform.events import TOPICS
from recs_platform.pipeline import Pipeline
from recs_platform.settings import FILE, LOCAL, Settings, project_root
from recs_platform.stack import dagster
from recs_platform.stack.broker import broker, probe_kafka
from recs_platform.stack.postgres import cluster, postgres, probe_postgres
from recs_platform.stack.service import HOST, Service, free_port, is_free, reached_at
from recs_platform.stack.state import secret
from recs_platform.stack.valkey import Passwords, probe_redis, reader_url, valkey
from recs_platform.topics import ensure_topics

SERVERS = ("postgres", "valkey", "broker")
PARTS = (*SERVERS, "engine", "api", "simulator", dagster.WEBSERVER, dagster.DAEMON)
"""In the order of starting; stopped in reverse."""

PORTS = {
    "postgres": "postgres_port",
    "valkey": "redis_port",
    "broker": "kafka_port",
    "engine": "engine_port",
    "api": "api_port",
    dagster.WEBSERVER: "dagster_port",
}
"""The setting of each part that listens."""

PROBE_SECONDS = 5.0
SEED = 1
PRODUCTS = 2000


def services(
    settings: Settings, names: Collection[str], ports: Mapping[str, int], adopted: Collection[str] = ()
) -> tuple[Settings, list[Service]]:
    """The named parts as services in the order of starting, and the settings with their endpoints filled in.

    `ports` are those the parts had before; a part in `adopted` still runs and keeps its own. Raises `StackError`
    naming the variable when a wanted port is taken.
    """
    if settings.engine != LOCAL:  # it is yours, and runs elsewhere
        names = [name for name in names if name != "engine"]
    yours = _yours(settings)
    planned = _ports(settings, [name for name in names if name in PORTS and name not in yours], ports, adopted)
    servers = [yours.get(name) or _server(settings, name, planned[name]) for name in SERVERS if name in names]
    settings = _with_endpoints(settings, {server.name: server.url for server in servers}, planned)
    programs = [
        _engine(settings),
        _api(settings),
        _simulator(settings),
        *dagster.services(settings, environment(settings)),
    ]
    found = [*(_with_ready(server, settings) for server in servers), *(p for p in programs if p.name in names)]
    if settings.simulate_rate <= 0:
        found = [service for service in found if service.name != "simulator"]
    return settings, [replace(s, needs=tuple(need for need in s.needs if need in names)) for s in found]


# Planning SQL makes and drops many small objects: with more of them kept at hand a small tick takes a tenth less.
MALLOC = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=2000"}


def chosen(parts: Collection[str]) -> tuple[str, ...]:
    """The named parts, in the order of starting; all when none is named. `StackError` for a name that is none."""
    if unknown := sorted(set(parts) - {*PARTS}):
        raise StackError(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in parts) if parts else PARTS


def environment(settings: Settings) -> dict[str, str]:
    """The settings as a program of ours reads them. Holds secrets."""
    variables = {f.metadata["variable"]: str(getattr(settings, f.name)) for f in fields(settings)}
    return {**variables, "PYTHONUNBUFFERED": "1", **MALLOC}


def _ports(
    settings: Settings, names: Collection[str], before: Mapping[str, int], adopted: Collection[str]
) -> dict[str, int]:
    ports = {name: before[name] for name in names if name in adopted and name in before}
    for name in names:
        if name not in ports:
            ports[name] = _port(settings, name, before.get(name), taken=ports.values())
    return ports


def _port(settings: Settings, name: str, before: int | None, taken: Collection[int]) -> int:
    field = Settings.__dataclass_fields__[PORTS[name]]
    wanted: int = getattr(settings, field.name)
    if wanted and is_free(wanted, settings.api_host if name == "api" else HOST):
        return wanted
    if wanted and wanted != field.default:
        variable = field.metadata["variable"]
        raise StackError(f"{variable}={wanted}: the port is taken; choose another, or 0 for a free one")
    return before if before and before not in taken and is_free(before) else free_port(but=taken)


def _server(settings: Settings, name: str, port: int) -> Service:
    match name:
        case "postgres":
            return postgres(cluster(settings.state_dir), port)
        case "valkey":
            return valkey(settings.state_dir / "valkey", port, _passwords(settings))
        case _:
            return broker(port)


def _passwords(settings: Settings) -> Passwords:
    return Passwords(
        secret(settings.state_dir, "valkey.password"), secret(settings.state_dir, "valkey.reader.password")
    )


def _with_ready(server: Service, settings: Settings) -> Service:
    match server.name:
        case "postgres":
            return replace(server, ready=lambda: _ready_catalog(settings, embedded=not server.yours))
        case "broker":
            needs = ("postgres",) if is_in_topics(settings) else ()
            return replace(server, needs=needs, ready=lambda: _ready_topics(settings, embedded=not server.yours))
        case _:
            return server


def _with_endpoints(settings: Settings, urls: Mapping[str, str], ports: Mapping[str, int]) -> Settings:
    valkey, engine, api, webserver = (ports.get(name) for name in ("valkey", "engine", "api", dagster.WEBSERVER))
    return replace(
        settings,
        kafka_bootstrap_servers=urls.get("broker", settings.kafka_bootstrap_servers),
        postgres_url=urls.get("postgres", settings.postgres_url),
        redis_url=urls.get("valkey", settings.redis_url),
        redis_reader_url=reader_url(valkey, _passwords(settings)) if valkey else settings.redis_reader_url,
        engine_port=engine or 0,
        engine_url=f"grpc://{HOST}:{engine}" if engine else "",
        engine_token=(settings.engine_token or secret(settings.state_dir, "engine.token")) if engine else "",
        api_port=api or 0,
        api_url=f"http://{reached_at(settings.api_host)}:{api}" if api else "",
        dagster_url=f"http://{HOST}:{webserver}" if webserver else "",
    )


def _yours(settings: Settings) -> dict[str, Service]:
    given: dict[str, tuple[str, Callable[[str], None]]] = {
        "postgres": (settings.postgres_url, probe_postgres),
        "valkey": (settings.redis_url, probe_redis),
        "broker": (settings.kafka_bootstrap_servers, probe_kafka),
    }
    return {part: Service(part, partial(probe, url), url) for part, (url, probe) in given.items() if url}


def _ready_topics(settings: Settings, embedded: bool) -> None:
    """After every start: the embedded broker has forgotten its topics.

    It reads a partition from its start for each fetch, and all are read by one engine: several cost more and bring nothing.
    """
    pipeline = Pipeline.of(settings)
    ensure_topics(
        settings.kafka_bootstrap_servers,
        dict.fromkeys((*TOPICS, *pipeline.topics)),
        1 if embedded else settings.kafka_partitions,
        compacted=pipeline.keyed_topics,
    )
    if embedded:
        carry_all(settings)


def _ready_catalog(settings: Settings, embedded: bool) -> None:
    """The tables, and in a database of ours a made-up catalog as long as there is none."""
    ensure_catalog(settings.postgres_url)
    if embedded:
        products, customers = shop.catalog(SEED, PRODUCTS), shop.customers(SEED, settings.simulate_users)
        seed(settings.postgres_url, products, customers)
        if settings.catalog == FILE:
            write_files(settings.catalog_dir, products, customers)


def _engine(settings: Settings) -> Service:
    def probe() -> None:
        from recs_platform.engines.local.client import LocalEngine

        with LocalEngine(settings, timeout=PROBE_SECONDS) as engine:
            engine.health()

    return _program(settings, "engine", "recs_platform.engines.local", probe, settings.engine_url, SERVERS)


def _api(settings: Settings) -> Service:
    """Needs Redis alone: it answers whatever becomes of the rest."""
    url = settings.api_url

    def probe() -> None:
        try:
            http_ask.ask(f"{url}/livez", PROBE_SECONDS).close()
        except OSError as error:
            raise StackError(f"the HTTP API at {url}: {error}") from None

    return _program(settings, "api", "recs_platform.serving.api", probe, url, ("valkey",))


def _simulator(settings: Settings) -> Service:
    # Nothing asks anything of it: while it runs it is well, and what it sends is seen at the broker.
    return _program(settings, "simulator", "recs_platform.simulator", lambda: None, "", ("postgres", "broker"))


def _program(
    settings: Settings, name: str, module: str, probe: Callable[[], None], url: str, needs: tuple[str, ...]
) -> Service:
    command = (sys.executable, "-m", module)
    return Service(name, probe, url, command, needs, environment(settings), directory=Path(project_root()))
