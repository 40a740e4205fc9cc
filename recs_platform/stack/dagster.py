"""Dagster's two processes: the webserver with the UI, and the daemon that runs sensors and automation."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from recs_platform.errors import StackError
from recs_platform.settings import Settings, project_root
from recs_platform.stack.service import HOST, Service
from recs_platform.watchers import graphql

WEBSERVER, DAEMON = "dagster-webserver", "dagster-daemon"
PROBE_SECONDS = 5.0
FRESH_SECONDS = 90.0  # a daemon's heartbeat is written every 30 s

LOCATIONS = """{ workspaceOrError {
    ... on Workspace { locationEntries { name loadStatus locationOrLoadError { ... on PythonError { message } } } }
    ... on PythonError { message } } }"""
HEARTBEATS = "{ instance { daemonHealth { allDaemonStatuses { daemonType required lastHeartbeatTime } } } }"


def services(settings: Settings, environment: Mapping[str, str]) -> list[Service]:
    """Webserver and daemon over the checkout's workspace, their storage in the state directory."""
    home, url = settings.state_dir / "dagster", settings.dagster_url
    workspace, port = _workspace(), str(urlsplit(url).port)
    environment = {**environment, "DAGSTER_HOME": str(home), "DAGSTER_DISABLE_TELEMETRY": "yes"}
    common = Service(
        WEBSERVER,
        lambda: probe_webserver(url),
        url,
        (sys.executable, "-m", "dagster_webserver", *workspace, "-h", HOST, "-p", port),
        environment=environment,
        directory=project_root(),
        prepare=lambda: _make_home(home),
    )
    return [
        common,
        replace(
            common,
            name=DAEMON,
            url="",
            probe=lambda: probe_daemon(url),
            needs=(WEBSERVER,),
            command=(sys.executable, "-m", "dagster._daemon", "run", *workspace),
        ),
    ]


def probe_webserver(url: str) -> None:
    """Returns when the webserver answers and has loaded all code; raises `StackError` saying what is missing."""
    workspace = _ask(url, LOCATIONS)["workspaceOrError"]
    if "message" in workspace:
        raise StackError(f"Dagster's workspace: {workspace['message']}")
    for location in workspace["locationEntries"]:
        if location["loadStatus"] != "LOADED":
            raise StackError(f"Dagster is loading {location['name']}")
        if message := (location["locationOrLoadError"] or {}).get("message"):
            raise StackError(f"Dagster cannot load {location['name']}: {message}")


def probe_daemon(url: str) -> None:
    """Returns when every daemon Dagster needs has had a heartbeat lately; raises `StackError` naming the others.

    Asked of the webserver, so while that is down nothing can be said of the daemon.
    """
    statuses = _ask(url, HEARTBEATS)["instance"]["daemonHealth"]["allDaemonStatuses"]
    oldest = time.time() - FRESH_SECONDS
    silent = [s["daemonType"] for s in statuses if s["required"] and (s["lastHeartbeatTime"] or 0) < oldest]
    if silent:
        raise StackError(f"no heartbeat yet from Dagster's daemon: {', '.join(sorted(silent))}")


def _ask(url: str, query: str) -> dict[str, Any]:
    try:
        return graphql(url, query)
    except (OSError, ValueError, KeyError) as error:
        raise StackError(f"Dagster at {url}: {error}") from None


def _workspace() -> tuple[str, ...]:
    file = project_root() / "workspace.yaml"
    return ("-w", str(file)) if file.exists() else ("-m", "recs_platform.definitions")


def _make_home(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    instance = project_root() / "dagster.yaml"
    if instance.exists():
        shutil.copyfile(instance, home / instance.name)
    else:
        (home / instance.name).touch()
