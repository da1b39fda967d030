"""Discord: commands by HTTP, messages by the Gateway, and every way the API says no, against a strict server."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import aiohttp
import discord_interactions  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adapters.discord
from adapters.discord import DiscordAdapter, DiscordSettings, gateway, interactions, lease
from adapters.discord.interactions import COMMANDS, Ticket
from adapters.discord.messages import Incoming, heard
from adapters.discord.text import DISCORD
from bot.adapter import Accept, Attachment, Chat, Context, Inbound, Message, Page, Post, Request, State, Turn
from bot.app import Magpie
from bot.config import Environment
from bot.errors import (
    Malformed,
    PlatformError,
    Refused,
    StoreUnavailable,
    Throttled,
    Unauthorized,
    Unavailable,
    Unverified,
)
from bot.markup import pages, render
from bot.registry import Configured
from bot.testing import LONG_ANSWER, AdapterPromises, Script, ScriptedModel, context, echo, running
from tests.adapters.discord_server import (
    ADDRESS,
    APP_ID,
    BOT_ID,
    CREATE,
    EDIT,
    EDIT_BY_TOKEN,
    KNOWN_INTENTS,
    PUBLIC_KEY,
    TOKEN,
    TYPING,
    Channel,
    Cut,
    DiscordServer,
    LastOne,
    Opened,
    Outcome,
    Refusal,
    Shown,
    flood,
    pings,
    signature,
)

FIXTURES = sorted(Path(__file__).with_name("fixtures").glob("discord/*.json"))
NOW = 1_790_000_000
NOWHERE = "http://127.0.0.1:9"
HELLO = Page("Hello **world**", "Hello world", "reply:0", "1")


def settings(base: str = NOWHERE, **more: str) -> DiscordSettings:
    values = {"application_id": APP_ID, "public_key": PUBLIC_KEY, "bot_token": TOKEN, "api_base": base}
    return DiscordSettings.model_validate(values | more)


def make(base: str = NOWHERE, lent: Context | None = None, **more: str) -> DiscordAdapter:
    return DiscordAdapter(settings(base, **more), lent or Context("discord", create_autospec(State)))


@functools.cache
def reader() -> DiscordAdapter:
    """Return an adapter that only reads."""
    return make()


@pytest.fixture
async def discord(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DiscordServer]:
    monkeypatch.setattr(gateway, "pause", lambda tries: 0.01)
    monkeypatch.setattr(gateway, "INVALID_PAUSE", (0.0, 0.01))
    async with DiscordServer() as server:
        yield server


@pytest.fixture
async def lent() -> AsyncIterator[Context]:
    async with context("discord") as lent:
        yield lent


@pytest.fixture
async def adapter(discord: DiscordServer, lent: Context) -> AsyncIterator[DiscordAdapter]:
    adapter = make(discord.base, lent)
    yield adapter
    await adapter.stop()


def place(channel: Channel) -> Chat:
    return Chat(channel.id, "direct" if channel.kind == "direct" else "group")


def ticket(discord: DiscordServer, channel: Channel) -> tuple[Chat, Opened]:
    """Let somebody send a command that was answered "thinking..."."""
    interaction = discord.interaction(channel, "chat", message="hi")
    discord._answered(interaction, {"type": 5})
    message = interactions.asked(msgspec.convert(interaction, interactions.Interaction)).messages[0]
    return message.chat, discord.interactions[interaction["token"]]


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("APPLICATION_ID", None),
        ("APPLICATION_ID", "my app"),
        ("PUBLIC_KEY", None),
        ("PUBLIC_KEY", PUBLIC_KEY[:-1]),
        ("PUBLIC_KEY", "z" * 64),
        ("BOT_TOKEN", None),
        ("API_BASE", "ftp://example.com"),
    ],
)
def test_a_wrong_setting_is_told_by_its_name(field: str, value: str | None) -> None:
    given = {"DC_APPLICATION_ID": APP_ID, "DC_PUBLIC_KEY": PUBLIC_KEY, "DC_BOT_TOKEN": TOKEN, f"DC_{field}": value}
    env = Environment(given)
    assert env.read(DiscordSettings, "dc") is None
    [problem] = env.problems
    assert problem.startswith(f"DC_{field}: ")
    assert TOKEN not in problem


def test_the_token_is_hidden() -> None:
    assert TOKEN not in repr(settings())


# -- verify -----------------------------------------------------------------------------------------------------------

VECTOR_BODY = b'{"type":1,"id":"1","application_id":"2","token":"t","version":1}'
VECTOR = {
    "x-signature-timestamp": "1700000000",
    "x-signature-ed25519": "0f9e54b264347b4abf8a98448093023b92be156813d2f25d6df7151bbd0632ec"
    "668fd2e83ace7421c389b138783a8a5a3833d2805bcd2d84c5b452027c07460a",
}


def at(monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    monkeypatch.setattr(time, "time", lambda: now)


async def test_verify_takes_the_published_form(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, 1_700_000_100)
    await make().verify(Request(headers=VECTOR, body=VECTOR_BODY))


BROKEN: dict[str, dict[str, Any]] = {
    "no headers": {"headers": {}},
    "no signature": {"headers": {**VECTOR, "x-signature-ed25519": ""}},
    "no timestamp": {"headers": {**VECTOR, "x-signature-timestamp": ""}},
    "cut signature": {"headers": {**VECTOR, "x-signature-ed25519": VECTOR["x-signature-ed25519"][:-2]}},
    "not hexadecimal": {"headers": {**VECTOR, "x-signature-ed25519": "ключ" * 32}},
    "surrogates": {"headers": {"x-signature-ed25519": "\udcff", "x-signature-timestamp": "\udcff"}},
    "another body": {"body": VECTOR_BODY + b" "},
    "another timestamp": {"headers": {**VECTOR, "x-signature-timestamp": "1700000001"}},
    "no number": {"headers": signature(VECTOR_BODY, "soon")},
    "stale": {"headers": signature(VECTOR_BODY, str(1_700_000_100 - 1000))},
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
async def test_verify_refuses_everything_else(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    at(monkeypatch, 1_700_000_100)
    with pytest.raises(Unverified):
        await make().verify(msgspec.structs.replace(Request(headers=VECTOR, body=VECTOR_BODY), **change))


async def test_another_applications_key_does_not_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, 1_700_000_100)
    with pytest.raises(Unverified):
        await make(public_key="11" * 32).verify(Request(headers=VECTOR, body=VECTOR_BODY))


@given(st.binary(max_size=200), st.booleans())
async def test_the_vendors_verifier_agrees(body: bytes, tampered: bool) -> None:
    headers = signature(body)
    body += b"x" * tampered
    theirs = discord_interactions.verify_key(
        body, headers["x-signature-ed25519"], headers["x-signature-timestamp"], PUBLIC_KEY
    )
    try:
        await reader().verify(Request(headers=headers, body=body))
        ours = True
    except Unverified:
        ours = False
    assert ours == theirs == (not tampered)


# -- what comes in ----------------------------------------------------------------------------------------------------


def translated(case: dict[str, Any]) -> Inbound:
    data = json.dumps(case["data"]).encode()
    if case["event"] == "INTERACTION_CREATE":
        return reader().parse(Request(body=data))
    return heard(msgspec.json.decode(data, type=Incoming), BOT_ID)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_parse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, NOW)
    case = json.loads(path.read_text())
    inbound = translated(case)
    expected = [msgspec.convert(case["message"], Message)] if "message" in case else []
    assert list(inbound.messages) == expected
    assert inbound.ignored == case.get("ignored", "")
    if "response" in case:
        assert json.loads(inbound.response.body) == case["response"]
        assert inbound.response.content_type == "application/json"


BODY = st.binary() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
).map(lambda value: json.dumps(value).encode())


@given(BODY)
def test_garbage_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        reader().parse(Request(body=body))


def leaves(node: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(leaf for key, child in children for leaf in leaves(child, (*path, key)))]


@given(st.data())
def test_a_wrong_type_anywhere_is_malformed_or_harmless(data: st.DataObject) -> None:
    case = json.loads(data.draw(st.sampled_from(FIXTURES)).read_text())
    path = data.draw(st.sampled_from(leaves(case["data"])[1:]))
    holder = case["data"]
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = data.draw(
        st.sampled_from([None, True, -1, 10**30, 1.5, "", "🐦", "<@", [], [[]], {}, {"id": 1}])
    )
    with contextlib.suppress(Malformed, msgspec.ValidationError):
        translated(case)


# -- how it is written ------------------------------------------------------------------------------------------------

MARKDOWN = {
    "# One\n\n## Two\n\n### Three\n\n#### Four": "# One\n\n## Two\n\n### Three\n\n**Four**",
    "| a | 名 |\n|---|---|\n| 1 | 单元格 |": "```\na  名\n-  ------\n1  单元格\n```",
    "- a\n  - b\n    1. c\n    2. d": "- a\n  - b\n    1. c\n    2. d",
    "````python\nprint('```')\n````": "```python\nprint('`\u200b``')\n```",
    "中文**粗体**文字": "中文**粗体**文字",
    "**a***b*": "**a**\u200b*b*",
    "[site](https://example.com/a_b)": "[site](https://example.com/a_b)",
    "[https://example.com/x](https://example.com/y)": "https://example.com/x (https://example.com/y)",
    "[mail](mailto:a@example.com)": "mail (mailto:a@example.com)",
    "<https://example.com/a_b>": "https://example.com/a_b",
    "2 * 3 < 4 ||not hidden||": r"2 \* 3 \< 4 \|\|not hidden\|\|",
    "> one\n> > two": "> one\n>\n> two",
    "x ```a``b``` y": "x ``a`\u200b`b`` y",
    "~~gone~~ *it* `x`": "~~gone~~ *it* `x`",
}


@pytest.mark.parametrize(("source", "written"), MARKDOWN.items())
def test_the_dialect(source: str, written: str) -> None:
    assert render(source, DISCORD) == written


async def test_whatever_is_written_fits_and_notifies_nobody(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    channel = discord.channel("general")
    answer = "@everyone @here <@1300000000000000501> <@&7>\n\n" + LONG_ANSWER
    shown = pages(answer, adapter.can.max_length, adapter.can.dialect, adapter.can.measure)
    for number, text in enumerate(shown):
        await adapter.send(place(channel), Page(text, key=f"k:{number}"))
    assert [post.text for post in discord.shown(channel)] == shown
    assert not any(post.pings for post in discord.shown(channel))
    assert all(post.flags == 4 for post in discord.shown(channel))


# -- messages ---------------------------------------------------------------------------------------------------------


async def test_send_in_a_direct_chat(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    alice = discord.direct("Alice")
    id = await adapter.send(place(alice), HELLO)
    [shown] = discord.shown(alice)
    assert (shown.id, shown.text, shown.reply_to) == (id, HELLO.text, None)


async def test_send_in_a_channel_replies_to_the_question(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    channel = discord.channel("general")
    question = discord.written(channel, f"<@{BOT_ID}> who?")["id"]
    await adapter.send(place(channel), msgspec.structs.replace(HELLO, reply_to=question))
    assert discord.shown(channel)[0].reply_to == question


async def test_a_deleted_question_is_answered_all_the_same(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    channel = discord.channel("general")
    await adapter.send(place(channel), msgspec.structs.replace(HELLO, reply_to="404"))
    assert discord.shown(channel)[0].text == HELLO.text


async def test_without_the_channels_history_there_is_no_reply_but_an_answer(
    discord: DiscordServer, adapter: DiscordAdapter
) -> None:
    channel = discord.channel("general")
    channel.history = False
    await adapter.send(place(channel), HELLO)
    assert [shown.text for shown in discord.shown(channel)] == [HELLO.text]


async def test_a_repeated_attempt_shows_one_message_with_the_latest_words(
    discord: DiscordServer, adapter: DiscordAdapter
) -> None:
    alice = discord.direct("Alice")
    discord.script(CREATE, Cut(after=True))
    with pytest.raises(Unavailable):
        await adapter.begin(place(alice), Page("Hello", key="k:0"))
    await adapter.send(place(alice), Page("Hello world, all of it", key="k:0"))
    assert [shown.history for shown in discord.shown(alice)] == [["Hello", "Hello world, all of it"]]
    assert all(len(fields["nonce"]) == 25 for fields in discord.called(CREATE))


async def test_pages_have_different_nonces_and_none_without_a_key(
    discord: DiscordServer, adapter: DiscordAdapter
) -> None:
    alice = discord.direct("Alice")
    for key in ("k:0", "k:1", "", ""):
        await adapter.send(place(alice), Page("the same", key=key))
    assert len(discord.shown(alice)) == 4


async def test_an_answer_grows_by_edits(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    alice = discord.direct("Alice")
    post = Post(await adapter.begin(place(alice), Page("One", key="k:0")))
    for text, last in (("One two", False), ("One two three", True)):
        assert await adapter.edit(place(alice), post, Page(text, key="k:0"), last) == post.id
    assert [shown.history for shown in discord.shown(alice)] == [["One", "One two", "One two three"]]


@pytest.mark.parametrize(
    "gone",
    [
        Refusal(404, 10008, "Unknown Message"),
        Refusal(429, 30046, "Maximum number of edits to messages older than 1 hour reached"),
        Refusal(403, 50005, "Cannot edit a message authored by another user"),
    ],
    ids=str,
)
async def test_a_post_that_cannot_be_edited_is_posted_anew(
    discord: DiscordServer, adapter: DiscordAdapter, gone: Refusal
) -> None:
    alice = discord.direct("Alice")
    id = await adapter.begin(place(alice), Page("One", key="k:0"))
    discord.script(EDIT, gone)
    again = await adapter.edit(place(alice), Post(id), Page("One two", key="k:0"), last=True)
    assert again != id
    assert alice.posts[again].text == "One two"


async def test_a_deleted_post_is_not_found_again_by_its_nonce(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    alice = discord.direct("Alice")
    id = await adapter.begin(place(alice), Page("One", key="k:0"))
    alice.posts.clear()
    await adapter.edit(place(alice), Post(id), Page("One two", key="k:0"), last=True)
    assert [shown.text for shown in discord.shown(alice)] == ["One two"]


LOST = {
    "no direct messages": Refusal(403, 50007, "Cannot send messages to this user"),
    "no access": Refusal(403, 50001, "Missing Access"),
    "no permission": Refusal(403, 50013, "Missing Permissions"),
    "thread locked": Refusal(400, 50083, "Thread is archived"),
}


@pytest.mark.parametrize("lost", LOST.values(), ids=LOST)
async def test_a_chat_that_is_lost_refuses(discord: DiscordServer, adapter: DiscordAdapter, lost: Refusal) -> None:
    alice = discord.direct("Alice")
    alice.lost = lost
    with pytest.raises(Refused) as refused:
        await adapter.send(place(alice), HELLO)
    assert not isinstance(refused.value, Unauthorized)
    assert "Hello" not in str(refused.value)


async def test_an_unknown_channel_refuses(adapter: DiscordAdapter) -> None:
    with pytest.raises(Refused, match="Unknown Channel"):
        await adapter.send(Chat("5"), HELLO)


async def test_a_wrong_token_is_unauthorized(discord: DiscordServer, lent: Context) -> None:
    adapter = make(discord.base, lent, bot_token="revoked-token")
    with pytest.raises(Unauthorized) as refused:
        await adapter.send(Chat("5"), HELLO)
    assert "revoked-token" not in str(refused.value)
    await adapter.stop()


async def test_typing(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    alice = discord.direct("Alice")
    await adapter.typing(place(alice))
    chat, _ = ticket(discord, alice)
    await adapter.typing(chat)  # which shows "thinking..." already
    assert alice.typings == 1


Act = Callable[[DiscordAdapter, Chat], Any]
ACTS: dict[str, tuple[str, Act]] = {
    "send": (CREATE, lambda adapter, chat: adapter.send(chat, HELLO)),
    "edit": (EDIT, lambda adapter, chat: adapter.edit(chat, Post("1"), HELLO, last=False)),
    "typing": (TYPING, lambda adapter, chat: adapter.typing(chat)),
}


@pytest.mark.parametrize(("route", "act"), ACTS.values(), ids=ACTS)
@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (flood(0.01), Throttled),
        (flood(0.01, everywhere=True), Throttled),
        (Refusal(500, 0, "Internal Server Error"), Unavailable),
        (Refusal(503, 130000, "API resource is currently overloaded"), Unavailable),
        (Cut(), Unavailable),
        (Cut(after=True), Unavailable),
    ],
    ids=str,
)
async def test_failures_that_pass(
    discord: DiscordServer, adapter: DiscordAdapter, route: str, act: Act, outcome: Outcome, error: type[PlatformError]
) -> None:
    alice = discord.direct("Alice")
    alice.posts["1"] = Shown("1")
    discord.script(route, outcome)
    with pytest.raises(error) as failed:
        await act(adapter, place(alice))
    assert TOKEN not in str(failed.value)
    if isinstance(failed.value, Throttled):
        assert failed.value.retry_after == 0.01
        await asyncio.sleep(failed.value.retry_after)
    await act(adapter, place(alice))


async def test_an_unreachable_api_is_unavailable() -> None:
    adapter = make()
    with pytest.raises(Unavailable) as failed:
        await adapter.send(Chat("5"), HELLO)
    assert TOKEN not in str(failed.value)
    await adapter.stop()


# -- rate limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [LastOne(30), flood(30)], ids=["used up", "refused"])
async def test_an_empty_bucket_is_left_alone(discord: DiscordServer, adapter: DiscordAdapter, outcome: Outcome) -> None:
    alice, bob = discord.direct("Alice"), discord.direct("Bob")
    discord.script(CREATE, outcome)
    with contextlib.suppress(Throttled):
        await adapter.send(place(alice), HELLO)
    with pytest.raises(Throttled) as throttled:
        await adapter.send(place(alice), HELLO)
    assert 29 < throttled.value.retry_after <= 30
    assert len(discord.called(CREATE)) == 1
    await adapter.send(place(bob), HELLO)  # a bucket of its own
    await adapter.typing(place(alice))  # another bucket


async def test_a_global_limit_stops_every_call_but_those_by_an_interactions_token(
    discord: DiscordServer, adapter: DiscordAdapter
) -> None:
    alice, bob = discord.direct("Alice"), discord.direct("Bob")
    discord.script(CREATE, flood(30, everywhere=True))
    with pytest.raises(Throttled):
        await adapter.send(place(alice), HELLO)
    with pytest.raises(Throttled):
        await adapter.send(place(bob), HELLO)
    chat, _ = ticket(discord, bob)
    await adapter.send(chat, HELLO)
    assert len(discord.called(CREATE)) == 1


# -- commands ---------------------------------------------------------------------------------------------------------


async def test_the_first_page_takes_the_place_of_thinking_and_others_follow(
    discord: DiscordServer, adapter: DiscordAdapter
) -> None:
    alice = discord.direct("Alice")
    chat, opened = ticket(discord, alice)
    first = await adapter.begin(chat, Page("One", key="k:0"))
    await adapter.edit(chat, Post(first), Page("One two", key="k:0"), last=True)
    await adapter.send(chat, Page("Three", key="k:1"))
    assert opened.original is not None
    assert first == opened.original.id
    assert [shown.history for shown in discord.shown(alice)] == [["One", "One two"], ["Three"]]
    assert not any(call.headers.get("Authorization") for call in discord.calls)
    assert not any(shown.pings for shown in discord.shown(alice))


async def test_a_repeated_attempt_fills_in_the_same_response(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    alice = discord.direct("Alice")
    chat, _ = ticket(discord, alice)
    discord.script(EDIT_BY_TOKEN, Cut(after=True))
    with pytest.raises(Unavailable):
        await adapter.begin(chat, Page("One", key="k:0"))
    await adapter.send(chat, Page("One two", key="k:0"))
    assert [shown.text for shown in discord.shown(alice)] == ["One two"]


DEAD = {
    "invalid": Refusal(401, 50027, "Invalid Webhook Token"),
    "unknown": Refusal(404, 10015, "Unknown Webhook"),
    "too late": Refusal(404, 10062, "Unknown interaction"),
    "used up": Refusal(400, 40094, "This interaction has reached the maximum number of follow-up messages"),
}


@pytest.mark.parametrize("dead", DEAD.values(), ids=DEAD)
async def test_when_the_token_is_dead_the_answer_is_an_ordinary_message(
    discord: DiscordServer, adapter: DiscordAdapter, monkeypatch: pytest.MonkeyPatch, dead: Refusal
) -> None:
    monkeypatch.setattr(adapters.discord, "TAKEN_AFTER", 0)
    channel = discord.channel("general")
    chat, opened = ticket(discord, channel)
    opened.refusal = dead
    id = await adapter.begin(chat, Page("One", key="k:0"))
    await adapter.edit(chat, Post(id), Page("One two", key="k:0"), last=True)
    assert channel.posts[id].history == ["One", "One two"]
    assert channel.posts[id].reply_to is None


async def test_a_token_that_dies_in_the_middle_leaves_a_message_that_grows_on(
    discord: DiscordServer, adapter: DiscordAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = discord.direct("Alice")
    chat, opened = ticket(discord, alice)
    id = await adapter.begin(chat, Page("One", key="k:0"))
    monkeypatch.setattr(interactions, "TOKEN_LIVES", 0)
    opened.refusal = DEAD["invalid"]
    assert await adapter.edit(chat, Post(id), Page("One two", key="k:0"), last=True) == id
    assert [shown.text for shown in discord.shown(alice)] == ["One two"]
    assert len(discord.called(EDIT_BY_TOKEN)) == 1  # an old token is not even tried


async def test_an_answer_that_is_faster_than_our_acknowledgement_waits_for_it(
    discord: DiscordServer, adapter: DiscordAdapter
) -> None:
    alice = discord.direct("Alice")
    chat, opened = ticket(discord, alice)
    opened.refusal = DEAD["unknown"]
    with pytest.raises(Unavailable):
        await adapter.send(chat, Page("One", key="k:0"))
    opened.refusal = None
    await adapter.send(chat, Page("One", key="k:0"))
    assert [shown.history for shown in discord.shown(alice)] == [["One"]]


async def test_a_token_refused_for_another_reason_is_refused(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    chat, _ = ticket(discord, discord.direct("Alice"))
    with pytest.raises(Refused, match="50035"):
        await adapter.send(chat, Page("x" * 2001, key="k:0"))


def test_a_ticket_is_read_back_until_its_token_is_old() -> None:
    now = int(time.time())
    assert Ticket.read(str(Ticket(now, "7", "a:b"))) == Ticket(now, "7", "a:b")
    assert Ticket.read(str(Ticket(now - 900, "7", "t"))) is None
    assert Ticket.read("") is None


# -- files ------------------------------------------------------------------------------------------------------------


async def test_download_without_our_token(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    discord.files["cat.png"] = b"content"
    assert await adapter.download(Attachment("image", f"{discord.base}/attachments/cat.png?ex=1"), 7) == b"content"
    assert "Authorization" not in discord.calls[-1].headers


@pytest.mark.parametrize(
    "url",
    [
        "{base}/attachments/cat.png?ex=1",  # larger than the limit
        "{base}/attachments/cat.png",  # the signature is gone
        "https://example.com/cat.png",
        "https://cdn.discordapp.com.example.com/cat.png",
        "http://cdn.discordapp.com/cat.png",
        "file:///etc/passwd",
        "",
    ],
)
async def test_other_files_are_refused(discord: DiscordServer, adapter: DiscordAdapter, url: str) -> None:
    discord.files["cat.png"] = b"content"
    with pytest.raises(Refused):
        await adapter.download(Attachment("image", url.format(base=discord.base)), 6)


# -- the Gateway ------------------------------------------------------------------------------------------------------


class Heard:
    """Collects what an adapter accepts."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.failures: list[Exception] = []
        self.news = asyncio.Event()

    async def __call__(self, messages: Sequence[Message]) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.messages += messages
        self.news.set()

    @property
    def texts(self) -> list[str]:
        return [message.text for message in self.messages]

    async def until(self, *texts: str) -> None:
        async with asyncio.timeout(30):
            while self.texts != list(texts):
                self.news.clear()
                await self.news.wait()


