"""How fast the library answers, and the engine when asked itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench import plots
from bench.asking import TASKS, Asking, at_a_rate, at_the_limit, at_the_limit_async, known_shoppers
from bench.report import Figure, Section, keep_samples
from bench.session import Preloaded, Session
from bench.stats import Spread, number, percentile

QUESTIONS: Mapping[str, tuple[str, float]] = {
    "GET": ("raw Redis GET of a list: the floor", 100.0),
    "hit": ("`get_user_recommendations`, a shopper with a list (hit)", 100.0),
    "miss": ("`get_also_bought`, an unknown product (miss)", 100.0),
    "cold": ("`get_user_recommendations`, a shopper never seen (cold)", 100.0),
    "trending": ("`get_trending_products`", 100.0),
    "direct list": ("`get_recommendations_direct`", 20.0),
    "direct tuples": ("`fetch`, ten rows as tuples", 20.0),
    "direct DataFrame": ("`fetch`, ten rows as a DataFrame", 20.0),
}
"""What it is called in the report, and how many a second are asked."""

CLIENTS: Mapping[str, tuple[Callable[[Asking], float], int]] = {
    "1 thread": (at_the_limit, 1),
    "4 threads": (at_the_limit, 4),
    f"asyncio, {TASKS} at a time": (at_the_limit_async, 1),
}
ASYNC = ("hit", "cold")
PERCENTS = (50.0, 99.0, 99.9)


def measure(session: Session) -> Section:
    """The client is the driver's process: what it spends is part of the answer."""
    stack, o = session.shared(), session.options
    users = known_shoppers(stack.engine.redis_url)
    latencies, limits = list[dict[str, Any]](), list[dict[str, Any]]()
    for repeat in range(o.repeats):
        for question, (_, rate) in QUESTIONS.items():
            session.say(f"asking: {question}, repeat {repeat + 1} of {o.repeats}")
            asking = _asking(session, stack, users, question, rate)
            took = session.driver.run(at_a_rate, asking)
            latencies += [{"question": question, "repeat": repeat, "latency": seconds} for seconds in took]
            limits += [
                {"question": question, "repeat": repeat, "client": client, "rate": found}
                for client, found in _limits(session, asking).items()
            ]
    keep_samples(o, "serving", latencies)
    keep_samples(o, "serving_limits", limits)
    return _section(session, Answers(latencies, limits))


def _asking(session: Session, stack: Preloaded, users: tuple[int, ...], question: str, rate: float) -> Asking:
    seconds = session.options.seconds / (5 if session.options.quick else 2)
    return Asking(question, stack.engine.redis_url, str(stack.engine.state_dir), users, rate, seconds)


def _limits(session: Session, asking: Asking) -> dict[str, float]:
    found = {}
    for client, (ask, threads) in CLIENTS.items():
        if ask is at_the_limit or asking.question in ASYNC:
            limited = replace(asking, threads=threads, seconds=asking.seconds / 3)
            found[client] = session.driver.run(ask, limited)
    return found


@dataclass(frozen=True)
class Answers:
    """The samples of all repeats."""

    latencies: list[dict[str, Any]]
    limits: list[dict[str, Any]]

    def took(self, question: str) -> list[float]:
        """Milliseconds."""
        return [1000 * row["latency"] for row in self.latencies if row["question"] == question]

    def spread(self, question: str, percent: float) -> Spread:
        """Of a percentile over the repeats, in milliseconds."""
        rows = [row for row in self.latencies if row["question"] == question]
        repeats = sorted({row["repeat"] for row in rows})
        each = [[1000 * row["latency"] for row in rows if row["repeat"] == n] for n in repeats]
        return Spread.of([percentile(took, percent) for took in each])

    def most(self, question: str, client: str) -> str:
        found = [row["rate"] for row in self.limits if (row["question"], row["client"]) == (question, client)]
        return Spread.of(found).text() if found else ""


def _section(session: Session, answers: Answers) -> Section:
    section = Section("serving", "Serving")
    for question in ("hit", "cold"):
        p99, p999 = (answers.spread(question, percent).text(2) for percent in (99, 99.9))
        section.add_claim(f"{QUESTIONS[question][0]}, p99", "", f"{p99} ms, p99.9 {p999} ms", None)
    section.notes.append(
        "The client is one Python process. At a rate: open loop, one thread, latency from when the question was due. "
        "At the limit: every thread asks again as soon as it is answered. No events are sent meanwhile. A list costs "
        "two round trips to Redis, three when it must be filled up; `fetch` opens a connection for every call."
    )
    section.add_table(
        "Milliseconds at a fixed rate",
        ["question", "a second", "p50", "p99", "p99.9", "answers"],
        [_row(answers, question) for question in QUESTIONS],
    )
    section.add_table(
        "Answers a second at the limit",
        ["question", *CLIENTS],
        [[name, *(answers.most(q, client) for client in CLIENTS)] for q, (name, _) in QUESTIONS.items()],
    )
    plots.distributions(
        session.options.out / "serving.svg",
        "From question to answer, at a fixed rate",
        {question: answers.took(question) for question in QUESTIONS},
        "milliseconds",
    )
    section.figures.append(Figure("serving.svg", "How many answers took longer than so many milliseconds"))
    return section


def _row(answers: Answers, question: str) -> list[str]:
    name, rate = QUESTIONS[question]
    percents = [answers.spread(question, percent).text(2) for percent in PERCENTS]
    return [name, number(rate), *percents, number(len(answers.took(question)))]
