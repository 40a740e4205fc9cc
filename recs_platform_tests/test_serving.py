"""What the shop's pages are answered, from a real Valkey filled as the sinks fill it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from click.testing import CliRunner

import recs_platform
from recs_platform.commands import serving as commands
from recs_platform.errors import NotServed, SettingsError, StoreUnavailable
from recs_platform.redis_address import RedisAddress
from recs_platform.serving import keys, store
from recs_platform.serving.cluster import nodes_of
from recs_platform.serving.questions import FLIPS
from recs_platform.serving.store import AsyncRecommendationStore, RecommendationStore
from recs_platform.stack.process import running
from recs_platform.stack.service import free_port
from recs_platform.stack.valkey import valkey
from recs_platform_tests.filled_redis import Shop, emptied

NOW = datetime(2024, 3, 21, 10, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
SEGMENT = "25-34/DE"


@pytest.fixture(params=["one server", "a cluster"])
def redis_url(request: pytest.FixtureRequest) -> str:
    """Empty. What is asked of one server is asked of a cluster, too."""
    return emptied(request.getfixturevalue("valkey_url" if request.param == "one server" else "redis_cluster_url"))


def own_client(url: str, **options: Any) -> Any:
    """What a shop's own code would have."""
    address = RedisAddress.parse(url)
    return (redis.RedisCluster if address.is_cluster else redis.Redis).from_url(address.urls[0], **options)


def own_async_client(url: str) -> Any:
    address = RedisAddress.parse(url)
    return (redis.asyncio.RedisCluster if address.is_cluster else redis.asyncio.Redis).from_url(address.urls[0])


@pytest.fixture
def shop(redis_url: str) -> Iterator[Shop]:
    """Thirty products in stock; p0 to p9 trend in the running hour, p5 to p14 in the one before."""
    shop = Shop(redis_url)
    shop.stock(*(f"p{i}" for i in range(30)))
    shop.trend(RUNNING, {f"p{i}": 100 - i for i in range(10)})
    shop.trend(RUNNING - HOUR, {f"p{i}": 50 - i for i in range(5, 15)})
    shop.serve("user_recommendations", {}, marked=True)
    shop.serve("also_bought", {}, marked=True)
    yield shop
    shop.redis.close()


RUNNING = NOW.replace(minute=0)


@pytest.fixture
def recs(redis_url: str) -> Iterator[RecommendationStore]:
    with RecommendationStore(redis_url, clock=lambda: NOW) as recs:
        yield recs


def numbers(*ranges: range) -> list[str]:
    return [f"p{i}" for numbers in ranges for i in numbers]


# A shopper's list


def test_a_list_is_given_in_its_order(shop: Shop, recs: RecommendationStore) -> None:
    shop.list_for(123, "p20", "p3", "p7")
    assert recs.get_user_recommendations(123, limit=3) == ["p20", "p3", "p7"]
    assert recs.get_user_recommendations("123", limit=2) == ["p20", "p3"]


def test_sold_out_and_deleted_products_make_room_for_what_trends(shop: Shop, recs: RecommendationStore) -> None:
    shop.list_for(123, "p20", "sold_out", "deleted", "p1")
    shop.stock("sold_out", in_stock=False)
    assert recs.get_user_recommendations(123, limit=5) == ["p20", "p1", "p0", "p2", "p3"]


def test_a_product_is_left_out_from_the_moment_it_is_sold_out(shop: Shop, recs: RecommendationStore) -> None:
    shop.list_for(123, "p20", "p21")
    assert recs.get_user_recommendations(123, limit=1) == ["p20"]
    shop.stock("p20", in_stock=False)
    assert recs.get_user_recommendations(123, limit=1) == ["p21"]


def test_a_new_shopper_gets_what_trends_then_earlier_windows_then_the_catalog(
    shop: Shop, recs: RecommendationStore
) -> None:
    shop.trend(RUNNING - 40 * HOUR, {"p25": 3})
    found = recs.get_user_recommendations(999)
    assert found[:16] == [*numbers(range(15)), "p25"]
    assert len(set(found)) == 20


def test_a_list_is_short_only_when_the_shop_is(shop: Shop, recs: RecommendationStore) -> None:
    assert sorted(recs.get_user_recommendations(999, limit=1000)) == sorted(numbers(range(30)))


