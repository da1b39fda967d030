"""Group commit for a database across the network: what is asked for during one batch is done in the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from bot.errors import StoreUnavailable

R = TypeVar("R")
T = TypeVar("T")

GROUP = 256  # requests in one batch at most


class Batch(Generic[R, T]):
    """Gathers requests of one kind and hands them to `run`, one batch at a time and in their order.

    `run` returns a result for each, or the exception that one request gets instead. When it raises a ValueError
    itself, some value cannot be stored: each request of the batch is then tried alone. When it raises StoreUnavailable,
    those who wait for the next batch are told at once, too: nothing piles up before a database that is away.
    """

    def __init__(self, run: Callable[[Sequence[R]], Awaitable[Sequence[T | Exception]]]) -> None:
        self._run = run
        self._waiting: deque[tuple[R, asyncio.Future[T]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def do(self, request: R) -> T:
        """Have a request done. Raises what came of it."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await future

    async def drain(self) -> None:
        """Wait until everything asked for so far is done."""
        if self._worker is not None:
            await self._worker

    async def _work(self) -> None:
        try:
            while self._waiting:
                group = [self._waiting.popleft() for _ in range(min(GROUP, len(self._waiting)))]
                results = await self._results([request for request, _ in group])
                for (_, future), result in zip(group, results, strict=True):
                    _settle(future, result)
        finally:
            self._worker = None

    async def _results(self, requests: Sequence[R]) -> Sequence[T | Exception]:
        try:
            return await self._run(requests)
        except ValueError as error:
            if len(requests) == 1:
                return [error]
            return [(await self._results([request]))[0] for request in requests]
        except StoreUnavailable as error:
            waiting = list(self._waiting)
            self._waiting.clear()
            for _, future in waiting:
                _settle(future, error)
            return [error] * len(requests)
        except Exception as error:  # whatever it is, it belongs to the callers, and the next batch must go on
            return [error] * len(requests)


def _settle(future: asyncio.Future[T], result: T | Exception) -> None:
    if future.done():  # its caller was cancelled
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
