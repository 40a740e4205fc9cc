"""How long it takes to come up, and to be fresh again after the engine was killed."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import redis

from bench import plots
from bench.driver import drive
from bench.load import Outcome
from bench.machine import measured_cores, on_cores
from bench.probes import Kind, Sample
from bench.report import Figure, Section, keep_samples
from bench.session import Preloaded, Session
from bench.stack import remove
from bench.stats import Spread, number, percentile
from bench.traffic import texts
from recs_platform.awaiting import wait_until
from recs_platform.serving import keys
from recs_platform.settings import Settings
from recs_platform.stack import control
from recs_platform.stack.dagster import DAEMON, WEBSERVER
from recs_platform.stack.parts import PARTS

AIM = 10.0  # seconds
RECS = (sys.executable, "-c", "from recs_platform.cli import main; main()")
UP_SECONDS = 180.0
AS_BEFORE = 1.5  # times the p99 before the kill counts as fresh as before
AFTER = 1.5  # times the aim is watched after the kill
COUNT_SECONDS = 10.0


@dataclass
class Kill:
    """The engine killed at `at` (seconds since 1970) in the middle of a run."""

    at: float
    outcome: Outcome
    lag: int

    def first(self) -> float:
        """Seconds until the effect of an event sent after the kill could be read."""
        return (
            min([s.intended + s.latency for s in self._samples() if s.intended > self.at], default=math.nan) - self.at
        )

    def settled(self) -> float:
        """Seconds until no event took longer any more than the slowest hundredth before the kill, and half as long.

        NaN when nothing was seen before the kill: there is nothing to compare with.
        """
        usual = AS_BEFORE * percentile([s.latency for s in self._samples() if s.intended + s.latency < self.at], 99)
        if math.isnan(usual):
            return math.nan
        slow = [
            s.intended + s.latency for s in self._samples() if s.latency > usual and s.intended + s.latency > self.at
        ]
        return max(slow, default=self.at) - self.at

    def _samples(self) -> list[Sample]:
        return [sample for sample in self.outcome.samples if sample.kind == Kind.RECOMMENDATIONS]


def measure(session: Session) -> Section:
    """`recs up` from nothing and on old state, with Dagster and without; then kill -9 under traffic."""
    ups, kills = list[dict[str, Any]](), list[Kill]()
    without = tuple(part for part in PARTS if part not in (WEBSERVER, DAEMON))
    variants = {"without Dagster": without} if session.options.quick else {"without Dagster": without, "all": PARTS}
    for repeat in range(session.options.repeats):
        for name, parts in variants.items():
            session.say(f"recs up, {name}, repeat {repeat + 1} of {session.options.repeats}")
            ups += [{"parts": name, "repeat": repeat, **up} for up in _ups(session.directory("up"), parts)]
    with session.preloaded(session.population(), session.options.events) as stack:
        for repeat in range(session.options.repeats):
            session.say(f"killing the engine, repeat {repeat + 1} of {session.options.repeats}")
            kills.append(_kill(session, stack))
        wrong = _wrong(stack)
    return _section(session, ups, kills, wrong)


# -- up ---------------------------------------------------------------------------------------------------------------


def _ups(state_dir: Path, parts: tuple[str, ...]) -> list[dict[str, Any]]:
    """The first start of a state directory, and the next one."""
    try:
        return [{"start": start, **_up(state_dir, parts)} for start in ("the first", "the next")]
    finally:
        control.stop_stack(state_dir)
        remove(state_dir)


def _up(state_dir: Path, parts: tuple[str, ...]) -> dict[str, float]:
    began = time.time()
    only = [word for part in parts for word in ("--only", part)]
    environment = {**os.environ, "RECS_STATE_DIR": str(state_dir), "RECS_DAGSTER_PORT": "0"}
    with on_cores(measured_cores()):
        command = subprocess.Popen(
            [*RECS, "up", "--detach", *only], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    try:
        (since,) = texts(np.array([began * 1_000_000]).astype(np.int64))
        readable = wait_until(lambda: _shows(state_dir, since), UP_SECONDS, 0.02)
        seconds = time.time() - began
        if command.wait(UP_SECONDS) or not readable:
            raise RuntimeError("`recs up` did not bring a recommendation")
        return {"readable": seconds, "healthy": time.time() - began}
    finally:
        command.kill()
        command.wait()
        control.stop_stack(state_dir)


def _shows(state_dir: Path, since: str) -> bool:
    """Whether some shopper's list is that of an event since then: an old list proves nothing."""
    url = Settings.load({}, state_dir=state_dir).redis_url
    with suppress(redis.RedisError, OSError):
        if url:
            with redis.Redis.from_url(url, socket_timeout=1) as connection:
                return _newest(connection) >= since
    return False


