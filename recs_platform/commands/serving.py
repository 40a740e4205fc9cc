"""`recs recommend`, `recs trending`, `recs query`: what the shop's pages see, in a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recs_platform.commands.reporting import reported
from recs_platform.serving.direct import query as query_engine
from recs_platform.serving.direct import rows
from recs_platform.serving.keys import Product
from recs_platform.serving.store import RecommendationStore

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.command()
@click.argument("user_id")
@click.option("--limit", default=20, show_default=True, help="How many products.")
@AS_JSON
def recommend(user_id: str, limit: int, as_json: bool) -> None:
    """What the shop recommends to one shopper right now.

    USER_ID is a whole number, such as 123. A shopper nobody has seen yet gets what trends.
    """
    with reported(), RecommendationStore() as store:
        found = store.get_user_recommendations(user_id, limit)
        if as_json:
            _print_json({"user_id": int(user_id), "recommended_products": found})
            return
        products = store.get_products(found)
    _print_table(
        f"Recommended to {user_id}", ["", *_PRODUCT], ([n, *_shown(p)] for n, p in enumerate(products, start=1))
    )


@click.command()
@click.option(
    "--window", help="Any time in the one-hour window, such as 2025-02-25T10:00 (UTC). Default: the running one."
)
@click.option("--segment", help="Age band and country, such as 25-34/DE.")
@click.option("--limit", default=10, show_default=True, help="How many products.")
@click.option("--all", "everything", is_flag=True, help="Also products that are sold out or not in the catalog.")
@AS_JSON
def trending(window: str | None, segment: str | None, limit: int, everything: bool, as_json: bool) -> None:
    """The most viewed products of one hour, with their views."""
    with reported(), RecommendationStore() as store:
        found = store.get_trending_products(window, segment, limit, available_only=not everything)
        if as_json:
            _print_json([row._asdict() for row in found])
            return
        products = {product.product_id: product for product in store.get_products(row.product_id for row in found)}
    if not found and not everything:
        click.echo("Nothing to show: nobody looked, or --all shows what is sold out or not in the catalog.", err=True)
    lines = (
        [n, row.view_count, *_shown(products.get(row.product_id), row.product_id)]
        for n, row in enumerate(found, start=1)
    )
    _print_table(" ".join(filter(None, ["Trending", segment, window or "now"])), ["", "views", *_PRODUCT], lines)


@click.command()
@click.argument("sql")
@click.argument("params", nargs=-1)
@AS_JSON
def query(sql: str, params: tuple[str, ...], as_json: bool) -> None:
    """Ask the engine a question in SQL.

    Each PARAM is bound to a placeholder of the query ($1, ? or %s). A number, true, false and null are taken as
    such, everything else as text; '"42"' is the text 42.

    \b
    recs query "SELECT * FROM trending_products LIMIT 10"
    recs query "SELECT * FROM user_recommendations WHERE user_id = ?" 123
    """
    with reported():
        table = query_engine(sql, [_value(param) for param in params] or None)
    if as_json:
        _print_json(table.to_pylist())
        return
    _print_table(None, table.column_names, rows(table))


_PRODUCT = ["product", "name", "category", "price", "in stock"]


def _shown(product: Product | None, product_id: str = "") -> list[object]:
    if product is None:
        return [product_id, "(not in the catalog)", None, None, None]
    price = None if product.price is None else f"{product.price:.2f}"
    return [product.product_id, product.name, product.category, price, "yes" if product.in_stock else "no"]


def _value(param: str) -> object:
    try:
        found = json.loads(param, parse_constant=str)
    except ValueError:
        return param
    return param if isinstance(found, (dict, list)) else found


def _print_table(title: str | None, columns: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    # Text, not str: square brackets in a product's name are no markup.
    table = Table(title=None if title is None else Text(title), box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(Text(column))
    for line in lines:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in line))
    Console().print(table)


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))
