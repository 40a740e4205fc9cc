"""RisingWave through psycopg: the statements it is sent, and what its catalog says of what is deployed.

Thin on purpose. The files of `sql/` go as they are, with relations called by their physical names and `${variables}`
filled in; everything known of a deployment is read from `rw_catalog` and from the pointers in Redis. RisingWave keeps
passwords in clear text in its definitions and repeats them in errors: they are masked before anyone sees them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

import pyarrow as pa
from confluent_kafka import KafkaException

from recs_platform.applying import Applier, replacements
from recs_platform.capabilities import Capabilities
from recs_platform.catalog import ensure_catalog
from recs_platform.choice import going_along
from recs_platform.deployment import Deployment, Version
from recs_platform.engines.risingwave.checks import (
    check_licence,
    check_postgres,
    check_types,
    risingwave_version,
)
from recs_platform.engines.risingwave.deployed import (
    RELATIONS,
    check_names,
    deployment_of,
    pointed_to,
    progress_of,
    standing,
    without_sink,
)
from recs_platform.engines.risingwave.happenings import Happenings, happenings, in_words
from recs_platform.engines.risingwave.lag import begun_anew, partitions
from recs_platform.engines.risingwave.masking import without_secrets
from recs_platform.engines.risingwave.postgres import drop_slot, major_version
from recs_platform.engines.risingwave.session import Session
from recs_platform.engines.risingwave.statements import (
    helper_of,
    helpers,
    is_one_question,
    publication,
    query_of,
    removal,
    slot_name,
    statement,
)
from recs_platform.engines.risingwave.tables import filling, take_in_file
from recs_platform.engines.status import PartitionStatus, RelationStatus, Status
from recs_platform.errors import (
    EngineError,
    EngineRecovering,
    EngineUnavailable,
    PipelineError,
    QueryError,
    SettingsError,
    SourceError,
    StoreUnavailable,
)
from recs_platform.kafka_address import hosts
from recs_platform.lease import locked
from recs_platform.physical_names import (
    VersionId,
    with_public_names,
)
from recs_platform.pipeline import Kind, Pipeline, Relation
from recs_platform.plan import Action, Plan, Tell, make_plan
from recs_platform.schema import read_columns
from recs_platform.serving import keys
from recs_platform.serving.connection import answering, client
from recs_platform.settings import Settings
from recs_platform.statements import parse
from recs_platform.topics import describe, ensure_topics

CAPABILITIES = Capabilities(
    keeps_history_for_rebuilds=False,
    rebuilds_in_place=False,
    deploys_connections=True,
    forgets_shoppers=False,
)

CANNOT_FORGET = (
    "a RisingWave cannot forget one shopper: let the messages leave the topics (by retention, or kafka-delete-records), then "
    "`recs apply --rebuild` the sources; what lies in PostgreSQL is deleted there"
)
BUILD_SECONDS = 3600.0  # for what is built, or waited for, in one statement
LONGEST_PROBLEM = 300  # characters
AT_ONCE = 500  # keys of one question

T = TypeVar("T")


class RisingWaveEngine:
    """One RisingWave and the Redis its sinks write to. Use it as a context manager or `close()` it."""

    capabilities = CAPABILITIES

    def __init__(self, settings: Settings | None = None, timeout: float = 30.0) -> None:
        """`timeout` is in seconds, per question. Raises `SettingsError` without a URL, `EngineUnavailable` where nothing
        answers."""
        self.settings = settings or Settings.load()
        self._redis = client(self.settings.require("redis_url"), 5)
        self._session = Session(self.settings, timeout)

    def __enter__(self) -> RisingWaveEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()
        self._redis.close()

    # -- plan and apply -------------------------------------------------------------------------------------------

    def deployed(self) -> dict[str, str]:
        """A sink that only its pointer in Redis is missing of counts: it is there, and writes."""
        return {version.name: version.id.fingerprint for version in standing(self.deployment())}

    def deployed_pipeline(self) -> Pipeline:
        found = standing(self.deployment())
        # by where they stand alone: a password that is a word of the SQL would be missing from it
        texts = {version.name: without_secrets(version.definition, ()) for version in found}
        return Pipeline.of_texts(
            {name: keys.with_version_variable(with_public_names(text)) for name, text in texts.items()}
        )

    def plan(self, rebuild: Iterable[str] = (), only: Collection[str] = ()) -> Plan:
        """What `apply` would do. Raises what `check` raises."""
        return self._planned(Pipeline.of(self.settings), rebuild, only)

    def apply(self, rebuild: Iterable[str] = (), tell: Tell | None = None, only: Collection[str] = ()) -> Plan:
        """Carries the plan out, telling how far each step is; nobody else can meanwhile."""
        pipeline = Pipeline.of(self.settings)
        with self._answering(), locked(self._redis) as lease, self._session.patiently():
            plan = self._planned(pipeline, rebuild, only)
            Applier(self, self._redis, lease, self.settings.grace_seconds, tell).apply(pipeline, plan)
            left = self._planned(pipeline) if only else Plan(())
            self._note_left(pipeline if left.creates or left.of(Action.SWITCH) else None)
            for relation in pipeline:
                target = plan.targets.get(relation.name)
                is_filled = relation.name in plan.creates  # while it was created
                if relation.is_from_file and target and target.fingerprint == relation.fingerprint and not is_filled:
                    take_in_file(self._session, relation, target, self.settings)
        return plan

    def _note_left(self, files: Pipeline | None) -> None:
        """That these files, or a part of them, wait for somebody to ask for them."""
        if files:
            self._redis.set(keys.LEFT, files.digest)
        else:
            self._redis.unlink(keys.LEFT)

    def roll_back(self, tell: Tell | None = None) -> Plan:
        """Lets readers go back to what was live before the last switch. Raises `EngineError` when that is gone."""
        with self._answering(), locked(self._redis) as lease, self._session.patiently():
            with suppress(PipelineError):  # nobody deploys files that cannot be read
                self._note_going_back(Pipeline.of(self.settings))
            return Applier(self, self._redis, lease, self.settings.grace_seconds, tell).roll_back()

    def _note_going_back(self, files: Pipeline) -> None:
        """Before readers go: or what they have left would be deployed again where a run is cut short."""
        deployment = self.deployment()
        if going := deployment.replaced_last:
            ids = deployment.live | {version.name: version.id for version in going}
            are_live = files.fingerprints.items() <= {name: id.fingerprint for name, id in ids.items()}.items()
            self._note_left(None if are_live else files)

    def _planned(self, pipeline: Pipeline, rebuild: Iterable[str] = (), only: Collection[str] = ()) -> Plan:
        version = self.check(pipeline)
        deployment = self.deployment()
        live = {name: version.fingerprint for name, version in deployment.live.items()}
        chosen = going_along(pipeline, live, only) if only else None
        emptied = [name for name in self._emptied(deployment) if name in pipeline.relations]
        lost = {name for name in emptied if chosen is None or name in chosen}.difference(rebuild)
        plan = make_plan(
            pipeline, deployment, self.capabilities, {*rebuild, *lost}, chosen, self._unwritten(pipeline, deployment)
        )
        self._check_names(pipeline[name] for name in plan.targets if name not in live)
        self._check_catalog(version, (pipeline[name] for name in plan.creates))
        why = "Redis has lost its keys"
        return replace(plan, steps=tuple(replace(s, reason=why) if s.name in lost else s for s in plan.steps))

    def _emptied(self, deployment: Deployment) -> list[str]:
        """Sinks whose keys Redis has lost together with their pointers: a RisingWave never sends again what it has sent. What it
        has written since does not count: each has a marker from before it wrote anything."""
        with self._answering():
            return [
                sink.name
                for sink in deployment.unread
                if sink.redis_name and not self._redis.exists(keys.marker(sink.redis_name, str(sink.id)))
            ]

    def _unwritten(self, pipeline: Pipeline, deployment: Deployment) -> dict[str, VersionId]:
        """Sink → the version that readers are on though nothing writes it any more: the RisingWave was emptied, or the sink dropped."""
        with self._answering():
            return without_sink(self._redis, pipeline.of_kind(Kind.SINK), deployment)

    # -- what is there --------------------------------------------------------------------------------------------

    def deployment(self) -> Deployment:
        """All versions, the oldest first. Raises `StoreUnavailable` where Redis does not answer."""
        with self._answering():
            return self._found(self.progress(), replacements(self._redis), self._pointed_to)

    def _found(
        self,
        progress: Mapping[str, str],
        replaced: Mapping[str, float],
        pointed: Callable[[Iterable[Version]], set[str]],
    ) -> Deployment:
        return deployment_of(self._session.rows(RELATIONS), progress, replaced, pointed)

    def _pointed_to(self, known: Iterable[Version]) -> set[str]:
        return pointed_to(self._redis, known)

    def status(self) -> Status:
        """`partitions`, from the views that are there for it. A part that cannot be asked is a problem, and the others are told."""
        problems, files = dict[str, str](), Pipeline.of(self.settings)
        deployment, left = self._as_far_as_told(problems)
        seen = self._asked(problems, "events", lambda: happenings(deployment, self._session.rows), Happenings())
        self._note(seen, problems)
        reader = next((v for v in deployment.versions if v.is_connection and v.is_live), None)
        remedy = f"`recs apply --rebuild {reader.name}` makes a new one and reads the tables anew" if reader else ""
        return {
            "slot": self._slot_of(reader) if reader else None,
            "slot_remedy": remedy,
            "barrier_seconds": seen.barrier_seconds,
            "relations": [
                RelationStatus(name=v.name, kind=v.kind, fingerprint=v.id.fingerprint, rows=None)
                for v in standing(deployment)
            ],
            "building": {v.physical_name: v.progress or "" for v in deployment.versions if not v.is_whole},
            "partitions": self._partitions(files, deployment, problems),
            "problems": problems,
            "gone_back": left == files.digest,
        }

    def _as_far_as_told(self, problems: dict[str, str]) -> tuple[Deployment, str | None]:
        """Without what Redis knows where that is away; and the files of which a part was left."""
        progress = self._asked(problems, "progress", self.progress, dict[str, str]())
        try:
            with self._answering():
                deployment = self._found(progress, replacements(self._redis), self._pointed_to)
                return deployment, cast(str | None, self._redis.get(keys.LEFT))
        except StoreUnavailable as error:
            problems["redis"] = str(error)
            return self._found(progress, {}, lambda _: set()), None

    def _partitions(self, files: Pipeline, deployment: Deployment, problems: dict[str, str]) -> list[PartitionStatus]:
        found, kafka = list[PartitionStatus](), self.settings.require("kafka_bootstrap_servers")
        try:
            live = deployment.live
            found = self._asked(
                problems, "partitions", lambda: partitions(files, live, kafka, self._session.rows), found
            )
        except KafkaException as error:
            problems["kafka"] = f"Kafka at {hosts(kafka)}: {describe(error)}"
        problems |= {f"kafka/{topic}": words for topic, words in begun_anew(found, files).items()}
        return found

    def _note(self, seen: Happenings, problems: dict[str, str]) -> None:
        for sink, words in seen.failing_sinks.items():
            # masked before it is cut, or half a password would be left
            problems[f"redis/{sink}"] = self._session.masked(words)[:LONGEST_PROBLEM]
        if seen.recovering_since:
            problems["engine"] = f"the RisingWave is recovering since {seen.recovering_since:%H:%M:%S} UTC"

    @staticmethod
    def _asked(problems: dict[str, str], part: str, ask: Callable[[], T], otherwise: T) -> T:
        """What was asked for, or else a problem. Raises `EngineUnavailable`: then nothing else can be asked, either."""
        try:
            return ask()
        except EngineError as error:
            if isinstance(error, EngineUnavailable) and not isinstance(error, EngineRecovering):
                raise
            problems[part] = str(error)[:LONGEST_PROBLEM]
            return otherwise

    def progress(self) -> dict[str, str]:
        return progress_of(self._session)

    def parameters(self) -> dict[str, str]:
        """The cluster's system parameters, by whichever name it heads the columns with."""
        found = [list(row.values()) for row in self._session.rows("SHOW PARAMETERS")]
        return {str(name): str(value) for name, value, *_ in found}

    def sink_keys(self, sink: Relation, targets: Mapping[str, VersionId]) -> pa.Table:
        """The keys a sink's query gives now: the column `key`."""
        return self.query(f"SELECT key FROM ({query_of(sink, targets)}) AS documents")

    def rows_of(self, sink: Relation, targets: Mapping[str, VersionId], among: Sequence[str]) -> pa.Table:
        """Those of these keys that a sink's query gives now, with all its columns."""
        return self._among(f"SELECT * FROM ({query_of(sink, targets)}) AS documents", among)

    def _among(self, documents: str, chosen: Sequence[str]) -> pa.Table:
        """Those rows of a question whose `key` is among these."""
        found = []
        for at in range(0, max(1, len(chosen)), AT_ONCE):
            some = [*chosen[at : at + AT_ONCE]] or [""]
            marks = ", ".join(f"${i}" for i in range(1, len(some) + 1))
            found.append(self.query(f"{documents} WHERE key IN ({marks})", some))
        return pa.concat_tables([table for table in found if table.num_rows] or found[:1], promote_options="permissive")

    def sink_rows(self, sink: str, count: int | None = None, among: Sequence[str] | None = None) -> pa.Table:
        """See `StreamEngine.sink_rows`; some are the first that its query gives."""
        version = next((v for v in standing(self.deployment()) if v.name == sink), None)
        if version is None:
            raise EngineError(f"{sink} is not deployed")
        query = parse(Path(f"{version.physical_name}.sql"), version.definition).query_renamed({})
        documents = f"SELECT * FROM ({query}) AS documents"
        if among is not None:
            return self._among(documents, among)
        return self.query(documents + (f" LIMIT {int(count)}" if count is not None else ""))

    def forget(self, user_id: int) -> None:
        """Raises `EngineError`: a RisingWave builds what it keeps from Kafka, and would take in again what is still there."""
        raise EngineError(CANNOT_FORGET)

    def failure(self, physical: str) -> str:
        """Why a build came to nothing, in the engine's words."""
        events = self._session.rows(
            "SELECT info FROM rw_catalog.rw_event_logs WHERE event_type = 'CREATE_STREAM_JOB_FAIL' "
            'ORDER BY "timestamp" DESC'
        )
        about = (self._session.masked(in_words(row["info"])) for row in events if physical in str(row["info"]))
        return next(about, "RisingWave does not say why; its log does")

    # -- what is changed ------------------------------------------------------------------------------------------

    def check(self, pipeline: Pipeline) -> tuple[int, int]:
        """Says what RisingWave would refuse or do wrong, before any statement; gives its version. Raises `EngineError` or
        `PipelineError`."""
        version = risingwave_version(str(self._session.rows("SELECT version() AS version")[0]["version"]))
        for relation in pipeline:
            check_licence(relation)
        return version

    def _check_names(self, new: Iterable[Relation]) -> None:
        """Of what readers are to find for the first time."""
        read = {r.name for r in new if r.kind is not Kind.SINK and not r.is_connection}
        if read:
            check_names(self._session.rows(RELATIONS), read)

    def _check_catalog(self, version: tuple[int, int], created: Iterable[Relation]) -> None:
        """Asks PostgreSQL only where it is to be read from anew: what is there goes on without it."""
        copied = [r for r in created if r.is_connection or r.catalog_table]
        if not copied:
            return
        url = self.settings.require("postgres_url")
        check_postgres(version, major_version(url))
        columns = read_columns(url, {r.catalog_table for r in copied if r.catalog_table})
        for relation in copied:
            check_types(relation, columns.get(relation.catalog_table, ()))

    def prepare(self, created: Sequence[Relation]) -> None:
        """Creates topics and catalog tables that are missing, of what is about to be created: what is there goes on without Kafka
        or PostgreSQL. And sets how often the cluster makes changes visible."""
        settings = self.settings
        if topics := {relation.topic: relation.is_keyed for relation in created if relation.topic}:
            servers, count = settings.require("kafka_bootstrap_servers"), settings.kafka_partitions
            ensure_topics(servers, topics, count, compacted={topic for topic, is_keyed in topics.items() if is_keyed})
        if any(relation.catalog_table for relation in created):
            ensure_catalog(settings.require("postgres_url"))
        wanted = str(self.settings.barrier_interval_ms)
        if self.parameters().get("barrier_interval_ms") != wanted:
            self._session.do(f"ALTER SYSTEM SET barrier_interval_ms = {wanted}")

    def create(self, relation: Relation, targets: Mapping[str, VersionId]) -> None:
        """Begins to build a version; a view is built in the background, `progress` says how far."""
        is_view = relation.kind is Kind.VIEW and relation.is_materialized
        self._session.do(f"SET BACKGROUND_DDL = {'true' if is_view else 'false'}")
        self._session.do(statement(relation, targets, self.settings.seen_by_risingwave()), BUILD_SECONDS)

    def wait(self) -> None:
        """Comes back when nothing is built in the background any more, or the engine does not care to wait any longer: others may
        build in it, too."""
        with suppress(QueryError):
            self._session.do("WAIT", BUILD_SECONDS, refused=QueryError)

    def filling(self, relation: Relation, version: VersionId) -> tuple[int, int] | None:
        """See `tables.filling`."""
        return filling(self._session, relation, version, self.settings)

    def publish(self, name: str, version: VersionId) -> None:
        """Lets the public name stand for a version, in one step for whoever reads it."""
        views = self._views()
        for text in publication(name, version, views):
            self._session.do(text)
        self._drop_helpers(name, views | {helper_of(name, version, views)} if name in views else views)

    def _drop_helpers(self, name: str, views: set[str]) -> None:
        for helper in helpers(name, views):
            # what somebody else reads of it stays on the version it was made of, as theirs does: that is told when it is dropped
            with suppress(QueryError):
                self._session.do(f"DROP VIEW IF EXISTS {helper}", refused=QueryError)

    def _views(self) -> set[str]:
        return {str(row["name"]) for row in self._session.rows("SELECT name FROM rw_catalog.rw_views")}

    def unpublish(self, name: str) -> None:
        self._session.do(f"DROP VIEW IF EXISTS {name}")

    def drop(self, version: Version) -> None:
        """A connection takes its replication slot along. Raises `SourceError` where that is still held."""
        self._drop_helpers(version.name, self._views())  # one that a switch has left may stand for this version
        self._session.do(removal(version))
        if version.is_connection:
            self.drop_slot(self._slot_of(version))

    def _slot_of(self, connection: Version) -> str:
        """As it was made; the settings may name others by now."""
        return connection.slot or slot_name(self.settings.replication_slot, connection.id)

    def drop_slot(self, slot: str) -> None:
        """Raises `SourceError` where PostgreSQL is away or nobody knows where it is, or something still holds the slot."""
        try:
            url = self.settings.require("postgres_url")
        except SettingsError as error:
            raise SourceError(
                f"the slot {slot} stays, SELECT pg_drop_replication_slot('{slot}') drops it: {error}"
            ) from None
        drop_slot(url, slot)

    # -- questions ------------------------------------------------------------------------------------------------

    def query(self, sql: str, params: Sequence[object] | None = None) -> pa.Table:
        """Rows of one SELECT as an Arrow table; `params` are bound to `$1`, `$2`, …. Raises `QueryError` where it is refused."""
        if not is_one_question(sql):
            raise QueryError("one SELECT is wanted; the pipeline is changed in sql/")
        names, rows = self._session.answer(sql, params)
        return pa.table({name: [_plain(row[i]) for row in rows] for i, name in enumerate(names)})

    def _answering(self) -> AbstractContextManager[None]:
        return answering(self.settings.redis_url)


def _plain(value: object) -> object:
    """JSON as its text, as the local engine hands it over; arrays are lists in both."""
    return json.dumps(value) if isinstance(value, dict) else value
