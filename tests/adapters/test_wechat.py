"""WeChat Official Account: modes, five seconds three times, and how late answers reach the person."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, create_autospec

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wechatpy import parse_message  # type: ignore[import-untyped]

import adapters.wechat
from adapters.wechat import MORE, STILL, WechatAdapter, WechatSettings
from adapters.wechat.shelf import Kept
from adapters.wechat_xml import document
from bot.adapter import Attachment, Chat, Context, Message, Page, Request, State, Turn
from bot.app import Magpie
from bot.config import Environment
from bot.errors import Malformed, Refused, Throttled, Unauthorized, Unavailable, Unverified
from bot.markup import render
from bot.registry import Configured
from bot.testing import AdapterPromises, ScriptedModel, call, context, running
from tests.adapters.tencent_server import Cut, Refusal
from tests.adapters.wechat_server import ACCOUNT, ANN, FAULT, SECRET, Mode, WechatServer

FIXTURES = sorted(Path(__file__).with_name("fixtures").glob("wechat/*.json"))
SEND = "/cgi-bin/message/custom/send"
CHAT = Chat(ANN, ticket=ACCOUNT)
PAGE = Page("你好 & <b>", "你好 & <b>", "reply:0", "17")
MODES: tuple[Mode, ...] = ("plain", "compatible", "safe")
MARGIN = 0.5  # seconds between our patience and WeChat's
NO_STATE = Context("wechat", create_autospec(State))


def make(server: WechatServer, lent: Context = NO_STATE, **changes: object) -> WechatAdapter:
    return WechatAdapter(WechatSettings.model_validate(server.settings(**changes)), lent)


@pytest.fixture
async def wechat() -> AsyncIterator[WechatServer]:
    async with WechatServer(certified=True) as server:
        server._left[ANN] = 5
        yield server


@pytest.fixture
async def adapter(wechat: WechatServer) -> AsyncIterator[WechatAdapter]:
    async with context("wechat") as lent:
        adapter = make(wechat, lent)
        yield adapter
        await adapter.stop()


class TestPromises(AdapterPromises):
    adapter = WechatAdapter
    settings = WechatServer().settings()

    def text_message(self) -> Request:
        return WechatServer().text("hello")  # each server begins with the same message id


class TestPromisesInPlainMode(AdapterPromises):
    adapter = WechatAdapter
    settings = WechatServer("plain").settings()

    def text_message(self) -> Request:
        return WechatServer("plain").text("hello")


# -- settings


@pytest.mark.parametrize(
    ("field", "value"),
    [("APP_ID", None), ("APP_SECRET", None), ("TOKEN", None), ("ENCODING_AES_KEY", "short"), ("API_BASE", "x")],
)
def test_a_wrong_setting_is_told_by_its_name(field: str, value: str | None) -> None:
    given = {f"WECHAT_{name.upper()}": str(text) for name, text in WechatServer().settings().items()}
    env = Environment({**given, f"WECHAT_{field}": value})
    assert env.read(WechatSettings, "wechat") is None
    [problem] = env.problems
    assert problem.startswith(f"WECHAT_{field}: ")
    assert SECRET not in problem


# -- inbound


@pytest.mark.parametrize("mode", MODES)
async def test_the_console_hears_its_own_echo(mode: Mode) -> None:
    server = WechatServer(mode)
    adapter = make(server)
    await adapter.verify(server.test())
    assert adapter.parse(server.test()).response.body == b"4375120948345356249"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["signature", "msg_signature", "timestamp", "nonce"])
async def test_a_changed_query_is_refused(mode: Mode, name: str) -> None:
    server = WechatServer(mode)
    request = server.text("hello")
    if (name == "signature") is not (mode == "plain") and "signature" in name:
        return  # the other signature does not count in this mode
    for value in ("", "x", "1409659813", "\udce9"):
        with pytest.raises(Unverified):
            await make(server).verify(msgspec.structs.replace(request, query={**request.query, name: value}))


@pytest.mark.parametrize("mode", MODES)
async def test_a_changed_echo_query_is_refused(mode: Mode) -> None:
    server = WechatServer(mode)
    request = server.test()
    with pytest.raises(Unverified):
        await make(server).verify(msgspec.structs.replace(request, query={**request.query, "nonce": "1"}))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [WechatServer.test, lambda server: server.text("hello")], ids=["test", "message"])
async def test_a_stale_request_is_refused(mode: Mode, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = WechatServer(mode)
    request = kind(server)
    in_two_days = time.time() + 2 * 86400
    monkeypatch.setattr("bot.signing.time", SimpleNamespace(time=lambda: in_two_days))
    with pytest.raises(Unverified, match="stale"):
        await make(server).verify(request)


async def test_with_a_key_nothing_in_the_clear_is_taken() -> None:
    with pytest.raises(Unverified, match="choose safe mode"):
        await make(WechatServer("safe")).verify(WechatServer("plain").text("hello"))


async def test_without_the_key_an_encrypted_message_says_what_is_missing() -> None:
    request = WechatServer("safe").text("hello")
    adapter = make(WechatServer("plain"))
    await adapter.verify(request)
    with pytest.raises(Malformed, match="EncodingAESKey"):
        adapter.parse(request)


async def test_a_message_for_another_account_is_refused() -> None:
    server = WechatServer()
    server.envelope.receiver = b"wx0000000000000000"
    with pytest.raises(Unverified, match="another receiver"):
        await make(server).verify(server.text("hello"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_parse(path: Path, mode: Mode) -> None:
    case = json.loads(path.read_text())
    server = WechatServer(mode)
    inbound = make(server).parse(server.callback(**case["fields"]))
    assert list(inbound.messages) == [msgspec.convert(case["message"], Message) for _ in inbound.messages]
    assert bool(inbound.messages) is ("message" in case)
    assert inbound.ignored == case.get("ignored", "")


def test_the_sdk_reads_a_callback_as_we_do() -> None:
    server = WechatServer()
    adapter, request = make(server), server.text("你好 ]]> <b>&amp;")
    theirs = parse_message(adapter._opened(request).decode())
    (ours,) = adapter.parse(request).messages
    assert (ours.id, ours.user, ours.text) == (str(theirs.id), theirs.source, theirs.content)


NAMES = ["MsgType", "FromUserName", "ToUserName", "MsgId", "Content", "Event", "MediaId", "PicUrl", "Encrypt"]
BODY = st.binary() | st.dictionaries(st.sampled_from(NAMES), st.text()).map(lambda values: document(**values))


@given(BODY, st.sampled_from(["plain", "safe"]))
def test_garbage_is_malformed_or_ignored(body: bytes, mode: Mode) -> None:
    server = WechatServer(mode)
    with contextlib.suppress(Malformed):
        for message in make(server).parse(server.sealed(body)).messages:
            assert message.id
            assert message.user


@pytest.mark.parametrize("mode", MODES)
async def test_the_sample_is_an_event(mode: Mode) -> None:
    adapter = make(WechatServer(mode))
    await adapter.verify(adapter.sample())
    assert adapter.parse(adapter.sample()).ignored == "event sample"


# -- the API


async def test_a_late_page_is_posted_where_the_account_may(adapter: WechatAdapter, wechat: WechatServer) -> None:
    await adapter.send(CHAT, PAGE)
    assert wechat.shown[ANN] == ["你好 & <b>"]
    assert not (await adapter.shelf(ANN)).pages


async def test_the_access_token_is_shared_by_replicas(adapter: WechatAdapter, wechat: WechatServer) -> None:
    other = make(wechat, adapter.context)
    await asyncio.gather(*(replica.send(CHAT, PAGE) for replica in (adapter, other, adapter, other)))
    assert wechat.tokens == ["TOKEN-1"]
    await other.stop()


@pytest.mark.parametrize("lose", [WechatServer.expire, WechatServer.revoke], ids=["expired", "revoked"])
async def test_a_token_that_is_refused_is_replaced_once(
    adapter: WechatAdapter, wechat: WechatServer, lose: Any
) -> None:
    await adapter.send(CHAT, PAGE)
    lose(wechat)
    await adapter.send(CHAT, PAGE)
    assert len(wechat.shown[ANN]) == 2
    assert wechat.tokens == ["TOKEN-1", "TOKEN-2"]


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Refusal(45009, "reach max api daily quota limit"), Throttled),
        (Refusal(-1, "system error"), Unavailable),
        (Refusal(0, "", 502), Unavailable),
        (Cut(), Unavailable),
    ],
    ids=str,
)
async def test_what_passes_is_tried_again_by_the_core(
    adapter: WechatAdapter, wechat: WechatServer, outcome: Refusal | Cut, error: type[Exception]
) -> None:
    wechat.script(SEND, outcome)
    with pytest.raises(error) as raised:
        await adapter.send(CHAT, PAGE)
    assert "TOKEN-1" not in str(raised.value)


@pytest.mark.parametrize("code", [48001, 45015, 45047, 43004, 99999])
async def test_what_is_refused_is_kept_once(adapter: WechatAdapter, wechat: WechatServer, code: int) -> None:
    wechat.script(SEND, Refusal(code, "no"), Refusal(code, "no"))
    await adapter.send(CHAT, PAGE)
    await adapter.send(CHAT, PAGE)
    assert [page.text for page in (await adapter.shelf(ANN)).pages] == [PAGE.text]
    assert await adapter._may_speak() == ("no" if code == 48001 else "")


async def test_an_account_that_may_not_is_not_asked_again(adapter: WechatAdapter, wechat: WechatServer) -> None:
    wechat.certified = False
    with pytest.raises(Unauthorized):
        await adapter.typing(CHAT)
    await adapter.typing(CHAT)
    await adapter.send(CHAT, PAGE)
    assert len(wechat.calls) == 2  # the token, and one attempt
    assert (await adapter.shelf(ANN)).pages


async def test_a_picture_is_fetched_without_a_token(adapter: WechatAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = AsyncMock(return_value=b"picture")
    monkeypatch.setattr(adapter.client, "download", fetch)
    assert await adapter.download(Attachment("image", "https://mmbiz.qpic.cn/x/0"), 100) == b"picture"
    fetch.assert_awaited_once_with("https://mmbiz.qpic.cn/x/0", limit=100, hosts=(".qpic.cn",))


async def test_a_file_is_fetched_with_one(adapter: WechatAdapter, wechat: WechatServer) -> None:
    wechat.media["M+1/="] = b"#!AMR"
    assert await adapter.download(Attachment("audio", "M+1/="), 100) == b"#!AMR"
    with pytest.raises(Refused, match="40007"):
        await adapter.download(Attachment("audio", "gone"), 100)


def test_markdown_becomes_readable_text() -> None:
    source = "# 标题\n\n中**粗体**文 [link](https://example.com)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n- one\n  - two"
    shown = "标题\n\n中粗体文 link (https://example.com)\n\na: 1\nb: 2\n\n• one\n  ◦ two"
    assert render(source, WechatAdapter.can.dialect) == shown


# -- set up


async def test_register_lists_the_steps(adapter: WechatAdapter) -> None:
    findings = await adapter.register("https://bot.example.com/webhooks/wechat")
    assert "2. URL: https://bot.example.com/webhooks/wechat" in [finding.what for finding in findings]


async def test_check_tells_how_late_answers_go_out(adapter: WechatAdapter, wechat: WechatServer) -> None:
    assert "shows when somebody writes" in (await adapter.check("https://b"))[1].what
    await adapter.send(CHAT, PAGE)
    assert "go out as customer-service" in (await adapter.check("https://b"))[1].what


@pytest.mark.parametrize(
    ("changes", "trusted", "advice"),
    [
        ({"app_secret": "wrong"}, True, "WECHAT_APP_SECRET"),
        ({"app_id": "wx1"}, True, "WECHAT_APP_ID"),
        ({}, False, "white list"),
        ({"api_base": "http://127.0.0.1:9"}, True, "WECHAT_API_BASE"),
    ],
)
async def test_check_says_what_is_wrong(
    wechat: WechatServer, changes: dict[str, object], trusted: bool, advice: str
) -> None:
    wechat.trusted = trusted
    async with context("wechat") as lent:
        adapter = make(wechat, lent, **changes)
        [finding] = await adapter.check("https://bot.example.com/webhooks/wechat")
        await adapter.stop()
    assert not finding.ok
    assert advice in finding.advice
    assert SECRET not in finding.what


# -- whole conversations


class Gate:
    """A model that answers when it is let."""

    def __init__(self, text: str = "") -> None:
        self.open = asyncio.Event()
        self.text = text

    async def __call__(self, turns: Sequence[Turn]) -> AsyncIterator[str]:
        await self.open.wait()
        yield self.text or f"You said: {turns[-1].content}"


@contextlib.asynccontextmanager
async def at_wechat(
    model: ScriptedModel, mode: Mode = "safe", certified: bool = False, **limits: Any
) -> AsyncIterator[tuple[Magpie, WechatServer, str]]:
    async with WechatServer(mode, certified, patience=adapters.wechat.WITHIN + MARGIN) as server:
        settings = WechatSettings.model_validate(server.settings())
        async with running(Configured("wechat", WechatAdapter, settings), model=model, **limits) as magpie:
            yield magpie, server, f"http://127.0.0.1:{magpie.port}/webhooks/wechat"


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let WeChat be in more of a hurry."""
    monkeypatch.setattr(adapters.wechat, "WITHIN", 0.5)
    monkeypatch.setattr("tests.adapters.test_wechat.MARGIN", 1.0)
    monkeypatch.setattr(adapters.wechat, "HOLD", 1.2)
    monkeypatch.setattr("bot.delivery.TYPING_AFTER", 0.0)
    monkeypatch.setattr("bot.answers.ACK_WITHIN", 0.1)


