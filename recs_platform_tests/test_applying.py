"""A plan is carried out step by step, and whatever cuts it short, the next one goes on: readers see the old or the new."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import redis

from recs_platform import applying, lease
from recs_platform.applying import Applier, replacements
from recs_platform.awaiting import wait_until
from recs_platform.choice import going_along
from recs_platform.deployment import Deployment, Version
from recs_platform.engines.risingwave.engine import CAPABILITIES
from recs_platform.errors import EngineBusy, EngineError, SourceError
from recs_platform.lease import Lease, locked
from recs_platform.physical_names import VersionId, physical_name, physical_names
from recs_platform.pipeline import Kind, Pipeline, Relation
from recs_platform.plan import Plan, make_plan
from recs_platform.serving import keys
from recs_platform.serving.connection import client

FILES = {
    "clicks": "CREATE SOURCE clicks (payload BYTEA) INCLUDE partition AS part INCLUDE offset AS at WITH (connector = 'kafka', topic = 'c')",
    "lists": "CREATE MATERIALIZED VIEW lists AS SELECT part, at FROM clicks",
    "others": "CREATE MATERIALIZED VIEW others AS SELECT at FROM clicks",
    "lists_sink": "CREATE SINK lists_sink AS SELECT 'recs:lists:${version}:' || part AS key, at FROM lists WITH (connector = 'redis')",
    "others_sink": "CREATE SINK others_sink AS SELECT 'recs:others:${version}:' || at AS key, at FROM others WITH (connector = 'redis')",
}
CHANGED = FILES | {"lists": FILES["lists"] + " WHERE at <> '0'"}
ROWS = [f"row{i}" for i in range(30)]


class CutShort(Exception):
    """The process died here."""


class Cluster:
    """What a RisingWave keeps of what it is told; its sinks write to a real Redis. `dies_at`: the verb that never returns."""

    def __init__(self, connection: redis.Redis) -> None:
        self.redis = connection
        self.versions: list[Version] = []
        self.published: dict[str, VersionId] = {}
        self.building: dict[str, int] = {}
        self.coming: dict[str, Version] = {}  # what it goes on to create though nobody waits for it any more
        self.told: list[str] = []
        self.loses: set[str] = set()  # sinks that never write their last key
        self.garbles: set[str] = set()  # sinks one of whose documents says something else than its row
        self.compared = self.waited = 0
        self.dies_at: int | None = None
        self.filled = 0
        self.prepared: list[str] = []
        self.read_elsewhere: set[str] = set()  # views that somebody else's views read
        self.dropped_slots: list[str] = []
        self.has_no_postgres = False

    def deployment(self) -> Deployment:
        return Deployment(
            tuple(
                replace(
                    version,
                    is_live=self._is_live(version),
                    progress=self._progress_of(version.physical_name),
                    replaced_at=replacements(self.redis).get(version.physical_name),
                )
                for version in self.versions
            )
        )

    def _is_live(self, version: Version) -> bool:
        if version.kind == Kind.SINK:
            return bool(self.redis.get(keys.pointer(str(version.redis_name))) == str(version.id))
        if version.is_connection:
            return any(version.physical_name in v.reads and self._is_live(v) for v in self.versions)
        return self.published.get(version.name) == version.id

    def _progress_of(self, physical: str) -> str | None:
        return "Snapshot [50.00% (1/2)]" if self.building.get(physical, 0) > 0 else None

    def progress(self) -> dict[str, str]:
        found = {physical: str(self._progress_of(physical)) for physical, looks in self.building.items() if looks > 0}
        self.building = {physical: looks - 1 for physical, looks in self.building.items()}
        for physical in [p for p in self.coming if self.building.get(p, 0) <= 0]:
            self.versions.append(self.coming.pop(physical))
        return found

    def prepare(self, created: Sequence[Relation]) -> None:
        self.prepared = [relation.name for relation in created]
        self._note("prepare")

    def wait(self) -> None:
        self.waited += 1
        assert not any(looks > 0 for looks in self.building.values()), "asked for while something is being built"

    def filling(self, relation: Relation, version: VersionId) -> tuple[int, int] | None:
        """The rows here, and there, where some come all the time."""
        if relation.kind is not Kind.SOURCE:
            return None
        self.filled += 5
        return self.filled, 12 + self.filled // 4

    def failure(self, physical: str) -> str:
        return "it said no"

    def create(self, relation: Relation, targets: Mapping[str, VersionId]) -> None:
        version = targets[relation.name]
        known = {v.physical_name for v in self.versions}
        missing = {physical_name(u, targets[u]) for u in relation.upstreams} - known
        assert not missing, "an upstream is not there"
        assert physical_name(relation.name, version) not in known, "a name is taken"
        definition = relation.statement.renamed(physical_names(targets))
        self.versions.append(Version(relation.name, version, relation.kind, definition=definition))
        if relation.kind is Kind.VIEW and relation.is_materialized:
            self.building[physical_name(relation.name, version)] = 2
        if relation.kind is Kind.SINK:
            for key in self._keys(relation, version)[: -1 if relation.name in self.loses else None]:
                at = "elsewhere" if relation.name in self.garbles and key.endswith("row3") else key.rpartition(":")[2]
                self.redis.set(key, json.dumps({"at": at, "more": 1}))
        self._note(f"create {relation.name}")

    def sink_keys(self, sink: Relation, targets: Mapping[str, VersionId]) -> pa.Table:
        return pa.table({"key": self._keys(sink, targets[sink.name])})

    def rows_of(self, sink: Relation, targets: Mapping[str, VersionId], among: Sequence[str]) -> pa.Table:
        """Some go meanwhile."""
        self.compared += len(among)
        kept = [key for key in among if not key.endswith("row7")]
        return pa.table({"key": kept, "at": [key.rpartition(":")[2] for key in kept]})

    @staticmethod
    def _keys(sink: Relation, version: VersionId) -> list[str]:
        return [keys.document(sink.redis_name, str(version), row) for row in ROWS]

    def publish(self, name: str, version: VersionId) -> None:
        self.published[name] = version
        self._note(f"publish {name}")

    def unpublish(self, name: str) -> None:
        self.published.pop(name, None)
        self._note(f"unpublish {name}")

    def drop(self, version: Version) -> None:
        assert self.published.get(version.name) != version.id, "the public view still reads it"
        readers = [v.name for v in self.versions if version.physical_name in v.reads]
        assert not readers, f"{readers} still read it"
        if version.name in self.read_elsewhere:
            raise EngineError(f"somebody's view reads {version.physical_name}")
        self.versions = [v for v in self.versions if (v.name, v.id) != (version.name, version.id)]
        self.building.pop(version.physical_name, None)
        self._note(f"drop {version.name}")  # may die here, before the keys are gone

    def drop_slot(self, slot: str) -> None:
        if self.has_no_postgres:
            raise SourceError("PostgreSQL is away")
        self.dropped_slots.append(slot)

    def _note(self, verb: str) -> None:
        self.told.append(verb)
        if self.dies_at is not None and len(self.told) > self.dies_at:
            raise CutShort


@pytest.fixture(params=["redis_url", "cluster_url"])
def connection(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    """Of one server, and of a Redis Cluster."""
    with client(request.getfixturevalue(request.param), 5) as connection:
        yield connection


@pytest.fixture
def cluster(connection: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(applying, "BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(applying, "BETWEEN_COUNTS", 0.0)
    return Cluster(connection)


def pipeline(directory: Path, files: Mapping[str, str]) -> Pipeline:
    directory.mkdir(exist_ok=True)
    for name, text in files.items():
        (directory / f"{name}.sql").write_text(text)
    return Pipeline.load(directory)


def apply(cluster: Cluster, wanted: Pipeline, grace: float = 600.0, rebuild: tuple[str, ...] = ()) -> Plan:
    plan = make_plan(wanted, cluster.deployment(), CAPABILITIES, rebuild)
    Applier(cluster, cluster.redis, Lease(), grace).apply(wanted, plan)
    return plan


def read(connection: redis.Redis, name: str) -> list[str]:
    """The rows a reader finds: pointer and documents."""
    version = str(connection.get(keys.pointer(name)))
    prefix = keys.prefix(name, version)
    return sorted(str(key).removeprefix(prefix) for key in connection.scan_iter(match=prefix + "*"))


def test_from_nothing_upstreams_first(cluster: Cluster, tmp_path: Path) -> None:
    wanted = pipeline(tmp_path, FILES)
    apply(cluster, wanted)
    assert cluster.deployment().live == {r.name: VersionId(r.fingerprint) for r in wanted}
    assert read(cluster.redis, "lists") == read(cluster.redis, "others") == sorted(ROWS)
    assert not make_plan(wanted, cluster.deployment(), CAPABILITIES)


def test_a_table_is_waited_for_until_it_has_its_rows(cluster: Cluster, tmp_path: Path) -> None:
    wanted, told = pipeline(tmp_path, FILES), list[str]()
    plan = make_plan(wanted, cluster.deployment(), CAPABILITIES)
    Applier(cluster, cluster.redis, Lease(), 600.0, lambda step, done, words: told.append(words)).apply(wanted, plan)
    assert told[:4] == ["being created", "5 of 13 rows", "10 of 13 rows", "built"], "nor for those that have come since"


def test_a_table_that_was_being_filled_when_a_run_stopped_is_waited_for_by_the_next(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = pipeline(tmp_path, FILES)
    monkeypatch.setattr(applying, "VERIFY_SECONDS", -1.0)
    for rows in ("5 of 13", "10 of 14"):
        with pytest.raises(EngineError, match=f"clicks has {rows} rows"):
            apply(cluster, wanted)
        assert cluster.deployment().live == {}, "it has no CREATE of it any more"
    monkeypatch.setattr(applying, "VERIFY_SECONDS", 600.0)
    apply(cluster, wanted)
    assert cluster.deployment().live.keys() == FILES.keys()


def test_a_build_that_stands_for_too_long_is_an_error_and_is_gone_on_with(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = pipeline(tmp_path, FILES)
    monkeypatch.setattr(applying, "STANDS_SECONDS", -1.0)
    with pytest.raises(EngineError, match=r"lists__\w+ has stood at 'Snapshot \[50.00% \(1/2\)\]'"):
        apply(cluster, wanted)
    monkeypatch.setattr(applying, "STANDS_SECONDS", 900.0)
    apply(cluster, wanted)
    assert cluster.told.count("create lists") == 1
    assert read(cluster.redis, "lists") == sorted(ROWS)


def test_a_build_that_follows_what_comes_in_gets_on_where_it_comes_nearer(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = pipeline(tmp_path, FILES)
    physical, progress = physical_name("lists", wanted["lists"].fingerprint), Cluster.progress

    def behind(*lags: str) -> None:
        left = iter(lags)

        def told(self: Cluster) -> dict[str, str]:
            lag = next(left, None) if any(v.name == "lists" for v in self.versions) else ""
            self.building.clear()  # all others are built at once
            progress(self)
            return {physical: f"LogStore [2 epochs, avg lag {lag}]"} if lag else {}

        monkeypatch.setattr(Cluster, "progress", told)

    monkeypatch.setattr(applying, "STANDS_SECONDS", -1.0)
    behind("59s 10ms", "1m 2s", "58s")
    with pytest.raises(EngineError, match=r"lists__\w+ has stood at 'LogStore \[2 epochs, avg lag 1m 2s\]'"):
        apply(cluster, wanted)
    behind("1m 2s", "59.5s", "800ms", "99ms")
    apply(cluster, wanted)
    assert read(cluster.redis, "lists") == sorted(ROWS)


@pytest.mark.parametrize(
    ("progress", "seconds"),
    [
        ("LogStore [2 epochs, avg lag 99ms]", 0.099),
        ("LogStore [avg lag 1m 2s]", 62.0),
        ("LogStore [max lag: 1.5s]", 1.5),
        ("Snapshot [50.00% (1/2)]", None),
    ],
)
def test_how_far_a_build_is_behind_is_read_from_the_engines_words(progress: str, seconds: float | None) -> None:
    assert applying._seconds_behind(progress) == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("is_live", [False, True], ids=["", "and are read"])
def test_documents_that_an_earlier_sink_of_the_same_version_has_left_go(
    cluster: Cluster, tmp_path: Path, is_live: bool
) -> None:
    wanted = pipeline(tmp_path, FILES)
    version = wanted["lists_sink"].fingerprint
    cluster.redis.set(keys.marker("lists", version), "1")
    cluster.redis.set(keys.prefix("lists", version) + "gone", "{}")
    if is_live:
        cluster.redis.set(keys.pointer("lists"), version)
    cluster.dies_at = 1 + list(wanted.relations).index("lists_sink")  # the moment that one is there
    with pytest.raises(CutShort):
        apply(cluster, wanted)
    cluster.dies_at = None
    apply(cluster, wanted)
    assert read(cluster.redis, "lists") == sorted(ROWS)
    assert cluster.redis.get(keys.prefix("lists", version) + "gone") is None


def test_a_build_that_nobody_wants_any_more_is_given_up_before_anything_is_built(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(cluster, pipeline(tmp_path, FILES))
    monkeypatch.setattr(applying, "STANDS_SECONDS", -1.0)
    with pytest.raises(EngineError, match="has stood at"):
        apply(cluster, pipeline(tmp_path, CHANGED))
    cluster.building = {physical_name("lists", Pipeline.load(tmp_path)["lists"].fingerprint): 1_000_000}
    monkeypatch.setattr(applying, "STANDS_SECONDS", 900.0)
    cluster.told.clear()
    apply(cluster, pipeline(tmp_path, FILES | {"lists": FILES["lists"] + " WHERE at <> '1'"}))
    assert cluster.told == ["drop lists", "prepare", "create lists", "create lists_sink", "publish lists"]
    assert cluster.redis.hlen(keys.REPLACED) == 2, "what was live is kept"


def test_what_the_engine_still_creates_for_a_run_that_was_killed_is_waited_for(
    cluster: Cluster, tmp_path: Path
) -> None:
    """It is in no catalog before it is whole, and its name is taken all the same."""
    wanted = pipeline(tmp_path, FILES)
    cluster.dies_at = 1 + list(wanted.relations).index("lists_sink")
    with pytest.raises(CutShort):
        apply(cluster, wanted)
    sink = cluster.versions.pop()
    cluster.coming, cluster.building[sink.physical_name], cluster.dies_at = {sink.physical_name: sink}, 4, None
    apply(cluster, wanted)
    assert cluster.told.count("create lists_sink") == 1
    assert read(cluster.redis, "lists") == sorted(ROWS)


def test_nothing_is_waited_for_where_nothing_is_built(cluster: Cluster, tmp_path: Path) -> None:
    apply(cluster, pipeline(tmp_path, FILES))
    assert cluster.waited == 2
    apply(cluster, pipeline(tmp_path, FILES | {"plain": "CREATE VIEW plain AS SELECT at FROM others"}))
    assert cluster.waited == 2


def test_a_change_builds_what_reads_it_and_shares_the_rest(cluster: Cluster, tmp_path: Path) -> None:
    apply(cluster, pipeline(tmp_path, FILES))
    cluster.told.clear()
    apply(cluster, pipeline(tmp_path, CHANGED))
    assert cluster.told == ["prepare", "create lists", "create lists_sink", "publish lists"]
    assert cluster.prepared == ["lists", "lists_sink"], "the topic is there: nobody asks Kafka for it"
    assert read(cluster.redis, "lists") == sorted(ROWS)


def test_a_part_of_what_has_changed_leaves_the_rest_on_the_version_it_has(cluster: Cluster, tmp_path: Path) -> None:
    before = pipeline(tmp_path, FILES)
    apply(cluster, before)
    cluster.told.clear()
    files = CHANGED | {
        "others": FILES["others"] + " WHERE at <> '1'",
        "more": "CREATE VIEW more AS SELECT at FROM others",
    }
    after = pipeline(tmp_path, files)
    deployed = {name: version.fingerprint for name, version in cluster.deployment().live.items()}
    chosen = going_along(after, deployed, ["lists"])
    assert chosen == {"lists", "lists_sink"}, "what is made of it goes along"
    plan = make_plan(after, cluster.deployment(), CAPABILITIES, only=chosen)
    Applier(cluster, cluster.redis, Lease(), 0.0).apply(after, plan)
    assert [verb for verb in cluster.told if verb.startswith("create")] == ["create lists", "create lists_sink"]
    live = cluster.deployment().live
    assert live["others"].fingerprint == before["others"].fingerprint
    assert live["lists"].fingerprint == after["lists"].fingerprint
    assert make_plan(after, cluster.deployment(), CAPABILITIES).creates == {"others", "others_sink", "more"}
    assert going_along(after, deployed, ["more"]) == {"more", "others", "others_sink"}, "and what it is made from"


def test_what_a_version_that_stays_is_made_from_stays_however_far_up(cluster: Cluster, tmp_path: Path) -> None:
    files = FILES | {
        "b": "CREATE MATERIALIZED VIEW b AS SELECT at FROM clicks",
        "a": "CREATE MATERIALIZED VIEW a AS SELECT at FROM b",
        "last": "CREATE MATERIALIZED VIEW last AS SELECT at FROM a",
    }
    apply(cluster, pipeline(tmp_path / "before", files))
    changed = {name: text for name, text in files.items() if name != "last"}
    after = pipeline(tmp_path / "after", changed | {"b": files["b"] + " WHERE at <> '0'"})
    deployed = {name: version.fingerprint for name, version in cluster.deployment().live.items()}
    chosen = going_along(after, deployed, ["a"])
    assert chosen == {"a", "b"}
    plan = make_plan(after, cluster.deployment(), CAPABILITIES, only=chosen)
    Applier(cluster, cluster.redis, Lease(), 0.0).apply(after, plan)
    assert len(cluster.deployment().of("b")) == len(cluster.deployment().of("a")) == 2, (
        "`last` reads one, and that the other"
    )
    apply(cluster, after, grace=0.0)
    assert {name: len(cluster.deployment().of(name)) for name in ("a", "b", "last")} == {"a": 1, "b": 1, "last": 0}


def test_what_was_replaced_goes_when_its_time_is_over_with_its_keys(cluster: Cluster, tmp_path: Path) -> None:
    before = pipeline(tmp_path, FILES)
    old = keys.prefix("lists", before["lists_sink"].fingerprint)
    apply(cluster, before)
    after = pipeline(tmp_path, CHANGED)
    apply(cluster, after, grace=600)
    assert list(cluster.redis.scan_iter(match=old + "*")), "kept for a way back"
    apply(cluster, after, grace=0)
    assert cluster.told[-2:] == ["drop lists_sink", "drop lists"], "what reads goes first"
    assert not list(cluster.redis.scan_iter(match=old[:-1] + "*"))
    assert cluster.redis.hgetall(keys.REPLACED) == {}


def test_what_somebody_else_reads_stays_and_keeps_nothing_else_from_going(cluster: Cluster, tmp_path: Path) -> None:
    apply(cluster, pipeline(tmp_path, FILES))
    after, told = pipeline(tmp_path, CHANGED | {"others": FILES["others"] + " WHERE at <> '1'"}), list[str]()
    cluster.read_elsewhere = {"others"}
    plan = make_plan(after, cluster.deployment(), CAPABILITIES)
    Applier(cluster, cluster.redis, Lease(), 0.0, lambda step, _, words: told.append(f"{step.name} {words}")).apply(
        after, plan
    )
    assert {name: len(cluster.deployment().of(name)) for name in ("lists", "others")} == {"lists": 1, "others": 2}
    assert any(line.startswith("others stays: somebody's view reads others__") for line in told)
    cluster.read_elsewhere = set()
    apply(cluster, after, grace=0.0)
    assert len(cluster.deployment().of("others")) == 1


def test_a_slot_of_a_connection_that_was_dropped_goes_when_postgresql_is_back(cluster: Cluster, tmp_path: Path) -> None:
    shop = "CREATE SOURCE shop WITH (connector = 'postgres-cdc', slot.name = 'recs_{}')"
    copied = "CREATE TABLE customers (user_id BIGINT PRIMARY KEY) FROM shop TABLE 'public.customers'"
    for name in ("old", "new"):
        apply(cluster, pipeline(tmp_path, FILES | {"shop": shop.format(name), "customers": copied}))
    former = next(v for v in cluster.versions if v.slot == "recs_old")
    cluster.versions.remove(former)  # and died before it came to the slot
    cluster.has_no_postgres = True
    apply(cluster, Pipeline.load(tmp_path))
    cluster.has_no_postgres = False
    apply(cluster, Pipeline.load(tmp_path))
    apply(cluster, Pipeline.load(tmp_path))
    assert cluster.dropped_slots == ["recs_old"]


def test_what_no_file_defines_any_more_goes_with_its_name_and_pointer(cluster: Cluster, tmp_path: Path) -> None:
    apply(cluster, pipeline(tmp_path, FILES))
    for name in ("others", "others_sink"):
        (tmp_path / f"{name}.sql").unlink()
    apply(cluster, Pipeline.load(tmp_path), grace=0)
    assert cluster.told[-3:] == ["drop others_sink", "unpublish others", "drop others"]
    assert cluster.redis.keys("recs:others*") == []
    assert read(cluster.redis, "lists") == sorted(ROWS)


def test_a_rebuild_stands_beside_what_it_replaces(cluster: Cluster, tmp_path: Path) -> None:
    wanted = pipeline(tmp_path, FILES)
    apply(cluster, wanted)
    apply(cluster, wanted, rebuild=("lists",))
    generations = {name: version.generation for name, version in cluster.deployment().live.items()}
    assert generations == {"clicks": 0, "lists": 1, "lists_sink": 1, "others": 0, "others_sink": 0}
    apply(cluster, wanted, grace=0)
    assert len(cluster.versions) == len(FILES)


@pytest.mark.parametrize("rebuild", [(), ("lists",)], ids=["", "of a rebuild"])
@pytest.mark.parametrize("files", [FILES, CHANGED], ids=["from nothing", "a change"])
def test_cut_short_anywhere_the_next_one_goes_on(
    cluster: Cluster, tmp_path: Path, files: Mapping[str, str], rebuild: tuple[str, ...]
) -> None:
    """A run that dies after its first verb, then one that dies after its second, and so on until one comes through."""
    if files is CHANGED or rebuild:
        apply(cluster, pipeline(tmp_path, FILES), grace=0)
    wanted, standing = pipeline(tmp_path, files), read(cluster.redis, "lists")
    for dies_at in itertools.count():
        cluster.told.clear()
        cluster.dies_at = dies_at
        try:
            apply(cluster, wanted, 0, rebuild)
            break
        except CutShort:
            assert read(cluster.redis, "lists") in (standing, sorted(ROWS))
    assert dies_at > 1
    live = cluster.deployment().live
    assert {n: v.fingerprint for n, v in live.items()} == {r.name: r.fingerprint for r in wanted}
    if files is FILES:
        assert live["lists"].generation == live["lists_sink"].generation >= len(rebuild)
    assert len(cluster.versions) == len(wanted.relations)
    assert read(cluster.redis, "lists") == sorted(ROWS)
    documents = [key for key in map(str, cluster.redis.scan_iter("recs:*")) if key.count(":") == 3]
    assert len(documents) == 2 * len(ROWS), "no key of a version that is gone"


def test_readers_go_back_while_the_old_is_there_and_forward_without_a_build(cluster: Cluster, tmp_path: Path) -> None:
    before = pipeline(tmp_path, FILES)
    apply(cluster, before)
    after = pipeline(tmp_path, CHANGED)
    apply(cluster, after)
    applier = Applier(cluster, cluster.redis, Lease(), 600.0)
    back = applier.roll_back()
    assert {step.name for step in back.steps} == {"lists", "lists_sink"}
    assert cluster.deployment().live == {r.name: VersionId(r.fingerprint) for r in before}
    assert cluster.redis.get(keys.pointer("lists")) == before["lists_sink"].fingerprint
    cluster.told.clear()
    apply(cluster, after)
    assert cluster.told == ["prepare", "publish lists"]
    apply(cluster, after, grace=0)
    with pytest.raises(EngineError, match="nothing to go back to"):
        applier.roll_back()


def test_a_version_that_was_refused_is_no_way_back_and_goes_at_once(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pipeline(tmp_path, FILES)
    apply(cluster, before)
    monkeypatch.setattr(applying, "VERIFY_SECONDS", 0.0)
    cluster.loses = {"lists_sink"}
    with pytest.raises(EngineError, match="not in Redis"):
        apply(cluster, pipeline(tmp_path, CHANGED))
    cluster.loses = set()
    mended = pipeline(tmp_path, FILES | {"lists": FILES["lists"] + " WHERE at <> '1'"})
    apply(cluster, mended)
    kept = {before["lists_sink"].fingerprint, mended["lists_sink"].fingerprint}
    assert {version.id.fingerprint for version in cluster.deployment().of("lists_sink")} == kept
    documents = [key for key in map(str, cluster.redis.scan_iter("recs:lists:*")) if key.count(":") == 3]
    assert len(documents) == 2 * len(ROWS), "its keys went with it"
    Applier(cluster, cluster.redis, Lease(), 600.0).roll_back()
    assert cluster.deployment().live == {r.name: VersionId(r.fingerprint) for r in before}


def test_cut_short_anywhere_the_way_back_is_a_whole_one(cluster: Cluster, tmp_path: Path) -> None:
    before = pipeline(tmp_path, FILES)
    apply(cluster, before)
    after = pipeline(tmp_path, CHANGED | {"others": FILES["others"] + " WHERE at <> '1'"})
    for dies_at in itertools.count():
        cluster.told.clear()
        cluster.dies_at = dies_at
        with suppress(CutShort):
            apply(cluster, after)
            break
    cluster.dies_at = None
    Applier(cluster, cluster.redis, Lease(), 600.0).roll_back()
    assert cluster.deployment().live == {r.name: VersionId(r.fingerprint) for r in before}


def test_a_way_back_that_was_cut_short_is_gone_on_with(cluster: Cluster, tmp_path: Path) -> None:
    before = pipeline(tmp_path, FILES)
    apply(cluster, before)
    apply(cluster, pipeline(tmp_path, CHANGED | {"others": FILES["others"] + " WHERE at <> '1'"}))
    cluster.told.clear()
    cluster.dies_at = 0
    with pytest.raises(CutShort):
        Applier(cluster, cluster.redis, Lease(), 600.0).roll_back()
    cluster.dies_at = None
    Applier(cluster, cluster.redis, Lease(), 600.0).roll_back()
    assert cluster.deployment().live == {r.name: VersionId(r.fingerprint) for r in before}


def test_a_file_that_comes_back_is_no_longer_about_to_go(cluster: Cluster, tmp_path: Path) -> None:
    apply(cluster, pipeline(tmp_path, FILES))
    for name in ("others", "others_sink"):
        (tmp_path / f"{name}.sql").unlink()
    apply(cluster, Pipeline.load(tmp_path))
    assert len(replacements(cluster.redis)) == 2
    apply(cluster, pipeline(tmp_path, FILES))
    assert replacements(cluster.redis) == {}, "or its grace would be over at once when it is replaced one day"


def test_no_reader_goes_over_to_a_version_that_lacks_keys(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pipeline(tmp_path, FILES)
    apply(cluster, before)
    monkeypatch.setattr(applying, "VERIFY_SECONDS", 0.0)
    cluster.loses = {"lists_sink"}
    with pytest.raises(EngineError, match=r"lists_sink: 1 of 30 keys are not in Redis .*:row29 is one of them"):
        apply(cluster, pipeline(tmp_path, CHANGED))
    assert cluster.redis.get(keys.pointer("lists")) == before["lists_sink"].fingerprint


def test_documents_that_say_something_else_than_their_rows_keep_readers_where_they_are(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pipeline(tmp_path, FILES)
    apply(cluster, before)
    assert cluster.compared == 2 * len(ROWS), "of both sinks; a row that goes meanwhile is nobody's fault"
    monkeypatch.setattr(applying, "VERIFY_SECONDS", 0.0)
    cluster.garbles = {"lists_sink"}
    refusal = r"lists_sink: 1 of 30 documents in Redis do not say what their rows do; .*:row3 is one of them"
    with pytest.raises(EngineError, match=refusal):
        apply(cluster, pipeline(tmp_path, CHANGED))
    assert cluster.redis.get(keys.pointer("lists")) == before["lists_sink"].fingerprint


def test_two_at_once_are_kept_apart(connection: redis.Redis) -> None:
    with locked(connection):
        with pytest.raises(EngineError, match=r"process \d+ applies just now"), locked(connection):
            pass
        assert 0 < connection.pttl(keys.APPLY_LOCK) <= lease.LOCK_SECONDS * 1000
    with locked(connection):
        pass


def test_who_has_lost_the_lock_changes_nothing_more(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LOCK_SECONDS", 0.3)
    wanted = pipeline(tmp_path, FILES)
    plan = make_plan(wanted, cluster.deployment(), CAPABILITIES)
    with locked(cluster.redis) as held:
        cluster.redis.flushall()
        assert wait_until(held.is_lost.is_set, 10)
        with pytest.raises(EngineBusy, match="somebody else may apply"):
            Applier(cluster, cluster.redis, held, 0.0).apply(wanted, plan)
    assert cluster.told == ["prepare"]


def test_a_lock_lives_as_long_as_its_owner(connection: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LOCK_SECONDS", 2.0)
    left: list[int] = []

    def is_renewed_again_and_again() -> bool:
        left.append(int(connection.pttl(keys.APPLY_LOCK)))
        return sum(later > before for before, later in itertools.pairwise(left)) >= 3

    with locked(connection):
        assert wait_until(is_renewed_again_and_again, 30)
    assert not connection.exists(keys.APPLY_LOCK)
