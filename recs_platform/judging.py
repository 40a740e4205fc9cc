"""How messages would be judged if they came again today."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pyarrow as pa

from recs_platform.dead_letters import Origin
from recs_platform.engines.local.arrivals import TickInput
from recs_platform.engines.local.database import Database
from recs_platform.pipeline import Pipeline


class Judge:
    """Says what today's SQL thinks of messages, in an engine in memory, whichever engine runs."""

    def __init__(self, pipeline: Pipeline, origin: Origin) -> None:
        self._origin = origin
        self._database = Database()
        self._database.deploy(Pipeline({r.name: r for r in pipeline.with_ancestors({origin.judge})}), datetime.now(UTC))

    def close(self) -> None:
        self._database.close()

    def reasons(self, payloads: Sequence[bytes | None]) -> list[str | None]:
        """For each, why it is of no use, or None where it would be taken in now."""
        now = datetime.now(UTC)
        messages = pa.table(
            {
                "payload": pa.array(payloads, pa.binary()),
                "kafka_key": pa.nulls(len(payloads), pa.binary()),
                "kafka_partition": pa.array(["0"] * len(payloads), pa.string()),
                "kafka_offset": pa.array([str(i) for i in range(len(payloads))], pa.string()),
                "received_at": pa.array([now] * len(payloads), pa.timestamp("us", "UTC")),
            }
        )
        self._database.tick(now, TickInput(messages={self._origin.topic: messages}))
        with self._database.snapshot() as cursor:
            rows = cursor.execute(f"SELECT kafka_offset, reason FROM {self._origin.judge}").fetchall()
        source = self._database.pipeline.topics[self._origin.topic]
        self._database.connection.execute(f'DELETE FROM "{source.physical_name}"')
        found: dict[int, str | None] = {int(offset): reason for offset, reason in rows}
        return [found[i] for i in range(len(payloads))]
