"""The exception tree: every error this package raises on purpose derives from `RecsError`.

Each message names the thing that is wrong and, where there is one, the remedy.
"""

from __future__ import annotations

from pathlib import Path


class RecsError(Exception):
    """Base of all errors of the platform."""


class SettingsError(RecsError):
    """A setting is missing or has a value that cannot be used."""


class PipelineError(RecsError):
    """A file of `sql/` is wrong; the message starts with `file:line`."""

    def __init__(self, message: str, path: Path | None = None, line: int | None = None) -> None:
        self.path, self.line = path, line
        place = "" if path is None else f"{path}:{line or 1}: "
        super().__init__(place + message)


class UnsupportedSql(PipelineError):
    """A construct the local engine has no exact translation for."""


class EngineError(RecsError):
    """The stream engine refused or failed a request."""


class EngineUnavailable(EngineError):
    """The stream engine does not answer."""


class EngineRecovering(EngineUnavailable):
    """The stream engine answers, and what it is asked cannot be done before it has recovered."""


class EngineBusy(EngineError):
    """Somebody else changes what is deployed."""


class QueryError(EngineError):
    """A query was refused: bad SQL, an unknown relation, wrong parameters."""


class SourceError(EngineError):
    """A topic, the catalog or a file of it cannot be read, or holds something else than what is wanted."""


class ServingError(RecsError):
    """Recommendations cannot be read."""


class StoreUnavailable(ServingError):
    """Redis does not answer."""


class NotServed(ServingError):
    """Redis answers, but no live version of the wanted relation is there (the pointer is missing or stale)."""


class StackError(RecsError):
    """A part of the embedded stack cannot be started or stopped."""
