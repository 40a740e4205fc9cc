"""The HTTP API over a real Valkey: what a page gets, what is refused, and what a monitor reads off it."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from recs_platform.awaiting import wait_until
from recs_platform.errors import SettingsError
from recs_platform.health import Finding, State
from recs_platform.last_files import KEPT
from recs_platform.monitor import AT_MOST_EVERY, Report, Watch
from recs_platform.readings import Reading
from recs_platform.serving.api import Api, checked_host
from recs_platform.settings import Settings
from recs_platform.stack.process import running
from recs_platform.stack.service import free_port
from recs_platform.stack.valkey import valkey
from recs_platform_tests.filled_redis import Shop
from recs_platform_tests.sql_copies import sql_copy

RUNNING = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


class Seen(Watch):
    """A watch that has looked already."""

    def __init__(self, *findings: Finding, readings: tuple[Reading, ...] = ()) -> None:
        super().__init__()
        self.seen = Report(1_000.0, readings, findings)

    def report(self) -> Report:
        return self.seen


FRESH = Finding(("trending_products",), State.FRESH, 900.0, "all that was sent is taken in", blame=("kafka", "clicks"))
TOPIC = ("kafka", "user_activity")


@pytest.fixture
def shop(redis_url: str) -> Iterator[Shop]:
    shop = Shop(redis_url)
    shop.stock(*(f"p{i}" for i in range(12)))
    shop.list_for(123, "p3", "p7")
    shop.trend(RUNNING, {f"p{i}": 100 - i for i in range(12)})
    shop.trend(RUNNING - timedelta(hours=1), {"p9": 5})
    shop.trend(RUNNING, {"p2": 7}, "25-34/DE")
    shop.bought("a/b", {"p1": 4})
    yield shop
    shop.redis.close()


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path, redis_url=redis_url)


@pytest.fixture
def client(shop: Shop, settings: Settings) -> Iterator[TestClient]:
    with TestClient(Api(settings, Seen(FRESH)).application()) as client:
        yield client


# What a page asks


def test_a_shopper_is_recommended_products(client: TestClient) -> None:
    answer = client.get("/recommendations/123", params={"limit": 2})
    assert (answer.status_code, answer.json()) == (200, {"user_id": 123, "recommended_products": ["p3", "p7"]})
    assert answer.headers["content-type"] == "application/json"


def test_with_details_a_page_needs_no_second_question(client: TestClient) -> None:
    found = client.get("/recommendations/123", params={"limit": 1, "details": "true"}).json()["products"]
    assert found == [
        {"product_id": "p3", "name": "[p3]", "category": None, "price": 2.5, "image_url": None, "in_stock": True}
    ]


def test_what_trends_now_in_another_hour_and_in_a_segment(client: TestClient) -> None:
    def trending(**asked: str) -> list[Any]:
        return [
            (row["product_id"], row["view_count"]) for row in client.get("/trending", params=asked).json()["products"]
        ]

    assert trending(limit="2") == [("p0", 100), ("p1", 99)]
    assert trending(window=(RUNNING - timedelta(minutes=1)).isoformat()) == [("p9", 5)]
    assert trending(segment="25-34/DE") == [("p2", 7)]


def test_a_product_id_may_hold_a_slash(client: TestClient) -> None:
    found = client.get("/also-bought/a/b", params={"limit": 1}).json()
    assert found == {"product_id": "a/b", "products": [{"product_id": "p1", "shoppers": 4}]}


def test_products_are_given_in_the_order_asked_for(client: TestClient) -> None:
    found = client.get("/products", params={"id": ["p5", "unknown", "p1"]}).json()["products"]
    assert [row["product_id"] for row in found] == ["p5", "p1"]


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/recommendations/abc", "'abc' is no shopper id"),
        ("/recommendations/-1", "'-1' is no shopper id"),
        ("/recommendations/1%27%20OR%201", "is no shopper id"),
        ("/recommendations/%D9%A1", "is no shopper id"),
        ("/recommendations/1?limit=0", "0 is no limit"),
        ("/recommendations/1?limit=1e9", "limit='1e9'"),
        ("/recommendations/1?limt=3", "no such parameter: limt; there are limit, details"),
        ("/recommendations/1?details=yes", "details='yes': true or false is wanted"),
        ("/trending?window=soon", "'soon' is no window"),
        ("/trending?segment=DE", "'DE' is no segment"),
        ("/products?id=", "'' is no product id"),
        ("/products?" + "&".join(f"id={n}" for n in range(1001)), "1001 products asked for at once"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_by_name(client: TestClient, path: str, named: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 400
    assert named in answer.json()["error"]


def test_an_id_as_long_as_a_book_is_refused_shortly(client: TestClient) -> None:
    answer = client.get(f"/recommendations/{'9' * 30_000}")
    assert answer.status_code == 400
    assert len(answer.content) < 1_000


def test_what_is_not_there_and_what_is_not_asked_so_is_said_in_json(client: TestClient) -> None:
    assert (client.get("/recommendation/1").status_code, client.get("/nothing").json()) == (404, {"error": "Not Found"})
    assert client.post("/trending").json() == {"error": "Method Not Allowed"}


def test_the_last_good_answer_is_given_while_nothing_is_served(client: TestClient, shop: Shop) -> None:
    first = client.get("/recommendations/123").json()
    shop.redis.flushall()
    assert client.get("/recommendations/123").json() == first


@pytest.mark.parametrize(
    ("before", "known"), [("false", ["[p1]"]), ("true", ["[p3]", "[p1]"])], ids=["lists alone", "with details"]
)
def test_a_list_that_is_at_hand_is_given_when_redis_is_gone_with_the_details_that_are_known(
    before: str, known: list[str], tmp_path: Path
) -> None:
    service = valkey(tmp_path / "valkey", free_port())
    settings = Settings(state_dir=tmp_path, redis_url=service.url)
    with TestClient(Api(settings, Seen(FRESH)).application()) as client:
        with running(service, tmp_path):
            small_shop(service.url)
            assert listed(client, 123, before)[0] == ["p3", "p1"]
            assert listed(client, 456, "false")[0] == ["p4", "p3"]
        assert listed(client, 123, "false") == (["p3", "p1"], [])
        assert listed(client, 123, "true") == (["p3", "p1"], known)
        assert listed(client, 456, "true") == (["p4", "p3"], [])
        assert listed(client, 999, "false") == (["p1", "p2"], [])
        assert listed(client, 999, "true") == (["p1", "p2"], ["[p1]", "[p2]"])


def small_shop(url: str) -> None:
    shop = Shop(url)
    shop.stock("p1", "p2", "p3", "p4")
    shop.trend(RUNNING, {"p1": 2, "p2": 1})
    shop.list_for(123, "p3", "p1")
    shop.list_for(456, "p4", "p3")
    shop.redis.close()


def listed(client: TestClient, user_id: int, details: str) -> tuple[list[str], list[str]]:
    """The list, and the names of its products."""
    answer = client.get(f"/recommendations/{user_id}", params={"limit": 2, "details": details})
    assert answer.status_code == 200, answer.json()
    return answer.json()["recommended_products"], [row["name"] for row in answer.json().get("products", [])]


def test_without_any_answer_the_reason_is_given(settings: Settings) -> None:
    with TestClient(Api(settings, Seen(FRESH)).application()) as client:
        answer = client.get("/also-bought/p1")
    assert answer.status_code == 503
    assert "apply the pipeline to serve it" in answer.json()["error"]


def test_without_a_redis_it_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="RECS_REDIS_URL is not set"):
        Api(Settings(state_dir=tmp_path)).application()


# Who may ask


def test_with_a_token_only_who_has_it_is_answered(shop: Shop, settings: Settings) -> None:
    with TestClient(Api(replace(settings, api_token="s3cret"), Seen(FRESH)).application()) as client:
        assert client.get("/recommendations/123").status_code == 401
        assert client.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/livez").status_code == 200
        assert client.get("/recommendations/123", headers={"Authorization": "Bearer s3cret"}).status_code == 200


def test_beyond_this_machine_nothing_is_served_without_a_token(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, api_host="0.0.0.0")
    with pytest.raises(SettingsError, match="RECS_API_HOST=0.0.0.0: .* set RECS_API_TOKEN too"):
        checked_host(settings)
    assert checked_host(replace(settings, api_token="s3cret")) == "0.0.0.0"
    assert checked_host(replace(settings, api_host="::1")) == "::1"


# What a monitor asks


def test_healthz_is_well_when_all_boxes_are(client: TestClient) -> None:
    assert (client.get("/healthz").status_code, client.get("/healthz").json()) == (
        200,
        {"state": "fresh", "causes": []},
    )


def test_healthz_names_the_box_to_blame_and_not_those_that_suffer(settings: Settings) -> None:
    stalled = Finding(TOPIC, State.STALLED, 940.0, "7 messages wait", "look at Kafka", TOPIC)
    suffers = Finding(("trending_products",), State.STALLED, 940.0, "kafka/user_activity is stalled", blame=TOPIC)
    with TestClient(Api(settings, Seen(stalled, suffers)).application()) as client:
        answer = client.get("/healthz")
    assert answer.status_code == 503
    assert answer.json()["causes"] == [
        {"box": "kafka/user_activity", "state": "stalled", "since": 940.0, "words": "7 messages wait", "next": "look at Kafka"}
    ]  # fmt: skip


def test_prometheus_gets_every_number_in_base_units(settings: Settings) -> None:
    readings = (
        Reading(TOPIC, {"lag_messages": 3, "lag_seconds": 1.5}, {"messages": 40}),
        Reading(("trending_products_sink",), {"freshness_p99_ms": 250.0}),
    )
    stalled = Finding(TOPIC, State.STALLED, 940.0, "3 messages wait", blame=TOPIC)
    with TestClient(Api(settings, Seen(stalled, FRESH, readings=readings)).application()) as client:
        client.get("/recommendations/abc")
        found = samples(client.get("/metrics").text)
    assert found['recs_lag_messages{box="kafka/user_activity"}'] == 3
    assert found['recs_messages_total{box="kafka/user_activity"}'] == 40
    assert found['recs_freshness_p99_seconds{box="trending_products_sink"}'] == 0.25
    assert found['recs_well{box="kafka/user_activity"}'] == 0
    assert found['recs_state{box="trending_products",state="fresh"}'] == 1
    assert found['recs_state_since_seconds{box="kafka/user_activity"}'] == 940
    assert found['recs_api_requests_total{path="/recommendations/{user_id}",status="400"}'] == 1
    assert found['recs_api_request_seconds_count{path="/recommendations/{user_id}"}'] == 1


def test_while_a_file_of_the_pipeline_is_broken_boxes_are_those_of_the_files_before(
    settings: Settings, tmp_path: Path
) -> None:
    sql_dir, looks = sql_copy(tmp_path / "sql"), itertools.count(0.0, AT_MOST_EVERY)  # no answer is kept
    watch = Watch(lambda: replace(settings, state_dir=tmp_path / "state", sql_dir=sql_dir), lambda: next(looks))
    with TestClient(Api(settings, watch).application()) as client:
        client.get("/recommendations/abc")
        before = samples(client.get("/metrics").text)
        assert (before["recs_look_failed{}"], before["recs_files_wrong{}"]) == (0, 0)
        (sql_dir / "products_sink.sql").write_text("CREATE SINK")
        found = samples(client.get("/metrics").text)
        (tmp_path / "state" / KEPT).unlink()
        assert client.get("/healthz").status_code == 503
        nothing = samples(client.get("/metrics").text)
    assert (found["recs_look_failed{}"], found["recs_files_wrong{}"]) == (0, 1)
    assert {name for name in found if name.startswith("recs_well")} == {n for n in before if n.startswith("recs_well")}
    assert nothing["recs_look_failed{}"] == 1, "where none of them is known"
    assert found['recs_api_requests_total{path="/recommendations/{user_id}",status="400"}'] == 1


def samples(text: str) -> dict[str, float]:
    found = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {
        f"{s.name}{{{','.join(f'{k}=' + json.dumps(v) for k, v in sorted(s.labels.items()))}}}": s.value for s in found
    }


# The process


def test_it_serves_and_ends_in_good_order(shop: Shop, settings: Settings, tmp_path: Path) -> None:
    port = free_port()
    environment = {"RECS_REDIS_URL": shop.url, "RECS_API_PORT": str(port), "RECS_STATE_DIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "recs_platform.serving.api"], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert wait_until(lambda: got(port, "/livez") == (200, {"status": "ok"}), 30)
            assert got(port, "/recommendations/123?limit=1") == (200, {"user_id": 123, "recommended_products": ["p3"]})
            status, health = got(port, "/healthz")  # no engine, no PostgreSQL: told, and served all the same
            assert (status, health["state"]) == (503, "broken")
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def got(port: int, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refusal:
        return refusal.code, json.load(refusal)
    except OSError:
        return 0, None
