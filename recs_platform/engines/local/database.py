"""The engine's DuckDB file: deployed relations, their rows, and where reading stands, a tick all of it or nothing.

Nothing here talks to Kafka, PostgreSQL or Redis. What a tick takes in is handed over as Arrow tables; what it
changed in the sinks is left in the outbox until the sink writer says that Redis has it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa

from recs_platform.deployment import Deployment
from recs_platform.engines import transpile
from recs_platform.engines.local import bookmarks, branches, deployed, facts, files, forgetting, outbox
from recs_platform.engines.local.arrivals import Arrivals, TickInput
from recs_platform.engines.local.bookmarks import Bookmarks
from recs_platform.engines.local.branches import Branches, Handed, Part, refresh_all, split
from recs_platform.engines.local.capabilities import CAPABILITIES
from recs_platform.engines.local.changes import TableChanges
from recs_platform.engines.local.connection import Connection
from recs_platform.engines.local.deltas import Tick, set_time
from recs_platform.engines.local.facts import Facts
from recs_platform.engines.local.incremental import Mode
from recs_platform.engines.local.outbox import Outbox
from recs_platform.engines.local.refresh import Refresher
from recs_platform.engines.local.relations import check_source, duckdb_type, over_physical, refreshers_of
from recs_platform.engines.local.storage import Storage, drop, quoted
from recs_platform.errors import UnsupportedSql
from recs_platform.physical_names import physical_name, physical_names, public_names
from recs_platform.pipeline import Kind, Pipeline, Relation
from recs_platform.plan import Action, Plan, make_plan
from recs_platform.readers import downstream

log = logging.getLogger("recs.engine")

# A checkpoint writes all tables anew, and ticks wait for it: one of 70 MB took 0.3 s. So it is made when nothing comes
# in; under steady traffic when the log has grown this long, which is then read again within seconds after a kill.
LONGEST_LOG = "512MB"
THREADS = 2
MANY = 5_000  # messages from which on a tick is not small
QUIET_LOG = 32 << 20  # bytes from which on it is made when nothing comes in


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
        transpile.install(self.connection.inner)
        self.connection.execute("CREATE SCHEMA IF NOT EXISTS recs")
        for owner in (deployed, facts, bookmarks, outbox, branches, files, forgetting):
            self.connection.execute(owner.STATE)
        self.connection.execute("SET enable_external_access = false")
        self.pipeline = Pipeline({})
        self.refreshers: list[Refresher] = []
        self.deployments = 0
        self._storage = Storage()
        self._split: tuple[list[Refresher], list[list[Refresher]]] = ([], [])
        self.facts, self.outbox = Facts(self.connection), Outbox(self.connection)
        self.bookmarks = Bookmarks(self.connection, self.facts)
        self.arrivals = Arrivals(self.connection)
        self._branches = Branches(self._branch, self._storage, self.outbox.note)
        self._log = Path(f"{path}.wal")
        self._then = self._deployed_at = self._saved_time()
        self._changed: set[str] = set()  # physical names, since time moved last
        self._is_tuned_small: bool | None = None

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
        return deployed.fingerprints(self.connection)

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
                    self.arrivals.fill(pipeline[step.name], rows)
                    self.bookmarks.note_read(pipeline[step.name])
            self._forget_positions([pipeline[s.name] for s in plan.of(Action.CREATE)], before, pipeline)
            for step in plan.of(Action.DROP):
                self._drop(step.name, step.version, gone=step.name not in pipeline.relations)
            self._settle_kinds(refreshers)
            files.keep(connection, pipeline, is_other=before != pipeline.fingerprints)
            self._branches.keep(None, connection)
            for relation in pipeline:
                if not relation.is_connection:
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
        self.bookmarks.keep_positions_of([topic for topic in pipeline.topics if topic not in anew])

    def _parts_in_file(self, refreshers: Sequence[Refresher]) -> Sequence[Part]:
        """The parts as they were when the file was left."""
        fingerprints = self.deployed()
        if any(fingerprints.get(r.relation.name, r.relation.fingerprint) != r.relation.fingerprint for r in refreshers):
            refreshers = self._known_to_this_release(files.kept(self.connection))
        there = set(physical_names(fingerprints).values())
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
        self.arrivals.look_up_forgotten()
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
            self.facts.set("time", now.isoformat())
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
            self.bookmarks.note_unread(relation)
        if relation.kind is Kind.SINK:
            self.outbox.open_prefix(relation)
        deployed.note(self.connection, relation, now)

    def _drop(self, name: str, fingerprint: str, gone: bool) -> None:
        physical = physical_name(name, fingerprint)
        drop(self.connection, physical)
        self.outbox.drop(physical)
        if gone:
            self.connection.execute(f"DROP VIEW IF EXISTS {quoted(name)}")
            deployed.remove(self.connection, name)

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
        self._tune(is_small=taken.message_count < MANY)
        self._branches.catch_up(self._split[1], self.connection)
        first, parts = self._first_and_parts(taken)
        then = self._then
        self.connection.execute("BEGIN")
        try:
            set_time(self.connection, then, now)
            is_cleared = self.outbox.begin_tick()
            self.arrivals.take_in(taken, self.pipeline, tick)
            spent = refresh_all(first, tick)
            self.outbox.note(self.connection, tick, first)
            handed = Handed.of(tick, then, now, parts) if parts else None
            self._note(now, taken, tick)
            self._branches.keep(handed, self.connection)
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        is_kept = bool(taken or tick.changed or is_cleared or handed)
        self._then = now
        delta_of = dict.fromkeys(tick.changed, self.connection)
        for done in self._branches.commit(is_kept, handed, parts, self.connection):
            spent |= done.spent
            delta_of |= dict.fromkeys(done.changed, done.connection)
        self._changed |= delta_of.keys()
        self.outbox.end_tick(delta_of)
        return TickResult(
            tuple(public_names(delta_of)), taken.message_count, tick.has_moved, time.perf_counter() - started, spent
        )

    def _first_and_parts(self, taken: TickInput) -> tuple[Sequence[Refresher], Sequence[Part]]:
        """A large tick is done in one step: what it looks up is then as new as what it brings."""
        is_large = max(taken.message_count, taken.change_count) >= MANY or any(
            change.truncated for change in taken.changes.values()
        )
        return (self.refreshers, []) if is_large or len(self._split[1]) < 2 else self._split

    def _tune(self, is_small: bool) -> None:
        """A small tick is planned rather than worked: a second thread and what only large joins need cost it a fifth."""
        if is_small != self._is_tuned_small:
            self._is_tuned_small = is_small
            self.connection.execute(f"SET threads = {1 if is_small else THREADS}")
            # looking for common parts costs a small tick 5 %, and finds none
            self.connection.execute(f"SET disabled_optimizers = '{'common_subplan,join_order' if is_small else ''}'")

    def load_snapshot(self, table: str, batches: Iterable[pa.Table], now: datetime) -> None:
        """Replaces a catalog table by a snapshot (all columns as text) and refreshes what reads it."""
        rows = pa.concat_tables(list(batches))
        self.tick(now, TickInput(changes={table: TableChanges(truncated=True, upserts=rows, deletes=None)}))
        self.bookmarks.note_read(self.pipeline[table])

    def awaits_snapshot(self, relation: Relation) -> bool:
        """Whether something of the catalog that it is made from has not been read yet."""
        above = self.pipeline.with_ancestors({relation.name})
        return not all(self.bookmarks.is_read(r) for r in above if r.kind is Kind.TABLE or r.is_keyed)

    def compact(self) -> None:
        """While Redis is away for long, what it must get is noted once, and not for each time it has changed."""
        with self.transaction():
            self.outbox.compact()

    def tidy(self) -> None:
        """Carries a log that has grown into the file. For a moment when nothing waits."""
        if self._log.is_file() and self._log.stat().st_size > QUIET_LOG:
            self.connection.execute("CHECKPOINT")

    def trim_logs(self, before: datetime) -> None:
        """Forgets raw messages received before then; the views built from them stay."""
        with self.transaction():
            for source in self.pipeline.topics.values():
                self.arrivals.trim(source, before)

    def _note(self, now: datetime, taken: TickInput, tick: Tick) -> None:
        self._changed |= tick.changed.keys()
        self.bookmarks.note_resets(now, taken.resets)
        self.bookmarks.note_positions(taken.positions)
        if taken.lsn is not None:
            self.bookmarks.note_lsn(taken.lsn)
        if tick.has_moved:
            self._note_time(now)

    def _note_time(self, now: datetime) -> None:
        self.facts.set("time", now.isoformat())
        deployed.note_changed(self.connection, public_names(self._changed), now)
        self._changed.clear()

    # -- what others ask ------------------------------------------------------------------------------------------

    def sinks(self) -> list[Relation]:
        return self.pipeline.of_kind(Kind.SINK)

    def _saved_time(self) -> datetime:
        saved = self.facts.get("time")
        return datetime.fromisoformat(saved) if saved else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=1)
