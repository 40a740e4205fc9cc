"""What the local engine is and is not."""

from recs_platform.capabilities import Capabilities

CAPABILITIES = Capabilities(
    name="local",
    has_arrow_results=True,
    repeats_key_in_documents=False,
    keeps_history_for_rebuilds=True,
    rebuilds_in_place=True,
    deploys_connections=False,
    forgets_shoppers=True,
)
