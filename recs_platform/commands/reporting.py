"""Errors made for people, shown as one line instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from recs_platform.errors import RecsError


@contextmanager
def reported() -> Iterator[None]:
    """`RecsError` ends the command with exit code 1, and so does what this machine refuses; `ValueError` (a wrong argument) with 2."""
    try:
        yield
    except RecsError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
