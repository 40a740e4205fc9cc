"""`python -m recs_platform.engines.local`: the engine's process."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from recs_platform.engines.local.database import Database
from recs_platform.engines.local.engine import Engine
from recs_platform.engines.local.server import EngineServer
from recs_platform.errors import RecsError
from recs_platform.settings import Settings
from recs_platform.signals import stopping_on

log = logging.getLogger("recs.engine")


def main() -> int:
    """Runs until SIGTERM or SIGINT. Exit code 1 with one line on stderr for a pipeline or setting that is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = Settings.load()
    try:
        run(settings, stopping_on(signal.SIGTERM, signal.SIGINT))
    except RecsError as error:
        log.error("%s", error)
        return 1
    return 0


def run(settings: Settings, stop: threading.Event) -> None:
    os.umask(0o077)  # the engine's file holds what shoppers did
    path = settings.state_dir / "engine.duckdb"
    path.parent.mkdir(parents=True, exist_ok=True)
    database = Database(path, settings.engine_memory)
    engine = Engine(settings, database)
    server = EngineServer(engine, settings.require("engine_url"), settings.require("engine_token"))
    log.info("answering on %s", settings.engine_url)
    try:
        engine.run(stop)
    finally:
        server.shutdown()
        engine.close()


if __name__ == "__main__":
    sys.exit(main())
