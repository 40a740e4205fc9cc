"""HTTP servers of this machine, asked directly: whatever proxy is set is not for them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def ask(request: Request | str, seconds: float) -> Any:
    """The open answer, to be closed. Raises `OSError` where there is none."""
    url = request if isinstance(request, str) else request.full_url
    is_here = urlsplit(url).hostname in _LOOPBACK
    return build_opener(*([ProxyHandler({})] if is_here else [])).open(request, timeout=seconds)
