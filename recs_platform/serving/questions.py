"""What the store is asked, free of any connection.

A question is a generator: it yields Redis commands, is sent their replies, and returns the answer. The store
and its async twin drive the very same generators, so there is one logic for both.

No pointer is trusted from an earlier call. Each MGET of documents reads the pointers again, and Redis answers one MGET
at one moment (a cluster reads the documents first and the pointers after them, which is as good): where a pointer has
moved since the keys were made up, the answer is thrown away and read once more under the new version. So a list never
mixes two versions, and a call costs two round trips.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeAlias, TypeVar

from recs_platform.errors import NotServed
from recs_platform.serving import keys
from recs_platform.serving.keys import AlsoBought, Product, TrendingProduct, TrendingWindow

T = TypeVar("T")
Command: TypeAlias = tuple[str | int, ...]
Reads: TypeAlias = Generator[Command, Any, T]
Wanted: TypeAlias = tuple[str, str]
"""A sink's name and a row key."""

MOST = 1000
"""The longest list, and the most products, that one call may ask for."""
NEWEST, OLDER = slice(3), slice(3, None)
"""The windows read at once, and those read only when these do not suffice."""
SPARE = 10
"""Products looked up beyond those wanted, in place of the ones that turn out to be sold out."""
FLIPS = 20
"""How often in one call the pointers may be found moved."""
SCAN_KEYS, SCAN_ROUNDS = 1000, 100
SHELVES = 10
"""How often the catalog is asked for some thousand products more, while those before were sold out."""


@dataclass(frozen=True)
class Question(Generic[T]):
    """`key` stands for the question when its last good answer is kept."""

    key: tuple[object, ...]
    reads: Reads[T]


@dataclass(frozen=True)
class Snapshot:
    """Documents, under the versions that were live when they were read."""

    versions: dict[str, str | None]
    marked: frozenset[str]
    documents: dict[Wanted, keys.Document]

    def parse(self, wanted: Wanted, parser: Callable[[keys.Document], T]) -> T | None:
        """The document as `parser` reads it; None when it is not there. Raises `NotServed` when it is malformed."""
        found = self.documents.get(wanted)
        try:
            return None if found is None else parser(found)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise _malformed(wanted) from None


