"""The HTTP API: what the shop's pages ask, as JSON, and how the platform is.

`python -m recs_platform.serving.api` serves it. Answers come from Redis alone, with the last good answer where that is
away; nothing behind it, Dagster or the engine, has to run.
"""

from __future__ import annotations

import logging
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from ipaddress import ip_address
from typing import Any, TypeAlias

import orjson
import uvicorn
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from recs_platform.errors import RecsError, ServingError, SettingsError
from recs_platform.lineage import label
from recs_platform.metrics import Health
from recs_platform.monitor import Report, Watch
from recs_platform.serving.keys import Product
from recs_platform.serving.store import AsyncRecommendationStore
from recs_platform.settings import Settings

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)  # seconds
BACKLOG = 512
OPEN = ("/livez",)
"""Asked without a token, by whoever starts and stops processes."""

Ask: TypeAlias = Callable[[AsyncRecommendationStore, Request], Awaitable[Any]]
log = logging.getLogger("recs.api")


# -- what is asked ----------------------------------------------------------------------------------------------------


async def recommendations(store: AsyncRecommendationStore, request: Request) -> Any:
    """`GET /recommendations/123?limit=20&details=true`"""
    asked = _parameters(request, "limit", "details")
    user_id = request.path_params["user_id"]
    listed = await store.get_user_recommendations(user_id, _number(asked, "limit", 20))
    answer: dict[str, Any] = {"user_id": int(user_id), "recommended_products": listed}
    if _switch(asked, "details"):
        answer["products"] = [_as_dict(product) for product in await _details(store, listed)]
    return answer


async def _details(store: AsyncRecommendationStore, listed: list[str]) -> list[Product]:
    """As far as they are known: a list that is at hand is not held back for them."""
    try:
        return await store.get_products(listed)
    except ServingError:
        return []


async def trending(store: AsyncRecommendationStore, request: Request) -> Any:
    """`GET /trending?window=2025-02-25T10:00:00Z&segment=25-34/DE&limit=10&all=true`"""
    asked = _parameters(request, "window", "segment", "limit", "all")
    found = await store.get_trending_products(
        asked.get("window"),
        asked.get("segment"),
        _number(asked, "limit", 10),
        available_only=not _switch(asked, "all"),
    )
    return {"products": [_as_dict(row) for row in found]}


async def also_bought(store: AsyncRecommendationStore, request: Request) -> Any:
    """`GET /also-bought/product_688?limit=10`"""
    asked = _parameters(request, "limit")
    product_id = request.path_params["product_id"]
    found = await store.get_also_bought(product_id, _number(asked, "limit", 10))
    return {"product_id": product_id, "products": [_as_dict(row) for row in found]}


async def products(store: AsyncRecommendationStore, request: Request) -> Any:
    """`GET /products?id=product_1&id=product_2`"""
    _parameters(request, "id")
    found = await store.get_products(request.query_params.getlist("id"))
    return {"products": [_as_dict(product) for product in found]}


ASKED: Mapping[str, Ask] = {
    "/recommendations/{user_id}": recommendations,
    "/trending": trending,
    "/also-bought/{product_id:path}": also_bought,
    "/products": products,
}


def _as_dict(row: Any) -> dict[str, Any]:
    """Of a named tuple or a dataclass."""
    return dict(row._asdict()) if hasattr(row, "_asdict") else asdict(row)


def _parameters(request: Request, *known: str) -> Mapping[str, str]:
    unknown = sorted(set(request.query_params) - set(known))
    if unknown:
        raise ValueError(f"no such parameter: {', '.join(unknown)}; there are {', '.join(known)}")
    return request.query_params


def _number(asked: Mapping[str, str], name: str, default: int) -> int:
    text = asked.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{name}={text[:40]!r}: a whole number is wanted")
    return int(text)


def _switch(asked: Mapping[str, str], name: str) -> bool:
    text = asked.get(name, "false")
    if text not in ("true", "false"):
        raise ValueError(f"{name}={text[:40]!r}: true or false is wanted")
    return text == "true"


# -- the application --------------------------------------------------------------------------------------------------


