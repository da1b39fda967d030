"""One answer being read: bytes -> events -> text for the person. Silence, breaks and refusals become ModelErrors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from bot.errors import BadRequest, ContentRefused, Interrupted, ModelError, TimedOut
from bot.model.contract import Usage, tokens_of, utf8_size
from bot.model.failures import Broken, Fault
from bot.model.wire import Reader

if TYPE_CHECKING:
    from bot.model.transport import Response

GRACE = 2.0  # seconds to wait for the usage and the end of the connection once the answer is complete
LONGEST_EVENT = 16 * 1024 * 1024  # bytes
THINK, THOUGHT = "<think>", "</think>"


class EmptyAnswer(Interrupted):
    """The answer ended as if complete, without a word."""


class Stream:
    """Reads one response.

    `timeout`: seconds until the first token, counted from `since` (of the loop's clock), and between tokens.
    `prompt`: the request's estimated size in tokens. `classify` turns an error event into a ModelError.
    """

    def __init__(
        self,
        response: Response,
        reader: Reader,
        *,
        timeout: float,
        since: float,
        prompt: int,
        classify: Callable[[Fault], ModelError],
    ) -> None:
        self._response = response
        self._reader = reader
        self._timeout = timeout
        self._since = since
        self._prompt = prompt
        self._classify = classify
        self._rest = b""  # an event whose end has not come yet
        self._whole: bool | None = None  # one JSON object and no events: the server does not stream
        self._opening = Opening()
        self._size = 0  # bytes of text received
        self._shown = False
        self._over = False

    @property
    def finish(self) -> str:
        """Why the answer ended, "" when it has not."""
        return self._reader.finish

    def usage(self) -> Usage:
        """Return what the server reported, else an estimate."""
        reported = self._reader.usage
        return reported or Usage("", self._prompt, 0, tokens_of(self._size + self._reader.unseen), True)

    async def read(self) -> str:
        """Return the next text, all that has come, and "" at the end of a complete answer. Raises ModelError."""
        now = asyncio.get_running_loop().time
        heard = now() if self._size else self._since
        while not self._over:
            received = self._size + self._reader.unseen
            data = await self._next(now() + GRACE if self._reader.finish else heard + self._timeout)
            if text := self._take(data):
                self._shown = True
                return text
            if self._size + self._reader.unseen > received:  # a comment that keeps the connection alive is no token
                heard = now()
        return ""

    async def close(self) -> None:
        """Close the connection, or hand it back when everything was read."""
        self._over = True
        await self._response.close()

    async def _next(self, deadline: float) -> bytes:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._response.read()
        except TimeoutError:
            if self._reader.finish:
                return b""
            raise TimedOut(f"silent for {self._timeout:g} s") from None
        except Broken as error:
            if self._reader.finish:
                return b""
            raise Interrupted(f"the connection broke in the middle ({error})") from None

    def _take(self, data: bytes) -> str:
        """Return the text that is complete with `data`; b"" is the end."""
        try:
            text = self._events(data)
        except Fault as fault:
            raise self._classify(fault) from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise Interrupted("malformed event") from None
        if text:
            self._size += utf8_size(text)
            text = self._opening.show(text)
        if not data:
            self._over = True
            text += self._opening.end()
            self._conclude(text)
        return text

    def _events(self, data: bytes) -> str:
        block = self._rest + data if self._rest else data
        if self._whole is None:
            self._whole = block.lstrip().startswith(b"{")
        lines = [block] if self._whole else block.split(b"\n")
        self._rest = lines.pop() if data else b""
        if len(self._rest) > LONGEST_EVENT:
            raise Interrupted("an event is too large")
        event = self._reader.event
        if self._whole:
            return "".join(map(event, lines))
        return "".join([event(line[5:].strip()) for line in lines if line.startswith(b"data:")])

    def _conclude(self, text: str) -> None:
        reader = self._reader
        if reader.refused:
            raise ContentRefused("refused by the model or its content filter")
        if not reader.finish:
            raise Interrupted("the stream ended without a finish reason")
        if not self._shown and not text:
            if reader.finish == "length":
                raise BadRequest("the token limit was used up before the first visible word")
            raise EmptyAnswer("an empty answer")


class Opening:
    """Keeps white space and a <think> block at the very beginning from the person."""

    def __init__(self) -> None:
        self._held = ""
        self._passed = False

    def show(self, text: str) -> str:
        """Return what may be shown."""
        if self._passed:
            return text
        self._held = (self._held + text).lstrip()
        if self._held.startswith(THINK):
            _, end, after = self._held.partition(THOUGHT)
            self._held = after.lstrip() if end else THINK + self._held[len(THINK) :][-len(THOUGHT) :]
        if THINK.startswith(self._held[: len(THINK)]):  # nothing yet, or perhaps the beginning of a thought
            return ""
        self._passed = True
        return self._held

    def end(self) -> str:
        """Return what was held back although no thought came of it."""
        held, self._held = self._held, ""
        return "" if self._passed or held.startswith(THINK) else held
