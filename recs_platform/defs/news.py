"""Which evaluations of checks a sensor writes down: those that say something else than the last did, and now and then the others."""

from __future__ import annotations

import json
from hashlib import blake2b


class News:
    """What was said last under each name. Kept in a sensor's cursor."""

    def __init__(self, told: dict[str, str] | None = None) -> None:
        self._told = dict(told or {})

    @classmethod
    def load(cls, text: str | None) -> News:
        """What `dump` gave; nothing where it cannot be read, which costs one evaluation of each."""
        try:
            found = json.loads(text or "{}")
        except ValueError:
            return cls()
        return cls({name: str(told) for name, told in found.items()}) if isinstance(found, dict) else cls()

    def dump(self) -> str:
        return json.dumps(self._told)

    def is_news(self, name: str, said: object, now: float, every: float) -> bool:
        """Whether that was not said of it last, or not for some `every` seconds; notes that it is now."""
        told = blake2b(repr((said, int(now // every))).encode(), digest_size=6).hexdigest()
        is_other = self._told.get(name) != told
        self._told[name] = told
        return is_other