class Questions:
    """All questions. Keeps nothing between calls that an answer depends on."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._versions: dict[str, str | None] = {}
        self.popular: dict[str, Product] = {}
        """Trending products last seen in stock, or where nothing trends others that are: what is left to
        say to a new shopper when Redis is gone."""

    def user_recommendations(self, user_id: int | str, limit: int) -> Question[list[str]]:
        shopper, limit = keys.checked_user_id(user_id), checked_limit(limit)
        return Question(("user", shopper, limit), self._user_recommendations(shopper, limit))

    def trending(
        self, window_start: datetime | str | None, segment: str | None, limit: int, available_only: bool
    ) -> Question[list[TrendingProduct]]:
        limit = checked_limit(limit)
        window = None if window_start is None else keys.window_of(window_start)
        segment = None if segment is None else keys.checked_segment(segment)
        key = ("trending", window, segment, limit, available_only)
        return Question(key, self._trending(window, segment, limit, available_only))

    def also_bought(self, product_id: str, limit: int) -> Question[list[AlsoBought]]:
        product_id, limit = keys.checked_product_id(product_id), checked_limit(limit)
        return Question(("also_bought", product_id, limit), self._also_bought(product_id, limit))

    def products(self, product_ids: Iterable[str]) -> Question[list[Product]]:
        wanted = [keys.checked_product_id(product_id) for product_id in product_ids]
        if len(wanted) > MOST:
            raise ValueError(f"{len(wanted)} products asked for at once: at most {MOST}")
        return Question(("products", *wanted), self._products(wanted))

    def _user_recommendations(self, shopper: int, limit: int) -> Reads[list[str]]:
        own = (keys.USER_RECOMMENDATIONS, str(shopper))
        newest = self._windows(NEWEST)
        read = yield from self._read([own, *newest])
        listed = read.parse(own, keys.recommended_products)
        if listed is None:
            yield from self._refuse_stale(keys.USER_RECOMMENDATIONS, read)
        return (yield from self._filled(listed or [], _trending_ids(read, newest), limit))

    def _also_bought(self, product_id: str, limit: int) -> Reads[list[AlsoBought]]:
        own = (keys.ALSO_BOUGHT, product_id)
        newest = self._windows(NEWEST)
        read = yield from self._read([own, *newest])
        listed = read.parse(own, keys.also_bought)
        if listed is None:
            yield from self._refuse_stale(keys.ALSO_BOUGHT, read)
        shoppers = dict(listed or [])
        ids = yield from self._filled(list(shoppers), _trending_ids(read, newest), limit, leave_out=product_id)
        return [AlsoBought(found, shoppers.get(found, 0)) for found in ids]

    def _trending(
        self, window: datetime | None, segment: str | None, limit: int, available_only: bool
    ) -> Reads[list[TrendingProduct]]:
        name = keys.TRENDING_BY_SEGMENT if segment else keys.TRENDING_PRODUCTS
        if window is None:
            asked = [self._windows(part, name, segment) for part in (NEWEST, OLDER)]
        else:
            asked = [[(name, _window_row(window, segment))]]
        any_window = False
        for wanted in asked:
            read = yield from self._read(wanted)
            for row in wanted:
                found = read.parse(row, keys.trending_window)
                if found is None:
                    continue
                any_window = True
                listed = (yield from self._available(found)) if available_only else found.products
                if listed:
                    return listed[:limit]
        if not any_window:
            yield from self._refuse_stale(name, read)
        return []

    def _available(self, window: TrendingWindow) -> Reads[list[TrendingProduct]]:
        return window.available((yield from self._in_stock(row.product_id for row in window.candidates)))

    def _products(self, product_ids: list[str]) -> Reads[list[Product]]:
        if not product_ids:
            return []
        rows = [(keys.PRODUCTS, product_id) for product_id in product_ids]
        read = yield from self._read(rows)
        if not read.documents:
            yield from self._refuse_stale(keys.PRODUCTS, read)
        return [found for row in rows if (found := read.parse(row, keys.product)) is not None]

    def _filled(
        self, listed: list[str], trending: list[str], limit: int, leave_out: str | None = None
    ) -> Reads[list[str]]:
        """The first `limit` of the list that are in stock, filled up: trending, earlier windows, the catalog."""
        seen = {leave_out}
        pending = _fresh([*listed, *trending], seen)
        chosen: list[str] = []
        popular: dict[str, Product] = {}
        filled: dict[str, Product] = {}
        more: list[Callable[[], Reads[list[str]]]] = [self._older, *[_Shelf(self).next] * SHELVES]
        while len(chosen) < limit and (pending or more):
            while more and len(pending) < limit - len(chosen):
                pending += _fresh((yield from more.pop(0)()), seen)
            batch = limit - len(chosen) + SPARE
            available = yield from self._in_stock(pending[:batch])
            popular |= {found: available[found] for found in trending if found in available}
            filled |= {found: row for found, row in available.items() if found not in listed}
            chosen += [product_id for product_id in pending[:batch] if product_id in available]
            pending = pending[batch:]
        if not (popular or self.popular or filled):
            some = (yield from _Shelf(self).next())[: limit + SPARE]
            filled = yield from self._in_stock(some)
        self.popular = popular or self.popular or filled
        return chosen[:limit]

    def _older(self) -> Reads[list[str]]:
        windows = self._windows(OLDER)
        read = yield from self._read(windows)
        return _trending_ids(read, windows)

    def _in_stock(self, product_ids: Iterable[str]) -> Reads[dict[str, Product]]:
        found = yield from self._products(list(product_ids))
        return {product.product_id: product for product in found if product.in_stock}

    def _windows(self, part: slice, name: str = keys.TRENDING_PRODUCTS, segment: str | None = None) -> list[Wanted]:
        return [(name, _window_row(start, segment)) for start in keys.recent_windows(self._clock())[part]]

    def _read(self, wanted: Sequence[Wanted], also: Sequence[str] = ()) -> Reads[Snapshot]:
        """Reads documents under the live versions."""
        names = list(dict.fromkeys([*(name for name, _ in wanted), *also]))
        for _ in range(FLIPS):
            versions = {name: self._versions.get(name) for name in names}
            rows = [(row, version) for row in wanted if (version := versions[row[0]])]
            replies = yield (
                "MGET",
                *(keys.pointer(name) for name in names),
                *(keys.marker(name, versions[name] or "") for name in names),
                *(keys.document(name, version, row_key) for (name, row_key), version in rows),
            )
            n = len(names)
            pointers, markers, found = replies[:n], replies[n : 2 * n], replies[2 * n :]
            live = {name: _text(reply) for name, reply in zip(names, pointers, strict=True)}
            if live == versions:
                marked = frozenset(name for name, reply in zip(names, markers, strict=True) if reply is not None)
                documents = zip((row for row, _ in rows), found, strict=True)
                return Snapshot(
                    versions, marked, {row: _decoded(row, raw) for row, raw in documents if raw is not None}
                )
            self._versions.update(live)
        raise NotServed(
            f"the live versions of {', '.join(names)} changed {FLIPS} times while they were read: ask again"
        )

    def _refuse_stale(self, name: str, read: Snapshot) -> Reads[None]:
        """Raises `NotServed` when the version a document was missed in is not there at all."""
        version = read.versions[name]
        if version is None:
            raise _not_served(name)
        if name in read.marked or any(row[0] == name for row in read.documents):
            return
        found, cursor = yield from self._scan(name, version, 1)
        if found or cursor:  # or not all was looked through
            return
        (live,) = yield ("MGET", keys.pointer(name))
        # Moved since: then the version was live, and whole, at the moment the document was missed in it.
        if _text(live) == version:
            raise NotServed(
                f"{keys.pointer(name)} names version {version}, which holds no document: "
                f"apply the pipeline again to rebuild the sink {name}"
            )

    def _scan(self, name: str, version: str, most: int, cursor: int = 0) -> Reads[tuple[list[str], int]]:
        """Up to `most` row keys of a version, or a few more, sorted, and where to go on: 0 where all was looked through."""
        found: list[str] = []
        for _ in range(SCAN_ROUNDS):
            cursor, page = yield ("SCAN", cursor, "MATCH", keys.documents_pattern(name, version), "COUNT", SCAN_KEYS)
            found += [row.row_key for key in page if (row := keys.parsed(_text(key) or ""))]
            if len(found) >= most or int(cursor) == 0:
                break
        return sorted(found), int(cursor)


class _Shelf:
    """Products of the catalog, in no order that means anything, some thousand at a time: for a shop nobody has looked at yet, and
    one where what people look at is sold out."""

    def __init__(self, questions: Questions) -> None:
        self._questions, self._cursor, self._is_empty = questions, 0, False

    def next(self) -> Reads[list[str]]:
        """Some that were not there before; none at the end."""
        if self._is_empty:
            return []
        read = yield from self._questions._read([], [keys.PRODUCTS])
        version = read.versions[keys.PRODUCTS]
        if version is None:
            raise _not_served(keys.PRODUCTS)
        found, self._cursor = yield from self._questions._scan(keys.PRODUCTS, version, MOST, self._cursor)
        self._is_empty = self._cursor == 0
        return found


def checked_limit(limit: int) -> int:
    """The limit itself. Raises `ValueError` naming it unless it is a whole number from 1 to `MOST`."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MOST:
        raise ValueError(f"{limit!r} is no limit: a whole number from 1 to {MOST} is wanted")
    return limit


def _fresh(product_ids: Iterable[str], seen: set[str | None]) -> list[str]:
    fresh = [product_id for product_id in dict.fromkeys(product_ids) if product_id not in seen]
    seen.update(fresh)
    return fresh


def _trending_ids(read: Snapshot, windows: Sequence[Wanted]) -> list[str]:
    found = (read.parse(window, keys.trending_window) for window in windows)
    return list(dict.fromkeys(row.product_id for window in found if window for row in window.candidates))


def _window_row(start: datetime, segment: str | None) -> str:
    return keys.segment_key(start, segment) if segment else keys.window_key(start)


def _text(reply: str | bytes | None) -> str | None:
    return reply.decode() if isinstance(reply, bytes) else reply


def _decoded(row: Wanted, raw: str | bytes) -> keys.Document:
    try:
        return keys.decoded(raw)
    except (ValueError, TypeError):
        raise _malformed(row) from None


def _malformed(row: Wanted) -> NotServed:
    return NotServed(f"the document of {row[0]} for {row[1]!r} is not what the sink writes: rebuild the sink {row[0]}")


def _not_served(name: str) -> NotServed:
    return NotServed(
        f"{keys.pointer(name)} is not set, so no version of {name} is live: apply the pipeline to serve it"
    )
