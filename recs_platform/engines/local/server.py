"""Answers for the engine over Arrow Flight, on loopback, to whoever has the token."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import duckdb
import psutil
import pyarrow as pa
from pyarrow import flight

from recs_platform.engines.local import bookmarks, deployed, files
from recs_platform.engines.local.connection import Connection
from recs_platform.engines.local.engine import LEFT, Engine
from recs_platform.engines.local.facts import Facts
from recs_platform.engines.local.meter import FIGURES_WINDOW
from recs_platform.engines.local.storage import quoted
from recs_platform.errors import RecsError, SettingsError
from recs_platform.physical_names import physical_name
from recs_platform.pipeline import Pipeline
from recs_platform.plan import Plan

RESETS_TOLD = timedelta(days=1)
BATCH_ROWS = 50_000
MAX_ROWS = 1_000_000  # a query's result; more is cut off with an error, not silently


class TokenCheck(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Turns away every call without the token."""

    def __init__(self, token: str) -> None:
        super().__init__()
        if not token:
            raise SettingsError("RECS_ENGINE_TOKEN is empty: whoever is on this machine could change what is deployed")
        self._token = token

    def start_call(self, info: Any, headers: dict[str, list[str]]) -> None:
        given = (headers.get("authorization") or [""])[0]
        if not secrets.compare_digest(given, f"Bearer {self._token}"):
            raise flight.FlightUnauthenticatedError("the engine's token is missing or wrong")


class EngineServer(flight.FlightServerBase):  # type: ignore[misc]
    """`do_get` answers SQL; `do_action` all else that is asked of the engine, as JSON."""

    def __init__(self, engine: Engine, location: str, token: str) -> None:
        super().__init__(location, middleware={"token": TokenCheck(token)})
        self._engine = engine
        self._actions: dict[str, Callable[[dict[str, Any]], Any]] = {
            "health": lambda _: {"pid": os.getpid()},
            "status": lambda request: self.status(**request),
            "deployed": lambda _: self._looking(deployed.fingerprints),
            "texts": lambda _: self._looking(files.texts),
            "plan": lambda request: self._between_ticks(engine.plan, request),
            "apply": lambda request: self._between_ticks(engine.apply, request),
            "roll_back": lambda _: _as_json(engine.ask(engine.roll_back)),
            "forget": lambda request: _as_json(engine.ask(lambda: engine.forget(int(request["user_id"])))),
        }

    def _between_ticks(
        self, work: Callable[[Sequence[str], Sequence[str]], Plan], request: Mapping[str, Any]
    ) -> list[dict[str, str]]:
        Pipeline.of(self._engine.settings)  # in this thread, while the engine ticks: it has them read then
        return _as_json(self._engine.ask(lambda: work(request.get("rebuild", ()), request.get("only", ()))))

    def do_get(self, context: Any, ticket: flight.Ticket) -> flight.RecordBatchStream:
        request = json.loads(ticket.ticket)
        try:
            result = self._with_cursor(lambda cursor: _run(cursor, request["sql"], request.get("params") or []))
        except duckdb.Error as error:
            raise flight.FlightServerError(f"query refused: {error}") from None
        return flight.RecordBatchStream(result)

    def do_action(self, context: Any, action: flight.Action) -> Iterator[flight.Result]:
        handler = self._actions.get(action.type)
        if handler is None:
            raise flight.FlightServerError(f"no action {action.type!r}; there are {', '.join(self._actions)}")
        request = json.loads(action.body.to_pybytes() or b"{}")
        try:
            answer = handler(request)
        except (RecsError, duckdb.Error) as error:
            kind = type(error).__name__.encode()
            raise flight.FlightServerError(f"{action.type} refused: {error}", extra_info=kind) from None
        yield flight.Result(json.dumps(answer).encode())

    def status(self, window: float = FIGURES_WINDOW) -> dict[str, Any]:
        """A `Status`."""
        process = psutil.Process()
        held_up_seconds, held_up_until = self._engine.requests.held_up()
        return {
            "pid": process.pid,
            "memory_bytes": process.memory_info().rss,
            "cpu_seconds": sum(process.cpu_times()[:2]),
            **self._engine.meter.figures(window),
            "lag": self._engine.lag(),
            "partitions": self._engine.lags,
            "resets": self._looking(self._resets),
            "problems": self._engine.problems | self._engine.standstill(),
            "slot": self._engine.slot,
            "building": dict(self._engine.building),
            "held_up_seconds": held_up_seconds,
            "held_up_until": held_up_until,
            "redis_writes": self._engine.sink.written,
            "refused": self._engine.database.arrivals.refused,
            "gone_back": self._looking(self._has_gone_back),
            "relations": self._looking(self._relations),
        }

    def _resets(self, connection: Connection) -> list[dict[str, Any]]:
        found = bookmarks.resets(connection, self._engine.clock() - RESETS_TOLD)
        return [{**topic._asdict(), "at": topic.at.isoformat()} for topic in found]

    def _has_gone_back(self, connection: Connection) -> bool:
        left = Facts(connection).get(LEFT)
        try:
            return bool(left) and left == Pipeline.of(self._engine.settings).digest
        except RecsError:  # files that cannot be read are other files
            return False

    def _relations(self, connection: Connection) -> list[dict[str, Any]]:
        database = self._engine.database
        modes = {r.relation.name: str(r.mode) for r in database.refreshers}
        kept = {r.name for r in database.pipeline if r.is_materialized}
        return [
            {
                "name": entry.name,
                "kind": entry.kind,
                "fingerprint": entry.fingerprint,
                "deployed_at": entry.deployed_at.isoformat(),
                "changed_at": entry.changed_at.isoformat(),
                "mode": modes.get(entry.name),
                "rows": _count(connection, physical_name(entry.name, entry.fingerprint))
                if entry.name in kept
                else None,
            }
            for entry in deployed.entries(connection)
        ]

    def _looking(self, work: Callable[[Connection], Any]) -> Any:
        return self._with_cursor(lambda cursor: work(Connection(cursor)))

    def _with_cursor(self, work: Callable[[duckdb.DuckDBPyConnection], Any]) -> Any:
        with self._engine.database.snapshot() as cursor:
            return work(cursor)


def _count(connection: Connection, physical: str) -> int | None:
    row = connection.execute(f"SELECT count(*) FROM {quoted(physical)}").fetchone()
    return int(row[0]) if row else None


def _run(cursor: duckdb.DuckDBPyConnection, sql: str, params: list[Any]) -> pa.Table:
    statements = cursor.extract_statements(sql)
    if len(statements) != 1 or statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
        raise duckdb.InvalidInputException("one SELECT is wanted; the pipeline is changed in sql/")
    reader: pa.RecordBatchReader = cursor.sql(sql, params=params).to_arrow_reader(BATCH_ROWS)
    batches, count = list[pa.RecordBatch](), 0
    try:
        for batch in reader:
            batches.append(batch)
            count += batch.num_rows
            if count > MAX_ROWS:
                raise duckdb.InvalidInputException(f"more than {MAX_ROWS:,} rows: add a LIMIT or aggregate")
    except (OSError, pa.ArrowException) as error:  # as Arrow tells of an error behind the first rows
        raise duckdb.Error(str(error)) from None
    return pa.Table.from_batches(batches, reader.schema)


def _as_json(plan: Plan) -> list[dict[str, str]]:
    return [{"action": str(s.action), "name": s.name, "version": s.version, "reason": s.reason} for s in plan.steps]
