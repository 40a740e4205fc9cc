"""The files of `sql/`: a check that says which of them cannot be read, and a sensor that also has Dagster's pages show them as
they are."""

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import dagster as dg

from recs_platform import last_files
from recs_platform.defs.resources import Platform, pipeline_now
from recs_platform.defs.verdict import News, Verdict, parts
from recs_platform.errors import PipelineError, RecsError
from recs_platform.pipeline import Kind, Pipeline
from recs_platform.watchers import reload_code, versions_shown

CHECK = "sql_file"
EVERY = 30  # seconds between looks
AT_LEAST_EVERY = 3600  # seconds between evaluations that say the same
RELOADS = 3  # of Dagster's web server for one state of the files


@dg.definitions
def definitions() -> dg.Definitions:
    pipeline = pipeline_now()
    return dg.Definitions(asset_checks=[checks(pipeline)], sensors=[watcher(pipeline)])


def checks(pipeline: Pipeline) -> dg.AssetChecksDefinition:
    specs = [
        dg.AssetCheckSpec(CHECK, asset=dg.AssetKey(r.name), description="Whether its file can be read.")
        for r in pipeline
    ]

    @dg.multi_asset_check(specs=specs, can_subset=True)
    def sql_file(
        context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]
    ) -> Iterator[dg.AssetCheckResult]:
        """Reads all files anew."""
        verdicts = _judged(pipeline, last_files.load(platform.settings()).problem)
        yield from (v.result() for v in verdicts if v.key in context.selected_asset_check_keys)

    return sql_file


def watcher(pipeline: Pipeline) -> dg.SensorDefinition:
    @dg.sensor(
        name="sql_files",
        target=None,
        minimum_interval_seconds=EVERY,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Sees files of sql/ that cannot be read; has Dagster's pages load those that have changed.",
    )
    def sql_files(context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.SensorResult:
        """While a file is wrong, all that watches and repairs goes on by the files of before."""
        told, reloaded = parts(context.cursor, 2)
        try:
            settings = platform.settings()
            files = last_files.load(settings)
        except RecsError as error:
            return dg.SensorResult(skip_reason=str(error), cursor=context.cursor)
        news = News.load(told)
        events = news.to_tell(_judged(pipeline, files.problem), context.instance, time.time(), AT_LEAST_EVERY)
        reloaded = _shown(settings.dagster_url, files.pipeline, reloaded) if settings.dagster_url else ""
        words = str(files.problem) if files.problem else f"{len(files.pipeline.relations)} files can be read"
        return dg.SensorResult(asset_events=events, skip_reason=words, cursor=f"{news.dump()}\n{reloaded}")

    return sql_files


def _shown(dagster_url: str, pipeline: Pipeline, reloaded: str) -> str:
    """Has the web server load its code anew where it shows other files. `reloaded`: for which files that has been tried how often,
    or is done; returns what to hand in at the next look."""
    digest, _, tried = reloaded.partition(" ")
    tries = int(tried or 0) if digest == pipeline.digest else 0
    with suppress(
        OSError, ValueError, KeyError, TypeError
    ):  # whoever watches the watchers tells of a server that is away
        if tries < RELOADS and versions_shown(dagster_url) == {r.name: r.fingerprint for r in pipeline}:
            tries = RELOADS
        elif tries < RELOADS:
            tries += 1
            reload_code(dagster_url)
    return f"{pipeline.digest} {tries}"


def _judged(pipeline: Pipeline, problem: PipelineError | None) -> Iterator[Verdict]:
    wrong = _concerned(pipeline, problem) if problem else frozenset[str]()
    for relation in pipeline:
        is_wrong = relation.name in wrong
        words = f"{problem}. What is deployed goes on; nothing is deployed until the file can be read"
        yield Verdict(
            dg.AssetKey(relation.name),
            CHECK,
            not is_wrong,
            words if is_wrong else "its file can be read",
            said=words if is_wrong else "",
        )


def _concerned(pipeline: Pipeline, problem: PipelineError) -> frozenset[str]:
    """The box of the file that is wrong; of one that has none yet those that it names, and all sinks where it names none."""
    path = problem.path or Path()
    if path.stem in pipeline.relations:
        return frozenset({path.stem})
    text = ""
    with suppress(OSError, UnicodeDecodeError):
        text = path.read_text() if problem.path else ""
    named = frozenset(re.findall(r"\w+", text)) & pipeline.relations.keys()
    return named or frozenset(sink.name for sink in pipeline.of_kind(Kind.SINK))
