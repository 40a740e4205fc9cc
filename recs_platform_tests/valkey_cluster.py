"""A Redis Cluster of Valkeys on loopback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import redis

from recs_platform.awaiting import wait_until
from recs_platform.stack.process import running
from recs_platform.stack.service import Service, free_port
from recs_platform.stack.valkey import valkey

SLOTS, PRIMARIES = 16384, 3
NODE_TIMEOUT = 1_000  # milliseconds until the others take a node for dead


@dataclass(frozen=True)
class RedisCluster:
    """The URL of the three that have slots, and a client and the process of every node, in the order they were made."""

    url: str
    clients: list[redis.Redis]
    processes: list[psutil.Process]


@contextmanager
def redis_cluster(directory: Path, more: int = 0) -> Iterator[RedisCluster]:
    """Three nodes with slots; the first of the `more` is a replica of the first, the others have nothing."""
    nodes = _nodes(directory, PRIMARIES + more)
    with ExitStack() as stack:
        processes = []
        for i, node in enumerate(nodes):
            logs = directory / f"logs-{i}"
            logs.mkdir(parents=True)
            processes.append(psutil.Process(stack.enter_context(running(node, logs)).pid))
        clients = [
            stack.enter_context(redis.Redis.from_url(node.url, decode_responses=True, socket_timeout=5))
            for node in nodes
        ]
        _join(nodes, clients)
        url = "redis://" + ",".join(urlsplit(node.url).netloc for node in nodes[:PRIMARIES])
        try:
            yield RedisCluster(url, clients, processes)
        finally:
            for process in processes:
                if process.is_running():
                    process.resume()


def _nodes(directory: Path, count: int) -> list[Service]:
    """Nothing listens yet, so a port that was drawn is still free to whoever draws next."""
    ports: list[int] = []
    while len(ports) < 2 * count:
        ports.append(free_port(but=ports))
    return [_node(directory / f"valkey-{i}", ports[2 * i], ports[2 * i + 1]) for i in range(count)]


def _node(directory: Path, port: int, bus_port: int) -> Service:
    service = valkey(directory, port)
    options = (
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        str(NODE_TIMEOUT),
        "--cluster-port",
        str(bus_port),
    )
    return replace(service, command=(*service.command, *options))


def _join(nodes: Sequence[Service], clients: Sequence[redis.Redis]) -> None:
    share = -(-SLOTS // PRIMARIES)
    for i, (node, own) in enumerate(zip(nodes, clients, strict=True)):
        if i < PRIMARIES:
            own.execute_command("CLUSTER ADDSLOTSRANGE", i * share, min((i + 1) * share, SLOTS) - 1)
        clients[0].execute_command("CLUSTER MEET", "127.0.0.1", urlsplit(node.url).port, node.command[-1])
    assert wait_until(lambda: all(_knows_all(own, len(nodes)) for own in clients), 30, 0.05), "no cluster"
    if len(clients) > PRIMARIES:
        replica = clients[PRIMARIES]
        replica.execute_command("CLUSTER REPLICATE", clients[0].execute_command("CLUSTER MYID"))
        assert wait_until(lambda: replica.info("replication").get("master_link_status") == "up", 30, 0.05), "no replica"


def _knows_all(node: redis.Redis, nodes: int) -> bool:
    info = node.execute_command("CLUSTER INFO")
    return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == nodes
