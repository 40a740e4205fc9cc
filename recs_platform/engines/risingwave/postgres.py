"""The PostgreSQL whose changes a RisingWave reads, asked directly."""

from __future__ import annotations

import time

from psycopg import sql

from recs_platform.catalog import connected
from recs_platform.errors import SourceError

SLOT_SECONDS = 15.0
COUNT_SECONDS = 60.0  # somebody may hold the table, and a large one takes its time


def major_version(url: str) -> int:
    with connected(url) as connection:
        return connection.info.server_version // 10_000


def count_rows(url: str, table: str) -> int:
    with connected(url, COUNT_SECONDS) as connection:
        name = sql.Identifier(*table.split("."))
        row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(name)).fetchone()
        return int(row[0]) if row else 0


def drop_slot(url: str, slot: str) -> None:
    """RisingWave leaves it there, and PostgreSQL would keep its log for it."""
    deadline = time.monotonic() + SLOT_SECONDS
    with connected(url, SLOT_SECONDS) as connection:
        connection.autocommit = True
        while rows := connection.execute(
            "SELECT active FROM pg_replication_slots WHERE slot_name = %s", [slot]
        ).fetchall():
            if not rows[0][0]:
                connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
            elif time.monotonic() > deadline:
                raise SourceError(
                    f"the replication slot {slot} is still in use {SLOT_SECONDS:.0f} s after its source was dropped: "
                    f"SELECT pg_drop_replication_slot('{slot}') when it is not"
                )
            time.sleep(0.1)
