"""A Redis Cluster of Valkeys on loopback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import redis

from recs_platform.stack.process import wait_until
from recs_platform.stack.service import Service, free_port
from recs_platform.stack.valkey import valkey

SLOTS = 16384


def valkey_node(directory: Path, port: int) -> Service:
    """One that is to join others."""
    service = valkey(directory, port)
    bus = ("--cluster-port", str(free_port()))
    return replace(service, command=(*service.command, "--cluster-enabled", "yes", *bus))


def joined(nodes: Sequence[Service]) -> str:
    """Makes a cluster of nodes that run, each with its share of the slots; returns its URL."""
    clients = [redis.Redis.from_url(node.url, decode_responses=True) for node in nodes]
    share = -(-SLOTS // len(nodes))
    for i, (node, own) in enumerate(zip(nodes, clients, strict=True)):
        own.execute_command("CLUSTER ADDSLOTSRANGE", i * share, min((i + 1) * share, SLOTS) - 1)
        bus = node.command[node.command.index("--cluster-port") + 1]
        clients[0].execute_command("CLUSTER MEET", "127.0.0.1", urlsplit(node.url).port, bus)
    assert wait_until(lambda: all(_knows_all(own, len(nodes)) for own in clients), 30, 0.05), "no cluster"
    for own in clients:
        own.close()
    return "redis://" + ",".join(urlsplit(node.url).netloc for node in nodes)


def _knows_all(node: redis.Redis, nodes: int) -> bool:
    info = node.execute_command("CLUSTER INFO")
    return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == nodes
