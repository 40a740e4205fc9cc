"""Reading recommendations from Redis: milliseconds, whatever happens behind it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from threading import Lock
from typing import Any, Generic, Literal, Self, TypeAlias, TypeVar, get_args

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from recs_platform.errors import ServingError, SettingsError, StoreUnavailable
from recs_platform.redis_address import RedisAddress
from recs_platform.serving.cluster import AsyncClusterClient, ClusterClient
from recs_platform.serving.keys import AlsoBought, Product, TrendingProduct
from recs_platform.serving.questions import Question, Questions
from recs_platform.settings import Settings

T = TypeVar("T")
Connection = TypeVar("Connection")
Cluster = TypeVar("Cluster")
OnError: TypeAlias = Literal["raise", "last_good"]

TIMEOUT = 0.5
"""Seconds to wait for a connection, and for each reply."""
CONNECTIONS, QUEUE = 32, 5.0
"""Connections of one store; who finds them all busy waits up to QUEUE seconds for one."""
ITEMS_KEPT = 200_000
"""Of all the last good answers: ids and products, those that were asked for among them."""
LONGEST_KEPT = 100_000
"""Characters of a question whose answer is kept."""
SLOW, REST = 0.05, 1.0
"""A failure that took longer than SLOW seconds is not tried again for REST seconds while an old answer is at hand."""


class _Store(Generic[Connection, Cluster]):
    """What both stores share: the questions, and the last good answers."""

    def __init__(
        self,
        connection: Connection | Cluster | str | None = None,
        *,
        on_error: OnError = "raise",
        timeout: float = TIMEOUT,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error={on_error!r}: one of {', '.join(get_args(OnError))} is wanted")
        self._questions = Questions(clock)
        self._last_good = LastGood(self._questions) if on_error == "last_good" else None
        self._owned = connection is None or isinstance(connection, str)
        url = Settings.load().require_reader() if connection is None else connection
        self._redis = self._connect(url, timeout) if isinstance(url, str) else self._given(url)

    def _connect(self, url: str, timeout: float) -> Connection:
        raise NotImplementedError

    def _given(self, connection: Any) -> Connection:
        """A client of somebody's own, of one server or a cluster, as a store asks it."""
        raise NotImplementedError

    def _unavailable(self, problem: Exception) -> StoreUnavailable:
        pool: Any = getattr(self._redis, "connection_pool", None)
        where = getattr(pool, "connection_kwargs", {})
        place = where.get("path") or f"{where.get('host', '?')}:{where.get('port', '?')}"
        return StoreUnavailable(f"Redis at {place} cannot be read: {problem}. `recs status` shows whether it is up")

    def _instead(self, question: Question[T]) -> T | None:
        """An old answer without asking, while Redis is known to be slow to fail."""
        return self._last_good.resting(question) if self._last_good else None

    def _good(self, question: Question[T], answer: T) -> T:
        if self._last_good:
            self._last_good.keep(question, answer)
        return answer

    def _failed(self, question: Question[T], error: Exception, began: float) -> T:
        problem = error if isinstance(error, ServingError) else self._unavailable(error)
        answer: T | None = (
            self._last_good.after_failure(question, time.monotonic() - began) if self._last_good else None
        )
        if answer is None:
            raise problem from None
        return answer


class LastGood:
    """The last good answers, the most recently kept of them: `ITEMS_KEPT` in all."""

    def __init__(self, questions: Questions) -> None:
        self._questions = questions
        self._answers: OrderedDict[tuple[object, ...], tuple[Any, ...]] = OrderedDict()
        self._items = 0
        self._rest_until = 0.0
        self._lock = Lock()

    def keep(self, question: Question[Any], answer: Any) -> None:
        kept = tuple(answer)
        with self._lock:
            if (before := self._answers.pop(question.key, None)) is not None:
                self._items -= len(before) + len(question.key)
            if sum(len(part) for part in question.key if isinstance(part, str)) > LONGEST_KEPT:
                return
            self._answers[question.key] = kept
            self._items += len(kept) + len(question.key)
            while self._items > ITEMS_KEPT:
                key, oldest = self._answers.popitem(last=False)
                self._items -= len(oldest) + len(key)

    def resting(self, question: Question[Any]) -> Any | None:
        return self._find(question) if time.monotonic() < self._rest_until else None

    def after_failure(self, question: Question[Any], seconds: float) -> Any | None:
        if seconds > SLOW:
            self._rest_until = time.monotonic() + REST
        return self._find(question)

    def _find(self, question: Question[Any]) -> Any | None:
        with self._lock:
            if question.key in self._answers:
                return list(self._answers[question.key])
        popular: Any = self._questions.popular
        match question.key:
            case ("user", _, int(limit)):  # a shopper never asked for before: what trended last, rather than nothing
                return list(popular)[:limit] or None
            case ("products", *asked):  # and what a page shows of that
                return [popular[product_id] for product_id in asked if product_id in popular] or None
        return None


