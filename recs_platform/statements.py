"""One SQL file → `Statement`: what is written there, before anything is known of the other files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.tokenizer_core import Token, TokenType
from sqlglot.tokens import Tokenizer

from recs_platform.columns import DIALECT, Column, expand_tumble
from recs_platform.errors import PipelineError

# CREATE TABLE … FROM source TABLE '…' and the like fall back to a Command, which is handled below
logging.getLogger("sqlglot").setLevel(logging.ERROR)

_INCLUDED_TYPES = {"partition": "VARCHAR", "offset": "VARCHAR", "timestamp": "TIMESTAMPTZ", "key": "BYTEA"}
_CDC_TABLE = re.compile(r"\bFROM\s+(?P<source>\w+)\s+TABLE\s+'(?P<table>[^']+)'\s*;?\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Mention:
    """Where a relation is named: `text[start:end]`. `is_bare`: columns may be qualified with the name itself."""

    name: str
    start: int
    end: int
    is_bare: bool = False


@dataclass(frozen=True)
class Statement:
    """One CREATE statement. `options` holds `WITH (…)`, and `table` and `source` for a CDC table."""

    path: Path
    text: str
    name: str
    kind: str
    line: int
    comment: str
    tokens: tuple[str, ...] = field(repr=False)
    is_materialized: bool
    columns: tuple[Column, ...] = ()
    key: tuple[str, ...] = ()
    upstreams: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    includes: Mapping[str, str] = field(default_factory=dict)  # INCLUDE offset AS kafka_offset: kafka_offset → offset
    mentions: tuple[Mention, ...] = field(default=(), repr=False)
    query_at: tuple[int, int] = field(default=(0, 0), repr=False)
    query: exp.Query | None = field(default=None, repr=False)

    def renamed(self, names: Mapping[str, str]) -> str:
        """The text with relations called by other names, its own among them; columns keep theirs."""
        return self._renamed(names, 0, len(self.text))

    def query_renamed(self, names: Mapping[str, str]) -> str:
        """The query alone, without CREATE and a sink's options, with relations called by other names."""
        return self._renamed(names, *self.query_at).strip()

    def _renamed(self, names: Mapping[str, str], start: int, end: int) -> str:
        parts, done = [], start
        for mention in sorted((m for m in self.mentions if start <= m.start < end), key=lambda m: m.start):
            new = names.get(mention.name, mention.name)
            alias = f" AS {mention.name}" if mention.is_bare and new != mention.name else ""
            parts += [self.text[done : mention.start], new, alias]
            done = mention.end
        return "".join([*parts, self.text[done:end]])

    def line_of(self, identifier: str) -> int:
        """The first line on which the identifier stands as a word of its own."""
        match = re.search(rf"\b{re.escape(identifier)}\b", _blank_comments(self.text))
        return self.text.count("\n", 0, match.start()) + 1 if match else self.line

    def line_in(self, message: str) -> int:
        """The line of the column that a message of the optimizer is about."""
        match = re.search(r"Column '?\"?(?:\w+\"?\.\"?)?(\w+)", message)
        return self.line_of(match[1]) if match else self.line


def parse(path: Path, text: str) -> Statement:
    """What a file's text says. Raises `PipelineError` with file and line where it is not one CREATE statement."""
    try:
        tokens = Tokenizer(dialect=DIALECT).tokenize(text)
        trees = [tree for tree in sqlglot.parse(_without_cdc_clause(text), dialect=DIALECT) if tree is not None]
    except SqlglotError as error:
        raise _syntax_error(path, error) from None
    if len(trees) != 1:
        raise PipelineError(f"holds {len(trees)} statements; one relation a file", path)
    tree = trees[0]
    line = tokens[0].line
    if not isinstance(tree, exp.Create):
        raise PipelineError("CREATE SOURCE, TABLE, VIEW, MATERIALIZED VIEW or SINK is wanted", path, line)
    return _statement(path, text, tree, tokens)


def _statement(path: Path, text: str, tree: exp.Create, tokens: list[Token]) -> Statement:
    line = tokens[0].line
    kind = str(tree.kind).lower()
    if kind not in ("source", "table", "view", "sink"):
        raise PipelineError(f"CREATE {kind.upper()} is not a relation of a pipeline", path, line)
    query = tree.expression if isinstance(tree.expression, exp.Query) else None
    if (query is None) == (kind in ("view", "sink")):
        raise PipelineError(f"CREATE {kind.upper()} {'needs' if query is None else 'takes no'} AS SELECT", path, line)
    cdc = _CDC_TABLE.search(text)
    options = dict(_options(tree)) | ({"source": cdc["source"], "table": cdc["table"]} if cdc else {})
    return Statement(
        path=path,
        text=text,
        name=_name(tree),
        kind=kind,
        line=line,
        comment=_comment(text),
        query=query,
        options=options,
        tokens=tuple(_spelt(token) for token in tokens if token.token_type is not TokenType.SEMICOLON),
        is_materialized=_is_materialized(tree, kind, options),
        includes=_includes(tree),
        columns=tuple(_columns(tree)),
        key=_key(tree),
        upstreams=_upstreams(query) if query is not None else (cdc["source"],) if cdc else (),
        mentions=tuple(_mentions(path, tree, query, cdc)),
        query_at=_query_at(text, tokens) if query is not None else (0, 0),
    )