async def shelved(magpie: Magpie, count: int = 1) -> None:
    """Wait until so many pages are kept for Ann."""
    adapter = magpie.adapters["wechat"]
    assert isinstance(adapter, WechatAdapter)
    while len((await adapter.shelf(ANN)).pages) < count:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("mode", MODES)
async def test_a_prompt_answer_is_the_response(mode: Mode) -> None:
    model = ScriptedModel()
    async with at_wechat(model, mode) as (_, server, url):
        assert await server.deliver(url, server.test("42")) == (200, b"42")
        await server.say(url, "hello")
        await server.say(url, "/帮助")
        assert server.shown[ANN][0] == "You said: hello"
        assert "/重置" in server.shown[ANN][1]
        assert server.tries == 2
    assert len(model.asked) == 1


async def test_a_forged_message_is_not_answered() -> None:
    model = ScriptedModel()
    async with at_wechat(model) as (magpie, server, _):
        request = server.text("hello")
        forged = msgspec.structs.replace(request, query={**request.query, "nonce": "1"})
        assert (await call(magpie, "wechat", forged))[0] == 401
    assert not model.asked


async def test_a_new_follower_is_greeted() -> None:
    async with at_wechat(ScriptedModel()) as (_, server, url):
        event = server.callback(
            ToUserName=ACCOUNT, FromUserName=ANN, CreateTime=1714112445, MsgType="event", Event="subscribe"
        )
        await server.push(url, event)
        assert "/重置" in server.shown[ANN][0]


