"""Runs a command against a real Apache Kafka, started for it and stopped after it.

    python -m recs_platform_tests.apache_kafka pytest recs_platform_tests/test_intake.py

The command finds the broker in `RECS_TEST_KAFKA` (host:port), and the same with TLS and a password, by either
mechanism, in `RECS_TEST_KAFKA_PLAIN` and `RECS_TEST_KAFKA_SCRAM`. Needs `openssl`, `mvn` and Java 17 or later; Kafka is fetched from
Maven Central once (43 MB) and kept under ~/.cache (or $XDG_CACHE_HOME). The exit status is the command's own, 2
when Kafka cannot be had.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from recs_platform.errors import StackError
from recs_platform.stack.broker import probe_kafka
from recs_platform.stack.process import running
from recs_platform.stack.service import HOST, Service, free_port

VERSION = "4.1.0"
USER, PASSWORD = "recs", "a secret/with@signs"
START_SECONDS = 60.0
FETCH_SECONDS = 600.0
COPY_DEPENDENCIES = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>recs</groupId> <artifactId>apache-kafka</artifactId> <version>1</version> <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
  </dependencies>
</project>
"""
PROPERTIES = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=PLAINTEXT://{host}:{port},SECURE://{host}:{secure},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port},SECURE://{host}:{secure}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT
listener.name.secure.ssl.keystore.type=PEM
listener.name.secure.ssl.keystore.location={certificate}
listener.name.secure.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}="{password}";
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
log.dirs={logs}
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
"""


def jars() -> Path:
    """The directory with Kafka and all it needs, fetched if it is not there. Raises `StackError`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recs-platform"
    wanted = cache / f"apache-kafka-{VERSION}"
    if not wanted.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _fetch(Path(scratch))
            (Path(scratch) / "jars").replace(wanted)
    return wanted


def _fetch(directory: Path) -> None:
    (directory / "pom.xml").write_text(POM)
    _run(
        [
            _program("mvn"),
            "-q",
            "-B",
            "-f",
            str(directory / "pom.xml"),
            COPY_DEPENDENCIES,
            f"-DoutputDirectory={directory / 'jars'}",
        ],
        FETCH_SECONDS,
    )


@dataclass(frozen=True)
class ApacheKafka:
    """A broker, and the variables that a command finds it by."""

    service: Service
    variables: Mapping[str, str]


def apache_kafka(directory: Path) -> ApacheKafka:
    """A single KRaft broker and controller on loopback, its storage formatted in `directory`. Raises `StackError`."""
    port = free_port()
    secure = free_port(but={port})
    controller = free_port(but={port, secure})
    authority, certificate = _certificate(directory)
    properties = directory / "server.properties"
    properties.write_text(
        PROPERTIES.format(
            host=HOST, port=port, secure=secure, controller=controller, logs=directory / "data",
            certificate=certificate, user=USER, password=PASSWORD,
        )
    )  # fmt: skip
    java = [_program("java"), "-Xmx512m", "-cp", f"{jars()}/*"]
    cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    scram = f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"
    tool = [
        *java,
        "kafka.tools.StorageTool",
        "format",
        f"--cluster-id={cluster}",
        "-c",
        str(properties),
        "--add-scram",
        scram,
    ]
    _run(tool, START_SECONDS)
    servers = f"{HOST}:{port}"
    service = Service("apache-kafka", lambda: probe_kafka(servers), servers, (*java, "kafka.Kafka", str(properties)))
    address = f"sasl_ssl://{USER}:{quote(PASSWORD)}@{HOST}:{secure}?ca={authority}"
    variables = {
        "RECS_TEST_KAFKA": servers,
        "RECS_TEST_KAFKA_PLAIN": address,
        "RECS_TEST_KAFKA_SCRAM": f"{address}&mechanism=SCRAM-SHA-512",
    }
    return ApacheKafka(service, variables)


def _certificate(directory: Path) -> tuple[Path, Path]:
    """One that signs itself for a day: a file to trust, and one with its key for the broker."""
    key, authority, both = (directory / name for name in ("key.pem", "authority.pem", "broker.pem"))
    subject = ["-subj", "/CN=recs", "-addext", f"subjectAltName=IP:{HOST}", "-days", "1", "-nodes"]
    _run(
        [
            _program("openssl"),
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            *subject,
            "-keyout",
            str(key),
            "-out",
            str(authority),
        ],
        60,
    )
    both.write_text(key.read_text() + authority.read_text())
    return authority, both


def run_against_kafka(command: Sequence[str]) -> int:
    """Runs the command while the broker runs; returns its exit status. Raises `StackError` when there is no broker."""
    with tempfile.TemporaryDirectory(prefix="recs-kafka-") as scratch:
        kafka = apache_kafka(Path(scratch))
        with running(kafka.service, Path(scratch), START_SECONDS):
            print(f"Apache Kafka {VERSION} answers at {kafka.service.url}", file=sys.stderr)
            return subprocess.run(command, env={**os.environ, **kafka.variables}, check=False).returncode


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise StackError(
            f"{name} is not on the PATH: wanted are Maven, which fetches Kafka, Java 17 or later, and openssl"
        )
    return found


def _run(command: Sequence[str], seconds: float) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise StackError(f"{command[0]} failed ({done.returncode}):\n{(done.stdout + done.stderr)[-3000:]}")


def main() -> int:
    command = sys.argv[1:]
    if not command:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        return run_against_kafka(command)
    except (StackError, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
