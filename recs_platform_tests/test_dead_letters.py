"""Dead letters are told by reason, and go back to their topic put right, each once, whoever died."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from click.testing import CliRunner

from recs_platform import resend as resending
from recs_platform.cli import main
from recs_platform.commands.dead_letters import shown
from recs_platform.dead_letters import Choice, groups, letters, origins, recent, share_wanted
from recs_platform.definitions import defs
from recs_platform.defs import dead_letters as definitions
from recs_platform.defs.resources import Platform
from recs_platform.engines.base import StreamEngine
from recs_platform.engines.local.client import LocalEngine
from recs_platform.errors import EngineError, PipelineError, SourceError
from recs_platform.events import EventProducer
from recs_platform.judging import Judge
from recs_platform.pipeline import Pipeline
from recs_platform.readings import of_topics, with_dead_letters
from recs_platform.resend import Fix, Report, resend
from recs_platform.settings import default_sql_dir
from recs_platform_tests.sensing import evaluations, ticked
from recs_platform_tests.shop_floor import Shop, eventually
from recs_platform_tests.sql_copies import sql_copy
from recs_platform_tests.test_contract import local

NOW = datetime.now(UTC)


def event(user: object, product: object = "p1", at: datetime = NOW, **more: object) -> dict[str, Any]:
    time = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"event_type": "page_view", "user_id": user, "product_id": product, "timestamp": time, **more}


BAD: list[bytes | dict[str, Any]] = [
    b"not JSON", b"\xff\xfe", event("u7"), event("u8"), {**event(9), "event_type": None}, event(1, at=NOW + timedelta(days=2)),
]  # fmt: skip


@pytest.fixture
def shop(tmp_path: Path, kafka_servers: str, postgres_url: str, redis_url: str, topic_prefix: str) -> Iterator[Shop]:
    shop = Shop(tmp_path, kafka_servers, postgres_url, redis_url, topic_prefix)
    yield shop
    shop.close()


@pytest.fixture
def engine(shop: Shop) -> Iterator[StreamEngine]:
    """With the bad messages taken in."""
    shop.send("user_activity", BAD)
    shop.send("purchases", [b"[]"])
    with local(shop) as engine:
        eventually(lambda: count(engine, "dead_letters") == len(BAD) + 1)
        yield engine


@pytest.fixture
def environment(shop: Shop, engine: StreamEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a terminal, or a code server, of the stack has it."""
    assert isinstance(engine, LocalEngine)
    for name, value in {
        "ENGINE_URL": engine.url, "ENGINE_TOKEN": "secret-token", "POSTGRES_URL": shop.postgres, "SQL_DIR": str(shop.settings.sql_dir),
        "KAFKA_BOOTSTRAP_SERVERS": shop.kafka, "STATE_DIR": str(shop.settings.state_dir),
    }.items():  # fmt: skip
        monkeypatch.setenv(f"RECS_{name}", value)


def count(engine: StreamEngine, relation: str) -> int:
    return int(engine.query(f"SELECT count(*) AS n FROM {relation}").to_pylist()[0]["n"])


def users(engine: StreamEngine) -> list[int]:
    return [row["user_id"] for row in engine.query("SELECT user_id FROM user_activity ORDER BY ALL").to_pylist()]


def test_letters_are_counted_by_reason_with_a_sample(engine: StreamEngine) -> None:
    found = groups(engine, Choice())
    assert {(g.label, g.reason): g.count for g in found} == {
        ("user_activity", "user_id missing or not an integer"): 2,
        ("user_activity", "not a JSON object"): 2,
        ("user_activity", "event_type missing"): 1,
        ("user_activity", "timestamp in the future"): 1,
        ("purchases", "not a JSON object"): 1,
    }
    [unreadable] = groups(engine, Choice("user_activity", "user_id missing or not an integer"))
    assert json.loads(unreadable.sample or b"")["user_id"] in ("u7", "u8")
    assert sum(len(page) for page in letters(engine, Choice(reason="not a JSON object"))) == 3


