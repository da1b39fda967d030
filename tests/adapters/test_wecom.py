"""WeCom, a self-built app: what is taken from a callback, what members see, and whole conversations."""

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
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from wechatpy.enterprise import parse_message  # type: ignore[import-untyped]

from adapters.wechat_xml import document
from adapters.wecom import MARKDOWN, WecomAdapter, WecomSettings
from bot.adapter import Attachment, Chat, Context, Message, Page, Request, State
from bot.app import Magpie
from bot.config import Environment
from bot.errors import Malformed, Refused, Throttled, Unauthorized, Unavailable, Unverified
from bot.markup import render
from bot.registry import Configured
from bot.testing import AdapterPromises, ScriptedModel, call, context, running
from tests.adapters.tencent_server import Cut, Refusal
from tests.adapters.wecom_server import KEY, SECRET, TOKEN, WecomServer

FIXTURES = sorted(Path(__file__).with_name("fixtures").glob("wecom/*.json"))
SEND = "/cgi-bin/message/send"
ANN = Chat("ann")
NO_STATE = Context("wecom", create_autospec(State))
PAGE = Page("你好 & <b>", "你好 & <b>", "reply:0")


def make(server: WecomServer, lent: Context, **changes: object) -> WecomAdapter:
    return WecomAdapter(WecomSettings.model_validate(server.settings(**changes)), lent)


@pytest.fixture
async def wecom() -> AsyncIterator[WecomServer]:
    async with WecomServer() as server:
        yield server


@pytest.fixture
async def adapter(wecom: WecomServer) -> AsyncIterator[WecomAdapter]:
    async with context("wecom") as lent:
        adapter = make(wecom, lent)
        yield adapter
        await adapter.stop()


class TestPromises(AdapterPromises):
    adapter = WecomAdapter
    settings = WecomServer().settings()

    def text_message(self) -> Request:
        return WecomServer().text("hello")  # each server begins with the same message id


# -- settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("CORP_ID", None),
        ("AGENT_ID", "seven"),
        ("SECRET", None),
        ("TOKEN", ""),
        ("ENCODING_AES_KEY", KEY[:-1]),
        ("ENCODING_AES_KEY", KEY + "="),
        ("MESSAGE_FORMAT", "html"),
        ("API_BASE", "ftp://example.com"),
    ],
)
def test_a_wrong_setting_is_told_by_its_name_and_not_by_its_value(field: str, value: str | None) -> None:
    given = {f"WECOM_{name.upper()}": str(text) for name, text in WecomServer().settings().items()}
    env = Environment({**given, f"WECOM_{field}": value})
    assert env.read(WecomSettings, "wecom") is None
    [problem] = env.problems
    assert problem.startswith(f"WECOM_{field}: ")
    assert SECRET not in problem
    assert KEY[:-1] not in problem


def test_secrets_are_hidden() -> None:
    shown = repr(WecomSettings.model_validate(WecomServer().settings()))
    assert not [secret for secret in (SECRET, TOKEN, KEY) if secret in shown]


def test_an_empty_token_does_not_pass() -> None:
    with pytest.raises(ValidationError):
        WecomSettings.model_validate(WecomServer().settings(token=""))


# -- inbound


async def test_the_console_hears_the_bare_echo(adapter: WecomAdapter, wecom: WecomServer) -> None:
    request = wecom.test()
    await adapter.verify(request)
    assert adapter.parse(request).response.body == b"1288432023552776189"


async def test_a_plus_that_became_a_space_is_one_again(adapter: WecomAdapter, wecom: WecomServer) -> None:
    requests = (wecom.test() for _ in range(100))
    request = next(request for request in requests if "+" in request.query["echostr"])
    query = {**request.query, "echostr": request.query["echostr"].replace("+", " ")}
    await adapter.verify(msgspec.structs.replace(request, query=query))


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("name", ["msg_signature", "timestamp", "nonce"])
async def test_a_request_with_a_changed_query_is_refused(
    adapter: WecomAdapter, wecom: WecomServer, method: str, name: str
) -> None:
    request = wecom.test() if method == "GET" else wecom.text("hello")
    for value in ("", "x", "\udce9"):
        with pytest.raises(Unverified):
            await adapter.verify(msgspec.structs.replace(request, query={**request.query, name: value}))


