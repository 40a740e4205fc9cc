"""The only place a Redis key or value is spelt.

A sink called `<name>` writes one JSON document a row under the prefix of its version, and a pointer says
which version is live:

    recs:<name>                       the live version (text)
    recs:<name>:<version>             present as long as that version is kept, also while it has no row
    recs:<name>:<version>:<row key>   one JSON document

Two more are kept by whoever applies a plan: a lock, and since when versions are replaced. And the local engine keeps one on
each server that shows, by being gone, that the server was emptied.

A writer sets `recs:<name>:<version>` before it flips the pointer and removes it along with the documents.
Readers ignore fields they do not know. Everything here is pure.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

ROOT = "recs"
USER_RECOMMENDATIONS = "user_recommendations"
TRENDING_PRODUCTS = "trending_products"
TRENDING_BY_SEGMENT = "trending_by_segment"
ALSO_BOUGHT = "also_bought"
PRODUCTS = "products"
CANARY, HEARTBEAT = "canary", "heartbeat"

VERSION_VARIABLE = "${version}"
"""What stands for the version in the files of `sql/`."""

APPLY_LOCK = f"{ROOT}:_apply"
LEFT = f"{ROOT}:_left"
"""The digest of files that somebody has gone back from, or of which a part waits until somebody asks for it."""
REPLACED = f"{ROOT}:_replaced"
"""A hash: physical name of a version that was replaced → since when, in seconds since 1970, and a sink's `<name>`."""

SERVED: Mapping[str, frozenset[str]] = {
    USER_RECOMMENDATIONS: frozenset({"recommended_products"}),
    TRENDING_PRODUCTS: frozenset({"products", "candidates"}),
    TRENDING_BY_SEGMENT: frozenset({"products", "candidates"}),
    ALSO_BOUGHT: frozenset({"products"}),
    PRODUCTS: frozenset({"product_id", "name", "category", "price", "image_url", "in_stock"}),
    CANARY: frozenset({"canary"}),
    HEARTBEAT: frozenset({"canary"}),
}
"""The fields that readers look for in each sink's documents."""

WINDOW = timedelta(hours=1)
WINDOWS_KEPT = 48
"""How many one-hour windows are kept, the running one included."""

Document = Mapping[str, Any]


class TrendingProduct(NamedTuple):
    """A product and how many views it had in the window."""

    product_id: str
    view_count: int


class TrendingWindow(NamedTuple):
    """The products that trend in a window, and those to choose from when some of them are sold out: both in order."""

    products: list[TrendingProduct]
    candidates: list[TrendingProduct]

    def available(self, in_stock: Container[str]) -> list[TrendingProduct]:
        """As many products as trend, the most viewed of those in stock."""
        return [row for row in self.candidates if row.product_id in in_stock][: len(self.products)]


class AlsoBought(NamedTuple):
    """A product and how many shoppers bought it together with the one asked about."""

    product_id: str
    shoppers: int


@dataclass(frozen=True, slots=True)
class Product:
    """What a page needs to show a product. `price` is in the shop's currency."""

    product_id: str
    name: str
    category: str | None
    price: float | None
    image_url: str | None
    in_stock: bool


class DocumentKey(NamedTuple):
    """A document's key, taken apart."""

    name: str
    version: str
    row_key: str


def sentinel(number: int) -> str:
    """A key that is there as long as a server has kept what it was filled with; each of a cluster's has one."""
    return f"{ROOT}:_filled:{number}"


def pointer(name: str) -> str:
    """The key that holds the live version of a sink."""
    return f"{ROOT}:{name}"


def marker(name: str, version: str) -> str:
    """The key that says a version is kept: what tells a version without rows from one that is gone."""
    return f"{ROOT}:{name}:{version}"


def name_in_sql(text: str, version: str = "") -> str | None:
    """The `<name>` of the documents that a statement spells keys of, with that version where one is given."""
    match = re.search(rf"'{ROOT}:(\w+):{re.escape(version + ':') if version else ''}", text)
    return match[1] if match else None


def with_version_variable(text: str) -> str:
    """A statement as a file has it: its keys under no certain version."""
    return re.sub(rf"('{ROOT}:\w+:)[0-9a-f]{{8}}(?:_\d+)?:", lambda match: f"{match[1]}{VERSION_VARIABLE}:", text)


