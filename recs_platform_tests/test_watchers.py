"""The watchers are watched: a sensor or daemon that has not been seen for too long is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recs_platform import monitor
from recs_platform.monitor import Watch
from recs_platform.settings import Settings, default_sql_dir
from recs_platform.stack.service import free_port
from recs_platform.watchers import Watcher, watchers_of

NOW = 1_000_000.0


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
    monkeypatch.setattr(monitor.time, "time", lambda: clock[0])
    watch = Watch(lambda: settings, lambda: clock[0])
    with monkeypatch.context() as patched:
        patched.setattr(monitor, "ask", lambda _: watchers_of(answer()))
        report = watch.report()
        assert (len(report.watchers), report.late_watchers) == (2, [])
    clock[0] += 600
    assert [w.name for w in watch.report().late_watchers] == ["daemon sensor", "sensor view_freshness"]
