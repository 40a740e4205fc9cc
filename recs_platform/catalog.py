"""The catalog in PostgreSQL: its two tables and what fills them; and the table of the platform's own heartbeat.

Everything here is plain SQL against `public.product_catalog` and `public.customers`; the engine learns of it
by logical replication, like of any other change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from recs_platform.catalog_file import COLUMNS, read_products
from recs_platform.errors import SourceError
from recs_platform.settings import masked, passwords_of

CONNECT_SECONDS = 10

# Types are those that sql/catalog/cdc/ declares: RisingWave refuses a table whose column has another.
TABLES = {
    "product_catalog": """
        CREATE TABLE public.product_catalog (
            product_id  text PRIMARY KEY,
            name        text NOT NULL,
            category    text,
            price       double precision,
            description text,
            image_url   text,
            in_stock    boolean NOT NULL DEFAULT true
        )""",
    "customers": """
        CREATE TABLE public.customers (
            user_id  bigint PRIMARY KEY,
            age_band text,
            country  text
        )""",
    "recs_heartbeat": """
        CREATE TABLE public.recs_heartbeat (
            name   text PRIMARY KEY,
            canary text
        )""",
}


_PRODUCTS: Final = (
    "SELECT product_id, name, category, price::numeric(12, 2), description, image_url, in_stock"
    " FROM public.product_catalog"
)


@dataclass(frozen=True, slots=True)
class Product:
    """A row of `product_catalog`; `price` in the shop's currency, two decimals."""

    product_id: str
    name: str
    category: str | None = None
    price: Decimal | None = None
    description: str | None = None
    image_url: str | None = None
    in_stock: bool = True


@dataclass(frozen=True, slots=True)
class Customer:
    """A row of `customers`; `age_band` such as `25-34`, `country` an ISO code such as `DE`."""

    user_id: int
    age_band: str | None = None
    country: str | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `load_catalog` did, in products; `ignored_columns` are those of the file the catalog has no place for."""

    added: int
    changed: int
    unchanged: int
    ignored_columns: tuple[str, ...]


@contextmanager
def connected(postgres_url: str, seconds: float | None = None) -> Iterator[psycopg.Connection]:
    """A connection, committed at the end; whatever PostgreSQL refuses becomes a `SourceError` without the password.

    With `seconds`, no statement may take longer, the last commit included.
    """
    options = f"-c statement_timeout={max(1, int(1000 * seconds))}" if seconds is not None else ""
    try:
        with psycopg.connect(postgres_url, connect_timeout=CONNECT_SECONDS, options=options) as connection:
            yield connection
    except psycopg.Error as error:
        raise refused(postgres_url, error) from None


def refused(postgres_url: str, error: psycopg.Error) -> SourceError:
    """The `SourceError` for an error of PostgreSQL, naming the server and without the password."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = lines[0]
    for secret in passwords_of(postgres_url):
        reason = reason.replace(secret, "***")
    remedy = "; `recs catalog load FILE` makes the tables" if isinstance(error, psycopg.errors.UndefinedTable) else ""
    return SourceError(f"PostgreSQL at {masked(postgres_url)}: {reason}{remedy}")


def ensure_catalog(postgres_url: str) -> tuple[str, ...]:
    """Creates the catalog tables that are missing and returns their names; tables that exist are left as they are."""
    with connected(postgres_url) as connection:
        # Looked up first: CREATE TABLE IF NOT EXISTS wants the right to create even where nothing is to be done.
        missing = [name for name in TABLES if not _exists(connection, name)]
        for name in missing:
            connection.execute(TABLES[name])
    return tuple(missing)


def read_catalog(postgres_url: str) -> list[Product]:
    """All products, by product id."""
    with connected(postgres_url) as connection:
        rows = connection.execute(f"{_PRODUCTS} ORDER BY product_id")
        return [Product(*row) for row in rows]


def read_product(postgres_url: str, product_id: str) -> Product | None:
    """The product of that id, None where there is none."""
    with connected(postgres_url) as connection:
        row = connection.execute(f"{_PRODUCTS} WHERE product_id = %s", [product_id]).fetchone()
        return Product(*row) if row else None


