"""What a version of a relation is called.

A version of `trending_products` is the relation `trending_products__3f2a91c0`; one that was built anew though its SQL
stands is `trending_products__3f2a91c0_2`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_PHYSICAL = re.compile(r"(?P<name>[a-z]\w*)__(?P<fingerprint>[0-9a-f]{8})(?:_(?P<generation>[1-9]\d*))?")


class VersionId(NamedTuple):
    """A fingerprint, and how many times it had been built before."""

    fingerprint: str
    generation: int = 0

    def __str__(self) -> str:
        return f"{self.fingerprint}_{self.generation}" if self.generation else self.fingerprint


def physical_name(name: str, id: VersionId | str) -> str:
    return f"{name}__{id}"


def physical_names(versions: Mapping[str, VersionId] | Mapping[str, str]) -> dict[str, str]:
    """Public name → physical name."""
    return {name: physical_name(name, id) for name, id in versions.items()}


def taken_apart(physical: str) -> tuple[str, VersionId] | None:
    """The public name and the version of a physical name; None for a name that is none of ours."""
    match = _PHYSICAL.fullmatch(physical)
    return (match["name"], VersionId(match["fingerprint"], int(match["generation"] or 0))) if match else None


def public_names(physical: Iterable[str]) -> list[str]:
    """Of physical names, in their order."""
    return [parts[0] for name in physical if (parts := taken_apart(name))]


def mentioned(definition: str) -> Iterable[str]:
    """The physical names in a statement, in order."""
    return (match[0] for match in re.finditer(rf"\b{_PHYSICAL.pattern}\b", definition))


def with_public_names(definition: str) -> str:
    """A statement with relations by their public names."""
    return re.sub(rf"\b{_PHYSICAL.pattern}\b", lambda match: match["name"], definition)
