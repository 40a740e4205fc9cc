"""What the local engine is and is not."""

from recs_platform.capabilities import Capabilities

CAPABILITIES = Capabilities(
    keeps_history_for_rebuilds=True,
    rebuilds_in_place=True,
    deploys_connections=False,
    forgets_shoppers=True,
)