async def test_a_redelivered_message_hears_the_same_again() -> None:
    model = ScriptedModel()
    async with at_wechat(model) as (_, server, url):
        request = server.text("hello")
        answers = [await server.deliver(url, request) for _ in range(3)]
        assert [server.understood(*answer, ANN) for answer in answers] == ["You said: hello"] * 3
    assert len(model.asked) == 1


@pytest.mark.usefixtures("fast")
async def test_a_later_try_brings_the_answer_of_the_same_question() -> None:
    gate = Gate()
    model = ScriptedModel(gate)
    async with at_wechat(model) as (_, server, url):
        asking = asyncio.create_task(server.say(url, "hello"))
        await server.until(lambda: server.tries == 2)
        gate.open.set()
        await asking
        assert server.shown[ANN] == ["You said: hello"]
        assert server.tries == 2
    assert len(model.asked) == 1


@pytest.mark.usefixtures("fast")
async def test_an_answer_between_two_tries_is_in_the_next_one() -> None:
    gate = Gate()
    async with at_wechat(ScriptedModel(gate)) as (magpie, server, url):
        request = server.text("hello")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.deliver(url, request), 0.8)
        gate.open.set()
        await shelved(magpie)
        assert server.understood(*await server.deliver(url, request), ANN) == "You said: hello"
        assert server.understood(*await server.deliver(url, request), ANN) == "You said: hello"


