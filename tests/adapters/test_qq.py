"""QQ's official bot: signatures, the test of the URL, windows and budgets, against a strict platform."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import qq
from adapters.qq import QqAdapter, private_key
from adapters.qq.errors import failure
from adapters.qq.events import EVENTS
from adapters.qq.forms import FORMS, MARKDOWN, without_addresses
from bot.adapter import Attachment, Chat, Context, Message, Page, Request
from bot.client import Reply
from bot.errors import Malformed, PlatformError, Refused, Rejected, Throttled, Unauthorized, Unavailable, Unverified
from bot.markup import render
from bot.registry import Configured
from bot.testing import AdapterPromises, ScriptedModel, context, running
from tests.adapters.qq_server import APP_ID, SECRET, QqServer, headers, sign

SETTINGS = {"app_id": APP_ID, "app_secret": SECRET}
FIXTURES = Path(__file__).parent / "fixtures/qq"
URL = "https://bot.example.com/webhooks/qq"


def build(lent: Context, **settings: object) -> QqAdapter:
    return QqAdapter(QqAdapter.Settings.model_validate(SETTINGS | settings), lent)


def alone(**settings: object) -> QqAdapter:
    return build(Context("qq", None), **settings)  # type: ignore[arg-type]


def signed(payload: Any, timestamp: str = "", secret: str = SECRET) -> Request:
    body = payload if isinstance(payload, bytes) else json.dumps(payload, ensure_ascii=False).encode()
    sent = {name.lower(): value for name, value in headers(body, secret, timestamp).items()}
    return Request(headers=sent, body=body)


def fixture(name: str) -> Request:
    return signed((FIXTURES / f"{name}.json").read_bytes())


def one(request: Request) -> Message:
    (message,) = alone().parse(request).messages
    return message


class TestPromises(AdapterPromises):
    adapter = QqAdapter
    settings = SETTINGS

    def text_message(self) -> Request:
        return fixture("c2c")


@contextlib.asynccontextmanager
async def at_qq(model: ScriptedModel) -> AsyncIterator[tuple[str, QqServer]]:
    async with QqServer() as server:
        settings = QqAdapter.Settings.model_validate(SETTINGS | {"api_base": server.url, "token_base": server.url})
        async with running(Configured("qq", QqAdapter, settings), model=model) as magpie:
            yield f"http://127.0.0.1:{magpie.port}/webhooks/qq", server


@contextlib.asynccontextmanager
async def beside(**settings: object) -> AsyncIterator[tuple[QqAdapter, QqServer]]:
    async with QqServer() as server, context("qq") as lent:
        adapter = build(lent, **({"api_base": server.url, "token_base": server.url} | settings))
        yield adapter, server
        await adapter.stop()


# -- verification

VECTORS = [
    (
        "naOC0ocQE3shWLAfffVLB1rhYPG7",
        "1725442341",
        '{\n  "op": 0,\n  "d": {},\n  "t": "GATEWAY_EVENT_NAME"\n}',
        "865ad13a61752ca65e26bde6676459cd36cf1be609375b37bd62af366e1dc25a"
        "8dc789ba7f14e017ada3d554c671a911bfdf075ba54835b23391d509579ed002",
    ),
    (
        "123456abcdef",
        "1728981195",
        '{"id":"ROBOT1.0_veoihSEXDc8Q.g-6eLpNIa11bH8MisOjn-m-LKxCPntMk6exUXgcWCGpVO7L2QKTNZzjZzFFDSbiOFcqAPWyVA!!",'
        '"content":"哦一下","timestamp":"2024-10-15T16:33:15+08:00",'
        '"author":{"id":"675860273","user_openid":"675860273"}}',
        "e949b5b94ef4103df903fb031d1d16e358db3db83e79e117edd404c8508be3ce"
        "8a76d7bad1bed353194c126a1a5915b4ad8b5288c1191cc53a12acffccd82004",
    ),
]


@pytest.mark.parametrize(("secret", "timestamp", "body", "signature"), VECTORS)
async def test_known_signatures(
    secret: str, timestamp: str, body: str, signature: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: int(timestamp) + 1.0)
    adapter = alone(app_secret=secret)
    given = {"x-signature-ed25519": signature, "x-signature-timestamp": timestamp}
    await adapter.verify(Request(headers=given, body=body.encode()))
    beyond_the_order = signature[:-2] + f"{int(signature[-2:], 16) | 0xE0:02x}"
    for wrong in (
        given | {"x-signature-ed25519": beyond_the_order},
        given | {"x-signature-ed25519": signature[:-2]},
        given | {"x-signature-ed25519": ""},
        given | {"x-signature-timestamp": str(int(timestamp) + 1)},
    ):
        with pytest.raises(Unverified):
            await adapter.verify(Request(headers=wrong, body=body.encode()))
    with pytest.raises(Unverified):
        await adapter.verify(Request(headers=given, body=body.replace(" ", "").encode() + b" "))


def test_the_key_is_made_of_the_secret() -> None:
    public = private_key("naOC0ocQE3shWLAfffVLB1rhYPG7").public_key().public_bytes_raw().hex()
    assert public == "d7c362fe78aef81ff23287b493628b5db02a3c4fe30b215e4d19609b5d76673a"


async def test_stale_and_foreign_events_are_refused() -> None:
    event = QqServer().event("C2C_MESSAGE_CREATE", "hi")
    for request in (signed(event, str(int(time.time()) - 4000)), signed(event, secret="another secret")):
        with pytest.raises(Unverified):
            await alone().verify(request)


# -- the test of the URL


def validation(plain_token: object, event_ts: object) -> dict[str, object]:
    return {"op": 13, "d": {"plain_token": plain_token, "event_ts": event_ts}}


def test_the_test_of_the_url_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1725442400.0)
    answer = alone().parse(signed(validation("Arq0D5A61EgUu4OxUvOp", "1725442341"))).response
    assert answer.content_type == "application/json"
    assert json.loads(answer.body) == {
        "plain_token": "Arq0D5A61EgUu4OxUvOp",
        "signature": "87befc99c42c651b3aac0278e71ada338433ae26fcb24307bdc5ad38c1adc2d0"
        "1bcfcadc0842edac85e85205028a1132afe09280305f13aa6909ffc2d652c706",
    }


@pytest.mark.parametrize(
    ("plain_token", "event_ts"),
    [
        ('{"op":0,"t":"C2C_MESSAGE_CREATE"}', None),
        ("a b", None),
        ("", None),
        ("x" * 257, None),
        (7, None),
        ("x\n", None),
        ("x", "0"),
        ("x", "1725442341"),
        ("x", "17254{"),
        ("x", ""),
        ("x", "٣" * 10),
    ],
)
def test_nothing_that_could_be_an_event_is_signed(plain_token: object, event_ts: str | None) -> None:
    with pytest.raises(Rejected):
        alone().parse(signed(validation(plain_token, str(int(time.time())) if event_ts is None else event_ts)))


async def test_the_test_of_the_url_must_be_signed_itself() -> None:
    async with at_qq(ScriptedModel()) as (url, server):
        asked = validation("token", str(int(time.time())))
        assert (await server.deliver(url, asked))[0] == 200
        status, body = await server.deliver(url, asked, secret="a stranger's")
        assert status == 401
        assert "signature" not in body


# -- what people write


def test_a_private_message() -> None:
    message = one(fixture("c2c"))
    assert (message.id, message.chat.id, message.chat.kind) == ("ROBOT1.0_a", "users/675860273", "direct")
    assert (message.user, message.text, message.addressed) == ("675860273", "哦一下", True)
    assert json.loads(message.chat.ticket) == {"message": "ROBOT1.0_a", "until": 1728981195.0 + 3600}


def test_a_group_message() -> None:
    message = one(fixture("group_at"))
    assert (message.chat.id, message.chat.kind, message.user) == ("groups/G1", "group", "M1")
    assert (message.text, message.user_name) == ("这是什么? [表情]", "小明")
    url = "https://multimedia.nt.qq.com.cn/download?appid=1407&rkey=x"
    assert message.attachments == (Attachment("image", url, "image/png", "a.png", 51234),)
    assert json.loads(message.chat.ticket)["until"] == 1728981195.0 + 300


def test_a_guild_message() -> None:
    message = one(fixture("guild_at"))
    assert (message.chat.id, message.user, message.text) == ("channels/100010", "1234", "ask @Bo hi")
    assert message.attachments[0].ref == "https://gchat.qpic.cn/b.jpg"
    assert message.reply_to == "08b"


def test_a_voice_message_says_what_was_said() -> None:
    message = one(fixture("voice"))
    assert message.text == "今天天气怎么样"
    (voice,) = message.attachments
    assert (voice.kind, voice.ref) == ("audio", "https://qqbot.ugcimg.qq.com/v.wav")


def test_a_file_says_what_it_is() -> None:
    file = {"content_type": "file", "filename": "a.txt", "url": "//multimedia.nt.qq.com.cn/a", "size": 9}
    message = one(signed(QqServer().event("C2C_MESSAGE_CREATE", "", attachments=[file])))
    expected = Attachment("file", "https://multimedia.nt.qq.com.cn/a", "text/plain", "a.txt", 9)
    assert message.attachments == (expected,)


def test_a_guild_s_private_chat() -> None:
    message = one(signed(QqServer().event("DIRECT_MESSAGE_CREATE", "hi")))
    assert (message.chat.id, message.chat.kind) == ("dms/D2", "direct")


@pytest.mark.parametrize(
    ("content", "mentions", "addressed", "text"),
    [
        ("chatter", [], False, "chatter"),
        ("<@BOT> hi", [{"member_openid": "BOT", "is_you": True}], True, "hi"),
        ("<@M2> hi", [{"member_openid": "M2", "username": "Bo"}], False, "@Bo hi"),
        ("/reset", [], True, "/reset"),
    ],
)
def test_all_messages_of_a_group(content: str, mentions: list[Any], addressed: bool, text: str) -> None:
    message = one(signed(QqServer().event("GROUP_MESSAGE_CREATE", content, mentions=mentions)))
    assert (message.addressed, message.text) == (addressed, text)


@pytest.mark.parametrize(
    ("payload", "reason", "answer"),
    [
        ({"op": 1, "d": 7}, "heartbeat", {"op": 11}),
        ({"op": 0, "t": "FRIEND_ADD", "d": {}}, "FRIEND_ADD", {"op": 12, "d": 0}),
        ({"op": 0, "t": "INTERACTION_CREATE", "d": []}, "INTERACTION_CREATE", {"op": 12, "d": 0}),
        ({"op": 5}, "op 5", {"op": 12, "d": 0}),
        (
            QqServer().event("C2C_MESSAGE_CREATE", "x", author={"user_openid": "B", "bot": True}),
            "message of a bot",
            None,
        ),
        (QqServer().event("C2C_MESSAGE_CREATE", "x", author=None), "nobody to answer", None),
        (QqServer().event("GROUP_AT_MESSAGE_CREATE", "x", group_openid=None), "nobody to answer", None),
        (QqServer().event("GROUP_MESSAGE_CREATE", " "), "nothing that can be read", None),
    ],
)
def test_what_is_no_question_is_ignored(payload: Any, reason: str, answer: Any) -> None:
    inbound = alone().parse(signed(payload))
    assert (inbound.messages, inbound.ignored) == ((), reason)
    assert json.loads(inbound.response.body) == (answer or {"op": 12, "d": 0})


@pytest.mark.parametrize("timestamp", [None, "", "yesterday", "2026-02-31T00:00:00Z", "9999-12-31T23:59:59+08:00"])
def test_odd_times_are_now(timestamp: str | None) -> None:
    before = time.time()
    message = one(signed(QqServer().event("C2C_MESSAGE_CREATE", "hi", timestamp=timestamp)))
    assert before + 3600 <= json.loads(message.chat.ticket)["until"] <= time.time() + 3600


BASE = QqServer().event("C2C_MESSAGE_CREATE", "hi")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(list(EVENTS)),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*BASE, *BASE["d"], "mentions"]), inner),
    ),
    st.sampled_from(list(EVENTS)),
)
def test_garbage_is_malformed_or_harmless(value: Any, kind: str) -> None:
    inner = BASE["d"] | value if isinstance(value, dict) else value
    for payload in (value, BASE | {"d": inner, "t": kind}, {"op": 13, "d": value}):
        with contextlib.suppress(Malformed, Unverified):
            alone().parse(signed(payload))


# -- the dialect


def test_the_dialect() -> None:
    source = "### Head\n\n中文**“粗体”**字\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```py\nx = 1\n```\n\n- a\n  - [b](https://qq.com)"
    shown = render(source, MARKDOWN)
    assert "## Head" in shown
    assert "|" not in shown
    assert "```py\nx = 1\n```" in shown
    assert "中文\u200a**“粗体”**\u200a字" in shown
    assert "[b](https://qq.com)" in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see https://www.example.com/a?b=c now", "see www[.]example[.]com/a?b=c now"),
        ("见example.com。", "见example[.]com。"),
        ("192.168.0.1:80", "192[.]168[.]0[.]1:80"),
        ("pi is 3.14, e.g. here. There", "pi is 3.14, e.g. here. There"),
    ],
)
def test_addresses_are_broken(text: str, expected: str) -> None:
    assert without_addresses(text) == expected


# -- the whole bot


@pytest.mark.parametrize(
    ("kind", "chat"),
    [
        ("C2C_MESSAGE_CREATE", "U1"),
        ("GROUP_AT_MESSAGE_CREATE", "G1"),
        ("AT_MESSAGE_CREATE", "C1"),
        ("DIRECT_MESSAGE_CREATE", "D2"),
    ],
)
async def test_every_scene_is_answered_once(kind: str, chat: str) -> None:
    async with at_qq(ScriptedModel()) as (url, server):
        event = server.event(kind, "hello")
        for _ in range(3):
            assert await server.deliver(url, event) == (200, {"op": 12, "d": 0})
        await server.until(lambda: server.shown)
        assert server.texts(chat) == ["You said: hello"]
        assert server.shown[chat][0]["msg_id"] == event["d"]["id"]
        assert server.granted == 1


async def test_group_chatter_is_left_alone() -> None:
    model = ScriptedModel()
    async with at_qq(model) as (url, server):
        await server.deliver(url, server.event("GROUP_MESSAGE_CREATE", "chatter"))
        await server.deliver(url, server.event("GROUP_AT_MESSAGE_CREATE", " hi"))
        await server.until(lambda: server.shown)
        assert server.texts("G1") == ["You said: hi"]
        assert len(model.asked) == 1


async def test_long_answers_take_one_number_a_page() -> None:
    answer = "\n\n".join(f"Paragraph {n}: " + "字" * 900 for n in range(9))
    async with at_qq(ScriptedModel(lambda turns: [answer])) as (url, server):
        await server.deliver(url, server.event("C2C_MESSAGE_CREATE", "hello"))
        await server.until(lambda: "Paragraph 8" in "".join(server.texts("U1")))
        assert "".join("".join(server.texts("U1")).split()) == "".join(answer.split())
        assert [body["msg_seq"] for body in server.shown["U1"]] == [1, 2, 3]


@pytest.mark.parametrize(
    "faults", [[(429, 22009)], [(500, 0)], [(502, 123456)], [(-500, 0)], [(-500, 50055001), (401, 11244)]]
)
async def test_failures_lose_and_double_nothing(faults: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.delivery.BACKOFF", (0.01,) * 4)
    monkeypatch.setattr("adapters.qq.errors.PAUSE", 0.01)
    async with at_qq(ScriptedModel()) as (url, server):
        server.faults.extend(faults)
        for words in ("hello", "again"):
            await server.deliver(url, server.event("C2C_MESSAGE_CREATE", words))
            await server.until(lambda: f"You said: {words}" in server.texts("U1"))  # noqa: B023
        assert server.texts("U1") == ["You said: hello", "You said: again"]


async def test_an_expired_token_is_replaced() -> None:
    async with at_qq(ScriptedModel()) as (url, server):
        await server.deliver(url, server.event("C2C_MESSAGE_CREATE", "hello"))
        await server.until(lambda: server.shown)
        server.expired.add("token-1")
        await server.deliver(url, server.event("C2C_MESSAGE_CREATE", "again"))
        await server.until(lambda: len(server.texts("U1")) == 2)
        assert server.granted == 2


async def test_without_permission_for_markdown_it_is_text_from_then_on() -> None:
    async with at_qq(ScriptedModel(lambda turns: ["# A **bold** word"])) as (url, server):
        server.markdown = False
        for number in (1, 2):
            await server.deliver(url, server.event("C2C_MESSAGE_CREATE", "hello"))
            await server.until(lambda: len(server.texts("U1")) == number)  # noqa: B023
        assert server.texts("U1") == ["A bold word"] * 2
        assert [body["msg_type"] for _, body in server.calls] == [2, 0, 0]


async def test_addresses_that_are_not_allowed_are_broken() -> None:
    async with at_qq(ScriptedModel(lambda turns: ["**See** https://example.com/x"])) as (url, server):
        for kind in ("GROUP_AT_MESSAGE_CREATE", "AT_MESSAGE_CREATE"):
            await server.deliver(url, server.event(kind, "hello"))
        await server.until(lambda: len(server.shown) == 2)
        assert server.texts("G1") == server.texts("C1") == ["See example[.]com/x"]


# -- windows and budgets


def chat(message: str, until: float, id: str = "users/U1") -> Chat:
    return Chat(id, ticket=json.dumps({"message": message, "until": until}))


async def test_a_page_is_shown_once_however_often_it_is_sent() -> None:
    async with beside() as (adapter, server):
        event = server.event("C2C_MESSAGE_CREATE", "hello")
        to = one(signed(event)).chat
        for _ in range(3):
            await adapter.send(to, Page("hi", "hi", key="k:0"))
        await adapter.send(to, Page("ho", "ho", key="k:1"))
        assert server.texts("U1") == ["hi", "ho"]


async def test_five_replies_then_it_has_to_write_first() -> None:
    async with beside() as (adapter, server):
        to = one(signed(server.event("C2C_MESSAGE_CREATE", "hello"))).chat
        for number in range(5):
            await adapter.send(to, Page(f"page {number}", key=f"k:{number}"))
        assert all("msg_id" in body for _, body in server.calls)
        with pytest.raises(Refused, match="may not write first"):
            await adapter.send(to, Page("page 5", key="k:5"))
        assert "msg_id" not in server.calls[-1][1]
        server.may_write_first = True
        await adapter.send(to, Page("page 5", key="k:5"))
        assert server.texts("U1") == [f"page {number}" for number in range(6)]


async def test_a_window_that_has_closed_is_not_tried() -> None:
    async with beside() as (adapter, server):
        server.may_write_first = True
        await adapter.send(chat("ROBOT1.0_9", time.time() - 1), Page("late", key="k:0"))
        assert [set(body) & {"msg_id", "msg_seq"} for _, body in server.calls] == [set()]


async def test_a_window_that_the_platform_has_closed() -> None:
    async with beside() as (adapter, server):
        to = one(signed(server.event("GROUP_AT_MESSAGE_CREATE", "hello", lives=-1))).chat
        server.may_write_first = True
        await adapter.send(to, Page("late", key="k:0"))
        assert ["msg_id" in body for _, body in server.calls] == [True, False]


async def test_ids_cannot_leave_their_path() -> None:
    async with beside() as (adapter, server):
        server.may_write_first = True
        await adapter.send(Chat("users/../../users/@me?x"), Page("hi", key="k:0"))
        assert list(server.shown) == ["../../users/@me?x"]


# -- the API


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, {"id": "1"}, None),
        (202, {"code": 304023, "message": "push message is waiting for audit now"}, None),
        (200, {"code": 100016, "message": "invalid appid or secret"}, Unauthorized),
        (200, {"code": 100001, "message": "too often"}, Throttled),
        (401, {"code": 11244}, Unauthorized),
        (401, {}, Unauthorized),
        (401, {"code": 100007}, Unauthorized),
        (400, {"code": 40034006}, Refused),
        (500, {"code": 40054005}, Refused),
        (500, {"code": 40054013}, Refused),
        (500, {"code": 850018}, Unavailable),
        (400, {"code": 850018}, Refused),
        (429, {}, Throttled),
        (400, {"code": 22009}, Throttled),
        (500, {"err_code": 50055002, "code": 1}, Unavailable),
    ],
)
def test_errors(status: int, body: dict[str, Any], error: type[PlatformError] | None) -> None:
    found = failure(Reply(status, {}, json.dumps(body).encode()))
    assert type(found) is (error or type(None))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]"])
def test_pages_of_proxies(body: bytes) -> None:
    assert isinstance(failure(Reply(502, {}, body)), Unavailable)
    assert failure(Reply(204, {}, b"")) is None


def test_errors_do_not_quote_what_was_written() -> None:
    body = json.dumps({"code": 40034006, "message": "secret plan"}).encode()
    assert "secret plan" not in str(failure(Reply(400, {}, body)))


async def test_files_come_from_qq_only() -> None:
    async with beside() as (adapter, _):
        for ref in ("https://qq.com.example.net/a", "http://multimedia.nt.qq.com.cn/a", "https://evilqq.com/a"):
            with pytest.raises(Refused):
                await adapter.download(Attachment("image", ref), 100)


async def test_replicas_share_a_token() -> None:
    async with QqServer() as server, context("qq") as lent:
        both = [build(lent, api_base=server.url, token_base=server.url) for _ in range(2)]
        for adapter in both:
            await adapter.check(URL)
            await adapter.stop()
        assert server.granted == 1


async def test_register_and_check() -> None:
    async with beside() as (adapter, _):
        steps = " ".join(finding.what for finding in await adapter.register(URL))
        assert URL in steps
        assert SECRET not in steps
        found = await adapter.check(URL)
        assert all(finding.ok for finding in found)
        assert "Magpie" in found[0].what
    async with beside(app_secret="wrong") as (adapter, _):
        (finding,) = await adapter.check(URL)
        assert "QQ_APP_SECRET" in finding.advice
    async with beside(token_base="http://127.0.0.1:1") as (adapter, _):
        (finding,) = await adapter.check(URL)
        assert "QQ_TOKEN_BASE" in finding.advice


def test_every_page_in_every_form_has_its_number() -> None:
    numbers = {
        qq._reply(chat("M", time.time() + 100), Page("x", key=f"k:{page}"), form)["msg_seq"]
        for page in range(qq.REPLIES)
        for form in range(len(FORMS))
    }
    assert len(numbers) == qq.REPLIES * len(FORMS)


def test_signing_agrees_with_the_platform() -> None:
    body = b'{"op":13}'
    assert private_key(SECRET).sign(b"1" + body).hex() == sign("1", body)
