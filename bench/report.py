"""The report: a section a part, each kept as JSON, and the page that is rendered from all of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from bench import machine
from bench.options import Options

REPORT, SAMPLES = "report.md", "samples"

METHOD = """\
The driver is a process of its own, outside of what is measured and pinned to the last core; with three or more cores
everything measured is kept off that core. Traffic is open loop: every event has a time it is due, latency counts from
that time and never from when it was sent, and how late the driver was is shown. An event is fresh when the document
it leads to can be read from Redis, looked for every 2 ms; a probe not seen in time is counted with the time it was
waited for, and as lost. Traffic is seeded: products follow Zipf's law (exponent 1), shoppers' activity is log-normal
(the busiest hundredth sends a fifth), arrivals are random (Poisson). Warm-up is left out. Repeats of different
contenders or rates are interleaved (A B C, A B C); shown are the median and, in brackets, the lowest and highest
repeat. The embedded broker gets slower to read with every small batch it holds: it is emptied before each run, so
that runs are alike, and what that does over minutes shows in the sustained rate. CPU is user and system time of a part
with all its processes; what the driver's looking costs Valkey is in Valkey's. A catalog change counts from when its
UPDATE returned. A p99 of fewer than 1,000 samples, or a p99.9 of fewer than 10,000, stands on fewer than ten of them.
How many of the events are of the current hour, on which the cost of a tick depends, is a matter of the minute at which
a part began: it stands below each."""


@dataclass
class Claim:
    """Something aimed at: `met` is None where there is no aim, only a figure."""

    what: str
    aim: str
    measured: str
    met: bool | None

    @property
    def verdict(self) -> str:
        return {True: "met", False: "missed", None: ""}[self.met]


@dataclass
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclass
class Figure:
    """An SVG file beside the report."""

    file: str
    caption: str


@dataclass
class Section:
    """All that one part has to say."""

    part: str
    title: str
    claims: list[Claim] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    failed: bool = False

    @classmethod
    def failure(cls, part: str, error: Exception) -> Section:
        """In place of a part that could not be measured."""
        why = f"{type(error).__name__}: {error}".replace("\n", " ")
        claim = Claim("could not be measured", "", why[:200], False)
        return cls(part, part.capitalize(), [claim], notes=[f"Could not be measured: {why}"], failed=True)

    def add_table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        self.tables.append(Table(title, list(columns), [list(row) for row in rows]))

    def add_claim(self, what: str, aim: str, measured: str, met: bool | None) -> None:
        self.claims.append(Claim(what, aim, measured, None if met is None else bool(met)))


def keep(section: Section, options: Options) -> None:
    """Writes the part's result, with what it was measured on and how."""
    section.facts |= {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": options.command,
        "quick": options.quick,
        "seed": options.seed,
        "repeats": options.repeats,
        "sizes": f"{options.events:,} events, {options.users:,} shoppers, {options.products:,} products, "
        f"{options.categories:,} categories",
        "machine": machine.describe(),
        "speed": machine.speed(),
        "versions": machine.versions(),
    }
    path = options.out / f"{section.part}.json"
    path.write_text(json.dumps(asdict(section), indent=1, default=str))


def keep_samples(options: Options, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The raw samples of a measurement, one row each."""
    directory = options.out / SAMPLES
    directory.mkdir(exist_ok=True)
    pd.DataFrame(list(rows)).to_csv(directory / f"{name}.csv.gz", index=False, float_format="%.6f")


def load(path: Path) -> Section:
    found = json.loads(path.read_text())
    return Section(
        found["part"],
        found["title"],
        [Claim(**claim) for claim in found["claims"]],
        [Table(**table) for table in found["tables"]],
        [Figure(**figure) for figure in found["figures"]],
        found["notes"],
        found["facts"],
        found.get("failed", False),
    )


def render(out: Path, order: Sequence[str]) -> Path:
    """Writes the page from the parts that have been measured so far."""
    sections = [load(path) for part in order if (path := out / f"{part}.json").exists()]
    page = out / REPORT
    page.write_text("\n\n".join(_page(sections)) + "\n")
    return page


def _page(sections: list[Section]) -> Iterable[str]:
    yield "# How fast the platform is, what it costs, and how that grows"
    if any(section.facts["quick"] for section in sections):
        yield "**A quick run: it shows that everything can be measured. Its figures mean nothing.**"
    claims = [[s.title, c.what, c.aim, c.measured, c.verdict] for s in sections for c in s.claims]
    yield _table(["part", "what", "aim", "measured", ""], claims)
    yield METHOD
    for section in sections:
        yield from _section(section)
    yield from _setting(sections)


def _section(section: Section) -> Iterable[str]:
    facts = section.facts
    yield f"## {section.title}"
    yield from section.notes
    for table in section.tables:
        yield f"**{table.title}**"
        yield _table(table.columns, table.rows)
    for figure in section.figures:
        yield f"![{figure.caption}]({figure.file})"
    minute = f"begun in minute {facts['start_minute']} of the hour, " if "start_minute" in facts else ""
    yield (
        f"`{facts['command']}`, {minute}{facts['date']}, {facts['sizes']}, repeats {facts['repeats']}, seed {facts['seed']}. "
        f"{_speed(facts.get('speed', {}))}"
    )


def _speed(measured: Mapping[str, float]) -> str:
    works = {"statement": "a small statement of DuckDB", "loop": "a loop over a million in Python"}
    found = [f"{works[work]} {took:.1f} ms" for work, took in measured.items()]
    return f"Right after it: {', '.join(found)}; figures of another time or machine compare by these." if found else ""


def _setting(sections: list[Section]) -> Iterable[str]:
    """Machine and versions; once where all parts were measured on the same."""
    seen = set[str]()
    for section in sections:
        rows = [[k, v] for kind in ("machine", "versions") for k, v in section.facts[kind].items() if k != "memory"]
        text = _table(["measured on", ""], [*rows, ["memory", section.facts["machine"]["memory"].partition(",")[0]]])
        if text not in seen:
            yield "## The machine" if not seen else f"## The machine of {section.title.lower()}"
            yield text
        seen.add(text)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
