"""Looks at everything there is and judges it, for whoever asks: Dagster, `recs status`, `/healthz`, `/metrics`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from threading import Lock

from recs_platform import canary, last_files
from recs_platform.dead_letters import kept_of, recent, share_wanted
from recs_platform.engines import connect
from recs_platform.engines.status import Status
from recs_platform.errors import RecsError
from recs_platform.health import Finding, Memory, Seen, State, dump_memory, freshness_wanted, judge, load_memory, worst
from recs_platform.lineage import Key, catalog_key, relation_key, topic_key
from recs_platform.pipeline import Kind, Pipeline
from recs_platform.readings import Reading, of_catalog, of_stream, with_dead_letters
from recs_platform.schema import copies
from recs_platform.settings import LOCAL, Settings
from recs_platform.stack.dagster import DAEMON
from recs_platform.stack.state import load as load_stack
from recs_platform.watchers import WEB_SERVER, Watcher, ask, web_server
from recs_platform.whole_file import keep_whole

ENGINE_SECONDS = 10.0
WATCH_SECONDS = 5.0  # that a watch waits for the engine: whoever scrapes it must have its answer within fifteen
WATCHERS_EVERY = 30.0  # seconds between two questions to Dagster
AT_MOST_EVERY = 5.0  # seconds between looks of one watch
REMEMBERED = "health.json"
# whose problems are told of with the boxes they are of
PARTS_OF_BOXES = frozenset({"engine", "kafka", "catalog", "redis"})


@dataclass(frozen=True)
class Report:
    """What was found at one moment, in seconds since 1970: a finding and mostly a reading of each box.

    `engine` is what the engine said of itself (`StreamEngine.status`), nothing where it did not answer. Where a `Watch` looked:
    `watchers`, Dagster's, where that runs here, and what is `wanted` of boxes, named as what is measured of them;
    `files_problem`: which file of `sql/` cannot be read, so that boxes are those of the files before.
    """

    at: float
    readings: tuple[Reading, ...]
    findings: tuple[Finding, ...]
    engine: Status = field(default_factory=Status)
    watchers: tuple[Watcher, ...] = ()
    wanted: tuple[Reading, ...] = ()
    files_problem: str = ""

    @property
    def late_watchers(self) -> list[Watcher]:
        """Those of Dagster's sensors and daemons that have not been seen for too long."""
        return [watcher for watcher in self.watchers if watcher.is_late(self.at)]

    @property
    def state(self) -> State:
        return worst(self.findings)

    @property
    def counts(self) -> str:
        """How many boxes are in each state: `35 fresh, 2 stalled`."""
        count = Counter(finding.state for finding in self.findings)
        return ", ".join(f"{count[state]} {state}" for state in State if count[state])

    @property
    def causes(self) -> list[Finding]:
        """The boxes where trouble began, without those that merely suffer from it."""
        return [f for f in self.findings if not f.state.is_well and f.blame == f.key] or self._suffering()

    def _suffering(self) -> list[Finding]:
        """One for each thing to blame that is no box, such as the engine itself."""
        ill = {f.blame: f for f in reversed(self.findings) if not f.state.is_well}
        return list(reversed(ill.values()))


@dataclass
class Read:
    """The readings of every part that answered, what the engine says of itself, and why a part did not answer."""

    status: Status = field(default_factory=Status)
    readings: list[Reading] = field(default_factory=list)
    engine_problem: str = ""
    catalog_problem: str = ""


def read_all(settings: Settings, pipeline: Pipeline, patience: float = ENGINE_SECONDS) -> Read:
    """Waits for the engine at most `patience` seconds. Never raises for a part that is away."""
    read = Read()
    try:
        read.status, read.readings = _engine(settings, pipeline, patience)
        read.engine_problem = read.status["problems"].get("engine", "")
    except RecsError as error:
        read.engine_problem = str(error)
    try:
        read.readings += _catalog(
            settings, pipeline, slot_of(settings, read.status), read.status.get("slot_remedy", "")
        )
    except RecsError as error:
        read.catalog_problem = str(error)
    return read


def look(
    settings: Settings, pipeline: Pipeline, memory: Memory, patience: float = ENGINE_SECONDS
) -> tuple[Report, dict[Key, Seen]]:
    """Takes readings of what answers, the engine within `patience` seconds, and judges them. Never raises for a part that is
    away: that is a finding."""
    read = read_all(settings, pipeline, patience)
    status, readings, away = read.status, read.readings, read.engine_problem
    if read.catalog_problem:
        readings += [Reading(key, state={"problem": read.catalog_problem}) for key in _catalog_keys(pipeline)]
    now = time.time()
    flights = canary.remembered(settings.state_dir, now)
    readings = [_with_flight(reading, flights) for reading in readings]
    findings, after = judge(pipeline, readings, memory, now, away, _of_no_box(status))
    is_well = all(finding.state.is_well for finding in findings)
    held_up_until = status.get("held_up_until", 0.0)
    findings = [_with_loss(finding, flights, is_well, held_up_until) for finding in findings]
    return Report(now, tuple(readings), tuple(findings), status), after


def _of_no_box(status: Status) -> dict[str, str]:
    """What is wrong with the engine that no reading of a box tells."""
    problems = status.get("problems", {})
    return {part: words for part, words in problems.items() if part.partition("/")[0] not in PARTS_OF_BOXES}


