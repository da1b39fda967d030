"""A lock that one replica holds at a time, in the state that all of them share."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from bot.adapter import State

LIVES = 30.0  # seconds until a lock is free whose holder died
RENEW = LIVES / 3


class Lease:
    """One replica's view of a lock."""

    def __init__(self, state: State, key: str) -> None:
        self._state = state
        self._key = key
        self._mine = secrets.token_hex(8)

    async def during(self, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Wait for the lock and do the work while holding it. False when the lock was lost before the work was done."""
        while not await self._swap(None, self._mine):  # noqa: ASYNC110 - nobody tells when it gets free
            await asyncio.sleep(RENEW)
        tasks = [asyncio.create_task(work()), asyncio.create_task(self._keep())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            return tasks[0] in done
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._swap(self._mine, None)

    async def _keep(self) -> None:
        """Renew the lock until somebody else has it."""
        while await self._swap(self._mine, self._mine):  # noqa: ASYNC110
            await asyncio.sleep(RENEW)

    async def _swap(self, old: str | None, new: str | None) -> bool:
        return await self._state.swap(self._key, old, new, LIVES)
