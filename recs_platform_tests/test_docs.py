"""What the docs say exists does: commands, options, settings, files, relations, links, and the Python in them."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import click
import pytest
import sqlglot
from sqlglot import exp

from recs_platform.cli import main
from recs_platform.pipeline import Pipeline
from recs_platform.settings import RISINGWAVE, Settings

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PIPELINE = Pipeline.load(ROOT / "sql", engine=RISINGWAVE)  # which has all that the other engine has
TEST_SETTINGS = {"RECS_TEST_KAFKA", "RECS_TEST_KAFKA_PLAIN", "RECS_TEST_KAFKA_SCRAM", "RECS_TEST_RISINGWAVE"}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
TARGET = re.compile(r"^([a-z][a-z-]*%?):", re.MULTILINE)
FILE = re.compile(r"(?:sql|docs|recs_platform|recs_platform_tests|\.ci)/[\w./-]+")


@dataclass(frozen=True)
class Page:
    """A page taken apart: `blocks` are its fenced blocks by language, `spans` the code in its prose."""

    path: Path
    text: str

    @property
    def prose(self) -> str:
        return FENCE.sub("", self.text)

    @property
    def spans(self) -> list[str]:
        return SPAN.findall(self.prose)

    def blocks(self, *languages: str) -> list[str]:
        return [body for language, body in FENCE.findall(self.text) if language in languages]

    def shell_lines(self) -> Iterator[str]:
        """Lines of shell, continued ones joined, without what is assigned in front of the command."""
        for block in self.blocks("sh"):
            for line in block.replace("\\\n", " ").splitlines():
                yield re.sub(r"^(\s*\w+=\S*)+\s+", "", line).strip()

    def commands(self) -> Iterator[list[str]]:
        """Every `recs …` of the page, as words."""
        for text in [*self.shell_lines(), *self.spans]:
            words = shlex.split(text.replace("[", "").replace("]", ""), comments=True) if "recs" in text else []
            if words and words[0] in ("recs", ".venv/bin/recs"):
                yield words[1:]


@pytest.fixture(params=PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Page:
    return Page(request.param, request.param.read_text(encoding="utf-8"))


def _resolved(words: list[str]) -> tuple[click.Command | None, list[str]]:
    """The command that words name, and the words left over; None where the first is no command."""
    command: click.Command = main
    while words and isinstance(command, click.Group) and not words[0].startswith("-"):
        if words[0] == "COMMAND":
            return main, words[1:]
        found = command.commands.get(words[0])
        if found is None:
            return None, words
        command, words = found, words[1:]
    return command, words


def _options(command: click.Command) -> set[str]:
    own = {name for parameter in command.params for name in parameter.opts if name.startswith("-")}
    return own | {"--help", "-h"}


def test_commands_and_options_exist(page: Page) -> None:
    for words in page.commands():
        if words[:1] in (["…"], []):
            continue
        command, rest = _resolved(words)
        assert command is not None, f"no command: recs {' '.join(words)}"
        used = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert used <= _options(command), f"recs {' '.join(words)}: it has {sorted(_options(command))}"


def test_every_command_and_option_is_on_the_page_of_the_command_line() -> None:
    sections = re.split(r"^## ", (ROOT / "docs" / "cli.md").read_text(), flags=re.MULTILINE)[1:]
    by_command = {heading.strip("`").split(" ")[1]: heading + body for heading, _, body in map(_cut, sections)}
    assert set(by_command) == set(main.commands)
    for name, command in main.commands.items():
        leaves = command.commands.values() if isinstance(command, click.Group) else [command]
        for option in (option for leaf in leaves for option in _options(leaf) - {"--help", "-h"}):
            assert f"`{option}" in by_command[name], f"docs/cli.md says nothing of recs {name} {option}"


def _cut(section: str) -> tuple[str, str, str]:
    return section.partition("\n")


def test_make_targets_exist(page: Page) -> None:
    targets = set(TARGET.findall((ROOT / "Makefile").read_text()))
    for text in [*page.shell_lines(), *page.spans]:
        words = text.partition("#")[0].split()
        if words[:1] == ["make"]:
            wanted = {word for word in words[1:] if "=" not in word and word != "…"}
            unknown = {word for word in wanted if word not in targets and re.sub("-[a-z]+$", "-%", word) not in targets}
            assert not unknown, f"no make target {unknown}"


def test_settings_exist(page: Page) -> None:
    known = {setting.metadata["variable"] for setting in fields(Settings)} | TEST_SETTINGS
    assert set(re.findall(r"\bRECS_[A-Z_]*[A-Z]\b", page.text)) <= known


def test_links_lead_somewhere(page: Page) -> None:
    for link in LINK.findall(page.prose):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.path.parent / file).resolve() if file else page.path
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link} leads out of the project"
        if anchor:
            assert anchor in set(_anchors(target.read_text(encoding="utf-8"))), f"{link}: no such heading"


def _anchors(text: str) -> Iterator[str]:
    """The anchors GitHub gives to headings."""
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_files_exist(page: Page) -> None:
    for text in [*page.shell_lines(), *page.spans]:
        for name in FILE.findall(text):
            assert (ROOT / name).exists(), f"no such file: {name}"


def test_python_compiles_and_imports_what_there_is(page: Page) -> None:
    for block in page.blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def test_queries_are_of_relations_and_columns_there_are(page: Page) -> None:
    for query in _queries(page):
        tree = sqlglot.parse_one(query.replace("%s", "?"), dialect="duckdb")
        tables = {table.name for table in tree.find_all(exp.Table)}
        assert tables <= set(PIPELINE.relations), f"no relation {tables - set(PIPELINE.relations)}: {query}"
        known = {column.name for table in tables for column in PIPELINE[table].columns}
        known |= {alias.alias for alias in tree.find_all(exp.Alias)}
        used = {column.name for column in tree.find_all(exp.Column)}
        assert used <= known, f"no column {used - known}: {query}"


def _queries(page: Page) -> Iterator[str]:
    """The SQL given to `recs query` and to `fetch`."""
    for words in page.commands():
        if words[:1] == ["query"] and len(words) > 1 and words[1] not in ("SQL", "SELECT …"):
            yield words[1]
    for block in page.blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "fetch":
                yield ast.literal_eval(node.args[0])


def test_the_table_of_relations_names_each_once() -> None:
    text = (ROOT / "docs" / "sql-files.md").read_text()
    rows = re.findall(r"^\|([^|]*`[^|]*)\|", text, re.MULTILINE)
    assert sorted(name for row in rows for name in SPAN.findall(row)) == sorted(PIPELINE.relations)


def test_the_table_of_settings_is_that_of_settings() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    found = re.search(r"<!-- settings:.*?-->\n(.*)\n<!-- end of settings -->", text, re.DOTALL)
    assert found is not None
    assert found[1] == settings_table(), f"put this into docs/operations.md:\n\n{settings_table()}"


def settings_table() -> str:
    """The table of settings as docs/operations.md must show it."""
    lines = ["| variable | default | what |", "|---|---|---|"]
    for setting in fields(Settings):
        metadata = setting.metadata
        what = metadata["help"] + ("; a secret" if metadata["secret"] else "")
        lines.append(f"| `{metadata['variable']}` | {_default(setting)} | {what} |")
    return "\n".join(lines)


def _default(setting: object) -> str:
    if (factory := getattr(setting, "default_factory", MISSING)) is not MISSING:
        return f"`{Path(factory()).relative_to(ROOT)}` of the checkout"
    default = getattr(setting, "default", "")
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`" if default != "" else ""


def test_the_lineage_is_drawn_from_the_sql_as_it_is() -> None:
    drawing = runpy.run_path(str(ROOT / "docs" / "images" / "draw.py"))
    drawn = (ROOT / "docs" / "images" / "lineage.svg").read_text(encoding="utf-8")
    assert drawn == drawing["lineage_svg"](Pipeline.load(ROOT / "sql")), (
        "draw it anew: .venv/bin/python docs/images/draw.py lineage"
    )
