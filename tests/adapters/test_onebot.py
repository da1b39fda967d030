"""OneBot v11: signatures, segments and CQ codes, and a strict implementation that refuses what QQ refuses."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import onebot
from adapters.onebot import OnebotAdapter, failure, segments
from bot.adapter import Attachment, Chat, Context, Message, Page, Request
from bot.client import Reply
from bot.errors import Malformed, PlatformError, Refused, Throttled, Unauthorized, Unverified
from bot.registry import Configured
from bot.testing import AdapterPromises, ScriptedModel, context, running
from tests.adapters.onebot_server import (
    ANN,
    GROUP,
    ME,
    SECRET,
    TOKEN,
    OnebotServer,
    at,
    encoded,
    failed,
    signature,
    text,
)

SETTINGS = {"access_token": TOKEN, "secret": SECRET}
FIXTURES = Path(__file__).parent / "fixtures/onebot"


def build(lent: Context, **settings: object) -> OnebotAdapter:
    return OnebotAdapter(OnebotAdapter.Settings.model_validate(SETTINGS | settings), lent)


def alone() -> OnebotAdapter:
    return build(Context("onebot", None))  # type: ignore[arg-type]


def signed(event: Any) -> Request:
    body = json.dumps(event, ensure_ascii=False).encode()
    return Request(headers={"x-signature": signature(body)}, body=body)


def fixture(name: str) -> Request:
    body = (FIXTURES / f"{name}.json").read_bytes()
    return Request(headers={"x-signature": signature(body)}, body=body)


def one(message: Any, **fields: Any) -> Message:
    (found,) = alone().parse(signed(OnebotServer().event(message, **fields))).messages
    return found


class TestPromises(AdapterPromises):
    adapter = OnebotAdapter
    settings = SETTINGS

    def text_message(self) -> Request:
        return fixture("napcat_private")


@contextlib.asynccontextmanager
async def at_qq(model: ScriptedModel) -> AsyncIterator[tuple[str, OnebotServer]]:
    async with OnebotServer() as server:
        settings = OnebotAdapter.Settings.model_validate(SETTINGS | {"api_base": server.url})
        async with running(Configured("onebot", OnebotAdapter, settings), model=model) as magpie:
            yield f"http://127.0.0.1:{magpie.port}/webhooks/onebot", server


# -- verification

VECTOR = (
    b'{"time":1515204254,"self_id":10001000,"post_type":"message","message_type":"private","sub_type":"friend",'
    b'"message_id":12,"user_id":12345678,"message":"hello","raw_message":"hello","font":456,"sender":{"nickname":"x"}}'
)


async def test_known_signature() -> None:
    adapter = build(Context("onebot", None), secret="kSLuTF2GC2Q4q4ugm3")  # type: ignore[arg-type]
    header = "sha1=21ee052f4338e7a54d7fadb5e18a281e864261c3"
    await adapter.verify(Request(headers={"x-signature": header}, body=VECTOR))
    for wrong in ("", header[5:], header[:-1], header.upper(), "sha1="):
        with pytest.raises(Unverified):
            await adapter.verify(Request(headers={"x-signature": wrong}, body=VECTOR))
    with pytest.raises(Unverified):
        await adapter.verify(Request(headers={"x-signature": header}, body=VECTOR + b" "))


@pytest.mark.parametrize("settings", [{"secret": "x"}, {"access_token": "x"}, {"secret": "", "access_token": "x"}])
def test_both_secrets_are_required(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"required|missing|at least 1"):
        OnebotAdapter.Settings.model_validate(settings)


# -- what people write


@pytest.mark.parametrize("name", ["napcat_group_reply", "string_group_reply"])
def test_both_formats_say_the_same(name: str) -> None:
    (message,) = alone().parse(fixture(name)).messages
    url = "https://multimedia.nt.qq.com.cn/download?appid=1407&rkey=x"
    assert message == Message(
        id="10001000:1718000000:-2147483000",
        chat=Chat("group:123", "group"),
        user="456",
        text="what is this?",
        user_name="group name",
        attachments=(Attachment("image", url, "image/png", "A.png", 51234),),
        reply_to="-21474",
        locale="zh",
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("heartbeat", "heartbeat"),
        ("poke", "notify"),
        ("group_request", "request"),
        ("own", "own message"),
    ],
)
def test_what_is_no_question_is_ignored(name: str, reason: str) -> None:
    inbound = alone().parse(fixture(name))
    assert (inbound.messages, inbound.ignored) == ((), reason)
    assert (inbound.response.status, inbound.response.body) == (204, b"")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"user": ME}, "own message"),
        ({"user": 2854196301}, "message of a bot"),
        ({"user": 3889000001}, "message of a bot"),
        ({"message_id": None}, "nobody to answer"),
        ({"group_id": None, "message_type": "group"}, "nobody to answer"),
        ({"user_id": None}, "nobody to answer"),
        ({"message_type": "guild"}, "friend"),
        ({"sub_type": "notice", "group": GROUP}, "notice"),
        ({"message": [], "raw_message": ""}, "nothing that can be read"),
        ({"message": [{"type": "face", "data": {"id": "14"}}]}, "nothing that can be read"),
    ],
)
def test_messages_that_are_not_answered(fields: dict[str, Any], reason: str) -> None:
    event = OnebotServer().event(fields.pop("message", [text("hi")]), **fields)
    inbound = alone().parse(signed(event))
    assert (inbound.messages, inbound.ignored) == ((), reason)


@pytest.mark.parametrize(
    ("message", "said", "addressed"),
    [
        ([text("hi all")], "hi all", False),
        ([at("all"), text(" hi")], "@all hi", False),
        ([at(999), text(" hi")], "@999 hi", False),
        ([at(ME), text(" hi")], "hi", True),
        ([text("hi "), at(ME), text(" there")], "hi there", True),
        ([at(ME), text(" ask "), at(999)], "ask @999", True),
        ([at(ME)], "", True),
        ([text("/reset")], "/reset", True),
        ([at(ME), text(" /reset")], "/reset", True),
        (f"[CQ:at,qq={ME}] 1 &lt; 2 &#91;x&#93; &amp;#44;", "1 &lt; 2 [x] &#44;", True),
        ("[CQ:at,qq=999,name=李&#44;四] hi", "@李,四 hi", False),
        ("no [CQ code], [CQ:]", "no [CQ code], [CQ:]", False),
        ([{"type": "text", "data": None}, text("x")], "x", False),
        ([text(f"[CQ:at,qq={ME}] not a mention")], f"[CQ:at,qq={ME}] not a mention", False),
    ],
)
def test_mentions_and_codes(message: Any, said: str, addressed: bool) -> None:
    found = one(message, group=GROUP)
    assert (found.text, found.addressed) == (said, addressed)


def test_ids_may_be_strings_and_texts_absent() -> None:
    found = one(None, raw_message="hello", user_id=str(ANN), self_id=str(ME), message_id="7", time="1", sender=None)
    assert (found.id, found.user, found.text, found.user_name) == ("10001000:1:7", str(ANN), "hello", "")


def test_a_group_and_a_person_of_one_number_are_two_chats() -> None:
    assert one([text("hi")], user=GROUP).chat.id != one([text("hi")], group=GROUP).chat.id


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        (
            "image",
            {"file": "A.jpg", "url": "http://gchat.qpic.cn/a"},
            ("image", "https://gchat.qpic.cn/a", "image/jpeg"),
        ),
        ("image", {"file": "A.image"}, ("image", "get_image:A.image", "")),
        ("record", {"file": "a.mp3", "url": None}, ("audio", "get_record:a.mp3", "audio/mpeg")),
        ("file", {"file": "a.txt", "file_id": "/f-1"}, ("file", "get_file:/f-1", "text/plain")),
        ("video", {"file": "a.mp4", "url": "file:///etc/passwd"}, ("video", "get_file:a.mp4", "video/mp4")),
    ],
)
def test_files(kind: str, data: dict[str, Any], expected: tuple[str, str, str]) -> None:
    (file,) = one([{"type": kind, "data": data}]).attachments
    assert (file.kind, file.ref, file.mime) == expected


@given(st.text() | st.from_regex(r"(\[CQ:\w+(,\w+=[^\]]*)*\]|&#9[13];|&amp;|.)*"))
def test_strings_are_always_read(said: str) -> None:
    assert all(piece.data is not None for piece in segments(said))


def test_endless_codes_are_read_in_time() -> None:
    said = ("[CQ:a" + ",a=b" * 20) * 3000
    assert "".join(piece.get("text") for piece in segments(said)) == said


BASE = OnebotServer().event([text("hi")])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["message", "group", "private", "at"]),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*BASE, "type", "data", "qq", "file"]), inner),
    )
)
def test_garbage_is_malformed_or_harmless(value: Any) -> None:
    for event in (value, BASE | value if isinstance(value, dict) else BASE | {"message": value}):
        with contextlib.suppress(Malformed):
            alone().parse(signed(event))


# -- the whole bot


async def test_a_private_chat_is_answered_once_and_hears_nothing_at_once() -> None:
    async with at_qq(ScriptedModel()) as (url, server):
        event = server.event([text("hello")])
        assert {await server.deliver(url, event) for _ in range(3)} == {(204, b"")}
        await server.until(lambda: server.shown)
        assert server.shown == {str(ANN): ["You said: hello"]}
        assert server.replied == []


async def test_groups_are_answered_with_a_reply_when_mentioned() -> None:
    model = ScriptedModel()
    async with at_qq(model) as (url, server):
        await server.deliver(url, server.event([text("chatter")], group=GROUP))
        event = server.event([at(ME), text(" hi")], group=GROUP)
        await server.deliver(url, event)
        await server.until(lambda: server.shown)
        assert server.shown == {f"group:{GROUP}": ["You said: hi"]}
        assert server.replied == [str(event["message_id"])]
        assert len(model.asked) == 1


async def test_forged_and_unsigned_events_leave_no_trace() -> None:
    model = ScriptedModel()
    async with at_qq(model) as (url, server):
        for sign in (lambda body: "", lambda body: "sha1=" + "0" * 40):
            status, _ = await server.deliver(url, server.event([text("hello")]), sign)
            assert status == 401
        await server.deliver(url, server.event([text("true")]))
        await server.until(lambda: server.shown)
        assert len(model.asked) == 1


async def test_codes_in_an_answer_stay_text() -> None:
    trap = "[CQ:at,qq=all] & [CQ:image,file=file:///etc/passwd]"
    async with at_qq(ScriptedModel(lambda turns: [trap])) as (url, server):
        await server.deliver(url, server.event([text("hello")]))
        await server.until(lambda: server.shown)
        assert server.shown == {str(ANN): [trap]}
        (body,) = [body for action, body in server.calls if action == "send_private_msg"]
        assert body["auto_escape"] is True
        assert body["message"] == [text(trap)]


async def test_long_answers_are_split_and_reply_once() -> None:
    answer = "\n\n".join(f"Paragraph {n}: " + "字" * 900 for n in range(9))
    async with at_qq(ScriptedModel(lambda turns: [answer])) as (url, server):
        await server.deliver(url, server.event([at(ME), text(" hello")], group=GROUP))
        await server.until(lambda: "Paragraph 8" in "".join(server.shown.get(f"group:{GROUP}", [])))
        shown = server.shown[f"group:{GROUP}"]
        assert len(shown) > 1
        assert "".join("".join(shown).split()) == "".join(answer.split())
        assert len(server.replied) == 1


@pytest.mark.parametrize(
    "faults", [[429], [500], [failed(1200, "EventChecker Failed")], [failed(100, ""), 500, failed(-1, "频繁")]]
)
async def test_failures_lose_and_double_nothing(faults: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.delivery.BACKOFF", (0.01,) * 4)
    monkeypatch.setattr(onebot, "PAUSE", 0.01)
    async with at_qq(ScriptedModel()) as (url, server):
        server.faults.extend(faults)
        for words in ("hello", "again"):
            await server.deliver(url, server.event([text(words)]))
            await server.until(lambda: f"You said: {words}" in server.shown.get(str(ANN), []))  # noqa: B023
        assert server.shown[str(ANN)] == ["You said: hello", "You said: again"]


# -- the API


@pytest.mark.parametrize(
    ("envelope", "error"),
    [
        ({"status": "ok", "retcode": 0, "data": None}, None),
        ({"status": "async", "retcode": 1, "data": None}, None),
        (failed(1400, "x"), Refused),
        (failed(1404, "x"), Refused),
        (failed(1403, "x"), Unauthorized),
        (failed(1200, "你已被禁言"), Refused),
        (failed(100, "对方不是好友"), Refused),
        (failed(1200, "Timeout"), Throttled),
        (failed(0, ""), Throttled),
    ],
)
def test_errors_inside_of_a_200(envelope: dict[str, Any], error: type[PlatformError] | None) -> None:
    found = failure(Reply(200, {}, json.dumps(envelope).encode()))
    assert type(found) is (error or type(None))


def test_errors_do_not_quote_what_was_written() -> None:
    assert "secret plan" not in str(failure(Reply(200, {}, json.dumps(failed(1200, "secret plan")).encode())))


async def test_who_is_muted_or_unknown() -> None:
    async with OnebotServer() as server, context() as lent:
        adapter = build(lent, api_base=server.url)
        server.muted.add(GROUP)
        with pytest.raises(Refused, match="muted"):
            await adapter.send(Chat(f"group:{GROUP}", "group"), Page("hi", key="k:0"))
        stranger = one([text("hi")], sub_type="group", sender={"group_id": GROUP, "nickname": "Bo"})
        await adapter.send(stranger.chat, Page("hi", key="k:0"))
        assert server.calls[-1][1]["group_id"] == GROUP
        assert server.calls[-1][1]["user_id"] == ANN
        await adapter.stop()


async def test_typing_in_private_chats_only() -> None:
    async with OnebotServer() as server, context() as lent:
        adapter = build(lent, api_base=server.url)
        await adapter.typing(Chat(str(ANN)))
        await adapter.typing(Chat(f"group:{GROUP}", "group"))
        assert server.calls == [("set_input_status", {"user_id": ANN, "event_type": 1})]
        await adapter.stop()


async def test_downloads() -> None:
    async with OnebotServer() as server, context() as lent:
        adapter = build(lent, api_base=server.url)
        server.files = {"a": {"base64": encoded(b"picture")}, "disk": {"file": "/tmp/x", "base64": ""}}
        server.files["evil"] = {"url": "https://qq.com.example.net/x"}
        assert await adapter.download(Attachment("image", "get_image:a"), 100) == b"picture"
        for ref, limit in (
            ("get_image:a", 3),
            ("get_image:disk", 100),
            ("get_file:evil", 100),
            ("https://example.net/a.png", 100),
            ("https://evilqq.com/a.png", 100),
            ("https://multimedia.nt.qq.com.cn@127.0.0.1/a", 100),
        ):
            with pytest.raises(Refused):
                await adapter.download(Attachment("image", ref), limit)
        await adapter.stop()


async def test_register_and_check() -> None:
    url = "https://bot.example.com/webhooks/onebot"
    async with OnebotServer() as server, context("onebot") as lent:
        adapter = build(lent, api_base=server.url)
        steps = " ".join(finding.what for finding in await adapter.register(url))
        assert all(word in steps for word in (url, "ONEBOT_SECRET", "ONEBOT_ACCESS_TOKEN", "ONEBOT_API_BASE"))
        assert SECRET not in steps
        assert all(finding.ok for finding in await adapter.check(url))
        server.online = False
        assert [finding.ok for finding in await adapter.check(url)] == [True, False, True]
        await adapter.stop()
        stranger = build(lent, api_base=server.url, access_token="wrong")
        (finding,) = await stranger.check(url)
        assert "ONEBOT_ACCESS_TOKEN" in finding.advice
        await stranger.stop()
        nowhere = build(lent, api_base="http://127.0.0.1:1")
        (finding,) = await nowhere.check(url)
        assert "ONEBOT_API_BASE" in finding.advice
        await nowhere.stop()
