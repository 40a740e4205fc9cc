"""The files of `sql/` as they could be read last, kept in the state directory: whoever looks on goes on while one is wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from recs_platform.errors import PipelineError
from recs_platform.pipeline import Pipeline
from recs_platform.settings import Settings
from recs_platform.whole_file import keep_whole

KEPT = "files.json"


@dataclass(frozen=True)
class LastFiles:
    """`problem`: why the files as they are now cannot be read, and these are those of before."""

    pipeline: Pipeline
    problem: PipelineError | None = None


def load(settings: Settings) -> LastFiles:
    """The files as they are, or as they were when they could be read last.

    Raises `PipelineError` where they never could, with these settings.
    """
    try:
        pipeline = Pipeline.of(settings)
    except PipelineError as error:
        kept = _kept(settings)
        if kept is None:
            raise
        return LastFiles(kept, error)
    _keep(settings, pipeline)
    return LastFiles(pipeline)


def _keep(settings: Settings, pipeline: Pipeline) -> None:
    text = json.dumps({"of": _of(settings), "files": [[str(r.path), r.text] for r in pipeline]})
    if _text(settings) != text:
        keep_whole(settings.state_dir / KEPT, text)


def _text(settings: Settings) -> str:
    try:
        return (settings.state_dir / KEPT).read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _kept(settings: Settings) -> Pipeline | None:
    """None where there are none, or they are others' or another release's."""
    try:
        found = json.loads(_text(settings))
        if found["of"] != _of(settings):
            return None
        return Pipeline.of_files((Path(path), text) for path, text in found["files"])
    except (ValueError, KeyError, TypeError, PipelineError):
        return None


def _of(settings: Settings) -> list[str]:
    """Whose files they are."""
    return [str(settings.sql_dir), settings.catalog, settings.engine]