def prefix(name: str, version: str) -> str:
    """What the keys of all documents of one version start with."""
    return f"{ROOT}:{name}:{version}:"


def document(name: str, version: str, row_key: str) -> str:
    """The key of one row's document."""
    return prefix(name, version) + row_key


def documents_pattern(name: str, version: str) -> str:
    """The glob that SCAN finds one version's documents by."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", prefix(name, version)) + "*"


def parsed(key: str) -> DocumentKey | None:
    """Takes a document's key apart; None for a pointer, a marker or a key that is not ours."""
    parts = key.split(":", 3)
    return DocumentKey(*parts[1:]) if len(parts) == 4 and parts[0] == ROOT else None


def window_key(start: datetime) -> str:
    """The row key of a window: `2024-03-21T10:00:00Z`."""
    return start.astimezone(UTC).replace(tzinfo=None, microsecond=0).isoformat() + "Z"


def segment_key(start: datetime, segment: str) -> str:
    """The row key of a segment's window: `2024-03-21T10:00:00Z/25-34/DE`."""
    return f"{window_key(start)}/{segment}"


def window_of(instant: datetime | str) -> datetime:
    """The start (UTC) of the one-hour window an instant lies in.

    Text is ISO 8601; an instant that names no zone is UTC. Raises `ValueError` naming what is not an instant.
    """
    try:
        moment = datetime.fromisoformat(instant) if isinstance(instant, str) else instant
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError, AttributeError, TypeError):
        raise ValueError(
            f"{instant!r} is no window: a datetime or text such as 2025-02-25T10:00:00 is wanted"
        ) from None
    return moment.replace(minute=0, second=0, microsecond=0)


def recent_windows(now: datetime) -> list[datetime]:
    """The starts of all windows kept, the running one first."""
    running = window_of(now)
    return [running - i * WINDOW for i in range(WINDOWS_KEPT)]


def checked_user_id(user_id: object) -> int:
    """The shopper's id as a number: 0 to 2⁶³-1, or the same as decimal text. Raises `ValueError` naming it."""
    try:
        number = int(user_id) if _is_decimal(user_id) else operator.index(user_id)  # type: ignore[arg-type, call-overload]
    except TypeError:
        number = -1
    if isinstance(user_id, bool) or not 0 <= number < 2**63:
        raise ValueError(f"{user_id!r} is no shopper id: a whole number from 0 to {2**63 - 1} is wanted")
    return int(number)


def checked_product_id(product_id: object) -> str:
    """The product's id. Raises `ValueError` naming what is none."""
    if not isinstance(product_id, str) or not product_id:
        raise ValueError(f"{product_id!r} is no product id: text is wanted")
    return product_id


def checked_segment(segment: object) -> str:
    """The segment as `age band/country`. Raises `ValueError` naming what is none."""
    if not isinstance(segment, str) or not re.fullmatch(r"[^/]+/[^/]+", segment):
        raise ValueError(f"{segment!r} is no segment: an age band and a country are wanted, such as 25-34/DE")
    return segment


def decoded(raw: str | bytes) -> Document:
    """A document as a mapping. Raises `ValueError` when it is not JSON, `TypeError` when it is no object."""
    found = json.loads(raw)
    if not isinstance(found, dict):
        raise TypeError("not a JSON object")
    return found


def recommended_products(found: Document) -> list[str]:
    """The product ids of a `user_recommendations` document, best first."""
    return list(found["recommended_products"])


def trending_window(found: Document) -> TrendingWindow:
    """A window's document; one without candidates has its products alone to choose from."""
    products = _counted(found["products"])
    return TrendingWindow(products, _counted(found.get("candidates") or ()) or products)


def _counted(rows: Iterable[Document]) -> list[TrendingProduct]:
    return [TrendingProduct(row["product_id"], row["view_count"]) for row in rows]


def also_bought(found: Document) -> list[AlsoBought]:
    """The products of an `also_bought` document, most often bought together first."""
    return [AlsoBought(row["product_id"], row["shoppers"]) for row in found["products"]]


def product(found: Document) -> Product:
    """A `products` document; one without `in_stock` counts as sold out."""
    price = found.get("price")
    return Product(
        product_id=found["product_id"],
        name=found.get("name") or found["product_id"],
        category=found.get("category"),
        price=None if price is None else float(price),
        image_url=found.get("image_url"),
        in_stock=found.get("in_stock") is True,
    )


def _is_decimal(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value) is not None