class Api:
    """The routes of one process, and what they share."""

    def __init__(self, settings: Settings, watch: Watch | None = None) -> None:
        self._settings, self._watch = settings, watch or Watch()
        self.registry = CollectorRegistry()
        self.registry.register(Health(self._watch.report))
        self._requests = Counter(
            "recs_api_requests", "Requests by path and status", ["path", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "recs_api_request_seconds", "From request to answer", ["path"], buckets=BUCKETS, registry=self.registry
        )

    def application(self) -> Starlette:
        """The ASGI application. Raises `SettingsError` where no Redis is named."""
        url = self._settings.require_reader()

        @asynccontextmanager
        async def with_store(app: Starlette) -> AsyncIterator[None]:
            async with AsyncRecommendationStore(url, on_error="last_good") as store:
                app.state.store = store
                yield

        routes = [
            *(Route(path, self._asking(path, ask)) for path, ask in ASKED.items()),
            Route("/livez", self.livez),
            Route("/healthz", self.healthz),
            Route("/metrics", self.metrics),
        ]
        middleware = [Middleware(_WithToken, token=self._settings.api_token)] if self._settings.api_token else []
        return Starlette(
            routes=routes,
            middleware=middleware,
            lifespan=with_store,
            exception_handlers={HTTPException: _refused},  # type: ignore[dict-item]  # of Exception, it says
        )

    def _asking(self, path: str, ask: Ask) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            began = time.perf_counter()
            status, found = await _answered(ask, request)
            self._seconds.labels(path).observe(time.perf_counter() - began)
            self._requests.labels(path, str(status)).inc()
            return _json(found, status)

        answer.__doc__ = ask.__doc__
        return answer

    async def livez(self, _: Request) -> Response:
        """That this process answers, whatever else is wrong."""
        return _json({"status": "ok"})

    async def healthz(self, _: Request) -> Response:
        """200 where every box is well and 503 where one is not, with the causes."""
        report = await self._looked()
        causes = [
            {
                "box": label(cause.blame),
                "state": str(cause.state),
                "since": cause.since,
                "words": cause.words,
                "next": cause.next,
            }
            for cause in report.causes
        ]
        return _json({"state": str(report.state), "causes": causes}, 200 if report.state.is_well else 503)

    async def metrics(self, _: Request) -> Response:
        """What Prometheus scrapes."""
        text = await run_in_threadpool(generate_latest, self.registry)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _looked(self) -> Report:
        try:
            return await run_in_threadpool(self._watch.report)
        except RecsError as error:
            raise HTTPException(503, str(error)) from None


async def _answered(ask: Ask, request: Request) -> tuple[int, Any]:
    try:
        return 200, await ask(request.app.state.store, request)
    except ValueError as error:
        return 400, {"error": str(error)[:500]}
    except RecsError as error:
        return 503, {"error": str(error)}


async def _refused(_: Request, error: HTTPException) -> Response:
    return _json({"error": error.detail}, error.status_code)


def _json(found: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(found), status, media_type="application/json")


class _WithToken:
    """Lets in who sends `Authorization: Bearer TOKEN`."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._wanted = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(given, self._wanted):
                refusal = _json({"error": "Authorization: Bearer TOKEN is wanted, with RECS_API_TOKEN"}, 401)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


# -- the process ------------------------------------------------------------------------------------------------------


def checked_host(settings: Settings) -> str:
    """Where it listens. Raises `SettingsError` for an address beyond this machine without a token."""
    host = settings.api_host
    if not _is_loopback(host) and not settings.api_token:
        raise SettingsError(
            f"RECS_API_HOST={host}: whoever reaches this machine could read what its shoppers are recommended; "
            "set RECS_API_TOKEN too, or listen on 127.0.0.1"
        )
    return host


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main() -> int:
    """Serves until SIGTERM or SIGINT. Exit code 1 with one line for a setting that is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = Settings.load()
        application, host = Api(settings).application(), checked_host(settings)
    except RecsError as error:
        log.error("%s", error)
        return 1
    uvicorn.run(
        application, host=host, port=settings.api_port or 8080, log_config=None, access_log=False, backlog=BACKLOG
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
