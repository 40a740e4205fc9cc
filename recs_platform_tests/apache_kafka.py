"""Runs a command against a real Apache Kafka, started for it and stopped after it.

    python -m recs_platform_tests.apache_kafka pytest recs_platform_tests/test_intake.py

The command finds the broker in `RECS_TEST_KAFKA` (host:port). Needs `mvn` and Java 17 or later; Kafka is fetched from
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
from collections.abc import Sequence
from pathlib import Path

from recs_platform.errors import StackError
from recs_platform.stack.broker import probe_kafka
from recs_platform.stack.process import running
from recs_platform.stack.service import HOST, Service, free_port

VERSION = "4.1.0"
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
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
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


def apache_kafka(directory: Path) -> Service:
    """A single KRaft broker and controller on loopback, its storage formatted in `directory`. Raises `StackError`."""
    port = free_port()
    properties = directory / "server.properties"
    properties.write_text(
        PROPERTIES.format(host=HOST, port=port, controller=free_port(but={port}), logs=directory / "data")
    )
    java = [_program("java"), "-Xmx512m", "-cp", f"{jars()}/*"]
    cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    _run([*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(properties)], START_SECONDS)
    servers = f"{HOST}:{port}"
    return Service("apache-kafka", lambda: probe_kafka(servers), servers, (*java, "kafka.Kafka", str(properties)))


def run_against_kafka(command: Sequence[str]) -> int:
    """Runs the command while the broker runs; returns its exit status. Raises `StackError` when there is no broker."""
    with tempfile.TemporaryDirectory(prefix="recs-kafka-") as scratch:
        service = apache_kafka(Path(scratch))
        with running(service, Path(scratch), START_SECONDS):
            print(f"Apache Kafka {VERSION} answers at {service.url}", file=sys.stderr)
            return subprocess.run(command, env={**os.environ, "RECS_TEST_KAFKA": service.url}, check=False).returncode


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise StackError(f"{name} is not on the PATH: Apache Kafka is fetched with Maven and runs on Java 17 or later")
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
