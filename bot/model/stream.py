"""One answer being read: bytes -> events -> text for the person. Silence, breaks and refusals become ModelErrors."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine

import msgspec

from bot.errors import BadRequest, ContentRefused, Interrupted, ModelError, TimedOut
from bot.model.contract import Usage, tokens_of, utf8_size
from bot.model.failures import Broken, Fault
from bot.model.wire import Reader, Source

GRACE = 2.0  # seconds to wait for the usage and the end of the connection once the answer is complete
LONGEST_EVENT = 16 * 1024 * 1024  # bytes
THINK, THOUGHT = "<think>", "</think>"


class EmptyAnswer(Interrupted):
    """The answer ended as if complete, without a word."""


class Stream:
    """Reads one response.

    `timeout`: seconds until the first token, counted from `since` (of the loop's clock), and between tokens.
    `prompt` estimates the request's size in tokens. `classify` turns an error event into a ModelError.
    """

    def __init__(
        self,
        response: Source,
        reader: Reader,
        *,
        timeout: float,
        since: float,
        prompt: Callable[[], int],
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
        self._watch = Watch(response.close)
        self._size = 0  # bytes of text received
        self._shown = False
        self._failure: ModelError | None = None  # met behind text that was handed out
        self._over = False

    @property
    def finish(self) -> str:
        """Why the answer ended, "" when it has not."""
        return self._reader.finish

    def usage(self) -> Usage:
        """Return what the server reported, else an estimate."""
        reported = self._reader.usage
        return reported or Usage("", self._prompt(), 0, tokens_of(self._size + self._reader.unseen), True)

    async def read(self) -> str:
        """Return the next text, all that has come, and "" at the end of a complete answer. Raises ModelError."""
        if self._failure is not None:
            raise self._failure
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
        self._watch.stop()
        await self._response.close()

    async def _next(self, deadline: float) -> bytes:
        self._watch.set(deadline)
        try:
            return await self._response.read()
        except Broken as error:
            if self._reader.finish:
                return b""
            if self._watch.fired:
                raise TimedOut(f"silent for {self._timeout:g} s") from None
            raise Interrupted(f"the connection broke in the middle ({error})") from None
        finally:
            self._watch.rest()

    def _take(self, data: bytes) -> str:
        """Return the text that is complete with `data`; b"" is the end."""
        text, failure = self._parse(data)
        self._over = not data
        text = self._show(text)
        failure = failure or (self._verdict(text) if self._over else None)
        if failure is None:
            return text
        if text and self._shown:
            self._failure = failure  # the person gets what came before it
            return text
        raise failure  # nothing was seen yet: better all of it, once more

    def _parse(self, data: bytes) -> tuple[str, ModelError | None]:
        text = ""
        try:
            for event in self._events(data):
                text += self._reader.event(event)
        except ModelError as error:
            return text, error
        except Fault as fault:
            return text, self._classify(fault)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return text, Interrupted("malformed event")
        return text, None

    def _events(self, data: bytes) -> list[bytes]:
        block = self._rest + data if self._rest else data
        if self._whole is None and block.strip():
            self._whole = block.lstrip().startswith(b"{")
        lines = [block] if self._whole else block.split(b"\n")
        self._rest = lines.pop() if data else b""
        if len(self._rest) > LONGEST_EVENT:
            raise Interrupted("an event is too large")
        return lines if self._whole else [line[5:].strip() for line in lines if line.startswith(b"data:")]

    def _show(self, text: str) -> str:
        if text:
            self._size += utf8_size(text)
            text = self._opening.show(text)
        return text + self._opening.end() if self._over else text

    def _verdict(self, text: str) -> ModelError | None:
        """Judge an answer by its end; `text` is the last of it."""
        reader = self._reader
        if reader.refused:
            return ContentRefused("refused by the model or its content filter")
        if not reader.finish:
            return Interrupted("the stream ended without a finish reason")
        if self._shown or text:
            return None
        if reader.finish == "length":
            return BadRequest("the token limit was used up before the first visible word")
        return EmptyAnswer("an empty answer")


class Watch:
    """Ends a read that takes too long, by `end`.

    One timer serves the whole answer: a new one for each read (`asyncio.timeout`) would cost more than the parsing.
    """

    def __init__(self, end: Callable[[], Coroutine[None, None, None]]) -> None:
        self.fired = False
        self._end = end
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    def set(self, deadline: float) -> None:
        """Fire at this time of the loop's clock."""
        self._deadline = deadline
        if self._timer is None or deadline < self._timer.when():
            self.stop()
            self._timer = asyncio.get_running_loop().call_at(deadline, self._look)

    def rest(self) -> None:
        """Do not fire until the next `set`."""
        self._deadline = math.inf

    def stop(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._deadline > asyncio.get_running_loop().time():
            if self._deadline < math.inf:
                self.set(self._deadline)
            return
        self.fired = True
        self._ending = asyncio.create_task(self._end())


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