class RecommendationStore(_Store["redis.Redis", "redis.RedisCluster"]):
    """Reads what the sinks write to Redis. Safe to share between threads; a `with` block closes its own connection.

    `connection` is a redis-py client of your own (also a `RedisCluster`), a `redis://` URL (several hosts in it are a
    cluster), or None for the one the settings name (then
    `SettingsError` when there is none). With `on_error="raise"` a failed read raises `StoreUnavailable` (Redis does
    not answer) or `NotServed` (it does, but no live version is there); with `"last_good"` the last good answer to
    the same question is given instead, for a shopper not asked for before the products that trended last, of products
    not asked for before those among these, and only when there is none the error is raised. `timeout` bounds, in
    seconds, connecting and each reply; it is not applied to a client of your own. A connection that broke is opened again once.
    """

    def get_user_recommendations(self, user_id: int | str, limit: int = 20) -> list[str]:
        """Up to `limit` ids of products in stock for one shopper, best first.

        Products sold out or deleted since the list was made are left out, and the list is filled up with what
        trends, in this hour and then the 47 before, and at last from the catalog: it is short only when the shop
        is. A shopper nobody has seen yet gets just that. Raises `ValueError` for an id or limit that is none.
        """
        return self._ask(self._questions.user_recommendations(user_id, limit))

    def get_trending_products(
        self,
        window_start: datetime | str | None = None,
        segment: str | None = None,
        limit: int = 10,
        *,
        available_only: bool = True,
    ) -> list[TrendingProduct]:
        """The ten most viewed products of a one-hour window with their counts in it, in order.

        `window_start` is any instant in the window, a datetime or ISO text, UTC when it names no zone; a window
        that is not there is an empty list. None is the running window, or, just after the hour has turned and
        nothing has been seen yet, the newest one that has something to show. `segment` narrows it to an age band and a
        country, such as `25-34/DE`. Products sold out or deleted are left out, unless `available_only` is False, and
        the next of the same window take their place: the thirty most viewed are kept for that.
        """
        return self._ask(self._questions.trending(window_start, segment, limit, available_only))

    def get_also_bought(self, product_id: str, limit: int = 10) -> list[AlsoBought]:
        """Up to `limit` products in stock that shoppers bought together with this one, most shoppers first.

        Filled up like recommendations; those put in have `shoppers` 0.
        """
        return self._ask(self._questions.also_bought(product_id, limit))

    def get_products(self, product_ids: Iterable[str]) -> list[Product]:
        """What a page shows of each product, in the order asked for, sold out ones too; unknown ones are left out."""
        return self._ask(self._questions.products(product_ids))

    def close(self) -> None:
        """Closes the connection, unless it was given."""
        if self._owned:
            self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self, url: str, timeout: float) -> redis.Redis:
        address, bounds = RedisAddress.parse(url), _bounds(Retry, timeout)
        if address.is_cluster:
            return ClusterClient(address, connection_pool_class=redis.BlockingConnectionPool, **bounds)
        return redis.Redis.from_pool(redis.BlockingConnectionPool.from_url(address.urls[0], **bounds))

    def _given(self, connection: Any) -> redis.Redis:
        return ClusterClient(connection) if isinstance(connection, redis.RedisCluster) else connection

    def _ask(self, question: Question[T]) -> T:
        if (old := self._instead(question)) is not None:
            return old
        began = time.monotonic()
        try:
            return self._good(question, self._answer(question))
        except (ServingError, RedisError, OSError) as error:
            return self._failed(question, error, began)

    def _answer(self, question: Question[T]) -> T:
        reply: Any = None
        execute: Any = self._redis.execute_command
        try:
            while True:
                reply = execute(*question.reads.send(reply))
        except StopIteration as done:
            answer: T = done.value
            return answer


