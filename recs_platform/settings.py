"""Settings: the only reader of the environment.

Every setting is a variable `RECS_…`; the endpoints of a running stack are found in its state directory,
so that `recs` and the serving library work in any terminal without being told a port.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from recs_platform.errors import SettingsError
from recs_platform.kafka_address import KafkaAddress, hosts
from recs_platform.redis_address import EACH, RedisAddress
from recs_platform.whole_file import write_whole

CDC, UPSERTS, DEBEZIUM, FILE = "cdc", "upserts", "debezium", "file"
"""Where the catalog may come from: PostgreSQL, a topic of rows or of Debezium's changes, files."""

LOCAL, RISINGWAVE = "local", "risingwave"
"""The stream engines."""

PACKAGE_DIR = Path(__file__).resolve().parent
ENDPOINTS_FILE = "endpoints.json"


def project_root() -> Path:
    """The checkout this package is run from, or the working directory for an installed wheel."""
    return PACKAGE_DIR.parent if (PACKAGE_DIR.parent / "sql").is_dir() else Path.cwd()


def default_sql_dir() -> Path:
    """`sql/` of the checkout, or the copy inside an installed wheel."""
    checkout = project_root() / "sql"
    return checkout if checkout.is_dir() else PACKAGE_DIR / "_sql"


_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

# up to the last @, since a password may hold a / or an @ that nobody escaped
_PASSWORD = re.compile(r"(://[^:/@]*:)(.*)@")


def masked(url: str) -> str:
    """The URL, or several with commas, with each password replaced by `***`, fit for logs, plans and metadata."""
    return ",".join(_PASSWORD.sub(r"\1***@", each) for each in EACH.split(url))


def passwords_of(url: str) -> set[str]:
    """The password as the URL has it, and as it is meant; none where there is none."""
    matches = [_PASSWORD.search(each) for each in EACH.split(url)]
    return {password for match in matches if match and match[2] for password in (match[2], unquote(match[2]))}


def _check_postgres(url: str) -> None:
    """Does not repeat the text: where it cannot be parsed, no password can be masked."""
    try:
        split = urlsplit(url)
        hosts_and_ports = split.netloc.rpartition("@")[2].split(",")  # several for a failover
        ports = [urlsplit(f"//{each}").port for each in hosts_and_ports]
        is_url = split.scheme in ("postgresql", "postgres") and 0 not in ports
    except ValueError:
        is_url = False
    # an unescaped / or @ in a password cuts the URL elsewhere than was meant, and nothing after ? is masked
    is_url = is_url and not re.search(r"%(?![0-9A-Fa-f]{2})", url)  # psycopg would repeat it
    if not is_url or split.netloc.count("@") > 1 or "@" in split.path or "password=" in split.query.lower():
        raise SettingsError(
            "postgresql://[user:password@]host:port/database is wanted, with %40, %2F, … for @, /, … in a password"
        )


def _check_engine(name: str) -> None:
    if name not in (LOCAL, RISINGWAVE):
        raise SettingsError(f"{name!r}: {LOCAL} or {RISINGWAVE} is wanted")


def _check_port(port: int) -> None:
    if not 0 <= port <= 65535:
        raise SettingsError(f"{port} is no port: 0 to 65535 is wanted")


def _setting(
    variable: str,
    default: Any,
    help: str,
    *,
    secret: bool = False,
    endpoint: bool = False,
    check: Callable[[Any], object] | None = None,
) -> Any:
    """`check` raises `SettingsError` for a value that cannot be used, without naming the variable."""
    metadata = {"variable": variable, "help": help, "secret": secret, "endpoint": endpoint, "check": check}
    if callable(default):
        return field(default_factory=default, metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)


_port = partial(_setting, check=_check_port)


