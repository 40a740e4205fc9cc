"""One version of a sink in Redis, for those who write it: its documents found, and all of it removed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import cast

import redis

from recs_platform.serving import keys

_CHUNK = 1_000


def document_keys(connection: redis.Redis, name: str, version: str) -> Iterator[str]:
    """The keys of its documents, in no order, some twice. The connection decodes what it reads."""
    pattern = keys.documents_pattern(name, version)
    return cast(Iterator[str], connection.scan_iter(match=pattern, count=_CHUNK))


def unlink_all(connection: redis.Redis, found: Iterable[str]) -> None:
    remaining = iter(found)
    while chunk := list(islice(remaining, _CHUNK)):
        connection.unlink(*chunk)


def go_over(connection: redis.Redis, live: Mapping[str, str]) -> None:
    """Readers go over to these versions, by sink: all at one moment where one server has the pointers, so that no reader
    sees lists of one deployment and products of another; nearly so in a cluster.
    """
    markers = {keys.marker(name, version): "1" for name, version in live.items()}
    pointers = {keys.pointer(name): version for name, version in live.items()}
    for wanted in (markers, pointers):  # the other way round, one without rows would look as if it were gone
        with connection.pipeline(transaction=True) as pipe:
            for key, value in wanted.items():
                pipe.set(key, value)
            pipe.execute()


def remove(connection: redis.Redis, name: str, version: str) -> None:
    """Its documents, and then the marker that says it is kept."""
    unlink_all(connection, document_keys(connection, name, version))
    connection.unlink(keys.marker(name, version))