@pytest.mark.parametrize("body", [b"", b"<xml/>", b"{}", b"<xml><Encrypt>AAAA</Encrypt></xml>", b"<!DOCTYPE a><a/>"])
async def test_a_request_with_another_body_is_refused(adapter: WecomAdapter, wecom: WecomServer, body: bytes) -> None:
    with pytest.raises(Unverified):
        await adapter.verify(msgspec.structs.replace(wecom.text("hello"), body=body))


async def test_a_message_for_another_company_is_refused(adapter: WecomAdapter, wecom: WecomServer) -> None:
    wecom.envelope.receiver = b"wx5823bf96d3bd56c7"
    with pytest.raises(Unverified, match="another receiver"):
        await adapter.verify(wecom.text("hello"))


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_parse(path: Path) -> None:
    case = json.loads(path.read_text())
    wecom = WecomServer()
    adapter = make(wecom, NO_STATE)
    inbound = adapter.parse(wecom.callback(**case["fields"]))
    expected = [msgspec.convert(case["message"], Message) for _ in inbound.messages]
    assert list(inbound.messages) == expected
    assert bool(inbound.messages) is ("message" in case)
    assert inbound.ignored == case.get("ignored", "")
    assert (inbound.response.status, inbound.response.body) == (200, b"")


async def test_the_sdk_reads_a_callback_as_we_do(adapter: WecomAdapter, wecom: WecomServer) -> None:
    request = wecom.text("你好 ]]> <b>&amp;")
    theirs = parse_message(adapter._opened(request).decode())
    (ours,) = adapter.parse(request).messages
    assert (ours.id, ours.user, ours.text) == (str(theirs.id), theirs.source, theirs.content)


BODY = st.binary() | st.dictionaries(
    st.sampled_from(["MsgType", "FromUserName", "MsgId", "Content", "AgentID", "Event", "MediaId", "Location_X"]),
    st.text(),
).map(lambda values: document(**values))


@given(BODY)
def test_garbage_is_malformed_or_ignored(body: bytes) -> None:
    server = WecomServer()
    adapter = make(server, NO_STATE)
    with contextlib.suppress(Malformed):
        for message in adapter.parse(server.sealed(body)).messages:
            assert message.id
            assert message.user


async def test_the_sample_is_an_event(adapter: WecomAdapter) -> None:
    sample = adapter.sample()
    await adapter.verify(sample)
    assert adapter.parse(sample).ignored == "event sample"


# -- outbound


async def test_a_page_is_posted_once_as_it_is(adapter: WecomAdapter, wecom: WecomServer) -> None:
    assert await adapter.send(ANN, PAGE) == "msg-2"
    assert wecom.shown == {"ann": ["你好 & <b>"]}


async def test_the_access_token_is_shared_by_replicas(adapter: WecomAdapter, wecom: WecomServer) -> None:
    other = make(wecom, adapter.context)
    await asyncio.gather(*(replica.send(ANN, PAGE) for replica in (adapter, other, adapter, other)))
    assert wecom.tokens == ["TOKEN-1"]
    await other.stop()


async def test_an_expired_token_is_replaced_once(adapter: WecomAdapter, wecom: WecomServer) -> None:
    await adapter.send(ANN, PAGE)
    wecom.expire()
    wecom.grant()
    await adapter.send(ANN, PAGE)
    assert len(wecom.shown["ann"]) == 2
    assert len(wecom.called(SEND)) == 3


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Refusal(45009, "api freq out of limit"), Throttled),
        (Refusal(45033, "api concurrent out of limit"), Throttled),
        (Refusal(-1, "system busy"), Unavailable),
        (Refusal(0, "", 502), Unavailable),
        (Cut(), Unavailable),
        (Refusal(45002, "content too long"), Refused),
        (Refusal(81013, "all invalid"), Refused),
        (Refusal(60020, "not allow to access from your ip, from ip: 198.51.100.7"), Unauthorized),
        (Refusal(99999, "who knows 你好"), Refused),
    ],
    ids=str,
)
async def test_failures(
    adapter: WecomAdapter, wecom: WecomServer, outcome: Refusal | Cut, error: type[Exception]
) -> None:
    wecom.script(SEND, outcome)
    with pytest.raises(error) as raised:
        await adapter.send(ANN, PAGE)
    text = str(raised.value)
    assert type(raised.value) is error
    assert not [secret for secret in ("TOKEN-1", SECRET, "你好", "access_token") if secret in text]
    assert ("198.51.100.7" in text) is (isinstance(outcome, Refusal) and outcome.code == 60020)