def test_the_catalog_is_gone_through_while_most_of_it_is_sold_out(shop: Shop, recs: RecommendationStore) -> None:
    shop.remove("trending_products", "v1")
    shop.remove("products", "v1")
    shop.stock(*(f"q{i}" for i in range(3_000)), in_stock=False)
    shop.stock(*(f"p{i}" for i in range(600)))
    found = recs.get_user_recommendations(999, limit=600)
    assert sorted(found) == sorted(numbers(range(600)))


def test_many_sold_out_products_are_gone_past(shop: Shop, recs: RecommendationStore) -> None:
    shop.stock(*numbers(range(14)), in_stock=False)
    shop.list_for(123, *numbers(range(20)))
    assert recs.get_user_recommendations(123, limit=6) == numbers(range(14, 20))


def test_a_shop_nobody_has_visited_recommends_its_catalog(shop: Shop, recs: RecommendationStore) -> None:
    shop.remove("trending_products", "v1")
    assert len(recs.get_user_recommendations(999, limit=20)) == 20


@pytest.mark.parametrize("limit", [0, -1, 1001, True, "5", 2.0, None])
def test_what_is_no_limit_is_named(recs: RecommendationStore, limit: int) -> None:
    with pytest.raises(ValueError, match="is no limit"):
        recs.get_user_recommendations(123, limit=limit)


@pytest.mark.parametrize("user_id", [True, -1, 1.5, "abc"])
def test_what_is_no_shopper_id_is_named(recs: RecommendationStore, user_id: int) -> None:
    with pytest.raises(ValueError, match="is no shopper id"):
        recs.get_user_recommendations(user_id)


# Trending


def test_the_running_window_is_the_default(shop: Shop, recs: RecommendationStore) -> None:
    assert recs.get_trending_products() == [(f"p{i}", 100 - i) for i in range(10)]
    assert recs.get_trending_products(limit=1)[0].view_count == 100


@pytest.mark.parametrize(
    "window", [RUNNING - HOUR, "2024-03-21T09:00:00", "2024-03-21T09:59:59Z", "2024-03-21T11:30:00+02:00"]
)
def test_a_window_is_named_by_any_instant_in_it(shop: Shop, recs: RecommendationStore, window: datetime | str) -> None:
    assert recs.get_trending_products(window, limit=2) == [("p5", 45), ("p6", 44)]


def test_a_window_that_is_not_there_is_empty(shop: Shop, recs: RecommendationStore) -> None:
    assert recs.get_trending_products("2020-01-01T00:00:00") == []


def test_just_after_the_hour_the_newest_window_stands_in(shop: Shop, redis_url: str) -> None:
    with RecommendationStore(redis_url, clock=lambda: NOW + 20 * HOUR) as later:
        assert later.get_trending_products(limit=1) == [("p0", 100)]


def test_the_next_of_the_same_window_take_the_place_of_the_sold_out(shop: Shop, recs: RecommendationStore) -> None:
    shop.trend(RUNNING, {f"p{i}": 100 - i for i in range(30)})
    shop.stock("p0", "p3", in_stock=False)
    assert recs.get_trending_products() == [(f"p{i}", 100 - i) for i in (1, 2, *range(4, 12))]
    assert recs.get_trending_products(limit=2) == [("p1", 99), ("p2", 98)]
    assert recs.get_trending_products(available_only=False) == [(f"p{i}", 100 - i) for i in range(10)]


def test_trending_is_short_when_what_was_viewed_is_sold_out(shop: Shop, recs: RecommendationStore) -> None:
    shop.stock("p0", "p1", in_stock=False)
    assert recs.get_trending_products() == [(f"p{i}", 100 - i) for i in range(2, 10)]


def test_a_document_without_candidates_shows_its_products(shop: Shop, recs: RecommendationStore) -> None:
    rows = [{"product_id": "p1", "view_count": 2}, {"product_id": "gone", "view_count": 1}]
    shop.serve("trending_products", {keys.window_key(RUNNING): {"products": rows}})
    assert recs.get_trending_products() == [("p1", 2)]


