"""One look at everything, remembered; and what the monitoring files ask of it."""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from recs_platform.commands import status
from recs_platform.health import Finding, State
from recs_platform.metrics import HELP, families
from recs_platform.monitor import REMEMBERED, Report, Watch
from recs_platform.pipeline import Pipeline
from recs_platform.readings import CONNECT_SECONDS
from recs_platform.settings import Settings
from recs_platform_tests.sql_copies import sql_copy

ROOT = Path(__file__).parent.parent
TOPIC = ("kafka", "user_activity")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state")


def test_with_everything_away_every_box_is_told_of(settings: Settings) -> None:
    report = Watch(lambda: settings).report()
    assert {f.key[0] for f in report.findings} >= set(Pipeline.load(settings.sql_dir).relations)
    assert report.state is State.BROKEN
    assert all(f.state in (State.BROKEN, State.UNKNOWN) for f in report.findings)


def test_what_was_seen_is_remembered_for_whoever_looks_next(settings: Settings) -> None:
    first = Watch(lambda: settings).report()
    later = Watch(lambda: settings).report()
    assert later.at > first.at
    assert {f.key: f.since for f in later.findings} == {f.key: f.since for f in first.findings}


def test_a_watch_does_not_look_again_at_once(settings: Settings) -> None:
    now = [1_000.0]
    watch = Watch(lambda: settings, clock=lambda: now[0])
    report = watch.report()
    now[0] = report.at + 4
    assert watch.report() is report
    now[0] = report.at + 6
    assert watch.report() is not report


@pytest.mark.parametrize("left", ["", "{", "[[1]]", "\x00"])
def test_a_memory_that_cannot_be_read_costs_only_the_since(settings: Settings, left: str) -> None:
    settings.state_dir.mkdir()
    (settings.state_dir / REMEMBERED).write_text(left)
    assert Watch(lambda: settings).report().findings


def test_a_state_directory_that_cannot_be_written_is_no_reason_not_to_look(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Watch(lambda: replace(settings, state_dir=tmp_path / "file" / "below")).report().findings


def test_prometheus_is_told_what_the_headers_of_the_files_want(settings: Settings, tmp_path: Path) -> None:
    headers = {"also_bought_sink": "-- freshness: 2 min\n", "purchases_raw": "-- dead letters: 5 %\n"}
    sql_dir = sql_copy(tmp_path / "sql", lambda name, text: headers.get(name, "") + text)
    report = Watch(lambda: replace(settings, sql_dir=sql_dir)).report()
    found = {
        (s.name, s.labels["box"]): s.value for family in families(report) for s in family.samples if "box" in s.labels
    }
    assert found["recs_freshness_wanted_seconds", "also_bought_sink"] == 120
    assert found["recs_freshness_wanted_seconds", "trending_products_sink"] == 10
    assert found["recs_dead_letter_share_wanted", "kafka/purchases"] == 0.05
    assert found["recs_dead_letter_share_wanted", "kafka/user_activity"] == 0.01


def test_the_causes_are_the_boxes_where_it_began() -> None:
    stalled = Finding(TOPIC, State.STALLED, 0.0, "it stands", blame=TOPIC)
    suffers = Finding(("user_activity",), State.STALLED, 0.0, "kafka/user_activity is stalled", blame=TOPIC)
    fresh = Finding(("products_sink",), State.FRESH, 0.0, "it is there", blame=("products_sink",))
    assert Report(0.0, (), (stalled, suffers, fresh)).causes == [stalled]


def test_an_engine_that_is_away_is_one_cause_however_many_boxes_it_has() -> None:
    away = [Finding((name,), State.BROKEN, 0.0, "it does not answer", blame=("engine",)) for name in ("a", "b")]
    assert [cause.blame for cause in Report(0.0, (), tuple(away)).causes] == [("engine",)]


# monitoring/

NAMES = {
    *(f"recs_{name}" for name in HELP),
    *(f"recs_{name}_total" for name in ("messages", "changes", "api_requests")),
    *(
        "recs_well",
        "recs_state",
        "recs_state_since_seconds",
        "recs_watcher_seen_seconds",
        "recs_api_request_seconds_bucket",
    ),
}
METRIC = re.compile(r"\brecs_\w+")


def test_alerts_are_about_metrics_there_are() -> None:
    groups = yaml.safe_load((ROOT / "monitoring" / "alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {name for rule in rules for name in METRIC.findall(rule["expr"])} <= NAMES
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)


@pytest.mark.parametrize(
    ("alert", "measured", "wanted"),
    [
        ("RecsListsAreNotFresh", "recs_freshness_p99_seconds", "recs_freshness_wanted_seconds"),
        ("RecsDeadLetters", "recs_dead_letter_share", "recs_dead_letter_share_wanted"),
    ],
)
def test_what_files_may_say_is_no_number_of_an_alert(alert: str, measured: str, wanted: str) -> None:
    groups = yaml.safe_load((ROOT / "monitoring" / "alerts.yml").read_text())["groups"]
    [expression] = [rule["expr"] for group in groups for rule in group["rules"] if rule["alert"] == alert]
    assert expression == f"{measured} > {wanted}"


def test_the_dashboard_shows_metrics_there_are() -> None:
    dashboard = json.loads((ROOT / "monitoring" / "dashboard.json").read_text())
    shown = {name for panel in dashboard["panels"] for t in panel["targets"] for name in METRIC.findall(t["expr"])}
    assert shown <= NAMES
    assert {name.removesuffix("_total") for name in shown} >= {"recs_state", "recs_lag_seconds", "recs_messages"}
    [ill] = [panel for panel in dashboard["panels"] if panel["title"] == "Boxes that are ill"]
    assert "recs_look_failed" in ill["targets"][0]["expr"], "none is ill only where somebody has looked"


def test_prometheus_scrapes_where_the_api_listens_by_default() -> None:
    config = yaml.safe_load((ROOT / "monitoring" / "prometheus.yml").read_text())
    assert config["scrape_configs"][0]["static_configs"][0]["targets"] == [f"127.0.0.1:{Settings().api_port}"]
    assert config["rule_files"] == ["alerts.yml"]


def test_a_scrape_leaves_room_for_an_engine_and_a_postgresql_that_stand_still(settings: Settings) -> None:
    scrapes = yaml.safe_load((ROOT / "monitoring" / "prometheus.yml").read_text())["global"]
    interval, timeout = (float(scrapes[name].removesuffix("s")) for name in ("scrape_interval", "scrape_timeout"))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never says a word
        url = f"grpc://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        report = Watch(lambda: replace(settings, engine_url=url, engine_token="secret-token")).report()
    assert ("engine",) in {finding.blame for finding in report.findings}
    assert time.monotonic() - began + CONNECT_SECONDS < timeout <= interval


def test_boxes_with_the_same_trouble_are_one_row_of_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    trouble = [Finding((name,), State.BROKEN, 900.0 + i, "Redis is away", "", (name,)) for i, name in enumerate("abc")]
    for part in status._boxes(
        Report(1000.0, (), (*trouble, Finding(("d",), State.BROKEN, 990.0, "another", "", ("d",))))
    ):
        Console(width=100).print(part)
    shown = capsys.readouterr().out
    assert shown.count("Redis is away") == 1
    assert "a, b, c" in shown
    assert "1m 40s" in shown, "since the first of them"
    assert "another" in shown
