"""The statements a RisingWave is sent, word for word, for each step of a plan."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from sqlglot.errors import SqlglotError
from sqlglot.tokenizer_core import TokenType
from sqlglot.tokens import Tokenizer

from recs_platform.columns import DIALECT
from recs_platform.deployment import Version
from recs_platform.physical_names import VersionId, physical_name, physical_names
from recs_platform.pipeline import Relation, render
from recs_platform.settings import Settings

_QUESTIONS = {"SELECT", "WITH", "EXPLAIN", "SHOW", "DESCRIBE"}


def statement(relation: Relation, targets: Mapping[str, VersionId], settings: Settings) -> str:
    """The file's statement for one version of everything it names. Holds secrets."""
    version = targets[relation.name]
    variables = settings.sql_variables() | {
        "version": str(version),
        # two versions of a source stand side by side for a while, and one slot has one reader
        "replication_slot": slot_name(settings.replication_slot, version),
    }
    text = relation.statement.renamed(physical_names(targets))
    return render(text, variables, settings.kafka_options()).rstrip().rstrip(";")


def query_of(sink: Relation, targets: Mapping[str, VersionId]) -> str:
    return render(sink.statement.query_renamed(physical_names(targets)), {"version": str(targets[sink.name])})


def is_one_question(sql: str) -> bool:
    """Whether it is one statement, and one that changes nothing."""
    try:
        tokens = Tokenizer(dialect=DIALECT).tokenize(sql)
    except SqlglotError:
        return False
    kinds = [token.token_type for token in tokens]
    ends = kinds.index(TokenType.SEMICOLON) + 1 if TokenType.SEMICOLON in kinds else len(kinds)
    return bool(tokens) and tokens[0].text.upper() in _QUESTIONS and ends == len(kinds)


def differences(
    key: Sequence[str], there: Iterable[Mapping[str, object]], wanted: Iterable[Mapping[str, object]]
) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """The keys of rows to take away, and the rows to put, for a table to hold what is wanted."""
    old, new = ({tuple(row[k] for k in key): tuple(row.values()) for row in rows} for rows in (there, wanted))
    return [k for k in old if k not in new], [row for k, row in new.items() if old.get(k) != row]


def slot_name(prefix: str, version: VersionId) -> str:
    return f"{prefix}_{version}"


def publication(name: str, version: VersionId, views: set[str]) -> list[str]:
    """The statements after which a public name stands for a version, given the views that are there.

    Swapping the names of two views is one step. The helper stands for the former version then, and is to be dropped.
    """
    selected = f"AS SELECT * FROM {physical_name(name, version)}"
    if name not in views:
        return [f"CREATE VIEW {name} {selected}"]
    helper = helper_of(name, version, views)
    return [f"CREATE VIEW {helper} {selected}", f"ALTER VIEW {name} SWAP WITH {helper}"]


def helper_of(name: str, version: VersionId, views: set[str]) -> str:
    """A name that no view has, of those that `helpers` finds."""
    wanted = f"{name}__next_{version}"
    return next(n for i in itertools.count() if (n := f"{wanted}x{i}" if i else wanted) not in views)


def helpers(name: str, views: set[str]) -> set[str]:
    """What switches of a name have left: one that was cut short, or one of whose former view somebody else reads."""
    ours = re.compile(rf"{name}__next(_[0-9a-f]{{8}}(_\d+)?(x\d+)?)?")
    return {view for view in views if ours.fullmatch(view)}


def removal(version: Version) -> str:
    """The statement that drops a version."""
    is_materialized = re.search(r"^\s*CREATE MATERIALIZED", version.definition, re.IGNORECASE | re.MULTILINE)
    what = "MATERIALIZED VIEW" if is_materialized else version.kind.upper()
    return f"DROP {what} IF EXISTS {version.physical_name}"
