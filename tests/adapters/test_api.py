"""The HTTP API: what an app's server sees, whole or streamed, and every kind of mistake."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Sequence

import aiohttp
import pytest

from adapters.api import ApiAdapter, ApiSettings
from bot import errors
from bot.adapter import Request, Turn
from bot.app import Magpie
from bot.config import Secret
from bot.registry import Configured
from bot.testing import AdapterPromises, ScriptedModel, running

TOKEN = "app-token"
API = Configured("api", ApiAdapter, ApiSettings(token=Secret(TOKEN)))
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


class TestPromises(AdapterPromises):
    adapter = ApiAdapter
    settings = {"token": TOKEN}

    def text_message(self) -> Request:
        body = b'{"user": "u1", "message": "hi", "id": "m1"}'
        return Request(headers={"authorization": f"Bearer {TOKEN}"}, body=body)


async def post(magpie: Magpie, body: object, **headers: str) -> tuple[int, dict[str, object]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = f"http://127.0.0.1:{magpie.port}/api/chat"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=io.BytesIO(data), headers=HEADERS | headers) as answer,
    ):
        return answer.status, await answer.json()


async def events(magpie: Magpie, body: object) -> list[dict[str, object]]:
    url = f"http://127.0.0.1:{magpie.port}/api/chat"
    headers = HEADERS | {"Accept": "text/event-stream"}
    async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as answer:
        assert answer.content_type == "text/event-stream"
        lines = (await answer.text()).split("\n\n")
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


async def test_a_question_is_answered_in_the_response() -> None:
    async with running(API) as magpie:
        assert await post(magpie, {"user": "u1", "message": "hi", "id": "a"}) == (
            200,
            {"id": "a", "conversation": "default", "reply": "You said: hi"},
        )
        status, body = await post(magpie, {"user": "u1", "message": "hi", "conversation": "work"})
        assert status == 200
        assert body["conversation"] == "work"
        assert body["id"]


async def test_conversations_of_a_user_are_separate() -> None:
    async with running(API) as magpie:
        assert isinstance(magpie.model, ScriptedModel)
        for conversation in ("a", "b", "a"):
            await post(magpie, {"user": "u", "message": "hi", "conversation": conversation})
        assert [len(turns) for turns in magpie.model.asked] == [2, 2, 4]


async def test_the_reply_comes_as_it_is_written() -> None:
    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        for word in ("one ", "two ", "three"):
            yield word
            await asyncio.sleep(0.1)

    async with running(API, model=ScriptedModel(script)) as magpie:
        found = await events(magpie, {"user": "u", "message": "hi", "id": "m"})
        assert found[-1] == {"done": True, "reply": "one two three", "id": "m", "conversation": "default"}
        assert "".join(str(event["delta"]) for event in found[:-1]) == "one two three"
        assert len(found) >= 3


async def test_a_retry_with_the_same_id_is_not_paid_for_again() -> None:
    async with running(API) as magpie:
        assert isinstance(magpie.model, ScriptedModel)
        question = {"user": "u", "message": "hi", "id": "same"}
        answers = await asyncio.gather(*(post(magpie, question) for _ in range(5)))
        assert {(status, body["reply"]) for status, body in answers} == {(200, "You said: hi")}
        assert (await events(magpie, question))[-1]["reply"] == "You said: hi"
        assert len(magpie.model.asked) == 1


async def test_an_answer_whose_caller_hung_up_is_there_for_the_retry() -> None:
    gate = asyncio.Event()

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        await gate.wait()
        yield "late"

    async with running(API, model=ScriptedModel(script)) as magpie:
        question = {"user": "u", "message": "hi", "id": "same"}
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(post(magpie, question), 0.2)
        gate.set()
        status, body = await post(magpie, question)
        assert (status, body["reply"]) == (200, "late")


async def test_long_replies_are_whole() -> None:
    text = "# 标题\n\n" + "字" * 30_000 + "\n\n```python\nprint(1)\n```"
    async with running(API, model=ScriptedModel(lambda turns: [text])) as magpie:
        assert (await post(magpie, {"user": "u", "message": "hi"}))[1]["reply"] == text
        assert (await events(magpie, {"user": "u", "message": "hi"}))[-1]["reply"] == text


@pytest.mark.parametrize(
    ("failure", "status"),
    [(errors.Overloaded, 503), (errors.BadKey, 503), (errors.RateLimited, 429), (errors.ContentRefused, 400)],
)
async def test_failures_of_the_model_are_errors(failure: type[errors.ModelError], status: int) -> None:
    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        raise failure("detail")
        yield ""

    async with running(API, model=ScriptedModel(script)) as magpie:
        got, body = await post(magpie, {"user": "u", "message": "hi"})
        assert got == status
        error = body["error"]
        assert isinstance(error, dict)
        assert error["code"] == failure.code
        assert error["message"]
        assert "error" in (await events(magpie, {"user": "u", "message": "hi"}))[-1]


async def test_limits_are_429() -> None:
    async with running(API, user_messages_per_minute=2) as magpie:
        statuses = [(await post(magpie, {"user": "u", "message": "hi"}))[0] for _ in range(5)]
        assert statuses == [200, 200, 429, 429, 429]
        assert (await post(magpie, {"user": "another", "message": "hi"}))[0] == 200
    async with running(API, user_tokens_per_day=3) as magpie:
        assert (await post(magpie, {"user": "u", "message": "hi"}))[0] == 200
        status, body = await post(magpie, {"user": "u", "message": "hi"})
        assert (status, body["error"]["code"]) == (429, "user_quota")  # type: ignore[index]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        ({"message": "hi"}, 400),
        ({"user": "", "message": "hi"}, 400),
        ({"user": 5, "message": "hi"}, 400),
        ({"user": "u"}, 400),
        ({"user": "u", "message": "   "}, 400),
        ({"user": "u", "message": ["hi"]}, 400),
        ({"user": "u" * 201, "message": "hi"}, 400),
        ({"user": "u", "message": "x" * 100_001}, 413),
        (b"x" * (4 * 1024 * 1024 + 1), 413),
    ],
    ids=range(12),
)
async def test_mistakes_are_told(body: object, status: int) -> None:
    async with running(API) as magpie:
        got, answer = await post(magpie, body)
        assert got == status
        assert set(answer["error"]) == {"code", "message"}  # type: ignore[call-overload]


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"])
async def test_strangers_are_refused(value: str) -> None:
    async with running(API) as magpie:
        status, body = await post(magpie, {"user": "u", "message": "hi"}, Authorization=value)
        assert status == 401
        assert body["error"]["code"] == "unauthorized"  # type: ignore[index]
        assert await magpie.store.counts() == {"waiting": 0, "parked": 0, "due": 0}


async def test_other_methods_are_405() -> None:
    async with (
        running(API) as magpie,
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{magpie.port}/api/chat", headers=HEADERS) as answer,
    ):
        assert answer.status == 405


async def test_commands_work_as_everywhere() -> None:
    async with running(API) as magpie:
        status, body = await post(magpie, {"user": "u", "message": "/help"})
        assert status == 200
        assert "/reset" in str(body["reply"])