def test_a_segment_has_its_own_windows(shop: Shop, recs: RecommendationStore) -> None:
    shop.trend(RUNNING, {"p7": 2}, SEGMENT)
    assert recs.get_trending_products(segment=SEGMENT) == [("p7", 2)]
    assert recs.get_trending_products(segment="65+/FR") == []


# Also bought


def test_what_others_bought_comes_first_and_is_filled_up_with_what_trends(
    shop: Shop, recs: RecommendationStore
) -> None:
    shop.bought("p0", {"p20": 5, "sold_out": 4, "p21": 3})
    assert recs.get_also_bought("p0", limit=4) == [("p20", 5), ("p21", 3), ("p1", 0), ("p2", 0)]


def test_a_product_nobody_bought_has_only_fillings_and_never_itself(shop: Shop, recs: RecommendationStore) -> None:
    assert recs.get_also_bought("p1", limit=2) == [("p0", 0), ("p2", 0)]


def test_products_come_with_what_a_page_shows(shop: Shop, recs: RecommendationStore) -> None:
    found = recs.get_products(["p2", "unknown", "p1"])
    assert [(p.product_id, p.name, p.price, p.in_stock) for p in found] == [
        ("p2", "[p2]", 2.5, True),
        ("p1", "[p1]", 2.5, True),
    ]
    assert recs.get_products([]) == []


# Versions and pointers


def test_a_flipped_pointer_is_followed_at_once(shop: Shop, recs: RecommendationStore) -> None:
    shop.list_for(123, "p20")
    assert recs.get_user_recommendations(123, limit=1) == ["p20"]
    shop.serve("user_recommendations", {"123": {"recommended_products": ["p21"]}}, version="v2")
    shop.remove("user_recommendations", "v1")
    assert recs.get_user_recommendations(123, limit=1) == ["p21"]


def test_while_versions_flip_and_vanish_no_reader_sees_a_gap_or_a_mixture(
    shop: Shop, recs: RecommendationStore
) -> None:
    lists = {"a": numbers(range(15)), "b": numbers(range(15, 30))}
    stop = threading.Event()

    def rebuild() -> None:
        for turn in range(10**6):
            if stop.is_set():
                return
            new, old = (f"{'ab'[(turn + i) % 2]}{turn + i}" for i in (1, 0))
            shop.serve("user_recommendations", {"123": {"recommended_products": lists[new[0]]}}, version=new)
            shop.remove("user_recommendations", old)

    shop.serve("user_recommendations", {"123": {"recommended_products": lists["a"]}}, version="a0")
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(rebuild)
        try:
            answers = [_or_none(lambda: recs.get_user_recommendations(123, limit=15)) for _ in range(500)]
        finally:
            stop.set()
        writer.result()
    served = [answer for answer in answers if answer is not None]
    assert all(answer in lists.values() for answer in served)
    assert len(served) >= 490, f"only pointers that flip {FLIPS} times within one call may be refused"


def _or_none(ask: Callable[[], list[str]]) -> list[str] | None:
    try:
        return ask()
    except NotServed:
        return None


@pytest.mark.parametrize("name", ["user_recommendations", "products"])
def test_without_a_pointer_nothing_is_served(shop: Shop, recs: RecommendationStore, name: str) -> None:
    shop.list_for(123, "p20")
    shop.redis.delete(keys.pointer(name))
    with pytest.raises(NotServed, match=f"recs:{name} is not set"):
        recs.get_user_recommendations(123)


@pytest.mark.parametrize("name", ["user_recommendations", "products"])
def test_a_pointer_to_a_version_that_is_gone_is_an_error_not_an_empty_list(
    shop: Shop, recs: RecommendationStore, name: str
) -> None:
    shop.list_for(123, "p20")
    shop.redis.set(keys.pointer(name), "gone")
    with pytest.raises(NotServed, match=f"recs:{name} names version gone"):
        recs.get_user_recommendations(123)


@pytest.mark.parametrize("window", [None, RUNNING])
def test_trending_with_a_stale_pointer_is_an_error(
    shop: Shop, recs: RecommendationStore, window: datetime | None
) -> None:
    shop.redis.set(keys.pointer("trending_products"), "gone")
    with pytest.raises(NotServed, match="gone"):
        recs.get_trending_products(window)