@contextlib.asynccontextmanager
async def listening(adapter: DiscordAdapter, accept: Accept) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(adapter.listen(accept))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_gateway_tells_what_is_meant_for_us(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    alice, general = discord.direct("Alice"), discord.channel("general")
    heard = Heard()
    async with listening(adapter, heard):
        await discord.until(discord.listening)
        await discord.say(alice, "one")
        await discord.say(general, "nobody asks")
        await discord.say(general, f"<@{BOT_ID}> two")
        await discord.say(alice, "an echo", author=discord.user(BOT_ID))
        await discord.dispatch("TYPING_START", {"channel_id": alice.id})
        await discord.say(alice, "three")
        await heard.until("one", "two", "three")
    assert discord.identified[0]["intents"] & (1 << 15) == 0
    assert discord.connected_to == ["/gateway/"]


async def test_the_intents_are_just_those_that_are_needed(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    discord.intents_allowed = 1 << 9 | 1 << 12
    async with listening(adapter, Heard()):
        await discord.until(discord.listening)


Break = Callable[[DiscordServer], Any]
BREAKS: dict[str, Break] = {
    "reconnect": lambda discord: discord.send(7),
    "server error": lambda discord: discord.close(1011),
    "going away": lambda discord: discord.close(1001),
    "unknown error": lambda discord: discord.close(4000),
    "rate limited": lambda discord: discord.close(4008),
    "invalid session that may be resumed": lambda discord: discord.send(9, True),
    "not JSON": lambda discord: discord.send(11, float("nan")),
}


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS)
async def test_a_broken_connection_is_resumed_and_nothing_is_missed(
    discord: DiscordServer, adapter: DiscordAdapter, broken: Break
) -> None:
    alice = discord.direct("Alice")
    heard = Heard()
    async with listening(adapter, heard):
        await discord.until(discord.listening)
        await discord.say(alice, "one")
        await heard.until("one")
        await broken(discord)
        await discord.say(alice, "two")
        await discord.until(lambda: discord.resumed)
        await heard.until("one", "two")
        assert discord.resumed[0]["seq"] == 2
    assert len(discord.identified) == 1
    assert not {1000, 1001} & set(discord.closed_with)
    assert discord.connected_to[1] in ("/resume/", "/gateway/")


NEW: dict[str, Break] = {
    "invalid session": lambda discord: discord.send(9, False),
    "invalid sequence": lambda discord: discord.close(4007),
    "session timed out": lambda discord: discord.close(4009),
}


@pytest.mark.parametrize("ended", NEW.values(), ids=NEW)
async def test_a_session_that_ended_is_begun_anew(
    discord: DiscordServer, adapter: DiscordAdapter, ended: Break
) -> None:
    heard = Heard()
    async with listening(adapter, heard):
        await discord.until(discord.listening)
        await ended(discord)
        discord.forget()
        await discord.until(lambda: len(discord.identified) == 2 and discord.listening())
        await discord.say(discord.direct("Alice"), "one")
        await heard.until("one")
    assert not discord.resumed
    assert discord.connected_to == ["/gateway/", "/gateway/"]


async def test_a_session_that_discord_forgot_is_begun_anew(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    async with listening(adapter, Heard()):
        await discord.until(discord.listening)
        await discord.close(4000)
        discord.forget()
        await discord.until(lambda: len(discord.identified) == 2 and discord.listening())
    assert len(discord.resumed) == 1


async def test_a_restart_resumes_where_it_left_off(discord: DiscordServer, lent: Context) -> None:
    alice = discord.direct("Alice")
    heard = Heard()
    for number, text in enumerate(("one", "two")):
        adapter = make(discord.base, lent)
        async with listening(adapter, heard):
            await discord.until(discord.listening)
            if number == 0:
                await discord.say(alice, "one")
            await heard.until(*("one", "two")[: number + 1])
        await adapter.stop()
        assert text in heard.texts
        if number == 0:
            await discord.until(lambda: not discord.listening())
            await discord.say(alice, "two")  # while nobody listens
    assert len(discord.identified) == len(discord.resumed) == 1


async def test_a_message_that_could_not_be_stored_is_told_again(discord: DiscordServer, lent: Context) -> None:
    alice = discord.direct("Alice")
    heard = Heard()
    adapter = make(discord.base, lent)
    async with listening(adapter, heard) as task:
        await discord.until(discord.listening)
        await discord.say(alice, "one")
        await heard.until("one")
        heard.failures.append(StoreUnavailable("for a test"))
        await discord.say(alice, "two")
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(asyncio.shield(task), 30)
    async with listening(adapter, heard):  # as the core does after a moment
        await heard.until("one", "two")
    await adapter.stop()


async def test_an_event_we_cannot_read_is_skipped(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    heard = Heard()
    async with listening(adapter, heard):
        await discord.until(discord.listening)
        await discord.dispatch("MESSAGE_CREATE", {"id": 7, "author": []})
        await discord.say(discord.direct("Alice"), "one")
        await heard.until("one")
    assert len(discord.connected_to) == 1


async def test_heartbeats_carry_the_number_of_the_last_event(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    discord.beat = 10
    async with listening(adapter, Heard()):
        await discord.until(lambda: len(discord.beats) >= 3)
    assert discord.beats[-1] == 1
    assert len(discord.connected_to) == 1


async def test_a_heartbeat_that_is_asked_for_comes_at_once(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    async with listening(adapter, Heard()):
        await discord.until(discord.listening)
        before = len(discord.beats)
        await discord.send(1)
        await discord.until(lambda: len(discord.beats) == before + 1)


async def test_a_server_that_does_not_hear_our_heart_is_left_and_the_session_resumed(
    discord: DiscordServer, adapter: DiscordAdapter
) -> None:
    discord.beat, discord.deaf = 20, True
    async with listening(adapter, Heard()):
        await discord.until(lambda: discord.resumed)
    assert discord.closed_with[0] == 4000


@pytest.mark.parametrize("code", sorted(gateway.REFUSED))
async def test_a_refusal_ends_the_listening_and_is_told_to_the_doctor(
    discord: DiscordServer, adapter: DiscordAdapter, code: int
) -> None:
    async with listening(adapter, Heard()) as task:
        await discord.until(discord.listening)
        await discord.close(code)
        await asyncio.wait_for(asyncio.shield(task), 30)
    findings = await adapter.check("https://bot.example.com/webhooks/discord")
    assert any(str(code) in finding.what and not finding.ok for finding in findings)
    heard = Heard()
    async with listening(adapter, heard):  # the operator has put it right
        await discord.until(discord.listening)
        await discord.say(discord.direct("Alice"), "one")
        await heard.until("one")
        findings = await adapter.check("https://bot.example.com/webhooks/discord")
    assert not any(str(code) in finding.what for finding in findings)


async def test_intents_that_are_not_allowed_are_a_refusal(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    discord.intents_allowed = KNOWN_INTENTS & ~(1 << 12)
    await asyncio.wait_for(adapter.listen(Heard()), 30)
    assert len(discord.identified) == 1


async def test_a_wrong_token_is_tried_once(discord: DiscordServer, lent: Context) -> None:
    adapter = make(discord.base, lent, bot_token="wrong")
    await asyncio.wait_for(adapter.listen(Heard()), 30)
    assert discord.connected_to == []
    await adapter.stop()


async def test_an_api_that_is_down_is_asked_again(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    discord.script(ADDRESS, Refusal(503, 0), Cut(), Refusal(500, 0))
    async with listening(adapter, Heard()):
        await discord.until(discord.listening)
    assert len(discord.called(ADDRESS)) == 4


async def test_no_session_is_begun_beyond_the_daily_limit(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    discord.sessions_left, discord.reset_after = 0, 3_600_000.0
    async with listening(adapter, Heard()):
        await discord.until(lambda: discord.called(ADDRESS))
        with pytest.raises(TimeoutError):
            await discord.until(discord.listening, 0.1)
    assert not discord.identified


def test_pauses_grow_up_to_a_minute() -> None:
    for tries, longest in ((1, 1), (2, 2), (3, 4), (7, 60), (5000, 60)):
        assert longest - 1 <= gateway.pause(tries) <= longest


async def test_of_two_replicas_one_listens_and_the_other_takes_over(
    discord: DiscordServer, lent: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW", 0.02)
    alice = discord.direct("Alice")
    first, second = make(discord.base, lent), make(discord.base, lent)
    heard = Heard()
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(listening(first, heard))
        await discord.until(discord.listening)
        await stack.enter_async_context(listening(second, heard))
        await discord.say(alice, "one")
        await heard.until("one")
        assert len(discord.connected_to) == 1
        one.cancel()
        await discord.until(lambda: discord.resumed)
        await discord.say(alice, "two")
        await heard.until("one", "two")
    assert len(discord.identified) == 1
    await first.stop()
    await second.stop()


async def test_who_lost_the_lock_leaves_the_gateway(
    discord: DiscordServer, adapter: DiscordAdapter, lent: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW", 0.02)
    async with listening(adapter, Heard()):
        await discord.until(discord.listening)
        await lent.state.set(gateway.LOCK_KEY, "somebody else", 60)
        await discord.until(lambda: not discord.listening())
        await lent.state.set(gateway.LOCK_KEY, "somebody else", 0)
        await discord.until(discord.listening)
    assert await lent.state.get(gateway.LOCK_KEY) is None


# -- register and check -----------------------------------------------------------------------------------------------

URL = "https://bot.example.com/webhooks/discord"


async def test_register_says_what_discord_does_not_take(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    [finding] = await adapter.register(f"{NOWHERE}/webhooks/discord")  # where nobody answers
    assert not finding.ok
    assert "Invalid Form Body" in finding.what
    assert "is the bot running" in finding.advice
    assert discord.endpoint is None


async def test_check_finds_what_is_not_registered(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    findings = await adapter.check(URL)
    assert len([finding for finding in findings if finding.advice.startswith("run: magpie register discord")]) == 2


async def test_check_is_content_without_an_address_where_none_is_wanted(
    discord: DiscordServer, adapter: DiscordAdapter
) -> None:
    adapter.context = msgspec.structs.replace(adapter.context, public_url="")
    await adapter.rest.call("PUT", "/applications/{}/commands", APP_ID, json=interactions.menu())
    assert all(finding.ok for finding in await adapter.check(URL))


@pytest.mark.parametrize("ask", ["check", "register"])
@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("application_id", "7", f"it should be {APP_ID}"),
        ("public_key", "00" * 32, f"it should be {PUBLIC_KEY}"),
        ("bot_token", "revoked-token", "copy DISCORD_BOT_TOKEN"),
    ],
)
async def test_a_setting_of_another_application_is_named(
    discord: DiscordServer, lent: Context, ask: str, field: str, value: str, told: str
) -> None:
    adapter = make(discord.base, lent, **{field: value})
    [finding] = await getattr(adapter, ask)(URL)
    assert not finding.ok
    assert told in finding.advice
    assert f"DISCORD_{field.upper()}" in finding.what + finding.advice
    assert "revoked-token" not in finding.what + finding.advice
    await adapter.stop()


async def test_check_tells_that_sessions_run_out(discord: DiscordServer, adapter: DiscordAdapter) -> None:
    discord.sessions_left = 3
    assert any("3 gateway sessions" in finding.what and not finding.ok for finding in await adapter.check(URL))


@pytest.mark.parametrize("ask", ["check", "register"])
async def test_an_unreachable_api_names_its_variable(ask: str) -> None:
    adapter = make()
    [finding] = await getattr(adapter, ask)(URL)
    assert "DISCORD_API_BASE" in finding.advice
    await adapter.stop()


# -- with the core ----------------------------------------------------------------------------------------------------


class ByHttp(DiscordAdapter):
    """Without the Gateway, which has tests of its own."""

    async def listen(self, accept: Accept) -> None:
        return


class TestPromises(AdapterPromises):
    adapter = ByHttp
    settings = {"application_id": APP_ID, "public_key": PUBLIC_KEY, "bot_token": TOKEN, "api_base": NOWHERE}

    def text_message(self) -> Request:
        case = json.loads((FIXTURES[0].parent / "chat_in_server.json").read_text())
        body = json.dumps(case["data"]).encode()
        return Request(headers=signature(body), body=body)


@contextlib.asynccontextmanager
async def serving(
    discord: DiscordServer, script: Script = echo, registered: bool = True, **options: Any
) -> AsyncIterator[Magpie]:
    """Run the whole bot, with its commands registered, once it listens."""
    instance = Configured("discord", DiscordAdapter, settings(discord.base))
    async with running(instance, model=ScriptedModel(script), **options) as magpie:
        if registered:
            findings = await magpie.adapters["discord"].register(f"http://127.0.0.1:{magpie.port}/webhooks/discord")
            assert all(finding.ok for finding in findings), findings
        await discord.until(discord.listening)
        yield magpie


async def test_registered_is_what_the_doctor_finds(discord: DiscordServer) -> None:
    async with serving(discord) as magpie:
        findings = await magpie.adapters["discord"].check(str(discord.endpoint))
    assert all(finding.ok for finding in findings), findings
    assert {command["name"] for command in discord.commands} == set(COMMANDS)


async def test_a_direct_message_is_answered(discord: DiscordServer) -> None:
    alice = discord.direct("Alice")
    async with serving(discord):
        await discord.say(alice, "hello *there*")
        await discord.until(lambda: discord.shown(alice))
    assert [shown.text for shown in discord.shown(alice)] == ["You said: hello *there*"]


async def test_a_channel_hears_back_only_when_it_asks_and_once(discord: DiscordServer) -> None:
    general, alice = discord.channel("general"), discord.direct("Alice")
    async with serving(discord):
        await discord.say(general, "nobody asks")
        question = await discord.say(general, f"<@{BOT_ID}> who?")
        for _ in range(3):
            await discord.dispatch("MESSAGE_CREATE", question)
        await discord.until(lambda: discord.shown(general))
        await discord.say(alice, "bye")
        await discord.until(lambda: discord.shown(alice))
    [shown] = discord.shown(general)
    assert (shown.text, shown.reply_to) == ("You said: who?", question["id"])


async def test_a_replay_after_a_break_is_not_answered_twice(discord: DiscordServer) -> None:
    alice = discord.direct("Alice")
    async with serving(discord) as magpie:
        await discord.say(alice, "hello")
        await discord.until(lambda: discord.shown(alice))
        model = magpie.model
        assert isinstance(model, ScriptedModel)
        [session] = discord.sessions.values()
        session.events.append(session.events[-1] | {"s": 3})  # once more
        await discord.close(4000)
        await discord.until(lambda: discord.resumed and discord.listening())
        await discord.say(alice, "bye")
        await discord.until(lambda: len(discord.shown(alice)) == 2)
        assert len(model.asked) == 2
    assert [shown.text for shown in discord.shown(alice)] == ["You said: hello", "You said: bye"]


@pytest.mark.parametrize("registered", [True, False], ids=["by HTTP", "by the Gateway"])
async def test_a_command_is_answered_in_its_place(discord: DiscordServer, registered: bool) -> None:
    general = discord.channel("general")
    async with serving(discord, registered=registered):
        opened = await discord.command(general, "chat", message="who was Ada?")
        await discord.until(lambda: opened.original and opened.original.text)
        again = await discord.command(general, "reset", locale="zh-CN")
        await discord.until(lambda: again.original and again.original.text)
        nobody = await discord.command(general, "dance")
    shown, _ = discord.shown(general)
    assert shown.text == "You said: who was Ada?"
    assert len(nobody.whispers) == 1


async def test_a_redelivered_command_is_answered_once(discord: DiscordServer) -> None:
    alice = discord.direct("Alice")
    async with serving(discord) as magpie:
        interaction = discord.interaction(alice, "chat", message="hi")
        answers = await asyncio.gather(*(discord.deliver(interaction) for _ in range(3)))
        assert answers == [(200, {"type": 5})] * 3
        discord._answered(interaction, {"type": 5})
        await discord.until(lambda: discord.shown(alice)[0].text)
        assert isinstance(magpie.model, ScriptedModel)
        assert len(magpie.model.asked) == 1


async def test_commands_and_messages_of_a_direct_chat_are_one_conversation(discord: DiscordServer) -> None:
    alice = discord.direct("Alice")
    async with serving(discord) as magpie:
        await discord.say(alice, "one")
        await discord.until(lambda: discord.shown(alice))
        opened = await discord.command(alice, "chat", message="two")
        await discord.until(lambda: opened.original and opened.original.text)
        assert isinstance(magpie.model, ScriptedModel)
        words = [turn.content for turn in magpie.model.asked[-1] if turn.role == "user"]
    assert words == ["one", "two"]


async def test_questions_sent_meanwhile_are_all_settled(discord: DiscordServer) -> None:
    alice = discord.direct("Alice")
    go_on = asyncio.Event()

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        yield f"about {turns[-1].content}"
        await go_on.wait()

    async with serving(discord, script) as magpie:
        opened = [await discord.command(alice, "chat", message=f"q{number}") for number in range(4)]
        await discord.until(lambda: opened[0].original and opened[0].original.text)
        go_on.set()
        await discord.until(lambda: not any(each.original and each.original.thinking for each in opened))
        assert isinstance(magpie.model, ScriptedModel)
        assert len(magpie.model.asked) == 4
    assert [each.original.text for each in opened if each.original] == [f"about q{number}" for number in range(4)]


async def test_a_long_answer_arrives_whole_in_pages(discord: DiscordServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiscordAdapter, "can", msgspec.structs.replace(DiscordAdapter.can, pages_per_second=1000))
    alice = discord.direct("Alice")
    words = [f"**word{number}** " for number in range(500)]

    def complete() -> bool:
        return "word499" in "".join(shown.text for shown in discord.shown(alice))

    async with serving(discord, lambda turns: words):
        await discord.command(alice, "chat", message="tell me everything")
        await discord.until(complete)
        first = len(discord.shown(alice))
        alice.posts.clear()
        await discord.say(alice, "again")
        await discord.until(complete)
    said = " ".join(shown.text for shown in discord.shown(alice))
    assert said.replace("*", "").split() == [f"word{number}" for number in range(500)]
    assert first == len(discord.shown(alice)) > 2


async def test_an_answer_grows_while_it_is_written(discord: DiscordServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiscordAdapter, "can", msgspec.structs.replace(DiscordAdapter.can, edit_every=0.01))
    alice = discord.direct("Alice")
    seen = asyncio.Event()

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        yield "Once upon a time"
        await seen.wait()
        yield " there was a magpie."

    async with serving(discord, script):
        opened = await discord.command(alice, "chat", message="a story")
        await discord.until(lambda: opened.original and opened.original.text == "Once upon a time")
        seen.set()
        await discord.until(lambda: opened.original and opened.original.text.endswith("magpie."))
    assert len(discord.shown(alice)) == 1


@pytest.mark.parametrize("by_command", [True, False], ids=["command", "message"])
async def test_refusals_that_pass_are_waited_out_and_nothing_is_lost(discord: DiscordServer, by_command: bool) -> None:
    alice = discord.direct("Alice")
    troubles = (flood(0.05), Refusal(502, 0), Cut(after=True), LastOne(0.05))
    async with serving(discord):
        if by_command:
            discord.script(EDIT_BY_TOKEN, *troubles)
            await discord.command(alice, "chat", message="hello")
        else:
            discord.script(CREATE, *troubles)
            await discord.say(alice, "hello")
        await discord.until(lambda: discord.shown(alice) and discord.shown(alice)[0].text == "You said: hello")
        await discord.until(lambda: not any(discord._scripts.values()))
    assert [shown.text for shown in discord.shown(alice)] == ["You said: hello"]


async def test_an_answer_slower_than_the_token_comes_as_a_message(
    discord: DiscordServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = discord.direct("Alice")
    seen = asyncio.Event()

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        await seen.wait()
        yield "At last"

    async with serving(discord, script):
        opened = await discord.command(alice, "chat", message="a hard question")
        opened.refusal = DEAD["invalid"]
        monkeypatch.setattr(interactions, "TOKEN_LIVES", 0)
        seen.set()
        await discord.until(lambda: [shown for shown in discord.shown(alice) if shown.text == "At last"])
    assert not discord.called(EDIT_BY_TOKEN)


# -- the server itself is strict --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "pinged"),
    [
        ({"content": "@everyone <@7>"}, ["@everyone", "<@7>"]),
        ({"content": "@everyone", "allowed_mentions": {}}, ["@everyone"]),
        ({"content": "@everyone <@7>", "allowed_mentions": {"parse": []}}, []),
    ],
)
def test_the_server_notices_who_is_notified(fields: dict[str, Any], pinged: list[str]) -> None:
    assert pings(fields) == pinged


async def test_the_server_turns_strangers_away(discord: DiscordServer) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{discord.base}/gateway/bot") as answer:
        assert (answer.status, answer.content_type) == (403, "text/html")