@pytest.mark.usefixtures("fast")
async def test_an_answer_that_is_kept_during_a_try_is_in_its_response() -> None:
    model = ScriptedModel(Gate())
    async with at_wechat(model) as (magpie, server, url):
        adapter = magpie.adapters["wechat"]
        assert isinstance(adapter, WechatAdapter)
        asking = asyncio.create_task(server.say(url, "hello"))
        while not model.asked:
            await asyncio.sleep(0.01)
        await adapter.send(CHAT, Page("kept meanwhile", key="k:0", reply_to="1234567890123456"))
        await asking
        assert server.shown[ANN] == ["kept meanwhile"]
        assert server.tries == 1


@pytest.mark.usefixtures("fast")
async def test_a_late_answer_is_fetched_by_sending_anything() -> None:
    gate = Gate()
    model = ScriptedModel(gate)
    async with at_wechat(model) as (magpie, server, url):
        await server.say(url, "hello")
        assert server.shown[ANN] == [STILL]
        assert server.tries == 3
        await server.say(url, "?")
        assert server.shown[ANN][1:] == [STILL]
        gate.open.set()
        await shelved(magpie)
        await server.say(url, "1")
        assert server.shown[ANN][2:] == ["You said: hello"]
        assert len(model.asked) == 1
        await server.say(url, "a new question")
        assert server.shown[ANN][3:] == ["You said: a new question"]
    assert len(model.asked) == 2


