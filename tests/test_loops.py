"""Whole loops: a strict stand-in of the platform -> webhook -> core -> scripted model -> what people see there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest

from adapters.lanying import LanyingAdapter
from adapters.telegram import TelegramAdapter
from bot.adapter import Request, Turn
from bot.app import Magpie
from bot.registry import Configured
from bot.testing import AdapterPromises, ScriptedModel, running
from tests.adapters import lanying_server as lanying
from tests.adapters.lanying_server import ANN, BOT, GROUP, LanyingServer
from tests.adapters.telegram_server import Refusal, TelegramServer, flood

SECRET = "hook-secret"
LANYING = {
    "app_id": lanying.APP,
    "bot_user_id": str(BOT),
    "admin_token": lanying.TOKEN,
    "callback_signature": lanying.SIGNATURE,
}


async def slowly(turns: Sequence[Turn]) -> AsyncIterator[str]:
    """Answer in words, slowly enough to be seen growing."""
    await asyncio.sleep(0.3)
    yield "You"
    for word in f"said {turns[-1].content} and here is the rest of it".split():
        yield f" {word}"
        await asyncio.sleep(0.15)


ANSWER = "and here is the rest of it"
LONG = "\n\n".join(f"Paragraph {n} 段落：**bold** and `code` & <tag>. " + "字 word " * 60 for n in range(40))


class TestTelegramPromises(AdapterPromises):
    adapter = TelegramAdapter
    settings = {"bot_token": "123456:AAtest-token", "webhook_secret": SECRET}

    def text_message(self) -> Request:
        body = b"""{"update_id": 7, "message": {"message_id": 1, "date": 1, "chat": {"id": 5, "type": "private"},
            "from": {"id": 5, "is_bot": false, "first_name": "Ann"}, "text": "hello"}}"""
        return Request(headers={"x-telegram-bot-api-secret-token": SECRET}, body=body)


class TestLanyingPromises(AdapterPromises):
    adapter = LanyingAdapter
    settings = LANYING

    def text_message(self) -> Request:
        body = f"""{{"appId": "{lanying.APP}", "msgId": "6597711675240", "type": "CHAT", "ctype": "TEXT",
            "content": "hello", "from": {{"uid": "{ANN}"}}, "to": {{"uid": "{BOT}"}}, "ext": ""}}"""
        return Request(headers={"signature": lanying.SIGNATURE}, body=body.encode())


@contextlib.asynccontextmanager
async def at_telegram(model: ScriptedModel) -> AsyncIterator[tuple[Magpie, TelegramServer]]:
    async with TelegramServer() as server:
        given = {"bot_token": server.token, "webhook_secret": SECRET, "api_base": server.base}
        instance = Configured("telegram", TelegramAdapter, TelegramAdapter.Settings.model_validate(given))
        async with running(instance, model=model) as magpie:
            url = f"http://127.0.0.1:{magpie.port}/webhooks/telegram"
            server.webhook = {"url": url, "secret_token": SECRET}
            yield magpie, server


@contextlib.asynccontextmanager
async def at_lanying(model: ScriptedModel) -> AsyncIterator[tuple[str, LanyingServer]]:
    async with LanyingServer() as server:
        settings = LanyingAdapter.Settings.model_validate(LANYING | {"api_base": server.url})
        async with running(Configured("lanying", LanyingAdapter, settings), model=model) as magpie:
            yield f"http://127.0.0.1:{magpie.port}/webhooks/lanying", server


@pytest.mark.parametrize("drafts", [True, False])
async def test_telegram_private_chat_grows_and_ends_whole(drafts: bool) -> None:
    async with at_telegram(ScriptedModel(slowly)) as (_, server):
        server.drafts = drafts
        room = server.private("Ann")
        await server.say(room, "hello")
        await server.until(lambda: server.shown(room) and server.shown(room)[-1].text.endswith(ANSWER))
        (message,) = server.shown(room)
        assert message.text == f"You said hello {ANSWER}"
        steps = [text for draft in room.drafts.values() for text in draft] if drafts else message.history
        assert len(steps) > 1
        assert room.actions


async def test_telegram_group_answers_when_it_is_meant_and_remembers_each_member() -> None:
    model = ScriptedModel()
    async with at_telegram(model) as (magpie, server):
        adapter = magpie.adapters["telegram"]
        assert isinstance(adapter, TelegramAdapter)
        assert adapter.learning is not None
        await adapter.learning
        room = server.group("Friends")
        await server.say(room, "just chatting")
        await server.say(room, f"@{adapter.username} what is this?", by=11)
        await server.until(lambda: server.shown(room))
        assert [turn.content for turn in model.asked[0][1:]] == ["what is this?"]
        assert server.shown(room)[0].reply_to is not None
        await server.say(room, f"/help@{adapter.username}", by=12)
        await server.until(lambda: len(server.shown(room)) == 2)
        assert "/reset" in server.shown(room)[1].text
        assert len(model.asked) == 1


async def test_telegram_long_answers_are_complete_on_several_messages() -> None:
    async with at_telegram(ScriptedModel(lambda turns: [LONG])) as (_, server):
        room = server.private("Ann")
        await server.say(room, "long please")
        await server.until(lambda: "Paragraph 39" in "".join(message.text for message in server.shown(room)), 60)
        text = " ".join(message.text for message in server.shown(room))
        assert len(server.shown(room)) > 1
        assert text.count("Paragraph") == 40
        assert "<tag>" in text
        assert "**" not in text


async def test_telegram_flood_control_and_redelivery() -> None:
    model = ScriptedModel()
    async with at_telegram(model) as (_, server):
        room = server.private("Ann")
        server.script("sendMessage", flood(1), Refusal(500, "Internal Server Error"))
        update = await server.say(room, "hello")
        assert {await server.deliver(update) for _ in range(3)} == {200}
        await server.until(lambda: server.shown(room))
        await asyncio.sleep(0.1)
        assert [message.text for message in server.shown(room)] == ["You said: hello"]
        assert len(model.asked) == 1


async def test_telegram_group_that_moves_keeps_its_memory() -> None:
    model = ScriptedModel()
    async with at_telegram(model) as (magpie, server):
        room = server.group("Friends", kind="group")
        await server.say(room, "/start")
        await server.until(lambda: server.shown(room))
        name = magpie.adapters["telegram"].username  # type: ignore[attr-defined]
        await server.say(room, f"@{name} remember me")
        await server.until(lambda: len(server.shown(room)) == 2)
        new = server.migrate(room)
        moved = server.written(room, "", migrate_to_chat_id=new.id)
        assert await server.deliver(moved) == 200
        await server.say(new, f"@{name} who am I?")
        await server.until(lambda: server.shown(new))
        assert "remember me" in [turn.content for turn in model.asked[-1]]


async def test_telegram_stop_button_ends_the_draft() -> None:
    async with at_telegram(ScriptedModel(slowly)) as (_, server):
        room = server.private("Ann")
        await server.say(room, "hello")
        await server.until(lambda: room.drafts)
        assert await server.press_stop(room) == 200
        await server.until(lambda: len(server.shown(room)) == 2)
        answer, confirmation = (message.text for message in server.shown(room))
        assert answer.startswith("You")
        assert ANSWER not in answer
        assert confirmation == "Stopped."


async def test_lanying_private_chat_appends_and_ends_whole() -> None:
    async with at_lanying(ScriptedModel(slowly)) as (url, server):
        assert await server.deliver(url, server.callback("hello")) == 200
        await server.until(lambda: any(text.endswith(ANSWER) for text in server.texts()))
        assert server.texts() == [f"You said hello {ANSWER}"]
        kinds = [body["content_type"] for body in server.sent]
        assert 11 in kinds  # appended
        assert kinds[-1] == 12  # replaced by the full text in the end
        assert len(server.receipts) == 1


async def test_lanying_redelivery_order_and_forgery() -> None:
    model = ScriptedModel()
    async with at_lanying(model) as (url, server):
        first = server.callback("one")
        await asyncio.gather(*(server.deliver(url, first) for _ in range(5)))
        await server.deliver(url, server.callback("two"))
        assert await server.deliver(url, server.callback("three"), signature="forged") == 401
        await server.until(lambda: any("two" in text for text in server.texts()))
        assert server.texts() == ["You said: one", "You said: two"]
        assert len(model.asked) == 2


async def test_lanying_group_mention_and_options() -> None:
    model = ScriptedModel()
    async with at_lanying(model) as (url, server):
        await server.deliver(url, server.callback("chatter", group=GROUP))
        await server.deliver(url, server.callback("hi", group=GROUP, mention=[str(BOT), BOT]))
        await server.until(lambda: bool(server.texts(GROUP)))
        assert server.texts(GROUP) == ["You said: hi"]
        await server.deliver(url, server.callback("remember 42", ext='{"ai": {"ai_generate": false}}'))
        await server.deliver(url, server.callback("what?"))
        await server.until(lambda: bool(server.texts()))
        assert "remember 42" in [turn.content for turn in model.asked[-1]]
        await server.deliver(url, server.callback("afresh", ext='{"lanying_connector": {"reset_prompt": true}}'))
        await server.until(lambda: len(server.texts()) == 2)
        assert [turn.content for turn in model.asked[-1][1:]] == ["afresh"]


async def test_lanying_business_errors_inside_200_are_survived() -> None:
    async with at_lanying(ScriptedModel()) as (url, server):
        server.faults.extend([lanying.Fault(code=20000), lanying.Fault(code=716)])
        await server.deliver(url, server.callback("hello"))
        await server.until(lambda: bool(server.texts()))
        await asyncio.sleep(0.1)
        assert server.texts() == ["You said: hello"]
