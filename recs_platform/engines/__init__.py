"""The stream engines behind one seam."""

from __future__ import annotations

from recs_platform.engines.base import StreamEngine
from recs_platform.errors import SettingsError
from recs_platform.settings import LOCAL, RISINGWAVE, Settings


def connect(settings: Settings | None = None, timeout: float = 30.0) -> StreamEngine:
    """The engine that the settings choose. `timeout` is in seconds, per question; what changes something is waited for longer.

    Raises `SettingsError` for an engine nobody knows or one without an address.
    """
    settings = settings or Settings.load()
    if settings.engine == LOCAL:
        from recs_platform.engines.local.client import LocalEngine  # imports Arrow Flight: not for every command

        return LocalEngine(settings, timeout)
    if settings.engine == RISINGWAVE:
        from recs_platform.engines.risingwave.engine import RisingWaveEngine

        return RisingWaveEngine(settings, timeout)
    raise SettingsError(f"RECS_ENGINE={settings.engine!r}: local or risingwave is wanted")
