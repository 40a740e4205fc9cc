"""The benchmarks: every part runs (on sizes that mean nothing), and the report has what it promises."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import psutil
import pytest

from bench.baselines import full_engine
from bench.driver import Driver
from bench.load import Lateness, Load, Outcome, schedule
from bench.options import Options
from bench.parts import ORDER, in_turn
from bench.parts.restart import Kill
from bench.probes import Kind, Probe, Sample, Watch
from bench.report import Section, Table, render
from bench.stats import Spread, percentile, slope
from bench.traffic import Population, Traffic, history, texts
from recs_platform.engines.local import relations
from recs_platform.engines.local.database import Database
from recs_platform.engines.local.incremental import Mode
from recs_platform.engines.local.refresh import Refresher
from recs_platform.pipeline import Pipeline
from recs_platform.settings import default_sql_dir, project_root

POPULATION = Population(users=1_000, products=500, categories=10, seed=7)
LOAD = Load("", "", POPULATION, stream=3, rate=200, seconds=2, warmup=1)
SECONDS = 400  # a quick run of everything, on a slow machine with another suite beside it
pytestmark = pytest.mark.timeout(SECONDS + 20)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


# Traffic


def test_the_same_seed_gives_the_same_events() -> None:
    times = np.arange(5_000, dtype=np.int64)
    first, again = (Traffic(POPULATION, stream=1).draw(times) for _ in range(2))
    assert list(first.messages()) == list(again.messages())
    other = Traffic(POPULATION, stream=2).draw(times)
    assert list(first.messages()) != list(other.messages())


def test_products_follow_zipfs_law_and_the_busiest_shoppers_send_a_fifth() -> None:
    batch = Traffic(Population(10_000, 1_000, 10), stream=1).draw(np.zeros(200_000, dtype=np.int64))
    views = np.bincount(batch.products)
    assert views[1] / views[10] == pytest.approx(10, rel=0.2)
    assert views[1] / views[100] == pytest.approx(100, rel=0.3)
    activity = np.sort(np.bincount(batch.users, minlength=10_001))[::-1]
    assert activity[:100].sum() / len(batch) == pytest.approx(0.2, abs=0.06)


def test_without_skew_all_are_alike() -> None:
    batch = Traffic(Population(100, 100, 10, exponent=0, skew=0), stream=1).draw(np.zeros(100_000, dtype=np.int64))
    for column in (batch.products, batch.users):
        counts = np.bincount(column)[1:]
        assert counts.max() / counts.min() < 1.5


def test_the_past_is_in_order_and_within_its_hours() -> None:
    batches = list(history(POPULATION, 2_500, NOON, hours=24, chunk=1_000))
    times = np.concatenate([batch.times for batch in batches])
    assert len(times) == 2_500
    assert (np.diff(times) >= 0).all()
    assert texts(times[[0, -1]])[0] > "2025-12-31T12:00:00"
    assert texts(times[[0, -1]])[1] < "2026-01-01T12:00:00"


def test_messages_are_events_of_the_shop() -> None:
    batch = Traffic(POPULATION, stream=1).draw(np.zeros(2_000, dtype=np.int64))
    for topic, key, payload in batch.messages():
        event = orjson.loads(payload)
        assert key == str(event["user_id"]).encode()
        assert (topic == "purchases") == (event["event_type"] == "purchase")
        assert ("product_id" in event) == (event["event_type"] != "search")
        assert event["timestamp"] == "1970-01-01T00:00:00.000000Z"


# Runs and probes


def test_a_run_is_the_same_events_whenever_it_starts() -> None:
    early, late = schedule(LOAD, 1_000.0), schedule(LOAD, 2_000.0)
    assert (early.batch.users == late.batch.users).all()
    assert np.allclose(late.due - early.due, 1_000)
    assert len(early.batch) == 600


def test_only_views_after_the_warm_up_are_watched() -> None:
    run = schedule(LOAD, 1_000.0)
    for watched in run.watched.values():
        assert watched.any()
        assert (run.due[watched] >= 1_001).all()
        assert run.batch.views[watched].all()


def test_every_view_of_the_followed_shoppers_is_watched() -> None:
    run = schedule(LOAD, 1_000.0)
    followed = np.unique(run.batch.users[run.watched[Kind.FOLLOWED]])
    assert len(followed) == LOAD.followed
    theirs = np.isin(run.batch.users, followed) & run.batch.views & (run.due >= 1_001)
    assert (run.watched[Kind.FOLLOWED] == theirs).all()


def probe(key: str, wanted: str | float, intended: float, field: str = "as_of") -> Probe:
    return Probe(Kind.RECOMMENDATIONS, key, field, wanted, intended)


def test_latency_counts_from_the_time_an_event_was_due() -> None:
    watch = Watch(lost_after=60)
    watch.add(probe("a", "2026-01-01T00:00:01.000000Z", intended=100.0))  # however late it was sent
    watch.seen(["a"], [b'{"as_of":"2026-01-01T00:00:00.999999Z"}'], now=100.5)
    assert watch.samples == []
    watch.seen(["a"], [b'{"as_of":"2026-01-01T00:00:01.000000Z"}'], now=101.5)
    assert [sample.latency for sample in watch.samples] == [1.5]
    assert len(watch) == 0


def test_a_lost_probe_counts_with_the_time_it_was_waited_for() -> None:
    watch = Watch(lost_after=60)
    for n in range(99):
        watch.add(probe(f"{n}", "1", intended=0.0))
        watch.seen([f"{n}"], [b'{"as_of":"1"}'], now=0.1)
    watch.add(probe("x", "2", intended=0.0))
    watch.seen(["x"], [None], now=60.0)
    assert len(watch) == 1
    watch.seen(["x"], [b'{"as_of":"1"}'], now=60.1)
    assert watch.samples[-1].lost
    assert percentile([sample.latency for sample in watch.samples], 100) == 60


def test_a_price_must_be_the_one_that_was_set() -> None:
    assert probe("p", 12.5, 0.0, "price").met({"price": 12.5})
    assert not probe("p", 12.5, 0.0, "price").met({"price": 13})
    assert not probe("p", 12.5, 0.0, "price").met({})


def test_many_outstanding_keys_take_turns() -> None:
    watch = Watch(lost_after=60)
    for n in range(300):
        watch.add(probe(f"{n}", "1", intended=0.0))
    rounds = [watch.due() for _ in range(3)]
    assert {key for keys in rounds for key in keys} == {f"{n}" for n in range(300)}
    assert max(map(len, rounds)) == 128


# Figures


def test_a_spread_is_the_median_and_what_lies_around_it() -> None:
    assert Spread.of([3, 1, 2]).text() == "2 (1..3)"
    assert Spread.of([1234.5]).text(1) == "1,234.5"
    assert Spread.of([math.nan]).text() == "not measured"


def test_a_slope_of_one_is_in_proportion() -> None:
    assert slope(cost=50, base=5) == pytest.approx(1)
    assert slope(cost=5, base=5) == 0


def test_parts_are_measured_in_one_order_whatever_was_asked() -> None:
    assert in_turn(("slope", "memory")) == ["memory", "slope"]
    assert sorted(in_turn(())) == sorted(ORDER)


def test_a_backlog_is_waited_for_the_longer_the_larger_it_is() -> None:
    assert Options.of(False, {}).patience == 900
    assert Options.of(False, {"events": 10_000_000}).patience == 2_000


def test_a_quick_run_does_not_write_over_a_full_one() -> None:
    assert Options.of(True, {}).out != Options.of(False, {}).out
    assert Options.of(True, {"out": Path("x")}).out == Path("x")


def test_without_a_sample_before_the_kill_nothing_is_said_of_the_time_after() -> None:
    samples = [Sample(Kind.RECOMMENDATIONS, at, 1.0, False) for at in (10.0, 11.0)]
    outcome = Outcome(samples, Lateness(0, 0, 0), sent=2, began=10, ended=12, activity=2)
    assert math.isnan(Kill(at=10.0, outcome=outcome, lag=0).settled())
    assert Kill(at=11.5, outcome=outcome, lag=0).settled() == 0


def test_the_baseline_that_recomputes_has_nothing_refreshed_by_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relations, "Refresher", Refresher)  # put back afterwards
    full_engine.recompute_all()
    database = Database()
    database.deploy(Pipeline.load(default_sql_dir()), NOON)
    modes = {refresher.mode for refresher in database.refreshers}
    database.close()
    assert Mode.FULL in modes
    assert modes.isdisjoint(full_engine.INCREMENTAL)


def test_a_replaced_driver_gives_no_answer_to_what_was_asked_before() -> None:
    with Driver() as driver:
        driver.start(time.sleep, 60)
        driver.replace()
        assert driver.run(max, 1, 2) == 2


# All of it


def marked(mark: str) -> list[psutil.Process]:
    """Every process that was started with that mark in its environment, or by one that was."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            found += [process] if process.environ().get("BENCH_TEST") == mark else []
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a quick run of everything leaves."""
    out = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "bench", "--quick", "--out", str(out)]
    environment = {**os.environ, "BENCH_TEST": str(out)}
    with subprocess.Popen(
        command, cwd=project_root(), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        try:
            said, _ = run.communicate(timeout=SECONDS)
        finally:
            run.terminate()  # it stops all that it started
    assert run.returncode == 0, said[-5_000:]
    assert marked(str(out)) == []
    return out


def test_every_part_is_measured(results: Path) -> None:
    page = (results / "report.md").read_text()
    for part in ORDER:
        section = json.loads((results / f"{part}.json").read_text())
        assert section["claims"], part
        assert section["figures"], part
        assert f"## {section['title']}\n" in page
    assert "not measured" not in page


def test_figures_and_samples_are_there(results: Path) -> None:
    page = (results / "report.md").read_text()
    for figure in re.findall(r"\((\w+\.svg)\)", page):
        assert "</svg>" in (results / figure).read_text()
    for part in ORDER:
        assert len(pd.read_csv(results / "samples" / f"{part}.csv.gz")) > 0


def test_what_was_counted_again_is_as_it_was(results: Path) -> None:
    claims = json.loads((results / "catchup.json").read_text())["claims"]
    assert {claim["met"] for claim in claims if "counted again" in claim["what"]} == {True}


def test_a_part_measured_again_replaces_its_section_alone(results: Path) -> None:
    sections = {part: (results / f"{part}.json").read_text() for part in ORDER}
    section = Section(**{**json.loads(sections["slope"]), "tables": [], "figures": [], "claims": []})
    section.tables.append(Table("Measured again", ["a"], [["b"]]))
    (results / "slope.json").write_text(json.dumps(section.__dict__, default=vars))
    page = render(results, ORDER).read_text()
    assert "Measured again" in page
    assert page.count("\n## ") == len(ORDER) + 1
