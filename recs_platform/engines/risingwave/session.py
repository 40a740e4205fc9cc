"""One connection to a RisingWave: what it is asked and told, how long it is waited for, and its errors without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row

from recs_platform.engines.risingwave.hanging_up import hung_up_after
from recs_platform.engines.risingwave.masking import secrets_of, without_secrets
from recs_platform.errors import EngineError, EngineRecovering, EngineUnavailable, QueryError
from recs_platform.settings import Settings, masked

CONNECT_SECONDS = 5
PATIENT_SECONDS = 300.0  # for each question and statement, while something is changed
_RECOVERING = re.compile(
    r"cluster is (?:starting or |under )?(?:recovering|bootstrapping)|during cluster recovery", re.IGNORECASE
)


class Session:
    """`timeout` is in seconds, per question. Raises `EngineUnavailable` where nothing answers."""

    def __init__(self, settings: Settings, timeout: float) -> None:
        self._url = settings.require("risingwave_url")
        self._address, self._secrets, self._timeout = masked(self._url), secrets_of(settings), timeout
        self._connection = self._connect()

    def close(self) -> None:
        self._connection.close()

    def _connect(self) -> psycopg.Connection[Any]:
        try:
            return psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=CONNECT_SECONDS,
                prepare_threshold=None,
                keepalives_idle=30,  # or what is waited for without an end, a build, never ends with a host that is gone
                keepalives_interval=10,
                keepalives_count=3,
            )
        except psycopg.Error as error:
            raise EngineUnavailable(f"RisingWave at {self._address} does not answer: {self.masked(error)}") from None

    def rows(self, sql: str) -> list[dict[str, Any]]:
        with self.asking(EngineError), self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(sql.encode()).fetchall()

    def answer(self, sql: str, params: Sequence[object] | None) -> tuple[list[str], list[tuple[Any, ...]]]:
        """The names of the columns and the rows; `params` are bound to `$1`, `$2`, …. Raises `QueryError` where it is refused."""
        with self.asking(QueryError), psycopg.RawCursor(self._connection) as cursor:
            cursor.execute(sql.encode(), list(params) if params is not None else None)
            return [column.name for column in cursor.description or ()], cursor.fetchall()

    def do(
        self,
        sql: str,
        seconds: float | None = None,
        refused: type[EngineError] = EngineError,
        params: Sequence[object] | None = None,
    ) -> None:
        """`params` are bound to `%s`."""
        with self.asking(refused, PATIENT_SECONDS if seconds is None else seconds):
            self._connection.execute(sql.encode(), params)

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """Nothing is given up half done because a cluster recovers meanwhile."""
        timeout, self._timeout = self._timeout, max(self._timeout, PATIENT_SECONDS)
        try:
            yield
        finally:
            self._timeout = timeout

    @contextmanager
    def asking(self, refused: type[EngineError], seconds: float | None = None) -> Iterator[None]:
        """As `_translated`; what is not answered in time ends with `EngineUnavailable`, and so does the connection."""
        seconds = self._timeout if seconds is None else seconds
        with self._translated(refused), hung_up_after(seconds, self._connection) as is_late:
            try:
                yield
            except psycopg.OperationalError:
                if is_late():
                    raise EngineUnavailable(
                        f"RisingWave at {self._address} does not answer within {seconds:,g} s"
                    ) from None
                raise

    @contextmanager
    def _translated(self, refused: type[EngineError]) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise self._meant(error, refused) from None

    def _meant(self, error: psycopg.Error, refused: type[EngineError]) -> EngineError:
        words = self.masked(error)
        if _RECOVERING.search(words):
            return EngineRecovering(f"RisingWave at {self._address} is not ready yet: {words}")
        if isinstance(error, psycopg.OperationalError) and self._connection.closed:
            return EngineUnavailable(f"RisingWave at {self._address} does not answer: {words}")
        return refused(words)

    def masked(self, text: object) -> str:
        return without_secrets(str(text), self._secrets)
