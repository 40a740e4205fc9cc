"""The catalog in PostgreSQL: its tables, its seed, and loading product files into it."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

from recs_platform.catalog import (
    Customer,
    Loaded,
    Product,
    add_products,
    ensure_catalog,
    load_catalog,
    read_catalog,
    seed,
)
from recs_platform.catalog_file import read_products
from recs_platform.errors import SourceError

TEA = Product("p1", "Tea", "food", Decimal("4.50"), "Green.", "https://example.com/tea.jpg", True)
LAMP = Product("p2", "Lamp")


def write(directory: Path, text: str, name: str = "products.csv") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def test_missing_tables_are_created_and_present_ones_left_alone(postgres_url: str) -> None:
    assert ensure_catalog(postgres_url) == ("product_catalog", "customers", "recs_heartbeat")
    with psycopg.connect(postgres_url) as connection:
        connection.execute("ALTER TABLE product_catalog ADD COLUMN brand text")
    assert ensure_catalog(postgres_url) == ()


def test_a_role_that_may_not_create_is_content_with_tables_that_exist(postgres_url: str) -> None:
    ensure_catalog(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE modest")  # of the whole server, and so of all tests
        try:
            assert ensure_catalog(postgres_url + "&options=-c%20role%3Dmodest") == ()
        finally:
            connection.execute("DROP ROLE modest")


def test_empty_tables_are_seeded_and_others_are_not(postgres_url: str) -> None:
    ensure_catalog(postgres_url)
    assert seed(postgres_url, [TEA, LAMP], [Customer(1, "25-34", "DE")]) == (2, 1)
    assert seed(postgres_url, [Product("p3", "Rug")], [Customer(2)]) == (0, 0)
    assert read_catalog(postgres_url) == [TEA, LAMP]


def test_a_table_of_the_shops_own_is_filled_by_its_columns_names(postgres_url: str) -> None:
    ensure_catalog(postgres_url)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("ALTER TABLE product_catalog DROP COLUMN name")
        connection.execute("ALTER TABLE product_catalog ADD COLUMN name text, ADD COLUMN brand text DEFAULT 'ours'")
    assert seed(postgres_url, [TEA], []) == (1, 0)
    assert add_products(postgres_url, [LAMP]) == 1
    assert read_catalog(postgres_url) == [TEA, LAMP]


def test_products_the_catalog_has_are_not_added_again(postgres_url: str) -> None:
    ensure_catalog(postgres_url)
    assert add_products(postgres_url, [TEA]) == 1
    assert add_products(postgres_url, [Product("p1", "Other"), LAMP]) == 1
    assert read_catalog(postgres_url) == [TEA, LAMP]


def test_a_csv_file_adds_changes_and_leaves_alone(postgres_url: str, tmp_path: Path) -> None:
    ensure_catalog(postgres_url)
    seed(postgres_url, [TEA, LAMP], [])
    path = write(tmp_path, 'product_id,name,price,brand\np1,Tea,4.50,Acme\np2,Lamp,30,Acme\np3,"Rug, red",,\n')
    assert load_catalog(path, postgres_url) == Loaded(added=1, changed=1, unchanged=1, ignored_columns=("brand",))
    assert read_catalog(postgres_url) == [
        TEA,  # the columns the file does not have keep their values
        Product("p2", "Lamp", price=Decimal(30)),
        Product("p3", "Rug, red"),
    ]


def test_loading_a_file_again_writes_nothing(postgres_url: str, tmp_path: Path) -> None:
    path = write(tmp_path, "product_id\tname\tprice\tin_stock\np1\tTea\t4.505\tno\n", "products.tsv")
    assert load_catalog(path, postgres_url).added == 1
    assert load_catalog(path, postgres_url) == Loaded(0, 0, 1, ())


def test_json_lines_and_gzip_are_read_as_they_are_whatever_the_name(postgres_url: str, tmp_path: Path) -> None:
    lines = [
        {"product_id": 17, "name": "Tea", "price": 4.50, "in_stock": False},
        {"product_id": "p2", "name": "Lamp", "category": None, "tags": ["new"]},
    ]
    path = tmp_path / "products.txt"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    assert load_catalog(path, postgres_url) == Loaded(2, 0, 0, ("tags",))
    assert read_catalog(postgres_url) == [Product("17", "Tea", price=Decimal("4.50"), in_stock=False), LAMP]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "empty; the first line must name the columns"),
        ("id,title\np1,Tea\n", "no column product_id and no name; it has id, title"),
        ("product_id,name\np1,Tea\n\np2\n", ":4: 1 fields where the header names 2"),
        ("product_id,name\np1,Tea\n,Lamp\n", ":3: product_id: must not be empty"),
        ("product_id,name\np1,Tea\np1,Lamp\n", ":3: product_id: 'p1' is on line 2 already"),
        ("product_id,name,price\np1,Tea,€4\n", ":2: price: '€4' is not a price; a number such as 19.90 is wanted"),
        ("product_id,name,price\np1,Tea,NaN\n", ":2: price: 'NaN' is not a price from 0"),
        ("product_id,name,price\np1,Tea,-1\n", ":2: price: '-1' is not a price from 0"),
        ("product_id,name,in_stock\np1,Tea,maybe\n", ":2: in_stock: 'maybe' is neither true nor false"),
        ("product_id,name\np1,T\0ea\n", ":2: name: holds a NUL character"),
        ('{"product_id": "p1", "name": "Tea"}\n{"product_id"\n', ":2: not JSON"),
        ('{"product_id": "p1", "name": "Tea"}\n' + "[" * 2_000, ":2: not JSON: it is nested too deeply"),
        ('{"product_id": "p1", "name": "Tea"}\n[1]\n', ":2: a JSON object is wanted, not [1]"),
        ('{"product_id": "p1", "name": ["Tea"]}\n', ":1: name: a single value is wanted"),
        ('{"product_id": "p1", "name": "Tea"}\n{"name": "Lamp"}\n', ":2: product_id: must not be empty"),
    ],
)
def test_what_is_wrong_is_named_with_line_and_column(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SourceError) as caught:
        load_catalog(path, "postgresql://nobody@127.0.0.1:1/nowhere")  # the file is read before the catalog is touched
    assert str(caught.value).startswith(str(path))
    assert complaint in str(caught.value)


def test_a_damaged_gzip_is_named_wherever_it_is_damaged(tmp_path: Path) -> None:
    whole = gzip.compress("\n".join(["product_id,name", *(f"p{i},{i * 7919}" for i in range(500))]).encode())
    for at in range(12, len(whole) - 9, 37):
        (tmp_path / "broken.gz").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF, 0xFF]) + whole[at + 2 :])
        with pytest.raises(SourceError, match="broken.gz"):
            read_products(tmp_path / "broken.gz")


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"product_id": "p1", "name": "Tea \\ud800"}\n')
    with pytest.raises(SourceError, match=r"odd.jsonl:1: name: holds a half of a character"):
        read_products(tmp_path / "odd.jsonl")


def test_a_broken_gzip_and_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    broken, latin = tmp_path / "broken.gz", tmp_path / "latin.csv"
    broken.write_bytes(gzip.compress(b"product_id,name\np1,Tea\n" * 1000)[:40])
    latin.write_bytes("product_id,name\np1,Käse\n".encode("latin-1"))
    with pytest.raises(SourceError, match=r"broken.gz: the gzip file is damaged, or ends too early"):
        load_catalog(broken, "")
    with pytest.raises(SourceError, match=r"latin.csv: not UTF-8 text"):
        load_catalog(latin, "")


def test_a_file_postgresql_refuses_leaves_the_catalog_as_it_was(postgres_url: str, tmp_path: Path) -> None:
    ensure_catalog(postgres_url)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("ALTER TABLE product_catalog ADD CHECK (name <> 'Lamp')")
    with pytest.raises(SourceError, match="violates check constraint"):
        load_catalog(write(tmp_path, "product_id,name\np1,Tea\np2,Lamp\n"), postgres_url)
    assert read_catalog(postgres_url) == []


def test_a_missing_table_is_named_with_the_remedy(postgres_url: str) -> None:
    with pytest.raises(SourceError, match=r"product_catalog.* does not exist; `recs catalog load FILE`"):
        read_catalog(postgres_url)


def test_an_unreachable_server_is_named_without_its_password() -> None:
    with pytest.raises(SourceError) as caught:
        ensure_catalog("postgresql://me:gehe%20im@127.0.0.1:1/shop")
    assert "127.0.0.1:1/shop" in str(caught.value)
    assert "me:***@" in str(caught.value)
    assert "geh" not in str(caught.value)