def test_without_trending_lists_are_still_served(shop: Shop, recs: RecommendationStore) -> None:
    shop.list_for(123, "p20")
    shop.redis.delete(keys.pointer("trending_products"))
    assert recs.get_user_recommendations(123, limit=1) == ["p20"]
    with pytest.raises(NotServed):
        recs.get_trending_products()


def test_a_version_without_rows_is_empty_not_stale_when_it_is_marked(shop: Shop, recs: RecommendationStore) -> None:
    shop.serve("trending_products", {}, version="new", marked=True)
    assert recs.get_trending_products() == []


@pytest.mark.parametrize("raw", ["not json", "[]", '{"recommended_products": 5}', "{}"])
def test_a_document_that_is_malformed_is_named(shop: Shop, recs: RecommendationStore, raw: str) -> None:
    shop.list_for(123)
    shop.redis.set(keys.document("user_recommendations", "v1", "123"), raw)
    with pytest.raises(NotServed, match="user_recommendations for '123' is not what the sink writes"):
        recs.get_user_recommendations(123)


# A store that does not answer


@pytest.fixture
def url_of_nobody() -> str:
    return f"redis://shop:hunter2@127.0.0.1:{free_port()}/0"


def test_an_unreachable_redis_is_named_without_its_password(url_of_nobody: str) -> None:
    with RecommendationStore(url_of_nobody) as recs, pytest.raises(StoreUnavailable, match="127.0.0.1") as caught:
        recs.get_user_recommendations(123)
    assert "hunter2" not in str(caught.value)


def test_last_good_raises_too_when_there_is_no_answer_yet(url_of_nobody: str) -> None:
    with RecommendationStore(url_of_nobody, on_error="last_good") as recs, pytest.raises(StoreUnavailable):
        recs.get_user_recommendations(123)


def test_the_last_good_answer_outlives_redis_and_redis_is_found_again(tmp_path: Path) -> None:
    service = valkey(tmp_path / "valkey", free_port())
    with (
        RecommendationStore(service.url, on_error="last_good", clock=lambda: NOW) as recs,
        RecommendationStore(service.url) as strict,
    ):
        with running(service, tmp_path):
            _small_shop(service.url)
            assert recs.get_user_recommendations(123, limit=2) == ["p2", "p1"]
            assert strict.get_user_recommendations(123, limit=1) == ["p2"]
        assert recs.get_user_recommendations(123, limit=2) == ["p2", "p1"]
        assert recs.get_user_recommendations(999, limit=2) == ["p0", "p1"], (
            "for a shopper not asked for: what trended last"
        )
        with pytest.raises(StoreUnavailable):
            strict.get_user_recommendations(123, limit=1)
        with running(service, tmp_path):
            _small_shop(service.url)
            Shop(service.url).list_for(123, "p0")
            assert recs.get_user_recommendations(123, limit=2) == ["p0", "p1"]
            assert strict.get_user_recommendations(123, limit=1) == ["p0"]


@pytest.mark.parametrize("limit", [1, 3])
def test_where_nothing_trends_a_stranger_is_shown_the_catalog_when_redis_is_gone(
    redis_url: str, limit: int, shop: Shop
) -> None:
    for start in (RUNNING, RUNNING - HOUR):
        shop.trend(start, {})
    shop.list_for(123, "p20")
    with RecommendationStore(redis_url, on_error="last_good", clock=lambda: NOW) as recs:
        assert recs.get_user_recommendations(123, limit=limit)[0] == "p20"
        emptied(redis_url)
        assert set(recs.get_user_recommendations(999, limit=5)) <= set(numbers(range(30)))


def _small_shop(url: str) -> None:
    shop = Shop(url)
    shop.stock("p0", "p1", "p2")
    shop.list_for(123, "p2")
    shop.trend(RUNNING, {"p0": 2, "p1": 1})
    if shop.redis.get("recs:user_recommendations"):
        shop.list_for(123, "p2", "p1")


def test_a_stale_pointer_gives_the_last_good_answer_where_that_was_chosen(shop: Shop, redis_url: str) -> None:
    shop.list_for(123, "p20")
    with RecommendationStore(redis_url, on_error="last_good") as recs:
        recs.get_user_recommendations(123, limit=1).clear()
        shop.redis.delete("recs:user_recommendations")
        assert recs.get_user_recommendations(123, limit=1) == ["p20"]


