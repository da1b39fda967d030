"""Records in the shared state that several replicas change at the same time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from bot.adapter import State, decode

R = TypeVar("R", bound=msgspec.Struct)
T = TypeVar("T")


async def load(state: State, key: str, kind: type[R]) -> R:
    """Return a record as it is now, an empty one when there is none."""
    return decode(await state.get(key) or "{}", kind)


async def change(state: State, key: str, kind: type[R], change: Callable[[R], T], ttl: float) -> T:
    """Let a function change a record and return what it returns; it is called again when somebody else was faster.

    The record is kept for `ttl` seconds from then on; one that has become empty is deleted.
    """
    while True:
        before = await state.get(key)
        record = decode(before or "{}", kind)
        result = change(record)
        after = msgspec.json.encode(record).decode() if record != kind() else None
        if after == before or await state.swap(key, before, after, ttl):
            return result
