"""What cannot be seen in an event: who is in its room, and what the message says that it answers.

The homeserver is asked when that is first needed. What it said is kept for a while, and kept up by the events.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Generic, TypeVar

import msgspec

from adapters.matrix.events import Event, no_question, spoken
from bot.client import Reply
from bot.errors import PlatformError, Refused, Unauthorized

T = TypeVar("T")
KNOWN_FOR = 300.0  # seconds; another replica may get the event that says who came or went
PATIENCE = 10.0  # seconds; the homeserver waits for us meanwhile


class Kept(dict[str, tuple[float, T]], Generic[T]):
    """Values that are forgotten after a while."""

    def now(self, key: str) -> T | None:
        """Return a value that is not too old."""
        until, value = self.get(key, (0.0, None))
        return value if until > time.monotonic() else None

    def keep(self, key: str, value: T) -> None:
        """Keep a value, and forget the old ones."""
        now = time.monotonic()
        for old in [old for old, (until, _) in self.items() if until <= now]:
            del self[old]
        self[key] = (now + KNOWN_FOR, value)


class Profile(msgspec.Struct):
    """How somebody calls themselves in a room."""

    display_name: str | None = None


class Joined(msgspec.Struct):
    """https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv3roomsroomidjoined_members"""

    joined: dict[str, Profile]


class Rooms:
    """The rooms that we have heard of lately. `get(room, what)` asks the homeserver. `me` is our user id."""

    def __init__(self, get: Callable[..., Awaitable[Reply]], me: str) -> None:
        self._get = get
        self._me = me
        self._members: Kept[dict[str, str]] = Kept()
        self._quotes: Kept[str] = Kept()
        self._asking: set[str] = set()  # rooms that are asked about and have not changed since

    def members(self, room: str) -> Mapping[str, str] | None:
        """Return the members' display names by their ids: none where we are not in, None when that is not known."""
        return self._members.now(room)

    def quote(self, event: str) -> str:
        """Return what a message says, "" when that is not known."""
        return self._quotes.now(event) or ""

    async def prepare(self, events: Iterable[Event]) -> None:
        """Learn what has to be known of events, as far as the homeserver answers now."""
        rooms: set[str] = set()
        answered: dict[str, str] = {}  # an event's id: its room
        for event in events:
            self._follow(event)
            if not no_question(event, self._me):
                rooms.add(event.room_id)
                answered[event.answered] = event.room_id
        unknown = [self.learn(room) for room in rooms if self.members(room) is None]
        quotes = [self._learn_quote(room, id) for id, room in answered.items() if id and self._quotes.now(id) is None]
        await asyncio.gather(*map(_try, (*unknown, *quotes)))

    async def learn(self, room: str) -> None:
        """Ask who is in a room, again when somebody came or went meanwhile. Raises PlatformError."""
        still = False
        while not still:
            self._asking.add(room)
            members = await self._ask(room)
            still = room in self._asking
        self._asking.discard(room)
        self._members.keep(room, members)

    async def _ask(self, room: str) -> dict[str, str]:
        try:
            joined = (await self._get(room, "joined_members", timeout=PATIENCE)).json(Joined).joined
        except Unauthorized:
            raise
        except Refused:
            return {}  # we are not in it
        return {user: profile.display_name or "" for user, profile in joined.items()}

    async def _learn_quote(self, room: str, id: str) -> None:
        """https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv3roomsroomideventeventid"""
        event = (await self._get(room, "event", id, timeout=PATIENCE)).json(Event)
        edit = event.unsigned and event.unsigned.relations and event.unsigned.relations.replace
        self._quotes.keep(id, edit.content.new_content.body if edit and edit.content.new_content else spoken(event)[1])

    def _follow(self, event: Event) -> None:
        """Keep up with who comes and goes."""
        if event.type != "m.room.member" or event.state_key is None or event.content.membership == "invite":
            return
        self._asking.discard(event.room_id)
        members, joins = self._members.now(event.room_id), event.content.membership == "join"
        if event.state_key == self._me and not joins:
            self._members.keep(event.room_id, {})
        elif not members:
            self._members.pop(event.room_id, None)  # we may be in it again
        elif joins:
            members[event.state_key] = event.content.displayname or ""
        else:
            members.pop(event.state_key, None)


async def _try(asking: Awaitable[None]) -> None:
    with suppress(PlatformError):
        await asking
