"""One answer, from the first attempt to the last word: tries, keys, fallback models.

Until the first visible character everything may be tried again; after it nothing is, and a failure is raised.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec
import structlog

from bot.errors import (
    BadKey,
    ContentRefused,
    Interrupted,
    ModelError,
    NoPictures,
    Overloaded,
    QuotaSpent,
    RateLimited,
    TooLong,
)
from bot.model.contract import Usage
from bot.model.stream import EmptyAnswer, Stream
from bot.model.wire import Question

if TYPE_CHECKING:
    from bot.model.client import OpenAIModel

TRIES = 3  # of one model, for failures that pass by themselves
TRIES_EMPTY = 2  # an answer without a word is paid for: once more, no oftener
BACKOFF = 0.5  # seconds before the second try, doubled for the next
LONGEST_PAUSE = 20.0  # seconds; a longer Retry-After is not waited for
PAUSE_WITH_FALLBACK = 2.0  # seconds; rather another model than a longer pause
FINAL = (BadKey, QuotaSpent, TooLong, NoPictures, ContentRefused)  # another model would not help

log = structlog.get_logger()


class Answer:
    """A `Completion` of an OpenAI-compatible server."""

    def __init__(self, model: OpenAIModel, question: Question) -> None:
        self.usage = Usage()
        self.finish = ""
        self._model = model
        self.question = question
        self._stream: Stream | None = None
        self._closed = False
        self._attempts = 0
        self._retry_until = 0.0

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield the text as it comes. Raises ModelError."""
        try:
            text = await self._first()
            while text:
                yield text
                text = await self._next()
        except ModelError:
            if not self._closed:
                raise
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Stop: close the connection, settle the usage. The iteration ends, also in another task."""
        self._closed = True
        await self._settle()

    async def _next(self) -> str:
        """Return the next text, "" at the end."""
        stream = self._stream
        if stream is None:  # closed meanwhile
            return ""
        try:
            text = await stream.read()
        except ModelError as error:
            self._report(error)
            raise
        if not text and not self._closed:
            self.finish = stream.finish
        return text

    async def _first(self) -> str:
        """Return the first visible text of the first model that gives one; its stream is left open."""
        self._retry_until = time.monotonic() + self._model.settings.timeout
        models = self._model.order()
        failures: list[ModelError] = []
        for name in models:
            self.question = msgspec.structs.replace(self.question, model=name)
            self.usage.model = name
            try:
                return await self._ask(name, LONGEST_PAUSE if name == models[-1] else PAUSE_WITH_FALLBACK)
            except FINAL:
                raise
            except ModelError as error:
                failures.append(error)
        raise failures[0]

    async def _ask(self, name: str, longest_pause: float) -> str:
        """Ask one model until it answers or trying again is no use."""
        keys = self._model.keys
        bad: set[str] = set()
        failures: list[ModelError] = []
        while not self._closed:
            key, rest = keys.pick(name)
            await self._pause(rest, longest_pause, failures)
            try:
                return await self._once(name, key)
            except (BadKey, QuotaSpent):
                keys.refuse(key)
                bad.add(key)
                if bad.issuperset(keys.keys):
                    raise
            except (RateLimited, Overloaded, Interrupted) as error:
                failures.append(error)
                if self._is_enough(name, failures):
                    raise
                pause = max(error.retry_after or 0.0, BACKOFF * 2 ** (len(failures) - 1))
                if isinstance(error, RateLimited):
                    keys.cool(key, name, pause)  # another key goes on at once
                else:
                    await self._pause(pause, longest_pause, failures)
        return ""

    def _is_enough(self, name: str, failures: list[ModelError]) -> bool:
        tries = TRIES_EMPTY if isinstance(failures[-1], EmptyAnswer) else TRIES
        return len(failures) >= tries or self._model.breakers[name].open

    async def _pause(self, seconds: float, longest: float, failures: list[ModelError]) -> None:
        """Wait, a little unevenly; raise instead when that would take too long."""
        if not seconds:
            return
        if seconds > longest or time.monotonic() + seconds > self._retry_until:
            raise failures[-1] if failures else RateLimited("every key rests after a 429", seconds)
        await asyncio.sleep(seconds * random.uniform(1.0, 1.2))  # noqa: S311 (so that not all come back at once)

    async def _once(self, name: str, key: str) -> str:
        """Ask once and return the first visible text."""
        self._attempts += 1
        try:
            self._stream = await self._model.begin(self.question, key)
            if self._closed:
                return ""
            text = await self._stream.read()
        except ModelError as error:
            self._report(error)
            if isinstance(error, Overloaded):
                self._model.breakers[name].failed()
            await self._settle()
            raise
        self._model.breakers[name].worked()
        self._model.keys.works(key, name)
        return text

    async def _settle(self) -> None:
        """Count what the stream cost and let go of it."""
        stream, self._stream = self._stream, None
        if stream is not None:
            self.usage.add(stream.usage())
            await stream.close()

    def _report(self, error: ModelError) -> None:
        if not self._closed:
            log.warning(
                "model failed",
                model=self.question.model,
                attempt=self._attempts,
                error=error.code,
                reason=str(error),
                hint=error.hint,
            )
