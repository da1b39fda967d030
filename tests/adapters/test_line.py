"""LINE: signatures, every kind of event, the reply token's short life, against a strict server."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.line import LineAdapter
from bot import signing
from bot.adapter import Attachment, Chat, Context, Message, Page, Request
from bot.errors import Malformed, Refused, Throttled, Unauthorized, Unavailable, Unverified
from bot.registry import Configured
from bot.testing import AdapterPromises, ScriptedModel, context, running
from tests.adapters.line_server import SECRET, TOKEN, LineServer, signature

SETTINGS = {"channel_access_token": TOKEN, "channel_secret": SECRET}


def build(lent: Context, **settings: object) -> LineAdapter:
    return LineAdapter(LineAdapter.Settings.model_validate(SETTINGS | settings), lent)


def signed(*events: Any) -> Request:
    body = json.dumps({"destination": "Ubot", "events": events}).encode()
    return Request(headers={"x-line-signature": signature(body)}, body=body)


class TestPromises(AdapterPromises):
    adapter = LineAdapter
    settings = SETTINGS

    def text_message(self) -> Request:
        return signed(LineServer().event("hello"))


@pytest.fixture
async def adapter() -> AsyncIterator[LineAdapter]:
    async with context() as lent:
        yield build(lent)


@contextlib.asynccontextmanager
async def at_line(model: ScriptedModel) -> AsyncIterator[tuple[str, LineServer]]:
    async with LineServer() as server:
        settings = LineAdapter.Settings.model_validate(SETTINGS | {"api_base": server.url})
        async with running(Configured("line", LineAdapter, settings), model=model) as magpie:
            yield f"http://127.0.0.1:{magpie.port}/webhooks/line", server


@pytest.mark.parametrize(
    ("secret", "body", "expected"),
    [
        ("channel_secret", "bodybodybodybody", "/gg9a+LvFevTH1sd7XCQycD7tsWclCsInj7MhBHxN7k="),
        (
            "8c570fa6dd201bb328f1c1eac23a96d8",
            '{"destination":"U8e742f61d673b39c7fff3cecb7536ef0","events":[]}',
            "GhRKmvmHys4Pi8DxkF4+EayaH0OqtJtaZxgTD9fMDLs=",
        ),
    ],
)
async def test_known_signatures(secret: str, body: str, expected: str) -> None:
    assert signing.digest(secret, body.encode(), encoding="base64") == expected
    async with context() as lent:
        await build(lent, channel_secret=secret).verify(
            Request(headers={"x-line-signature": expected}, body=body.encode())
        )


async def test_a_changed_body_is_refused(adapter: LineAdapter) -> None:
    true = signed(LineServer().event("hello"))
    with pytest.raises(Unverified):
        await adapter.verify(Request(headers=true.headers, body=true.body.replace(b"hello", b"hellp")))


BASE = LineServer().event("hello")


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({"type": "follow", "source": {"type": "user", "userId": "U1"}}, "follow"),
        ({"type": "unsend"}, "unsend"),
        ({"type": "postback", "postback": {"data": "x"}}, "postback"),
        ({}, "unknown event"),
        (BASE | {"mode": "standby"}, "standby: another module of the account answers"),
        (BASE | {"source": {"type": "user"}}, "nobody to answer"),
        (BASE | {"message": None}, "message"),
    ],
)
async def test_what_is_no_question_is_ignored(adapter: LineAdapter, event: Any, reason: str) -> None:
    inbound = adapter.parse(signed(event))
    assert inbound.messages == ()
    assert inbound.ignored == reason


async def test_the_console_test_is_fine(adapter: LineAdapter) -> None:
    assert adapter.parse(signed()).ignored == "no events"


async def test_several_events_of_one_call(adapter: LineAdapter) -> None:
    server = LineServer()
    events = [server.event("one"), {"type": "join"}, server.event("two", user="U2")]
    assert [message.text for message in adapter.parse(signed(*events)).messages] == ["one", "two"]


async def one(adapter: LineAdapter, *args: Any, **fields: Any) -> Message:
    (message,) = adapter.parse(signed(LineServer().event(*args, **fields))).messages
    return message


async def test_groups_are_answered_when_mentioned(adapter: LineAdapter) -> None:
    chatter = await one(adapter, "hi all", group="G1")
    assert not chatter.addressed
    assert chatter.chat.kind == "group"
    mentions = {"mentionees": [{"index": 3, "length": 7, "type": "user", "userId": "Ub", "isSelf": True}]}
    meant = await one(adapter, "👍 @Magpie what is this?", group="G1", mention=mentions)
    assert meant.addressed
    assert meant.text == "👍 what is this?"
    other = {"mentionees": [{"index": 0, "length": 4, "type": "user", "userId": "Ux", "isSelf": False}]}
    assert not (await one(adapter, "@Bob hi", group="G1", mention=other)).addressed
    assert (await one(adapter, "/reset", group="G1")).addressed


async def test_files_places_and_stickers(adapter: LineAdapter) -> None:
    image = await one(adapter, "", type="image", contentProvider={"type": "line"})
    assert image.attachments == (Attachment("image", "1", "image/jpeg"),)
    file = await one(adapter, "", type="file", fileName="a.txt", fileSize=9)
    assert file.attachments[0].name == "a.txt"
    foreign = await one(
        adapter, "", type="image", contentProvider={"type": "external", "originalContentUrl": "https://x"}
    )
    assert foreign.attachments == ()
    place = await one(adapter, "", type="location", title="Tower", address="Tokyo", latitude=35.6, longitude=139.7)
    assert place.text == "📍 Tower, Tokyo (35.6, 139.7)"
    assert (await one(adapter, "", type="sticker", keywords=["Happy", "Joy"])).text == "Happy Joy"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["message", "user", "active"]),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*BASE, *BASE["message"]]), inner),
    )
)
def test_garbage_is_malformed_or_harmless(value: Any) -> None:
    adapter = LineAdapter(LineAdapter.Settings.model_validate(SETTINGS), Context("line", None))  # type: ignore[arg-type]
    with contextlib.suppress(Malformed):
        adapter.parse(Request(body=json.dumps({"events": [value]}).encode()))
    with contextlib.suppress(Malformed):
        adapter.parse(Request(body=json.dumps(value).encode()))


async def test_an_answer_is_free_while_the_token_lives() -> None:
    async with at_line(ScriptedModel()) as (url, server):
        event = server.event("hello")
        assert {await server.deliver(url, event) for _ in range(3)} == {200}
        await server.until(lambda: server.shown)
        assert server.shown == {"U1": ["You said: hello"]}
        assert [call for call, _ in server.calls if call != "start"] == ["reply"]


async def test_a_token_that_has_gone_is_followed_by_a_push() -> None:
    async with at_line(ScriptedModel()) as (url, server):
        await server.deliver(url, server.event("hello", lives=-1))
        await server.until(lambda: server.shown)
        assert [call for call, _ in server.calls] == ["reply", "push"]


async def test_long_answers_go_on_by_push() -> None:
    text = "\n\n".join(f"Paragraph {n}: " + "字" * 900 for n in range(12))
    async with at_line(ScriptedModel(lambda turns: [text])) as (url, server):
        await server.deliver(url, server.event("hello"))
        await server.until(lambda: "Paragraph 11" in "".join(server.shown.get("U1", [])))
        calls = [call for call, _ in server.calls]
        assert calls[0] == "reply"
        assert set(calls[1:]) == {"push"}
        assert "".join("".join(server.shown["U1"]).split()) == "".join(text.split())


async def test_groups_through_the_whole_bot() -> None:
    model = ScriptedModel()
    async with at_line(model) as (url, server):
        mention = {"mentionees": [{"index": 0, "length": 7, "isSelf": True}]}
        await server.deliver(url, server.event("chatter", group="G1"))
        await server.deliver(url, server.event("@Magpie hi", group="G1", mention=mention))
        await server.until(lambda: server.shown)
        assert server.shown == {"G1": ["You said: hi"]}
        assert len(model.asked) == 1


@pytest.mark.parametrize("redelivered", [False, True])
@pytest.mark.parametrize("faults", [[429], [500], [-500], [-500, 429]])
async def test_failures_lose_and_double_nothing(
    redelivered: bool, faults: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.delivery.BACKOFF", (0.01,) * 4)
    async with at_line(ScriptedModel()) as (url, server):
        server.faults.extend(faults)
        context = {"deliveryContext": {"isRedelivery": redelivered}}
        await server.deliver(url, server.event("hello", lives=-1 if redelivered else 60) | context)
        await server.until(lambda: server.shown)
        await server.deliver(url, server.event("again"))
        await server.until(lambda: "You said: again" in server.shown["U1"])
        assert server.shown["U1"] == ["You said: hello", "You said: again"]


@pytest.mark.parametrize(
    ("status", "text", "error"),
    [
        (400, "The request body has 1 error(s)", Refused),
        (401, "Authentication failed", Unauthorized),
        (429, "The API rate limit has been exceeded", Throttled),
        (429, "You have reached your monthly limit.", Unavailable),
        (500, "oops", Unavailable),
    ],
)
def test_errors(status: int, text: str, error: type[Exception]) -> None:
    from adapters.line import failure
    from bot.client import Reply

    assert isinstance(failure(Reply(status, {}, json.dumps({"message": text}).encode())), error)


async def test_loading_animation_only_in_private() -> None:
    async with LineServer() as server, context() as lent:
        adapter = build(lent, api_base=server.url)
        await adapter.typing(Chat("U1"))
        await adapter.typing(Chat("G1", "group"))
        assert [body for _, body in server.calls] == [{"chatId": "U1", "loadingSeconds": 60}]
        assert await adapter.download(Attachment("image", "7"), 100) == b"picture 7"
        with pytest.raises(Refused):
            await adapter.download(Attachment("image", "7"), 3)
        await adapter.stop()


async def test_register_and_check() -> None:
    async with LineServer() as server, context() as lent:
        adapter = build(lent, api_base=server.url)
        url = "https://bot.example.com/webhooks/line"
        assert all(finding.ok for finding in await adapter.register(url))
        assert all(finding.ok for finding in await adapter.check(url))
        server.endpoint["active"] = False
        assert any("Use webhook" in finding.advice for finding in await adapter.check(url) if not finding.ok)
        await adapter.stop()
        stranger = build(lent, api_base=server.url, channel_access_token="wrong")
        (finding,) = await stranger.check(url)
        assert "refused" in finding.what
        with pytest.raises(Unauthorized):
            await stranger.send(Chat("U1"), Page("hi", key="k:0"))
        await stranger.stop()
