"""The end of a backlog: once Redis shows what came last, it shows what came before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import orjson
import redis

from bench.sending import send_all
from bench.traffic import Batch, texts
from recs_platform.serving import keys

LAST, RECENT = 1_000, 3_600_000_000
"""So many last events are looked at: views by shoppers of every partition are among them. None older than an hour
(in microseconds) before the last: what is a day old goes while it is waited for."""


@dataclass
class Tail:
    """For some shoppers, the time of their last view: their recommendations must be at least as new."""

    views: dict[int, str] = field(default_factory=dict)
    sent: int = 0
    activity: int = 0

    def arrived(self, connection: redis.Redis) -> bool:
        """Whether Redis has the documents these views lead to."""
        version = connection.get(keys.pointer(keys.USER_RECOMMENDATIONS))
        if not isinstance(version, bytes):
            return False
        wanted = [keys.document(keys.USER_RECOMMENDATIONS, version.decode(), str(user)) for user in self.views]
        found: list[bytes | None] = connection.mget(wanted)  # type: ignore[assignment]
        return all(
            raw is not None and orjson.loads(raw)["as_of"] >= time
            for raw, time in zip(found, self.views.values(), strict=True)
        )

    def note(self, batch: Batch) -> None:
        """Events in the order of time, after those noted before."""
        self.sent += len(batch)
        self.activity += batch.activity
        last = batch.cut(max(0, len(batch) - LAST), len(batch))
        views = last.views & (last.times > last.times[-1] - RECENT)
        self.views = dict(zip(last.users[views].tolist(), texts(last.times[views]), strict=True))


def send_with_tail(bootstrap_servers: str, batches: Iterable[Batch]) -> Tail:
    """Sends everything as fast as the broker takes it; returns what is to be awaited."""
    tail = Tail()

    def noted() -> Iterator[Batch]:
        for batch in batches:
            tail.note(batch)
            yield batch

    send_all(bootstrap_servers, noted())
    return tail
