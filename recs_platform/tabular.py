"""Reading tables from files: CSV or TSV, plain or gzip, every row with its line number."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from recs_platform.errors import SourceError

_GZIP = b"\x1f\x8b"
_DELIMITERS = "\t,;|"


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """The file as text, unpacked when it begins like gzip, whatever its name.

    Raises `SourceError` naming the file when it cannot be opened, and from inside the block when it is
    not UTF-8, not a whole gzip file or not the kind of table `rows` reads.
    """
    try:
        with path.open("rb") as probe:
            packed = probe.read(2) == _GZIP
        opener = gzip.open if packed else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as text:
            yield text
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start} of a block)") from None
    except (EOFError, zlib.error):
        raise SourceError(f"{path}: the gzip file is damaged, or ends too early: fetch it again") from None
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from None
    except csv.Error as error:
        raise SourceError(f"{path}: not a CSV or TSV file: {error}") from None


def rows(path: Path, text: TextIO) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header, and an iterator of (line number, fields); blank lines are left out.

    The delimiter (tab, comma, semicolon or bar) is the one the header has most of. Raises `SourceError` for a file
    without a header, and while iterating for a row with more or fewer fields than the header, naming its line.
    """
    first = text.readline()
    if not first.strip():
        raise SourceError(f"{path}: empty; the first line must name the columns")
    delimiter = max(_DELIMITERS, key=first.count)
    header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter))]
    return header, _numbered(path, header, csv.reader(text, delimiter=delimiter))


def _numbered(path: Path, header: list[str], reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    for fields in reader:
        if len(fields) == len(header):
            yield reader.line_num + 1, fields  # type: ignore[attr-defined]  # the header was read before
        elif fields:
            line = reader.line_num + 1  # type: ignore[attr-defined]
            raise SourceError(f"{path}:{line}: {len(fields)} fields where the header names {len(header)}")
