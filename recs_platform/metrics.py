"""A report in Prometheus' words.

Every number of a reading is a gauge `recs_<number>{box="…"}`, milliseconds as seconds; every counter a counter. What
was judged is `recs_well` (1 or 0), `recs_state` with the state as a label, and since when it is. Where nothing could be
looked at, `recs_look_failed` is 1 and alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from recs_platform.errors import RecsError
from recs_platform.lineage import Key, label
from recs_platform.monitor import Report

HELP: Mapping[str, str] = {
    "look_failed": "1 where nothing could be looked at, for a setting is wrong, or files of sql/ that never could be read; 0 otherwise",
    "files_wrong": "1 where a file of sql/ cannot be read, so that nothing is deployed; 0 otherwise",
    "lag_messages": "Messages that were sent and are not taken in",
    "lag_seconds": "At most how old the oldest message is that is not taken in",
    "dead_letters": "Messages of the last five minutes that could not be used",
    "dead_letter_share": "Share of the messages of the last five minutes that could not be used",
    "dead_letter_share_wanted": "Share of the messages that may be of no use, as the source's file says",
    "messages_lost": "Messages of a topic that could not be had any more when they were to be read, within a day, at least",
    "partitions": "Partitions of a topic",
    "held_up_seconds": "For how long nothing is taken in because the engine changes what is deployed",
    "messages": "Messages that were sent to a topic",
    "rows": "Rows of a relation or a catalog table",
    "bytes": "Size of a catalog table",
    "changes": "Rows of a catalog table that were inserted, updated or deleted",
    "freshness_p50_seconds": "From an event to its document in Redis, the half",
    "freshness_p99_seconds": "From an event to its document in Redis, all but a hundredth",
    "freshness_now_seconds": "From an event to its document in Redis, all but a hundredth of the last 15 seconds",
    "freshness_wanted_seconds": "From an event to its document in Redis at most, as the sink's file says",
    "barrier_seconds": "The slowest of a RisingWave's last barriers: what is sent waits for two of them",
    "canary_seconds": "From a canary to its document in Redis, the last one",
    "slot_active": "1 while a RisingWave reads through the replication slot, 0 while nobody does",
    "lag_bytes": "Write-ahead log that the replication slot has not confirmed",
    "retained_bytes": "Write-ahead log that PostgreSQL keeps for the replication slot",
    "bytes_until_lost": "Write-ahead log until PostgreSQL gives up the replication slot",
}


class Health(Collector):
    """Hands Prometheus the newest report whenever it asks."""

    def __init__(self, report: Callable[[], Report]) -> None:
        self._report = report

    def describe(self) -> Iterator[Metric]:
        """Nothing is asked of anybody while it is registered."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """Never raises for a look that fails: what the other collectors have would be gone with it."""
        found = list[Metric]()
        with suppress(RecsError):
            found = list(families(self._report()))
        yield GaugeMetricFamily("recs_look_failed", HELP["look_failed"], float(not found))
        yield from found


def families(report: Report) -> Iterator[Metric]:
    """All metrics of a report."""
    found: dict[str, Metric] = {}
    for reading in (*report.readings, *report.wanted):
        for name, number in reading.numbers.items():
            _add(found, *_in_seconds(name, number), reading.key, is_counter=False)
        for name, count in reading.counters.items():
            _add(found, name, count, reading.key, is_counter=True)
    yield from found.values()
    well = GaugeMetricFamily("recs_well", "Whether nothing is wrong with a box", labels=["box"])
    state = GaugeMetricFamily("recs_state", "1 for the state that a box is in", labels=["box", "state"])
    since = GaugeMetricFamily("recs_state_since_seconds", "Unix time since when a box is in its state", labels=["box"])
    for finding in report.findings:
        well.add_metric([label(finding.key)], float(finding.state.is_well))
        state.add_metric([label(finding.key), str(finding.state)], 1.0)
        since.add_metric([label(finding.key)], finding.since)
    watchers = GaugeMetricFamily(
        "recs_watcher_seen_seconds", "Unix time a sensor or daemon was last seen", labels=["watcher"]
    )
    for watcher in report.watchers:
        watchers.add_metric([watcher.name], watcher.seen_at or 0.0)
    wrong = GaugeMetricFamily("recs_files_wrong", HELP["files_wrong"], float(bool(report.files_problem)))
    yield from (well, state, since, watchers, wrong)


def _in_seconds(name: str, number: float) -> tuple[str, float]:
    return (f"{name.removesuffix('_ms')}_seconds", number / 1000) if name.endswith("_ms") else (name, number)


def _add(found: dict[str, Metric], name: str, number: float, key: Key, *, is_counter: bool) -> None:
    family = found.get(name)
    if family is None:
        kind = CounterMetricFamily if is_counter else GaugeMetricFamily
        family = found[name] = kind(f"recs_{name}", HELP.get(name, name), labels=["box"])
    family.add_metric([label(key)], number)  # type: ignore[attr-defined]  # both have it
