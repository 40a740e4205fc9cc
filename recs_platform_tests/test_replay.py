"""Replay: a click log sent as if it happened now."""

from __future__ import annotations

import gzip
import json
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from recs_platform.catalog import Product, ensure_catalog, read_catalog, seed
from recs_platform.commands.traffic import replay as replay_command
from recs_platform.errors import SourceError
from recs_platform.pipeline import Pipeline
from recs_platform.replay import Click, Columns, read_clicks, replay, user_id_of
from recs_platform.settings import CDC, DEBEZIUM, FILE, UPSERTS, Settings
from recs_platform.topic_reader import read, spans
from recs_platform.topics import ensure_topics
from recs_platform_tests.shop_floor import own_topics
from recs_platform_tests.test_events import consumed

TEA: dict[str, object] = {
    "product_id": "10", "name": "Tea", "category": "food", "price": None, "description": None, "image_url": None, "in_stock": True,
}  # fmt: skip
ADDED = {**TEA, "product_id": "20", "name": "Item 20", "category": "found"}
TOLD: dict[str, list[tuple[bytes, dict[str, object]]]] = {
    CDC: [],
    UPSERTS: [(b"10", TEA), (b"20", ADDED)],
    DEBEZIUM: [
        (b'{"product_id":"10"}', {"before": None, "after": TEA, "op": "u"}),
        (b'{"product_id":"20"}', {"before": None, "after": ADDED, "op": "u"}),
    ],
}
"""Where the catalog comes from → what its topic is told; of PostgreSQL the engine learns by itself."""
LOG = "SessionId\tItemId\tTime\n{0}\t20\t1592337765.0\n{0}\t10\t1592337718.0\n{1}\t20\t1592337818.0\n"


@pytest.fixture
def settings(kafka_servers: str, postgres_url: str, tmp_path: Path) -> Settings:
    ensure_catalog(postgres_url)
    return Settings(state_dir=tmp_path, kafka_bootstrap_servers=kafka_servers, postgres_url=postgres_url)


@pytest.fixture(params=[CDC, UPSERTS, DEBEZIUM])
def reading(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path, topic_prefix: str) -> Settings:
    """For each of the ways in which the catalog comes to the engine, with topics of its own."""
    sql_dir = own_topics(tmp_path / "sql", topic_prefix, request.param)
    found = replace(settings, catalog=request.param, sql_dir=sql_dir)
    ensure_topics(found.kafka_bootstrap_servers, Pipeline.of(found).topics, 1)
    return found


@pytest.fixture
def users() -> tuple[int, int]:
    """Two user ids no other test uses."""
    first = uuid.uuid4().int >> 66
    return first, first + 1


def write(directory: Path, text: str, name: str = "clicks.tsv") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def sent_events(servers: str, users: tuple[int, int], count: int) -> list[dict[str, object]]:
    keys = {str(user).encode() for user in users}
    found = consumed(servers, "user_activity", lambda messages: sum(m.key() in keys for m in messages) >= count)
    events = [json.loads(message.value() or b"") for message in found if message.key() in keys]
    return sorted(events, key=lambda event: str(event["timestamp"]))


def told(settings: Settings) -> list[tuple[bytes, dict[str, object]]]:
    """Keys and values on the catalog's topic of products, where it has one, in the order they were sent."""
    servers, topics = settings.kafka_bootstrap_servers, Pipeline.of(settings).topics
    of_products = [topic for topic, source in topics.items() if source.name == "product_catalog_changes"]
    found = [m for topic in of_products for m in consumed(servers, topic, lambda messages: len(messages) >= 2)]
    return [(message.key() or b"", json.loads(message.value() or b"")) for message in found]


def test_a_log_becomes_page_views_that_keep_their_distances_and_end_now(
    settings: Settings, users: tuple[int, int], tmp_path: Path
) -> None:
    before = datetime.now(UTC)
    done = replay(write(tmp_path, LOG.format(*users)), settings)
    events = sent_events(settings.kafka_bootstrap_servers, users, 3)
    assert [(e["event_type"], e["user_id"], e["product_id"], e["session_id"]) for e in events] == [
        ("page_view", users[0], "10", str(users[0])),
        ("page_view", users[0], "20", str(users[0])),
        ("page_view", users[1], "20", str(users[1])),
    ]
    times = [datetime.fromisoformat(str(event["timestamp"])) for event in events]
    assert [moment - times[0] for moment in times] == [timedelta(seconds=s) for s in (0, 47, 100)]
    assert before <= times[-1] <= datetime.now(UTC)
    assert (done.events, done.sessions, done.items, done.items_added) == (3, 2, 2, 0)
    assert (done.first, done.last) == (times[0], times[-1])


def test_a_speed_factor_paces_the_sending_and_never_dates_ahead(
    settings: Settings, users: tuple[int, int], tmp_path: Path
) -> None:
    begun = time.monotonic()
    done = replay(write(tmp_path, LOG.format(*users)), settings, speed=200)  # 100 seconds in half a second
    assert 0.5 <= time.monotonic() - begun < 90
    assert timedelta() <= datetime.now(UTC) - done.last < timedelta(seconds=90)
    assert done.last - done.first == timedelta(seconds=100)


