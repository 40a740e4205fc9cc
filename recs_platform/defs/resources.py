"""Where the running stack is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from recs_platform import last_files
from recs_platform.engines import connect
from recs_platform.engines.base import StreamEngine
from recs_platform.pipeline import Pipeline
from recs_platform.settings import Settings

QUICK = {"dagster/max_runtime": "600"}
"""Tags of a run that hangs where it takes longer: seconds."""


class Platform:
    """The way to the stack. Looked up at each use: a stack that was started again may answer elsewhere."""

    def settings(self) -> Settings:
        """Raises `SettingsError` for a variable that cannot be used."""
        return Settings.load()

    @contextmanager
    def engine(self, timeout: float = 30.0) -> Iterator[StreamEngine]:
        """The stream engine. Raises `SettingsError` when none is known; `timeout` is in seconds, per call."""
        with connect(self.settings(), timeout) as engine:
            yield engine


def pipeline_now() -> Pipeline:
    """The files of `sql/`; while one of them is wrong, as they could be read last, so that all that watches goes on."""
    return last_files.load(Settings.load()).pipeline


@dg.definitions
def definitions() -> dg.Definitions:
    return dg.Definitions(resources={"platform": Platform()})
