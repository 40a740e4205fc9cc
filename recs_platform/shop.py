"""The made-up shop: its catalog, its customers, and how the catalog changes while shoppers are in it.

Everything is drawn from a seed: the same seed gives the same shop.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from random import Random
from typing import TypeVar

from recs_platform.catalog import Customer, Product

MADE_UP_IMAGES = "https://shop.example/images/"
"""Where the images of made-up products claim to be: the mark by which they are known."""

SOLD_OUT_SHARE = 0.05
"""No more than this share of the made-up products is sold out at a time."""

# Category: (lowest and highest usual price, things sold). The order is that of popularity.
_RANGE: Mapping[str, tuple[int, int, tuple[str, ...]]] = {
    "electronics": (15, 900, ("headphones", "camera", "keyboard", "monitor", "charger", "speaker")),
    "clothing": (10, 200, ("jacket", "shirt", "jeans", "sweater", "dress", "scarf")),
    "home": (8, 400, ("lamp", "rug", "cushion", "shelf", "blanket", "mirror")),
    "books": (6, 60, ("novel", "cookbook", "atlas", "biography", "thriller", "poetry collection")),
    "sports": (10, 300, ("yoga mat", "dumbbell", "tent", "bicycle helmet", "football", "rucksack")),
    "beauty": (5, 120, ("face cream", "shampoo", "perfume", "lipstick", "soap", "hand lotion")),
    "toys": (5, 150, ("puzzle", "board game", "train set", "doll", "kite", "building blocks")),
    "kitchen": (7, 350, ("frying pan", "knife", "kettle", "coffee mill", "bowl", "cutting board")),
    "garden": (5, 250, ("hose", "flower pot", "spade", "bird house", "lantern", "deck chair")),
    "food": (3, 60, ("olive oil", "tea", "chocolate", "honey", "pasta", "coffee")),
    "pets": (4, 120, ("dog lead", "cat tree", "feeding bowl", "aquarium", "dog bed", "scratching post")),
    "office": (3, 200, ("notebook", "fountain pen", "desk pad", "stapler", "folder", "whiteboard")),
}
_LOOKS = ("Alpine", "Classic", "Coastal", "Compact", "Elegant", "Everyday", "Handmade", "Light", "Modern", "Nordic",
          "Organic", "Premium", "Rustic", "Smart", "Soft", "Sturdy", "Travel", "Urban", "Vintage", "Wild")  # fmt: skip
_AGE_BANDS = {"18-24": 15, "25-34": 27, "35-44": 22, "45-54": 16, "55-64": 12, "65+": 8}
_COUNTRIES = {"DE": 30, "FR": 20, "GB": 16, "NL": 12, "ES": 10, "PL": 7, "IT": 5}

T = TypeVar("T")


def zipf_pick(rng: Random, ranked: Sequence[T]) -> T:
    """One of the items, the n-th about n times as rarely as the first (Zipf's law, exponent 1)."""
    return ranked[int((len(ranked) + 1) ** rng.random()) - 1]


def catalog(seed: int, products: int) -> list[Product]:
    """That many products, `product_1` and so on, spread over twelve categories."""
    rng = Random(f"catalog/{seed}")
    return [make_product(rng, number, zipf_pick(rng, tuple(_RANGE))) for number in range(1, products + 1)]


def customers(seed: int, users: int) -> list[Customer]:
    """Shoppers 1 to `users`, each with an age band and a country."""
    rng = Random(f"customers/{seed}")
    ages = rng.choices(tuple(_AGE_BANDS), tuple(_AGE_BANDS.values()), k=users)
    countries = rng.choices(tuple(_COUNTRIES), tuple(_COUNTRIES.values()), k=users)
    return [Customer(*row) for row in zip(range(1, users + 1), ages, countries, strict=True)]


def make_product(rng: Random, number: int, category: str) -> Product:
    """A made-up product `product_<number>`."""
    low, high, things = _RANGE.get(category, (5, 100, ("surprise",)))
    thing, look = rng.choice(things), rng.choice(_LOOKS)
    price = Decimal(round(math.exp(rng.uniform(math.log(low), math.log(high))))) - Decimal("0.01")
    return Product(
        product_id=f"product_{number}",
        name=f"{look} {thing} {rng.randint(100, 999)}",
        category=category,
        price=price,
        description=f"{look} {thing} for every day, from our {category} range.",
        image_url=f"{MADE_UP_IMAGES}product_{number}.jpg",
    )


def is_made_up(product: Product) -> bool:
    """Whether a simulated shop invented the product; only such products are ever changed by one."""
    return bool(product.image_url and product.image_url.startswith(MADE_UP_IMAGES))


class Change(StrEnum):
    """What can happen to a product."""

    NEW = "new"
    DROPPED = "dropped"
    PRICE = "price"
    SOLD_OUT = "sold out"
    BACK = "back in stock"


@dataclass(frozen=True, slots=True)
class CatalogChange:
    """A change of one product at an aware time; `product` is how it is afterwards (for a dropped one, how it was)."""

    kind: Change
    timestamp: datetime
    product: Product


_CHANCES = {Change.PRICE: 40, Change.SOLD_OUT: 20, Change.BACK: 20, Change.NEW: 10, Change.DROPPED: 10}


class Shop:
    """The catalog as shoppers meet it: products by category, the popular ones first.

    How popular a product is follows from its id, so it stays so over restarts, and a new one may be a hit.
    """

    def __init__(self, products: Iterable[Product]) -> None:
        """Raises `ValueError` when there is no product."""
        self.products = {product.product_id: product for product in products}
        if not self.products:
            raise ValueError("a shop needs at least one product")
        self._ranked: dict[str, list[str]] = {}
        self._number = 0
        self._rank()

    @property
    def categories(self) -> list[str]:
        """The categories that hold a product, popular ones first."""
        return list(self._ranked)

    def pick(self, rng: Random, category: str) -> Product:
        """A product of the category by popularity, or of any category when that one is gone."""
        ranked = self._ranked.get(category) or self._ranked[zipf_pick(rng, self.categories)]
        return self.products[zipf_pick(rng, ranked)]

    def neighbour(self, rng: Random, product: Product) -> Product:
        """A product that shoppers of the given one tend to look at next; always the same few."""
        ranked = self._ranked.get(_category(product), [])
        if product.product_id not in self.products or len(ranked) < 2:
            return self.pick(rng, _category(product))
        place = self._place[product.product_id] + rng.choice((-2, -1, 1, 2))
        return self.products[ranked[place % len(ranked)]]

    def restock(self, products: Iterable[Product]) -> None:
        """Takes over the catalog as it is now; an empty one is left for later, shoppers need something to see."""
        self.products = {product.product_id: product for product in products} or self.products
        self._rank()

    def change(self, rng: Random, at: datetime) -> CatalogChange | None:
        """Changes one made-up product and says how; None where there is none."""
        made_up = [product for product in self.products.values() if is_made_up(product)]
        if not made_up:
            return None
        change = self._drawn(rng, at, made_up)
        if change.kind is Change.DROPPED:
            del self.products[change.product.product_id]
        else:
            self.products[change.product.product_id] = change.product
        if change.kind in (Change.DROPPED, Change.NEW):
            self._rank()
        return change

    def _drawn(self, rng: Random, at: datetime, made_up: list[Product]) -> CatalogChange:
        [kind] = rng.choices(tuple(_CHANCES), tuple(_CHANCES.values()))
        sold_out = [product for product in made_up if not product.in_stock]
        in_stock = [product for product in made_up if product.in_stock]
        if kind is Change.SOLD_OUT and len(sold_out) >= SOLD_OUT_SHARE * len(made_up):
            kind = Change.BACK
        if (kind is Change.BACK and not sold_out) or (kind is Change.DROPPED and len(made_up) < 10):
            kind = Change.PRICE
        if kind is Change.NEW:
            return CatalogChange(kind, at, make_product(rng, self._number + 1, zipf_pick(rng, tuple(_RANGE))))
        product = rng.choice(sold_out if kind is Change.BACK else in_stock or made_up)
        return CatalogChange(kind, at, _changed(rng, kind, product))

    def _rank(self) -> None:
        ranked: dict[str, list[str]] = {}
        for product_id in sorted(self.products, key=lambda name: (zlib.crc32(name.encode()), name)):
            ranked.setdefault(_category(self.products[product_id]), []).append(product_id)
        self._ranked = dict(sorted(ranked.items(), key=lambda item: (-len(item[1]), item[0])))
        self._place = {product_id: place for ids in ranked.values() for place, product_id in enumerate(ids)}
        numbers = (name.removeprefix("product_") for name in self.products)
        # Never lower than before, so that the id of a dropped product is not given to another one.
        self._number = max([self._number, *(int(number) for number in numbers if number.isdecimal())])


def _category(product: Product) -> str:
    return product.category or ""


def _changed(rng: Random, kind: Change, product: Product) -> Product:
    match kind:
        case Change.PRICE:
            price = (product.price or Decimal(10)) * Decimal(rng.choice((80, 90, 95, 105, 110, 125))) / 100
            return replace(product, price=max(price, Decimal("0.99")).quantize(Decimal("0.01")))
        case Change.SOLD_OUT:
            return replace(product, in_stock=False)
        case Change.BACK:
            return replace(product, in_stock=True)
        case _:
            return product
