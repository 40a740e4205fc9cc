"""The watchers are watched: a sensor or daemon that has not been seen for too long is named."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance
from dagster._core.scheduler.instigation import InstigatorType, TickData, TickStatus
from dagster_shared.error import SerializableErrorInfo

from recs_platform import monitor
from recs_platform.commands import status
from recs_platform.defs import files
from recs_platform.errors import StackError
from recs_platform.health import Finding, State
from recs_platform.monitor import Report, Watch
from recs_platform.pipeline import Pipeline
from recs_platform.settings import Settings, default_sql_dir
from recs_platform.stack.process import running
from recs_platform.stack.service import Service, free_port
from recs_platform.watchers import WEB_SERVER, Watcher, ask, graphql, reload_code, versions_shown, watchers_of

NOW = 1_000_000.0
SENSORS = """
import dagster as dg
from pathlib import Path

@dg.asset(code_version=Path(__file__).with_name("version").read_text())
def kept(): ...

def of(name):
    @dg.sensor(name=name, target=None, minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING)
    def sensor(context): ...
    return sensor

defs = dg.Definitions(sensors=[of("works"), of("fails"), of("has_begun"), of("has_never_worked")], assets=[kept, dg.AssetSpec("topic")])
"""
TICKS = {
    "works": [TickStatus.SUCCESS, TickStatus.SKIPPED],
    "fails": [TickStatus.SUCCESS, *[TickStatus.FAILURE] * 30],
    "has_begun": [TickStatus.SKIPPED, TickStatus.STARTED],
    "has_never_worked": [TickStatus.FAILURE],
}
"""One after the other, a minute apart from `NOW` on."""


def answer(seen_at: float | None = NOW, status: str = "RUNNING") -> dict[str, Any]:
    """As Dagster's web server gives it."""
    ticks = [] if seen_at is None else [{"timestamp": seen_at}]
    sensor = {
        "name": "view_freshness",
        "minIntervalSeconds": 30,
        "sensorState": {"status": status, "ticks": ticks},
    }
    daemons = [
        {"daemonType": "SENSOR", "required": True, "lastHeartbeatTime": NOW},
        {"daemonType": "BACKFILL", "required": False, "lastHeartbeatTime": None},
    ]
    return {
        "instance": {"daemonHealth": {"allDaemonStatuses": daemons}},
        "workspaceOrError": {"locationEntries": [{"name": "recs", "locationOrLoadError": {}}]},
        "repositoriesOrError": {"nodes": [{"sensors": [sensor]}]},
    }


def test_required_daemons_and_running_sensors_are_watched() -> None:
    assert watchers_of(answer()) == [
        Watcher("daemon sensor", 30.0, NOW),
        Watcher("sensor view_freshness", 30.0, NOW),
    ]
    assert [w.name for w in watchers_of(answer(status="STOPPED"))] == ["daemon sensor"], (
        "who was turned off is not late"
    )


@pytest.mark.parametrize(
    ("every", "ago", "is_late"), [(30, 100, False), (30, 130, True), (60, 170, False), (60, 190, True)]
)
def test_late_is_three_intervals_and_two_minutes_at_least(every: float, ago: float, is_late: bool) -> None:
    assert Watcher("sensor a", every, NOW - ago).is_late(NOW) is is_late
    assert Watcher("sensor a", every, None).is_late(NOW), "never seen"


def test_where_dagster_does_not_answer_those_that_were_there_grow_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    settings = Settings(state_dir=tmp_path, sql_dir=default_sql_dir(), dagster_url=url)
    clock = [NOW]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    watch = Watch(lambda: settings, lambda: clock[0])
    with monkeypatch.context() as patched:
        patched.setattr(monitor, "ask", lambda _: watchers_of(answer()))
        report = watch.report()
        assert (len(report.watchers), report.late_watchers) == (2, [])
    clock[0] += 600
    assert [w.name for w in watch.report().late_watchers] == ["daemon sensor", "sensor view_freshness", WEB_SERVER]
    clock[0] += 600
    assert len(watch.report().watchers) == 3, "it is named once"


