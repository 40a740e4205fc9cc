"""What readers notice of a view whose SQL is changed and applied while events come in and every shopper is asked for."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import plots
from bench.driver import drive
from bench.parts.rebuild import Spreads
from bench.report import Figure, Section, keep_samples
from bench.session import Preloaded, Session
from bench.stack import live_versions
from bench.stats import number, percentile
from recs_platform.awaiting import wait_until
from recs_platform.errors import RecsError
from recs_platform.serving import keys
from recs_platform.serving.store import RecommendationStore
from recs_platform.settings import default_sql_dir

EDITS: Mapping[str, tuple[str, str, str]] = {
    "user_recommendations": ("'$[0 to 19]'", "'$[0 to 14]'", keys.USER_RECOMMENDATIONS),
    "trending_products": ("rank <= 10", "rank <= 5", keys.TRENDING_PRODUCTS),
}
"""View → what is put in place of what in its file, and the sink that goes over. Every second time it is put back."""
FIGURES = {"applied": "until `recs apply` is done", "switched": "until readers are on the new version"}
SWITCH_SECONDS = 120.0


@dataclass
class Readers:
    """One asks for shoppers by library, in turn, without a pause; what it was answered, and how long that took."""

    redis_url: str
    users: int
    milliseconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with RecommendationStore(self.redis_url) as store:
            for user in itertools.cycle(range(1, self.users + 1)):
                if self._stop.is_set():
                    return
                began = time.perf_counter()
                try:
                    if not store.get_user_recommendations(user):
                        self.wrong.append(f"{user}: empty")
                except RecsError as error:
                    self.wrong.append(str(error))
                self.milliseconds.append((time.perf_counter() - began) * 1000)

    def stop(self) -> None:
        self._stop.set()


def measure(session: Session) -> Section:
    """Each view is changed, applied, changed back and applied again, under load."""
    with session.own_directory("sql") as home:
        sql_dir = Path(shutil.copytree(default_sql_dir(), home / "sql"))
        with session.preloaded(session.population(), session.options.events, sql_dir) as stack:
            readers = Readers(stack.engine.redis_url, session.options.users)
            asking = threading.Thread(target=readers.run)
            asking.start()
            try:
                samples = [
                    s for repeat in range(session.options.repeats) for s in _round(session, stack, sql_dir, repeat)
                ]
            finally:
                readers.stop()
                asking.join()
    keep_samples(session.options, "switch", samples)
    return _section(session, samples, readers)


def _round(session: Session, stack: Preloaded, sql_dir: Path, repeat: int) -> list[dict[str, Any]]:
    found = []
    for view, (old, new, sink) in EDITS.items():
        session.say(f"changing {view}, repeat {repeat + 1} of {session.options.repeats}")
        path = next(sql_dir.rglob(f"{view}.sql"))
        text = path.read_text()
        path.write_text(text.replace(old, new) if old in text else text.replace(new, old))
        session.driver.start(drive, session.load(stack, seconds=session.options.seconds / 2))
        found.append({"view": view, "repeat": repeat, **_switched(stack, sink)})
        stack.note(session.driver.result())
    return found


def _switched(stack: Preloaded, sink: str) -> dict[str, float]:
    """Seconds until `apply` came back, and until readers were on the new version."""
    url, client = stack.engine.redis_url, stack.engine.client
    assert client is not None, "the engine has been started"
    before, began = live_versions(url, sink), time.monotonic()
    client.apply()
    applied = time.monotonic() - began
    if not wait_until(lambda: live_versions(url, sink) != before, SWITCH_SECONDS, 0.002):
        raise TimeoutError(f"readers of {sink} are on the old version after {SWITCH_SECONDS:.0f} s")
    return {"applied": applied, "switched": time.monotonic() - began}


def _section(session: Session, samples: list[dict[str, Any]], readers: Readers) -> Section:
    section = Section("switch", "Changing a view under load")
    asked = len(readers.milliseconds)
    section.add_claim(
        f"answers of {number(asked)} that were an error or an empty list, over {len(samples)} changes",
        "0",
        number(len(readers.wrong)),
        not readers.wrong,
    )
    section.notes.append(
        f"At {number(session.options.rate)} events/s a view's SQL is changed and applied, while every shopper is asked for by the "
        "library, in turn and without a pause. Readers go over at one moment, when all keys of the new version are in Redis."
    )
    spreads = Spreads(samples)
    rows = [[f"`{view}`", *(spreads.of(view, figure).text(2) for figure in FIGURES)] for view in EDITS]
    section.add_table("Seconds", ["view", *FIGURES.values()], rows)
    shown = [[f"{p:g} %", f"{percentile(readers.milliseconds, p):.1f}"] for p in (50, 99, 99.9, 100)]
    section.add_table("Milliseconds that so many answers took at most, during all of it", ["answers", "ms"], shown)
    if readers.wrong:
        section.notes.append(f"The first that was wrong: {readers.wrong[0]}")
    _figure(section, session, spreads)
    return section


def _figure(section: Section, session: Session, spreads: Spreads) -> None:
    found = {what: [spreads.of(view, figure) for view in EDITS] for figure, what in FIGURES.items()}
    plots.bars(
        session.options.out / "switch.svg",
        "A view changed under load",
        list(EDITS),
        {what: [(s.median, s.low, s.high) for s in values] for what, values in found.items()},
        "seconds",
    )
    section.figures.append(Figure("switch.svg", "Seconds until a changed view is applied, and until readers are on it"))
