"""Batches: gathered, in order, and nobody pays for another's mistake."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from bot.errors import StoreUnavailable
from bot.store.batch import GROUP, Batch


class Database:
    """Doubles numbers once it is let. Odd values are refused, negative ones fail alone, zero breaks the connection."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()

    async def run(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(numbers))
        await self.open.wait()
        if 0 in numbers:
            raise StoreUnavailable("away")
        if any(number % 2 for number in numbers):
            raise ValueError("odd")
        return [KeyError(number) if number < 0 else 2 * number for number in numbers]


async def ask(database: Database, *numbers: int) -> list[int | BaseException]:
    """Ask for all, the first in a batch of its own."""
    batch = Batch(database.run)
    tasks = [asyncio.create_task(batch.do(number)) for number in numbers]
    while not database.batches:
        await asyncio.sleep(0)
    database.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await batch.drain()
    return results


async def test_what_comes_meanwhile_is_done_together_and_in_order() -> None:
    database = Database()
    numbers = range(2, 2 * GROUP + 2 * 100, 2)
    assert await ask(database, *numbers) == [2 * number for number in numbers]
    assert [number for batch in database.batches for number in batch] == list(numbers)
    assert max(map(len, database.batches)) == GROUP
    assert len(database.batches) <= 3


async def test_a_refused_value_fails_its_caller_only() -> None:
    results = await ask(Database(), 2, 4, 5, 6, -8)
    assert [results[n] for n in (0, 1, 3)] == [4, 8, 12]
    assert isinstance(results[2], ValueError)
    assert isinstance(results[4], KeyError)


async def test_nobody_queues_up_before_a_database_that_is_away() -> None:
    database = Database()
    batch = Batch(database.run)
    first = asyncio.create_task(batch.do(0))
    while not database.batches:
        await asyncio.sleep(0)
    others = [asyncio.create_task(batch.do(2)) for _ in range(3)]
    await asyncio.sleep(0)
    database.open.set()
    for task in (first, *others):
        with pytest.raises(StoreUnavailable):
            await task
    assert database.batches == [[0]]
    assert await batch.do(2) == 4


async def test_a_caller_that_left_is_not_missed() -> None:
    database = Database()
    batch = Batch(database.run)
    gone, stays = asyncio.create_task(batch.do(2)), asyncio.create_task(batch.do(4))
    while not database.batches:
        await asyncio.sleep(0)
    gone.cancel()
    database.open.set()
    assert await stays == 8
