"""Real-time recommendations as a data platform that a data engineer can see, trust and change.

The shop's pages need no more than this: `from recs_platform import get_user_recommendations`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recs_platform.serving.direct import OutputFormat, fetch, get_recommendations_direct
    from recs_platform.serving.keys import AlsoBought, Product, TrendingProduct
    from recs_platform.serving.store import (
        AsyncRecommendationStore,
        RecommendationStore,
        get_also_bought,
        get_trending_products,
        get_user_recommendations,
    )

__all__ = [
    "AlsoBought",
    "AsyncRecommendationStore",
    "OutputFormat",
    "Product",
    "RecommendationStore",
    "TrendingProduct",
    "fetch",
    "get_also_bought",
    "get_recommendations_direct",
    "get_trending_products",
    "get_user_recommendations",
]


def __getattr__(name: str) -> Any:
    # On first use: the engine and Dagster import this package too, and need no Redis client for it.
    for module in ("keys", "store", "direct") if name in __all__ else ():
        found = vars(import_module(f"recs_platform.serving.{module}")).get(name)
        if found is not None:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