def test_a_web_server_that_never_answered_is_late_at_once_and_the_status_says_so(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    settings = Settings(state_dir=tmp_path, sql_dir=default_sql_dir(), dagster_url=url)
    report = Watch(lambda: settings).report()
    well = Report(report.at, (), (Finding(("a",), State.FRESH, 0.0, "it is there"),), watchers=report.watchers)
    assert [str(line) for line in status._watchers(well)] == [
        f"watchers: web server does not answer at {url}: look at dagster-webserver's log"
    ]
    assert not status.Seen(tmp_path, None, well).healthy
    assert Watch(lambda: Settings(state_dir=tmp_path, sql_dir=default_sql_dir())).report().watchers == (), (
        "where no Dagster runs none is missed"
    )


# -- with a web server ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("dagster")
    texts = {"dagster.yaml": "", "sensors.py": SENSORS, "version": "1", "broken.py": "import nothing_of_the_sort"}
    for name, text in texts.items():
        (home / name).write_text(text)
    return home


@pytest.fixture(scope="module")
def dagster_url(home: Path) -> Iterator[str]:
    """Of one that has ticks as in `TICKS`, and a second file that it cannot load."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = (sys.executable, "-m", "dagster_webserver", "-f", "sensors.py", "-f", "broken.py", "-p", str(port))
    environment = {"DAGSTER_HOME": str(home), "DAGSTER_DISABLE_TELEMETRY": "yes"}
    service = Service("dagster", lambda: _answers(url), url, command, environment=environment, directory=home)
    with running(service, home):
        _write_ticks(url, home)
        yield url


def _answers(url: str) -> None:
    try:
        graphql(url, "{ version }")
    except OSError as error:
        raise StackError(str(error)) from None


def _write_ticks(url: str, home: Path) -> None:
    asked = "{ repositoriesOrError { ... on RepositoryConnection { nodes { sensors { name sensorState { selectorId } } } } } }"
    [repository] = graphql(url, asked)["repositoriesOrError"]["nodes"]
    selectors = {sensor["name"]: sensor["sensorState"]["selectorId"] for sensor in repository["sensors"]}
    with DagsterInstance.from_config(str(home)) as instance:
        for name, statuses in TICKS.items():
            for minute, tick in enumerate(statuses):
                error = SerializableErrorInfo("it failed", [], None) if tick is TickStatus.FAILURE else None
                at, selector = NOW + 60 * minute, selectors[name]
                instance.create_tick(
                    TickData(
                        "any", name, InstigatorType.SENSOR, tick, at, run_ids=[], error=error, selector_id=selector
                    )
                )


def test_a_tick_that_failed_or_has_not_ended_is_no_sign_of_life(dagster_url: str) -> None:
    seen = {watcher.name: watcher.seen_at for watcher in ask(dagster_url)}
    assert {name: seen[f"sensor {name}"] for name in TICKS} == {
        "works": NOW + 60,
        "fails": NOW,
        "has_begun": NOW,
        "has_never_worked": None,
    }


def test_pages_are_told_to_load_what_has_changed(dagster_url: str, home: Path) -> None:
    assert versions_shown(dagster_url) == {"kept": "1"}
    (home / "version").write_text("2")
    assert versions_shown(dagster_url) == {"kept": "1"}
    reload_code(dagster_url)
    assert versions_shown(dagster_url) == {"kept": "2"}


def test_a_web_server_that_goes_on_to_show_other_files_is_told_three_times(dagster_url: str) -> None:
    pipeline, reloaded, tries = Pipeline.load(default_sql_dir()), "", list[str]()
    for _ in range(files.RELOADS + 1):
        reloaded = files._shown(dagster_url, pipeline, reloaded)
        tries.append(reloaded.removeprefix(f"{pipeline.digest} "))
    assert tries == ["1", "2", "3", "3"]
    assert files._shown(f"http://127.0.0.1:{free_port()}", pipeline, "").endswith(" 0"), "one that is away is none"


def test_code_that_cannot_be_loaded_is_late_in_place_of_its_sensors(dagster_url: str) -> None:
    [location] = [watcher for watcher in ask(dagster_url) if watcher.name.startswith("code location")]
    assert (location.name, location.is_late(NOW)) == ("code location broken.py", True)
    assert "No module named 'nothing_of_the_sort'" in location.problem


def test_what_has_only_just_been_started_is_not_late() -> None:
    never = Watcher("sensor canary", 30.0, None)
    assert never.is_late(1_000.0)
    assert not replace(never, since=950.0).is_late(1_000.0)
    assert replace(never, since=800.0).is_late(1_000.0)
    assert not replace(never, seen_at=100.0, since=950.0).is_late(1_000.0), "seen by a daemon before"
    assert replace(never, since=950.0, problem="cannot be loaded").is_late(1_000.0)
