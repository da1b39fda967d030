"""An answer while the model writes it: read, stopped, shortened, counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from bot.adapter import Turn
from bot.errors import TooLong
from bot.history import History, Window
from bot.model import Completion, Model, Picture, estimate_tokens
from bot.store import Entry, Lane, Used


class Writing:
    """Lets the model write one answer. What it wrote and cost stays here, however it ends."""

    def __init__(
        self,
        lane: Lane,
        window: Window,
        asked: Sequence[Entry],
        *,
        persona: str = "",
        pictures: Sequence[Picture] = (),
        payer: str = "",
    ) -> None:
        self.lane = lane
        self.window = window
        self.asked = list(asked)
        self.pictures = pictures
        self.persona = persona
        self.payer = payer
        self.finish = ""
        self.model = ""
        self.stopped = False
        self.spent = Used()
        self._parts: list[str] = []
        self._before = 0  # tokens of the prompt before the question, as far as we know
        self._counted = 0  # tokens of the whole prompt, as the API counted them
        self._task: asyncio.Task[object] | None = None

    @property
    def text(self) -> str:
        """What the model has written so far."""
        return "".join(self._parts)

    async def read(self, model: Model, history: History, feed: Callable[[str], None]) -> None:
        """Pass what the model writes on to `feed`. A conversation that is too long is shortened once.

        Raises ModelError, and what `feed` raises.
        """
        try:
            await self._stream(model, feed)
        except TooLong:
            if self._parts or not self.window.turns:
                raise
            history.shrink(self.lane, self.window, self.window.tokens // 3)
            await self._stream(model, feed)

    def stop(self) -> bool:
        """End the answer here, with what there is of it. False when the model is not writing."""
        if self._task is None or self.stopped:
            return False
        self.stopped = True
        self._task.cancel()
        return True

    async def _stream(self, model: Model, feed: Callable[[str], None]) -> None:
        completion = model.ask(self._prompt(), self.pictures, self.payer)
        task = self._task = asyncio.current_task()
        try:
            async for text in completion:
                self._parts.append(text)
                feed(text)
        except asyncio.CancelledError:
            if not self.stopped or task is None:
                raise
            task.uncancel()
        finally:
            self._task = None
            await completion.aclose()
            self._ended(completion)

    def _prompt(self) -> list[Turn]:
        self._before = self.window.tokens + (estimate_tokens(self.persona) if self.persona else 0)
        system = [Turn("system", self.persona)] if self.persona else []
        return [*system, *(kept.turn for kept in self.window.turns), *(entry.turn for entry in self.asked)]

    def _ended(self, completion: Completion) -> None:
        """Add up what it cost: a question that was asked twice was paid for twice."""
        usage, spent = completion.usage, self.spent
        self.finish = completion.finish
        self.model = usage.model
        self._counted = 0 if usage.estimated else usage.prompt
        self.spent = Used(
            prompt=spent.prompt + usage.prompt,
            cached=spent.cached + usage.cached,
            completion=spent.completion + usage.completion,
        )

    def entries(self) -> list[Entry]:
        """Return question and answer as they are written down. What the API counted beats what we estimated."""
        asked = self.asked
        if self._counted and len(asked) == 1 and not self.pictures:
            asked = [Entry(asked[0].turn, max(1, self._counted - self._before))]
        if not self.text:
            return asked
        size = self.spent.completion or estimate_tokens(self.text)
        return [*asked, Entry(Turn("assistant", self.text), size, self.payer, self.model, self.spent)]
