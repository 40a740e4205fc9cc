"""How engines differ, as one flat record."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Capabilities:
    """Facts about an engine; code asks for the fact, never for the engine's name."""

    keeps_history_for_rebuilds: bool  # rebuilds a view of a topic further back than the topic reaches
    rebuilds_in_place: bool  # a version is computed anew under its own name, and readers see nothing until it is whole
    deploys_connections: bool  # a database that is merely connected to is a relation of its own
    forgets_shoppers: bool  # can take one shopper out of all it keeps, and refuse what comes of them later
