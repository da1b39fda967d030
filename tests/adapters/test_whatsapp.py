"""WhatsApp: every kind of notification, every way the Cloud API says no, and pywa's opinion of what we read and send.

What it shares with Messenger is in `tests/adapters/test_meta.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import warnings
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import httpx
import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import adapters.whatsapp
from adapters.whatsapp import WhatsAppAdapter, WhatsAppSettings
from adapters.whatsapp.api import CODES
from bot.adapter import Attachment, Chat, Context, Inbound, Message, Page, Request, State
from bot.app import Magpie
from bot.errors import Malformed, Refused, Throttled
from bot.markup import pages, render
from bot.registry import Configured
from bot.testing import AdapterPromises, Script, ScriptedModel, echo, running
from tests.adapters.graph_server import Fields, Refusal
from tests.adapters.test_meta import signed
from tests.adapters.whatsapp_server import ACCOUNT, NUMBER, WhatsAppServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pywa.client import WhatsApp
    from pywa.errors import WhatsAppError
    from pywa.types.message import Message as TheirMessage
    from pywa.utils import webhook_updates_validator

FIXTURES = sorted(Path(__file__).with_name("fixtures").glob("whatsapp/*.json"))
SECRET = "0123456789abcdef0123456789abcdef"
PAGE = Page("*Hello* & welcome", "Hello & welcome", "reply:0", "wamid.q")


def settings(server: WhatsAppServer | None = None, **changed: str) -> WhatsAppSettings:
    given = {
        "access_token": server.token if server else "EAAG-token",
        "app_secret": SECRET,
        "verify_token": "v3rify",
        "phone_number_id": NUMBER,
        "api_base": server.base if server else "http://127.0.0.1:9",
    }
    return WhatsAppSettings.model_validate(given | changed)


def make(server: WhatsAppServer | None = None) -> WhatsAppAdapter:
    return WhatsAppAdapter(settings(server), Context("whatsapp", create_autospec(State)))


def parse(body: object) -> Inbound:
    return make().parse(Request(body=json.dumps(body).encode()))


@pytest.fixture
async def whatsapp() -> AsyncIterator[WhatsAppServer]:
    async with WhatsAppServer() as server:
        yield server


@pytest.fixture
async def adapter(whatsapp: WhatsAppServer) -> AsyncIterator[WhatsAppAdapter]:
    adapter = make(whatsapp)
    yield adapter
    await adapter.stop()


def asked(body: Fields) -> Message:
    """Return the one message of a notification, as it comes out of the store."""
    [message] = parse(body).messages
    return msgspec.json.decode(msgspec.json.encode(message), type=Message)


# -- settings and vectors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["", "+1 555 078 3881", "123/messages"])
def test_the_phone_number_id_is_a_number(number: str) -> None:
    with pytest.raises(ValidationError):
        settings(phone_number_id=number)


VECTOR = (
    '{"object":"whatsapp_business_account","entry":[{"id":"1","changes":[{"field":"messages","value":{"messaging_product"'
    ':"whatsapp","metadata":{"display_phone_number":"15550001111","phone_number_id":"1234567890"},"contacts":[{"profile":'
    '{"name":"A"},"wa_id":"15551234567"}],"messages":[{"from":"15551234567","id":"wamid.1","timestamp":"1700000000","type'
    '":"text","text":{"body":"hi"}}]}}]}]}'
)


async def test_a_known_body_and_signature() -> None:
    context = Context("whatsapp", create_autospec(State))
    adapter = WhatsAppAdapter(settings(app_secret="app_secret", phone_number_id="1234567890"), context)
    signature = "sha256=dbee4d4e0f67064a31eb2fe7a2fd192ae77166c61756710943aa69bade1ce6dc"
    request = Request(headers={"x-hub-signature-256": signature}, body=VECTOR.encode())
    await adapter.verify(request)
    [message] = adapter.parse(request).messages
    assert (message.id, message.user, message.text) == ("wamid.1", "15551234567", "hi")


@pytest.mark.parametrize("body", ["{}", '{"text":"caf\\u00e9"}', '{"text":"咖啡"}'])
def test_pywa_takes_our_signature(body: str) -> None:
    header = signed(body.encode(), SECRET).headers["x-hub-signature-256"]
    assert webhook_updates_validator(SECRET, body.encode(), header)


# -- parse ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_parse(path: Path) -> None:
    case = json.loads(path.read_text())
    inbound = parse(case["body"])
    assert json.loads(msgspec.json.encode(inbound.messages)) == case.get("messages", [])
    assert inbound.ignored == case.get("ignored", "")
    assert inbound.moved == (tuple(case["moved"]) if "moved" in case else None)
    assert inbound.response.status == 200


READ_BY_PYWA = ("text", "text_user_id_only", "reply", "image", "document", "voice", "video", "sticker", "location")


@pytest.mark.parametrize("name", READ_BY_PYWA)
def test_pywa_reads_the_same(name: str) -> None:
    body = json.loads((FIXTURES[0].parent / f"{name}.json").read_text())["body"]
    client = WhatsApp(phone_id=NUMBER, token="x", server=None, session=httpx.Client())
    theirs = TheirMessage.from_update(client, body)
    ours = asked(body)
    assert (theirs.id, theirs.from_user.bsuid) == (ours.id, ours.user)
    assert (theirs.text or theirs.caption or "") == ("" if theirs.location else ours.text)
    assert (theirs.reply_to_message.id if theirs.reply_to_message else "") == ours.reply_to
    assert ([theirs.media.id] if theirs.media else []) == [file.ref for file in ours.attachments]


@given(data=st.data())
def test_a_wrong_type_anywhere_is_malformed_or_harmless(data: st.DataObject) -> None:
    body = json.loads(data.draw(st.sampled_from(FIXTURES)).read_text())["body"]
    path = data.draw(st.sampled_from(leaves(body)[1:]))
    holder = body
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = data.draw(st.sampled_from([None, True, -1, 10**30, 1.5, "", "🐦", [], [[]], {}, {"id": 1}]))
    with contextlib.suppress(Malformed):
        for message in parse(body).messages:
            assert msgspec.json.decode(msgspec.json.encode(message), type=Message) == message


def leaves(node: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(leaf for key, child in children for leaf in leaves(child, (*path, key)))]


# -- send -------------------------------------------------------------------------------------------------------------


async def test_send(whatsapp: WhatsAppServer, adapter: WhatsAppAdapter) -> None:
    ada = whatsapp.person("Ada")
    chat = asked(whatsapp.notification(whatsapp.message(ada, text={"body": "hi"}))).chat
    assert (await adapter.send(chat, PAGE)).startswith("wamid.")
    assert whatsapp.shown(ada) == ["*Hello* & welcome"]
    assert whatsapp.called("POST messages")[0]["text"]["preview_url"] is False


@pytest.mark.parametrize("hidden", [False, True])
async def test_a_person_is_addressed_by_number_or_by_id(
    whatsapp: WhatsAppServer, adapter: WhatsAppAdapter, hidden: bool
) -> None:
    ada = whatsapp.person("Ada", hides_phone=hidden)
    message = asked(whatsapp.notification(whatsapp.message(ada, text={"body": "hi"})))
    await adapter.send(message.chat, PAGE)
    [fields] = whatsapp.called("POST messages")
    assert fields.get("recipient") == (ada.user_id if hidden else None)
    assert fields.get("to") == (None if hidden else ada.phone)
    assert message.user == ada.user_id  # the same person, whether the number shows or not


async def test_pywa_sends_the_same(whatsapp: WhatsAppServer, adapter: WhatsAppAdapter) -> None:
    ada = whatsapp.person("Ada")
    chat = asked(whatsapp.notification(whatsapp.message(ada, text={"body": "hi"}))).chat
    await adapter.send(chat, PAGE)
    await adapter.typing(chat)
    sent: list[Fields] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json={"success": True, "contacts": [], "messages": [{"id": "wamid.1"}]})

    session = httpx.Client(transport=httpx.MockTransport(answer))
    api = WhatsApp(phone_id=NUMBER, token="x", server=None, session=session).api
    api.send_message(
        sender=NUMBER,
        to=ada.phone,
        recipient=None,
        recipient_type="individual",
        typ="text",
        msg={"body": PAGE.text, "preview_url": False},
    )
    api.set_indicator(phone_id=NUMBER, message_id=chat.ticket.split()[0], typ="text")
    assert whatsapp.called("POST messages") == sent


async def test_a_closed_window_is_said_in_plain_words(whatsapp: WhatsAppServer, adapter: WhatsAppAdapter) -> None:
    ada = whatsapp.person("Ada")
    with pytest.raises(Refused, match="131047 the person last wrote over 24 hours ago"):
        await adapter.send(Chat(ada.user_id), PAGE)
    with pytest.raises(Refused, match="131026"):
        await adapter.send(Chat("15559999999"), PAGE)


@pytest.mark.parametrize("code", [code for code in CODES if code not in (33, 131057, 131062, 133010)])
def test_pywa_knows_our_error_codes(code: int) -> None:
    known = {one for kind in subclasses(WhatsAppError) for one in kind.__error_codes__ or ()}
    assert code in known


def subclasses(kind: type[WhatsAppError]) -> Iterable[type[WhatsAppError]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


async def test_the_same_person_too_often_has_to_wait(whatsapp: WhatsAppServer, adapter: WhatsAppAdapter) -> None:
    ada = whatsapp.person("Ada")
    chat = asked(whatsapp.notification(whatsapp.message(ada, text={"body": "hi"}))).chat
    whatsapp.script(
        "POST messages", Refusal(400, 131056, "(#131056) (Business Account, Consumer Account) pair rate limit")
    )
    with pytest.raises(Throttled) as throttled:
        await adapter.send(chat, PAGE)
    assert throttled.value.retry_after == 10
    await adapter.send(chat, PAGE)


# -- blue ticks and "typing..." ----------------------------------------------------------------------------------------


async def test_a_message_is_read_and_typing_shows_in_one_call(
    whatsapp: WhatsAppServer, adapter: WhatsAppAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = whatsapp.person("Ada")
    message = asked(whatsapp.notification(whatsapp.message(ada, text={"body": "hi"})))
    await adapter.acknowledge(message)
    await adapter.typing(message.chat)
    assert (ada.read, ada.typing, len(whatsapp.calls)) == ([message.id], 1, 1)
    monkeypatch.setattr(adapters.whatsapp, "TYPING", -1.0)
    again = asked(whatsapp.notification(whatsapp.message(ada, text={"body": "and?"})))
    await adapter.acknowledge(again)
    await adapter.typing(again.chat)  # faded meanwhile
    assert (ada.read, ada.typing) == ([message.id, again.id, again.id], 3)


async def test_without_a_question_there_is_nothing_to_read(whatsapp: WhatsAppServer, adapter: WhatsAppAdapter) -> None:
    await adapter.typing(Chat("US.1"))
    assert whatsapp.calls == []


# -- dialect ----------------------------------------------------------------------------------------------------------

WRITTEN = """# A **bold** heading