def _newest(connection: redis.Redis) -> str:
    version = connection.get(keys.pointer(keys.USER_RECOMMENDATIONS))
    if not isinstance(version, bytes):
        return ""
    pattern = keys.documents_pattern(keys.USER_RECOMMENDATIONS, version.decode())
    found = connection.mget(list(connection.scan_iter(pattern, count=5_000)) or [b""])
    return max((orjson.loads(raw)["as_of"] for raw in found if raw), default="")


# -- kill -------------------------------------------------------------------------------------------------------------


def _kill(session: Session, stack: Preloaded) -> Kill:
    o = session.options
    before = max(o.seconds / 2, 1.0)
    load = session.load(stack, seconds=before + (2.0 if o.quick else AIM * AFTER))
    session.renew_broker(stack)
    session.driver.start(drive, load)
    time.sleep(load.warmup + before)
    lag = int(stack.engine.status()["lag"])
    stack.engine.process().send_signal(signal.SIGKILL)
    at = time.time()
    outcome: Outcome = session.driver.result()
    stack.note(outcome)
    session.await_tail(stack.engine.redis_url, session.send_backlog(stack, 100))
    return Kill(at, outcome, lag)


def _wrong(stack: Preloaded) -> dict[str, int]:
    """By how many the messages that the engine keeps of each topic differ from those sent: lost, or taken in twice."""
    sent = {"user_activity_raw": stack.activity, "purchases_raw": stack.sent - stack.activity}

    def differences() -> dict[str, int]:
        rows = {source: stack.engine.ask(f"SELECT count(*) AS kept FROM {source}")[0] for source in sent}
        return {source: abs(count - int(rows[source]["kept"])) for source, count in sent.items()}

    wait_until(lambda: not any(differences().values()), COUNT_SECONDS, 0.2)  # one topic may be behind the other
    return differences()


# -- the section ------------------------------------------------------------------------------------------------------


def _section(session: Session, ups: list[dict[str, Any]], kills: list[Kill], wrong: dict[str, int]) -> Section:
    section = Section("restart", "Starting and restarting")
    kept = [{"repeat": n, "killed": k.at, **s._asdict()} for n, k in enumerate(kills) for s in k.outcome.samples]
    keep_samples(session.options, "restart", [*ups, *kept])
    section.notes.append(
        "`recs up` counts from the command to a list in Redis that reflects an event since then, and to the command's "
        "return. After a kill: until the first event sent after it shows, and until the last that took longer "
        f"than {AS_BEFORE} times the p99 before the kill. After all kills the messages that the engine keeps of each "
        "topic are counted and compared with those sent."
    )
    _started(section, ups)
    _killed(section, session, kills)
    lost = sum(wrong.values())
    section.add_claim("messages lost or taken in twice, after all kills", "0", number(lost), lost == 0)
    _figure(section, session, kills)
    return section


def _started(section: Section, ups: list[dict[str, Any]]) -> None:
    rows = []
    for parts, start in dict.fromkeys((up["parts"], up["start"]) for up in ups):
        found = [up for up in ups if (up["parts"], up["start"]) == (parts, start)]
        readable, healthy = (Spread.of([up[what] for up in found]) for what in ("readable", "healthy"))
        rows.append([parts, start, readable.text(1), healthy.text(1)])
        what = f"`recs up` ({parts}, {start} start) to the first recommendation"
        section.add_claim(what, f"< {AIM:.0f} s", f"{readable.text(1)} s", readable.median < AIM)
    section.add_table("Seconds from `recs up`", ["parts", "start", "first new recommendation", "all healthy"], rows)


def _killed(section: Section, session: Session, kills: list[Kill]) -> None:
    settled = Spread.of([kill.settled() for kill in kills])
    what = f"kill -9 of the engine at {session.options.rate:,} events/s, until as fresh as before"
    section.add_claim(what, f"< {AIM:.0f} s", f"{settled.text(1)} s", settled.median < AIM)
    lost = sum(kill.outcome.lost(Kind.RECOMMENDATIONS) for kill in kills)
    first, lag = Spread.of([kill.first() for kill in kills]), Spread.of([kill.lag for kill in kills])
    section.add_table(
        "Seconds after kill -9 of the engine",
        ["first event sent afterwards is shown", "as fresh as before", "events lag before", "probes lost"],
        [[first.text(1), settled.text(1), lag.text(), str(lost)]],
    )


def _figure(section: Section, session: Session, kills: list[Kill]) -> None:
    points = {}
    for n, kill in enumerate(kills):
        found = sorted(
            (s.intended - kill.at, s.latency) for s in kill.outcome.samples if s.kind == Kind.RECOMMENDATIONS
        )
        points[f"repeat {n + 1}"] = ([at for at, _ in found], [latency for _, latency in found])
    plots.lines(
        session.options.out / "restart.svg",
        f"The engine is killed at {session.options.rate:,} events/s",
        points,
        "seconds after the kill at which an event was due",
        "seconds until its effect is read",
    )
    section.figures.append(Figure("restart.svg", "Latency of events around the kill"))
