"""Answers that wait until the person fetches them, in the state that all replicas share."""

from __future__ import annotations

import msgspec


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
