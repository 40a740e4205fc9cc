"""What the shop's pages call: recommendations from Redis in milliseconds, and queries to the engine."""

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
