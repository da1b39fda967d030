"""Messenger: every kind of event, every way the Send API says no, the dots, files, and the whole bot.

What it shares with WhatsApp is in `tests/adapters/test_meta.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import msgspec
import pytest
import structlog
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

import adapters.messenger
from adapters.messenger import MessengerAdapter, MessengerSettings
from bot.adapter import Attachment, Chat, Context, Inbound, Message, Page, Request, State
from bot.app import Magpie
from bot.errors import Malformed, Refused, Unauthorized, Unavailable
from bot.markup import pages, render
from bot.registry import Configured
from bot.testing import AdapterPromises, Script, ScriptedModel, echo, running
from tests.adapters.graph_server import Cut, Refusal
from tests.adapters.messenger_server import PAGE, MessengerServer
from tests.adapters.test_meta import signed

FIXTURES = sorted(Path(__file__).with_name("fixtures").glob("messenger/*.json"))
SECRET = "0123456789abcdef0123456789abcdef"
ANSWER = Page("Hello & welcome", "Hello & welcome", "reply:0", "m_q")


def settings(server: MessengerServer | None = None, secret: str = SECRET) -> MessengerSettings:
    return MessengerSettings.model_validate(
        {
            "page_access_token": server.token if server else "EAAG-token",
            "app_secret": secret,
            "verify_token": "v3rify",
            "api_base": server.base if server else "http://127.0.0.1:9",
        }
    )


def make(server: MessengerServer | None = None, secret: str = SECRET) -> MessengerAdapter:
    adapter = MessengerAdapter(settings(server, secret), Context("messenger", create_autospec(State)))
    adapter.page = PAGE
    return adapter


def parse(body: object) -> Inbound:
    return make().parse(Request(body=json.dumps(body).encode()))


@pytest.fixture
async def messenger() -> AsyncIterator[MessengerServer]:
    async with MessengerServer() as server:
        yield server


@pytest.fixture
async def adapter(messenger: MessengerServer) -> AsyncIterator[MessengerAdapter]:
    adapter = make(messenger)
    yield adapter
    await adapter.stop()


# -- vectors and parse ------------------------------------------------------------------------------------------------

VECTOR = (
    b'{"object":"page","entry":[{"id":"PAGE","time":1700000000000,"messaging":[{"sender":{"id":"PSID"},"recipient":'
    b'{"id":"PAGE"},"timestamp":1700000000000,"message":{"mid":"m_1","text":"caf\\u00e9"}}]}]}'
)


async def test_a_known_body_and_signature() -> None:
    adapter = make(secret="app_secret")
    adapter.page = ""  # not learned yet: any page will do
    signature = "sha256=333f024d4ef11f22d0e6181963235ff3c05d8383621b6212691c1ca13486822a"
    request = Request(headers={"x-hub-signature-256": signature}, body=VECTOR)
    await adapter.verify(request)
    inbound = adapter.parse(request)
    [message] = inbound.messages
    assert (message.id, message.user, message.text) == ("m_1", "PSID", "café")
    assert inbound.response.body == b"EVENT_RECEIVED"


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_parse(path: Path) -> None:
    case = json.loads(path.read_text())
    inbound = parse(case["body"])
    assert json.loads(msgspec.json.encode(inbound.messages)) == case.get("messages", [])
    assert inbound.ignored == case.get("ignored", "")
    assert inbound.response.status == 200


@given(data=st.data())
def test_a_wrong_type_anywhere_is_malformed_or_harmless(data: st.DataObject) -> None:
    body = json.loads(data.draw(st.sampled_from(FIXTURES)).read_text())["body"]
    path = data.draw(st.sampled_from(leaves(body)[1:]))
    holder = body
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = data.draw(st.sampled_from([None, True, -1, 10**30, 1.5, "", "//[", [], [[]], {}, {"id": "1"}]))
    with contextlib.suppress(Malformed):
        for message in parse(body).messages:
            assert msgspec.json.decode(msgspec.json.encode(message), type=Message) == message


def leaves(node: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(leaf for key, child in children for leaf in leaves(child, (*path, key)))]


# -- our page ---------------------------------------------------------------------------------------------------------


async def test_the_page_is_learned_even_when_meta_is_down_at_first(
    messenger: MessengerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters.messenger, "LEARN_GAPS", (0.0,))
    messenger.script("GET me", Refusal(503, 2, "Service temporarily unavailable"), Cut())
    adapter = make(messenger)
    adapter.page = ""
    await adapter.start()
    assert adapter.learning is not None
    await adapter.learning
    assert adapter.page == PAGE
    await adapter.stop()


# -- send -------------------------------------------------------------------------------------------------------------


async def test_the_dots_move_until_the_answer_is_there(messenger: MessengerServer, adapter: MessengerAdapter) -> None:
    ada = messenger.person("Ada")
    chat = Chat(ada.id)
    [message] = parse(messenger.notification(messenger.message(ada, "hi"))).messages
    await adapter.acknowledge(message)
    await adapter.typing(chat)
    assert (ada.actions, ada.dots) == (["mark_seen", "typing_on"], True)
    assert (await adapter.send(chat, ANSWER)).startswith("m_")
    assert (messenger.shown(ada), ada.dots) == (["Hello & welcome"], False)
    await adapter.send(chat, ANSWER)
    assert ada.actions == ["mark_seen", "typing_on", "typing_off"]  # nothing to stop any more


async def test_an_answer_is_not_repeated_because_of_its_dots(
    messenger: MessengerServer, adapter: MessengerAdapter
) -> None:
    ada = messenger.person("Ada")
    messenger.message(ada, "hi")
    await adapter.typing(Chat(ada.id))
    done = asyncio.Event()

    def fail_next() -> bool:
        if messenger.shown(ada) and not done.is_set():
            messenger.script("POST messages", Cut())
            done.set()
        return done.is_set()

    waiting = asyncio.create_task(messenger.until(fail_next))
    await adapter.send(Chat(ada.id), ANSWER)
    await waiting
    assert messenger.shown(ada) == ["Hello & welcome"]


@pytest.mark.parametrize(
    ("refusal", "kind", "text"),
    [
        (Refusal(403, 10, "(#10) outside of allowed window", 2018278), Refused, "over 24 hours ago"),
        (Refusal(403, 10, "(#10) outside of allowed window", 2018065), Refused, "over 24 hours ago"),
        (Refusal(403, 10, "(#10) permission"), Unauthorized, "a permission is missing"),
        (Refusal(400, 551, "(#551) This person isn't available"), Refused, "cannot be reached"),
        (Refusal(400, 200, "(#200)", 1545041), Refused, "cannot be reached"),
        (Refusal(400, 200, "(#200)", 2018028), Unauthorized, "before its review"),
        (Refusal(400, 1200, "(#1200)"), Unavailable, "down for a moment"),
    ],
    ids=str,
)
async def test_refusals_are_said_in_plain_words(
    messenger: MessengerServer, adapter: MessengerAdapter, refusal: Refusal, kind: type[Exception], text: str
) -> None:
    messenger.script("POST messages", refusal)
    with pytest.raises(kind, match=text) as refused:
        await adapter.send(Chat("1"), ANSWER)
    assert type(refused.value) is kind


async def test_somebody_of_another_page_is_refused(messenger: MessengerServer, adapter: MessengerAdapter) -> None:
    with pytest.raises(Refused, match="no chat with that person"):
        await adapter.send(Chat("9999"), ANSWER)


WRITTEN = """# Title

