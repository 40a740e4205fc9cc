"""A Redis Cluster, asked the way one server is.

Commands for many keys are sent to each node at once, as one batch: a node that hangs costs one timeout, and not one for
each of its slots, as redis-py's own pipeline would have it. Nodes do not answer at one moment; so MGET reads documents
first, and the pointers after them: where a pointer is still what the documents were asked for by, they were live when
they were read. SCAN goes from one node to the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any

import redis
import redis.asyncio
import redis.cluster
from redis.asyncio.cluster import ClusterNode as AsyncNode
from redis.asyncio.cluster import PipelineCommand
from redis.exceptions import RedisClusterException, ResponseError

from recs_platform.redis_address import RedisAddress
from recs_platform.serving import keys

CONNECTIONS, QUEUE = 100, 5.0  # to each node, and the seconds to wait for one of them
REST = 0.5  # seconds after a cluster was not found
TRIES = 1_000  # for a key on each node; one that holds no slot has none
ATTEMPTS = 2  # a connection that broke is opened again once, where the key is by then
_Node: Any = redis.cluster.ClusterNode

Command = tuple[Any, ...]


class ClusterClient(redis.Redis):
    """Finds its nodes when it is first asked. What is wrong with a cluster is a `redis.RedisError`, as with one server.

    A cluster that is given stays open when this is closed.
    """

    def __init__(self, cluster: redis.RedisCluster | RedisAddress, **options: Any) -> None:
        self._given: Any = cluster
        self._options = options
        self._found: Any = None if isinstance(cluster, RedisAddress) else cluster
        self._finding = Lock()
        self._not_before, self._why = 0.0, ""
        super().__init__(**_first_place(cluster))

    @property
    def _cluster(self) -> Any:
        with self._finding:
            if self._found is None and time.monotonic() < self._not_before:
                raise redis.ConnectionError(self._why)
            if self._found is None:
                self._found = self._find()
            return self._found

    def _find(self) -> Any:
        """What could not be found is not looked for again at once: those who wait for it would do so one after the other."""
        nodes = [_Node(*place) for place in self._given.hosts()]
        options = {**self._options, "startup_nodes": nodes, "dynamic_startup_nodes": False}
        try:
            with _as_redis_error():
                return redis.RedisCluster.from_url(self._given.urls[0], **options)
        except redis.RedisError as error:
            self._not_before, self._why = time.monotonic() + REST, str(error)
            raise

    def nodes(self) -> list[NodeClient]:
        """A client of each node that holds keys, in an order of their own."""
        with _as_redis_error():
            primaries = sorted(self._cluster.get_primaries(), key=lambda node: str(node.name))
        return [NodeClient(self, node) for node in primaries]

    def one_of_each(self, key: Callable[[int], str]) -> list[str]:
        """Of the keys that a number makes, the first on each node."""
        with _as_redis_error():
            nodes, found = len(self._cluster.get_primaries()), dict[str, str]()
            for number in range(TRIES):
                if len(found) == nodes:
                    break
                found.setdefault(self._cluster.get_node_from_key(key(number)).name, key(number))
            return list(found.values())

    def execute_command(self, *args: Any, **options: Any) -> Any:
        command, *rest = args
        match command:
            case "MGET":
                found = dict[str, Any]()
                for part in _documents_and_others(rest):
                    found |= zip(part, self.ask([("GET", key) for key in part]), strict=True)
                return [found[key] for key in rest]
            case "UNLINK" | "EXISTS":
                return sum(self.ask([(command, key) for key in rest]))
            case "SCAN":
                nodes = self.nodes()
                node, cursor = _place(rest[0], len(nodes))
                cursor, page = nodes[node].scanned(cursor, *rest[1:])
                return _next_cursor(node, cursor, len(nodes)), page
        with _as_redis_error():
            return self._cluster.execute_command(*args, **options)

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to commands whose first argument is their key. Raises the first error there is, a wrong node apart."""
        with _as_redis_error():
            replies = self._replies(commands, ATTEMPTS)
            return [self._where_it_is(*told) for told in zip(commands, replies, strict=True)]

    def _replies(self, commands: Sequence[Command], attempts: int) -> list[Any]:
        """What the nodes say that have the commands' keys, errors among it."""
        batches, replies = dict[str, tuple[Any, list[int]]](), dict[int, Any]()
        for number, (_, key, *_) in enumerate(commands):
            node = self._cluster.get_node_from_key(key)
            batches.setdefault(node.name, (node, []))[1].append(number)
        for node, numbers in batches.values():
            replies |= zip(numbers, self._told(node, [commands[n] for n in numbers], attempts), strict=True)
        return [replies[n] for n in range(len(commands))]

    def _told(self, node: Any, commands: Sequence[Command], attempts: int) -> list[Any]:
        """What one node says to commands, errors among it. Where it does not answer, the nodes are looked for anew."""
        try:
            with self._cluster.get_redis_connection(node).pipeline(transaction=False) as batch:
                for command in commands:
                    batch.execute_command(*command)
                return list(batch.execute(raise_on_error=False))
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            with suppress(redis.RedisError, RedisClusterException, OSError):
                self._cluster.nodes_manager.initialize(last_failed_node_name=node.name)
            if attempts == 1 or isinstance(error, (redis.TimeoutError, redis.exceptions.MaxConnectionsError)):
                raise
            return self._replies(commands, attempts - 1)

    def _where_it_is(self, command: Command, reply: Any) -> Any:
        """Asks once more where a slot has moved, as the reply says."""
        if isinstance(reply, ResponseError) and _is_elsewhere(reply):
            return self._cluster.execute_command(*command)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def scan_iter(self, match: Any = None, count: Any = None, _type: Any = None, **options: Any) -> Iterator[Any]:
        """Of every node, whatever joins or leaves meanwhile. Raises where one of them is not there any more."""
        with _as_redis_error():
            yield from self._cluster.scan_iter(match=match, count=count, _type=_type, **options)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        """Commands for many nodes at once; there is no transaction over several of them."""
        return _Pipeline(self)

    def close(self) -> None:
        if self._found is not None and self._found is not self._given:
            self._found.close()
        super().close()