async def test_a_wrong_secret_is_no_endless_loop(wecom: WecomServer) -> None:
    async with context("wecom") as lent:
        adapter = make(wecom, lent, secret="wrong")
        with pytest.raises(Unauthorized):
            await adapter.send(ANN, PAGE)
        await adapter.stop()
    assert len(wecom.calls) == 1


@pytest.mark.parametrize("who", ["stranger", "ben"])
async def test_who_cannot_be_reached_is_told_apart_from_success(
    adapter: WecomAdapter, wecom: WecomServer, who: str
) -> None:
    wecom.unlicensed = {"ben"}
    with pytest.raises(Refused, match="visible range"):
        await adapter.send(Chat(who), PAGE)


async def test_a_picture_is_downloaded_also_with_a_new_token(adapter: WecomAdapter, wecom: WecomServer) -> None:
    wecom.media["M+1/="] = b"\xff\xd8picture"
    picture = Attachment("image", "M+1/=")
    assert await adapter.download(picture, 100) == b"\xff\xd8picture"
    wecom.expire()
    assert await adapter.download(picture, 100) == b"\xff\xd8picture"
    with pytest.raises(Refused, match="larger"):
        await adapter.download(picture, 5)
    with pytest.raises(Refused, match="40007"):
        await adapter.download(Attachment("image", "gone"), 100)


async def test_a_small_json_file_is_a_file(adapter: WecomAdapter, wecom: WecomServer) -> None:
    wecom.media["m"] = b'{"a": [1]}'
    assert await adapter.download(Attachment("file", "m"), 100) == b'{"a": [1]}'


SOURCE = """# Title 标题

中**粗体**文 and *italics* with `code` and [link](https://example.com)

| a | b |
|---|---|
| 1 | 2 |

- one
  - two

> quoted

```python
print(1)
```"""
AS_TEXT = """Title 标题

中粗体文 and italics with code and link (https://example.com)

a: 1
b: 2

• one
  ◦ two

> quoted

print(1)"""
AS_MARKDOWN = """# Title 标题

中**粗体**文 and italics with `code` and [link](https://example.com)

a: 1
b: 2

• one
  ◦ two

> quoted

print(1)"""


@pytest.mark.parametrize(("form", "shown"), [("text", AS_TEXT), ("markdown", AS_MARKDOWN)])
async def test_the_dialect_follows_the_setting(wecom: WecomServer, form: str, shown: str) -> None:
    async with context("wecom") as lent:
        adapter = make(wecom, lent, message_format=form)
        text = render(SOURCE, adapter.can.dialect)
        await adapter.send(ANN, Page(text))
        await adapter.stop()
    assert wecom.shown["ann"] == [shown]
    assert wecom.called(SEND)[0]["msgtype"] == form


def test_headings_keep_their_level() -> None:
    assert render("### three", MARKDOWN) == "### three"


# -- set up


async def test_register_lists_the_steps(adapter: WecomAdapter) -> None:
    findings = await adapter.register("https://bot.example.com/webhooks/wecom")
    assert "3. URL: https://bot.example.com/webhooks/wecom" in [finding.what for finding in findings]
    assert "WECOM_ENCODING_AES_KEY" in findings[3].what


async def test_check_names_the_app(adapter: WecomAdapter) -> None:
    found = await adapter.check("https://bot.example.com/webhooks/wecom")
    assert [finding.ok for finding in found] == [True, True]
    assert "Magpie" in found[0].what