**粗体**文字 and *italic* `code` [a](https://example.com) ![b](https://example.com/b.png)

- one
  - inner

| a | b |
|---|---|
| 1 | 二 |

```python
print(1)
```
"""
SHOWN = """Title

粗体文字 and italic code a (https://example.com) b (https://example.com/b.png)

• one
  ◦ inner

a: 1
b: 二

print(1)"""


def test_the_dialect_is_plain_text() -> None:
    assert render(WRITTEN, MessengerAdapter.can.dialect) == SHOWN


async def test_every_page_of_a_long_answer_is_taken(messenger: MessengerServer, adapter: MessengerAdapter) -> None:
    ada = messenger.person("Ada")
    messenger.message(ada, "hi")
    for text in pages("🐦" * 5000, adapter.can.max_length, adapter.can.dialect, adapter.can.measure):
        await adapter.send(Chat(ada.id), Page(text))
    assert "".join(messenger.shown(ada)).count("🐦") == 5000


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://scontent.xx.fbcdn.net/a.jpg",
        "https://fbcdn.net.example.com/a.jpg",
        "https://scontent.xx.fbcdn.net@example.com/a.jpg",
        "https://127.0.0.1:9/a.jpg",
        "file:///etc/passwd",
        "//[",
        "",
    ],
)
async def test_files_come_from_metas_storage_only(adapter: MessengerAdapter, url: str) -> None:
    with pytest.raises(Refused, match="not allowed"):
        await adapter.download(Attachment("image", url), 100)


@pytest.mark.parametrize("limit", [7, 6])
async def test_a_file_is_fetched_without_our_token(
    adapter: MessengerAdapter, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    seen: list[str | None] = []

    async def serve(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response(body=b"content")

    app = web.Application()
    app.router.add_get("/a.jpg", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    # The storage's stand-in takes the API's place, which is the only host that may be asked by http.
    host, port = runner.addresses[0][:2]
    monkeypatch.setattr(adapter.client, "base", f"http://{host}:{port}")
    file = Attachment("image", f"http://{host}:{port}/a.jpg")
    if limit == 7:
        assert await adapter.download(file, limit) == b"content"
    else:
        with pytest.raises(Refused, match="larger"):
            await adapter.download(file, limit)
    assert seen == [None]
    await runner.cleanup()


# -- the whole bot ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(messenger: MessengerServer, script: Script = echo, **options: Any) -> AsyncIterator[Magpie]:
    """Run the whole bot, with the webhook registered."""
    instance = Configured("messenger", MessengerAdapter, settings(messenger))
    async with running(instance, model=ScriptedModel(script), **options) as magpie:
        findings = await magpie.adapters["messenger"].register(f"http://127.0.0.1:{magpie.port}/webhooks/messenger")
        assert all(finding.ok for finding in findings)
        yield magpie


@pytest.mark.parametrize(("locale", "told"), [("default", "I start afresh"), ("zh_CN", "之前的对话已忘掉")])
async def test_the_menu_that_is_registered_is_understood(messenger: MessengerServer, locale: str, told: str) -> None:
    ada = messenger.person("Ada")
    async with serving(messenger):
        menus = {menu["locale"]: menu["call_to_actions"] for menu in messenger.profile["persistent_menu"]}
        item = menus[locale][1]
        press = messenger.event(ada, postback={"mid": "m_pb", "title": item["title"], "payload": item["payload"]})
        await messenger.deliver(messenger.notification(press))
        await messenger.until(lambda: messenger.shown(ada))
    assert told in messenger.shown(ada)[0]


async def test_echoes_standby_and_other_pages_are_not_answered(messenger: MessengerServer) -> None:
    ada = messenger.person("Ada")
    async with serving(messenger) as magpie:
        adapter = magpie.adapters["messenger"]
        assert isinstance(adapter, MessengerAdapter)
        assert adapter.learning is not None
        await adapter.learning
        for name in ("echo", "own_without_a_mark", "standby", "another_page", "instagram", "read", "delivery"):
            body = json.loads((FIXTURES[0].parent / f"{name}.json").read_text())["body"]
            assert await messenger.deliver(body) == 200
        await messenger.say(ada, "hello")
        await messenger.until(lambda: messenger.shown(ada))
        assert isinstance(magpie.model, ScriptedModel)
        assert len(magpie.model.asked) == 1
    assert messenger.shown(ada) == ["You said: hello"]
    assert "mark_seen" in ada.actions


async def test_a_long_answer_arrives_whole_and_in_order(messenger: MessengerServer) -> None:
    ada = messenger.person("Ada")
    words = [f"**word{number}** " for number in range(500)]
    async with serving(messenger, lambda turns: words):
        await messenger.say(ada, "tell me everything")
        await messenger.until(lambda: "word499" in "".join(messenger.shown(ada)))
    assert len(messenger.shown(ada)) > 1
    assert " ".join(messenger.shown(ada)).split() == [f"word{number}" for number in range(500)]


async def test_a_slow_answer_comes_after_the_dots(messenger: MessengerServer) -> None:
    ada = messenger.person("Ada")

    async def thinking() -> AsyncIterator[str]:
        await messenger.until(lambda: ada.dots)
        yield "done"

    async with serving(messenger, lambda turns: thinking()):
        await messenger.say(ada, "think")
        await messenger.until(lambda: messenger.shown(ada) and not ada.dots)
    assert messenger.shown(ada) == ["done"]


async def test_a_closed_window_is_in_the_log(messenger: MessengerServer) -> None:
    ada = messenger.person("Ada")
    notification = messenger.notification(messenger.message(ada, "from yesterday"))
    ada.in_window = False
    with structlog.testing.capture_logs() as logged:
        async with serving(messenger) as magpie:
            await messenger.deliver(notification)
            while not (await magpie.store.counts())["parked"]:
                await asyncio.sleep(0.01)
    assert any("over 24 hours ago" in str(line.get("reason")) for line in logged)
    assert "from yesterday" not in str(logged)


class TestPromises(AdapterPromises):
    adapter = MessengerAdapter
    settings = {"page_access_token": "t", "app_secret": SECRET, "verify_token": "v"}

    def text_message(self) -> Request:
        return signed(json.dumps(json.loads((FIXTURES[0].parent / "text.json").read_text())["body"]).encode(), SECRET)
