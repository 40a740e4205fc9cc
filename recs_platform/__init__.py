"""Real-time recommendations as a data platform that a data engineer can see, trust and change.

The shop's pages need no more than this: `from recs_platform import get_user_recommendations`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recs_platform.serving import (
        AlsoBought,
        AsyncRecommendationStore,
        OutputFormat,
        Product,
        RecommendationStore,
        TrendingProduct,
        fetch,
        get_also_bought,
        get_recommendations_direct,
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
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from recs_platform import serving

    return getattr(serving, name)