def read_customers(postgres_url: str) -> list[Customer]:
    """All customers, by user id."""
    with connected(postgres_url) as connection:
        rows = connection.execute("SELECT user_id, age_band, country FROM public.customers ORDER BY user_id")
        return [Customer(*row) for row in rows]


def seed(postgres_url: str, products: Iterable[Product], customers: Iterable[Customer]) -> tuple[int, int]:
    """Fills each of the two tables if it is empty; returns how many products and customers were added."""
    with connected(postgres_url) as connection:
        return (
            _fill(connection, "product_catalog", Product, products),
            _fill(connection, "customers", Customer, customers),
        )


def add_products(postgres_url: str, products: Iterable[Product]) -> int:
    """Adds the products whose ids the catalog lacks, in one transaction; returns how many that were."""
    with connected(postgres_url) as connection:
        _stage(connection, COLUMNS, (astuple(product) for product in products))
        names = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
        insert = sql.SQL(
            "INSERT INTO public.product_catalog ({0}) SELECT {0} FROM staged ON CONFLICT (product_id) DO NOTHING"
        )
        return connection.execute(insert.format(names)).rowcount


def load_catalog(path: Path, postgres_url: str) -> Loaded:
    """Adds and updates products from a CSV, TSV or JSON Lines file, plain or gzip, all of it or nothing.

    The file names its columns: `product_id` and `name`, and any of `category`, `price`, `description`, `image_url`,
    `in_stock`. Columns it does not have keep the values they have in the catalog. The tables are created if missing.
    Raises `SourceError` naming file, line and column of what cannot be used.
    """
    file = read_products(path)  # whole, before anything is touched
    ensure_catalog(postgres_url)
    with connected(postgres_url) as connection:
        _stage(connection, file.columns, file.rows)
        written = connection.execute(_upsert(file.columns)).fetchall()
    added = sum(inserted for (inserted,) in written)
    changed = len(written) - added
    return Loaded(added, changed, len(file.rows) - len(written), file.ignored_columns)


def _exists(connection: psycopg.Connection, table: str) -> bool:
    found = connection.execute("SELECT to_regclass(%s)", [f"public.{table}"]).fetchone()
    return found is not None and found[0] is not None


def _fill(
    connection: psycopg.Connection,
    table: str,
    kind: type[Product] | type[Customer],
    rows: Iterable[Product] | Iterable[Customer],
) -> int:
    """By the columns' names: a table that was there before has its own order of them."""
    name, columns = sql.Identifier("public", table), sql.SQL(", ").join(sql.Identifier(f.name) for f in fields(kind))
    if connection.execute(sql.SQL("SELECT 1 FROM {} LIMIT 1").format(name)).fetchone():
        return 0
    with connection.cursor() as cursor:
        with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(name, columns)) as copy:
            for row in rows:
                copy.write_row(astuple(row))
        return cursor.rowcount


def _stage(connection: psycopg.Connection, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    connection.execute("CREATE TEMPORARY TABLE staged (LIKE public.product_catalog INCLUDING DEFAULTS) ON COMMIT DROP")
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    with connection.cursor() as cursor, cursor.copy(sql.SQL("COPY staged ({}) FROM STDIN").format(names)) as copy:
        for row in rows:
            copy.write_row(row)


def _upsert(columns: Sequence[str]) -> sql.Composed:
    """Rows that are as they were stay untouched, so that loading a file again sends nothing through replication."""
    others = [sql.Identifier(column) for column in columns if column != "product_id"]
    comma = sql.SQL(", ")
    return sql.SQL(
        "INSERT INTO public.product_catalog AS old ({all}) SELECT {all} FROM staged"
        " ON CONFLICT (product_id) DO UPDATE SET {changes}"
        " WHERE ({old}) IS DISTINCT FROM ({new}) RETURNING xmax = 0"
    ).format(
        all=comma.join(map(sql.Identifier, columns)),
        changes=comma.join(sql.SQL("{0} = excluded.{0}").format(column) for column in others),
        old=comma.join(sql.SQL("old.{}").format(column) for column in others),
        new=comma.join(sql.SQL("excluded.{}").format(column) for column in others),
    )
