"""Materialized views of PostgreSQL, refreshed without a pause, and Redis as their cache.

`python -m bench.baselines.materialized KAFKA REDIS_URL POSTGRES_URL`, until it is ended. One thread copies events into a
table, one refreshes trending, one recommendations; rows that changed are written to Redis.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psycopg
import redis

from bench.baselines.reader import CONSUMED, Reader
from recs_platform.serving import keys

VERSION = "view"
SCHEMA = Path(__file__).with_name("materialized.sql")
VIEWS = {
    keys.TRENDING_PRODUCTS: (keys.TRENDING_PRODUCTS,),
    keys.USER_RECOMMENDATIONS: ("candidates", keys.USER_RECOMMENDATIONS),
}
"""What is refreshed for each kind of document, in this order."""
OPTIONS = (
    "synchronous_commit=off", "shared_buffers=1GB", "work_mem=256MB", "maintenance_work_mem=256MB", "jit=off",
    "max_wal_size=4GB", "effective_cache_size=4GB", "random_page_cost=1.1", "wal_level=replica",
)  # fmt: skip
"""How the server is set up: nothing is synchronous, and every sort and hash fits into memory."""
PUBLISH = """
WITH changed AS (
  SELECT r.key, r.document FROM {view} AS r LEFT JOIN published AS p ON p.name = '{view}' AND p.key = r.key
  WHERE p.document IS DISTINCT FROM r.document)
INSERT INTO published SELECT '{view}', key, document FROM changed
ON CONFLICT (name, key) DO UPDATE SET document = excluded.document
RETURNING key, document"""
"""Notes the rows that changed, and gives them; the others are not touched, for a conflict would lock them."""


class Views:
    """What the threads share: how many messages are in the table."""

    def __init__(self, kafka: str, redis_url: str, postgres_url: str) -> None:
        self.reader, self.postgres_url = Reader(kafka), postgres_url
        self.redis = redis.Redis.from_url(redis_url)
        self.inserted = 0

    def insert(self) -> None:
        """Copies what comes into the table, a transaction a batch."""
        with psycopg.connect(self.postgres_url) as connection:
            while True:
                if events := self.reader.read():
                    with connection.cursor() as cursor, cursor.copy("COPY events FROM STDIN") as copy:
                        for event in events:
                            copy.write_row(_row(event))
                    connection.commit()
                    self.inserted = self.reader.count

    def refresh(self, view: str) -> None:
        """Refreshes and publishes, again and again."""
        with psycopg.connect(self.postgres_url, autocommit=True) as connection:
            self.redis.set(keys.pointer(view), VERSION)
            while True:
                count = self.inserted
                for name in VIEWS[view]:
                    connection.execute(f"REFRESH MATERIALIZED VIEW {name}")
                self._publish(connection, view)
                self.redis.set(CONSUMED + view, count)
                time.sleep(0.005)

    def _publish(self, connection: psycopg.Connection[Any], view: str) -> None:
        pipeline = self.redis.pipeline(transaction=False)
        for key, document in connection.execute(PUBLISH.format(view=view)):
            pipeline.set(keys.document(view, VERSION, key), document)
        pipeline.execute()


def main(kafka: str, redis_url: str, postgres_url: str) -> None:
    views = Views(kafka, redis_url, postgres_url)
    for view in VIEWS:
        threading.Thread(target=_or_end, args=(views.refresh, view), daemon=True).start()
    views.insert()


def _or_end(work: Callable[[str], None], view: str) -> None:
    """Without one of its threads the process would go on and show nothing new."""
    try:
        work(view)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _row(event: Mapping[str, Any]) -> tuple[Any, ...]:
    return event["event_type"], event["user_id"], event.get("product_id"), event["timestamp"]


if __name__ == "__main__":
    main(*sys.argv[1:])
