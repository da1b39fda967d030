"""Feishu: every kind of event, cards that die in every way, and a whole bot against a strict server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adapters.feishu
from adapters.feishu import FeishuAdapter, FeishuSettings
from adapters.feishu.cards import MARKDOWN, card, few_tables, finished, growing
from adapters.feishu.crypto import decrypt, signature
from bot.adapter import Attachment, Chat, Context, Inbound, Message, Page, Post, Request, State, Turn
from bot.app import Magpie
from bot.config import Environment
from bot.errors import Malformed, PlatformError, Refused, Throttled, Unauthorized, Unavailable, Unverified
from bot.markup import pages, render
from bot.registry import Configured
from bot.testing import LONG_ANSWER, AdapterPromises, Script, ScriptedModel, call, context, echo, running
from tests.adapters.feishu_server import (
    BOT,
    DIRECT,
    GROUP,
    KEY,
    LARGEST,
    SECRET,
    TOKEN,
    Cut,
    FeishuServer,
    Json,
    Refusal,
)

FIXTURES = sorted(Path(__file__).with_name("fixtures").glob("feishu/*.json"))
NO_STATE = Context("feishu", create_autospec(State))
ASKED = Chat(DIRECT, ticket="om_0")
PAGE = Page("**你好** &#60;b>", "你好 <b>", "reply:0")
LONGER = Page("**你好** &#60;b> and more", "你好 <b> and more", "reply:0")
URL = "https://bot.example.com/webhooks/feishu"


def make(server: FeishuServer, lent: Context = NO_STATE, **changes: object) -> FeishuAdapter:
    return FeishuAdapter(FeishuSettings.model_validate(server.settings(**changes)), lent)


@pytest.fixture
async def feishu() -> AsyncIterator[FeishuServer]:
    async with FeishuServer() as server:
        yield server


@pytest.fixture
async def adapter(feishu: FeishuServer) -> AsyncIterator[FeishuAdapter]:
    async with context("feishu") as lent:
        adapter = make(feishu, lent)
        yield adapter
        await adapter.stop()


class TestPromises(AdapterPromises):
    adapter = FeishuAdapter
    settings = FeishuServer().settings()

    def text_message(self) -> Request:
        server = FeishuServer()  # each server begins with the same message id
        return server.request(server.message({"text": "hello"}))


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("APP_ID", None),
        ("APP_SECRET", None),
        ("APP_SECRET", " "),
        ("VERIFICATION_TOKEN", None),
        ("VERIFICATION_TOKEN", ""),
        ("API_BASE", "ftp://example.com"),
    ],
)
def test_a_wrong_setting_is_told_by_its_name_and_not_by_its_value(field: str, value: str | None) -> None:
    given = {f"FEISHU_{name.upper()}": str(text) for name, text in FeishuServer().settings().items()}
    env = Environment({**given, f"FEISHU_{field}": value})
    assert env.read(FeishuSettings, "feishu") is None
    [problem] = env.problems
    assert problem.startswith(f"FEISHU_{field}: ")
    assert SECRET not in problem


def test_secrets_are_hidden() -> None:
    shown = repr(FeishuSettings.model_validate(FeishuServer().settings()))
    assert not [secret for secret in (SECRET, TOKEN, KEY) if secret in shown]


# -- verify -----------------------------------------------------------------------------------------------------------


def test_the_vendors_vector_is_decrypted() -> None:
    assert decrypt("test key", "P37w+VZImNgPEO1RBhJ6RtKl7n6zymIbEG1pReEzghk=") == b"hello world"


def test_the_signature_covers_the_encrypted_body() -> None:
    body = b'{"encrypt":"P37w+VZImNgPEO1RBhJ6RtKl7n6zymIbEG1pReEzghk="}'
    expected = "8f781a2f86cc891fd8b7c20d65b8d5da36b39552c8e1f88a169bd5ac58a85966"
    assert signature("test key", "1731000000", "af1b2c3d", body) == expected


async def test_a_handshake_as_it_was_recorded_is_answered() -> None:
    body = (
        b'{"encrypt":"MDEyMzQ1Njc4OWFiY2RlZjdMqJr/drtKQQ0VX+bXPfgRgfTbzooyCqeb3gdOlYyyOxbcnlrcdCHJM+7hEVOTjEIV/+k/'
        b'PK7lzgFeltBSA4qRvwB7BmZIXECD4bLgjDju"}'
    )
    adapter = make(FeishuServer(), encrypt_key="kudryavka", verification_token="xxxxxx")
    await adapter.verify(Request(body=body))
    assert json.loads(adapter.parse(Request(body=body)).response.body) == {"challenge": "ajls384kdjx98XX"}


@pytest.mark.parametrize("key", [KEY, ""], ids=["encrypted", "plain"])
async def test_the_handshake_is_answered_and_needs_the_token(key: str) -> None:
    server = FeishuServer(key)
    adapter = make(server)
    await adapter.verify(server.handshake("abc"))
    inbound = adapter.parse(server.handshake("abc"))
    assert (inbound.messages, json.loads(inbound.response.body)) == ((), {"challenge": "abc"})
    for token in ("", "wrong", "é\udce9"):
        with pytest.raises(Unverified):
            await adapter.verify(server.handshake("abc", token))


@pytest.mark.parametrize("key", [KEY, ""], ids=["encrypted", "plain"])
async def test_the_sample_is_an_event(key: str) -> None:
    adapter = make(FeishuServer(key))
    await adapter.verify(adapter.sample())
    assert adapter.parse(adapter.sample()).ignored == "event sample"


@pytest.mark.parametrize("name", ["x-lark-signature", "x-lark-request-timestamp", "x-lark-request-nonce"])
@pytest.mark.parametrize("value", [None, "", "x", "é\udce9"])
async def test_an_event_with_a_changed_header_is_refused(name: str, value: str | None) -> None:
    server = FeishuServer()
    request = server.request(server.message({"text": "hi"}))
    headers = {key: given for key, given in request.headers.items() if key != name}
    headers |= {} if value is None else {name: value}
    with pytest.raises(Unverified):
        await make(server).verify(msgspec.structs.replace(request, headers=headers))


@pytest.mark.parametrize("key", [KEY, ""], ids=["encrypted", "plain"])
@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"encrypt":"AAAA"}', b'{"encrypt":"\xff"}', b'{"token":7}'])
async def test_a_body_without_the_token_is_refused(key: str, body: bytes) -> None:
    server = FeishuServer(key)
    for request in (Request(body=body), server.sealed(body)):
        with pytest.raises(Unverified) as refused:
            await make(server).verify(request)
        assert TOKEN not in str(refused.value)


async def test_what_is_wrong_with_an_unsigned_body_is_not_told() -> None:
    """Else the answers would say which bytes decrypt to something, and so what other bytes mean."""
    server = FeishuServer()
    event = server.request(server.message({"text": "hi"})).body
    garbled = event[:40] + bytes([event[40] ^ 1]) + event[41:]
    reasons = set()
    for body in (event, garbled, server.handshake(token="x").body, server.sealed(b"garbage").body):
        with pytest.raises(Unverified) as refused:
            await make(server).verify(Request(body=body))
        reasons.add(str(refused.value))
    assert len(reasons) == 1


@pytest.mark.parametrize("hours", [-25, 25])
async def test_an_old_event_is_refused(hours: float) -> None:
    server = FeishuServer()
    event = server.message({"text": "hi"})
    with pytest.raises(Unverified, match="stale"):
        await make(server).verify(server.request(event, time.time() + hours * 3600))


async def test_an_event_that_is_repeated_for_hours_is_taken() -> None:
    server = FeishuServer()
    for at in (time.time() - 7 * 3600, time.time() * 1000):
        await make(server).verify(server.request(server.message({"text": "hi"}), at))


async def test_encrypted_events_without_a_key_name_the_variable() -> None:
    server = FeishuServer()
    with pytest.raises(Unverified, match="FEISHU_ENCRYPT_KEY"):
        await make(server, encrypt_key="").verify(server.request(server.message({"text": "hi"})))


async def test_plain_events_are_refused_where_there_is_a_key() -> None:
    plain = FeishuServer("")
    with pytest.raises(Unverified):
        await make(plain, encrypt_key=KEY).verify(plain.request(plain.message({"text": "hi"})))


# -- the vendor's SDK -------------------------------------------------------------------------------------------------


# In a process of its own: importing the SDK takes seconds and leaves an event loop behind.
SDK = """
import json, sys
import lark_oapi
answers, read = [], []
for case in json.load(sys.stdin):
    builder = lark_oapi.EventDispatcherHandler.builder(case["key"], case["token"])
    handler = builder.register_p2_im_message_receive_v1(read.append).build()
    request = lark_oapi.RawRequest()
    request.headers, request.body = case["headers"], case["body"].encode()
    answer = handler.do(request)
    answers.append([answer.status_code, json.loads(answer.content)])
