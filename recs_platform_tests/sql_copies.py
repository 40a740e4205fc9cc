"""`sql/` in a directory of a test's own, to be edited."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from recs_platform.pipeline import Pipeline
from recs_platform.settings import CDC, default_sql_dir


def sql_copy(directory: Path, edit: Callable[[str, str], str] = lambda name, text: text, *, catalog: str = CDC) -> Path:
    """Writes each relation's file, flat, as `edit` makes it of its name and text; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for relation in Pipeline.load(default_sql_dir(), catalog):
        (directory / relation.path.name).write_text(edit(relation.name, relation.text))
    return directory
