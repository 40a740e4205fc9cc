"""Who watches the watchers: how long ago each of Dagster's daemons and sensors last gave a sign, as its web server knows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.request import Request

from recs_platform import http_ask

SECONDS = 5.0
RELOAD_SECONDS = 30.0
WEB_SERVER = "web server"
EVERY = 30.0  # seconds between two signs of what has no interval of its own
PATIENCE, AT_LEAST = 3.0, 120.0  # intervals that a sensor may miss, and seconds that anything may
QUERY = """{
  instance { daemonHealth { allDaemonStatuses { daemonType required lastHeartbeatTime } } }
  workspaceOrError {
    ... on Workspace { locationEntries { name locationOrLoadError { ... on PythonError { message } } } }
    ... on PythonError { message } }
  repositoriesOrError { ... on RepositoryConnection { nodes { sensors {
    name minIntervalSeconds sensorState { status ticks(limit: 1, statuses: [SUCCESS, SKIPPED]) { timestamp } }
  } } } }
}"""
"""A tick that failed is no sign of life, and one that has begun may yet fail."""


@dataclass(frozen=True)
class Watcher:
    """A sensor or a daemon, or what is asked about them. `seen_at` in seconds since 1970, None for never; it should be seen
    `every` so many seconds. `since`: when whoever runs it began. `problem`: what it does instead, where that is known."""

    name: str
    every: float
    seen_at: float | None
    problem: str = ""
    since: float | None = None

    def is_late(self, now: float) -> bool:
        began = 0.0 if self.problem else self.since or 0.0
        return now - max(self.seen_at or 0.0, began) > max(PATIENCE * self.every, AT_LEAST)


def ask(dagster_url: str) -> list[Watcher]:
    """All that are to run. Raises what `graphql` raises, and `TypeError` for an answer without data."""
    return watchers_of(graphql(dagster_url, QUERY))


def web_server(answered_at: float | None, dagster_url: str) -> Watcher:
    """Dagster's web server, where it does not answer now."""
    return Watcher(WEB_SERVER, EVERY, answered_at, f"does not answer at {dagster_url}: look at dagster-webserver's log")


def versions_shown(dagster_url: str) -> dict[str, str]:
    """Asset → the version of its SQL, as the web server has loaded it. Raises what `graphql` raises."""
    nodes = graphql(dagster_url, "{ assetNodes { assetKey { path } opVersion } }")["assetNodes"]
    return {"/".join(node["assetKey"]["path"]): node["opVersion"] for node in nodes if node["opVersion"]}


def reload_code(dagster_url: str) -> None:
    """Has the web server load all its code anew. Raises what `graphql` raises."""
    locations = graphql(
        dagster_url, "{ repositoriesOrError { ... on RepositoryConnection { nodes { location { name } } } } }"
    )
    for name in {node["location"]["name"] for node in locations["repositoriesOrError"].get("nodes", ())}:
        order = f"mutation {{ reloadRepositoryLocation(repositoryLocationName: {json.dumps(name)}) {{ __typename }} }}"
        graphql(dagster_url, order, RELOAD_SECONDS)


def graphql(dagster_url: str, query: str, seconds: float = SECONDS) -> dict[str, Any]:
    """What Dagster's web server says. Raises `OSError` where it does not answer, `ValueError` or `KeyError` where it is none."""
    question = json.dumps({"query": query}).encode()
    request = Request(f"{dagster_url}/graphql", question, {"Content-Type": "application/json"})
    with http_ask.ask(request, seconds) as answer:
        data: dict[str, Any] = json.load(answer)["data"]
        return data


def watchers_of(data: Mapping[str, Any]) -> list[Watcher]:
    """From the answer to `QUERY`."""
    return [
        *_daemons(data["instance"]["daemonHealth"]),
        *_not_loaded(data["workspaceOrError"]),
        *_sensors(data["repositoriesOrError"].get("nodes", ())),
    ]


def _daemons(health: Mapping[str, Any]) -> Iterator[Watcher]:
    for daemon in health["allDaemonStatuses"]:
        if daemon["required"]:
            yield Watcher(f"daemon {daemon['daemonType'].lower()}", EVERY, daemon["lastHeartbeatTime"])


def _not_loaded(workspace: Mapping[str, Any]) -> Iterator[Watcher]:
    """Nothing is said of the sensors of code that cannot be loaded: the code stands for them."""
    found = {f"code location {e['name']}": e["locationOrLoadError"] or {} for e in workspace.get("locationEntries", ())}
    for name, answer in {**found, "workspace": workspace}.items():
        if message := answer.get("message"):
            yield Watcher(name, EVERY, None, f"cannot be loaded: {message.splitlines()[0][:300]}")


def _sensors(repositories: list[Mapping[str, Any]]) -> Iterator[Watcher]:
    for sensor in (sensor for repository in repositories for sensor in repository["sensors"]):
        if sensor["sensorState"]["status"] == "RUNNING":
            ticks = sensor["sensorState"]["ticks"]
            yield Watcher(
                f"sensor {sensor['name']}",
                sensor["minIntervalSeconds"] or EVERY,
                ticks[0]["timestamp"] if ticks else None,
            )
