"""Held requests: platforms and apps that want the answer in the response to their own request.

The one who writes the answer publishes it, the one who holds the request listens; they may be different replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator

import msgspec

from bot.adapter import AnyAdapter, Capabilities, Chat, Page, Post, Reply, State, Subscription
from bot.errors import StoreUnavailable
from bot.store import Store
from bot.texts import TEXTS, say

PIECE = 1000  # characters in one published frame; in the worst case (control characters) six bytes each
ACK_WITHIN = 1.0  # seconds in which whoever holds the request says that the page went into the response
STREAM_EVERY = 0.04  # seconds between two pieces of a streamed answer
RECALL_EVERY = 5.0  # seconds of silence after which the store is asked: what is published may get lost


class Frame(msgspec.Struct, omit_defaults=True):
    """A piece of an answer, on its way to who holds the request."""

    messages: tuple[str, ...] = ()
    delta: str = ""  # what was written since the last one
    text: str = ""  # a piece of the finished answer
    done: bool = False  # the last piece
    size: int = 0  # with the last piece: characters of the whole
    failure: str = ""


def _topic(conversation: str) -> str:
    return f"answer/{hashlib.sha256(conversation.encode()).hexdigest()[:32]}"


class Held:
    """A request that waits for its answer. Implements `bot.adapter.Answer`; use as `async with`."""

    def __init__(self, store: Store, instance: str, conversation: str, message: str, language: str) -> None:
        self._store = store
        self._state = store.state(instance)
        self._conversation = conversation
        self._message = message
        self._language = language
        self._ear: Subscription = self._state.subscribe(_topic(conversation))
        self._reply: Reply | None = None
        self._text = ""

    async def __aenter__(self) -> Held:
        await self._ear.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._ear.__aexit__(*exc)

    def refuse(self, failure: str) -> None:
        """Settle the answer at once."""
        self._reply = Reply(say(failure, self._language), failure)

    async def recall(self) -> None:
        """Look whether the answer was given before (a redelivery, or a retry after a lost connection)."""
        outcome, reason, turn = await self._store.answer(self._conversation, self._message)
        failure = reason if outcome in ("failed", "refused") else ""
        if turn is not None:
            self._reply = Reply(turn.content, failure)
        elif outcome:
            self._reply = Reply(say(reason, self._language) if reason in TEXTS else "", failure)

    async def wait(self, seconds: float) -> Reply | None:
        try:
            async with asyncio.timeout(seconds):
                async for _ in self.deltas():
                    pass
        except TimeoutError:
            return None
        return self._reply

    async def deltas(self) -> AsyncIterator[str]:
        while self._reply is None:
            frame = await self._hear()
            if frame is None:
                await self._look()
            elif self._message in frame.messages:
                self._text += frame.text
                if frame.done and len(self._text) == frame.size:
                    self._reply = Reply(self._text, frame.failure)
                elif frame.delta:
                    yield frame.delta

    async def _hear(self) -> Frame | None:
        """Return the next frame, None when nobody says anything for a while."""
        try:
            async with asyncio.timeout(RECALL_EVERY):
                return msgspec.json.decode(await anext(self._ear), type=Frame)
        except TimeoutError:
            return None

    async def _look(self) -> None:
        with contextlib.suppress(StoreUnavailable):  # we go on listening
            await self.recall()

    async def taken(self) -> None:
        """Tell the writer that the page is in the response, so that it is not posted as well."""
        if self._reply is not None:
            await self._state.publish(_topic(self._conversation) + "/taken", self._message)


class HeldPoster:
    """Posts to who holds the request; what nobody takes goes out through the adapter."""

    def __init__(self, adapter: AnyAdapter, state: State, conversation: str, messages: tuple[str, ...]) -> None:
        self._adapter = adapter
        self._state = state
        self._topic = _topic(conversation)
        self._messages = messages
        self.can: Capabilities = msgspec.structs.replace(adapter.can, edit_every=STREAM_EVERY)

    async def begin(self, chat: Chat, page: Page) -> str:
        await self._publish(*(Frame(self._messages, delta=piece) for piece in _pieces(page.text)))
        return "held"

    async def edit(self, chat: Chat, post: Post, page: Page, last: bool) -> str:
        if page.text.startswith(post.shown):
            added = page.text[len(post.shown) :]
            await self._publish(*(Frame(self._messages, delta=piece) for piece in _pieces(added)))
        return await self.send(chat, page) if last else post.id

    async def send(self, chat: Chat, page: Page) -> str:
        *pieces, last = _pieces(page.text) or [""]
        frames = [Frame(self._messages, text=piece) for piece in pieces]
        async with self._state.subscribe(self._topic + "/taken") as ear:
            await self._publish(
                *frames, Frame(self._messages, text=last, done=True, size=len(page.text), failure=page.failure)
            )
            try:
                async with asyncio.timeout(ACK_WITHIN):
                    async for message in ear:
                        if message in self._messages:
                            return "held"
            except TimeoutError:
                pass
        return await self._adapter.send(chat, page)

    async def typing(self, chat: Chat) -> None:
        await self._adapter.typing(chat)

    async def _publish(self, *frames: Frame) -> None:
        for frame in frames:
            await self._state.publish(self._topic, msgspec.json.encode(frame).decode())


def _pieces(text: str) -> list[str]:
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