@pytest.mark.parametrize(
    ("changes", "trusted", "advice"),
    [
        ({"secret": "wrong"}, True, "WECOM_SECRET"),
        ({"agent_id": "7"}, True, "WECOM_AGENT_ID"),
        ({"corp_id": "ww1"}, True, "WECOM_CORP_ID"),
        ({}, False, "trusted IPs"),
        ({"api_base": "http://127.0.0.1:9"}, True, "WECOM_API_BASE"),
    ],
)
async def test_check_says_what_is_wrong(
    wecom: WecomServer, changes: dict[str, object], trusted: bool, advice: str
) -> None:
    wecom.trusted = trusted
    async with context("wecom") as lent:
        adapter = make(wecom, lent, **changes)
        [finding] = await adapter.check("https://bot.example.com/webhooks/wecom")
        await adapter.stop()
    assert not finding.ok
    assert advice in finding.advice
    assert trusted or "198.51.100.7" in finding.what


# -- whole conversations


@contextlib.asynccontextmanager
async def at_wecom(model: ScriptedModel, **changes: Any) -> AsyncIterator[tuple[Magpie, WecomServer, str]]:
    async with WecomServer() as server:
        settings = WecomSettings.model_validate(server.settings(**changes))
        async with running(Configured("wecom", WecomAdapter, settings), model=model) as magpie:
            yield magpie, server, f"http://127.0.0.1:{magpie.port}/webhooks/wecom"


async def test_a_question_is_acknowledged_and_answered_once() -> None:
    model = ScriptedModel()
    async with at_wecom(model) as (magpie, server, url):
        request = server.text("hello")
        assert await asyncio.gather(*(server.deliver(url, request) for _ in range(4))) == [(200, b"")] * 4
        assert await server.deliver(url, server.test(b"42")) == (200, b"42")
        await server.deliver(url, server.text("again"))
        await server.until(lambda: len(server.shown["ann"]) == 2)
        assert server.shown["ann"] == ["You said: hello", "You said: again"]
        assert len(model.asked) == 2
        forged = msgspec.structs.replace(request, query={**request.query, "nonce": "1"})
        assert (await call(magpie, "wecom", forged))[0] == 401


async def test_a_long_answer_is_whole_and_no_page_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WecomAdapter, "can", msgspec.structs.replace(WecomAdapter.can, pages_per_second=1000))
    long = "\n\n".join(f"第 {n} 段：" + "字" * 200 for n in range(20))
    async with at_wecom(ScriptedModel(lambda turns: [long])) as (_, server, url):
        await server.deliver(url, server.text("long please", by="ZhangSan"))
        await server.until(lambda: "第 19 段" in "".join(server.shown["ZhangSan"]))
        pages = server.shown["ZhangSan"]
        assert len(pages) > 5
        assert "".join(pages).count("字") == 4000


async def test_an_expired_token_and_a_failure_are_survived() -> None:
    async with at_wecom(ScriptedModel()) as (_, server, url):
        await server.deliver(url, server.text("one"))
        await server.until(lambda: server.shown["ann"])
        server.expire()
        server.script(SEND, Refusal(-1, "system busy"))
        await server.deliver(url, server.text("two"))
        await server.until(lambda: len(server.shown["ann"]) == 2)
        assert server.shown["ann"] == ["You said: one", "You said: two"]


async def test_a_rate_limit_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.wechat_api.PAUSE", 0.01)
    async with at_wecom(ScriptedModel()) as (_, server, url):
        server.script(SEND, Refusal(45009, "api freq out of limit"), Refusal(45033, "too many"))
        await server.deliver(url, server.text("hello"))
        await server.until(lambda: server.shown["ann"])
        assert server.shown["ann"] == ["You said: hello"]


async def test_the_model_sees_the_picture() -> None:
    model = ScriptedModel()
    async with at_wecom(model) as (_, server, url):
        server.media["M1"] = b"\xff\xd8picture"
        await server.deliver(url, server.message("image", MediaId="M1", PicUrl="https://p.qpic.cn/x"))
        await server.until(lambda: server.shown["ann"])
        assert [picture.data for picture in model.pictures[0]] == [b"\xff\xd8picture"]


async def test_who_sends_what_we_cannot_read_hears_so() -> None:
    async with at_wecom(ScriptedModel()) as (_, server, url):
        await server.deliver(url, server.message("voice", MediaId="M1", Format="amr"))
        await server.until(lambda: server.shown["ann"])
        assert "我能看文字和图片" in server.shown["ann"][0]
