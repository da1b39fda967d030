"""WeCom AI bot: callbacks, streams that WeCom polls, late answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adapters.wecom_aibot
from adapters.wecom_aibot import GONE, NOT_TAKEN, NOT_YET, TOGETHER, WecomAibotAdapter, WecomAibotSettings
from adapters.wecom_aibot.callback import without_mention
from bot.adapter import Attachment, Chat, Context, Message, Page, Post, Request, State, Turn
from bot.app import Magpie
from bot.config import Environment
from bot.errors import Malformed, Refused, Throttled, Unavailable, Unverified
from bot.registry import Configured
from bot.testing import AdapterPromises, ScriptedModel, call, context, running
from tests.adapters.tencent_server import Cut, Refusal
from tests.adapters.wecom_aibot_server import KEY, LATE, AibotServer, Shown

FIXTURES = sorted(Path(__file__).with_name("fixtures").glob("wecom_aibot/*.json"))
NO_STATE = Context("wecom_aibot", create_autospec(State))
URL = f"https://qyapi.weixin.qq.com{LATE}?response_code=CODE-MSG1"


def make(server: AibotServer, lent: Context = NO_STATE, **changes: object) -> WecomAibotAdapter:
    return WecomAibotAdapter(WecomAibotSettings.model_validate(server.settings(**changes)), lent)


@pytest.fixture
async def wecom() -> AsyncIterator[AibotServer]:
    async with AibotServer() as server:
        yield server


@pytest.fixture
async def adapter(wecom: AibotServer) -> AsyncIterator[WecomAibotAdapter]:
    async with context("wecom_aibot") as lent:
        adapter = make(wecom, lent)
        yield adapter
        await adapter.stop()


class TestPromises(AdapterPromises):
    adapter = WecomAibotAdapter
    settings = AibotServer().settings()

    def text_message(self) -> Request:
        server = AibotServer()  # each begins with the same message id
        return server.callback(**server.text("hello"))


@pytest.mark.parametrize(("field", "value"), [("TOKEN", None), ("ENCODING_AES_KEY", "short"), ("API_BASE", "x")])
def test_a_wrong_setting_is_told_by_its_name(field: str, value: str | None) -> None:
    given = {f"WECOM_AIBOT_{name.upper()}": str(text) for name, text in AibotServer().settings().items()}
    env = Environment({**given, f"WECOM_AIBOT_{field}": value})
    assert env.read(WecomAibotSettings, "wecom_aibot") is None
    [problem] = env.problems
    assert problem.startswith(f"WECOM_AIBOT_{field}: ")
    assert KEY not in problem


# -- inbound


async def test_the_console_hears_the_bare_echo() -> None:
    server = AibotServer()
    adapter, request = make(server), server.sealed(b"1616140317555161061", "GET")
    await adapter.verify(request)
    assert adapter.parse(request).response.body == b"1616140317555161061"


@pytest.mark.parametrize("name", ["msg_signature", "timestamp", "nonce"])
async def test_a_changed_query_is_refused(name: str) -> None:
    server = AibotServer()
    request = server.callback(**server.text("hello"))
    for value in ("", "x", "1409659813", "\udce9"):
        with pytest.raises(Unverified):
            await make(server).verify(msgspec.structs.replace(request, query={**request.query, name: value}))


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"encrypt": 1}', b'{"encrypt": "AAAA"}', b"<xml/>", b"\xff"])
async def test_another_body_is_refused(body: bytes) -> None:
    server = AibotServer()
    with pytest.raises(Unverified):
        await make(server).verify(msgspec.structs.replace(server.callback(**server.text("hello")), body=body))


async def test_a_message_for_a_company_is_none_for_the_bot() -> None:
    server = AibotServer()
    server.envelope.receiver = b"ww1436e0e65a779aee"
    with pytest.raises(Unverified, match="another receiver"):
        await make(server).verify(server.callback(**server.text("hello")))


async def test_both_spellings_of_the_envelope_are_taken() -> None:
    server = AibotServer()
    request = server.callback(**server.text("hello"))
    await make(server).verify(msgspec.structs.replace(request, body=request.body.replace(b"encrypt", b"Encrypt")))


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_parse(path: Path) -> None:
    case = json.loads(path.read_text())
    server = AibotServer()
    request = server.callback(**case["callback"])
    inbound = make(server).parse(request)
    without = [msgspec.structs.replace(m, chat=Chat(m.chat.id, m.chat.kind)) for m in inbound.messages]
    assert without == [msgspec.convert(case["message"], Message) for _ in inbound.messages]
    assert bool(inbound.messages) is ("message" in case)
    assert inbound.ignored == case.get("ignored", "")
    if inbound.messages:
        stream = server.understood(request, inbound.response.body)["stream"]
        assert (stream["finish"], stream["content"]) == (False, "")


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("@Magpie Bot /help", "Magpie Bot", "/help"),
        ("ask @Magpie Bot please", "Magpie Bot", "ask  please"),
        ("@Magpie", "", ""),
        ("@Other hi", "Magpie Bot", "hi"),
        ("mail a@b.c", "", "mail a@b.c"),
        ("no mention", "", "no mention"),
    ],
)
def test_mentions_are_removed(text: str, name: str, expected: str) -> None:
    assert without_mention(text, name) == expected


async def test_who_opens_the_chat_is_welcomed() -> None:
    server = AibotServer()
    request = server.callback(**server.message("event", event={"eventtype": "enter_chat"}))
    answer = server.understood(request, make(server).parse(request).response.body)
    assert answer["msgtype"] == "text"
    assert "/help" in answer["text"]["content"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
FIELDS = ["msgtype", "msgid", "from", "text", "mixed", "quote", "stream", "chatid", "chattype", "event", "image"]
BODY = st.binary() | JSON.map(json.dumps).map(str.encode)


@given(BODY | st.dictionaries(st.sampled_from(FIELDS), JSON).map(json.dumps).map(str.encode))
def test_garbage_is_malformed_or_ignored(body: bytes) -> None:
    server = AibotServer()
    with contextlib.suppress(Malformed):
        for message in make(server).parse(server.sealed(body)).messages:
            assert message.id
            assert message.user


async def test_the_sample_is_an_event() -> None:
    adapter = make(AibotServer())
    await adapter.verify(adapter.sample())
    assert adapter.parse(adapter.sample()).ignored == "event sample"


# -- streams and late answers, without the core


async def opened(adapter: WecomAibotAdapter, server: AibotServer, **message: Any) -> Message:
    """Let a question come and be stored."""
    request = server.callback(**(message or server.text("hello")))
    inbound = adapter.parse(request)
    assert await adapter.at_once(request, inbound) is None
    await adapter.acknowledge(inbound.messages[0])
    return inbound.messages[0]


async def polled(adapter: WecomAibotAdapter, server: AibotServer, message: Message) -> tuple[str, bool]:
    """Return what a poll hears, and whether it is the end."""
    id = json.loads(message.chat.ticket)["stream"] if message.chat.ticket else "nobody's"
    request = server.callback(msgtype="stream", stream={"id": id})
    inbound = adapter.parse(request)
    response = await adapter.at_once(request, inbound)
    assert response is not None
    stream = server.understood(request, response.body)["stream"]
    assert stream["id"] == id
    return stream["content"], stream["finish"]


async def test_a_poll_hears_the_whole_text_so_far(adapter: WecomAibotAdapter, wecom: AibotServer) -> None:
    message = await opened(adapter, wecom)
    assert await polled(adapter, wecom, message) == ("", False)
    id = await adapter.begin(message.chat, Page("One", key="k:0"))
    assert await polled(adapter, wecom, message) == ("One", False)
    await adapter.edit(message.chat, Post(id, "One"), Page("One two", key="k:0"), last=False)
    assert await polled(adapter, wecom, message) == ("One two", False)
    await adapter.edit(message.chat, Post(id, "One two"), Page("One two three", key="k:0"), last=True)
    assert await polled(adapter, wecom, message) == ("One two three", True)
    assert not wecom.calls


async def test_any_replica_answers_a_poll(adapter: WecomAibotAdapter, wecom: AibotServer) -> None:
    message = await opened(adapter, wecom)
    await adapter.send(message.chat, Page("whole", key="k:0"))
    assert await polled(make(wecom, adapter.context), wecom, message) == ("whole", True)


async def test_a_stream_nobody_knows_ends(adapter: WecomAibotAdapter, wecom: AibotServer) -> None:
    assert await polled(adapter, wecom, Message("x", Chat("ann"), "ann")) == (GONE, True)


async def test_the_second_page_is_the_late_answer_and_a_third_is_refused(
    adapter: WecomAibotAdapter, wecom: AibotServer
) -> None:
    wecom._rights["CODE-MSG1"] = shown = Shown()
    message = await opened(adapter, wecom)
    await adapter.send(message.chat, Page("first", key="k:0"))
    id = await adapter.begin(message.chat, Page("sec", key="k:1"))
    assert shown.late == []
    await adapter.edit(message.chat, Post(id), Page("second", key="k:1"), last=True)
    await adapter.edit(message.chat, Post(id), Page("second", key="k:1"), last=True)  # after a crash
    assert shown.late == ["second"]
    with pytest.raises(Refused, match="one late answer"):
        await adapter.send(message.chat, Page("third", key="k:2"))
    assert await polled(adapter, wecom, message) == ("first", True)


async def test_a_spare_post_is_no_late_answer(adapter: WecomAibotAdapter, wecom: AibotServer) -> None:
    wecom._rights["CODE-MSG1"] = shown = Shown()
    message = await opened(adapter, wecom)
    await adapter.send(message.chat, Page("first", key="k:0"))
    await adapter.edit(message.chat, Post("x"), Page("⤴"), last=True)
    await adapter.send(message.chat, Page("second", key="k:1"))
    await adapter.edit(message.chat, Post("x"), Page("⤴"), last=True)
    assert shown.late == ["second"]


async def test_after_its_time_the_stream_ends_and_the_answer_comes_late(
    adapter: WecomAibotAdapter, wecom: AibotServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wecom._rights["CODE-MSG1"] = shown = Shown()
    message = await opened(adapter, wecom)
    id = await adapter.begin(message.chat, Page("Half", key="k:0"))
    monkeypatch.setattr(adapters.wecom_aibot, "POLLED_FOR", 0.0)
    assert await polled(adapter, wecom, message) == (f"Half\n\n{NOT_YET}", True)
    await adapter.edit(message.chat, Post(id), Page("Half and whole", key="k:0"), last=True)
    assert shown.late == ["Half and whole"]


async def test_what_is_finished_in_time_is_heard_after_it(
    adapter: WecomAibotAdapter, wecom: AibotServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = await opened(adapter, wecom)
    await adapter.send(message.chat, Page("whole", key="k:0"))
    monkeypatch.setattr(adapters.wecom_aibot, "POLLED_FOR", 0.0)
    assert await polled(adapter, wecom, message) == ("whole", True)


async def test_a_question_that_was_not_stored_ends(
    adapter: WecomAibotAdapter, wecom: AibotServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = wecom.callback(**wecom.text("hello"))
    inbound = adapter.parse(request)
    await adapter.at_once(request, inbound)
    assert await polled(adapter, wecom, inbound.messages[0]) == ("", False)
    monkeypatch.setattr(adapters.wecom_aibot, "TAKEN_WITHIN", 0.0)
    assert await polled(adapter, wecom, inbound.messages[0]) == (NOT_TAKEN, True)
    assert await polled(adapter, wecom, await opened(adapter, wecom)) == ("", False)  # this one was


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Refusal(45009, "freq"), Throttled),
        (Refusal(-1, "busy"), Unavailable),
        (Refusal(0, "", 502), Unavailable),
        (Cut(), Unavailable),
        (Refusal(40001, "invalid response_code"), Refused),
    ],
    ids=str,
)
async def test_failures_of_a_late_answer(
    adapter: WecomAibotAdapter, wecom: AibotServer, outcome: Refusal | Cut, error: type[Exception]
) -> None:
    message = await opened(adapter, wecom)
    await adapter.send(message.chat, Page("first", key="k:0"))
    wecom.script(LATE, outcome)
    with pytest.raises(error) as raised:
        await adapter.send(message.chat, Page("second", key="k:1"))
    assert "CODE" not in str(raised.value)


@pytest.mark.parametrize("url", ["", "https://evil.example/x?response_code=1", "https://qyapi.weixin.qq.com/x", "//["])
async def test_a_late_answer_goes_nowhere_else(adapter: WecomAibotAdapter, wecom: AibotServer, url: str) -> None:
    message = await opened(adapter, wecom, **(wecom.text("hello") | {"response_url": url}))
    await adapter.send(message.chat, Page("first", key="k:0"))
    with pytest.raises(Refused):
        await adapter.send(message.chat, Page("second", key="k:1"))
    assert not wecom.calls


async def test_files_are_decrypted(adapter: WecomAibotAdapter, wecom: AibotServer) -> None:
    wecom.media["file"] = bytes.fromhex("4e50a6633ca7cbd79f2e42b04a93817f9e5813fe0036beb0ae78393630809e84")
    wecom.media["broken"] = b"not encrypted at all"
    assert await adapter.download(Attachment("image", f"{wecom.base}/file"), 100) == b"hello media"
    with pytest.raises(Refused, match="does not decrypt"):
        await adapter.download(Attachment("image", f"{wecom.base}/broken"), 100)
    with pytest.raises(Refused, match="larger"):
        await adapter.download(Attachment("image", f"{wecom.base}/file"), 5)
    with pytest.raises(Refused, match="not allowed"):
        await adapter.download(Attachment("image", "https://evil.example/file"), 100)


async def test_register_lists_the_steps_and_check_says_how_to_see(adapter: WecomAibotAdapter) -> None:
    url = "https://bot.example.com/webhooks/wecom_aibot"
    assert f"3. URL: {url}" in [finding.what for finding in await adapter.register(url)]
    [finding] = await adapter.check(url)
    assert url in finding.what


# -- whole conversations


async def slowly(turns: Sequence[Turn]) -> AsyncIterator[str]:
    """Answer in words, slowly enough to be polled in between."""
    for word in f"You said {turns[-1].content} and here is the rest of it".split():
        yield f"{word} "
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def at_wecom(model: ScriptedModel, **limits: Any) -> AsyncIterator[tuple[Magpie, AibotServer, str]]:
    async with AibotServer() as server:
        settings = WecomAibotSettings.model_validate(server.settings())
        async with running(Configured("wecom_aibot", WecomAibotAdapter, settings), model=model, **limits) as magpie:
            yield magpie, server, f"http://127.0.0.1:{magpie.port}/webhooks/wecom_aibot"


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let streams be written often."""
    can = msgspec.structs.replace(WecomAibotAdapter.can, edit_every=0.05, pages_per_second=1000)
    monkeypatch.setattr(WecomAibotAdapter, "can", can)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("group", ["", "wrGROUP"])
