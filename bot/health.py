"""When each instance last heard from its platform, last posted, and what went wrong last.

Kept in memory and written to the shared state now and then, where `magpie doctor` reads it.
"""

from __future__ import annotations

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


class Health:
    """Vitals of all instances."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._vitals: dict[str, Vitals] = {}
        self._changed: set[str] = set()
        self.model = "not asked yet"  # or "ok", or the code of what went wrong last

    def vitals(self, instances: Iterable[str]) -> dict[str, Vitals]:
        """Return what this process knows of each instance."""
        return {instance: self._vitals.get(instance, Vitals()) for instance in instances}

    def received(self, instance: str) -> None:
        """A verified request came in."""
        self._of(instance).last_delivery = _now()

    def sent(self, instance: str) -> None:
        """A reply was posted."""
        self._of(instance).last_send = _now()

    def failed(self, instance: str, error: str) -> None:
        """Something went wrong. The text holds no secret."""
        self._of(instance).last_error = f"{_now()} {error}"

    def _of(self, instance: str) -> Vitals:
        self._changed.add(instance)
        return self._vitals.setdefault(instance, Vitals())

    async def flush(self) -> None:
        """Write down what changed."""
        changed, self._changed = self._changed, set()
        for instance in changed:
            known = await read(self._store, instance)
            ours = self._vitals[instance]
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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
