"""A Redis filled as the sinks fill it, without an engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime

from recs_platform.serving import keys, versions
from recs_platform.serving.cluster import nodes_of
from recs_platform.serving.connection import client


def emptied(url: str) -> str:
    """The same, of a server or a cluster that holds nothing."""
    with client(url, 5) as connection:
        for node in nodes_of(connection):
            node.flushall()
    return url


class Shop:
    """Writes Redis the way a sink does."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis = client(url, 5)

    def serve(self, name: str, documents: Mapping[str, object], version: str = "v1", *, marked: bool = False) -> None:
        """Fills a version and flips the pointer to it."""
        self.fill(name, documents, version)
        if marked:
            self.redis.set(keys.marker(name, version), "1")
        self.redis.set(keys.pointer(name), version)

    def fill(self, name: str, documents: Mapping[str, object], version: str = "v1") -> None:
        with self.redis.pipeline(transaction=False) as pipe:
            for key, row in documents.items():
                pipe.set(keys.document(name, version, key), json.dumps(row))
            pipe.execute()

    def remove(self, name: str, version: str) -> None:
        versions.unlink_all(self.redis, versions.document_keys(self.redis, name, version))

    def stock(self, *product_ids: str, in_stock: bool = True) -> None:
        self.serve(
            "products",
            {p: {"product_id": p, "name": f"[{p}]", "price": 2.5, "in_stock": in_stock} for p in product_ids},
        )

    def list_for(self, user_id: int, *product_ids: str) -> None:
        self.serve("user_recommendations", {str(user_id): {"user_id": user_id, "recommended_products": product_ids}})

    def trend(self, start: datetime, views: Mapping[str, int], segment: str | None = None) -> None:
        """Ten products at most are shown, the others are kept beside them."""
        rows = [{"product_id": p, "view_count": n} for p, n in views.items()]
        name, key = (
            ("trending_by_segment", keys.segment_key(start, segment))
            if segment
            else ("trending_products", keys.window_key(start))
        )
        self.serve(name, {key: {"window_start": keys.window_key(start), "products": rows[:10], "candidates": rows}})

    def bought(self, product_id: str, shoppers: Mapping[str, int]) -> None:
        rows = [{"product_id": p, "shoppers": n} for p, n in shoppers.items()]
        self.serve("also_bought", {product_id: {"key": product_id, "product_id": product_id, "products": rows}})