@pytest.mark.parametrize("speed", [0, 0.5, -1, float("nan"), float("inf")])
def test_slower_than_it_happened_would_date_events_ahead_and_is_refused(speed: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the speed is 1"):
        replay(write(tmp_path, LOG), Settings(state_dir=tmp_path), speed)


def test_items_the_catalog_lacks_are_added_on_request_and_told_where_it_is_read_from(
    reading: Settings, users: tuple[int, int], tmp_path: Path
) -> None:
    seed(reading.postgres_url, [Product("10", "Tea", "food")], [])
    done = replay(write(tmp_path, LOG.format(*users)), reading, add_missing_items=True, category="found")
    assert done.items_added == 1
    assert read_catalog(reading.postgres_url) == [Product("10", "Tea", "food"), Product("20", "Item 20", "found")]
    assert told(reading) == TOLD[reading.catalog]


def test_items_are_not_added_to_a_catalog_that_is_only_read_and_nothing_is_sent(
    settings: Settings, users: tuple[int, int], tmp_path: Path
) -> None:
    from_files = replace(settings, catalog=FILE, catalog_dir=tmp_path)
    with pytest.raises(SourceError, match=f"put the rows into those in {tmp_path}"):
        replay(write(tmp_path, LOG.format(*users)), from_files, add_missing_items=True)
    assert read_catalog(settings.postgres_url) == []
    servers, keys = settings.kafka_bootstrap_servers, {str(user).encode() for user in users}
    assert not [m for m in read(servers, "user_activity", spans(servers, "user_activity")) if m.key() in keys]


def test_the_command_replays_and_sums_up(settings: Settings, users: tuple[int, int], tmp_path: Path) -> None:
    environment = {
        "RECS_STATE_DIR": str(tmp_path),
        "RECS_KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "RECS_POSTGRES_URL": settings.postgres_url,
    }
    file = str(write(tmp_path, LOG.format(*users)))
    result = CliRunner().invoke(replay_command, [file, "--speed", "max", "--add-missing-items"], env=environment)
    assert result.exit_code == 0, result.output
    assert "3 page views of 2 sessions and 2 items, 2 items added to the catalog" in result.output
    wrong = CliRunner().invoke(replay_command, [file, "--item", "sku"], env=environment)
    assert wrong.exit_code == 1
    assert "no column 'sku'; it has SessionId, ItemId, Time" in wrong.output


@pytest.mark.parametrize(
    "text",
    [
        "session_id,item_id,timestamp\na,1,1592337718\n",
        "timestamp;user_id;product_id;price\n1592337718000;a;1;9,90\n",
        "Event Time|Visitor ID|Item ID\n2020-06-16T20:01:58Z|a|1\n",
        "\ufeffsession,product,date\na,1,2020-06-16 20:01:58\n\n",
        'ts,visitorid,"item"\n1592337718000000,a,1\n',
    ],
)
def test_columns_are_found_by_their_usual_names_and_times_by_their_size(text: str, tmp_path: Path) -> None:
    assert read_clicks(write(tmp_path, text)) == [Click(1592337718.0, "a", "1")]


def test_columns_can_be_named_and_files_packed(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_bytes(gzip.compress(b"who,what,when,item\na,1,1592337718,x\n"))
    assert read_clicks(path, Columns("who", "what", "when")) == [Click(1592337718.0, "a", "1")]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("SessionId,Time\n1,1\n", ": no column looks like the item; it has SessionId, Time: name it with --item"),
        ("SessionId,ItemId,Time\n1,2,soon\n", ":2: Time: 'soon' is not a time; Unix seconds"),
        ("SessionId,ItemId,Time\n1,2,3\n1,2,nan\n", ":3: Time: 'nan' is not a time"),
        ("SessionId,ItemId,Time\n1,2,3\n1,2,-3\n", ":3: Time: '-3' is not a time"),
        ("SessionId,ItemId,Time\n1,2,3\n,2,3\n", ":3: the session is empty"),
        ("SessionId,ItemId,Time\n1,2,3\n1,,3\n", ":3: the item is empty"),
        ("SessionId,ItemId,Time\n1,2\n", ":2: 2 fields where the header names 3"),
        ("SessionId,ItemId,Time\n", ": holds no click, only a header"),
        ("", ": empty; the first line must name the columns"),
    ],
)
def test_what_is_wrong_with_a_log_is_named_with_its_line(text: str, complaint: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SourceError) as caught:
        read_clicks(path)
    assert str(caught.value).startswith(f"{path}{complaint}")


def test_a_session_id_is_a_user_id_or_a_stable_hash_that_fits_one() -> None:
    assert user_id_of("10036") == 10036
    assert user_id_of("abc") == user_id_of("abc") != user_id_of("abd")
    assert all(0 <= user_id_of(text) < 2**63 for text in ("abc", "-5", "1.5", "9" * 30, "٣"))


def test_clicks_at_the_same_time_keep_the_order_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "session,item,time\na,2,5\na,1,5\na,3,4\n")
    assert [click.item for click in read_clicks(path)] == ["3", "2", "1"]