def test_the_share_of_what_came_lately(shop: Shop, engine: StreamEngine) -> None:
    shop.send("purchases", [event(i) | {"event_type": "purchase", "quantity": 1, "price": 1.0} for i in range(9)])
    eventually(lambda: count(engine, "purchases") == 9)
    pipeline = Pipeline.of(shop.settings)
    eventually(lambda: sum(p["end_offset"] for p in engine.status()["partitions"]) == len(BAD) + 10)
    found = {r.topic: r for r in recent(engine, pipeline, engine.status(), shop.kafka)}
    activity, purchases = (found[shop.prefix + topic] for topic in ("user_activity", "purchases"))
    assert (activity.letters, activity.messages, activity.share) == (len(BAD), len(BAD), 1.0)
    assert dict(activity.reasons)["not a JSON object"] == 2
    assert (purchases.letters, purchases.messages, purchases.share) == (1, 10, 0.1)
    assert str(purchases) == "10.0% of 10 messages: 1 × not a JSON object"
    of_topic = {r.key: r.numbers for r in with_dead_letters(of_topics(engine.status()), found.values())}
    assert of_topic["kafka", shop.prefix + "purchases"]["dead_letters"] == 1
    assert of_topic["kafka", shop.prefix + "purchases"]["dead_letter_share"] == 0.1
    assert recent(engine, pipeline, {**engine.status(), "relations": []}, shop.kafka) == [], "where no letter is kept"
    path = next(shop.settings.sql_dir.rglob("dead_letters.sql"))
    path.write_text(path.read_text().replace("'purchases' AS topic", "'bought' AS topic"))
    left = recent(engine, Pipeline.of(shop.settings), engine.status(), shop.kafka)
    assert [r.letters for r in left if r.topic.endswith("purchases")] == [0], (
        "another label is deployed than the file has"
    )
    with pytest.raises(SourceError):
        recent(engine, pipeline, engine.status(), "127.0.0.1:1")


@pytest.mark.parametrize(
    ("header", "share"), [("", 0.01), ("-- dead letters: 5 %\n", 0.05), ("-- Dead letters: 0.5%\n", 0.005)]
)
def test_a_source_may_say_which_share_is_no_trouble(header: str, share: float, tmp_path: Path) -> None:
    sql_copy(tmp_path, lambda name, text: header + text if name == "purchases_raw" else text)
    assert share_wanted(Pipeline.load(tmp_path)["purchases_raw"]) == share


def test_the_check_is_red_while_too_many_come(
    shop: Shop, engine: StreamEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Platform, "settings", lambda self: shop.settings)
    monkeypatch.setattr(Platform, "engine", lambda self, timeout: nullcontext(engine))
    monkeypatch.setattr(definitions, "WHILE_THEY_COME", 10**9)
    watcher, cursor = definitions.watcher(Pipeline.of(shop.settings)), None
    for told in (["purchases_raw", "user_activity_raw"], []):
        result = ticked(watcher, cursor)
        found = evaluations(result, "dead_letters")
        assert sorted(found) == told
        assert all(not e.passed and "not a JSON object" in str(e.metadata["reasons"].value) for e in found.values())
        cursor = result.cursor


