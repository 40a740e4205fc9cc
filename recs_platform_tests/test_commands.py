"""The commands of the pipeline, of SQL and of the catalog as a terminal or a CI job runs them: words and exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from click.testing import CliRunner, Result

from recs_platform.catalog import ensure_catalog, read_catalog
from recs_platform.cli import main
from recs_platform.engines.local.client import LocalEngine
from recs_platform.pipeline import Pipeline
from recs_platform.settings import FILE, UPSERTS, Settings
from recs_platform.stack.service import free_port
from recs_platform.topics import ensure_topics
from recs_platform_tests.filled_redis import emptied
from recs_platform_tests.shop_floor import Shop, eventually, own_topics
from recs_platform_tests.test_contract import local
from recs_platform_tests.test_events import consumed

FEWER = ("trending_products", "rank <= 10", "rank <= 8")
BREAKING = ("products_sink", "price, image_url", "price AS cost, image_url")
BROKEN = "price is gone; read by the serving library in recs:products"


@dataclass(frozen=True)
class Terminal:
    """Runs `recs` beside one running shop."""

    shop: Shop
    settings: Settings

    def recs(self, *arguments: str, typed: str = "", **changed: Any) -> Result:
        """With the settings of the shop, some of them `changed`."""
        settings = replace(self.settings, **changed)
        fields = Settings.__dataclass_fields__.values()
        environment = {field.metadata["variable"]: str(getattr(settings, field.name)) for field in fields}
        return CliRunner().invoke(main, list(arguments), input=typed, env=environment)

    def deployed(self) -> dict[str, str]:
        with LocalEngine(self.settings) as engine:
            return engine.deployed()

    @contextmanager
    def edited(self, name: str, old: str, new: str) -> Iterator[None]:
        """One file of `sql/` says something else meanwhile."""
        path = self.settings.sql_dir / f"{name}.sql"
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new))
        try:
            yield
        finally:
            path.write_text(before)


@pytest.fixture(scope="module")
def standing(
    tmp_path_factory: pytest.TempPathFactory, kafka_servers: str, lasting_postgres_url: str, valkey_url: str
) -> Iterator[Terminal]:
    prefix = f"t{uuid4().hex[:12]}_"
    shop = Shop(tmp_path_factory.mktemp("shop"), kafka_servers, lasting_postgres_url, emptied(valkey_url), prefix)
    with local(shop) as engine:
        assert isinstance(engine, LocalEngine)
        yield Terminal(shop, replace(shop.settings, engine_url=engine.url, engine_token="secret-token"))
    shop.close()


@pytest.fixture
def terminal(standing: Terminal) -> Iterator[Terminal]:
    """What a test has deployed is deployed for that test alone."""
    before = standing.deployed()
    yield standing
    if standing.deployed() != before:
        assert standing.recs("apply", "--yes").exit_code == 0
    assert standing.deployed() == before


def words(result: Result) -> str:
    """What it says on standard output and error, wherever a terminal breaks the lines."""
    return " ".join(result.output.split())


# -- plan -------------------------------------------------------------------------------------------------------------


def test_the_exit_code_of_a_plan_tells_whether_there_is_something_to_do_and_whether_that_breaks_a_reader(
    terminal: Terminal,
) -> None:
    nothing = terminal.recs("plan", "--check")
    assert (nothing.exit_code, words(nothing)) == (0, "Nothing to do: what is deployed is what sql/ says.")
    with terminal.edited(*FEWER):
        assert terminal.recs("plan").exit_code == 0, "without --check it only tells"
        found = terminal.recs("plan", "--check")
        assert (found.exit_code, "2 to build, " in words(found)) == (2, True), found.output
        assert "rank <= 8" in words(found)
    with terminal.edited(*BREAKING):
        broken = terminal.recs("plan", "--check")
        assert (broken.exit_code, f"breaks: {BROKEN}" in words(broken)) == (3, True), broken.output


def test_a_plan_as_json_says_the_same(terminal: Terminal) -> None:
    with terminal.edited(*BREAKING):
        found = json.loads(terminal.recs("plan", "--json").output)
    assert [(step["action"], step["name"]) for step in found["steps"] if step["action"] == "create"] == [
        ("create", "products_sink")
    ]
    assert [(c["name"], c["gone"], c["added"], c["breaks"]) for c in found["changes"]] == [
        ("products_sink", ["price"], ["cost"], [BROKEN])
    ]
    assert found["catalog"] == []


def test_a_catalog_whose_columns_have_changed_breaks_readers_though_no_file_has(
    terminal: Terminal, postgres_url: str
) -> None:
    gone = terminal.recs("plan", "--check", postgres_url=postgres_url)
    assert (gone.exit_code, "table public.product_catalog is gone" in words(gone)) == (3, True), gone.output
    ensure_catalog(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE product_catalog ADD COLUMN brand text")
        more = terminal.recs("plan", "--check", postgres_url=postgres_url)
        assert (more.exit_code, "no file takes up: brand text" in words(more)) == (0, True), more.output
        connection.execute("ALTER TABLE product_catalog DROP COLUMN price")
    less = terminal.recs("plan", "--check", postgres_url=postgres_url)
    assert (less.exit_code, "breaks: column price of public.product_catalog" in words(less)) == (3, True), less.output


def test_a_plan_is_made_while_the_catalog_is_away_and_says_so(terminal: Terminal) -> None:
    away = f"postgresql://recs:s3cret@127.0.0.1:{free_port()}/shop"
    found = terminal.recs("plan", "--check", postgres_url=away)
    assert (found.exit_code, "The catalog was not looked at: " in words(found)) == (0, True), found.output
    assert "s3cret" not in found.output


# -- apply and rollback -----------------------------------------------------------------------------------------------


def test_what_breaks_a_reader_is_not_deployed_where_nobody_can_be_asked(terminal: Terminal) -> None:
    before = terminal.deployed()
    with terminal.edited(*BREAKING):
        refused = terminal.recs("apply", typed="y\n")
        assert (refused.exit_code, f"products_sink: {BROKEN}" in words(refused)) == (1, True), refused.output
        assert "Nothing is done; --yes does it all the same" in words(refused)
        assert terminal.deployed() == before


@pytest.mark.parametrize("answer", ["n", "y"])
def test_at_a_terminal_what_breaks_a_reader_is_asked_about(
    terminal: Terminal, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    before = terminal.deployed()
    with terminal.edited(*BREAKING):
        asked = terminal.recs("apply", typed=f"{answer}\n")
        assert "Do it all the same?" in words(asked)
        assert (asked.exit_code, terminal.deployed() == before) == ((0, False) if answer == "y" else (1, True))


def test_with_yes_it_is_deployed_and_a_rollback_goes_back(terminal: Terminal) -> None:
    before = terminal.deployed()
    with terminal.edited(*BREAKING):
        wanted = Pipeline.of(terminal.settings)["products_sink"].fingerprint
        done = terminal.recs("apply", "--yes")
        assert done.exit_code == 0, done.output
        assert terminal.deployed() == {**before, "products_sink": wanted}
        back = terminal.recs("rollback")
        assert (back.exit_code, "products_sink" in words(back)) == (0, True), back.output
        assert terminal.deployed() == before
        assert terminal.recs("plan", "--check").exit_code == 3, "the files still say otherwise"


def test_what_breaks_nothing_is_deployed_without_a_question_and_once(terminal: Terminal) -> None:
    with terminal.edited(*FEWER):
        before = terminal.deployed()
        assert "rank <= 8" in words(terminal.recs("apply", "--dry-run"))
        assert terminal.deployed() == before
        done = terminal.recs("apply")
        assert (done.exit_code, "its SQL changed" in words(done)) == (0, True), done.output
        again = terminal.recs("apply")
        assert (again.exit_code, "Nothing to do" in words(again)) == (0, True), again.output
    unknown = terminal.recs("apply", "--rebuild", "nowhere")
    assert (unknown.exit_code, "nowhere" in words(unknown)) == (1, True), unknown.output


# -- sql and query ----------------------------------------------------------------------------------------------------


def test_statements_show_passwords_only_when_asked_for(terminal: Terminal) -> None:
    secrets = {"pg-secret", "redis-secret", "kafka-secret"}
    servers = {
        "postgres_url": "postgresql://recs:pg-secret@127.0.0.1:1/shop",
        "redis_url": "redis://:redis-secret@127.0.0.1:1/0",
        "kafka_bootstrap_servers": "sasl_ssl://recs:kafka-secret@127.0.0.1:1",
    }
    masked, shown = terminal.recs("sql", **servers), terminal.recs("sql", "--secrets", **servers)
    for result, known in ((masked, set[str]()), (shown, secrets)):
        assert result.exit_code == 0, result.output
        assert {secret for secret in secrets if secret in result.output} == known
        assert not re.search(r"\$\{\w+\}", result.output), "every setting is filled in"


def test_the_statement_of_one_relation(terminal: Terminal) -> None:
    one = terminal.recs("sql", "trending_products")
    assert one.output.count("CREATE ") == 1
    assert "CREATE MATERIALIZED VIEW trending_products AS" in one.output
    none = terminal.recs("sql", "nowhere")
    assert (none.exit_code, "nowhere" in words(none)) == (1, True), none.output


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("42", 42), ('"42"', "42"), ("4.5", 4.5), ("true", True), ("null", None), ("tea", "tea"), ("[1]", "[1]"), ("NaN", "NaN")],
)  # fmt: skip
def test_a_parameter_is_a_number_a_truth_or_nothing_where_it_says_so_and_text_otherwise(
    terminal: Terminal, parameter: str, value: object
) -> None:
    found = terminal.recs("query", "SELECT ? AS value", parameter, "--json")
    assert json.loads(found.output) == [{"value": value}]


def test_rows_are_shown_as_they_are(terminal: Terminal) -> None:
    found = terminal.recs("query", "SELECT '[red]tea[/]' AS \"[name]\", NULL AS price")
    assert (found.exit_code, words(found).split()[:2]) == (0, ["[name]", "price"])
    assert "[red]tea[/]" in found.output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["SELECT ?"], "Values were not provided"),
        (["SELECT $1", "1", "2"], "has 1 placeholders"),
        (["SELECT 1 FROM nowhere"], "nowhere"),
        (["DROP TABLE customers"], "one SELECT"),
    ],
)
def test_a_query_that_cannot_be_asked_says_why(terminal: Terminal, arguments: list[str], why: str) -> None:
    refused = terminal.recs("query", *arguments)
    assert (refused.exit_code, why in words(refused)) == (1, True), refused.output


# -- doctor -----------------------------------------------------------------------------------------------------------


def test_the_exit_code_of_the_doctor_tells_whether_something_is_ill(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recs_platform.doctor.DISK_BYTES", 0)
    well = terminal.recs("doctor", "--json")
    assert well.exit_code == 0, well.output
    assert {d["verdict"] for d in json.loads(well.output)} <= {"well", "warning", "skipped"}
    ill = terminal.recs("doctor", redis_url=f"redis://:s3cret@127.0.0.1:{free_port()}/0")
    assert (ill.exit_code, "→ is it running" in words(ill), "s3cret" in ill.output) == (1, True, False), ill.output


# -- the catalog ------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    """Writes a file of products, and says where."""

    def write(text: str) -> str:
        (tmp_path / "products.csv").write_text(text)
        return str(tmp_path / "products.csv")

    return write


def test_a_file_of_products_is_loaded_and_served(terminal: Terminal, file: Callable[[str], str]) -> None:
    path = file("product_id,name,brand\nc1,Tea,Acme\nc2,Lamp,Acme\n")
    first, again = terminal.recs("catalog", "load", path), terminal.recs("catalog", "load", path)
    assert "2 products added, 0 changed, 0 as they were." in first.stdout
    assert "0 products added, 0 changed, 2 as they were." in again.stdout
    assert "the catalog has none of that name: brand." in first.stderr
    eventually(lambda: {"c1", "c2"} <= terminal.shop.documents("products").keys())


def test_of_a_file_with_a_wrong_line_nothing_is_loaded(terminal: Terminal, file: Callable[[str], str]) -> None:
    before = read_catalog(terminal.shop.postgres)
    refused = terminal.recs("catalog", "load", file("product_id,name,price\nd1,Tea,1\nd2,Lamp,dear\n"))
    assert (refused.exit_code, "products.csv:3: price: 'dear' is not a price" in words(refused)) == (1, True)
    assert read_catalog(terminal.shop.postgres) == before


def test_nothing_is_loaded_into_a_postgresql_that_the_catalog_does_not_come_from(
    terminal: Terminal, file: Callable[[str], str]
) -> None:
    before = read_catalog(terminal.shop.postgres)
    refused = terminal.recs("catalog", "load", file("product_id,name\ne1,Tea\n"), catalog=FILE)
    assert (refused.exit_code, "RECS_CATALOG=file" in words(refused)) == (1, True), refused.output
    assert read_catalog(terminal.shop.postgres) == before


def test_where_the_catalog_comes_from_topics_all_of_it_is_sent_there_too(
    terminal: Terminal, file: Callable[[str], str], postgres_url: str, topic_prefix: str, tmp_path: Path
) -> None:
    changed: dict[str, Any] = {
        "catalog": UPSERTS,
        "sql_dir": own_topics(tmp_path / "sql", topic_prefix, UPSERTS),
        "postgres_url": postgres_url,
    }
    ensure_topics(terminal.shop.kafka, [f"{topic_prefix}product_catalog"], 1)
    terminal.recs("catalog", "load", file("product_id,name\nf1,Tea\n"), **changed)
    second = terminal.recs("catalog", "load", file("product_id,name\nf2,Lamp\n"), **changed)
    assert "1 products added" in words(second)
    assert "2 rows of PostgreSQL sent to the topics the catalog comes from." in words(second)
    found = consumed(terminal.shop.kafka, f"{topic_prefix}product_catalog", lambda messages: len(messages) >= 3)
    assert [message.key() for message in found] == [b"f1", b"f1", b"f2"]