def test_a_redis_that_hangs_costs_one_timeout_then_milliseconds(shop: Shop, redis_url: str) -> None:
    """A cluster's costs a few: whether its nodes have changed is asked, too."""
    timeout, pause = 0.4, 2.5
    most = 0.95 * pause if redis_url.count(",") else 2 * timeout
    shop.list_for(123, "p20")
    with RecommendationStore(redis_url, on_error="last_good", timeout=timeout) as recs:
        recs.get_user_recommendations(123, limit=1)
        for node in nodes_of(shop.redis):
            node.client_pause(int(1000 * pause))
        assert _seconds(lambda: recs.get_user_recommendations(123, limit=1)) < most
        assert _seconds(lambda: recs.get_user_recommendations(123, limit=1)) < timeout
    assert all(node.ping() for node in nodes_of(shop.redis)), "awaited: the pause is over"


def _seconds(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def test_memory_of_good_answers_is_bounded(shop: Shop, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "ITEMS_KEPT", 8)  # two answers with one product each, to questions of three words
    with RecommendationStore(redis_url, on_error="last_good", clock=lambda: NOW) as recs:
        first = [recs.get_also_bought(f"p{i}", limit=1) for i in range(3)]
        shop.redis.flushall()
        assert [recs.get_also_bought(f"p{i}", limit=1) for i in (1, 2)] == first[1:]
        with pytest.raises(NotServed):
            recs.get_also_bought("p0", limit=1)


def test_what_is_asked_for_counts_as_kept(shop: Shop, redis_url: str) -> None:
    with RecommendationStore(redis_url, on_error="last_good", clock=lambda: NOW) as recs:
        assert recs.get_products([f"none {j}" for j in range(1_000)]) == []
        assert recs._last_good is not None
        assert recs._last_good._items == 1_001
        recs.get_products(["p0", *(f"none {j}" for j in range(500))])
        assert recs._last_good._items == 1_001 + 503
        recs.get_products(["p0", *("x" * 200 + str(j) for j in range(900))])
        assert recs._last_good._items == 1_001 + 503, "a question as long as a book is not kept"


def test_an_unknown_choice_and_a_bad_url_are_named() -> None:
    with pytest.raises(ValueError, match="on_error='ignore'"):
        RecommendationStore("redis://127.0.0.1", on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="is no Redis URL") as caught:
        RecommendationStore("redis://shop:hunter/2@127.0.0.1")
    assert "hunter" not in str(caught.value)


# Connections of one's own, async, threads, module functions, commands


@pytest.mark.parametrize("decode_responses", [True, False])
def test_a_connection_of_ones_own_is_used_and_left_open(shop: Shop, redis_url: str, *, decode_responses: bool) -> None:
    shop.list_for(123, "p20")
    with own_client(redis_url, decode_responses=decode_responses) as own:
        with RecommendationStore(own) as recs:
            assert recs.get_user_recommendations(123, limit=1) == ["p20"]
            assert len(recs.get_user_recommendations(999, limit=30)) == 30
        assert own.ping()


def test_async_answers_are_the_same(shop: Shop, redis_url: str, recs: RecommendationStore) -> None:
    shop.list_for(123, "p20", "sold_out")
    shop.bought("p0", {"p20": 5})

    async def ask() -> Sequence[object]:
        async with AsyncRecommendationStore(redis_url, clock=lambda: NOW) as apart:
            return await asyncio.gather(
                apart.get_user_recommendations(123),
                apart.get_trending_products(),
                apart.get_also_bought("p0"),
                apart.get_products(["p1"]),
            )

    assert asyncio.run(ask()) == [
        recs.get_user_recommendations(123),
        recs.get_trending_products(),
        recs.get_also_bought("p0"),
        recs.get_products(["p1"]),
    ]


def test_async_errors_and_last_good_answers_are_the_same(shop: Shop, redis_url: str, url_of_nobody: str) -> None:
    shop.list_for(123, "p20")

    async def ask() -> list[str]:
        async with AsyncRecommendationStore(url_of_nobody) as nobody:
            with pytest.raises(StoreUnavailable):
                await nobody.get_user_recommendations(123)
        async with own_async_client(redis_url) as own:
            recs = AsyncRecommendationStore(own, on_error="last_good")
            await recs.get_user_recommendations(123, limit=1)
            await own.flushall()
            return await recs.get_user_recommendations(123, limit=1)

    assert asyncio.run(ask()) == ["p20"]


def test_a_burst_waits_for_a_connection_instead_of_failing(shop: Shop, redis_url: str) -> None:
    shop.list_for(123, "p20")

    async def ask() -> list[list[str]]:
        async with AsyncRecommendationStore(redis_url, timeout=10) as recs:
            return await asyncio.gather(*(recs.get_user_recommendations(123, limit=1) for _ in range(500)))

    assert asyncio.run(ask()) == [["p20"]] * 500


def test_threads_share_a_store(shop: Shop, recs: RecommendationStore) -> None:
    shop.serve("user_recommendations", {str(i): {"recommended_products": [f"p{i}"]} for i in range(30)})
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda i: recs.get_user_recommendations(i % 30, limit=1), range(300))
        assert list(answers) == [[f"p{i % 30}"] for i in range(300)]