def test_pages_hold_every_letter_once(engine: StreamEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recs_platform.dead_letters.PAGE", 1)
    pages = list(letters(engine, Choice()))
    assert {len(page) for page in pages} == {1}
    assert len({page[0].id for page in pages}) == len(BAD) + 1


def test_what_is_fixed_is_sent_and_taken_in_once(shop: Shop, engine: StreamEngine) -> None:
    fix = Fix('if (.user_id | type) == "string" then .user_id |= (ltrimstr("u") | tonumber) else . end')
    dry = resend(shop.settings, engine, Choice(), fix, dry_run=True)
    assert (dry.sent, users(engine)) == (2, [])

    report = resend(shop.settings, engine, Choice(), fix)
    assert report.sent == 2
    assert report.unfit == {
        "event_type missing": 1,
        "timestamp in the future": 1,
        'the fix fails: Cannot index string with string ("user_id")': 1,
        'the fix fails: Cannot index array with string ("user_id")': 1,
        "the fix fails: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte": 1,
    }
    eventually(lambda: users(engine) == [7, 8])

    again = resend(shop.settings, engine, Choice(), fix)
    assert (again.sent, again.already) == (0, 2)
    assert users(engine) == [7, 8]


def test_what_only_came_too_early_is_sent_as_it_is(
    shop: Shop, engine: StreamEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(Judge):
        """Three days have passed."""

        def reasons(self, payloads: Any) -> list[str | None]:
            monkeypatch.setattr("recs_platform.judging.datetime", _Later)
            return super().reasons(payloads)

    class _Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> _Later:
            return super().now(tz) + timedelta(days=3)

    monkeypatch.setattr(resending, "Judge", Later)
    report = resend(shop.settings, engine, Choice("user_activity", "timestamp in the future"))
    assert (report.sent, report.unfit.total()) == (1, 0)


def test_a_limit_ends_it(shop: Shop, engine: StreamEngine) -> None:
    fix = Fix('.user_id = 5 | .event_type = "page_view"')
    choice = Choice(reason="user_id missing or not an integer")
    assert resend(shop.settings, engine, choice, fix, limit=1).sent == 1
    assert resend(shop.settings, engine, choice, fix, limit=5).sent == 1
    eventually(lambda: users(engine) == [5, 5])


@pytest.mark.parametrize("moment", ["claimed", "queued", "delivered"])
def test_it_dies_anywhere_and_the_next_sends_each_once(
    shop: Shop, engine: StreamEngine, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    class Died(RuntimeError):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Died

    fix, choice = Fix(".user_id = 5"), Choice(reason="user_id missing or not an integer")
    place, name = {
        "claimed": (EventProducer, "send_raw"), "queued": (EventProducer, "flush"), "delivered": (resending, "_mark"),
    }[moment]  # fmt: skip
    with monkeypatch.context() as broken:
        broken.setattr(place, name, die)
        with pytest.raises(Died):
            resend(shop.settings, engine, choice, fix)
    report = resend(shop.settings, engine, choice, fix)
    assert report.settled == (1 if moment == "delivered" else 0), "it had come to the first partition's letter"
    assert report.sent + report.settled == 2
    eventually(lambda: users(engine) == [5, 5])
    assert resend(shop.settings, engine, choice, fix).already == 2


def test_two_at_once_are_kept_apart(shop: Shop, engine: StreamEngine) -> None:
    with resending._alone(shop.postgres), pytest.raises(EngineError, match="somebody else sends dead letters back"):
        resend(shop.settings, engine, Choice())


def test_nothing_is_kept_in_postgresql_by_a_dry_run(shop: Shop, engine: StreamEngine) -> None:
    resend(shop.settings, engine, Choice(), dry_run=True)
    with psycopg.connect(shop.postgres) as connection:
        assert connection.execute("SELECT to_regclass('recs.resent')").fetchone() == (None,)


@pytest.mark.parametrize(
    ("program", "payload", "result"),
    [
        (".a", b'{"a": {"b": "\xc3\xa9"}}', '{"b":"é"}'.encode()),
        ('{text: .}', b"plain", b'{"text":"plain"}'),
        ("length | {a: .}", b"[" * 2_000, b'{"a":2000}'),
        ('split("|") | {a: .[0]}', b"x|y", b'{"a":"x"}'),
    ],
)  # fmt: skip
def test_a_fix(program: str, payload: bytes, result: bytes) -> None:
    assert Fix(program)(payload) == result


@pytest.mark.parametrize(
    ("program", "payload", "message"),
    [
        (".[]", b"[1, 2]", "it gives 2 values"), ("empty", b"1", "it gives 0 values"), (".a", b'"text"', "Cannot index"),
        (".", b"\xff", "utf-8"),
        ("fromjson", json.dumps("[" * 3_000 + "]" * 3_000).encode(), "nested too deeply"),
    ],
)  # fmt: skip
def test_a_fix_that_fails(program: str, payload: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fix(program)(payload)


def test_a_fix_that_is_no_program() -> None:
    with pytest.raises(ValueError, match="the fix is no jq program"):
        Fix(".a |")


def test_labels_are_those_of_the_sql() -> None:
    found = origins(Pipeline.load(default_sql_dir()))
    assert {label: origin.topic for label, origin in found.items()} == {
        "user_activity": "user_activity",
        "purchases": "purchases",
    }


def test_a_dead_letters_file_that_cannot_be_understood(tmp_path: Path) -> None:
    sql_copy(tmp_path, lambda _, text: text.replace("'purchases' AS topic", "LOWER('x') AS topic"))
    with pytest.raises(PipelineError, match="each SELECT names its topic in a literal"):
        origins(Pipeline.load(tmp_path))


def test_kafka_that_is_away(shop: Shop, engine: StreamEngine) -> None:
    with pytest.raises(SourceError, match="topic nowhere"):
        resending._headers("127.0.0.1:1", "nowhere", {})


def test_the_command(engine: StreamEngine, environment: None) -> None:
    run = CliRunner().invoke
    listed = run(main, ["dead-letters"]).output
    assert "user_id missing or not an integer" in listed
    found = json.loads(run(main, ["dead-letters", "--topic", "purchases", "--json"]).output)
    assert [(g["reason"], g["count"], g["sample"]) for g in found] == [("not a JSON object", 1, "[]")]
    assert "No dead letters." in run(main, ["dead-letters", "--reason", "none such"]).output
    misplaced = run(main, ["dead-letters", "--topic", "purchases", "replay", "--dry-run"])
    assert (misplaced.exit_code, "options stand after the command" in misplaced.output) == (2, True)
    done = run(
        main, ["dead-letters", "replay", "--fix", ".user_id = 5", "--reason", "user_id missing or not an integer"]
    )
    assert "2 sent" in done.output
    refused = run(main, ["dead-letters", "replay", "--fix", ".a |"])
    assert (refused.exit_code, "no jq program" in refused.output) == (2, True)


def test_the_job_sends_each_once_and_says_how_many(engine: StreamEngine, environment: None) -> None:
    first, again = (
        replayed(fix=".user_id = 5", reason="user_id missing or not an integer"),
        replayed(fix=".user_id = 5"),
    )
    assert (first["sent"].value, first["sent before"].value, first["of no use"].value) == (2, 0, 0)
    assert (again["sent"].value, again["sent before"].value, again["of no use"].value) == (0, 2, 5)
    assert "- 1 timestamp in the future" in str(again["why"].value)
    eventually(lambda: users(engine) == [5, 5])
    with pytest.raises(dg.Failure, match="no jq program"):
        replayed(fix=".a |")


def replayed(**config: object) -> Mapping[str, dg.MetadataValue[Any]]:
    """What a run of the job tells of itself."""
    run_config = {"ops": {"replay": {"config": config}}}
    result = defs().resolve_job_def("replay_dead_letters").execute_in_process(run_config=run_config)
    [event] = [event for event in result.all_events if event.is_successful_output]
    return event.step_output_data.metadata


def test_a_payload_is_shown_without_harm_to_a_terminal() -> None:
    assert shown(b"\x1b[31mred\n\xff") == "\\x1b[31mred\\n\\xff"
    assert shown(b"x" * 200).endswith("x …")
    assert shown(None) == "(tombstone)"


def test_a_report_in_words() -> None:
    report = Report(sent=1200, already=3, settled=2)
    report.unfit["not a JSON object"] = 4
    assert report.lines() == [
        "1,200 sent",
        "3 were sent before, and are left alone",
        "2 of these a run that was cut short had sent",
        "4 still of no use: not a JSON object",
    ]