print(json.dumps([answers, [json.loads(lark_oapi.JSON.marshal(data.event)) for data in read]]))
"""
HEADERS = {f"x-lark-{name}".lower(): f"X-Lark-{name}" for name in ("Request-Timestamp", "Request-Nonce", "Signature")}


def test_the_sdk_takes_what_we_take_and_reads_the_same() -> None:
    cases: list[Json] = []
    expected: list[Message] = []
    for server in (FeishuServer(), FeishuServer("")):
        event = server.request(server.mention("@1 what is this?", thread_id="omt_1", parent_id="om_0"))
        expected += make(server).parse(event).messages
        for request in (event, server.handshake("abc")):
            headers = {HEADERS[name]: value for name, value in request.headers.items()}
            cases.append({"key": server.key, "token": TOKEN, "headers": headers, "body": request.body.decode()})
    told = subprocess.run(
        [sys.executable, "-c", SDK], input=json.dumps(cases), capture_output=True, text=True, check=True
    )
    answers, read = json.loads(told.stdout)
    assert answers == [[200, {"msg": "success"}], [200, {"challenge": "abc"}]] * 2
    for ours, theirs in zip(expected, read, strict=True):
        message = theirs["message"]
        assert ours.user == theirs["sender"]["sender_id"]["open_id"]
        assert (ours.id, ours.reply_to) == (message["message_id"], message["parent_id"])
        assert (ours.chat.id, ours.chat.thread) == (message["chat_id"], message["thread_id"])


# -- parse ------------------------------------------------------------------------------------------------------------


def parse(event: object, id: str = BOT, key: str = "") -> Inbound:
    server = FeishuServer(key)
    adapter = make(server)
    adapter.id = id
    return adapter.parse(server.sealed(json.dumps(event).encode()))


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_parse(path: Path) -> None:
    case = json.loads(path.read_text())
    inbound = parse(case["event"])
    expected = [msgspec.convert(case["message"], Message)] if "message" in case else []
    assert list(inbound.messages) == expected
    assert inbound.ignored == case.get("ignored", "")
    assert (inbound.response.status, inbound.response.body) == (200, b"{}")


def test_until_our_id_is_known_the_first_mention_is_ours() -> None:
    server = FeishuServer("")
    event = server.mention("@1 /reset @2", (BOT, "Magpie"), ("ou_li", "Li"))
    [message] = parse(event, id="").messages
    assert (message.text, message.addressed) == ("/reset @Li", True)
    [message] = parse(server.message({"text": "@all good"}, chat=GROUP), id="").messages
    assert not message.addressed


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=20)
JSON = st.recursive(
    VALUES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["schema", "header", "event", "message", "sender", "sender_id", "open_id", "content", "tag"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@given(JSON, st.text(), st.sampled_from(["text", "post", "image", "file", "audio", "x"]), JSON)
def test_garbage_is_malformed_or_ignored(whole: object, content: str, kind: str, inner: object) -> None:
    event = FeishuServer("").message({}, kind)
    for text in (content, json.dumps({"text": content, "content": inner, "image_key": inner})):
        event["event"]["message"]["content"] = text
        for body in (whole, event):
            with contextlib.suppress(Malformed, Unverified):
                for message in parse(body).messages:
                    assert message.id
                    assert message.user


# -- outbound ---------------------------------------------------------------------------------------------------------


async def test_a_page_is_a_card(adapter: FeishuAdapter, feishu: FeishuServer) -> None:
    id = await adapter.send(ASKED, PAGE)
    [shown] = feishu.shown()
    assert (shown.id, shown.text, shown.reply_to) == (id, PAGE.text, "")
    assert shown.card is not None
    assert shown.card.summary == "你好 <b>"


async def test_the_same_page_is_sent_once(adapter: FeishuAdapter, feishu: FeishuServer) -> None:
    feishu.script("create", Cut(after=True))
    with pytest.raises(Unavailable):
        await adapter.send(ASKED, PAGE)
    await adapter.send(ASKED, PAGE)
    assert len(feishu.shown()) == 1
    await adapter.send(ASKED, msgspec.structs.replace(PAGE, key="reply:1"))
    assert len(feishu.shown()) == 2


@pytest.mark.parametrize("thread", ["", "omt_1"])
async def test_in_a_group_the_question_is_answered(adapter: FeishuAdapter, feishu: FeishuServer, thread: str) -> None:
    question = feishu.mention("@1 hi")["event"]["message"]["message_id"]
    await adapter.send(Chat(GROUP, "group", thread, question), PAGE)
    [shown] = feishu.shown(GROUP)
    assert (shown.reply_to, shown.thread) == (question, bool(thread))


async def test_who_takes_back_the_question_is_answered_all_the_same(
    adapter: FeishuAdapter, feishu: FeishuServer
) -> None:
    question = feishu.mention("@1 hi")["event"]["message"]["message_id"]
    feishu.recall(question)
    await adapter.send(Chat(GROUP, "group", "", question), PAGE)
    assert [shown.reply_to for shown in feishu.shown(GROUP)] == [""]


async def test_where_cards_are_refused_the_page_is_plain(adapter: FeishuAdapter, feishu: FeishuServer) -> None:
    feishu.cards = False
    page = Page("**hi** &#60;at id=all></at>", 'hi <at user_id="all"></at>', "reply:0")
    assert not (await adapter.begin(ASKED, page)).count(" ")
    [shown] = feishu.shown()
    assert shown.card is None
    assert shown.text == 'hi <\u200bat user_id="all"></at>'


async def test_a_card_streams_and_is_finished(adapter: FeishuAdapter, feishu: FeishuServer) -> None:
    post = Post(await adapter.begin(ASKED, PAGE))
    [shown] = feishu.shown()
    assert shown.card is not None
    assert (shown.card.streaming, shown.card.summary) == (True, "[生成中...]")
    for text in ("**你好** &#60;b> and", LONGER.text):
        assert await adapter.edit(ASKED, post, Page(text, text, "reply:0"), False) == post.id
    assert await adapter.edit(ASKED, post, LONGER, True) == post.id
    assert shown.card.history == [PAGE.text, "**你好** &#60;b> and", LONGER.text, LONGER.text]
    assert (shown.card.streaming, shown.card.summary) == (False, "你好 <b> and more")
    assert feishu.shown() == [shown]


async def test_sequence_numbers_grow_also_when_the_clock_stands_or_goes_back(
    adapter: FeishuAdapter, feishu: FeishuServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = adapters.feishu.milliseconds()
    post = Post(await adapter.begin(ASKED, PAGE))
    for clock in (now, now, now - 5000, now - 5000):
        monkeypatch.setattr(adapters.feishu, "milliseconds", lambda clock=clock: clock)
        await adapter.edit(ASKED, post, LONGER, False)
    await adapter.edit(ASKED, post, LONGER, True)
    numbers = [call.body["sequence"] for call in feishu.calls if "sequence" in call.body]
    assert len(numbers) == 6
    assert numbers == sorted(set(numbers))
    assert not feishu.called("swap")


async def test_another_process_goes_on_with_a_card(adapter: FeishuAdapter, feishu: FeishuServer) -> None:
    post = Post(await adapter.begin(ASKED, PAGE))
    await adapter.edit(ASKED, post, PAGE, False)
    other = make(feishu, adapter.context)
    [shown] = feishu.shown()
    assert shown.card is not None
    shown.card.sequence += 50_000  # its clock was fifty seconds ahead
    await other.edit(ASKED, post, LONGER, True)
    await other.stop()
    assert (shown.text, shown.card.streaming) == (LONGER.text, False)
    assert feishu.shown() == [shown]


async def test_a_begin_that_got_lost_is_repeated_with_the_same_card(
    adapter: FeishuAdapter, feishu: FeishuServer
) -> None:
    feishu.script("create", Cut(after=True))
    with pytest.raises(Unavailable):
        await adapter.begin(ASKED, PAGE)
    other = make(feishu, adapter.context)  # after a crash, say
    post = Post(await other.begin(ASKED, PAGE))
    await other.edit(ASKED, post, LONGER, True)
    await other.stop()
    assert [shown.text for shown in feishu.shown()] == [LONGER.text]


async def test_a_stream_that_ended_by_itself_is_replaced(adapter: FeishuAdapter, feishu: FeishuServer) -> None:
    post = Post(await adapter.begin(ASKED, PAGE))
    feishu.end_streams()
    post = Post(await adapter.edit(ASKED, post, PAGE, False))
    await adapter.edit(ASKED, post, LONGER, True)
    assert [shown.text for shown in feishu.shown()] == [LONGER.text]
    assert len(feishu.called("stream")) == 1  # it was not tried again


async def test_a_stream_that_ends_at_the_last_moment_is_finished(adapter: FeishuAdapter, feishu: FeishuServer) -> None:
    post = Post(await adapter.begin(ASKED, PAGE))
    feishu.script("close", Refusal(300309, "streaming mode is closed"))
    await adapter.edit(ASKED, post, LONGER, True)
    [shown] = feishu.done()
    assert shown.text == LONGER.text


async def test_without_the_permission_for_streams_a_card_is_replaced(
    adapter: FeishuAdapter, feishu: FeishuServer
) -> None:
    feishu.scopes.remove("cardkit:card:write")
    for key in ("reply:0", "again:0"):
        post = Post(await adapter.begin(ASKED, msgspec.structs.replace(PAGE, key=key)))
        await adapter.edit(ASKED, post, LONGER, False)
        await adapter.edit(ASKED, post, LONGER, True)
    assert [shown.text for shown in feishu.shown()] == [LONGER.text] * 2
    assert len(feishu.called("make")) == 1  # it was not tried again


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_card_that_was_taken_back_does_not_stop_the_answer(
    adapter: FeishuAdapter, feishu: FeishuServer, streamed: bool
) -> None:
    post = Post(await (adapter.begin if streamed else adapter.send)(ASKED, PAGE))
    feishu.script("stream", *[Refusal(300305, "gone")] * 2)
    feishu.script("swap", *[Refusal(300305, "gone")] * 2)
    feishu.script("patch", *[Refusal(230011, "withdrawn")] * 2)
    assert await adapter.edit(ASKED, post, LONGER, False) == post.id
    id = await adapter.edit(ASKED, post, LONGER, True)
    [shown] = feishu.shown()
    assert (shown.id, shown.text) == (id, LONGER.text)


async def test_a_post_that_is_not_needed_is_not_posted_anew(adapter: FeishuAdapter, feishu: FeishuServer) -> None:
    feishu.script("patch", Refusal(230011, "withdrawn"))
    assert await adapter.edit(ASKED, Post("om_9"), Page("⤴", "⤴"), True) == "om_9"
    assert len(feishu.calls) == 2  # one for the token


async def test_a_refused_chat_is_refused(adapter: FeishuAdapter, feishu: FeishuServer) -> None:
    feishu.members.clear()
    for post in (adapter.send, adapter.begin):
        with pytest.raises(Refused, match="not in this chat") as refused:
            await post(ASKED, PAGE)
        assert refused.value.code == 230002


async def test_the_access_token_is_shared_by_replicas(adapter: FeishuAdapter, feishu: FeishuServer) -> None:
    other = make(feishu, adapter.context)
    await asyncio.gather(*(replica.send(ASKED, PAGE) for replica in (adapter, other, adapter, other)))
    assert len(feishu.tokens) == len(feishu.called("grant")) == 1
    assert len(feishu.shown()) == 1
    await other.stop()


async def test_an_expired_token_is_replaced_once(adapter: FeishuAdapter, feishu: FeishuServer) -> None:
    await adapter.send(ASKED, PAGE)
    feishu.expire()
    await adapter.send(ASKED, msgspec.structs.replace(PAGE, key="b"))
    assert len(feishu.shown()) == 2
    assert len(feishu.tokens) == 2


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Refusal(99991400, "request trigger frequency limit", x_ogw_ratelimit_reset="7"), Throttled),
        (Refusal(99991400, "request trigger frequency limit", 429, x_ogw_ratelimit_reset="7"), Throttled),
        (Refusal(1, "who knows", 429, retry_after="7"), Throttled),
        (Refusal(230020, "This operation triggers the frequency limit."), Throttled),
        (Refusal(11232, "create message trigger frequency limit"), Throttled),
        (Refusal(230049, "The message is being sent"), Unavailable),
        (Refusal(0, "", 502), Unavailable),
        (Refusal(2200, "internal error", 500), Unavailable),
        (Cut(), Unavailable),
    ],
    ids=str,
)
async def test_failures_that_pass(
    adapter: FeishuAdapter, feishu: FeishuServer, outcome: Refusal | Cut, error: type[PlatformError]
) -> None:
    feishu.script("create", outcome)
    with pytest.raises(error) as raised:
        await adapter.send(ASKED, PAGE)
    assert not [secret for secret in (*feishu.tokens, SECRET, "你好") if secret in str(raised.value)]
    if isinstance(outcome, Refusal) and outcome.headers:
        assert isinstance(raised.value, Throttled)
        assert raised.value.retry_after == 7


async def test_a_missing_permission_is_named_and_nothing_else(adapter: FeishuAdapter, feishu: FeishuServer) -> None:
    feishu.scopes.clear()
    with pytest.raises(Unauthorized, match="im:message:send_as_bot") as raised:
        await adapter.send(ASKED, PAGE)
    assert "secret-words" not in str(raised.value)


async def test_a_wrong_secret_is_no_endless_loop(feishu: FeishuServer) -> None:
    async with context("feishu") as lent:
        adapter = make(feishu, lent, app_secret="wrong")
        with pytest.raises(Unauthorized, match="app secret"):
            await adapter.edit(ASKED, Post("om_1"), PAGE, True)
        await adapter.stop()
    assert not feishu.tokens


async def test_files_are_downloaded_also_with_a_new_token(adapter: FeishuAdapter, feishu: FeishuServer) -> None:
    feishu.files = {"img_1": b"\xff\xd8picture", "file_1": b"text"}
    picture, file = (
        make(feishu).parse(feishu.request(feishu.message(content, kind))).messages[0].attachments[0]
        for kind, content in (("image", {"image_key": "img_1"}), ("file", {"file_key": "file_1", "file_name": "a"}))
    )
    assert await adapter.download(picture, 100) == b"\xff\xd8picture"
    feishu.expire()
    assert await adapter.download(file, 100) == b"text"
    with pytest.raises(Refused, match="larger"):
        await adapter.download(picture, 5)
    with pytest.raises(Refused, match="400"):
        await adapter.download(Attachment("image", picture.ref.replace("img_1", "img_2")), 100)


# -- Markdown ---------------------------------------------------------------------------------------------------------

SOURCE = """# Title 标题

