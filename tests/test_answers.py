"""Held requests when what is published gets lost: looked up, and never an answer with a gap."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from bot.adapter import Reply, Turn
from bot.answers import Frame, Held, _topic
from bot.errors import StoreUnavailable
from bot.store import Entry, Lane, Outcome, Store, open_store
from tests.test_store import arrival, leased


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    monkeypatch.setattr("bot.answers.RECALL_EVERY", 0.02)
    store = open_store("sqlite:///:memory:")
    await store.open()
    yield store
    await store.close()


async def answered(store: Store, lane: Lane, text: str) -> None:
    await store.complete(lane, "me", [Entry(Turn("assistant", text), 1)])
    await store.finish(lane, "me", [Outcome("m1", "answered", turn=lane.seq)])


async def publish(store: Store, lane: Lane, *frames: Frame) -> None:
    for frame in frames:
        await store.state("it").publish(_topic(lane.conversation), msgspec.json.encode(frame).decode())


async def test_an_answer_nobody_heard_of_is_looked_up(store: Store) -> None:
    lane = await leased(store, arrival(1))
    async with Held(store, "it", lane.conversation, "m1", "en") as held:
        waiting = asyncio.create_task(held.wait(20))
        await asyncio.sleep(0)
        await answered(store, lane, "whole")
        assert await waiting == Reply("whole")


async def test_an_answer_with_a_gap_is_looked_up(store: Store) -> None:
    lane = await leased(store, arrival(1))
    async with Held(store, "it", lane.conversation, "m1", "en") as held:
        await publish(store, lane, Frame(("m1",), text="wh"), Frame(("m1",), text="e", done=True, size=5))
        await answered(store, lane, "whole")
        assert await held.wait(20) == Reply("whole")


async def test_looking_up_goes_on_while_the_store_is_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = await leased(store, arrival(1))
    failed = asyncio.Event()

    async def away(*_: object) -> tuple[str, str, None]:
        failed.set()
        raise StoreUnavailable("away")

    async with Held(store, "it", lane.conversation, "m1", "en") as held:
        with monkeypatch.context() as patch:
            patch.setattr(store, "answer", away)
            waiting = asyncio.create_task(held.wait(20))
            await failed.wait()
        await publish(store, lane, Frame(("m1",), text="whole", done=True, size=5))
        assert await waiting == Reply("whole")
