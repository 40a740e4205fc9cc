"""The engine's DuckDB file: deployed relations, their rows, and where reading stands, a tick all of it or nothing.

Nothing here talks to Kafka, PostgreSQL or Redis. What a tick takes in is handed over as Arrow tables; what it
changed in the sinks is left in `recs.dirty` until the sink writer says that Redis has it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path

import duckdb
import pyarrow as pa

from recs_platform.deployment import Deployment
from recs_platform.engines import transpile
from recs_platform.engines.local import files, forgetting
from recs_platform.engines.local.branches import STATE, Branches, Handed, Part, refresh_all, split
from recs_platform.engines.local.capabilities import CAPABILITIES
from recs_platform.engines.local.changes import TableChanges
from recs_platform.engines.local.connection import Connection
from recs_platform.engines.local.deltas import Tick, delta_table, set_time
from recs_platform.engines.local.incremental import Mode
from recs_platform.engines.local.intake import Position, TopicReset
from recs_platform.engines.local.refresh import Refresher
from recs_platform.engines.local.relations import (
    check_source,
    document,
    duckdb_type,
    over_physical,
    refreshers_of,
    with_columns,
)
from recs_platform.engines.local.storage import Storage, drop, quoted
from recs_platform.errors import UnsupportedSql
from recs_platform.pipeline import Kind, Pipeline, Relation
from recs_platform.plan import Action, Plan, make_plan
from recs_platform.readers import downstream

log = logging.getLogger("recs.engine")

_STATE = """
CREATE SCHEMA IF NOT EXISTS recs;
CREATE TABLE IF NOT EXISTS recs.deployed (
  name VARCHAR PRIMARY KEY, kind VARCHAR, fingerprint VARCHAR, deployed_at TIMESTAMPTZ, changed_at TIMESTAMPTZ);
CREATE TABLE IF NOT EXISTS recs.positions (
  topic VARCHAR, kafka_partition INTEGER, next_offset BIGINT, incarnation VARCHAR, PRIMARY KEY (topic, kafka_partition));
CREATE TABLE IF NOT EXISTS recs.resets (
  noticed_at TIMESTAMPTZ, topic VARCHAR, kafka_partition INTEGER, lost_from BIGINT, lost BIGINT, reason VARCHAR);