def test_the_package_answers_by_the_settings(
    shop: Shop, redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RECS_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("RECS_REDIS_URL", redis_url)
    shop.list_for(123, "p20")
    shop.bought("p0", {"p20": 5})
    assert recs_platform.get_user_recommendations(123, limit=1) == ["p20"]
    assert recs_platform.get_trending_products(RUNNING, limit=1) == [("p0", 100)]
    assert recs_platform.get_also_bought("p0", limit=1) == [("p20", 5)]
    assert recs_platform.get_user_recommendations(123, limit=1, on_error="last_good") == ["p20"]
    monkeypatch.delenv("RECS_REDIS_URL")
    assert recs_platform.get_user_recommendations(123, limit=1, on_error="last_good") == ["p20"]
    with pytest.raises(SettingsError, match="RECS_REDIS_URL"):
        recs_platform.get_user_recommendations(123)


def test_importing_the_package_imports_no_client() -> None:
    code = "import sys, recs_platform; print([m for m in ('redis', 'pyarrow', 'pandas') if m in sys.modules])"
    light = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert light.stdout.strip() == "[]"
    code = "import sys; from recs_platform import fetch, RecommendationStore; print([m for m in ('pyarrow', 'pandas') if m in sys.modules])"
    light = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert light.stdout.strip() == "[]"


@pytest.fixture
def recs_command(redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    monkeypatch.setenv("RECS_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("RECS_REDIS_URL", redis_url)
    return CliRunner()


def test_recommend_shows_products_by_name(shop: Shop, recs_command: CliRunner) -> None:
    shop.list_for(123, "p20")
    table = recs_command.invoke(commands.recommend, ["123", "--limit", "1"])
    assert (table.exit_code, "[p20]" in table.output) == (0, True)
    found = recs_command.invoke(commands.recommend, ["123", "--limit", "1", "--json"])
    assert json.loads(found.output) == {"user_id": 123, "recommended_products": ["p20"]}


def test_recommend_says_what_is_wrong_in_one_line(shop: Shop, recs_command: CliRunner) -> None:
    refused = recs_command.invoke(commands.recommend, ["abc"])
    assert (refused.exit_code, "'abc' is no shopper id" in refused.output) == (2, True)
    shop.redis.flushall()
    unserved = recs_command.invoke(commands.recommend, ["123"])
    assert (unserved.exit_code, unserved.output.startswith("Error: recs:user_recommendations is not set")) == (1, True)


def test_trending_shows_views_and_on_request_what_is_not_for_sale(shop: Shop, recs_command: CliRunner) -> None:
    shop.trend(RUNNING, {"p1": 9, "unknown": 8})
    window = ["--window", "2024-03-21T10:15"]
    found = recs_command.invoke(commands.trending, [*window, "--json"])
    assert json.loads(found.output) == [{"product_id": "p1", "view_count": 9}]
    everything = recs_command.invoke(commands.trending, [*window, "--all"])
    assert "unknown" in everything.output
    assert "not in the catalog" in everything.output