async def test_an_answer_grows_until_it_is_whole(group: str) -> None:
    model = ScriptedModel(slowly)
    async with at_wecom(model) as (_, server, url):
        shown = await server.say(url, "@Magpie hello" if group else "hello", group=group)
        assert shown.text.strip() == "You said hello and here is the rest of it"
        assert len(shown.steps) > 2
        assert all(
            later.startswith(earlier.strip()) for earlier, later in zip(shown.steps, shown.steps[1:], strict=False)
        )
    assert len(model.asked) == 1


async def test_a_redelivery_is_answered_once_and_in_the_same_stream() -> None:
    model = ScriptedModel()
    async with at_wecom(model) as (_, server, url):
        message = server.text("hello")
        again = await asyncio.gather(*(server.ask(url, message) for _ in range(4)))
        shown = await server.push(url, message)
        assert {one.id for one in again} == {shown.id}
        assert shown.text == "You said: hello"
    assert len(model.asked) == 1


async def test_a_forged_poll_hears_nothing() -> None:
    async with at_wecom(ScriptedModel()) as (magpie, server, url):
        shown = await server.say(url, "hello")
        poll = server.callback(msgtype="stream", stream={"id": shown.id})
        forged = msgspec.structs.replace(poll, query={**poll.query, "nonce": "1"})
        assert (await call(magpie, "wecom_aibot", forged))[0] == 401


