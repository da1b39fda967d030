"""The one way a reply reaches a chat: begin, edit, finish, page by page.

While the model writes, `feed` collects; a task shows what has come at the platform's pace. `settle` ends that, the
reply is stored, and `finish` posts the rest: each page until it went through or was refused for good. How far it came
is kept in the Draft, so another process can go on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import structlog

from bot.adapter import Capabilities, Chat, Page, Post
from bot.errors import PlatformError, Refused, Throttled, Unavailable
from bot.markup import PLAIN, cut, render
from bot.store import Draft

log = structlog.get_logger()

GATHER = 0.005  # seconds from the first words to the first post: an answer that comes at once is one post
TYPING_AFTER = 0.2  # seconds: who is answered sooner needs no sign that somebody is typing
BACKOFF = (0.5, 1.0, 2.0, 4.0)  # seconds between tries while the platform is unavailable
PATIENCE = 60.0  # longest wait a platform may ask for while we stay; beyond it the reply is tried again later
SPARE = "⤴"  # what a post shows that belonged to an interrupted, longer attempt
THROTTLED = 8  # times in a row a platform may ask one page to wait


class Poster(Protocol):
    """The sending half of an adapter."""

    can: Capabilities

    async def send(self, chat: Chat, page: Page) -> str: ...
    async def begin(self, chat: Chat, page: Page) -> str: ...
    async def edit(self, chat: Chat, post: Post, page: Page, last: bool) -> str: ...
    async def typing(self, chat: Chat) -> None: ...


class Delivery:
    """Brings one reply into a chat. `note` stores the draft; it is awaited where a crash would repeat a page."""

    def __init__(self, poster: Poster, draft: Draft, note: Callable[[], Awaitable[None]]) -> None:
        self.draft = draft
        self._poster = poster
        self._can = poster.can
        self._note = note
        self._fed: list[str] = []
        self._news = asyncio.Event()
        self._ended = asyncio.Event()
        self.refused: Refused | None = None  # the platform will not show this reply
        self._growing = False
        self._timers: list[asyncio.TimerHandle] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._notes: set[asyncio.Future[None]] = set()

    def start(self) -> None:
        """Show that an answer is being written, once it has taken a moment."""
        if self._can.typing_every is not None:
            self._soon(TYPING_AFTER, self._type, self._can.typing_every)

    def feed(self, text: str) -> None:
        """Take the next words of the reply. Raises Refused once the platform will not show them."""
        if self.refused is not None:
            raise self.refused
        self._fed.append(text)
        self._news.set()
        if not self._growing and self._can.edit_every is not None:
            self._growing = True
            self._soon(GATHER, self._grow, self._can.edit_every)

    def _soon(self, seconds: float, work: Callable[[float], Coroutine[Any, Any, None]], every: float) -> None:
        """Begin a task after a moment. A timer costs nothing for the many answers that are finished by then."""

        def begin() -> None:
            self._tasks.append(asyncio.create_task(work(every)))

        self._timers.append(asyncio.get_running_loop().call_later(seconds, begin))

    async def settle(self) -> None:
        """Stop showing; what was fed is in the draft now."""
        self._ended.set()
        self._news.set()
        for timer in self._timers:
            timer.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks)
            self._tasks.clear()
        self._gather()

    async def finish(self) -> None:
        """Post what is missing. Raises Refused, or Unavailable and Throttled when it has to be tried again later."""
        await self.settle()
        while self.draft.rest:
            head, rest = self._cut()
            await self._surely(head)
            self.draft.closed += 1
            self.draft.rest = rest
            if rest:
                await self._note()
                await asyncio.sleep(1 / self._can.pages_per_second)
        await self._blank_spares()
        if self._notes:
            await asyncio.gather(*self._notes, return_exceptions=True)

    def abandon(self) -> None:
        """Leave everything as it is; somebody else goes on with the draft."""
        for timer in self._timers:
            timer.cancel()
        for task in self._tasks:
            task.cancel()

    async def _blank_spares(self) -> None:
        """Blank the posts of an earlier attempt that this shorter reply does not need."""
        for post in self.draft.posts[self.draft.closed :]:
            with contextlib.suppress(PlatformError):  # the reply itself is complete
                await self._poster.edit(self.draft.chat, post, Page(SPARE, SPARE), True)

    def _gather(self) -> None:
        if self._fed:
            self.draft.rest += "".join(self._fed)
            self._fed.clear()

    def _cut(self) -> tuple[str, str]:
        return cut(self.draft.rest, self._can.max_length, self._can.dialect, self._can.measure)

    # -- while the model writes -----------------------------------------------------------------------------------

    async def _type(self, every: float) -> None:
        while not self._ended.is_set() and not self.draft.posts:
            with contextlib.suppress(PlatformError):  # nobody misses it
                await self._poster.typing(self.draft.chat)
            await self._pause(every)

    async def _grow(self, every: float) -> None:
        while not self._ended.is_set() and self.refused is None:
            self._news.clear()
            await self._pause(max(every, await self._show()))
            await self._news.wait()

    async def _show(self) -> float:
        """Bring the chat up to what was fed; return the seconds the platform wants us to wait."""
        try:
            self._gather()
            head, rest = self._cut()
            while rest:
                await self._put(head, last=True)
                self.draft.closed += 1
                self.draft.rest = rest
                self._note_soon()
                head, rest = self._cut()
            await self._put(head, last=False)
        except Throttled as error:
            self._news.set()  # what could not be shown now is shown after the wait, also when nothing comes meanwhile
            return error.retry_after
        except Unavailable as error:
            self._news.set()
            log.info("post delayed", error=str(error))
        except Refused as error:
            self.refused = error
        return 0

    async def _pause(self, seconds: float) -> None:
        """Wait, but not beyond the end of the reply."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()

    # -- one page -------------------------------------------------------------------------------------------------

    async def _surely(self, source: str) -> None:
        """Close a page, trying again while the platform is throttled or unavailable for a moment."""
        waits = iter(BACKOFF)
        throttled = 0
        while True:
            try:
                return await self._put(source, last=True)
            except Throttled as error:
                throttled += 1
                if error.retry_after > PATIENCE or throttled > THROTTLED:
                    raise
                await asyncio.sleep(error.retry_after + random.uniform(0, 0.2))  # noqa: S311
            except Unavailable:
                wait = next(waits, None)
                if wait is None:
                    raise
                await asyncio.sleep(wait * random.uniform(0.8, 1.2))  # noqa: S311

    async def _put(self, source: str, last: bool) -> None:
        """Make the open page show `source`; for good when `last`."""
        draft, number = self.draft, self.draft.closed
        text = render(source, self._can.dialect)
        if not text.strip():
            return
        post = draft.posts[number] if number < len(draft.posts) else None
        if post is not None and post.shown == text and not last:
            return
        page = Page(
            text=text,
            plain=render(source, PLAIN) if last else text,
            key=f"{draft.key}:{number}",
            reply_to=draft.answers[-1] if draft.answers else "",
            failure=draft.failure,
        )
        if post is not None:
            identity = await self._poster.edit(draft.chat, post, page, last)
            draft.posts[number] = Post(identity, text, post.edits + 1)
        else:
            identity = await (self._poster.send if last else self._poster.begin)(draft.chat, page)
            draft.posts.append(Post(identity, text))
            if not last:
                self._note_soon()

    def _note_soon(self) -> None:
        """Store how far we are, without keeping the person waiting."""
        note = asyncio.ensure_future(self._note())
        self._notes.add(note)
        note.add_done_callback(self._noted)

    def _noted(self, note: asyncio.Future[None]) -> None:
        self._notes.discard(note)
        if not note.cancelled() and (error := note.exception()) is not None:
            log.warning("draft not stored", error=str(error))