中**“粗体”**文 and *italics* with `co_de` and [link](https://example.com/a_b), 2 \\* 3 <at id=all></at> snake_case

| a | b |
|---|---|
| 1 | x\\|y |

- one
  - two

> quoted

```python
print("*")
```"""
SHOWN = """#### Title 标题

中\u200a**“粗体”**\u200a文 and *italics* with `co_de` and [link](https://example.com/a_b), 2 &#42; 3 \
&#60;at id=all>&#60;/at> snake_case

| a | b |
| --- | --- |
| 1 | x&#124;y |

- one
    - two

> quoted

```python
print("*")
```"""


def test_the_dialect() -> None:
    assert render(SOURCE, MARKDOWN) == SHOWN


TABLE = "| a |\n| --- |\n| 1 |"


def test_tables_after_the_third_are_code() -> None:
    text = "\n\n".join(["```\n| a |\n| --- |\n```", *[TABLE] * 3, "text", TABLE, "end"])
    shown = "\n\n".join(["```\n| a |\n| --- |\n```", *[TABLE] * 3, "text", f"```\n{TABLE}\n```", "end"])
    assert few_tables(text) == shown
    assert few_tables(f"{TABLE}\n\n" * 3 + TABLE).endswith(f"\n\n```\n{TABLE}\n```\n")


@pytest.mark.parametrize("character", ["字", "👩", '"', "\\", "\n", "\x01", "&"])
def test_a_page_of_anything_fits_into_a_card(character: str) -> None:
    page = card(character * FeishuAdapter.can.max_length, growing() | finished(character * 200))
    assert len(msgspec.json.encode({"content": page})) < LARGEST


async def test_every_page_of_a_long_answer_is_taken(adapter: FeishuAdapter, feishu: FeishuServer) -> None:
    can = FeishuAdapter.can
    answer = LONG_ANSWER + "\n\n" + "\n\n".join([TABLE] * 30)
    for number, page in enumerate(pages(answer, can.max_length, can.dialect, can.measure)):
        await adapter.send(ASKED, Page(page, page, f"reply:{number}"))
    assert all(shown.card for shown in feishu.shown())


# -- set up -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "console"),
    [
        ("https://open.feishu.cn", "https://open.feishu.cn/app"),
        ("https://open.larksuite.com/", "https://open.larksuite.com/app"),
    ],
)
async def test_register_lists_the_steps(base: str, console: str) -> None:
    told = "\n".join(finding.what for finding in await make(FeishuServer(), api_base=base).register(URL))
    for word in (console, URL, "FEISHU_ENCRYPT_KEY", "FEISHU_VERIFICATION_TOKEN", "cardkit:card:write", "im.message.r"):
        assert word in told


async def test_check_names_the_bot(adapter: FeishuAdapter) -> None:
    found = await adapter.check(URL)
    assert all(finding.ok for finding in found)
    assert "Magpie" in found[0].what


async def test_check_says_what_is_missing(feishu: FeishuServer) -> None:
    feishu.status = 3
    feishu.scopes.clear()
    async with context("feishu") as lent:
        adapter = make(feishu, lent, encrypt_key="")
        advice = [finding.advice for finding in await adapter.check(URL) if not finding.ok]
        await adapter.stop()
    assert len(advice) == 3
    for told, expected in zip(advice, ("publish", "cardkit:card:write", "FEISHU_ENCRYPT_KEY"), strict=True):
        assert expected in told


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"app_secret": "wrong"}, "FEISHU_APP_SECRET"),
        ({"app_id": "cli_b"}, "FEISHU_APP_ID"),
        ({"api_base": "http://127.0.0.1:9"}, "FEISHU_API_BASE"),
    ],
)
async def test_check_says_what_is_wrong(feishu: FeishuServer, changes: dict[str, object], advice: str) -> None:
    async with context("feishu") as lent:
        adapter = make(feishu, lent, **changes)
        [finding] = await adapter.check(URL)
        await adapter.stop()
    assert not finding.ok
    assert advice in finding.advice


async def test_our_own_id_is_learned_after_a_failure(feishu: FeishuServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters.feishu, "LEARN_GAPS", (0.001,))
    feishu.script("info", Cut(), Refusal(0, "", 500))
    async with context("feishu") as lent:
        adapter = make(feishu, lent)
        await adapter.start()
        assert adapter.learning is not None
        await adapter.learning
        await adapter.stop()
    assert adapter.id == BOT


# -- whole conversations ----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def at_feishu(
    script: Script = echo, key: str = KEY, **changes: Any
) -> AsyncIterator[tuple[Magpie, FeishuServer, ScriptedModel]]:
    model = ScriptedModel(script)
    async with FeishuServer(key) as server:
        settings = FeishuSettings.model_validate(server.settings(**changes))
        async with running(Configured("feishu", FeishuAdapter, settings), model=model) as magpie:
            server.webhook = f"http://127.0.0.1:{magpie.port}/webhooks/feishu"
            yield magpie, server, model


def paced(gate: asyncio.Event, *words: str) -> Script:
    """Answer with the first word, and with the rest when the gate opens."""

    async def answer() -> AsyncIterator[str]:
        yield words[0]
        await gate.wait()
        for word in words[1:]:
            yield word

    return lambda turns: answer()


@pytest.mark.parametrize("key", [KEY, ""], ids=["encrypted", "plain"])
async def test_a_question_is_acknowledged_and_answered_once(key: str) -> None:
    async with at_feishu(key=key) as (magpie, server, model):
        event = server.message({"text": "hello"})
        assert await asyncio.gather(*(server.deliver(event) for _ in range(4))) == [200] * 4
        await server.say("again")
        await server.until(lambda: len(server.done()) == 2)
        assert [shown.text for shown in server.shown()] == ["You said: hello", "You said: again"]
        assert len(model.asked) == 2
        forged = msgspec.structs.replace(server.request(event), body=b'{"encrypt":"AAAA","token":"x"}')
        assert (await call(magpie, "feishu", forged))[0] == 401


async def test_an_answer_grows_in_one_card_and_is_finished() -> None:
    gate = asyncio.Event()
    async with at_feishu(paced(gate, "Hello", ", you", " there")) as (_, server, _):
        await server.say("hi")
        await server.until(lambda: server.shown() and server.shown()[0].text == "Hello")
        gate.set()
        await server.until(server.done)
        [shown] = server.shown()
        assert shown.card is not None
        assert (shown.text, shown.card.summary) == ("Hello, you there", "Hello, you there")
        assert shown.card.history[0] == "Hello"


async def test_in_a_group_only_who_mentions_us_is_answered() -> None:
    async with at_feishu() as (magpie, server, model):
        adapter = magpie.adapters["feishu"]
        assert isinstance(adapter, FeishuAdapter)
        assert adapter.learning is not None
        await adapter.learning
        await server.deliver(server.message({"text": "chatter"}, chat=GROUP))
        await server.deliver(server.mention("@1 hi", ("ou_li", "Li")))
        await server.deliver(server.mention("@1 what is this?"))
        await server.until(lambda: server.done(GROUP))
        [shown] = server.shown(GROUP)
        assert shown.text == "You said: what is this?"
        assert [turns[-1].content for turns in model.asked] == ["what is this?"]


async def test_topics_are_conversations_of_their_own() -> None:
    async with at_feishu() as (_, server, model):
        for thread in ("omt_1", "omt_2"):
            await server.deliver(server.mention("@1 hi", thread_id=thread))
        await server.until(lambda: len(server.done(GROUP)) == 2)
        assert all(shown.thread for shown in server.shown(GROUP))
        assert [[turn for turn in turns if turn.role != "system"] for turns in model.asked] == [
            [Turn("user", "hi")]
        ] * 2


THROTTLED = Refusal(99991400, "request trigger frequency limit", x_ogw_ratelimit_reset="0.01")


@pytest.mark.parametrize("name", ["create", "make", "stream", "close"])
async def test_a_rate_limit_and_a_lost_answer_are_survived(name: str) -> None:
    gate = asyncio.Event()
    async with at_feishu(paced(gate, "Hello", " there")) as (_, server, _):
        server.script(name, THROTTLED, Cut(after=True))
        await server.say("hi")
        if name not in ("stream", "close"):
            await server.until(server.shown)
        gate.set()
        await server.until(lambda: server.done() and server.done()[0].text == "Hello there")
        assert len(server.shown()) == 1


async def test_an_expired_token_is_survived() -> None:
    gate = asyncio.Event()
    async with at_feishu(paced(gate, "Hello", " there")) as (_, server, _):
        await server.say("hi")
        await server.until(server.shown)
        server.expire()
        gate.set()
        await server.until(server.done)
        assert [shown.text for shown in server.shown()] == ["Hello there"]


async def test_a_long_answer_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeishuAdapter, "can", msgspec.structs.replace(FeishuAdapter.can, pages_per_second=1000))
    long = "\n\n".join(f"第 {n} 段：" + "字" * 900 for n in range(20))
    async with at_feishu(lambda turns: [long]) as (_, server, _):
        await server.say("long please")
        await server.until(lambda: any("第 19 段" in shown.text for shown in server.done()))
        assert len(server.shown()) == 5
        assert "".join(shown.text for shown in server.done()).count("字") == 18000


async def test_where_neither_streams_nor_cards_are_permitted_the_answer_is_plain() -> None:
    gate = asyncio.Event()
    async with at_feishu(paced(gate, "**Hello**", " there")) as (_, server, _):
        server.cards = False
        await server.say("hi")
        await server.until(server.shown)
        gate.set()
        await server.until(lambda: any("there" in shown.text for shown in server.shown()))
        [shown] = server.shown()
        assert (shown.card, shown.text) == (None, "Hello there")


async def test_the_model_sees_pictures_and_text_files() -> None:
    async with at_feishu() as (_, server, model):
        server.files = {"img_1": b"\xff\xd8picture", "file_1": "notes: 你好".encode()}
        post = {"title": "", "content": [[{"tag": "text", "text": "see"}], [{"tag": "img", "image_key": "img_1"}]]}
        await server.deliver(server.message(post, "post"))
        await server.until(server.done)
        assert [picture.data for picture in model.pictures[0]] == [b"\xff\xd8picture"]
        await server.deliver(server.message({"file_key": "file_1", "file_name": "notes.txt"}, "file"))
        await server.until(lambda: len(server.done()) == 2)
        assert "notes: 你好" in model.asked[1][-1].content


async def test_who_sends_what_we_cannot_read_hears_so() -> None:
    async with at_feishu() as (_, server, model):
        await server.deliver(server.message({"file_key": "v1"}, "sticker"))
        await server.until(server.done)
        assert not model.asked
