"""When each instance last heard from its platform, last posted, and what went wrong last.

Kept in memory and written to the shared state now and then, where `magpie doctor` reads it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from bot.store import Store

DAYS = 30 * 86400.0


class Vitals(msgspec.Struct, omit_defaults=True):
    """Signs of life of one instance: ISO times in UTC, "" for never."""

    last_delivery: str = ""
    last_send: str = ""
    last_error: str = ""


class Signs:
    """When an instance last did something, in seconds since 1970: cheap to note for every message."""

    delivery = 0.0
    send = 0.0
    error = ""

    def vitals(self) -> Vitals:
        """Put the times into words."""
        return Vitals(_iso(self.delivery), _iso(self.send), self.error)


class Health:
    """Signs of life of all instances."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._signs: defaultdict[str, Signs] = defaultdict(Signs)
        self._changed: set[str] = set()
        self.model = "not asked yet"  # or "ok", or the code of what went wrong last

    def vitals(self, instances: Iterable[str]) -> dict[str, Vitals]:
        """Return what this process knows of each instance."""
        return {instance: self._signs[instance].vitals() for instance in instances}

    def received(self, instance: str) -> None:
        """A message came in."""
        self._changed.add(instance)
        self._signs[instance].delivery = time.time()

    def sent(self, instance: str) -> None:
        """A reply was posted."""
        self._changed.add(instance)
        self._signs[instance].send = time.time()

    def failed(self, instance: str, error: str) -> None:
        """Something went wrong. The text holds no secret."""
        self._changed.add(instance)
        self._signs[instance].error = f"{_iso(time.time())} {error}"

    async def flush(self) -> None:
        """Write down what changed."""
        changed, self._changed = self._changed, set()
        for instance in changed:
            known = await read(self._store, instance)
            ours = self._signs[instance].vitals()
            merged = Vitals(
                max(known.last_delivery, ours.last_delivery),
                max(known.last_send, ours.last_send),
                max(known.last_error, ours.last_error),
            )
            await self._store.state(instance).set("vitals", msgspec.json.encode(merged).decode(), DAYS)


async def read(store: Store, instance: str) -> Vitals:
    """Return what is written down about an instance."""
    text = await store.state(instance).get("vitals")
    return msgspec.json.decode(text, type=Vitals) if text else Vitals()


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else ""
