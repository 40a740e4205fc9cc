"""The local engine as other processes see it: `StreamEngine` over Arrow Flight."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
from pyarrow import flight

from recs_platform.engines.local.capabilities import CAPABILITIES
from recs_platform.engines.status import Status
from recs_platform.errors import EngineBusy, EngineError, EngineUnavailable, QueryError, SourceError
from recs_platform.pipeline import Pipeline
from recs_platform.plan import Action, Plan, Step, Tell
from recs_platform.settings import Settings

PATIENT_SECONDS = 3600.0  # for what changes something: a build may take long, and says how far it is meanwhile
_KINDS: Mapping[str, type[EngineError]] = {kind.__name__: kind for kind in (EngineBusy, SourceError)}
"""Those that whoever asks may act upon, as the server names them."""
_BEFORE_THE_REASON = re.compile(r"^(?:.*?message: )?\w+ refused: ", re.DOTALL)
"""What Arrow Flight, and the server's name for what was asked, put before it."""


class LocalEngine:
    """Talks to the engine of the stack the settings name. Use it as a context manager or `close()` it."""

    capabilities = CAPABILITIES

    def __init__(self, settings: Settings | None = None, timeout: float = 30.0) -> None:
        """Raises `SettingsError` when no engine is known. `timeout` is in seconds, per call."""
        settings = settings or Settings.load()
        self.url = settings.require("engine_url")
        # its address is this machine's: a proxy that is set for others would be asked otherwise
        self._client = flight.FlightClient(self.url, generic_options=[("grpc.enable_http_proxy", 0)])
        self._options = flight.FlightCallOptions(
            timeout=timeout, headers=[(b"authorization", f"Bearer {settings.engine_token}".encode())]
        )
        self._patient = flight.FlightCallOptions(
            timeout=max(timeout, PATIENT_SECONDS),
            headers=[(b"authorization", f"Bearer {settings.engine_token}".encode())],
        )

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def query(self, sql: str, params: Sequence[object] | None = None) -> pa.Table:
        """Rows as an Arrow table; `params` are bound to `$1`, `$2`, ….

        Raises `QueryError` for SQL the engine refuses, `EngineUnavailable` when it does not answer.
        """
        ticket = flight.Ticket(json.dumps({"sql": sql, "params": [_plain(p) for p in params or ()]}).encode())
        try:
            return self._client.do_get(ticket, self._options).read_all()
        except flight.FlightError as error:
            raise self._translated(error, QueryError) from None
        except pa.ArrowException as error:
            raise self._translated(error, QueryError) from None

    def deployed(self) -> dict[str, str]:
        answer: dict[str, str] = self._action("deployed")
        return answer

    def deployed_pipeline(self) -> Pipeline:
        return Pipeline.of_texts(self._action("texts"))

    def plan(self, rebuild: Iterable[str] = (), only: Collection[str] = ()) -> Plan:
        return _plan(self._action("plan", rebuild=list(rebuild), only=list(only)))

    def apply(self, rebuild: Iterable[str] = (), tell: Tell | None = None, only: Collection[str] = ()) -> Plan:
        """One transaction between two ticks: all steps are told of when it is done."""
        return _told(_plan(self._action("apply", rebuild=list(rebuild), only=list(only))), tell)

    def roll_back(self, tell: Tell | None = None) -> Plan:
        """Builds anew what was deployed before the files last changed; readers go over when it is complete.

        Raises `EngineError` when there is nothing to go back to.
        """
        return _told(_plan(self._action("roll_back")), tell)

    def forget(self, user_id: int) -> None:
        """See `StreamEngine.forget`. The log, what is made from it, and Redis a moment later."""
        self._action("forget", user_id=user_id)

    def sink_rows(self, sink: str, count: int | None = None, among: Sequence[str] | None = None) -> pa.Table:
        """See `StreamEngine.sink_rows`; some are those of a sample. Raises `QueryError` for a sink that is not deployed."""
        if among is not None:
            return self.query(f'SELECT * FROM "{sink}" WHERE key = ANY($1)', [list(among)])
        return self.query(f'SELECT * FROM "{sink}"' + (f" USING SAMPLE {int(count)} ROWS" if count is not None else ""))

    def health(self) -> dict[str, Any]:
        """`{"pid": …}` as soon as the engine ticks. Raises `EngineUnavailable` before."""
        answer: dict[str, Any] = self._action("health")
        return answer

    def status(self, window: float = 60.0) -> Status:
        """What it says of itself; the percentiles are those of the last `window` seconds."""
        answer: Status = self._action("status", window=window)
        return answer

    def _action(self, name: str, **request: Any) -> Any:
        options = self._patient if name in ("apply", "roll_back", "forget") else self._options
        try:
            results = list(self._client.do_action(flight.Action(name, json.dumps(request).encode()), options))
        except (flight.FlightError, pa.ArrowException) as error:
            raise self._translated(error, EngineError) from None
        return json.loads(results[0].body.to_pybytes())

    def _translated(self, error: Exception, refused: type[EngineError]) -> EngineError:
        if isinstance(error, flight.FlightUnauthenticatedError):
            return EngineError(
                f"the engine at {self.url} refused the token: RECS_ENGINE_TOKEN is not the one it was started with"
            )
        if isinstance(error, flight.FlightUnavailableError | flight.FlightTimedOutError):
            return EngineUnavailable(
                f"the engine at {self.url} does not answer: `recs status` shows what runs, `recs up` starts it"
            )
        text = _BEFORE_THE_REASON.sub("", str(error))
        kind = getattr(error, "extra_info", None) or b""
        refused = _KINDS.get(kind.decode(), refused)
        return refused(text.partition(". Detail: Failed")[0].partition(". gRPC client debug context")[0])


def _plain(value: object) -> object:
    """A parameter as JSON can carry it; the engine casts text to a time or a number where the query wants one."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        raise QueryError("a parameter of bytes is not supported: compare with from_hex($1) and pass the hex text")
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, str | int | float):
        return value
    if getattr(getattr(value, "dtype", None), "kind", "") == "M":  # a time as NumPy has it
        return str(value)
    if callable(plain := getattr(value, "tolist", None)):  # numbers, and arrays of them
        return _plain(plain())
    raise QueryError(f"a parameter of type {type(value).__name__} is not supported: numbers, text, times and lists are")


def _plan(steps: list[dict[str, str]]) -> Plan:
    return Plan(tuple(Step(Action(s["action"]), s["name"], s["version"], s["reason"]) for s in steps))


def _told(plan: Plan, tell: Tell | None) -> Plan:
    if tell:
        for step in plan.steps:
            tell(step, 1.0, "done")
    return plan
