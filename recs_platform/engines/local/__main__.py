"""`python -m recs_platform.engines.local`: the engine's process."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path

import duckdb

from recs_platform.engines.local.database import Database
from recs_platform.engines.local.engine import Engine
from recs_platform.engines.local.server import EngineServer
from recs_platform.errors import EngineError, RecsError
from recs_platform.settings import Settings
from recs_platform.signals import stopping_on

log = logging.getLogger("recs.engine")


def main() -> int:
    """Runs until SIGTERM or SIGINT. Exit code 1 with one line on stderr for a pipeline or setting that is wrong, and for a disk
    that is full: nothing is lost, and whoever starts it again finds what was committed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = Settings.load()
    try:
        run(settings, stopping_on(signal.SIGTERM, signal.SIGINT))
    except RecsError as error:
        log.error("%s", error)
        return 1
    except (duckdb.IOException, duckdb.FatalException, duckdb.TransactionException, OSError) as error:
        log.error("it cannot go on: %s", str(error).splitlines()[0])
        return 1
    return 0


def run(settings: Settings, stop: threading.Event) -> None:
    os.umask(0o077)  # the engine's file holds what shoppers did
    path = settings.state_dir / "engine.duckdb"
    path.parent.mkdir(parents=True, exist_ok=True)
    database = opened(path, settings.engine_memory)
    engine = Engine(settings, database)
    server = EngineServer(engine, settings.require("engine_url"), settings.require("engine_token"))
    log.info("answering on %s", settings.engine_url)
    try:
        engine.run(stop)
    finally:
        server.shutdown()
        engine.close()


def opened(path: Path, memory: str) -> Database:
    """Raises `EngineError` for a file that another process has, or that cannot be read or written."""
    try:
        return Database(path, memory)
    except duckdb.IOException as error:
        why = "another engine runs on it" if "lock" in str(error) else str(error).splitlines()[0]
        raise EngineError(f"{path} cannot be opened: {why}") from None


if __name__ == "__main__":
    sys.exit(main())
