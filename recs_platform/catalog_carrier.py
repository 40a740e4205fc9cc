"""The catalog carried on from PostgreSQL to the topics or files that `RECS_CATALOG` has it read from.

For a shop whose record is PostgreSQL, as the simulated one's is: with the default, logical replication does it, and
nothing is to be done here. A shop that fills topics or files by itself needs none of this.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import orjson

from recs_platform.catalog import Customer, Product, read_catalog, read_customers, read_product
from recs_platform.catalog_file import find_file
from recs_platform.errors import SourceError
from recs_platform.events import EventProducer
from recs_platform.pipeline import Pipeline
from recs_platform.settings import DEBEZIUM, FILE, UPSERTS, Settings

Row = Product | Customer
_TABLES: Mapping[type[Row], tuple[str, str]] = {
    Product: ("product_catalog", "product_id"),
    Customer: ("customers", "user_id"),
}
"""Table and key."""


def is_in_topics(settings: Settings) -> bool:
    return settings.catalog in (UPSERTS, DEBEZIUM)


def check_carried(settings: Settings) -> None:
    """Raises `SourceError` where what is written to PostgreSQL would never be seen."""
    if settings.catalog == FILE:
        raise SourceError(
            f"the catalog comes from files (RECS_CATALOG=file): put the rows into those in {settings.catalog_dir}, "
            "which are read again: by the local engine itself, by a RisingWave at `recs apply`"
        )


def carry_all(settings: Settings) -> int:
    """Sends every row of PostgreSQL's tables to their topics; returns how many. Raises `SourceError`."""
    if not is_in_topics(settings):
        return 0
    url = settings.require("postgres_url")
    rows: list[Row] = [*read_catalog(url), *read_customers(url)]
    with EventProducer(settings.require("kafka_bootstrap_servers")) as producer:
        topics = CatalogTopics(settings, producer)
        for row in rows:
            topics.put(row)
    return len(rows)


class CatalogTopics:
    """The catalog's topics, in the form that the settings say."""

    def __init__(self, settings: Settings, producer: EventProducer) -> None:
        self._settings, self._producer = settings, producer
        topics = Pipeline.of(settings).topics
        self._topics = {source.name.removesuffix("_changes"): topic for topic, source in topics.items()}

    def put(self, row: Row) -> None:
        """Sends a row as it is now. Raises what `EventProducer.send_raw` raises."""
        table, key = _TABLES[type(row)]
        after = asdict(row)
        for k, v in messages(self._settings.catalog, key, after[key], after):
            self._producer.send_raw(self._topics[table], k, v)

    def take_away(self, kind: type[Row], id: str | int) -> None:
        """Sends that a row has gone. Raises what `EventProducer.send_raw` raises."""
        table, key = _TABLES[kind]
        for k, v in messages(self._settings.catalog, key, id, None):
            self._producer.send_raw(self._topics[table], k, v)

    def carry_product(self, product_id: str) -> None:
        """Sends a product as PostgreSQL has it now, or that it has gone. Raises `SourceError`."""
        product = read_product(self._settings.require("postgres_url"), product_id)
        if product is not None:
            self.put(product)
            return
        self.take_away(Product, product_id)


Message = tuple[bytes, bytes | None]
"""Key and value; none takes away what the key stands for."""


def messages(form: str, key: str, id: str | int, after: Mapping[str, Any] | None) -> list[Message]:
    """What tells of a row that is now `after`, or of one that has gone: `upserts` as it is, `debezium` in its envelope."""
    if form == UPSERTS:
        return [(str(id).encode(), None if after is None else _json(after))]
    own = _json({key: id})
    if after is None:
        return [(own, _json({"before": {key: id}, "after": None, "op": "d"})), (own, None)]
    return [(own, _json({"before": None, "after": after, "op": "u"}))]


def _json(value: Mapping[str, Any]) -> bytes:
    return orjson.dumps(value, default=float)  # prices are decimals


def write_files(directory: Path, products: Iterable[Product], customers: Iterable[Customer]) -> None:
    """Writes a file of each table that has none yet."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_file(directory, Product, list(products))
    _write_file(directory, Customer, list(customers))


def _write_file(directory: Path, kind: type[Row], rows: Sequence[Row]) -> None:
    table, _ = _TABLES[kind]
    try:
        find_file(directory, table)
    except SourceError:
        unfinished = directory / f"{table}.unfinished"
        with unfinished.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([field.name for field in fields(kind)])
            writer.writerows(asdict(row).values() for row in rows)
        unfinished.replace(directory / f"{table}.csv")