@pytest.mark.usefixtures("eager")
async def test_questions_that_are_answered_together_all_end() -> None:
    first = asyncio.Event()

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        await first.wait()
        yield f"You said: {turns[-1].content}"

    model = ScriptedModel(script)
    async with at_wecom(model) as (_, server, url):
        one = asyncio.create_task(server.say(url, "one"))
        while not model.asked:
            await asyncio.sleep(0.01)
        two, three = await server.ask(url, server.text("two")), await server.ask(url, server.text("three"))
        first.set()
        assert (await one).text == "You said: one"
        for shown in (three, two):
            while not shown.finished:
                await server.poll(url, shown)
        assert (two.text, three.text) == (TOGETHER, "You said: three")
    assert len(model.asked) == 2


async def test_who_writes_too_fast_hears_so(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()  # all in the same minute
    monkeypatch.setattr("bot.store.sqlite.time", SimpleNamespace(time=lambda: now, time_ns=time.time_ns))
    async with at_wecom(ScriptedModel(), user_messages_per_minute=1) as (_, server, url):
        assert (await server.say(url, "one")).text == "You said: one"
        assert "faster" in (await server.say(url, "two")).text
        monkeypatch.setattr(adapters.wecom_aibot, "TAKEN_WITHIN", 0.0)
        assert (await server.say(url, "three")).text == NOT_TAKEN


@pytest.mark.usefixtures("eager")
async def test_a_long_answer_is_whole() -> None:
    long = "\n\n".join(f"第 {n} 段：" + "字" * 200 for n in range(50))
    async with at_wecom(ScriptedModel(lambda turns: [long])) as (_, server, url):
        server.script(LATE, Refusal(-1, "busy"))
        shown = await server.say(url, "long please")
        await server.until(lambda: shown.late)
        assert (shown.text + shown.late[0]).count("字") == 10_000
        assert "第 49 段" in shown.late[0]


async def test_the_model_sees_the_picture() -> None:
    model = ScriptedModel()
    async with at_wecom(model) as (_, server, url):
        server.media["file"] = bytes.fromhex("4e50a6633ca7cbd79f2e42b04a93817f9e5813fe0036beb0ae78393630809e84")
        await server.push(url, server.message("image", image={"url": f"{server.base}/file"}))
        assert [picture.data for picture in model.pictures[0]] == [b"hello media"]
