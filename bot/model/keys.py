"""Several keys used in turn; a key that was refused rests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

REFUSED_REST = 300.0  # seconds; a key that is wrong, or has nothing left to spend, is asked last for so long
LONGEST_REST = 60.0  # seconds; whatever a Retry-After says, a key is tried again after this


class KeyRing:
    """The keys of one server, "" alone where it wants none. `clock` counts seconds."""

    def __init__(self, keys: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.keys = list(keys) or [""]
        self._clock = clock
        self._refused: dict[str, float] = {}  # key: until when
        self._cooling: dict[tuple[str, str], float] = {}  # key and model: until when
        self._next = 0

    def pick(self, model: str) -> tuple[str, float]:
        """Return the key to use next for a model and the seconds to wait before; some key is always returned."""
        start, count = self._next, len(self.keys)
        self._next = (start + 1) % count
        if not self._refused and not self._cooling:
            return self.keys[start], 0.0
        now = self._clock()
        turn = self.keys[start:] + self.keys[:start]
        key = min(turn, key=lambda key: (self._refused.get(key, 0) > now, self._rest(key, model, now)))
        return key, self._rest(key, model, now)

    def refuse(self, key: str) -> None:
        """Note that a key is wrong or has no quota: others are preferred for some minutes."""
        self._refused[key] = self._clock() + REFUSED_REST

    def cool(self, key: str, model: str, seconds: float) -> None:
        """Note that a key must not be used for a model for some seconds."""
        self._cooling[key, model] = self._clock() + min(seconds, LONGEST_REST)

    def works(self, key: str, model: str) -> None:
        """Note that a key was accepted."""
        self._refused.pop(key, None)
        self._cooling.pop((key, model), None)

    def _rest(self, key: str, model: str, now: float) -> float:
        return max(0.0, self._cooling.get((key, model), 0.0) - now)
