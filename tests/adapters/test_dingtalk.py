"""DingTalk: every kind of message, webhooks and cards that fail, and a whole bot against a strict server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import dingtalk_stream  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adapters.dingtalk
from adapters.dingtalk import DingtalkAdapter, DingtalkSettings
from adapters.dingtalk.callback import is_trusted
from adapters.dingtalk.cards import CARD, MARKDOWN, title
from bot.adapter import Attachment, Chat, Context, Inbound, Message, Page, Post, Request, State
from bot.app import Magpie
from bot.config import Environment
from bot.errors import Malformed, PlatformError, Refused, Throttled, Unauthorized, Unavailable, Unverified
from bot.markup import render
from bot.registry import Configured
from bot.testing import AdapterPromises, Script, ScriptedModel, call, context, echo, running
from tests.adapters.dingtalk_server import (
    CLIENT,
    DIRECT,
    FLOOD,
    GROUP,
    LARGEST,
    OUTSIDER,
    SECRET,
    TEMPLATE,
    Cut,
    DingtalkServer,
    Json,
    Refusal,
    flood,
    sign,
)

FIXTURES = sorted(Path(__file__).with_name("fixtures").glob("dingtalk/*.json"))
NO_STATE = Context("dingtalk", create_autospec(State))
PAGE = Page("**你好**", "你好", "reply:0")
LONGER = Page("**你好**<br>and more", "你好\nand more", "reply:0")
URL = "https://bot.example.com/webhooks/dingtalk"
HOOK, PERSON, TEAM = "robot/sendBySession", "v1.0/robot/oToMessages/batchSend", "v1.0/robot/groupMessages/send"
MAKE, UPDATE, STREAM = "v1.0/card/instances/createAndDeliver", "v1.0/card/instances", "v1.0/card/streaming"
CARDS: Json = {"card_template_id": TEMPLATE}


def make(server: DingtalkServer, lent: Context = NO_STATE, **changes: object) -> DingtalkAdapter:
    return DingtalkAdapter(DingtalkSettings.model_validate(server.settings(**changes)), lent)


@pytest.fixture
async def dingtalk() -> AsyncIterator[DingtalkServer]:
    async with DingtalkServer() as server:
        yield server


@pytest.fixture
async def adapter(dingtalk: DingtalkServer) -> AsyncIterator[DingtalkAdapter]:
    async with context("dingtalk") as lent:
        adapter = make(dingtalk, lent)
        yield adapter
        await adapter.stop()


@pytest.fixture
async def carded(dingtalk: DingtalkServer) -> AsyncIterator[DingtalkAdapter]:
    async with context("dingtalk") as lent:
        adapter = make(dingtalk, lent, **CARDS)
        yield adapter
        await adapter.stop()


def asked(server: DingtalkServer, chat: str = DIRECT, **more: Any) -> Chat:
    """Let a person ask something; return where the answer goes."""
    return make(server).parse(server.request(server.text("hi", chat, **more))).messages[0].chat


class TestPromises(AdapterPromises):
    adapter = DingtalkAdapter
    settings = DingtalkServer().settings(**CARDS)

    def text_message(self) -> Request:
        server = DingtalkServer()  # each server begins with the same message id
        return server.request(server.text("hello"))


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [("CLIENT_ID", None), ("CLIENT_SECRET", None), ("CLIENT_SECRET", " "), ("API_BASE", "ftp://example.com")],
)
def test_a_wrong_setting_is_told_by_its_name_and_not_by_its_value(field: str, value: str | None) -> None:
    settings = {f"DINGTALK_{name.upper()}": str(text) for name, text in DingtalkServer().settings().items()}
    env = Environment({**settings, f"DINGTALK_{field}": value})
    assert env.read(DingtalkSettings, "dingtalk") is None
    [problem] = env.problems
    assert problem.startswith(f"DINGTALK_{field}: ")
    assert SECRET not in problem


def test_secrets_are_hidden() -> None:
    assert SECRET not in repr(DingtalkSettings.model_validate(DingtalkServer().settings()))


# -- verify -----------------------------------------------------------------------------------------------------------


async def test_the_vendors_signature() -> None:
    assert sign("1731000000000") == "DQ8+B3AQzA16usCcHJIbb5/4n1/cO/5lmSqGeAswTHs="
    assert make(DingtalkServer())._signature("1731000000000") == sign("1731000000000")


@pytest.mark.parametrize("name", ["timestamp", "sign"])
@pytest.mark.parametrize("value", [None, "", "x", "1731000000000", "１７３１", "9" * 400, "é\udce9"])
async def test_a_request_with_a_changed_header_is_refused(name: str, value: str | None) -> None:
    server = DingtalkServer()
    request = server.request(server.text("hi"))
    headers = {key: text for key, text in request.headers.items() if key != name}
    headers |= {} if value is None else {name: value}
    with pytest.raises(Unverified) as refused:
        await make(server).verify(msgspec.structs.replace(request, headers=headers))
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("minutes", [-61, 61])
async def test_an_old_request_is_refused(minutes: float) -> None:
    server = DingtalkServer()
    with pytest.raises(Unverified, match="stale"):
        await make(server).verify(server.request(server.text("hi"), time.time() + minutes * 60))


async def test_a_request_that_is_late_is_taken() -> None:
    server = DingtalkServer()
    await make(server).verify(server.request(server.text("hi"), time.time() - 59 * 60))


async def test_another_apps_signature_is_refused() -> None:
    server = DingtalkServer()
    now = str(int(time.time() * 1000))
    with pytest.raises(Unverified):
        await make(server).verify(Request(headers={"timestamp": now, "sign": sign(now, "another")}, body=b"{}"))


# -- parse ------------------------------------------------------------------------------------------------------------


def parse(callback: object, **changes: Any) -> Inbound:
    server = DingtalkServer()
    return make(server, **changes).parse(server.request(json.dumps(callback).encode()))


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_parse(path: Path) -> None:
    case = json.loads(path.read_text())
    inbound = parse(case["callback"])
    expected = [msgspec.convert(case["message"], Message)] if "message" in case else []
    assert list(inbound.messages) == expected
    assert inbound.ignored == case.get("ignored", "")
    assert (inbound.response.status, inbound.response.body) == (200, b"{}")


def test_with_a_robot_code_messages_to_another_robot_are_ignored() -> None:
    callback = DingtalkServer().text("hi")
    assert parse(callback, robot_code=CLIENT).messages
    assert "another robot" in parse(callback, robot_code="dingother").ignored


@pytest.mark.parametrize("path", [path for path in FIXTURES if "text" in path.stem], ids=lambda path: path.stem)
def test_the_sdk_reads_a_text_as_we_do(path: Path) -> None:
    callback = json.loads(path.read_text())["callback"]
    theirs = dingtalk_stream.ChatbotMessage.from_dict(callback)
    [ours] = parse(callback).messages
    assert (ours.id, ours.chat.id, ours.user_name) == (theirs.message_id, theirs.conversation_id, theirs.sender_nick)
    assert ours.text in "".join(theirs.get_text_list()).strip()
    assert json.loads(ours.chat.ticket)["until"] == theirs.session_webhook_expired_time / 1000


@pytest.mark.parametrize(
    ("url", "trusted"),
    [
        ("https://oapi.dingtalk.com/robot/sendBySession?session=x", True),
        ("https://api.dingtalk.com/x", True),
        ("http://oapi.dingtalk.com/robot", False),
        ("https://oapi.dingtalk.com.example.com/", False),
        ("https://notdingtalk.com/", False),
        ("https://oapi.dingtalk.com@example.com/", False),
        ("https://example.com\\@oapi.dingtalk.com/", False),
        ("https://oapi.dingtalk.com:8443/", False),
        ("https://127.0.0.1/", False),
        ("https://[::1", False),
        ("//oapi.dingtalk.com/", False),
        ("", False),
        ("https://proxy.example.com:8443/robot", True),
        ("http://proxy.example.com:8443/robot", False),
    ],
)
def test_answers_go_to_dingtalk_only(url: str, trusted: bool) -> None:
    assert is_trusted(url, "https://proxy.example.com:8443/dingtalk") is trusted


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
FIELDS = st.sampled_from(
    ["msgtype", "msgId", "text", "content", "richText", "downloadCode", "repliedMsg", "sessionWebhookExpiredTime"]
)
JSON = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4), max_leaves=10
)


@given(JSON, st.dictionaries(FIELDS, JSON, max_size=4))
def test_garbage_is_malformed_or_ignored(whole: object, changed: Json) -> None:
    for body in (whole, DingtalkServer().text("hi") | changed):
        with contextlib.suppress(Malformed):
            for message in parse(body).messages:
                assert message.id
                assert message.user
                assert msgspec.json.decode(msgspec.json.encode(message), type=Message) == message


# -- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [DIRECT, GROUP])
async def test_the_session_webhook_is_used_while_it_is_valid(
    adapter: DingtalkAdapter, dingtalk: DingtalkServer, chat: str
) -> None:
    await adapter.send(asked(dingtalk, chat), PAGE)
    [shown] = dingtalk.shown(chat)
    assert (shown.by, shown.kind, shown.text, shown.title) == ("webhook", "markdown", PAGE.text, "你好")
    assert not dingtalk.tokens  # it takes none


@pytest.mark.parametrize("chat", [DIRECT, GROUP])
@pytest.mark.parametrize("how", ["expired", "refused", "foreign"])
async def test_afterwards_the_robot_writes(
    adapter: DingtalkAdapter, dingtalk: DingtalkServer, chat: str, how: str
) -> None:
    cases: dict[str, Json] = {"expired": {"lives": 5}, "foreign": {"sessionWebhook": "https://example.com/"}}
    more = cases.get(how, {})
    question = asked(dingtalk, chat, **more)
    if how == "refused":
        dingtalk.sessions.clear()
    await adapter.send(question, PAGE)
    [shown] = dingtalk.shown(chat)
    assert (shown.by, shown.kind, shown.text, shown.title) == ("robot", "markdown", PAGE.text, "你好")
    assert len(dingtalk.called(HOOK)) == (how == "refused")


async def test_outsiders_are_reached_by_the_webhook_only(adapter: DingtalkAdapter, dingtalk: DingtalkServer) -> None:
    await adapter.send(asked(dingtalk, staff=OUTSIDER), PAGE)
    assert [shown.by for shown in dingtalk.shown()] == ["webhook"]
    with pytest.raises(Refused, match="expired"):
        await adapter.send(asked(dingtalk, staff=OUTSIDER, lives=0), PAGE)


async def test_who_cannot_be_reached_is_told_apart_from_success(
    adapter: DingtalkAdapter, dingtalk: DingtalkServer
) -> None:
    with pytest.raises(Refused, match="cannot write to this person"):
        await adapter.send(asked(dingtalk, staff="gone", lives=0), PAGE)


async def test_the_access_token_is_shared_by_replicas(adapter: DingtalkAdapter, dingtalk: DingtalkServer) -> None:
    other, chat = make(dingtalk, adapter.context), asked(dingtalk, lives=0)
    await asyncio.gather(*(replica.send(chat, PAGE) for replica in (adapter, other, adapter, other)))
    assert len(dingtalk.tokens) == len(dingtalk.called("v1.0/oauth2/accessToken")) == 1
    await other.stop()


async def test_an_expired_token_is_replaced_once(adapter: DingtalkAdapter, dingtalk: DingtalkServer) -> None:
    chat = asked(dingtalk, lives=0)
    await adapter.send(chat, PAGE)
    dingtalk.expire()
    await adapter.send(chat, PAGE)
    assert len(dingtalk.shown()) == 2
    assert len(dingtalk.called(PERSON)) == 3


@pytest.mark.parametrize(
    ("path", "outcome", "error"),
    [
        (HOOK, Refusal(130101, "send too fast, exceed 20 times per minute"), Throttled),
        (HOOK, Refusal(-1, "system busy"), Unavailable),
        (HOOK, Cut(), Unavailable),
        (PERSON, Refusal(*FLOOD), Throttled),
        (PERSON, Refusal("Throttling.Api", "", 400), Throttled),
        (PERSON, Refusal("x", "", 429), Throttled),
        (PERSON, Refusal(88, "90018"), Throttled),
        (PERSON, Refusal("", "", 502), Unavailable),
        (PERSON, Refusal("ServiceUnavailable", "", 503), Unavailable),
        (PERSON, Cut(), Unavailable),
        (PERSON, Refusal("invalidParameter.robotCode.notExsit", "机器人 不存在"), Refused),
        (
            PERSON,
            Refusal("Forbidden.AccessDenied.AccessTokenPermissionDenied", "[qyapi_robot_sendmsg] 你好", 403),
            Unauthorized,
        ),
        (PERSON, Refusal("a secret, perhaps", "你好"), Refused),
    ],
    ids=str,
)
async def test_failures(
    adapter: DingtalkAdapter,
    dingtalk: DingtalkServer,
    path: str,
    outcome: Refusal | Cut,
    error: type[PlatformError],
) -> None:
    dingtalk.script(path, outcome)
    with pytest.raises(error) as raised:
        await adapter.send(asked(dingtalk, lives=3600 if path == HOOK else 0), PAGE)
    text = str(raised.value)
    assert not [secret for secret in (*dingtalk.tokens, SECRET, "你好", "perhaps", "session=") if secret in text]
    assert ("qyapi_robot_sendmsg" in text) is (error is Unauthorized)


async def test_a_wrong_secret_is_no_endless_loop(dingtalk: DingtalkServer) -> None:
    async with context("dingtalk") as lent:
        adapter = make(dingtalk, lent, client_secret="wrong")
        with pytest.raises(Unauthorized, match="invalidClientIdOrSecret"):
            await adapter.send(asked(dingtalk, lives=0), PAGE)
        await adapter.stop()
    assert len(dingtalk.calls) == 1


@pytest.mark.parametrize("character", ["字", "👩", '"', "\\", "\n"])
@pytest.mark.parametrize("lives", [0, 3600])
async def test_a_page_of_anything_is_taken(
    adapter: DingtalkAdapter, dingtalk: DingtalkServer, character: str, lives: float
) -> None:
    text = "a" + character * (DingtalkAdapter.can.max_length - 1)
    await adapter.send(asked(dingtalk, lives=lives), Page(text, text, "reply:0"))
    assert len(dingtalk.shown()) == 1
    assert all(len(msgspec.json.encode(call.body)) < LARGEST for call in dingtalk.calls)


def test_a_title_is_the_first_line() -> None:
    assert title("\n  Hello\nyou") == "Hello"
    assert title("") == "…"
    assert len(title("字" * 100)) == 20


# -- cards ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [DIRECT, GROUP])
async def test_a_card_grows_and_is_finished(carded: DingtalkAdapter, dingtalk: DingtalkServer, chat: str) -> None:
    question = asked(dingtalk, chat)
    post = Post(await carded.begin(question, PAGE))
    [shown] = dingtalk.shown(chat)
    assert (shown.kind, shown.text, shown.status) == ("card", PAGE.text, "2")
    assert await carded.edit(question, post, LONGER, False) == post.id
    assert (shown.text, shown.status, shown.final) == (LONGER.text, "2", False)
    assert await carded.edit(question, post, LONGER, True) == post.id
    assert (shown.text, shown.status, shown.final) == (LONGER.text, "3", True)
    assert dingtalk.shown(chat) == [shown]


async def test_a_whole_answer_is_a_card_as_well(carded: DingtalkAdapter, dingtalk: DingtalkServer) -> None:
    await carded.send(asked(dingtalk), PAGE)
    assert [(shown.kind, shown.text, shown.status) for shown in dingtalk.shown()] == [("card", PAGE.text, "3")]


@pytest.mark.parametrize("how", ["forbidden", "template", "unreachable", "outsider"])
async def test_where_a_card_is_refused_the_answer_is_a_message(dingtalk: DingtalkServer, how: str) -> None:
    dingtalk.cards, dingtalk.reachable = how != "forbidden", how != "unreachable"
    async with context("dingtalk") as lent:
        carded = make(dingtalk, lent, card_template_id="other" if how == "template" else TEMPLATE)
        question = asked(dingtalk, staff=OUTSIDER) if how == "outsider" else asked(dingtalk)
        for key in ("reply:0", "again:0"):
            page = msgspec.structs.replace(LONGER, key=key)
            post = Post(await carded.begin(question, page))
            assert post.id == ""
            assert await carded.edit(question, post, page, False) == ""
            await carded.edit(question, post, page, True)
        await carded.stop()
    assert [(shown.kind, shown.text) for shown in dingtalk.shown()] == [("text", LONGER.plain)] * 2
    assert len(dingtalk.called(MAKE)) == (how != "outsider")  # it was not tried again


async def test_a_wrong_variable_of_the_template_loses_nothing(
    carded: DingtalkAdapter, dingtalk: DingtalkServer
) -> None:
    dingtalk.content_key = "content"
    question = asked(dingtalk)
    post = Post(await carded.begin(question, PAGE))
    await carded.edit(question, post, LONGER, False)
    await carded.edit(question, post, LONGER, True)
    assert [(shown.kind, shown.status) for shown in dingtalk.shown()] == [("card", "5"), ("text", "")]
    assert dingtalk.shown()[1].text == LONGER.plain


async def test_another_variable_of_the_template(dingtalk: DingtalkServer) -> None:
    dingtalk.content_key = "content"
    async with context("dingtalk") as lent:
        carded = make(dingtalk, lent, card_content_key="content", **CARDS)
        await carded.send(asked(dingtalk), PAGE)
        await carded.stop()
    assert [(shown.text, shown.status) for shown in dingtalk.shown()] == [(PAGE.text, "3")]


async def test_a_begin_that_got_lost_is_repeated_with_the_same_card(
    carded: DingtalkAdapter, dingtalk: DingtalkServer
) -> None:
    question = asked(dingtalk)
    dingtalk.script(MAKE, Cut(after=True))
    with pytest.raises(Unavailable):
        await carded.begin(question, PAGE)
    other = make(dingtalk, carded.context, **CARDS)  # after a crash, say
    await other.send(question, LONGER)
    await other.stop()
    assert [(shown.text, shown.status) for shown in dingtalk.shown()] == [(LONGER.text, "3")]


async def test_a_throttled_begin_that_is_refused_later_is_a_message(
    carded: DingtalkAdapter, dingtalk: DingtalkServer
) -> None:
    question = asked(dingtalk)
    dingtalk.script(MAKE, flood())
    with pytest.raises(Throttled):
        await carded.begin(question, PAGE)
    dingtalk.cards = False
    await carded.send(question, LONGER)
    assert [(shown.kind, shown.text) for shown in dingtalk.shown()] == [("text", LONGER.plain)]


async def test_all_cards_together_change_at_a_bearable_pace(
    carded: DingtalkAdapter, dingtalk: DingtalkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters.dingtalk, "FRAMES", 0.001)
    question = asked(dingtalk)
    posts = [Post(await carded.begin(question, msgspec.structs.replace(PAGE, key=key))) for key in ("a", "b")]
    await carded.edit(question, posts[0], LONGER, False)
    with pytest.raises(Throttled):
        await carded.edit(question, posts[1], LONGER, False)
    for post in posts:  # the last word never waits
        await carded.edit(question, post, LONGER, True)
    assert [shown.status for shown in dingtalk.shown()] == ["3", "3"]


async def test_a_post_that_is_not_needed_is_not_posted_anew(carded: DingtalkAdapter, dingtalk: DingtalkServer) -> None:
    for id in ("", "gone"):
        assert await carded.edit(asked(dingtalk), Post(id), Page("⤴", "⤴"), True) == id
    assert not dingtalk.shown()


# -- Markdown ---------------------------------------------------------------------------------------------------------

SOURCE = """# Title 标题

