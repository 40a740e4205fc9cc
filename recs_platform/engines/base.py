"""The one seam to a stream engine: few verbs, real implementations, one contract suite."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol, Self

import pyarrow as pa

from recs_platform.capabilities import Capabilities
from recs_platform.engines.status import Status
from recs_platform.pipeline import Pipeline
from recs_platform.plan import Plan, Tell


class StreamEngine(Protocol):
    """What the platform asks of an engine. Each verb raises `EngineUnavailable` when the engine does not answer."""

    capabilities: Capabilities

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None: ...

    def deployed(self) -> dict[str, str]:
        """Public name → live fingerprint of every relation."""

    def deployed_pipeline(self) -> Pipeline:
        """The relations that are live, as far as the engine still has their statements."""

    def plan(self, rebuild: Iterable[str] = (), only: Collection[str] = ()) -> Plan:
        """What `apply` would do: `sql/` as it is now against what is deployed."""

    def apply(self, rebuild: Iterable[str] = (), tell: Tell | None = None, only: Collection[str] = ()) -> Plan:
        """Makes what is deployed what `sql/` says, telling how far it is, and returns the plan that did it.

        With `only`, those relations alone, with what has changed of what they are made from and with what is made of
        that; the rest of the files waits until `apply` is asked for it.
        """

    def roll_back(self, tell: Tell | None = None) -> Plan:
        """Lets readers go back to what was live before. Raises `EngineError` where nothing of that is kept."""

    def query(self, sql: str, params: Sequence[object] | None = None) -> pa.Table:
        """Rows of any relation; `params` are bound to `$1`, `$2`, …. Raises `QueryError` for SQL it refuses."""

    def sink_rows(self, sink: str, count: int | None = None, among: Sequence[str] | None = None) -> pa.Table:
        """Rows of a live sink: its columns, the Redis key in `key`. All of them, or some `count`, or those `among` some keys.

        Raises `EngineError` for a sink that is not deployed.
        """

    def forget(self, user_id: int) -> None:
        """Takes a shopper out of all it keeps, and refuses what comes of them later. Raises `EngineError` where it cannot."""

    def status(self) -> Status:
        """What it says of itself: progress, sizes and problems."""
