"""What the change feed of the catalog hands over: what PostgreSQL holds, whatever was done to it and whoever died."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from recs_platform.engines.local import cdc
from recs_platform.engines.local.cdc import CatalogBatch, CatalogFeed
from recs_platform.engines.local.changes import CatalogTable
from recs_platform.errors import SourceError

PRODUCTS = CatalogTable(
    "products", "public.product_catalog", ("product_id", "name", "price", "description", "in_stock"), ("product_id",)
)
VISITS = CatalogTable("visits", "public.visits", ("user_id", "day", "pages"), ("user_id", "day"))
ROWS = (
    "INSERT INTO product_catalog VALUES ('p1', 'Lamp', 10, 'bright', true), ('p2', 'Bed', NULL, NULL, false)",
    "INSERT INTO visits VALUES (1, '2024-07-27', 3), (1, '2024-07-28', 4)",
)
# 3,000 characters, kept out of the row, and so not sent when an update leaves them alone
LARGE = "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 94) AS n)"

Rows = dict[tuple[str | None, ...], tuple[str | None, ...]]


class Shop:
    """The tables, and everything a reader of the feed knows of them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection: psycopg.Connection[tuple[Any, ...]] = psycopg.connect(
            url, autocommit=True, options="-c synchronous_commit=on"
        )  # a change is in the stream once it is on disk
        self.slot = f"s{uuid4().hex[:12]}"
        self.feed = CatalogFeed(url, "recs", self.slot, [PRODUCTS, VISITS])
        self.after = 0
        self.copies: dict[str, Rows] = {"products": {}, "visits": {}}

    def run(self, *statements: str) -> None:
        """In one transaction."""
        with self.connection.transaction():
            for statement in statements:
                self.connection.execute(statement.encode())

    def read_snapshots(self) -> None:
        for table in (PRODUCTS, VISITS):
            rows = [row for piece in self.feed.snapshot(table) for row in _tuples(piece)]
            self.copies[table.name] = {_key(table, row): row for row in rows}

    def poll(self, max_changes: int = 10_000, advance: bool = True) -> CatalogBatch:
        batch = self.feed.poll(max_changes, self.after)
        for table in (PRODUCTS, VISITS):
            if changes := batch.changes.get(table.name):
                copy = self.copies[table.name]
                if changes.truncated:
                    copy.clear()
                for key in _tuples(changes.deletes):
                    copy.pop(key, None)
                copy.update({_key(table, row): row for row in _tuples(changes.upserts)})
        self.after = batch.end_lsn
        if advance:
            self.feed.advance(batch.end_lsn)
        return batch

    def stored(self) -> dict[str, Rows]:
        """What PostgreSQL holds, read the plain way."""
        return {table.name: self._stored(table) for table in (PRODUCTS, VISITS)}

    def _stored(self, table: CatalogTable) -> Rows:
        with (
            self.connection.cursor() as cursor,
            cursor.copy(f"COPY (SELECT {', '.join(table.columns)} FROM {table.source}) TO STDOUT".encode()) as copy,
        ):
            return {_key(table, row): row for row in copy.rows()}

    def close(self) -> None:
        self.feed.close()
        self.connection.close()


def _tuples(table: Any) -> list[tuple[str | None, ...]]:
    return [tuple(row.values()) for row in table.to_pylist()]


def _key(table: CatalogTable, row: tuple[str | None, ...]) -> tuple[str | None, ...]:
    return tuple(row[table.columns.index(column)] for column in table.key)


@pytest.fixture
def shop(postgres_url: str) -> Iterator[Shop]:
    shop = Shop(postgres_url)
    shop.run(
        "CREATE TABLE product_catalog (product_id text PRIMARY KEY, name text NOT NULL, price numeric(12,2), "
        "description text, in_stock boolean NOT NULL DEFAULT true, seen_at timestamptz)",
        "ALTER TABLE product_catalog ALTER description SET STORAGE EXTERNAL",
        "CREATE TABLE visits (user_id bigint, day date, pages int, PRIMARY KEY (user_id, day))",
        *ROWS,
    )
    yield shop
    shop.close()


@pytest.fixture
def followed(shop: Shop) -> Shop:
    """A shop whose feed is prepared and whose snapshots are read."""
    shop.feed.prepare()
    shop.read_snapshots()
    return shop


def test_a_snapshot_holds_every_row_as_text(followed: Shop) -> None:
    assert followed.copies["products"] == {
        ("p1",): ("p1", "Lamp", "10.00", "bright", "t"),
        ("p2",): ("p2", "Bed", None, None, "f"),
    }
    assert followed.copies == followed.stored()