def _with_flight(reading: Reading, flights: Sequence[canary.Flight]) -> Reading:
    took = [f.seconds for f in flights if (f.sink,) == reading.key and f.seconds is not None]
    return replace(reading, numbers={**reading.numbers, "canary_seconds": round(took[0], 4)}) if took else reading


def _with_loss(
    finding: Finding, flights: Sequence[canary.Flight], is_well: bool, held_up_until: float = 0.0
) -> Finding:
    """Where all else is well, and was when it was sent, a canary that does not come in time is a finding. Otherwise it may be
    late because of that, until it is lost; what is known to stand still or to be broken explains that, too, and so does an
    engine that took nothing in meanwhile."""
    late = [flight for flight in flights if (flight.sink,) == finding.key and flight.seconds is None]
    lost = [
        flight
        for flight in late
        if flight.sent_at > held_up_until
        and (flight.is_lost_since(held_up_until) or (is_well and flight.sent_at >= finding.since))
    ]
    if not lost or finding.state.rank > State.BEHIND.rank:
        return finding
    words = f"a canary: {lost[0].words}"
    next_step = "`recs doctor` sends another; look at the engine's log"
    return Finding(finding.key, State.BROKEN, lost[0].lost_since, words, next_step, finding.key)


def look_and_remember(settings: Settings, pipeline: Pipeline, patience: float = ENGINE_SECONDS) -> Report:
    """With what was known to whoever looked last, in whichever process: kept in the state directory, as far as that can be
    written."""
    path = settings.state_dir / REMEMBERED
    report, memory = look(settings, pipeline, load_memory(_text(path)), patience)
    keep_whole(path, dump_memory(memory))
    return report


def _engine(settings: Settings, pipeline: Pipeline, patience: float) -> tuple[Status, list[Reading]]:
    """What it says of itself, and the readings of it."""
    with connect(settings, patience) as engine:
        status = engine.status()
        readings = of_stream(status, pipeline)
        with suppress(RecsError):  # Kafka is away, or the relation is: both are told of without this
            letters = recent(engine, pipeline, status, settings.require("kafka_bootstrap_servers"))
            readings = with_dead_letters(readings, letters)
        return status, readings


def slot_of(settings: Settings, status: Status) -> str | None:
    """The replication slot that the engine says it reads through, or would; None where nobody knows."""
    return status.get("slot") or (settings.replication_slot if settings.engine == LOCAL else None)


def _catalog(settings: Settings, pipeline: Pipeline, slot: str | None, remedy: str) -> list[Reading]:
    """With the slot that the engine says it reads through. Raises `SourceError`, or `SettingsError` when no stack runs."""
    if not copies(pipeline):
        return []
    return of_catalog(settings.require("postgres_url"), slot, pipeline, remedy)


class Watch:
    """Looks when asked, and no more often than every few seconds. What it saw last is kept in the state directory, so
    that whoever looks next knows since when. Safe to share between threads."""

    def __init__(
        self, settings: Callable[[], Settings] = Settings.load, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings, self._clock = settings, clock
        self._last: Report | None = None
        self._watchers: tuple[Watcher, ...] = ()
        self._watchers_at = 0.0
        self._answered_at: float | None = None
        self._lock = Lock()

    def report(self) -> Report:
        """Raises `SettingsError`, and `PipelineError` for files that never could be read; a part that is away is in the report."""
        with self._lock:
            if self._last is None or not 0 <= self._clock() - self._last.at < AT_MOST_EVERY:
                self._last = self._look()
            return self._last

    def _look(self) -> Report:
        settings = self._settings()
        files = last_files.load(settings)
        report = look_and_remember(settings, files.pipeline, WATCH_SECONDS)
        return replace(
            report,
            watchers=self._watching(settings, report.at),
            wanted=tuple(_wanted(files.pipeline)),
            files_problem=str(files.problem or ""),
        )

    def _watching(self, settings: Settings, now: float) -> tuple[Watcher, ...]:
        """Asked now and then: what is asked costs the web server more than all else here. Where it does not answer, those that
        were there before grow late, and so does the web server itself."""
        if settings.dagster_url and now - self._watchers_at >= WATCHERS_EVERY:
            self._watchers_at = now
            try:
                began = _daemon_began(settings.state_dir)
                self._watchers = tuple(replace(watcher, since=began) for watcher in ask(settings.dagster_url))
                self._answered_at = now
            except (OSError, HTTPException, ValueError, KeyError, TypeError):
                known = (watcher for watcher in self._watchers if watcher.name != WEB_SERVER)
                self._watchers = (*known, web_server(self._answered_at, settings.shown("dagster_url")))
        return self._watchers


def _daemon_began(state_dir: Path) -> float | None:
    """When the Dagster daemon of the stack here was started; None where it is no part of it."""
    parts = stack.parts if (stack := load_stack(state_dir)) else []
    since = next((part.since for part in parts if part.name == DAEMON), "")
    return datetime.fromisoformat(since).timestamp() if since else None


def _wanted(pipeline: Pipeline) -> Iterator[Reading]:
    """Up to where sinks are fresh and topics are clean, as the headers of the files say."""
    for sink in pipeline.of_kind(Kind.SINK):
        yield Reading(relation_key(sink.name), {"freshness_wanted_seconds": freshness_wanted(sink)})
    for topic in kept_of(pipeline):
        yield Reading(topic_key(topic), {"dead_letter_share_wanted": share_wanted(pipeline.topics[topic])})


def _catalog_keys(pipeline: Pipeline) -> Iterable[Key]:
    return [catalog_key(copy.catalog_table) for copy in copies(pipeline)]


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