中**“粗体”**文 and *italics* with `code`
and [link](https://example.com) <b>

| a | b |
|---|---|
| 1 | 2 |

- one
  - two

> quoted

```python
print("<b>")
```"""
AS_MESSAGE = """# Title 标题

中\u200a**“粗体”**\u200a文 and *italics* with `code`  \n\
and [link](https://example.com) <\u200bb>

a: 1  \n\
b: 2

- one
    - two

> quoted

```python
print("<b>")
```"""
AS_CARD = """# Title 标题

中\u200a**“粗体”**\u200a文 and *italics* with `code`<br>and [link](https://example.com) <\u200bb>

| a | b |
| --- | --- |
| 1 | 2 |

- one
    - two

> quoted

```python
print("<b>")
```"""


def test_the_dialects() -> None:
    assert render(SOURCE, MARKDOWN) == AS_MESSAGE
    assert render(SOURCE, CARD) == AS_CARD


def test_only_cards_grow() -> None:
    plain, carded = make(DingtalkServer()), make(DingtalkServer(), **CARDS)
    assert (plain.can.dialect, plain.can.edit_every) == (MARKDOWN, None)
    assert (carded.can.dialect, carded.can.edit_every) == (CARD, 1.0)


# -- files ------------------------------------------------------------------------------------------------------------


async def test_files_are_downloaded_also_with_a_new_token(adapter: DingtalkAdapter, dingtalk: DingtalkServer) -> None:
    dingtalk.files["c1"] = b"\xff\xd8picture"
    [message] = (
        make(dingtalk).parse(dingtalk.request(dingtalk.message("picture", content={"downloadCode": "c1"}))).messages
    )
    [picture] = message.attachments
    assert await adapter.download(picture, 100) == b"\xff\xd8picture"
    dingtalk.expire()
    assert await adapter.download(picture, 100) == b"\xff\xd8picture"
    with pytest.raises(Refused, match="larger"):
        await adapter.download(picture, 5)
    with pytest.raises(Refused, match="downloadCode"):
        await adapter.download(Attachment("image", f"{CLIENT}/gone"), 100)


@pytest.mark.parametrize(
    "url", ["https://files.example.com/x", "http://169.254.169.254/x", "https://dingtalk.com.example.com/x", "x"]
)
async def test_files_on_other_hosts_are_refused(adapter: DingtalkAdapter, dingtalk: DingtalkServer, url: str) -> None:
    dingtalk.elsewhere["c1"] = url
    with pytest.raises(Refused, match="not allowed"):
        await adapter.download(Attachment("image", f"{CLIENT}/c1"), 100)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("http://a.oss-cn-beijing.aliyuncs.com/x?Signature=y", "https://a.oss-cn-beijing.aliyuncs.com/x?Signature=y"),
        ("https://down.dingtalk.com/x", "https://down.dingtalk.com/x"),
        ("https://files.example.com/x", "https://files.example.com/x"),
    ],
)
async def test_files_come_by_https(
    dingtalk: DingtalkServer, monkeypatch: pytest.MonkeyPatch, given: str, asked: str
) -> None:
    dingtalk.elsewhere["c1"] = given
    async with context("dingtalk") as lent:
        adapter = make(dingtalk, lent, file_hosts="files.example.com")
        fetched: list[str] = []

        async def fetch(url: str, limit: int, headers: object) -> bytes:
            fetched.append(url)
            assert headers is None
            return b"file"

        monkeypatch.setattr(adapter.client, "_fetch", fetch)
        assert await adapter.download(Attachment("image", f"{CLIENT}/c1"), 100) == b"file"
        await adapter.stop()
    assert fetched == [asked]


# -- set up -----------------------------------------------------------------------------------------------------------


async def test_register_lists_the_steps() -> None:
    told = "\n".join(finding.what for finding in await make(DingtalkServer()).register(URL))
    for word in (URL, "https://open-dev.dingtalk.com", "DINGTALK_CLIENT_SECRET", "qyapi_robot_sendmsg"):
        assert word in told


@pytest.mark.parametrize(("changes", "word"), [({}, "no template"), (CARDS, "AI cards")])
async def test_check_asks_for_a_token(dingtalk: DingtalkServer, changes: Json, word: str) -> None:
    adapter = make(dingtalk, **changes)
    found = await adapter.check(URL)
    await adapter.stop()
    assert [finding.ok for finding in found] == [True, True]
    assert word in found[0].what


@pytest.mark.parametrize(
    ("changes", "advice"),
    [({"client_secret": "wrong"}, "DINGTALK_CLIENT_SECRET"), ({"api_base": "http://127.0.0.1:9"}, "DINGTALK_API_BASE")],
)
async def test_check_says_what_is_wrong(dingtalk: DingtalkServer, changes: Json, advice: str) -> None:
    adapter = make(dingtalk, **changes)
    [finding] = await adapter.check(URL)
    await adapter.stop()
    assert not finding.ok
    assert advice in finding.advice


# -- whole conversations ----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def at_dingtalk(
    script: Script = echo, **changes: Any
) -> AsyncIterator[tuple[Magpie, DingtalkServer, ScriptedModel]]:
    model = ScriptedModel(script)
    async with DingtalkServer() as server:
        settings = DingtalkSettings.model_validate(server.settings(**changes))
        async with running(Configured("dingtalk", DingtalkAdapter, settings), model=model) as magpie:
            server.webhook = f"http://127.0.0.1:{magpie.port}/webhooks/dingtalk"
            yield magpie, server, model


def paced(gate: asyncio.Event, *words: str) -> Script:
    """Answer with the first word, and with the rest when the gate opens."""

    async def answer() -> AsyncIterator[str]:
        yield words[0]
        await gate.wait()
        for word in words[1:]:
            yield word

    return lambda turns: answer()


@pytest.mark.parametrize("changes", [{}, CARDS], ids=["messages", "cards"])
async def test_a_question_is_acknowledged_and_answered_once(changes: Json) -> None:
    async with at_dingtalk(**changes) as (magpie, server, model):
        question = server.text("hello")
        assert await asyncio.gather(*(server.deliver(question) for _ in range(4))) == [200] * 4
        await server.deliver(server.text("again"))
        await server.until(lambda: len(server.done()) == 2)
        assert [shown.text for shown in server.shown()] == ["You said: hello", "You said: again"]
        assert len(model.asked) == 2
        forged = msgspec.structs.replace(server.request(question), headers={"timestamp": "1", "sign": "x"})
        assert (await call(magpie, "dingtalk", forged))[0] == 401


async def test_an_answer_grows_in_one_card_and_is_finished() -> None:
    gate = asyncio.Event()
    async with at_dingtalk(paced(gate, "Hello", ", you", " there"), **CARDS) as (_, server, _):
        await server.deliver(server.text("hi"))
        await server.until(lambda: server.shown() and server.shown()[0].text == "Hello")
        gate.set()
        await server.until(server.done)
        assert [shown.text for shown in server.shown()] == ["Hello, you there"]


async def test_in_a_group_the_mention_is_answered() -> None:
    async with at_dingtalk() as (_, server, model):
        await server.deliver(server.text("chatter", GROUP, isInAtList=False))
        await server.deliver(server.text(" what is this?", GROUP))
        await server.until(lambda: server.done(GROUP))
        assert [shown.text for shown in server.shown(GROUP)] == ["You said: what is this?"]
        assert [turns[-1].content for turns in model.asked] == ["what is this?"]


@pytest.mark.parametrize("path", [MAKE, STREAM, UPDATE])
async def test_a_rate_limit_and_a_lost_answer_are_survived(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.dingtalk.api.PAUSE", 0.01)
    gate = asyncio.Event()
    async with at_dingtalk(paced(gate, "Hello", " there"), **CARDS) as (_, server, _):
        server.script(path, flood(), Cut(after=True))
        await server.deliver(server.text("hi"))
        if path == MAKE:
            await server.until(server.shown)
        gate.set()
        await server.until(server.done)
        assert [shown.text for shown in server.shown()] == ["Hello there"]


async def test_a_rate_limit_of_the_webhook_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(adapters.dingtalk.api.ERRORS, 130101, (Throttled, "rate limit", 0.01))
    async with at_dingtalk() as (_, server, _):
        server.script(HOOK, Refusal(130101, "send too fast"), Refusal(-1, "system busy"))
        await server.deliver(server.text("hi"))
        await server.until(server.done)
        assert [shown.text for shown in server.shown()] == ["You said: hi"]


@pytest.mark.parametrize("changes", [{}, CARDS], ids=["messages", "cards"])
async def test_an_expired_token_is_survived(changes: Json) -> None:
    async with at_dingtalk(**changes) as (_, server, _):
        await server.deliver(server.text("hi", lives=0))
        await server.until(server.done)
        server.expire()
        await server.deliver(server.text("hi", lives=0))
        await server.until(lambda: len(server.done()) == 2)
        assert len(server.tokens) == 2


async def test_a_long_answer_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DingtalkAdapter, "can", msgspec.structs.replace(DingtalkAdapter.can, pages_per_second=1000))
    long = "\n\n".join(f"第 {n} 段：" + "字" * 900 for n in range(20))
    async with at_dingtalk(lambda turns: [long]) as (_, server, _):
        await server.deliver(server.text("long please"))
        await server.until(lambda: any("第 19 段" in shown.text for shown in server.done()))
        assert len(server.shown()) == 5
        assert "".join(shown.text for shown in server.shown()).count("字") == 18000


async def test_the_model_sees_pictures_and_hears_voices() -> None:
    async with at_dingtalk() as (_, server, model):
        server.files["c1"] = b"\xff\xd8picture"
        await server.deliver(server.message("picture", content={"downloadCode": "c1"}))
        await server.until(server.done)
        assert [picture.data for picture in model.pictures[0]] == [b"\xff\xd8picture"]
        await server.deliver(server.message("audio", content={"downloadCode": "c2", "recognition": "天气"}))
        await server.until(lambda: len(server.done()) == 2)
        assert model.asked[1][-1].content == "天气"


async def test_who_sends_what_we_cannot_read_hears_so() -> None:
    async with at_dingtalk() as (_, server, model):
        await server.deliver(server.message("unknownMsgType", content="不支持"))
        await server.until(server.done)
        assert not model.asked