*italic* ~~gone~~ **粗体**文字 **both *in* one** `a < b` ``a`b``
[a & b](https://example.com/?a=1&b=2) ![bird](https://example.com/b.png) <https://example.com>

> quoted
> > deeper

- one
  - inner
    1. first

| a | b |
|---|---|
| 1 | 二 |

```python
print("*x*")
```
"""
SHOWN = """*A bold heading*

_italic_ ~gone~ *粗体*\u200a文字 *both _in_ one* `a < b` ```a`b```
a & b (https://example.com/?a=1&b=2) bird (https://example.com/b.png) https://example.com

> quoted
>
> deeper

- one
  ◦ inner
    1. first

a: 1
b: 二

```
print("*x*")
```"""


def test_the_dialect() -> None:
    assert render(WRITTEN, WhatsAppAdapter.can.dialect) == SHOWN


async def test_every_page_of_a_long_answer_is_taken(whatsapp: WhatsAppServer, adapter: WhatsAppAdapter) -> None:
    ada = whatsapp.person("Ada")
    chat = asked(whatsapp.notification(whatsapp.message(ada, text={"body": "hi"}))).chat
    for text in pages("🐦" * 5000, adapter.can.max_length, adapter.can.dialect, adapter.can.measure):
        await adapter.send(chat, Page(text))
    assert "".join(whatsapp.shown(ada)).count("🐦") == 5000


# -- files ------------------------------------------------------------------------------------------------------------


async def test_download(whatsapp: WhatsAppServer, adapter: WhatsAppAdapter) -> None:
    whatsapp.files["1345"] = b"content"
    assert await adapter.download(Attachment("image", "1345"), 7) == b"content"
    assert [call.path for call in whatsapp.calls] == ["1345", "files/1345"]
    assert whatsapp.calls[0].fields == {"phone_number_id": NUMBER}


@pytest.mark.parametrize(("id", "limit"), [("1345", 6), ("unknown", 100), ("../debug_token", 100)])
async def test_a_file_too_large_or_unknown_is_refused(
    whatsapp: WhatsAppServer, adapter: WhatsAppAdapter, id: str, limit: int
) -> None:
    whatsapp.files["1345"] = b"content"
    with pytest.raises(Refused):
        await adapter.download(Attachment("image", id), limit)


@pytest.mark.parametrize(
    "host",
    ["http://lookaside.fbsbx.com", "https://lookaside.fbsbx.com.example.com", "https://127.0.0.1:9", "https://a@x.y"],
)
async def test_the_token_goes_nowhere_else(whatsapp: WhatsAppServer, adapter: WhatsAppAdapter, host: str) -> None:
    whatsapp.files["1345"] = b"content"
    whatsapp.file_host = host
    with pytest.raises(Refused, match="not allowed"):
        await adapter.download(Attachment("image", "1345"), 100)


# -- register and check -----------------------------------------------------------------------------------------------


async def test_the_commands_are_set(whatsapp: WhatsAppServer) -> None:
    async with serving(whatsapp):
        names = [command["command_name"] for command in whatsapp.commands]
    assert names == ["help", "reset", "stop", "retry", "usage"]


@pytest.mark.parametrize("target_ids", [None, [], ["999"]])
async def test_an_account_that_is_not_told_is_left_to_a_person(
    whatsapp: WhatsAppServer, target_ids: list[str] | None
) -> None:
    whatsapp.granular_scopes = [{"scope": "whatsapp_business_management", "target_ids": target_ids}]
    instance = Configured("whatsapp", WhatsAppAdapter, settings(whatsapp))
    async with running(instance, model=ScriptedModel()) as magpie:
        findings = await magpie.adapters["whatsapp"].register(f"http://127.0.0.1:{magpie.port}/webhooks/whatsapp")
    assert [finding.ok for finding in findings[:2]] == [True, False]
    assert "/subscribed_apps" in findings[-1].what


async def test_check_finds_an_override_and_an_account_that_is_not_subscribed(whatsapp: WhatsAppServer) -> None:
    async with serving(whatsapp) as magpie:
        adapter, url = magpie.adapters["whatsapp"], whatsapp.subscriptions[whatsapp.about].callback_url
        whatsapp.overrides = {"whatsapp_business_account": "https://elsewhere.example.com", "application": url}
        whatsapp.subscribed.clear()
        told = [finding.what for finding in await adapter.check(url) if not finding.ok]
        assert told[0] == "events go to https://elsewhere.example.com"
        assert told[1].endswith(f"does not answer for account {ACCOUNT}")
        whatsapp.overrides["phone_number"] = url
        assert len([finding for finding in await adapter.check(url) if not finding.ok]) == 1


# -- the whole bot ----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(whatsapp: WhatsAppServer, script: Script = echo, **options: Any) -> AsyncIterator[Magpie]:
    """Run the whole bot, with the webhook registered."""
    instance = Configured("whatsapp", WhatsAppAdapter, settings(whatsapp))
    async with running(instance, model=ScriptedModel(script), **options) as magpie:
        findings = await magpie.adapters["whatsapp"].register(f"http://127.0.0.1:{magpie.port}/webhooks/whatsapp")
        assert all(finding.ok for finding in findings)
        yield magpie


async def test_a_batch_of_two_people_is_answered_to_each(whatsapp: WhatsAppServer) -> None:
    ada, bob = whatsapp.person("Ada"), whatsapp.person("Bob", hides_phone=True)
    questions = (whatsapp.message(one, text={"body": f"I am {one.name}"}) for one in (ada, bob))
    async with serving(whatsapp):
        assert await whatsapp.deliver(whatsapp.notification(*questions)) == 200
        await whatsapp.until(lambda: whatsapp.shown(ada) and whatsapp.shown(bob))
    assert whatsapp.shown(ada) == ["You said: I am Ada"]
    assert whatsapp.shown(bob) == ["You said: I am Bob"]
    assert ada.read
    assert bob.typing


async def test_a_long_answer_arrives_whole_and_in_order(whatsapp: WhatsAppServer) -> None:
    ada = whatsapp.person("Ada")
    words = [f"**word{number}** " for number in range(1000)]
    async with serving(whatsapp, lambda turns: words):
        await whatsapp.say(ada, "tell me everything")
        await whatsapp.until(lambda: "word999" in "".join(whatsapp.shown(ada)))
    assert len(whatsapp.shown(ada)) == 3
    assert " ".join(whatsapp.shown(ada)).split() == [f"*word{number}*" for number in range(1000)]


async def test_a_group_and_another_number_hear_nothing(whatsapp: WhatsAppServer) -> None:
    ada = whatsapp.person("Ada")
    async with serving(whatsapp) as magpie:
        group = whatsapp.message(ada, text={"body": "hi all"}, group_id="Y2Fw")
        other = whatsapp.message(ada, text={"body": "hi"})
        assert await whatsapp.deliver(whatsapp.notification(group)) == 200
        assert await whatsapp.deliver(whatsapp.notification(other, number="777")) == 200
        await whatsapp.say(ada, "hello")
        await whatsapp.until(lambda: whatsapp.shown(ada))
        assert isinstance(magpie.model, ScriptedModel)
        assert len(magpie.model.asked) == 1
    assert whatsapp.shown(ada) == ["You said: hello"]


async def test_a_picture_reaches_the_model_and_a_poll_is_answered_honestly(whatsapp: WhatsAppServer) -> None:
    ada, bob = whatsapp.person("Ada"), whatsapp.person("Bob")
    whatsapp.files["1345"] = b"\xff\xd8jpeg"
    image = {"id": "1345", "mime_type": "image/jpeg", "caption": "What is this?"}
    async with serving(whatsapp) as magpie:
        await whatsapp.deliver(whatsapp.notification(whatsapp.message(ada, "image", image=image)))
        await whatsapp.until(lambda: whatsapp.shown(ada))
        assert isinstance(magpie.model, ScriptedModel)
        [[picture]] = magpie.model.pictures
        await whatsapp.deliver(whatsapp.notification(whatsapp.message(bob, "unsupported")))
        await whatsapp.until(lambda: whatsapp.shown(bob))
    assert (picture.mime, picture.data) == ("image/jpeg", b"\xff\xd8jpeg")
    assert whatsapp.shown(bob)[0].startswith("I can read text and pictures")


async def test_a_closed_window_is_in_the_log(whatsapp: WhatsAppServer) -> None:
    ada = whatsapp.person("Ada")
    notification = whatsapp.notification(whatsapp.message(ada, text={"body": "from yesterday"}))
    ada.in_window = False
    with structlog.testing.capture_logs() as logged:
        async with serving(whatsapp) as magpie:
            await whatsapp.deliver(notification)
            while not (await magpie.store.counts())["parked"]:
                await asyncio.sleep(0.01)
            status = json.loads((FIXTURES[0].parent / "status_failed.json").read_text())["body"]
            await whatsapp.deliver(status)
    reasons = [str(line.get("reason")) for line in logged if "24 hours" in str(line.get("reason"))]
    assert [reason.split(":")[0] for reason in reasons] == ["platform", "not delivered"]
    assert "from yesterday" not in str(logged)


async def test_a_new_id_keeps_the_conversation(whatsapp: WhatsAppServer) -> None:
    ada = whatsapp.person("Ada")
    async with serving(whatsapp) as magpie:
        await whatsapp.say(ada, "I am Ada")
        await whatsapp.until(lambda: whatsapp.shown(ada))
        renamed = {"user_id": {"previous": ada.user_id, "current": "US.99"}}
        change = {
            "field": "user_id_update",
            "value": {"metadata": {"phone_number_id": NUMBER}, "user_id_update": [renamed]},
        }
        await whatsapp.deliver({"object": whatsapp.about, "entry": [{"id": ACCOUNT, "changes": [change]}]})
        ada.user_id = "US.99"
        await whatsapp.say(ada, "who am I?")
        await whatsapp.until(lambda: len(whatsapp.shown(ada)) == 2)
        assert isinstance(magpie.model, ScriptedModel)
        assert [turn.content for turn in magpie.model.asked[-1]][-3:] == ["I am Ada", "You said: I am Ada", "who am I?"]


class TestPromises(AdapterPromises):
    adapter = WhatsAppAdapter
    settings = {"access_token": "t", "app_secret": SECRET, "verify_token": "v", "phone_number_id": NUMBER}

    def text_message(self) -> Request:
        return signed(json.dumps(json.loads((FIXTURES[0].parent / "text.json").read_text())["body"]).encode(), SECRET)
