"""The examples run: the Flask page and curl.sh against a running bot; the Android client names what the API names."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from flask import Flask
from werkzeug.serving import make_server

from adapters.api import ApiAdapter, ApiSettings, Question
from bot.app import Magpie
from bot.config import Secret
from bot.model.demo import DemoModel
from bot.registry import Configured
from bot.testing import ScriptedModel, running
from examples.flask_page.app import app
from tests import counterparts

EXAMPLES = Path(__file__).parent.parent / "examples"
KOTLIN = (EXAMPLES / "android" / "ChatApi.kt").read_text(encoding="utf-8")
TOKEN = "a-long-secret"
API = Configured("api", ApiAdapter, ApiSettings(token=Secret(TOKEN)))


def environment(magpie: Magpie, token: str = TOKEN) -> dict[str, str]:
    return {"MAGPIE_URL": f"http://127.0.0.1:{magpie.port}", "API_TOKEN": token}


# -- the Flask page


@contextlib.contextmanager
def served(page: Flask) -> Iterator[str]:
    """Serve the page as `flask run` does, on a free port."""
    server = make_server("127.0.0.1", 0, page, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.asynccontextmanager
async def browser(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A visitor who has opened the page."""
    jar = aiohttp.CookieJar(unsafe=True)  # cookies of 127.0.0.1 as well
    async with aiohttp.ClientSession(url, cookie_jar=jar) as session:
        async with session.get("/") as page:
            assert page.status == 200
            assert 'fetch("chat"' in await page.text()
        yield session


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    assert response.status == 200
    assert response.content_type == "text/event-stream"
    async for line in response.content:
        if line.startswith(b"data: "):
            yield msgspec.json.decode(line[6:])


async def ask(session: aiohttp.ClientSession, message: str, identity: str) -> dict[str, Any]:
    """Ask and return the last event."""
    async with session.post("/chat", json={"message": message, "id": identity}) as response:
        return [event async for event in events(response)][-1]


async def test_flask_page_streams_while_the_model_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = asyncio.Event()

    async def slowly() -> AsyncIterator[str]:
        yield "Hello "
        await seen.wait()
        yield "world"

    async with running(API, model=ScriptedModel(lambda _: slowly())) as magpie:
        for name, value in environment(magpie).items():
            monkeypatch.setenv(name, value)
        with served(app) as url:
            async with browser(url) as session, session.post("/chat", json={"message": "hi", "id": "1"}) as response:
                stream = events(response)
                first = await anext(stream)
                assert first["delta"].startswith("Hello")
                seen.set()
                *_, last = [event async for event in stream]
                assert (last["done"], last["reply"]) == (True, "Hello world")


async def test_flask_page_remembers_its_visitor_and_pays_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedModel(lambda turns: [turn.content for turn in turns if turn.role == "user"])
    async with running(API, model=model) as magpie:
        for name, value in environment(magpie).items():
            monkeypatch.setenv(name, value)
        with served(app) as url:
            async with browser(url) as ada, browser(url) as bob:
                assert (await ask(ada, "one", "1"))["reply"] == "one"
                assert (await ask(ada, "two", "2"))["reply"] == "onetwo"
                assert (await ask(ada, "two", "2"))["reply"] == "onetwo"  # asked again after a lost connection
                assert (await ask(bob, "three", "1"))["reply"] == "three"
    assert len(model.asked) == 3


@pytest.mark.parametrize(
    ("body", "token", "expected"),
    [
        ({"message": "hi"}, "wrong", (401, "unauthorized")),
        ({"message": "   "}, TOKEN, (400, "bad_request")),
        ({"message": 7}, TOKEN, (400, "bad_request")),
        ([], TOKEN, (400, "bad_request")),
    ],
)
async def test_flask_page_passes_errors_on(
    monkeypatch: pytest.MonkeyPatch, body: object, token: str, expected: tuple[int, str]
) -> None:
    async with running(API, model=ScriptedModel()) as magpie:
        for name, value in environment(magpie, token).items():
            monkeypatch.setenv(name, value)
        with served(app) as url:
            async with browser(url) as session, session.post("/chat", json=body) as response:
                assert (response.status, (await response.json())["error"]["code"]) == expected


async def test_flask_page_says_that_the_bot_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGPIE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("API_TOKEN", TOKEN)
    with served(app) as url:
        async with browser(url) as session, session.post("/chat", json={"message": "hi"}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "unavailable")


# -- curl.sh


async def test_curl_script_shows_everything() -> None:
    counterparts.curl()
    async with running(API, model=DemoModel(delay=0)) as magpie:
        script = await asyncio.create_subprocess_exec(
            "bash",
            str(EXAMPLES / "curl.sh"),
            'my name is "Ada"',
            env={**os.environ, **environment(magpie)},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await script.communicate()
    assert script.returncode == 0
    sections = dict(re.findall(r"^-- (.*?)\n(.*?)(?=^-- |\Z)", out.decode(), re.DOTALL | re.MULTILINE))
    whole, again, streamed, second, wrong = (text.strip() for text in sections.values())
    assert msgspec.json.decode(whole).keys() == {"id", "conversation", "reply"}
    assert again == whole
    assert msgspec.json.decode(streamed.splitlines()[-1].removeprefix("data: "))["done"] is True
    assert msgspec.json.decode(second)["conversation"] == "second"
    assert msgspec.json.decode(wrong)["error"]["code"] == "unauthorized"


# -- the Android client


def kotlin_fields(name: str) -> list[str]:
    """Return the properties of a data class."""
    found = re.search(rf"data class {name}\((.*?)\n?\)(?:\n|$)", KOTLIN, re.DOTALL)
    assert found, name
    return re.findall(r"val (\w+):", found[1])


async def test_android_client_names_what_the_api_names() -> None:
    url, headers = "/api/chat", {"Authorization": f"Bearer {TOKEN}"}
    body = {"user": "u", "message": "hi"}
    async with (
        running(API, model=DemoModel(delay=0.01)) as magpie,  # slow enough to be streamed
        aiohttp.ClientSession(f"http://127.0.0.1:{magpie.port}", headers=headers) as session,
    ):
        async with session.post(url, json=body) as response:
            answer = await response.json()
        async with session.post(url, json=body, headers={"Accept": "text/event-stream"}) as response:
            streamed = {key async for event in events(response) for key in event}
        async with session.post(url, json={}) as response:
            failure = await response.json()
    assert sorted(kotlin_fields("Question")) == sorted(field.name for field in msgspec.structs.fields(Question))
    assert sorted(kotlin_fields("Answer")) == sorted(answer)
    assert set(kotlin_fields("Event")) == streamed | {"error"}
    assert kotlin_fields("Failure") == list(failure)
    assert kotlin_fields("Problem") == list(failure["error"])
    assert KOTLIN.count('@POST("api/chat")') == 2
