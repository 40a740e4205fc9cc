"""How many messages a tick takes in at most: large ones cost less a message, but all that comes meanwhile waits for their
end, and nothing can be told of them before."""

from __future__ import annotations

FIRST = 100_000  # messages, before it is known what a tick costs here
LEAST = 20_000  # and what a tick has to hold so that it says what messages cost, rather than what a tick does
LONGEST = 10.0  # seconds


class TickSize:
    """What was taken in within `LONGEST` seconds at the pace of the last large tick, at most `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.messages = min(FIRST, most)

    def note(self, messages: int, seconds: float) -> None:
        """A tick took in so many, and so long."""
        if messages >= LEAST:
            self.messages = min(self._most, max(LEAST, int(messages / max(seconds, 1e-6) * LONGEST)))