class NodeClient(redis.Redis):
    """One node of a cluster. Where it does not answer, the cluster's nodes are looked for anew."""

    def __init__(self, client: ClusterClient, node: Any) -> None:
        super().__init__(host=node.host, port=node.port)
        self._client, self._node = client, node

    @property
    def name(self) -> str:
        """Host and port."""
        return str(self._node.name)

    def execute_command(self, *args: Any, **options: Any) -> Any:
        with _as_redis_error():
            return self._client._cluster.execute_command(*args, target_nodes=self._node, **options)

    def scanned(self, cursor: int, *args: Any) -> tuple[int, list[Any]]:
        """A page of its keys, and its own cursor to the next."""
        cursors, page = self.execute_command("SCAN", cursor, *args)
        return int(cursors[self.name]), page


class AsyncClusterClient(redis.asyncio.Redis):
    """`ClusterClient` for asyncio, as far as a store asks: MGET and SCAN.

    At most `max_connections` questions are asked at once, since a node would refuse more; others wait `timeout` seconds.
    """

    def __init__(
        self,
        cluster: redis.asyncio.RedisCluster | RedisAddress,
        max_connections: int = CONNECTIONS,
        timeout: float = QUEUE,
        **options: Any,
    ) -> None:
        super().__init__(**_first_place(cluster))
        if isinstance(cluster, RedisAddress):
            options |= {"max_connections": max_connections, "dynamic_startup_nodes": False}
            nodes = [AsyncNode(*place) for place in cluster.hosts()]
            cluster = redis.asyncio.RedisCluster.from_url(cluster.urls[0], startup_nodes=nodes, **options)
        self._cluster: Any = cluster
        self._free, self._queue = asyncio.Semaphore(max_connections), timeout

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            async with asyncio.timeout(self._queue):
                await self._free.acquire()
        except TimeoutError:
            raise redis.ConnectionError("No connection available.") from None
        try:
            with _as_redis_error():
                return await self._reply(*args)
        finally:
            self._free.release()

    async def _reply(self, command: str, *rest: Any) -> Any:
        await self._cluster.initialize()
        if command == "MGET":
            found = dict[str, Any]()
            for part in _documents_and_others(rest):
                found |= zip(part, await self._values(part), strict=True)
            return [found[key] for key in rest]
        if command == "SCAN":
            nodes = sorted(self._cluster.get_primaries(), key=lambda node: str(node.name))
            number, own = _place(rest[0], len(nodes))
            cursors, page = await self._cluster.execute_command("SCAN", own, *rest[1:], target_nodes=nodes[number])
            return _next_cursor(number, int(cursors[nodes[number].name]), len(nodes)), page
        return await self._cluster.execute_command(command, *rest)

    async def _values(self, wanted: Sequence[str], attempts: int = ATTEMPTS) -> list[Any]:
        batches = dict[str, tuple[Any, list[PipelineCommand]]]()
        for number, key in enumerate(wanted):
            node = self._cluster.get_node_from_key(key)
            batches.setdefault(node.name, (node, []))[1].append(PipelineCommand(number, "GET", key))
        await asyncio.gather(*(node.execute_pipeline(commands) for node, commands in batches.values()))
        replies = {command.position: command.result for _, commands in batches.values() for command in commands}
        lost = next((r for r in replies.values() if isinstance(r, (redis.ConnectionError, redis.TimeoutError))), None)
        if lost is not None:
            await self._cluster.aclose()  # the nodes are looked for anew when it is asked again
            if attempts == 1 or isinstance(lost, redis.TimeoutError):
                raise lost
            await self._cluster.initialize()
            return await self._values(wanted, attempts - 1)
        return [await self._where_it_is(key, replies[number]) for number, key in enumerate(wanted)]

    async def _where_it_is(self, key: str, reply: Any) -> Any:
        if isinstance(reply, ResponseError) and _is_elsewhere(reply):
            return await self._cluster.execute_command("GET", key)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await self._cluster.aclose()
        await super().aclose(close_connection_pool)