@pytest.mark.usefixtures("fast")
async def test_a_question_that_fetched_an_answer_is_said_to_be_unread() -> None:
    gate = Gate()
    async with at_wechat(ScriptedModel(gate)) as (magpie, server, url):
        await server.say(url, "hello")
        gate.open.set()
        await shelved(magpie)
        await server.say(url, "and what about tomorrow?")
        assert server.shown[ANN][1].startswith("You said: hello\n\n（这是之前问题的回答")


@pytest.mark.usefixtures("fast")
async def test_a_question_that_was_taken_waits_for_its_own_answer() -> None:
    gate = Gate()
    async with at_wechat(ScriptedModel(gate)) as (magpie, server, url):
        adapter = magpie.adapters["wechat"]
        assert isinstance(adapter, WechatAdapter)
        asking = asyncio.create_task(server.say(url, "hello"))
        await server.until(lambda: server.tries == 2)
        await adapter._change(ANN, lambda shelf: shelf.put(Kept("k:1", "the rest of yesterday's", "yesterday")))
        await server.until(lambda: server.tries == 3)
        gate.open.set()
        await asking
        assert server.shown[ANN] == ["You said: hello"]
        await server.say(url, "more")
        assert server.shown[ANN][1:] == ["the rest of yesterday's"]


@pytest.mark.usefixtures("fast")
async def test_a_command_goes_through_while_an_answer_is_awaited() -> None:
    async with at_wechat(ScriptedModel(Gate())) as (_, server, url):
        await server.say(url, "hello")
        await server.say(url, "/stop")
        assert server.shown[ANN][0] == STILL
        assert server.shown[ANN][1] in ("Stopped.", "已停止。")


