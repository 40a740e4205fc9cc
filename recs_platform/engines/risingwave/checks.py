"""What a RisingWave would refuse or do wrong, said before any statement."""

from __future__ import annotations

import re
from collections.abc import Iterable

from recs_platform.errors import EngineError, PipelineError
from recs_platform.pipeline import Relation
from recs_platform.schema import CatalogColumn

OLDEST = (2, 8)  # what the statements were run on
NEWEST_POSTGRES = {(2, 8): 17, (3, 0): 18}  # RisingWave from → the newest PostgreSQL it reads changes of

LICENSED = {
    "Redis streams": re.compile(r"redis_value_type\s*=\s*'stream'", re.IGNORECASE),
    "questions about the past": re.compile(r"FOR\s+SYSTEM_TIME\s+AS\s+OF\s+(?!PROCTIME)", re.IGNORECASE),
    "resource groups": re.compile(r"resource_group", re.IGNORECASE),
}
"""Feature → how it is recognised in a file. Secrets and automatic schema changes do not even parse here."""

_FLOATS, _WHOLE = ("DOUBLE PRECISION", "DOUBLE", "REAL"), ("NUMERIC", "DECIMAL")
NOT_COPIED = {
    "numeric": (_FLOATS, "DECIMAL"),
    "bigint": ((*_FLOATS, *_WHOLE), "BIGINT"),
    "integer": ((*_FLOATS, *_WHOLE), "INTEGER"),
    "smallint": ((*_FLOATS, *_WHOLE), "SMALLINT"),
}
"""A type of PostgreSQL → those it is not copied as though every value of it would fit, and one that it is."""

_VERSION = re.compile(r"RisingWave-(\d+)\.(\d+)")


def risingwave_version(text: str) -> tuple[int, int]:
    """Of what `version()` gives. Raises `EngineError` where it is another database, or too old."""
    match = _VERSION.search(text)
    if match is None:
        raise EngineError(f"RECS_RISINGWAVE_URL leads to something that is no RisingWave: {text!r}")
    found = int(match[1]), int(match[2])
    if found < OLDEST:
        raise EngineError(f"RisingWave {_dotted(found)} is too old: {_dotted(OLDEST)} or later is wanted")
    return found


def check_postgres(risingwave: tuple[int, int], postgres: int) -> None:
    """Raises `EngineError` where this RisingWave refuses to read the changes of this PostgreSQL."""
    newest = NEWEST_POSTGRES[max(since for since in NEWEST_POSTGRES if since <= risingwave)]
    if postgres > newest:
        raise EngineError(
            f"RisingWave {_dotted(risingwave)} reads changes of PostgreSQL up to {newest}, and the catalog is in {postgres}: "
            "use an older PostgreSQL or a newer RisingWave"
        )


def check_types(relation: Relation, columns: Iterable[CatalogColumn]) -> None:
    """Of a copy of a table. Raises `PipelineError` for a column that RisingWave would not copy into what is declared."""
    declared = {column.name: column.type.upper() for column in relation.columns}
    for column in columns:
        refused, instead = NOT_COPIED.get(column.type, ((), ""))
        if (wanted := declared.get(column.name)) in refused:
            raise PipelineError(
                f"RisingWave does not copy {column.name}, which is {column.type} in PostgreSQL, as {wanted}: declare it as "
                f"{instead}, and cast it where it is read",
                relation.path,
            )


def check_licence(relation: Relation) -> None:
    """Raises `PipelineError` for what works on a trial key of four cores and fails in production."""
    for feature, pattern in LICENSED.items():
        match = pattern.search(relation.text)
        if match:
            line = relation.text.count("\n", 0, match.start()) + 1
            raise PipelineError(f"{feature} of RisingWave need a licence: do without", relation.path, line)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