class _Pipeline:
    """Commands that are told when all of them are known."""

    def __init__(self, client: ClusterClient) -> None:
        self._client = client
        self._commands: list[Command] = []

    def __enter__(self) -> _Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self._commands.clear()

    def set(self, key: str, value: Any) -> None:
        self._commands.append(("SET", key, value))

    def unlink(self, key: str) -> None:
        self._commands.append(("UNLINK", key))

    def execute(self) -> list[Any]:
        commands, self._commands = self._commands, []
        return self._client.ask(commands)


def nodes_of(connection: redis.Redis) -> Sequence[redis.Redis]:
    """A client of each server that holds keys."""
    return connection.nodes() if isinstance(connection, ClusterClient) else [connection]


def one_of_each(connection: redis.Redis, key: Callable[[int], str]) -> list[str]:
    """Of the keys that a number makes, one on each server that holds keys."""
    return connection.one_of_each(key) if isinstance(connection, ClusterClient) else [key(0)]


def _documents_and_others(wanted: Sequence[str]) -> Iterator[list[str]]:
    documents = [key for key in wanted if keys.parsed(key)]
    others = [key for key in wanted if not keys.parsed(key)]
    return (part for part in (documents, others) if part)


def _is_elsewhere(error: ResponseError) -> bool:
    wrong = (redis.exceptions.MovedError, redis.exceptions.AskError, redis.exceptions.TryAgainError)
    return isinstance(error, (*wrong, redis.exceptions.ClusterDownError))


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
    except AttributeError as error:
        if "redis_connection" not in str(error) and "execute_command" not in str(error):
            raise
        # redis-py does not know a node that has no slot of its own yet, and is told to ask it (its issue 4015)
        raise redis.ConnectionError("a slot is on its way to a node that is not known yet") from error