def _query_at(text: str, tokens: list[Token]) -> tuple[int, int]:
    """From after `CREATE … AS` to a sink's `WITH (`, or to the end."""
    first = next(i for i, token in enumerate(tokens) if token.token_type is TokenType.ALIAS) + 1
    depth, end = 0, len(text.rstrip().rstrip(";"))
    for token in tokens[first + 1 :]:
        depth += (token.token_type is TokenType.L_PAREN) - (token.token_type is TokenType.R_PAREN)
        if token.token_type is TokenType.WITH and depth == 0:
            end = token.start
    return tokens[first].start, end


def _mentions(path: Path, tree: exp.Create, query: exp.Query | None, cdc: re.Match[str] | None) -> Iterator[Mention]:
    yield _mention(_table(tree).this)
    if cdc:
        yield Mention(cdc["source"], *cdc.span("source"))
    ctes = {cte.alias for cte in query.find_all(exp.CTE)} if query else set[str]()
    for table in query.find_all(exp.Table) if query else ():
        call = table.this
        if isinstance(call, exp.Anonymous) and call.expressions:  # TUMBLE(relation, …)
            yield _mention(call.expressions[0].this)
        elif table.name not in ctes:
            if table.args.get("version") and not table.alias:
                raise PipelineError("a lookup join needs AS and a name", path, call.meta.get("line"))
            yield replace(_mention(call), is_bare=not table.alias)


def _mention(identifier: exp.Expr) -> Mention:
    return Mention(identifier.name, identifier.meta["start"], identifier.meta["end"] + 1)


def _spelt(token: Token) -> str:
    return f"'{token.text}'" if token.token_type is TokenType.STRING else token.text.lower()


def _name(tree: exp.Create) -> str:
    return _table(tree).name


def _table(tree: exp.Create) -> exp.Table:
    """What is created."""
    table = tree.find(exp.Table)
    assert table is not None
    return table


def _is_materialized(tree: exp.Create, kind: str, options: Mapping[str, str]) -> bool:
    if kind == "view":
        return tree.find(exp.MaterializedProperty) is not None
    return options.get("connector") != "postgres-cdc"


def _options(tree: exp.Create) -> list[tuple[str, str]]:
    properties = tree.args.get("properties")
    return [
        (p.this.sql().lower().replace('"', ""), p.args["value"].name)
        for p in (properties.expressions if properties else [])
        if type(p) is exp.Property
    ]


def _columns(tree: exp.Create) -> list[Column]:
    declared = [
        Column(c.name, c.kind.sql(DIALECT))
        for c in (tree.this.expressions if isinstance(tree.this, exp.Schema) else [])
        if isinstance(c, exp.ColumnDef) and c.kind is not None
    ]
    included = [Column(alias, _INCLUDED_TYPES.get(kind, "VARCHAR")) for alias, kind in _includes(tree).items()]
    return declared + included


def _includes(tree: exp.Create) -> dict[str, str]:
    return {p.args["alias"].name: p.name.lower() for p in tree.find_all(exp.IncludeProperty)}


def _key(tree: exp.Create) -> tuple[str, ...]:
    """PRIMARY KEY of a table; partition, offset and timestamp of a Kafka source: offsets begin anew with a topic that is
    created anew, times do not."""
    primary = [c.name for c in tree.find_all(exp.ColumnDef) if c.find(exp.PrimaryKeyColumnConstraint)]
    for constraint in tree.find_all(exp.PrimaryKey):
        primary += [column.name for column in constraint.expressions]
    included = {kind: alias for alias, kind in _includes(tree).items()}
    if not primary and {"partition", "offset"} <= included.keys():
        return tuple(included[kind] for kind in ("partition", "offset", "timestamp") if kind in included)
    return tuple(primary)


def _upstreams(query: exp.Query) -> tuple[str, ...]:
    ctes = {cte.alias for cte in query.find_all(exp.CTE)}
    names = [table.name for table in expand_tumble(query.copy()).find_all(exp.Table)]
    return tuple(dict.fromkeys(name for name in names if name not in ctes))


def _comment(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        lines.append(line.removeprefix("--").strip())
    return "\n".join(lines)


def _without_cdc_clause(text: str) -> str:
    """sqlglot reads the CREATE TABLE but not its `FROM source TABLE '…'`."""
    return _CDC_TABLE.sub("", text)


def _blank_comments(text: str) -> str:
    return re.sub(r"--[^\n]*", lambda match: " " * len(match[0]), text)


def _syntax_error(path: Path, error: SqlglotError) -> PipelineError:
    found = getattr(error, "errors", None)
    if found:
        first = found[0]
        return PipelineError(f"{first['description']} near {first['highlight']!r}", path, first["line"])
    line = re.search(r"[Ll]ine (\d+)", str(error))
    return PipelineError(str(error).splitlines()[0], path, int(line[1]) if line else None)