def test_a_snapshot_does_not_wait_for_long_for_a_table_that_somebody_holds(
    followed: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All else that the engine does would wait with it."""
    monkeypatch.setattr(cdc, "LOCK_SECONDS", 1)
    with followed.connection.transaction():
        followed.connection.execute("LOCK TABLE product_catalog IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(SourceError, match=r"lock timeout \(a transaction holds the table: see pg_locks"):
            followed.read_snapshots()


def test_a_snapshot_of_an_empty_table_is_one_empty_piece(followed: Shop) -> None:
    followed.run("TRUNCATE visits")
    (piece,) = followed.feed.snapshot(VISITS)
    assert (piece.num_rows, piece.column_names) == (0, ["user_id", "day", "pages"])


def test_a_large_snapshot_comes_in_pieces(followed: Shop) -> None:
    followed.run("INSERT INTO visits SELECT n, '2024-01-01', n FROM generate_series(100, 25099) AS n")
    assert [piece.num_rows for piece in followed.feed.snapshot(VISITS)] == [10_000, 10_000, 5_002]


CHANGES = {
    "insert": ("INSERT INTO product_catalog VALUES ('p3', E'tab\\there\\nünïcode \\\\', 0.5, '', false)",),
    "update": ("UPDATE product_catalog SET price = 11, in_stock = false WHERE product_id = 'p1'",),
    "update to null": ("UPDATE product_catalog SET price = NULL, description = NULL",),
    "delete": ("DELETE FROM product_catalog WHERE product_id = 'p2'", "DELETE FROM visits WHERE day = '2024-07-28'"),
    "truncate": ("TRUNCATE product_catalog",),
    "truncate, insert": ("TRUNCATE product_catalog, visits", "INSERT INTO visits VALUES (2, '2024-07-27', 1)"),
    "insert, truncate": ("INSERT INTO visits VALUES (2, '2024-07-27', 1)", "TRUNCATE visits"),
    "new key": ("UPDATE product_catalog SET product_id = 'p9' WHERE product_id = 'p1'",),
    "keys handed on": (
        "UPDATE visits SET day = day + 1 WHERE day = '2024-07-28'",
        "UPDATE visits SET day = day + 1 WHERE day = '2024-07-27'",
    ),
    "delete, insert": (
        "DELETE FROM product_catalog WHERE product_id = 'p1'",
        "INSERT INTO product_catalog VALUES ('p1', 'New lamp', 12)",
    ),
    "insert, delete": (
        "INSERT INTO product_catalog VALUES ('p3', 'Cup', 1)",
        "DELETE FROM product_catalog WHERE product_id = 'p3'",
    ),
    "key taken over": (
        "UPDATE product_catalog SET product_id = 'p9' WHERE product_id = 'p1'",
        "INSERT INTO product_catalog VALUES ('p1', 'Another', 1)",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_arrives(followed: Shop, change: str) -> None:
    followed.run(*CHANGES[change])
    followed.poll()
    assert followed.copies == followed.stored()


def test_changes_arrive_from_a_table_that_tells_whole_rows(followed: Shop) -> None:
    followed.run("ALTER TABLE product_catalog REPLICA IDENTITY FULL")
    for change, statements in CHANGES.items():
        followed.run("TRUNCATE product_catalog, visits", *ROWS)
        followed.poll()
        followed.run(*statements)
        followed.poll()
        assert followed.copies == followed.stored(), change


def test_changes_arrive_in_the_order_of_their_transactions(followed: Shop) -> None:
    for price in range(20):
        followed.run(f"UPDATE product_catalog SET price = {price} WHERE product_id = 'p1'")
        followed.run(f"UPDATE product_catalog SET product_id = 'p{price + 10}' WHERE name = 'Bed'")
    batch = followed.poll()
    assert batch.changes["products"].upserts.num_rows == 2, "one state a row"
    assert followed.copies == followed.stored()


def test_a_rolled_back_transaction_does_not_arrive(followed: Shop) -> None:
    with followed.connection.transaction(force_rollback=True):
        followed.connection.execute("DELETE FROM product_catalog")
    assert not followed.poll().changes


def test_no_change_is_an_empty_batch_at_the_end_of_the_log(followed: Shop) -> None:
    followed.run("CREATE TABLE other AS SELECT generate_series(1, 1000)")
    before = followed.after
    batch = followed.poll()
    assert not batch.changes
    assert batch.end_lsn > before


def test_an_idle_catalog_does_not_keep_the_log(followed: Shop) -> None:
    followed.run("CREATE TABLE other AS SELECT generate_series(1, 100000) AS n")
    followed.poll()
    (behind,) = followed.connection.execute(
        "SELECT pg_current_wal_lsn() - confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s",
        [followed.slot],
    ).fetchone() or (None,)
    assert behind is not None
    assert behind < 10_000


def test_what_was_not_advanced_past_is_handed_over_again(followed: Shop) -> None:
    followed.run("UPDATE product_catalog SET price = 77 WHERE product_id = 'p1'")
    first = followed.poll(advance=False)
    after_a_crash = CatalogFeed(followed.url, "recs", followed.slot, [PRODUCTS, VISITS])
    assert not after_a_crash.prepare()
    assert after_a_crash.poll(100, 0).changes["products"] == first.changes["products"]
    after_a_crash.close()


def test_what_was_committed_here_is_not_handed_over_again(followed: Shop) -> None:
    followed.run("UPDATE product_catalog SET price = 77 WHERE product_id = 'p1'")
    followed.poll(advance=False)
    assert not followed.poll(advance=False).changes
    followed.run("UPDATE product_catalog SET price = 78 WHERE product_id = 'p1'")
    assert [row[2] for row in _tuples(followed.poll().changes["products"].upserts)] == ["78.00"]


def test_a_long_backlog_comes_in_batches_of_whole_transactions(followed: Shop) -> None:
    for user in range(10, 20):
        followed.run(f"INSERT INTO visits SELECT {user}, date '2024-01-01' + n, n FROM generate_series(1, 50) AS n")
    sizes = []
    while changes := followed.poll(max_changes=100).changes:
        sizes.append(changes["visits"].upserts.num_rows)
    assert sum(sizes) == 500
    assert len(sizes) >= 4
    assert all(size % 50 == 0 for size in sizes)
    assert followed.copies == followed.stored()


def test_a_large_value_left_alone_is_kept(followed: Shop) -> None:
    followed.run(f"UPDATE product_catalog SET description = {LARGE} WHERE product_id = 'p1'")
    followed.poll()
    for statement in (
        "UPDATE product_catalog SET price = 1 WHERE product_id = 'p1'",
        "UPDATE product_catalog SET product_id = 'p9' WHERE product_id = 'p1'",
    ):
        followed.run(statement)
        followed.poll()
        assert followed.copies == followed.stored()


def test_a_large_value_sent_earlier_in_the_batch_is_kept(followed: Shop) -> None:
    followed.run(f"UPDATE product_catalog SET description = {LARGE} WHERE product_id = 'p1'")
    followed.run("UPDATE product_catalog SET price = 1 WHERE product_id = 'p1'")
    followed.run("UPDATE product_catalog SET product_id = 'p8' WHERE product_id = 'p1'")
    followed.poll()
    assert followed.copies == followed.stored()


def test_a_row_with_a_large_value_that_is_gone_by_now_ends_up_gone(followed: Shop) -> None:
    followed.run(f"UPDATE product_catalog SET description = {LARGE}")
    followed.poll()
    followed.run("UPDATE product_catalog SET price = 1")
    followed.run("DELETE FROM product_catalog WHERE product_id = 'p1'")
    followed.poll(max_changes=1)
    followed.poll()
    assert followed.copies == followed.stored()


def test_a_new_column_does_not_disturb(followed: Shop) -> None:
    followed.run("ALTER TABLE product_catalog ADD COLUMN brand text", "UPDATE product_catalog SET brand = 'b'")
    followed.poll()
    assert followed.copies == followed.stored()


def test_a_dropped_column_that_nothing_reads_is_null(shop: Shop) -> None:
    needed = frozenset({"product_id", "name"})
    feed = CatalogFeed(shop.url, "recs", shop.slot, [replace(PRODUCTS, needed=needed)])
    feed.prepare()
    shop.run("ALTER TABLE product_catalog DROP COLUMN price", "UPDATE product_catalog SET name = 'x'")
    batch = feed.poll(100, 0)
    assert {row[1:3] for row in _tuples(batch.changes["products"].upserts)} == {("x", None)}
    assert not feed.prepare()
    pieces = [row for piece in feed.snapshot(feed.tables[0]) for row in _tuples(piece)]
    assert {row[2] for row in pieces} == {None}
    feed.close()


@pytest.mark.parametrize(
    ("change", "undone", "message"),
    [
        ("DROP COLUMN price", "ADD COLUMN price numeric", "has no column price, which products reads; it has product_id"),
        ("RENAME COLUMN price TO cost", "RENAME COLUMN cost TO price", "reads; price is called cost now; the catalog stands"),
        ("ALTER COLUMN price TYPE text", "ALTER COLUMN price TYPE numeric USING price::numeric", "has price text, which"),
    ],
)  # fmt: skip
def test_the_feed_stands_still_while_a_column_is_not_as_it_is_wanted(
    shop: Shop, change: str, undone: str, message: str
) -> None:
    types = ("VARCHAR", "VARCHAR", "DOUBLE PRECISION", "VARCHAR", "BOOLEAN")
    shop.feed = CatalogFeed(shop.url, "recs", shop.slot, [replace(PRODUCTS, types=types), VISITS])
    shop.feed.prepare()
    shop.read_snapshots()
    shop.run(f"ALTER TABLE product_catalog {change}", "UPDATE product_catalog SET name = 'x'")
    for _ in range(2):
        with pytest.raises(SourceError, match=message):
            shop.poll()
        with pytest.raises(SourceError, match=message):
            shop.feed.prepare()
    shop.run(f"ALTER TABLE product_catalog {undone}", "UPDATE product_catalog SET in_stock = NOT in_stock")
    assert not shop.feed.prepare()
    shop.poll()
    assert shop.copies == shop.stored()
    assert {row[1] for row in shop.copies["products"].values()} == {"x"}


def test_a_key_that_was_called_something_else_meanwhile_is_read_anew(followed: Shop) -> None:
    followed.run(
        "ALTER TABLE product_catalog RENAME COLUMN product_id TO id", "DELETE FROM product_catalog WHERE id = 'p1'"
    )
    with pytest.raises(SourceError, match="product_id is called id now"):
        followed.poll()
    followed.run("ALTER TABLE product_catalog RENAME COLUMN id TO product_id")
    assert not followed.feed.prepare()
    with pytest.raises(SourceError, match="the key product_id of public.product_catalog had changed: it is read anew"):
        followed.poll()
    assert followed.feed.prepare()
    followed.read_snapshots()
    followed.after = 0
    followed.poll()
    assert followed.copies == followed.stored()


def test_a_type_that_holds_as_much_goes_on(shop: Shop) -> None:
    types = ("VARCHAR", "VARCHAR", "DOUBLE PRECISION", "VARCHAR", "BOOLEAN")
    shop.feed = CatalogFeed(shop.url, "recs", shop.slot, [replace(PRODUCTS, types=types), VISITS])
    shop.feed.prepare()
    shop.read_snapshots()
    shop.run(
        "ALTER TABLE product_catalog ALTER COLUMN price TYPE double precision", "UPDATE product_catalog SET price = 3"
    )
    shop.poll()
    assert {row[2] for row in shop.copies["products"].values()} == {"3"}


def test_two_relations_can_read_one_table(shop: Shop) -> None:
    names = replace(PRODUCTS, name="names", columns=("product_id", "name"))
    feed = CatalogFeed(shop.url, "recs", shop.slot, [PRODUCTS, names])
    feed.prepare()
    shop.run("UPDATE product_catalog SET name = 'Sofa' WHERE product_id = 'p2'")
    changes = feed.poll(100, 0).changes
    feed.close()
    assert _tuples(changes["names"].upserts) == [("p2", "Sofa")]
    assert changes["products"].upserts.num_rows == 1


def test_changes_between_slot_and_snapshot_end_up_right(shop: Shop) -> None:
    assert shop.feed.prepare()
    shop.run("DELETE FROM product_catalog WHERE product_id = 'p1'", "UPDATE visits SET pages = 100")
    shop.run("INSERT INTO product_catalog VALUES ('p1', 'Back', 1)")
    shop.read_snapshots()
    shop.poll()
    assert shop.copies == shop.stored()


def test_only_a_new_slot_asks_for_snapshots(shop: Shop) -> None:
    assert shop.feed.prepare()
    assert not shop.feed.prepare()


def test_a_table_added_to_the_pipeline_asks_for_snapshots(shop: Shop) -> None:
    one = CatalogFeed(shop.url, "recs", shop.slot, [PRODUCTS])
    assert one.prepare()
    one.close()
    assert shop.feed.prepare()


def test_a_slot_that_vanished_is_created_anew(followed: Shop) -> None:
    followed.poll()
    followed.connection.execute("SELECT pg_drop_replication_slot(%s)", [followed.slot])
    with pytest.raises(SourceError, match="does not exist .*created again at the next attempt"):
        followed.poll()
    followed.run("DELETE FROM visits")
    assert followed.feed.prepare()
    followed.after = 0
    followed.read_snapshots()
    followed.poll()
    assert followed.copies == followed.stored()


def test_a_table_dropped_and_created_anew_is_noticed(followed: Shop) -> None:
    followed.poll()
    followed.run(
        "CREATE TABLE copied (LIKE visits INCLUDING ALL)", "DROP TABLE visits", "ALTER TABLE copied RENAME TO visits"
    )
    with pytest.raises(SourceError, match=r"no longer has public\.visits"):
        followed.poll()
    assert followed.feed.prepare()


def test_a_database_set_back_is_noticed(followed: Shop) -> None:
    followed.after = followed.poll().end_lsn + 1_000_000_000
    with pytest.raises(SourceError, match="was set back"):
        followed.poll()
    assert followed.feed.prepare()


def test_a_lost_connection_is_an_error_once(followed: Shop) -> None:
    followed.poll()
    followed.connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()"
    )
    followed.run("DELETE FROM visits")
    with pytest.raises(SourceError, match="PostgreSQL at postgresql://"):
        followed.poll()
    followed.poll()
    assert followed.copies == followed.stored()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("DROP TABLE visits", "has no table public.visits, which visits reads"),
        ("ALTER TABLE visits DROP CONSTRAINT visits_pkey", r"primary key of public.visits is \(missing\)"),
        ("ALTER TABLE visits RENAME COLUMN pages TO p", "no column pages, which visits reads; it has user_id, day, p"),
        ("ALTER TABLE visits REPLICA IDENTITY NOTHING", "ALTER TABLE public.visits REPLICA IDENTITY DEFAULT"),
        ("CREATE PUBLICATION recs FOR ALL TABLES WITH (publish = 'insert')", "ALTER PUBLICATION recs SET"),
    ],
    ids=["table", "key", "column", "identity", "publication"],
)
def test_what_cannot_be_followed_is_refused_with_the_remedy(shop: Shop, spoil: str, message: str) -> None:
    shop.run(spoil)
    with pytest.raises(SourceError, match=message):
        shop.feed.prepare()


def test_a_publication_of_all_tables_will_do(shop: Shop) -> None:
    shop.run("CREATE PUBLICATION recs FOR ALL TABLES")
    assert shop.feed.prepare()


def test_a_partitioned_table_can_be_followed(shop: Shop) -> None:
    shop.run(
        "DROP TABLE visits",
        "CREATE TABLE visits (user_id bigint, day date, pages int, PRIMARY KEY (user_id, day)) "
        "PARTITION BY RANGE (day)",
        "CREATE TABLE visits_2024 PARTITION OF visits FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')",
    )
    shop.feed.prepare()
    shop.read_snapshots()
    shop.run("INSERT INTO visits VALUES (1, '2024-07-27', 3)")
    shop.poll()
    assert len(shop.copies["visits"]) == 1
    assert shop.copies == shop.stored()


def test_a_slot_of_something_else_is_left_alone(shop: Shop) -> None:
    shop.connection.execute("SELECT pg_create_physical_replication_slot(%s)", [shop.slot])
    with pytest.raises(SourceError, match="choose another name with RECS_REPLICATION_SLOT"):
        shop.feed.prepare()
    shop.connection.execute("SELECT pg_drop_replication_slot(%s)", [shop.slot])


def test_a_role_without_replication_is_told(shop: Shop) -> None:
    role = f"r{uuid4().hex[:8]}"
    shop.run(
        f"CREATE ROLE {role} LOGIN PASSWORD 'secret-word'",
        f"GRANT ALL ON DATABASE {shop.connection.info.dbname} TO {role}",
        f"ALTER TABLE product_catalog OWNER TO {role}",
        f"ALTER TABLE visits OWNER TO {role}",
    )
    info = shop.connection.info
    feed = CatalogFeed(
        f"postgresql://{role}:secret-word@{info.host}:{info.port}/{info.dbname}", "recs", shop.slot, [PRODUCTS, VISITS]
    )
    try:
        with pytest.raises(SourceError, match=r"ALTER ROLE … REPLICATION") as caught:
            feed.prepare()
        assert "secret-word" not in str(caught.value)
    finally:
        feed.close()
        shop.run(
            "DROP PUBLICATION recs",
            f"REASSIGN OWNED BY {role} TO CURRENT_USER",
            f"DROP OWNED BY {role}",
            f"DROP ROLE {role}",
        )


@pytest.mark.parametrize(
    "url", ["postgresql://recs:secret-word@127.0.0.1:1/shop", "host=127.0.0.1 password=secret-word", "secret-word"]
)
def test_no_connection_is_told_without_the_password(url: str) -> None:
    with pytest.raises(SourceError) as caught:
        CatalogFeed(url, "recs", "recs", [PRODUCTS]).prepare()
    assert "secret-word" not in str(caught.value)
