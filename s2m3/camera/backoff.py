"""The pauses between attempts to reach a camera. Pure."""

from __future__ import annotations

FIRST_S = 1.0
MOST_S = 60.0


class Backoff:
    """Pauses that double from the first to the longest one, until the camera gave a frame."""

    def __init__(self, first_s: float = FIRST_S, most_s: float = MOST_S) -> None:
        self._first_s, self._most_s = first_s, most_s
        self._next_s = first_s

    def next_s(self) -> float:
        """The pause before the next attempt, in seconds."""
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, self._most_s)
        return pause_s

    def reset(self) -> None:
        """Begin with the first pause again."""
        self._next_s = self._first_s
