"""Lanes: who works on what, and what is left when it ended."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from bot import metrics
from bot.adapter import Chat, Message
from bot.app import Magpie
from bot.testing import RecordingAdapter, ScriptedModel, call, running, signed


def busy() -> float:
    (metric,) = metrics.WRITING.collect()
    return float(metric.samples[0].value)


def recorder(magpie: Magpie) -> RecordingAdapter:
    adapter = magpie.adapters["recording"]
    assert isinstance(adapter, RecordingAdapter)
    return adapter


async def test_the_next_message_may_come_before_the_end_is_noticed() -> None:
    """The lease is given back in the store a moment before the task of that lane is done."""
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
    before = busy()
    async with running(model=ScriptedModel(), user_messages_per_minute=0) as magpie:
        finish = magpie.store.finish

        async def finish_then_receive(*args: Any) -> Any:
            lane = await finish(*args)
            if len(shown) < 20:
                await magpie.dispatcher.accept("recording", [Message(str(len(shown)), Chat("c"), "u", "hi")])
            return lane

        shown = recorder(magpie).shown.setdefault("c", [])
        magpie.store.finish = finish_then_receive  # type: ignore[method-assign, assignment]
        await magpie.dispatcher.accept("recording", [Message("first", Chat("c"), "u", "hi")])
        await recorder(magpie).until(lambda: len(shown) == 20 and not magpie.dispatcher.busy)
        assert busy() == before
    assert not problems


async def test_busy_conversations_are_counted() -> None:
    before = busy()
    async with running(model=ScriptedModel(lambda _: ["yes"])) as magpie:
        writing: list[float] = []
        ask = magpie.model.ask
        magpie.model.ask = lambda *args: (writing.append(busy()), ask(*args))[1]  # type: ignore[method-assign, func-returns-value]
        await call(magpie, "recording", signed(Message("1", Chat("c"), "u", "hi")))
        await recorder(magpie).until(lambda: bool(recorder(magpie).shown) and not magpie.dispatcher.busy)
    assert writing == [before + 1]


async def test_a_caller_that_hangs_up_in_its_body_is_no_crash() -> None:
    async with running() as magpie:
        with structlog.testing.capture_logs() as logs:
            _, writer = await asyncio.open_connection("127.0.0.1", magpie.port)
            writer.write(b"POST /webhooks/recording HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            await writer.drain()
            writer.close()
            await recorder(magpie).until(lambda: bool(logs))
    assert [(line["event"], line["log_level"]) for line in logs[:1]] == [("rejected", "warning")]