class AsyncRecommendationStore(_Store["redis.asyncio.Redis", "redis.asyncio.RedisCluster"]):
    """`RecommendationStore` for asyncio: the same questions and answers, awaited."""

    async def get_user_recommendations(self, user_id: int | str, limit: int = 20) -> list[str]:
        """See `RecommendationStore.get_user_recommendations`."""
        return await self._ask(self._questions.user_recommendations(user_id, limit))

    async def get_trending_products(
        self,
        window_start: datetime | str | None = None,
        segment: str | None = None,
        limit: int = 10,
        *,
        available_only: bool = True,
    ) -> list[TrendingProduct]:
        """See `RecommendationStore.get_trending_products`."""
        return await self._ask(self._questions.trending(window_start, segment, limit, available_only))

    async def get_also_bought(self, product_id: str, limit: int = 10) -> list[AlsoBought]:
        """See `RecommendationStore.get_also_bought`."""
        return await self._ask(self._questions.also_bought(product_id, limit))

    async def get_products(self, product_ids: Iterable[str]) -> list[Product]:
        """See `RecommendationStore.get_products`."""
        return await self._ask(self._questions.products(product_ids))

    async def aclose(self) -> None:
        """Closes the connection, unless it was given."""
        if self._owned:
            await self._redis.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _connect(self, url: str, timeout: float) -> redis.asyncio.Redis:
        address, bounds = RedisAddress.parse(url), _bounds(AsyncRetry, timeout)
        if address.is_cluster:
            return AsyncClusterClient(address, **bounds)
        return redis.asyncio.Redis.from_pool(redis.asyncio.BlockingConnectionPool.from_url(address.urls[0], **bounds))

    def _given(self, connection: Any) -> redis.asyncio.Redis:
        return AsyncClusterClient(connection) if isinstance(connection, redis.asyncio.RedisCluster) else connection

    async def _ask(self, question: Question[T]) -> T:
        if (old := self._instead(question)) is not None:
            return old
        began = time.monotonic()
        try:
            return self._good(question, await self._answer(question))
        except (ServingError, RedisError, OSError) as error:
            return self._failed(question, error, began)

    async def _answer(self, question: Question[T]) -> T:
        reply: Any = None
        execute: Any = self._redis.execute_command
        try:
            while True:
                reply = await execute(*question.reads.send(reply))
        except StopIteration as done:
            answer: T = done.value
            return answer


def get_user_recommendations(user_id: int | str, limit: int = 20, *, on_error: OnError = "raise") -> list[str]:
    """See `RecommendationStore.get_user_recommendations`; the connection is the one the settings name."""
    return _shared(on_error).get_user_recommendations(user_id, limit)


def get_trending_products(
    window_start: datetime | str | None = None,
    segment: str | None = None,
    limit: int = 10,
    *,
    on_error: OnError = "raise",
) -> list[TrendingProduct]:
    """See `RecommendationStore.get_trending_products`; the connection is the one the settings name."""
    return _shared(on_error).get_trending_products(window_start, segment, limit)


def get_also_bought(product_id: str, limit: int = 10, *, on_error: OnError = "raise") -> list[AlsoBought]:
    """See `RecommendationStore.get_also_bought`; the connection is the one the settings name."""
    return _shared(on_error).get_also_bought(product_id, limit)


_stores: dict[OnError, tuple[str, RecommendationStore]] = {}


def _shared(on_error: OnError) -> RecommendationStore:
    """The store of the settings as they are now: a stack started again elsewhere is found without a restart."""
    known = _stores.get(on_error)
    try:
        url = Settings.load().require_reader()
    except SettingsError:
        if known and on_error == "last_good":
            return known[1]
        raise
    if known is None or known[0] != url:
        known = _stores[on_error] = (url, RecommendationStore(url, on_error=on_error))
    return known[1]


def _bounds(retry: Any, timeout: float) -> dict[str, Any]:
    """How many connections there may be, to each server, and how long one waits for what; a broken one is opened once more."""
    again = retry(NoBackoff(), 1, supported_errors=(redis.exceptions.ConnectionError,))
    times = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    return {"max_connections": CONNECTIONS, "timeout": QUEUE, "retry": again, **times}