@dataclass(frozen=True)
class Settings:
    """All settings of one process. `Settings.load()` reads them; nothing else looks at the environment."""

    state_dir: Path = _setting(
        "RECS_STATE_DIR", lambda: project_root() / ".recs", "where the stack keeps its state and logs"
    )
    sql_dir: Path = _setting("RECS_SQL_DIR", default_sql_dir, "the pipeline: one relation a file")
    kafka_bootstrap_servers: str = _setting(
        "RECS_KAFKA_BOOTSTRAP_SERVERS",
        "",
        "your own Kafka instead of the embedded broker, host:port[,…], or sasl_ssl://user:password@host:port[,…]",
        secret=True,
        endpoint=True,
        check=KafkaAddress.parse,
    )
    postgres_url: str = _setting(
        "RECS_POSTGRES_URL",
        "",
        "your own PostgreSQL instead of the embedded one, postgresql://…",
        secret=True,
        endpoint=True,
        check=_check_postgres,
    )
    redis_url: str = _setting(
        "RECS_REDIS_URL",
        "",
        "your own Redis or Valkey instead of the embedded one, redis://…; several hosts (host:port,host:port) are a cluster",
        secret=True,
        endpoint=True,
        check=RedisAddress.parse,
    )
    redis_reader_url: str = _setting(
        "RECS_REDIS_READER_URL",
        "",
        "the same Redis as a user that may only read, for the library and the HTTP API; RECS_REDIS_URL by default",
        secret=True,
        endpoint=True,
        check=RedisAddress.parse,
    )
    catalog: str = _setting(
        "RECS_CATALOG",
        CDC,
        "where the catalog comes from, a directory of sql/catalog: cdc (PostgreSQL), upserts or debezium (Kafka topics), file",
    )
    catalog_dir: Path = _setting(
        "RECS_CATALOG_DIR",
        lambda: project_root() / "catalog",
        "where product_catalog.csv and customers.csv lie with RECS_CATALOG=file",
    )
    engine: str = _setting(
        "RECS_ENGINE", LOCAL, "the stream engine: local, or risingwave", endpoint=True, check=_check_engine
    )
    risingwave_url: str = _setting(
        "RECS_RISINGWAVE_URL",
        "",
        "your RisingWave, postgresql://root@127.0.0.1:4566/dev",
        secret=True,
        endpoint=True,
        check=_check_postgres,
    )
    risingwave_kafka: str = _setting(
        "RECS_RISINGWAVE_KAFKA",
        "",
        "Kafka's address as your RisingWave sees it, where that is another",
        secret=True,
        check=KafkaAddress.parse,
    )
    risingwave_postgres_url: str = _setting(
        "RECS_RISINGWAVE_POSTGRES_URL",
        "",
        "PostgreSQL's URL as your RisingWave sees it, where that is another",
        secret=True,
        check=_check_postgres,
    )
    risingwave_redis_url: str = _setting(
        "RECS_RISINGWAVE_REDIS_URL",
        "",
        "Redis's URL as your RisingWave sees it, where that is another",
        secret=True,
        check=RedisAddress.parse,
    )
    barrier_interval_ms: int = _setting("RECS_BARRIER_INTERVAL_MS", 250, "how often a RisingWave makes changes visible")
    grace_seconds: float = _setting(
        "RECS_GRACE_SECONDS", 600.0, "how long a RisingWave keeps what was replaced, for `recs rollback`"
    )
    follow_breaking_changes: bool = _setting(
        "RECS_FOLLOW_BREAKING_CHANGES",
        False,
        "whether Dagster deploys by itself what breaks a reader, and the engine goes on with NULL for a column that is gone",
    )
    restart_hung_seconds: float = _setting(
        "RECS_RESTART_HUNG_SECONDS",
        60.0,
        "after how long a part of the stack that does not answer is started again; 0 for never",
    )
    repair_slot: bool = _setting(
        "RECS_REPAIR_SLOT",
        True,
        "whether Dagster has a RisingWave read the catalog anew whose replication slot PostgreSQL has lost",
    )
    repair_sinks: bool = _setting(
        "RECS_REPAIR_SINKS",
        True,
        "whether Dagster writes a sink anew whose keys in Redis are missing, stale or orphaned",
    )
    engine_url: str = _setting(
        "RECS_ENGINE_URL", "", "where the engine answers queries, grpc://127.0.0.1:port", endpoint=True
    )
    engine_token: str = _setting("RECS_ENGINE_TOKEN", "", "the token queries are sent with", secret=True, endpoint=True)
    dagster_url: str = _setting("RECS_DAGSTER_URL", "", "where the Dagster UI listens", endpoint=True)
    api_url: str = _setting("RECS_API_URL", "", "where the HTTP API listens", endpoint=True)
    api_host: str = _setting("RECS_API_HOST", "127.0.0.1", "address the HTTP API listens on; another wants a token")
    api_token: str = _setting(
        "RECS_API_TOKEN", "", "the token the HTTP API is asked with; none on loopback", secret=True
    )
    kafka_port: int = _port("RECS_KAFKA_PORT", 0, "port of the embedded broker; 0 takes a free one")
    postgres_port: int = _port("RECS_POSTGRES_PORT", 0, "port of the embedded PostgreSQL; 0 takes a free one")
    redis_port: int = _port("RECS_REDIS_PORT", 0, "port of the embedded Valkey; 0 takes a free one")
    engine_port: int = _port("RECS_ENGINE_PORT", 0, "port the engine answers queries on; 0 takes a free one")
    dagster_port: int = _port("RECS_DAGSTER_PORT", 3000, "port of the Dagster UI; taken already: a free one")
    api_port: int = _port("RECS_API_PORT", 8080, "port of the HTTP API; taken already: a free one")
    kafka_partitions: int = _setting(
        "RECS_KAFKA_PARTITIONS", 4, "partitions of the topics we create in a Kafka of yours"
    )
    publication: str = _setting("RECS_PUBLICATION", "recs", "PostgreSQL publication of the catalog tables")
    replication_slot: str = _setting("RECS_REPLICATION_SLOT", "recs", "PostgreSQL replication slot the engine reads")
    log_retention_hours: int = _setting(
        "RECS_LOG_RETENTION_HOURS", 192, "how long the local engine keeps raw messages, for rebuilds"
    )
    records_retention_days: int = _setting(
        "RECS_RECORDS_RETENTION_DAYS", 14, "how long Dagster keeps observations, evaluations of checks and their runs"
    )
    engine_memory: str = _setting("RECS_ENGINE_MEMORY", "4GB", "memory limit of the local engine")
    simulate_rate: float = _setting(
        "RECS_SIMULATE_RATE", 50.0, "events a second of the stack's simulated shoppers; 0 for none"
    )
    simulate_users: int = _setting("RECS_SIMULATE_USERS", 2000, "how many simulated shoppers")

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Overrides, then the environment, then the running stack's endpoints, then defaults.

        Raises `SettingsError` naming the variable whose value cannot be used.
        """
        environ = os.environ if environ is None else environ
        given = {
            f.name: _parsed(f, environ[f.metadata["variable"]])
            for f in fields(cls)
            if environ.get(f.metadata["variable"])
        }
        settings = cls(**{**given, **overrides})
        for f in fields(cls):
            _check(f, getattr(settings, f.name))
        running: dict[str, Any] = {
            name: value
            for name, value in _endpoints(settings.state_dir).items()
            if name not in given and not overrides.get(name)
        }
        if settings.redis_url:  # of another Redis than the stack's, maybe
            running.pop("redis_reader_url", None)
        return replace(settings, **running)

    def require(self, name: str) -> str:
        """The value of an endpoint, or `SettingsError` saying how to get one."""
        value: str = getattr(self, name)
        if not value:
            variable = type(self).__dataclass_fields__[name].metadata["variable"]
            raise SettingsError(
                f"{variable} is not set and no stack is running in {self.state_dir}: `recs up` starts one"
            )
        return value

    def require_reader(self) -> str:
        """The Redis to read from. Raises like `require`."""
        return self.redis_reader_url or self.require("redis_url")

    def shown(self, name: str) -> str:
        """An endpoint with its password masked."""
        return masked(getattr(self, name))

    def endpoints(self) -> dict[str, str]:
        """The endpoints (with their secrets), as kept in the state directory."""
        kept = [f for f in fields(self) if f.metadata["endpoint"] and getattr(self, f.name) != f.default]
        return {f.name: getattr(self, f.name) for f in kept}

    def seen_by_risingwave(self) -> Settings:
        """The same with the addresses that its statements take."""
        return replace(
            self,
            kafka_bootstrap_servers=self.risingwave_kafka or self.kafka_bootstrap_servers,
            postgres_url=self.risingwave_postgres_url or self.postgres_url,
            redis_url=self.risingwave_redis_url or self.redis_url,
        )

    def kafka_options(self) -> dict[str, str]:
        """What a Kafka source of a RisingWave is told beside the servers. Holds secrets: never print it."""
        return KafkaAddress.parse(self.kafka_bootstrap_servers).for_risingwave()

    def sql_variables(self) -> dict[str, str]:
        """What stands for each `${name}` in the SQL files, `version` excepted. Holds secrets: never print it."""
        postgres = urlsplit(self.postgres_url or "postgresql://recs@127.0.0.1:5432/shop")
        return {
            "kafka_bootstrap_servers": hosts(self.kafka_bootstrap_servers),
            "redis_url": RedisAddress.parse(self.redis_url).for_risingwave() if self.redis_url else "",
            "postgres_host": postgres.hostname or "127.0.0.1",
            "postgres_port": str(postgres.port or 5432),
            "postgres_user": unquote(postgres.username or ""),
            "postgres_password": unquote(postgres.password or ""),
            "postgres_database": postgres.path.lstrip("/"),
            "publication": self.publication,
            "replication_slot": self.replication_slot,
        }


def save_endpoints(state_dir: Path, settings: Settings) -> None:
    """Writes the endpoints of a running stack, readable by its owner alone."""
    write_whole(state_dir / ENDPOINTS_FILE, json.dumps(settings.endpoints(), indent=2), mode=0o600)


def _endpoints(state_dir: Path) -> dict[str, str]:
    try:
        found = json.loads((state_dir / ENDPOINTS_FILE).read_text())
    except (OSError, ValueError):
        return {}
    known = {f.name for f in fields(Settings) if f.metadata["endpoint"]}
    return {name: value for name, value in found.items() if name in known}


def _check(setting: Any, value: Any) -> None:
    if value and (check := setting.metadata["check"]):
        try:
            check(value)
        except SettingsError as error:
            raise SettingsError(f"{setting.metadata['variable']}: {error}") from None


def _parsed(setting: Any, text: str) -> Any:
    variable, default = setting.metadata["variable"], setting.default
    if isinstance(default, bool):
        if text.lower() not in _SWITCH:
            raise SettingsError(f"{variable}={text!r}: true or false is wanted ({setting.metadata['help']})")
        return _SWITCH[text.lower()]
    try:
        if isinstance(default, (int, float)):
            return type(default)(text)
    except ValueError:
        raise SettingsError(f"{variable}={text!r}: a number is wanted ({setting.metadata['help']})") from None
    return Path(text).expanduser().resolve() if variable.endswith("_DIR") else text