CREATE TABLE IF NOT EXISTS recs.facts (name VARCHAR PRIMARY KEY, value VARCHAR);
CREATE TABLE IF NOT EXISTS recs.dirty (sink VARCHAR, key VARCHAR);
CREATE TABLE IF NOT EXISTS recs.prefixes (name VARCHAR, version VARCHAR, is_live BOOLEAN, PRIMARY KEY (name, version));
"""

# A checkpoint writes all tables anew, and ticks wait for it: one of 70 MB took 0.3 s. So it is made when nothing comes
# in; under steady traffic when the log has grown this long, which is then read again within seconds after a kill.
LONGEST_LOG = "512MB"
THREADS = 2
DIRTY_COMPACTED = 500_000
MANY = 5_000  # messages from which on a tick is not small
QUIET_LOG = 32 << 20  # bytes from which on it is made when nothing comes in
RESETS_KEPT = 1_000


@dataclass(frozen=True)
class TickInput:
    """What one tick takes in: messages by topic, catalog changes by table, where reading stands afterwards, and which
    messages could not be had."""

    messages: Mapping[str, pa.Table] = field(default_factory=dict)
    positions: Sequence[Position] = ()
    resets: Sequence[TopicReset] = ()
    changes: Mapping[str, TableChanges] = field(default_factory=dict)
    lsn: int | None = None

    def __bool__(self) -> bool:
        return bool(self.messages or self.positions or self.resets or self.changes or self.lsn is not None)


@dataclass(frozen=True)
class TickResult:
    """Public names of the relations that changed, messages taken in, whether NOW() moved, and seconds: in all and by view."""

    changed: tuple[str, ...]
    messages: int
    has_moved: bool
    seconds: float
    spent: Mapping[str, float]


class Database:
    """Owns the DuckDB file. One thread ticks; others read through `snapshot()`."""

    def __init__(self, path: Path | str = ":memory:", memory_limit: str = "4GB") -> None:
        config: dict[str, str | bool | int | float | list[str]] = {"threads": THREADS, "memory_limit": memory_limit}
        self.connection = Connection(duckdb.connect(str(path), config=config | {"checkpoint_threshold": LONGEST_LOG}))
        self.connection.execute("SET preserve_insertion_order = false")
        self.connection.execute(
            "SET disabled_optimizers = 'common_subplan'"
        )  # costs small ticks 5 %, finds nothing in them
        transpile.install(self.connection.inner)
        self.connection.execute(_STATE + STATE + files.STATE + forgetting.STATE)
        self.connection.execute("SET enable_external_access = false")
        self.pipeline = Pipeline({})
        self.refreshers: list[Refresher] = []
        self.deployments = 0
        self._storage = Storage()
        self._split: tuple[list[Refresher], list[list[Refresher]]] = ([], [])
        self._branches = Branches(self._branch, self._storage, self._note_sinks)
        self._delta_of: dict[str, Connection] = {}  # physical name → whose temporary tables hold its last delta
        self._log = Path(f"{path}.wal")
        self._then = self._deployed_at = self._saved_time()
        self._is_tuned_small = False
        self._forgotten = forgetting.forgotten(self.connection)
        self._dirty_once = 0  # rows of recs.dirty when each was there once
        self.keyless = set[str]()  # sinks with rows that have no key, of which the log tells once
        self.refused = 0  # messages of forgotten shoppers, since it was opened
        self._changed: set[str] = set()  # physical names, since time moved last
        self._all_written = False  # Redis has all that is dirty
        self._dirty_in_delta: frozenset[str] | None = None  # sinks; None: what is dirty is more than the last delta

    def _branch(self) -> Connection:
        connection = Connection(self.connection.cursor())
        connection.execute("SET TimeZone = 'UTC'")
        return connection

    def close(self) -> None:
        self._branches.close()
        self.connection.close()

    @contextmanager
    def snapshot(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor for another thread, in a transaction that cannot write and sees what a whole tick left behind."""
        cursor = self.connection.cursor()
        try:
            cursor.execute("SET TimeZone = 'UTC'")
            with self._branches.whole:
                cursor.execute("BEGIN TRANSACTION READ ONLY")
                # a transaction sees what is there at its first look
                cursor.execute("SELECT 1 FROM recs.facts LIMIT 1").fetchall()
            try:
                yield cursor
            finally:
                cursor.execute("ROLLBACK")
        finally:
            cursor.close()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        self.connection.execute("BEGIN")
        try:
            yield self.connection
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    # -- deploying ------------------------------------------------------------------------------------------------

    def deployed(self) -> dict[str, str]:
        """Public name → live fingerprint."""
        return dict(self.connection.execute("SELECT name, fingerprint FROM recs.deployed").fetchall())

    def plan(self, pipeline: Pipeline, rebuild: Iterable[str] = ()) -> Plan:
        """What `deploy` would do. Raises what it would raise."""
        if pipeline is not self.pipeline:
            refreshers_of(pipeline, Storage())
        return self._plan(pipeline, rebuild)

    def _plan(self, pipeline: Pipeline, rebuild: Iterable[str]) -> Plan:
        return make_plan(pipeline, Deployment.of_live(self.deployed()), CAPABILITIES, rebuild)

    def deploy(
        self,
        pipeline: Pipeline,
        now: datetime,
        rebuild: Iterable[str] = (),
        read_tables: Callable[[Plan], Mapping[str, pa.Table]] = lambda _: {},
        first: Callable[[Connection], None] = lambda _: None,
    ) -> Plan:
        """Makes the deployed relations those of the pipeline, whole or not at all.

        `read_tables` gives the rows (as text) of catalog tables that the plan creates, so that the views that look them up
        find them; one that is not among them is empty until it is read. What it raises is raised, and nothing has changed.
        `first` is done in the same transaction, before anything else.
        Raises `UnsupportedSql` for a relation the local engine could not keep right; nothing has changed then.
        """
        refreshers = self.refreshers if pipeline is self.pipeline else refreshers_of(pipeline, self._storage)
        plan, before = self._plan(pipeline, rebuild), self.deployed()
        snapshots = read_tables(plan)
        self._branches.catch_up(self._split[1] if self.refreshers else self._parts_in_file(refreshers), self.connection)
        self._tune(is_small=False)
        with self.transaction() as connection:
            first(connection)
            set_time(connection, self._then, self._then)  # all views are of one time, new ones too
            for step in plan.of(Action.CREATE):
                self._create(pipeline[step.name], pipeline, {r.relation.name: r for r in refreshers}, now)
                if (rows := snapshots.get(step.name)) is not None:
                    self._fill(pipeline[step.name], rows)
            self._forget_positions([pipeline[s.name] for s in plan.of(Action.CREATE)], before, pipeline)
            for step in plan.of(Action.DROP):
                self._drop(step.name, step.version, gone=step.name not in pipeline.relations)
            self._settle_kinds(refreshers)
            files.keep(connection, pipeline, is_other=before != pipeline.fingerprints)
            self._branches.keep(None, connection)
            for relation in pipeline:
                if relation.is_materialized or relation.query is not None:
                    connection.execute(
                        f"CREATE OR REPLACE VIEW {quoted(relation.name)} AS SELECT * FROM {quoted(relation.physical_name)}"
                    )
        self.pipeline, self.refreshers, self._split = pipeline, refreshers, split(refreshers)
        self.deployments += 1
        self._deployed_at = max(now, self._deployed_at)
        return plan

    def _forget_positions(self, created: Sequence[Relation], before: Mapping[str, str], pipeline: Pipeline) -> None:
        """Of topics whose source is another one, which has no rows yet, and of those that nothing reads any more."""
        anew = {r.topic for r in created if r.topic and before.get(r.name) != r.fingerprint}
        read = [topic for topic in pipeline.topics if topic not in anew]
        marks = ", ".join("?" for _ in read)
        others = f"WHERE topic NOT IN ({marks})" if read else ""
        self.connection.execute(f"DELETE FROM recs.positions {others}", read)

    def _parts_in_file(self, refreshers: Sequence[Refresher]) -> Sequence[Part]:
        """The parts as they were when the file was left."""
        deployed = self.deployed()
        if any(deployed.get(r.relation.name, r.relation.fingerprint) != r.relation.fingerprint for r in refreshers):
            refreshers = self._known_to_this_release(files.kept(self.connection))
        there = {f"{name}__{fingerprint}" for name, fingerprint in deployed.items()}
        known = [refresher for refresher in refreshers if refresher.table in there]
        for refresher in known:
            refresher.open(self.connection)
        return split(known)[1]

    def _known_to_this_release(self, former: Pipeline) -> list[Refresher]:
        """What one before deployed, but for what this one refuses: that is about to be replaced."""
        try:
            return refreshers_of(former, self._storage)
        except UnsupportedSql as error:
            log.warning("what was deployed is refused by this release, and is replaced: %s", error)
            return []

    def forget(self, user_id: int, now: datetime) -> Plan:
        """Takes a shopper out of everything, and takes nothing of theirs in any more; whole or not at all."""
        pipeline = self.pipeline

        def remove(connection: Connection) -> None:
            forgetting.remove(connection, pipeline, user_id, now)

        plan = self.deploy(pipeline, now, forgetting.to_rebuild(pipeline), first=remove)
        self._forgotten = forgetting.forgotten(self.connection)
        return plan

    @property
    def time(self) -> datetime:
        """What NOW() is."""
        return self._then

    def set_back(self, now: datetime) -> Plan:
        """NOW() is earlier from here on, and what it has a part in is what it would have been; whole or not at all."""
        timed = [r for r in self.refreshers if r.looks_at_time]
        below = {
            n for r in timed for n in (r.relation.name, *(d.name for d in downstream(self.pipeline, r.relation.name)))
        }
        # what is made of messages may hold more than the log still does: it is not made anew, but gets back what it lacks
        of_messages = [r for r in timed if r.mode is Mode.APPEND]
        below -= {r.relation.name for r in of_messages}

        def first(connection: Connection) -> None:
            self.set_fact("time", now.isoformat())
            set_time(connection, now, now)
            for refresher in of_messages:
                refresher.put_back(connection)

        self._branches.catch_up(self._split[1], self.connection)
        before = self._then, self._deployed_at
        self._then = self._deployed_at = now
        try:
            rebuild = [r.name for r in self.pipeline if r.name in below]
            return self.deploy(self.pipeline, now, rebuild, first=first)
        except BaseException:
            self._then, self._deployed_at = before
            raise

    def deployed_pipeline(self, former: bool = False) -> Pipeline:
        """The files as they are deployed, or as they were before they last changed; empty where nobody knows."""
        return files.kept(self.connection, former)

    def _settle_kinds(self, refreshers: Iterable[Refresher]) -> None:
        """A file of another release may hold rows of what this one merely derives."""
        held = {
            quoted(name) for (name,) in self.connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
        }
        for refresher in refreshers:
            refresher.open(self.connection)
            wanted = refresher.kept_in or quoted(refresher.table)
            if (wanted in held) == refresher.is_view:
                drop(self.connection, refresher.table)
                refresher.create(self.connection)

    def _create(
        self, relation: Relation, pipeline: Pipeline, refreshers: Mapping[str, Refresher], now: datetime
    ) -> None:
        if relation.name in refreshers:
            refreshers[relation.name].open(self.connection)
            refreshers[relation.name].create(self.connection)
        elif relation.query is not None:
            self.connection.execute(
                f"CREATE OR REPLACE VIEW {quoted(relation.physical_name)} AS {over_physical(relation, pipeline)}"
            )
        else:
            check_source(relation)
            columns = ", ".join(f"{quoted(c.name)} {duckdb_type(c.type)}" for c in relation.columns)
            self.connection.execute(f"CREATE TABLE IF NOT EXISTS {quoted(relation.physical_name)} ({columns})")
            self.connection.execute("DELETE FROM recs.facts WHERE name = ?", [_snapshot_fact(relation)])
        if relation.kind is Kind.SINK:
            self._new_prefix(relation)
        self.connection.execute(
            "INSERT OR REPLACE INTO recs.deployed VALUES (?, ?, ?, ?, ?)",
            [relation.name, str(relation.kind), relation.fingerprint, now, now],
        )

    def _fill(self, table: Relation, rows: pa.Table) -> None:
        """With a snapshot instead of whatever it has."""
        physical = quoted(table.physical_name)
        self.connection.execute(f"DELETE FROM {physical}")
        with self._registered("rows", with_columns(rows, [c.name for c in table.columns])):
            typed = f"SELECT {', '.join(_typed(table).values())} FROM rows"
            self.connection.execute(f"INSERT INTO {physical} SELECT * FROM ({typed}) {forgetting.welcome(table)}")
        self.note_read(table)

    def _new_prefix(self, sink: Relation) -> None:
        """All keys of a new sink are to be written, and those without a row to go; readers go over once that is done."""
        self.connection.execute(
            "INSERT OR REPLACE INTO recs.prefixes VALUES (?, ?, false)", [sink.redis_name, sink.fingerprint]
        )
        self.mark_all_dirty(sink)

    def _drop(self, name: str, fingerprint: str, gone: bool) -> None:
        physical = f"{name}__{fingerprint}"
        drop(self.connection, physical)
        self.connection.execute("DELETE FROM recs.dirty WHERE sink = ?", [physical])
        if gone:
            self.connection.execute(f"DROP VIEW IF EXISTS {quoted(name)}")
            self.connection.execute("DELETE FROM recs.deployed WHERE name = ?", [name])

    # -- ticking --------------------------------------------------------------------------------------------------

    def tick(self, now: datetime | None = None, taken: TickInput | None = None) -> TickResult:
        """One round: take in, refresh every view, note what the sinks must write.

        A small one is committed in parts (see `branches`); what a kill leaves over is done before anything else.

        `now` is what NOW() is from then on; it never goes back, and stands still when it is None. Moving it costs more
        than a tick's messages do: what time alone changes is looked for.
        """
        started = time.perf_counter()
        taken = taken or TickInput()
        now = max(now or self._then, self._then, self._deployed_at)
        tick = Tick(self.connection, self._storage, has_moved=now > self._then)
        messages = sum(table.num_rows for table in taken.messages.values())
        self._tune(is_small=messages < MANY)
        was_written, self._dirty_in_delta, self._all_written = self._all_written, None, False
        was_dirty = was_written and self._is_dirty()
        self._branches.catch_up(self._split[1], self.connection)
        first, parts = self._first_and_parts(taken, messages)
        then = self._then
        self.connection.execute("BEGIN")
        try:
            set_time(self.connection, then, now)
            if was_dirty:
                self.connection.execute("DELETE FROM recs.dirty")
            self._take_in(taken, tick)
            spent = refresh_all(first, tick)
            self._note_sinks(self.connection, tick, first)
            handed = Handed.of(tick, then, now, parts) if parts else None
            self._note(now, taken, tick)
            self._branches.keep(handed, self.connection)
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        is_kept = bool(taken or tick.changed or was_dirty or handed)
        self._then = now
        changed, self._delta_of = dict(tick.changed), dict.fromkeys(tick.changed, self.connection)
        for done in self._branches.commit(is_kept, handed, parts, self.connection):
            changed |= done.changed
            spent |= done.spent
            self._delta_of |= dict.fromkeys(done.changed, done.connection)
        self._changed |= changed.keys()
        if was_written:
            self._dirty_in_delta = frozenset(changed)
        names = tuple(physical.rpartition("__")[0] for physical in changed)
        return TickResult(names, messages, tick.has_moved, time.perf_counter() - started, spent)

    def _first_and_parts(self, taken: TickInput, messages: int) -> tuple[Sequence[Refresher], Sequence[Part]]:
        """A large tick is done in one step: what it looks up is then as new as what it brings."""
        changes = sum(change.count for change in taken.changes.values())
        is_large = messages >= MANY or changes >= MANY or any(c.truncated for c in taken.changes.values())
        return (self.refreshers, []) if is_large or len(self._split[1]) < 2 else self._split

    @staticmethod
    def _note_sinks(connection: Connection, tick: Tick, refreshed: Part) -> None:
        """What Redis must get of the sinks among them."""
        sinks = [r.table for r in refreshed if r.relation.kind is Kind.SINK and r.table in tick.changed]
        if sinks:
            keys = " UNION ".join(f"SELECT '{sink}', key FROM {delta_table(sink)}" for sink in sinks)
            connection.execute(f"INSERT INTO recs.dirty {keys}")

    def _tune(self, is_small: bool) -> None:
        """A small tick is planned rather than worked: a second thread and what only large joins need cost it a fifth."""
        if is_small != self._is_tuned_small:
            self._is_tuned_small = is_small
            self.connection.execute(f"SET threads = {1 if is_small else THREADS}")
            self.connection.execute(f"SET disabled_optimizers = '{'common_subplan,join_order' if is_small else ''}'")

    def load_snapshot(self, table: str, batches: Iterable[pa.Table], now: datetime) -> None:
        """Replaces a catalog table by a snapshot (all columns as text) and refreshes what reads it."""
        rows = pa.concat_tables(list(batches))
        self.tick(now, TickInput(changes={table: TableChanges(truncated=True, upserts=rows, deletes=None)}))
        self.note_read(self.pipeline[table])

    def awaits_snapshot(self, relation: Relation) -> bool:
        """Whether something of the catalog that it is made from has not been read yet."""
        above = self.pipeline.with_ancestors({relation.name})
        return not all(self.is_read(r) for r in above if r.kind is Kind.TABLE or r.is_keyed)

    def forget_snapshots(self) -> None:
        """All catalog tables are to be read anew: the slot they were followed through is another one."""
        self.set_fact("lsn", "0")
        self.connection.execute("DELETE FROM recs.facts WHERE name LIKE 'snapshot:%'")

    def is_read(self, relation: Relation) -> bool:
        """Whether a table, or a topic of a table's rows, has been read to its end once."""
        return self.fact(_snapshot_fact(relation)) is not None

    def note_read(self, relation: Relation) -> None:
        self.set_fact(_snapshot_fact(relation), "loaded")

    def tidy(self) -> None:
        """Carries a log that has grown into the file. For a moment when nothing waits."""
        if self._log.is_file() and self._log.stat().st_size > QUIET_LOG:
            self.connection.execute("CHECKPOINT")

    def trim_logs(self, before: datetime) -> None:
        """Forgets raw messages received before then; the views built from them stay.

        Of a topic whose messages replace each other by their key, the newest of each key stays however old it is.
        """
        with self.transaction() as connection:
            for source in self.pipeline.topics.values():
                included = {kind: quoted(alias) for alias, kind in source.statement.includes.items()}
                old = f"{included['timestamp']} < ?"
                if source.is_keyed:
                    key, newer = included["key"], f"{included['timestamp']} DESC, {included['offset']}::BIGINT DESC"
                    newest = (
                        f"SELECT rowid FROM {quoted(source.physical_name)} WHERE {key} IS NOT NULL "
                        f"QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {newer}) = 1"
                    )
                    old += f" AND rowid NOT IN ({newest})"
                connection.execute(f"DELETE FROM {quoted(source.physical_name)} WHERE {old}", [before])

    def _take_in(self, taken: TickInput, tick: Tick) -> None:
        for topic, messages in taken.messages.items():
            if messages.num_rows:
                self._append_log(self.pipeline.topics[topic], messages, tick)
        for name, changes in taken.changes.items():
            self._apply_catalog(self.pipeline[name], changes, tick)

    def _append_log(self, source: Relation, messages: pa.Table, tick: Tick) -> None:
        fields = {
            "partition": "kafka_partition",
            "offset": "kafka_offset",
            "timestamp": "received_at",
            "key": "kafka_key",
        }
        includes = source.statement.includes
        selected = ", ".join(
            f"{quoted(fields[includes[c.name]] if c.name in includes else 'payload')} AS {quoted(c.name)}"
            for c in source.columns
        )
        with self._registered("messages", self._welcome(messages)):
            tick.add(source.physical_name, [c.name for c in source.columns], f"SELECT {selected} FROM messages")

    def _welcome(self, messages: pa.Table) -> pa.Table:
        """Without those of forgotten shoppers."""
        if not self._forgotten:
            return messages
        with self._registered("coming", messages):
            refused = self.connection.execute(
                "SELECT kafka_partition, kafka_offset FROM coming "
                f"WHERE {forgetting.user_of('payload')} IN (SELECT user_id FROM recs.forgotten)"
            ).fetchall()
        if not refused:
            return messages
        self.refused += len(refused)
        unwanted = set(refused)
        places = zip(messages["kafka_partition"].to_pylist(), messages["kafka_offset"].to_pylist(), strict=True)
        return messages.filter(pa.array([place not in unwanted for place in places]))

    def _apply_catalog(self, relation: Relation, changes: TableChanges, tick: Tick) -> None:
        typed = _typed(relation)
        keys = ", ".join(typed[k] for k in relation.key)
        same = " AND ".join(f"r.{quoted(k)} = t.{quoted(k)}" for k in relation.key)
        upserts = with_columns(changes.upserts, list(typed))
        deletes = with_columns(changes.deletes, list(relation.key))
        with self._registered("upserts", upserts), self._registered("deletes", deletes):
            tick.put("touched", f"SELECT {keys} FROM upserts UNION SELECT {keys} FROM deletes")
            # a forgotten shopper stays in a file until somebody takes the line out
            welcome = forgetting.welcome(relation)
            cut = "" if changes.truncated else f"SEMI JOIN temp.touched AS t ON {same}"
            tick.replace(
                relation.physical_name,
                list(typed),
                f"SELECT * FROM (SELECT {', '.join(typed.values())} FROM upserts) {welcome}",
                f"SELECT r.rowid AS _rowid, r.* FROM {quoted(relation.physical_name)} AS r {cut}",
            )

    @contextmanager
    def _registered(self, name: str, table: pa.Table) -> Iterator[None]:
        self.connection.register(name, table)
        try:
            yield
        finally:
            self.connection.unregister(name)

    def _note(self, now: datetime, taken: TickInput, tick: Tick) -> None:
        self._changed |= tick.changed.keys()
        self._note_resets(now, taken.resets)
        if taken.positions:
            rows = [(p.topic, p.partition, p.offset, p.incarnation) for p in taken.positions]
            marks = ", ".join("(?, ?, ?, ?)" for _ in rows)
            self.connection.execute(f"INSERT OR REPLACE INTO recs.positions VALUES {marks}", list(chain(*rows)))
        if taken.lsn is not None:
            self.set_fact("lsn", str(taken.lsn))
        if tick.has_moved:
            self._note_time(now)

    def _note_resets(self, now: datetime, resets: Sequence[TopicReset]) -> None:
        """A partition that is gone has no position any more; one that is read on has a new one."""
        for r in resets:
            values = [now, r.topic, r.partition, r.lost_from, r.lost, r.reason]
            self.connection.execute("INSERT INTO recs.resets VALUES (?, ?, ?, ?, ?, ?)", values)
            gone = "DELETE FROM recs.positions WHERE topic = ? AND kafka_partition = ?"
            self.connection.execute(gone, [r.topic, r.partition])
        if resets:
            newest = f"SELECT rowid FROM recs.resets ORDER BY noticed_at DESC, rowid DESC LIMIT {RESETS_KEPT}"
            self.connection.execute(f"DELETE FROM recs.resets WHERE rowid NOT IN ({newest})")

    def _note_time(self, now: datetime) -> None:
        self.set_fact("time", now.isoformat())
        marks = ", ".join("?" for _ in self._changed)
        self.connection.execute(
            f"UPDATE recs.deployed SET changed_at = ? WHERE name || '__' || fingerprint IN ({marks or 'NULL'})",
            [now, *sorted(self._changed)],
        )
        self._changed.clear()

    # -- what others ask ------------------------------------------------------------------------------------------

    def sinks(self) -> list[Relation]:
        return self.pipeline.of_kind(Kind.SINK)

    def positions(self) -> list[Position]:
        rows = self.connection.execute(
            "SELECT topic, kafka_partition, next_offset, incarnation FROM recs.positions"
        ).fetchall()
        return [Position(*row) for row in rows]

    def fact(self, name: str) -> str | None:
        row = self.connection.execute("SELECT value FROM recs.facts WHERE name = ?", [name]).fetchone()
        return row[0] if row else None

    def set_fact(self, name: str, value: str) -> None:
        self.connection.execute("INSERT OR REPLACE INTO recs.facts VALUES (?, ?)", [name, value])

    def compact_dirty(self) -> None:
        """While Redis is away for long, a key is noted once, and not for each time it has changed."""
        if self._count_dirty() < max(DIRTY_COMPACTED, 2 * self._dirty_once):
            return
        with self.transaction() as connection:
            connection.execute("CREATE OR REPLACE TEMP TABLE dirty_once AS SELECT DISTINCT sink, key FROM recs.dirty")
            connection.execute("DELETE FROM recs.dirty")
            connection.execute("INSERT INTO recs.dirty SELECT sink, key FROM temp.dirty_once")
            connection.execute("DROP TABLE temp.dirty_once")
        self._dirty_once = self._count_dirty()

    def _count_dirty(self) -> int:
        row = self.connection.execute("SELECT count(*) FROM recs.dirty").fetchone()
        return int(row[0]) if row else 0

    def mark_all_dirty(self, sink: Relation) -> None:
        table = quoted(sink.physical_name)
        self.connection.execute(f"INSERT INTO recs.dirty SELECT '{sink.physical_name}', key FROM {table}")
        self._all_written, self._dirty_in_delta = False, None

    def note_written(self) -> None:
        """Redis has all documents that were dirty until now."""
        self._all_written, self._dirty_in_delta = True, frozenset()

    def _is_dirty(self) -> bool:
        return bool(self.connection.execute("SELECT 1 FROM recs.dirty LIMIT 1").fetchall())

    def dirty_documents(self, sink: Relation) -> list[tuple[str, str | None]]:
        """Keys to write with their JSON documents; None where the key must go. A row whose key is NULL has none: `keyless`."""
        physical, value = sink.physical_name, document(sink)
        if self._dirty_in_delta is None:
            query = (
                f"SELECT d.key, CASE WHEN s.key IS NOT NULL THEN {value} END "
                f"FROM (SELECT DISTINCT key FROM recs.dirty WHERE sink = '{physical}') AS d "
                f"LEFT JOIN {quoted(physical)} AS s ON d.key = s.key"
            )
        elif physical in self._dirty_in_delta:
            query = f"SELECT key, any_value({value}) FILTER (WHERE _sign = 1) FROM {delta_table(physical)} AS s GROUP BY key"
        else:
            return []
        found = self._delta_of.get(physical, self.connection).execute(query).fetchall()
        told = [row for row in found if row[0] is not None]
        if len(told) < len(found) and sink.name not in self.keyless:
            self.keyless.add(sink.name)
            log.warning("%s has rows whose key is NULL: they are not written. Leave them out in its file", sink.name)
        return told

    def documents(self, sink: Relation) -> dict[str, str]:
        """Key → JSON document of all that a sink holds: what Redis has when everything is written."""
        query = f"SELECT s.key, {document(sink)} FROM {quoted(sink.physical_name)} AS s WHERE s.key IS NOT NULL"
        return dict(self.connection.execute(query).fetchall())

    def _saved_time(self) -> datetime:
        saved = self.fact("time")
        return datetime.fromisoformat(saved) if saved else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=1)


def _typed(table: Relation) -> dict[str, str]:
    """Column → what makes it of its text; NULL where the text is none of that type."""
    return {c.name: f"TRY_CAST({quoted(c.name)} AS {duckdb_type(c.type)}) AS {quoted(c.name)}" for c in table.columns}


def _snapshot_fact(table: Relation) -> str:
    return f"snapshot:{table.physical_name}"
