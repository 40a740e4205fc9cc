"""Where Redis is, in one text: one server, or some of a cluster's nodes, from which the others are found.

redis://[user:password@]host:port[/db]                     one server; rediss:// with TLS, unix://path for a socket
redis://[user:password@]host:port,host:port,…              a Redis Cluster
redis://[user:password@]host:port,redis://[…]host:port,…   the same
redis://[user:password@]host:port?cluster=true             a Redis Cluster behind one name
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit

from recs_platform.errors import SettingsError

EACH = re.compile(r",(?=[a-z]+://)")
"""What stands between the URLs of a list."""
_URL = re.compile(
    r"(?P<protocol>[a-z]+)://(?P<credentials>.*@)?(?P<hosts>[^/?@]*)(?P<database>/[^?]*)?(?:\?(?P<query>.*))?"
)
_SERVERS, _SOCKET = ("redis", "rediss"), "unix://"


@dataclass(frozen=True)
class RedisAddress:
    """`urls`: of one server, or of some nodes of a cluster. They hold the password."""

    urls: tuple[str, ...]
    is_cluster: bool = False

    @classmethod
    def parse(cls, text: str) -> RedisAddress:
        """Raises `SettingsError`, which does not repeat the text: where it cannot be parsed, no password can be masked."""
        if text.startswith(_SOCKET):
            if "password=" in text:
                raise _refused("the password of a socket stands before its path: unix://user:password@/path")
            _check(text, is_cluster=False)
            return cls((text,))
        found = [_nodes(url) for url in EACH.split(text)]
        urls = tuple(url for nodes, _ in found for url in nodes)
        is_cluster = len(urls) > 1 or found[0][1]
        for url in urls:
            _check(url, is_cluster)
        if len({_without_host(url) for url in urls}) > 1:
            raise _refused("the nodes of a cluster have one protocol, one user and one password")
        return cls(urls, is_cluster)

    def hosts(self) -> list[tuple[str, int]]:
        """Host and port of each."""
        return [(split.hostname or "localhost", split.port or 6379) for split in map(urlsplit, self.urls)]

    def for_risingwave(self) -> str:
        """The option `redis.url` of a sink. Holds secrets."""
        return json.dumps(list(self.urls)) if self.is_cluster else self.urls[0]


def _nodes(url: str) -> tuple[list[str], bool]:
    """A URL for each of its hosts, and whether it says itself that they are a cluster's."""
    match = _URL.fullmatch(url)
    if match is None or match["protocol"] not in _SERVERS:
        raise _refused()
    query = dict(parse_qsl(match["query"] or "", keep_blank_values=True))
    cluster = query.pop("cluster", "false")
    if cluster not in ("true", "false"):
        raise _refused("cluster=true or cluster=false is wanted")
    rest = (match["database"] or "") + (f"?{urlencode(query)}" if query else "")
    if "password" in query:
        raise _refused("a password stands before the host, user:password@, where it is masked")
    if set(match["credentials"] or "") & set("/?#"):  # what follows them would be taken for something else
        raise _refused()
    start = f"{match['protocol']}://{match['credentials'] or ''}"
    return [start + host + rest for host in match["hosts"].split(",")], cluster == "true"


def _check(url: str, is_cluster: bool) -> None:
    from redis.connection import parse_url  # takes half a second, and most have no address of their own

    try:
        split = urlsplit(url)
        host, _ = split.hostname, split.port
        parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:
        raise _refused() from None
    if is_cluster and not host:
        raise _refused("a node without a host")
    if is_cluster and split.path not in ("", "/", "/0"):
        raise _refused("a cluster has one database, 0")


def _without_host(url: str) -> tuple[str, str, str, str]:
    split = urlsplit(url)
    return split.scheme, split.username or "", split.password or "", split.query


def _refused(
    why: str = "redis://[user:password@]host:port[/db] is wanted, or several host:port with commas for a cluster",
) -> SettingsError:
    return SettingsError(f"what is given is no Redis URL: {why}")
