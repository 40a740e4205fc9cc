"""Readings are told apart: idle from stalled, behind from broken, and the box where it began is named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from recs_platform.engines.status import RelationStatus, Status
from recs_platform.health import (
    STALLED_AFTER,
    Finding,
    Seen,
    State,
    dump_memory,
    freshness_wanted,
    judge,
    load_memory,
    worst,
)
from recs_platform.lineage import Key
from recs_platform.pipeline import Pipeline
from recs_platform.readings import Reading, of_relations, of_topics
from recs_platform.settings import default_sql_dir

PIPELINE = Pipeline.load(default_sql_dir())
VIEWS, BUYS, CANARIES = ("kafka", "user_activity"), ("kafka", "purchases"), ("kafka", "recs_canary")
NOW = 1_000_000.0


def readings(
    views: tuple[int, int, float] = (100, 0, 0.0),
    buys: tuple[int, int, float] = (10, 0, 0.0),
    problems: dict[Key, str] | None = None,
    without: Iterable[Key] = (),
) -> list[Reading]:
    """Of a stack that is well, but for what is said. Of a topic: messages sent, waiting, and how long at most."""
    problems = problems or {}
    topics = [
        Reading(
            key,
            {"lag_messages": lag, "lag_seconds": seconds},
            counters={"messages": sent},
            state=_problem(problems, key),
            waiting={0: (sent - lag, sent)} if lag else {},
        )
        for key, (sent, lag, seconds) in {VIEWS: views, BUYS: buys, CANARIES: (5, 0, 0.0)}.items()
    ]
    catalog = [
        Reading(("postgres", table), state=_problem(problems, ("postgres", table)))
        for table in ("customers", "product_catalog", "recs_heartbeat")
    ]
    relations = [Reading((r.name,), state=_problem(problems, (r.name,))) for r in PIPELINE]
    return [reading for reading in [*topics, *catalog, *relations] if reading.key not in set(without)]


def _problem(problems: dict[Key, str], key: Key) -> dict[str, str]:
    return {"problem": problems[key]} if key in problems else {}


def but_for(missing: str) -> Status:
    """Of an engine that has all deployed but one."""
    relations: list[RelationStatus] = [
        {"name": r.name, "kind": str(r.kind), "fingerprint": r.fingerprint, "rows": None}
        for r in PIPELINE
        if r.name != missing
    ]
    return {"relations": relations, "partitions": [], "problems": {}}


def judged(
    found: list[Reading], memory: dict[Key, Seen] | None = None, now: float = NOW, away: str = ""
) -> tuple[dict[Key, Finding], dict[Key, Seen]]:
    findings, after = judge(PIPELINE, found, memory or {}, now, away)
    return {finding.key: finding for finding in findings}, after


def test_all_is_well() -> None:
    found, _ = judged(readings())
    assert {finding.state for finding in found.values()} == {State.FRESH}
    assert found.keys() >= {(r.name,) for r in PIPELINE}
    assert worst(list(found.values())) is State.FRESH


def test_an_idle_topic_is_idle_and_not_behind() -> None:
    _, memory = judged(readings())
    found, _ = judged(readings(views=(200, 0, 0.0)), memory, NOW + 120)
    assert found[BUYS].state is State.IDLE
    assert found[BUYS].words == "nothing has been sent for 2 min"
    assert found[("also_bought",)].state is State.IDLE
    assert found[("trending_products",)].state is State.FRESH
    assert found[("dead_letters",)].state is State.FRESH, "something comes on one of its topics"


def test_what_comes_after_a_quiet_spell_has_not_waited_all_the_while() -> None:
    """The engine knows no better than that the newest message it has is an hour old."""
    _, memory = judged(readings())
    _, memory = judged(readings(), memory, NOW + 3600)
    found, memory = judged(readings(buys=(11, 1, 3600.0)), memory, NOW + 3630)
    assert found[BUYS].state is State.FRESH
    found, memory = judged(readings(buys=(11, 1, 3642.0)), memory, NOW + 3642)
    assert found[BUYS].state is State.BEHIND
    found, _ = judged(readings(buys=(11, 1, 3650.0)), memory, NOW + 3680)
    assert found[BUYS].state is State.STALLED
    assert found[BUYS].words == "1 message waits, and none has been taken in for 80 s"
    _, memory = judged(readings(), {}, NOW)
    found, _ = judged(readings(buys=(6_000, 5_990, 3600.0)), memory, NOW + 3600)
    assert found[BUYS].state is State.BEHIND, "so many do not come at once"
    assert "the oldest for up to 30 s" in found[BUYS].words
    found, _ = judged(readings(buys=(11, 1, 9e4)), memory, NOW + 86_400)
    assert found[BUYS].state is State.FRESH, "nobody has looked for a day"


def test_since_is_that_of_the_trouble_and_not_of_another_one_before() -> None:
    found, memory = judged(readings(problems={VIEWS: "Kafka is away"}))
    found, memory = judged(readings(problems={VIEWS: "Kafka is away"}), load_memory(dump_memory(memory)), NOW + 30)
    assert found["trending_products",].since == NOW
    found, _ = judged(readings(), memory, NOW + 60, away="the engine does not answer")
    assert (found["trending_products",].state, found["trending_products",].since) == (State.BROKEN, NOW + 60)


@pytest.mark.parametrize("state", [{"problem": "PostgreSQL has no replication slot 'recs'"}, {"wal_status": "lost"}])
def test_a_lost_slot_breaks_what_is_read_through_it_and_says_who_mends_it(state: dict[str, str]) -> None:
    others = readings(without=[("shop",)])
    found, _ = judged([*others, Reading(("shop",), state=state)])
    assert {found[box].state for box in (("postgres", "customers"), ("customers",), ("products_sink",))} == {
        State.BROKEN
    }
    assert found["products_sink",].next == "the engine makes a new one and reads the tables anew"
    found, _ = judged([*others, Reading(("shop",), state={**state, "remedy": "`recs apply --rebuild shop`"})])
    assert found["products_sink",].next == "`recs apply --rebuild shop`"
    assert found["trending_products",].state is State.FRESH


def test_a_topic_that_is_not_read_is_broken_and_no_other_one() -> None:
    status: Status = {"partitions": [], "relations": [], "problems": {"kafka/purchases": "there is no such topic"}}
    found, _ = judged([*of_topics(status, PIPELINE.topics), *readings(without=[BUYS])])
    assert (found[BUYS].state, found[BUYS].words) == (State.BROKEN, "there is no such topic")
    assert (found["also_bought",].state, found["also_bought",].blame) == (State.BROKEN, BUYS)
    assert found["trending_products",].state is State.FRESH


def test_a_kafka_that_is_away_from_the_start_breaks_all_topics() -> None:
    status: Status = {"partitions": [], "relations": [], "problems": {"kafka": "it does not answer"}}
    found, _ = judged([*of_topics(status, PIPELINE.topics), *readings(without=[BUYS, VIEWS, CANARIES])])
    assert {found[topic].state for topic in (BUYS, VIEWS, CANARIES)} == {State.BROKEN}


def test_behind_is_not_stalled_while_it_steps_forward() -> None:
    memory: dict[Key, Seen] = {}
    for step in range(5):
        found, memory = judged(readings(views=(1_000 + 300 * step, 500, 90.0)), memory, NOW + 30 * step)
    view = found[("user_recommendations_sink",)]
    assert (view.state, view.blame, view.since) == (State.BEHIND, VIEWS, NOW)
    waits = "500 messages wait, the oldest for up to 90 s; 10 a second are taken in and 10 come: it does not catch up"
    assert view.words == f"kafka/user_activity is behind: {waits}"
    assert found[("also_bought",)].state is State.IDLE
    assert found[("products_sink",)].state is State.FRESH


def test_who_is_behind_says_how_fast_it_catches_up() -> None:
    found, memory = judged(readings(views=(1_000, 900, 90.0)))
    assert found[VIEWS].words.endswith("; they are being taken in"), "nothing is known of how fast"
    found, memory = judged(readings(views=(1_100, 600, 80.0)), memory, NOW + 10)
    assert found[VIEWS].words.endswith("; 40 a second are taken in and 10 come: worked off in about 20 s")
    assert found[VIEWS].evidence["seconds_to_work_off"] == 20.0
    assert (found[VIEWS].evidence["taken_per_second"], found[VIEWS].evidence["sent_per_second"]) == (40.0, 10.0)
    found, memory = judged(readings(views=(1_100, 600, 80.0)), load_memory(dump_memory(memory)), NOW + 15)
    assert "40 a second" in found[VIEWS].words, "looks that come soon after do not count"
    found, _ = judged(readings(views=(1_200, 700, 90.0)), memory, NOW + 25)
    assert found[VIEWS].words.endswith("; none has been taken in for 15 s")
    found, _ = judged(readings(views=(10, 5, 80.0)), memory, NOW + 30)
    assert found[VIEWS].words.endswith("; they are being taken in"), "another topic of that name begins anew"


@pytest.mark.parametrize(
    ("kept", "left", "words"),
    [
        (1e6, None, ""),
        (3e9, None, "PostgreSQL keeps 3.0 GB of its log for the engine: its disk fills up until that is read"),
        (1e9, 4e8, "PostgreSQL keeps 1.0 GB of its log for the engine, and gives up the slot after 400 MB more"),
        (1e9, -5, "PostgreSQL keeps 1.0 GB of its log for the engine, and gives up the slot after 0 MB more"),
        (1e9, 4e9, ""),
    ],
)
def test_a_log_that_postgresql_keeps_for_too_long_is_seen(kept: float, left: float | None, words: str) -> None:
    numbers = {"retained_bytes": kept} | ({} if left is None else {"bytes_until_lost": left})
    slot = Reading(("shop",), numbers, state={"slot": "recs", "wal_status": "reserved"})
    found, _ = judged([r for r in readings() if r.key != ("shop",)] + [slot])
    catalog = found["postgres", "product_catalog"]
    assert (catalog.state, catalog.words) == (
        (State.BEHIND, words) if words else (State.FRESH, "its changes are followed")
    )
    assert found["products_sink",].state is catalog.state


def test_a_slot_that_nobody_reads_is_a_catalog_that_stands_still() -> None:
    """As when the password that a RisingWave was given has changed: it says nothing of that."""

    def looked(active: int, memory: dict[Key, Seen], now: float) -> tuple[Finding, dict[Key, Seen]]:
        slot = Reading(("shop",), {"slot_active": active}, state={"slot": "recs_1", "wal_status": "reserved"})
        found, after = judged([r for r in readings() if r.key != ("shop",)] + [slot], memory, now)
        assert found["products_sink",].state is found["postgres", "product_catalog"].state
        assert found["also_bought_sink",].state.is_well
        return found["postgres", "product_catalog"], load_memory(dump_memory(after))

    _, memory = looked(1, {}, NOW)
    catalog, memory = looked(0, memory, NOW + 30)
    assert catalog.state is State.FRESH, "it may be just starting"
    catalog, memory = looked(0, memory, NOW + 80)
    assert (catalog.state, catalog.words) == (
        State.STALLED, "nobody has read the replication slot recs_1 for 50 s: no change is followed",
    )  # fmt: skip
    catalog, memory = looked(1, memory, NOW + 110)
    assert catalog.state is State.FRESH


def test_stalled_is_seen_within_a_minute() -> None:
    found, memory = judged(readings())
    for step in range(1, 4):
        found, memory = judged(readings(views=(100 + 50 * step, 50 * step, 30.0 * step)), memory, NOW + 30 * step)
    assert found[VIEWS].state is State.STALLED, f"{STALLED_AFTER} s without a step"
    assert found[("trending_products",)].words.startswith(
        "kafka/user_activity is stalled: 150 messages wait, and none has"
    )
    assert not found[("trending_products",)].state.is_well


def test_a_little_lag_is_fresh() -> None:
    found, _ = judged(readings(views=(100, 20, 0.5)))
    assert found[VIEWS].state is State.FRESH


def test_a_file_says_how_fresh_it_is_to_be() -> None:
    texts = {r.name: r.text for r in PIPELINE}
    texts["user_activity_raw"] = "-- freshness: 2 min\n" + texts["user_activity_raw"]
    relaxed = Pipeline.of_texts(texts)
    assert freshness_wanted(relaxed["user_activity_raw"]) == 120
    assert freshness_wanted(PIPELINE["user_activity_raw"]) == 10
    assert relaxed["user_activity_raw"].fingerprint == PIPELINE["user_activity_raw"].fingerprint
    late = readings(views=(100, 20, 60.0))
    assert next(f for f in judge(relaxed, late, {}, NOW)[0] if f.key == VIEWS).state is State.FRESH
    assert next(f for f in judge(PIPELINE, late, {}, NOW)[0] if f.key == VIEWS).state is State.BEHIND


def test_the_box_that_broke_is_named_all_the_way_down() -> None:
    found, _ = judged(readings(problems={("product_catalog",): "column price is gone"}))
    assert found[("product_catalog",)].state is State.BROKEN
    for name in ("category_candidates", "user_recommendations", "user_recommendations_sink"):
        assert found[(name,)].words == "product_catalog is broken: column price is gone"
        assert found[(name,)].blame == ("product_catalog",)
    assert found[("trending_products_sink",)].state is State.FRESH


def test_a_sink_that_cannot_write_is_broken_alone() -> None:
    found, _ = judged(readings(problems={("products_sink",): "Redis does not answer"}))
    ill = [key for key, finding in found.items() if not finding.state.is_well]
    assert ill == [("products_sink",)]


def test_kafka_is_away() -> None:
    found, _ = judged(readings(problems={VIEWS: "it does not answer", BUYS: "it does not answer"}))
    assert found[("also_bought_sink",)].words == "kafka/purchases is broken: it does not answer"
    assert found[("products_sink",)].state is State.FRESH


def test_an_engine_that_is_away_is_to_blame_for_all_it_keeps() -> None:
    found, _ = judged(
        readings(without=[VIEWS, BUYS, *((r.name,) for r in PIPELINE)]), away="the engine does not answer"
    )
    assert {found[(r.name,)].state for r in PIPELINE} == {State.BROKEN}
    assert {found[(r.name,)].blame for r in PIPELINE} == {("engine",)}
    assert found[VIEWS].state is State.UNKNOWN


def test_what_is_not_deployed_is_broken() -> None:
    found, _ = judged(readings(without=[("also_bought",)]))
    assert found[("also_bought",)].words == "it is not deployed"
    assert found[("also_bought_sink",)].words == "also_bought is broken: it is not deployed"


def test_what_is_new_in_the_files_waits_to_be_deployed_and_what_has_gone_is_broken() -> None:
    is_new = ("also_bought_sink",)
    _, memory = judged(readings())
    del memory[is_new]
    for step in (1, 2):
        found, memory = judged(readings(without=[is_new]), load_memory(dump_memory(memory)), NOW + 30 * step)
        assert (found[is_new].state, found[is_new].since) == (State.UNKNOWN, NOW + 30)
        assert found[is_new].words == "it is new in sql/, and not deployed yet"
        assert found["products_sink",].state is State.FRESH
    _, memory = judged(readings(), memory, NOW + 90)
    found, memory = judged(readings(without=[is_new]), memory, NOW + 120)
    assert (found[is_new].state, found[is_new].words) == (State.BROKEN, "it is not deployed")
    found, _ = judged(readings(without=[is_new]), memory, NOW + 150)
    assert found[is_new].state is State.BROKEN


def test_what_somebody_has_gone_back_from_is_not_broken() -> None:
    status: Status = {**but_for("also_bought_sink"), "gone_back": True}
    others = [reading for reading in readings() if reading.key[0] in ("kafka", "postgres")]
    found, _ = judged([*others, *of_relations(status, PIPELINE)])
    assert found["also_bought_sink",].state is State.UNKNOWN
    assert found["also_bought_sink",].words.startswith("it is not deployed: somebody has gone back")
    found, _ = judged([*others, *of_relations({**status, "gone_back": False}, PIPELINE)])
    assert found["also_bought_sink",].state is State.BROKEN


def test_a_slow_sink_is_behind_by_itself() -> None:
    slow = [
        Reading(r.key, {"freshness_now_ms": 15_000}) if r.key == ("trending_products_sink",) else r for r in readings()
    ]
    found, _ = judged(slow)
    assert found[("trending_products_sink",)].words == "an event takes up to 15 s to Redis, 10 s are wanted"
    assert found[("trending_products",)].state is State.FRESH


def test_a_state_keeps_its_beginning() -> None:
    broken = readings(problems={VIEWS: "away"})
    _, memory = judged(broken)
    found, memory = judged(broken, load_memory(dump_memory(memory)), NOW + 300)
    assert found[VIEWS].since == NOW
    found, _ = judged(readings(), memory, NOW + 600)
    assert found[VIEWS].since == NOW + 600


def test_a_trickle_is_not_behind_for_being_seen_under_way_twice() -> None:
    """A message every quarter of a minute, the engine knowing no better than when it took in the one before."""
    _, memory = judged(readings(buys=(10, 0, 0.0)))
    for i, lag in enumerate([1, 1, 2, 1, 1]):
        found, memory = judged(
            readings(buys=(12 + 2 * i, lag, 15.0)), load_memory(dump_memory(memory)), NOW + 30 * (i + 1)
        )
        assert found[BUYS].state is State.FRESH
    found, memory = judged(readings(buys=(20, 1, 30.0)), memory, NOW + 165)
    assert found[BUYS].state is State.BEHIND, "but this one is still there"


def test_what_waits_in_one_partition_is_not_hidden_by_another_that_flows() -> None:
    memory: dict[Key, Seen] = {}
    for i in range(4):
        topic = Reading(
            BUYS,
            {"lag_messages": 2, "lag_seconds": 30.0 * i},
            counters={"messages": 100 * (i + 1)},
            waiting={0: (7, 8), 1: (100 * (i + 1) - 9, 100 * (i + 1) - 8)},
        )
        found, memory = judged([*readings(without=[BUYS]), topic], memory, NOW + 30 * i)
    assert (found[BUYS].state, found[BUYS].evidence["lag_seconds"]) == (State.BEHIND, 90.0)


def test_a_state_that_nobody_has_seen_before_has_begun_now() -> None:
    found, _ = judged(readings(without=[VIEWS]))
    assert (found[VIEWS].state, found[VIEWS].since) == (State.UNKNOWN, NOW)


def test_what_is_wrong_with_the_engine_and_shows_on_no_box_is_told_of() -> None:
    refused = {"partitions": "the question is refused"}
    findings, memory = judge(PIPELINE, readings(), {}, NOW, problems=refused)
    findings, _ = judge(PIPELINE, readings(), load_memory(dump_memory(memory)), NOW + 60, problems=refused)
    [ill] = [finding for finding in findings if not finding.state.is_well]
    assert (ill.key, ill.state, ill.words, ill.since) == (
        ("engine", "partitions"), State.BROKEN, "the question is refused", NOW,
    )  # fmt: skip
    findings, _ = judge(PIPELINE, readings(), memory, NOW + 90)
    assert worst(findings).is_well


def test_what_is_sent_while_the_engine_builds_waits_and_is_not_idle() -> None:
    _, memory = judged(readings())
    held = [replace(r, numbers={**r.numbers, "held_up_seconds": 120.0}) if r.key == VIEWS else r for r in readings()]
    found, _ = judged(held, memory, NOW + 120)
    assert found[VIEWS].state is State.BEHIND
    assert found[VIEWS].words.startswith(
        "nothing has been taken in for 2 min, while the engine changes what is deployed"
    )
    assert found["trending_products_sink",].blame == VIEWS


@pytest.mark.parametrize(
    "text",
    [
        "",
        None,
        "no JSON",
        '[["x"]]',
        '[[["kafka", "purchases"], ["fresh", 1.0, 5, 1.0]]]',
        '[[["a"], {"color": "red"}]]',
    ],
)
def test_a_memory_that_cannot_be_read_is_begun_anew(text: str | None) -> None:
    assert load_memory(text) == {}


def test_a_version_that_is_being_built_is_told_of_and_nothing_is_wrong() -> None:
    status: Status = {
        **but_for("also_bought_sink"),
        "building": {"trending_products__12345678": "Snapshot [50.00%]", "also_bought_sink__12345678_2": "just begun"},
    }
    others = [reading for reading in readings() if reading.key[0] in ("kafka", "postgres")]
    found, _ = judged([*others, *of_relations(status, PIPELINE)])
    built = found["trending_products",]
    assert (built.state, built.state.is_well) == (State.REBUILDING, True)
    assert "Snapshot [50.00%]" in built.words
    assert found["also_bought_sink",].state is State.REBUILDING, "nor one that is built for the first time"
    assert found["trending_products_sink",].state is State.FRESH, "what reads it reads the one before"
    broken = [Reading(VIEWS, state={"problem": "away"}), *(o for o in others if o.key != VIEWS)]
    ill, _ = judged([*broken, *of_relations(status, PIPELINE)])
    assert ill["trending_products",].state is State.BROKEN, "what is wrong goes first"
