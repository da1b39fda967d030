"""A circuit breaker: a model that keeps failing is asked last for a while."""

from __future__ import annotations

import time
from collections.abc import Callable

FAILURES = 5  # in a row
PAUSE = 15.0  # seconds


class Breaker:
    """Opens after some failures in a row; after the pause the next question decides again. `clock` counts seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._until = 0.0

    @property
    def open(self) -> bool:
        """Whether the model should be asked last."""
        return self._failures >= FAILURES and self._clock() < self._until

    def failed(self) -> None:
        """Count a failure."""
        self._failures += 1
        self._until = self._clock() + PAUSE

    def worked(self) -> None:
        """Forget the failures."""
        self._failures = 0
