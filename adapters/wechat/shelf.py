"""Answers that wait until the person fetches them, in the state that all replicas share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from bot.adapter import State, decode

T = TypeVar("T")


class Kept(msgspec.Struct, frozen=True):
    """A page to be fetched."""

    key: str
    text: str
    message: str  # id of the message it answers


class Shelf(msgspec.Struct, omit_defaults=True):
    """What one person may fetch. `awaited` is the message whose answer they were told to wait for."""

    pages: list[Kept] = []
    awaited: str = ""

    def put(self, page: Kept) -> None:
        """Keep a page, once."""
        if page.key not in [kept.key for kept in self.pages]:
            self.pages.append(page)

    def take(self, message: str = "") -> Kept | None:
        """Hand out the oldest page, or the oldest that answers a certain message; None when there is none."""
        page = next((page for page in self.pages if message in ("", page.message)), None)
        if page is not None:
            self.pages.remove(page)
            self.settle(page)
        return page

    def wait_for(self, message: str) -> None:
        """Note that the person waits for the answer to a message."""
        self.awaited = message

    def settle(self, page: Kept) -> None:
        """Note that the person has got an answer."""
        if self.awaited == page.message:
            self.awaited = ""


class Shelves:
    """One shelf a person. What lies there is gone after `ttl` seconds without a change."""

    def __init__(self, state: State, ttl: float) -> None:
        self._state = state
        self._ttl = ttl

    async def get(self, user: str) -> Shelf:
        """Return a person's shelf as it is now."""
        return decode(await self._state.get(f"shelf/{user}") or "{}", Shelf)

    async def change(self, user: str, change: Callable[[Shelf], T]) -> T:
        """Change a person's shelf, whoever else does so at the same time."""
        key = f"shelf/{user}"
        while True:
            before = await self._state.get(key)
            shelf = decode(before or "{}", Shelf)
            result = change(shelf)
            after = msgspec.json.encode(shelf).decode() if shelf != Shelf() else None
            if after == before or await self._state.swap(key, before, after, self._ttl):
                return result
