"""A Redis Cluster, asked the way one server is.

The keys of one command may lie on several nodes: MGET, EXISTS and UNLINK are split between them, and SCAN goes from one
to the next. Nodes do not answer at one moment; so MGET reads documents first, and the pointers after them: where a pointer
is still what the documents were asked for by, they were live when they were read.
"""

from __future__ import annotations

from asyncio import Semaphore
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, cast

import redis
import redis.asyncio
import redis.cluster
from redis.asyncio.cluster import ClusterNode as AsyncNode
from redis.exceptions import RedisClusterException

from recs_platform.redis_address import RedisAddress
from recs_platform.serving import keys

CONNECTIONS = 100
TRIES = 1_000  # for a key on each node; one that holds no slot has none
_Node: Any = redis.cluster.ClusterNode


class ClusterClient(redis.Redis):
    """Finds its nodes when it is first asked. What is wrong with a cluster is a `redis.RedisError`, as with one server.

    A cluster that is given stays open when this is closed.
    """

    def __init__(self, cluster: redis.RedisCluster | RedisAddress, **options: Any) -> None:
        self._given = cluster
        self._options = options
        self._found: Any = None if isinstance(cluster, RedisAddress) else cluster
        self._finding = Lock()
        super().__init__(**_first_place(cluster))

    @property
    def _cluster(self) -> Any:
        with self._finding, _as_redis_error():
            if self._found is None:
                address = cast(RedisAddress, self._given)
                nodes = [_Node(*place) for place in address.hosts()]
                self._found = redis.RedisCluster.from_url(address.urls[0], startup_nodes=nodes, **self._options)
            return self._found

    def nodes(self) -> list[Any]:
        """A client of each node that holds keys, in an order of their own."""
        primaries = sorted(self._cluster.get_primaries(), key=lambda node: str(node.name))
        return [self._cluster.get_redis_connection(node) for node in primaries]

    def one_of_each(self, key: Callable[[int], str]) -> list[str]:
        """Of the keys that a number makes, the first on each node."""
        nodes, found = len(self._cluster.get_primaries()), dict[str, str]()
        for number in range(TRIES):
            if len(found) == nodes:
                break
            found.setdefault(self._cluster.get_node_from_key(key(number)).name, key(number))
        return list(found.values())

    def execute_command(self, *args: Any, **options: Any) -> Any:
        command, *rest = args
        with _as_redis_error():
            if command == "MGET":
                found = dict[str, Any]()
                for part in _documents_and_others(rest):
                    found |= dict(zip(part, self._cluster.mget_nonatomic(part), strict=True))
                return [found[key] for key in rest]
            if command in ("UNLINK", "EXISTS"):
                return getattr(self._cluster, command.lower())(*rest)
            if command == "SCAN":
                nodes = self.nodes()
                node, cursor = _place(rest[0], len(nodes))
                cursor, page = nodes[node].execute_command("SCAN", cursor, *rest[1:])
                return _next_cursor(node, int(cursor), len(nodes)), page
            return self._cluster.execute_command(*args, **options)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        """Commands for many nodes at once; there is no transaction over several of them."""
        return _Pipeline(self._cluster.pipeline())

    def close(self) -> None:
        if self._found is not None and self._found is not self._given:
            self._found.close()
        super().close()


class AsyncClusterClient(redis.asyncio.Redis):
    """`ClusterClient` for asyncio, as far as a store asks: MGET and SCAN.

    At most `max_connections` are asked at once: a node would refuse more, and not let them wait.
    """

    def __init__(
        self, cluster: redis.asyncio.RedisCluster | RedisAddress, max_connections: int = CONNECTIONS, **options: Any
    ) -> None:
        super().__init__(**_first_place(cluster))
        if isinstance(cluster, RedisAddress):
            nodes = [AsyncNode(*place) for place in cluster.hosts()]
            options |= {"startup_nodes": nodes, "max_connections": max_connections}
            cluster = redis.asyncio.RedisCluster.from_url(cluster.urls[0], **options)
        self._cluster = cluster
        self._free = Semaphore(max_connections)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        async with self._free:
            with _as_redis_error():
                return await self._reply(*args)

    async def _reply(self, command: str, *rest: Any) -> Any:
        if command == "MGET":
            found = dict[str, Any]()
            for part in _documents_and_others(rest):
                found |= dict(zip(part, await self._cluster.mget_nonatomic(part), strict=True))
            return [found[key] for key in rest]
        if command == "SCAN":
            await self._cluster.initialize()
            nodes = sorted(self._cluster.get_primaries(), key=lambda node: str(node.name))
            node, cursor = _place(rest[0], len(nodes))
            cursor, page = await nodes[node].execute_command("SCAN", cursor, *rest[1:])
            return _next_cursor(node, int(cursor), len(nodes)), page
        return await self._cluster.execute_command(command, *rest)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await self._cluster.aclose()
        await super().aclose(close_connection_pool)


class _Pipeline:
    """The pipeline of a cluster, whose errors are those of Redis."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def __enter__(self) -> _Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipeline.reset()

    def __getattr__(self, command: str) -> Any:
        return getattr(self._pipeline, command)

    def execute(self) -> list[Any]:
        with _as_redis_error():
            return cast(list[Any], self._pipeline.execute())


def nodes_of(connection: redis.Redis) -> list[redis.Redis]:
    """A client of each server that holds keys."""
    return connection.nodes() if isinstance(connection, ClusterClient) else [connection]


def one_of_each(connection: redis.Redis, key: Callable[[int], str]) -> list[str]:
    """Of the keys that a number makes, one on each server that holds keys."""
    return connection.one_of_each(key) if isinstance(connection, ClusterClient) else [key(0)]


def _documents_and_others(wanted: Sequence[str]) -> Iterator[list[str]]:
    documents = [key for key in wanted if keys.parsed(key)]
    others = [key for key in wanted if not keys.parsed(key)]
    return (part for part in (documents, others) if part)


def _place(cursor: object, nodes: int) -> tuple[int, int]:
    """The node where a SCAN goes on, and its own cursor there."""
    own, node = divmod(int(str(cursor)), nodes)
    return node, own


def _next_cursor(node: int, own: int, nodes: int) -> int:
    """0, as of one server, after the last of the last node."""
    return own * nodes + node if own else (node + 1) % nodes


def _first_place(cluster: Any) -> dict[str, Any]:
    """How a cluster is called in an error: by its first node."""
    if isinstance(cluster, RedisAddress):
        places = cluster.hosts()
    else:
        places = [(node.host, node.port) for node in cluster.nodes_manager.startup_nodes.values()]
    host, port = next(iter(places), ("?", 0))
    return {"host": host, "port": port}


@contextmanager
def _as_redis_error() -> Iterator[None]:
    try:
        yield
    except RedisClusterException as error:
        raise redis.ConnectionError(str(error)) from error