@pytest.mark.usefixtures("fast")
async def test_a_certified_account_sends_what_is_late() -> None:
    gate = Gate()
    model = ScriptedModel(gate)
    async with at_wechat(model, certified=True) as (_, server, url):
        asking = asyncio.create_task(server.say(url, "hello"))
        await server.until(lambda: server.typing)  # shows that the account may
        await asking
        assert server.shown[ANN] == []
        assert server.tries == 1
        gate.open.set()
        await server.until(lambda: server.shown[ANN])
        assert server.shown[ANN] == ["You said: hello"]
        await server.say(url, "again")
        assert server.shown[ANN][1:] == ["You said: again"]
    assert len(model.asked) == 2


@pytest.mark.usefixtures("fast")
async def test_a_rate_limit_and_an_expired_token_are_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.wechat_api.PAUSE", 0.01)
    gate = Gate()
    async with at_wechat(ScriptedModel(gate), certified=True) as (_, server, url):
        asking = asyncio.create_task(server.say(url, "hello"))
        await server.until(lambda: server.typing)
        await asking
        server.expire()
        server.script(SEND, Refusal(45009, "reach max api daily quota limit"), Refusal(-1, "system error"))
        gate.open.set()
        await server.until(lambda: server.shown[ANN])
        assert server.shown[ANN] == ["You said: hello"]


LONG = "\n\n".join(f"第 {n} 段：" + "字" * 200 for n in range(20))


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("certified", [True, False])
async def test_a_long_answer_is_whole(certified: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    can = msgspec.structs.replace(WechatAdapter.can, pages_per_second=1000)
    monkeypatch.setattr(WechatAdapter, "can", can)
    async with at_wechat(ScriptedModel(lambda turns: [LONG]), certified=certified) as (magpie, server, url):
        await server.say(url, "long please")
        while magpie.dispatcher.busy:
            await asyncio.sleep(0.01)
        if not certified:
            assert server.shown[ANN][0].endswith(MORE)
        while "第 19 段" not in server.shown[ANN][-1]:
            await server.say(url, "more")
        assert "".join(server.shown[ANN]).count("字") == 4000
        assert len(server.shown[ANN]) > 5
        assert FAULT not in server.shown[ANN]


@pytest.mark.usefixtures("fast")
async def test_messages_that_are_answered_together_show_one_answer() -> None:
    gate = Gate()
    model = ScriptedModel(gate)
    async with at_wechat(model) as (_, server, url):
        asking = [asyncio.create_task(server.say(url, "one"))]
        await server.until(lambda: server.tries == 1)
        while not model.asked:
            await asyncio.sleep(0.01)
        asking += [asyncio.create_task(server.say(url, text)) for text in ("two", "three")]
        await server.until(lambda: server.tries >= 3)
        gate.open.set()
        await asyncio.gather(*asking)
        answers = sorted(server.shown[ANN])
        assert len(answers) == len(set(answers))
        assert "You said: one" in answers
        assert FAULT not in answers


async def test_who_writes_too_fast_hears_so_and_is_not_left_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()  # all in the same minute
    monkeypatch.setattr("bot.store.sqlite.time", SimpleNamespace(time=lambda: now, time_ns=time.time_ns))
    async with at_wechat(ScriptedModel(), user_messages_per_minute=1) as (_, server, url):
        for text in ("one", "two", "three"):
            await server.say(url, text)
        assert server.shown[ANN][0] == "You said: one"
        assert all("faster" in text for text in server.shown[ANN][1:])
        assert server.tries == 3
