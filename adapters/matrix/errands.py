"""What a transaction asks for besides answers: to enter rooms, and to explain ourselves where we cannot read."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec
import structlog

from adapters.matrix.api import Homeserver
from adapters.matrix.events import ENCRYPTED, Event, localpart, readable
from bot.adapter import Accept, Context, Message
from bot.errors import PlatformError, Refused, Rejected, StoreUnavailable, Throttled, Unauthorized, Unavailable

log = structlog.get_logger()

GAPS = (1.0, 5.0, 30.0, 300.0)  # seconds between attempts at what the homeserver does not do now
INVITES = "invites"  # key of the rooms that we have yet to enter
INVITED_FOR = 30 * 86400.0  # seconds for which an invite is remembered
EXPLAINED_FOR = 365 * 86400.0  # seconds after which an encrypted room is told again
MISSED = 50  # events at most that are looked at which happened before we came in
UNREADABLE = (
    "This room is encrypted, and I cannot read encrypted messages. Please invite me into a room without encryption.\n"
    "这个房间已加密，而我无法阅读加密消息。请邀请我进入未加密的房间。"
)

Translate = Callable[[Sequence[Event]], list[Message]]


class Messages(msgspec.Struct):
    """https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv3roomsroomidmessages"""

    chunk: list[msgspec.Raw] = []


class Errands:
    """Notes errands and runs them. `learn` finds out who is in a room, `translate` makes messages of events."""

    def __init__(
        self,
        homeserver: Homeserver,
        context: Context,
        service: str,
        learn: Callable[[str], Awaitable[None]],
        translate: Translate,
    ) -> None:
        self._homeserver = homeserver
        self._me = homeserver.me
        self._context = context
        self._service = service
        self._learn = learn
        self._translate = translate
        self._noted: asyncio.Queue[tuple[str, str]] = asyncio.Queue()  # (what, room)

    async def note(self, event: Event) -> None:
        """Note what an event asks for. An invite is on disk when this returns: nobody sends it twice."""
        if event.makes(self._me, "invite"):
            await self._change_invites(add=event.room_id)
            self._noted.put_nowait(("enter", event.room_id))
        elif event.type == ENCRYPTED and event.sender != self._me:
            self._noted.put_nowait(("explain", event.room_id))

    async def _change_invites(self, *, add: str = "", drop: str = "") -> None:
        """Change the set of rooms that we have yet to enter."""
        while True:
            old = await self._context.state.get(INVITES)
            rooms = {*(old or "").split(), add} - {drop, ""}
            new = " ".join(sorted(rooms)) or None
            if new == old or await self._context.state.swap(INVITES, old, new, INVITED_FOR):
                return

    async def run(self, accept: Accept) -> None:
        """Arrive, then run errands side by side until cancelled."""
        verbs: dict[str, Callable[[str], Awaitable[None]]]
        verbs = {"enter": partial(self._enter, accept), "explain": self.explain}
        async with asyncio.TaskGroup() as running:
            running.create_task(self._patiently("arrive", self._arrive))
            for room in (await self._context.state.get(INVITES) or "").split():
                self._noted.put_nowait(("enter", room))
            while True:
                what, room = await self._noted.get()
                running.create_task(self._patiently(what, partial(verbs[what], room)))

    async def _patiently(self, what: str, act: Callable[[], Awaitable[None]]) -> None:
        """Do something, again and again until the homeserver does it or refuses it."""
        note = log.bind(instance=self._context.instance, errand=what)
        for gap in itertools.chain(GAPS, itertools.repeat(GAPS[-1])):
            try:
                return await act()
            except (Unauthorized, Unavailable, Throttled, Rejected, StoreUnavailable) as error:
                wait = error.retry_after if isinstance(error, Throttled) else gap
                note.info("again later", error=str(error), seconds=wait)
            except PlatformError as error:
                note.warning("not done", error=str(error))
                return None
            await asyncio.sleep(wait)
        return None

    async def _arrive(self) -> None:
        """See to it that our user exists, and that the homeserver sends at once what we missed while we were away.

        https://spec.matrix.org/v1.16/application-service-api/#server-admin-style-permissions
        """
        fields = {"type": "m.login.application_service", "username": localpart(self._me), "inhibit_login": True}
        with contextlib.suppress(Refused):  # it exists
            await self._homeserver.call("POST", "v3", "register", json=fields)
        await self._homeserver.ping(self._service)

    async def _enter(self, accept: Accept, room: str) -> None:
        """Accept an invite, and take what was written since: of a room that we are not in we are sent nothing."""
        try:
            await self._homeserver.call("POST", "v3", "rooms", room, "join", json={})
        except Refused as error:
            if not isinstance(error, Unauthorized):
                await self._change_invites(drop=room)  # it was taken back
            raise
        await self._learn(room)
        missed = await self._missed(room)
        await accept(self._translate(missed))
        await self._change_invites(drop=room)
        if any(event.type == ENCRYPTED for event in missed):
            await self.explain(room)

    async def _missed(self, room: str) -> list[Event]:
        """Return what happened in a room since we were invited."""
        query = {"dir": "b", "limit": str(MISSED)}
        chunk = (await self._homeserver.call("GET", "v3", "rooms", room, "messages", query=query)).json(Messages).chunk
        newest_first = filter(None, map(readable, chunk))
        return list(itertools.takewhile(lambda event: not event.makes(self._me, "invite"), newest_first))[::-1]

    async def explain(self, room: str) -> None:
        """Say once that we cannot read what is encrypted."""
        key = f"explained/{room}"
        if await self._context.state.get(key) is None:
            content = {"msgtype": "m.notice", "body": UNREADABLE, "m.mentions": {}}
            await self._homeserver.post(room, "magpie-explained", content)
            await self._context.state.set(key, "1", EXPLAINED_FOR)
