"""What is deployed, as an engine's catalog lists it: versions of relations, side by side.

The public name of a relation is a plain view over the live one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from recs_platform.physical_names import VersionId, mentioned, physical_name
from recs_platform.pipeline import Kind
from recs_platform.serving import keys

_SLOT = re.compile(r"\bslot\.name\"?\s*=\s*'([^']*)'")


@dataclass(frozen=True)
class Version:
    """One version of a relation. `progress` is the engine's word on a build that is under way, None once it is whole.

    `definition` is its statement as the engine keeps it, with secrets: never show it; "" where the engine keeps none.
    `replaced_at`: since when (seconds since 1970) another version is live in its stead; 0.0 where it never was live itself.
    """

    name: str
    id: VersionId
    kind: str
    is_live: bool = False
    progress: str | None = None
    definition: str = field(default="", repr=False)
    replaced_at: float | None = None

    @property
    def is_whole(self) -> bool:
        return self.progress is None

    @property
    def is_connection(self) -> bool:
        """A database that is merely connected to: it has no rows to select."""
        return self.kind == Kind.SOURCE and "postgres-cdc" in self.definition

    @property
    def slot(self) -> str | None:
        """The replication slot that a connection reads through."""
        match = _SLOT.search(self.definition) if self.is_connection else None
        return match[1] if match else None

    @property
    def reads(self) -> frozenset[str]:
        """Physical names of what it reads."""
        return frozenset(mentioned(self.definition)) - {self.physical_name}

    @property
    def physical_name(self) -> str:
        return physical_name(self.name, self.id)

    @property
    def redis_name(self) -> str | None:
        """The `<name>` of `recs:<name>:<version>:<row key>` that a sink writes."""
        return keys.name_in_sql(self.definition) if self.kind == Kind.SINK else None


@dataclass(frozen=True)
class Deployment:
    """All versions that are there, in the order they were created."""

    versions: tuple[Version, ...] = ()

    @classmethod
    def of_live(cls, fingerprints: Mapping[str, str]) -> Deployment:
        """Of an engine that keeps one version of each: public name → its fingerprint."""
        return cls(tuple(Version(name, VersionId(f), "", is_live=True) for name, f in fingerprints.items()))

    @property
    def live(self) -> dict[str, VersionId]:
        return {version.name: version.id for version in self.versions if version.is_live}

    def get(self, name: str, id: VersionId) -> Version | None:
        return next((v for v in self.versions if v.name == name and v.id == id), None)

    @property
    def unread(self) -> list[Version]:
        """Of each sink without a live version the newest that is whole and reads what is live: readers have not gone over to
        it yet, or their store was emptied."""
        live, there = self.live, {version.physical_name for version in self.versions if version.is_live}
        sinks = {v.name: v for v in self.versions if v.kind == Kind.SINK and v.is_whole and v.reads <= there}
        return [sink for name, sink in sinks.items() if name not in live]

    @property
    def replaced_last(self) -> list[Version]:
        """What was live before the last switch, as far as it is still there. A sink that was merely written anew was
        replaced because it was wrong: it is no way back."""
        known = [v for v in self.versions if v.replaced_at and not v.is_live and not self._is_rewritten(v)]
        last = max((version.replaced_at or 0.0 for version in known), default=None)
        return [version for version in known if version.replaced_at == last]

    def _is_rewritten(self, sink: Version) -> bool:
        live = self.live.get(sink.name)
        now = self.get(sink.name, live) if live and sink.kind == Kind.SINK else None
        return now is not None and (now.id.fingerprint, now.reads) == (sink.id.fingerprint, sink.reads)

    def of(self, name: str) -> list[Version]:
        return [version for version in self.versions if version.name == name]
