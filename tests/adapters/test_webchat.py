"""The web chat without a browser: who gets in, how much, and what the page hears."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from adapters import webchat
from adapters.webchat import MAX_BODY, MAX_CHARACTERS, WebchatAdapter, WebchatSettings, frames, limits, visitors
from adapters.webchat.frames import Frame
from bot import signing
from bot.adapter import Chat, Context, Page, Post, Request, Response, Turn
from bot.errors import Malformed, Rejected, TooLarge, TooMany, Unverified
from bot.registry import Configured
from bot.testing import AdapterPromises, ScriptedModel, call, context, running

HOST = "bot.example.com"
HEADERS = {"host": HOST, "origin": f"https://{HOST}", "content-type": "application/json"}
ENTRY = Request(path="/session", headers=HEADERS, body=b"{}", remote="203.0.113.9")


class Visitor:
    """A page's side of the conversation with one adapter."""

    def __init__(self, adapter: WebchatAdapter, cookie: str, remote: str = "203.0.113.9") -> None:
        self.adapter = adapter
        self.cookie = cookie
        self.remote = remote
        self.id = cookie.partition("=")[2].partition(".")[0]

    @classmethod
    async def enter(cls, adapter: WebchatAdapter) -> Visitor:
        answer = await route(adapter, "POST /session")(ENTRY)
        return cls(adapter, answer.headers["Set-Cookie"].partition(";")[0])

    def request(self, body: object = None, **headers: str) -> Request:
        data = msgspec.json.encode(body or {"id": "m1", "text": "hello"})
        return Request(headers={**HEADERS, "cookie": self.cookie, **headers}, body=data, remote=self.remote)

    async def events(self) -> AsyncGenerator[bytes, None]:
        answer = await route(self.adapter, "GET /events")(self.request())
        stream: AsyncGenerator[bytes, None] | None = answer.stream
        assert stream is not None
        return stream

    async def history(self) -> list[dict[str, str]]:
        turns: list[dict[str, str]] = json.loads((await route(self.adapter, "GET /history")(self.request())).body)[
            "turns"
        ]
        return turns


def route(adapter: WebchatAdapter, name: str) -> Any:
    method, path = name.split()
    return adapter.routes()[method, path]


def build(lent: Context, **settings: object) -> WebchatAdapter:
    return WebchatAdapter(WebchatSettings.model_validate(settings), lent)


@pytest.fixture
async def lent() -> AsyncIterator[Context]:
    async with context("webchat", public_url="") as lent:
        yield lent


@pytest.fixture
async def visitor(lent: Context) -> Visitor:
    return await Visitor.enter(build(lent))


def code(error: Rejected) -> str:
    """Return the code the page is told. Every refusal has one, and a sentence."""
    assert error.response is not None
    assert error.response.status == error.status
    assert error.response.content_type == "application/json"
    problem = json.loads(error.response.body)["error"]
    assert problem["message"]
    return str(problem["code"])


# -- what every adapter promises --------------------------------------------------------------------------------------


class KnownSecret(WebchatAdapter):
    """Signs with a secret that the test knows; the real one is made when the first visitor comes."""

    def __init__(self, settings: WebchatSettings, context: Context) -> None:
        super().__init__(settings, context)
        self._visitors._secret = "known"


class TestPromises(AdapterPromises):
    adapter = KnownSecret

    def text_message(self) -> Request:
        body = {"id": "m1", "text": "hello", "locale": "en"}
        claim = "visitor.99999999999"
        signature = signing.digest("known", claim.encode())
        headers = {**HEADERS, "authorization": f"Bearer {claim}.{signature}"}
        return Request(headers=headers, body=msgspec.json.encode(body))

    def test_does_not_start_without_its_secret(self) -> None:
        assert WebchatSettings.model_validate({}), "the secret is made and shared by the bot itself"


# -- visitors ---------------------------------------------------------------------------------------------------------


async def test_a_new_visitor_gets_a_token_that_counts(lent: Context) -> None:
    visitor = await Visitor.enter(build(lent))
    await visitor.adapter.verify(visitor.request())
    (message,) = visitor.adapter.parse(visitor.request()).messages
    assert (message.user, message.chat, message.text) == (visitor.id, Chat(visitor.id), "hello")
    assert message.id == f"{visitor.id}:m1"
    assert len(visitor.id) >= 22


@pytest.mark.parametrize(
    ("embed", "origin", "attributes"),
    [
        (False, f"http://{HOST}", "Path=/; Max-Age=15552000; HttpOnly; SameSite=Lax"),
        (False, f"https://{HOST}", "Path=/; Max-Age=15552000; HttpOnly; SameSite=Lax; Secure"),
        (True, f"http://{HOST}", "Path=/; Max-Age=15552000; HttpOnly; SameSite=Lax"),
        (True, f"https://{HOST}", "Path=/; Max-Age=15552000; HttpOnly; SameSite=None; Secure; Partitioned"),
    ],
)
async def test_the_cookie_is_as_strict_as_it_can_be(lent: Context, embed: bool, origin: str, attributes: str) -> None:
    request = Request(headers={**HEADERS, "origin": origin}, body=msgspec.json.encode({"embed": embed}))
    answer = await route(build(lent), "POST /session")(request)
    cookie, _, rest = answer.headers["Set-Cookie"].partition("; ")
    assert cookie.startswith("webchat_visitor=")
    assert rest == attributes
    token = json.loads(answer.body).get("token")
    assert token == (cookie.partition("=")[2] if embed else None), "scripts see the token only where they must"


async def test_the_token_works_in_a_header_where_cookies_are_blocked(visitor: Visitor) -> None:
    token = visitor.cookie.partition("=")[2]
    request = Request(headers={**HEADERS, "authorization": f"Bearer {token}"}, body=visitor.request().body)
    await visitor.adapter.verify(request)
    assert visitor.adapter.parse(request).messages[0].user == visitor.id


async def test_who_comes_back_stays_the_same_and_gets_a_later_token(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 4_000_000_000 - visitors.TOKEN_LIVES)
    fresh = await visitor.adapter._visitors.token(visitor.id)
    monkeypatch.setattr(time, "time", lambda: 4_000_000_000 - 60)
    request = msgspec.structs.replace(ENTRY, headers={**HEADERS, "cookie": f"webchat_visitor={fresh}"})
    answer = await route(visitor.adapter, "POST /session")(request)
    again = answer.headers["Set-Cookie"].partition(";")[0].partition("=")[2]
    assert json.loads(answer.body) == {"new": False}
    assert again.split(".")[0] == visitor.id
    assert int(again.split(".")[1]) > int(fresh.split(".")[1])


async def test_replicas_share_the_secret(lent: Context) -> None:
    first, second = build(lent), build(lent)
    one, other = await asyncio.gather(Visitor.enter(first), Visitor.enter(second))
    await second.verify(one.request())
    await first.verify(other.request())
    assert one.id != other.id


def _forged(token: str, other: str) -> dict[str, str]:
    name, expires, signature = token.split(".")
    return {
        "none": "",
        "empty parts": "..",
        "no signature": f"{name}.{expires}.",
        "another visitor's name": f"{other.split('.')[0]}.{expires}.{signature}",
        "a later date": f"{name}.{int(expires) + 1}.{signature}",
        "another visitor's signature": f"{name}.{expires}.{other.split('.')[2]}",
        "a longer signature": f"{token}0",
        "capital letters": token.upper(),
        "not ascii": f"{name}.{expires}.é\udce9",
        "a foreign secret": f"{name}.{expires}.{signing.digest('x', f'{name}.{expires}'.encode())}",
    }


@pytest.mark.parametrize("how", _forged("a.1.b", "c.2.d"))
@pytest.mark.parametrize("place", ["cookie", "authorization"])
async def test_forged_tokens_open_nothing(visitor: Visitor, how: str, place: str) -> None:
    other = await Visitor.enter(visitor.adapter)
    token = _forged(visitor.cookie.partition("=")[2], other.cookie.partition("=")[2])[how]
    value = {"cookie": f"webchat_visitor={token}", "authorization": f"Bearer {token}"}[place]
    request = Request(headers={**HEADERS, place: value}, body=visitor.request().body)
    for attempt in (
        visitor.adapter.verify,
        route(visitor.adapter, "GET /events"),
        route(visitor.adapter, "GET /history"),
    ):
        with pytest.raises(Unverified) as caught:
            await attempt(request)
        assert (caught.value.status, code(caught.value)) == (401, "unauthorized")


async def test_an_expired_token_makes_a_new_visitor(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + visitors.TOKEN_LIVES + 1)
    with pytest.raises(Unverified):
        await visitor.adapter.verify(visitor.request())
    answer = await route(visitor.adapter, "POST /session")(visitor.request({"embed": False}))
    assert json.loads(answer.body) == {"new": True}


async def test_nobody_reads_another_visitors_conversation(lent: Context) -> None:
    async def remembered(chat: Chat, count: int) -> list[Turn]:
        return [Turn("system", "persona"), Turn("user", f"I am {chat.id}"), Turn("assistant", "noted")]

    adapter = build(msgspec.structs.replace(lent, history=remembered))
    one, other = await Visitor.enter(adapter), await Visitor.enter(adapter)
    assert await one.history() == [{"role": "user", "text": f"I am {one.id}"}, {"role": "assistant", "text": "noted"}]
    async with aclosing(await one.events()) as heard:
        assert await anext(heard) == b'data: {"type":"hello"}\n\n'
        await adapter.send(Chat(other.id), Page("for the other"))
        await adapter.send(Chat(one.id), Page("for me"))
        assert b"for me" in await anext(heard)


# -- whose page it is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "https://evil.example",
        f"https://{HOST}.evil.example",
        f"https://evil.example/{HOST}",
        f"https://evil@{HOST}",
        f"https://{HOST}:8443",
        "https://www.example.com.evil.example",
    ],
)
async def test_pages_of_other_sites_are_refused(lent: Context, origin: str) -> None:
    adapter = build(lent, allowed_origins="https://www.example.com")
    visitor = await Visitor.enter(adapter)
    for attempt in (adapter.verify, route(adapter, "POST /session")):
        with pytest.raises(Unverified) as caught:
            await attempt(visitor.request(origin=origin))
        assert (caught.value.status, code(caught.value)) == (403, "origin_not_allowed")


@pytest.mark.parametrize(
    "origin", [f"https://{HOST}", f"HTTPS://{HOST.upper()}", "https://www.example.com", "https://public.example"]
)
async def test_our_own_pages_are_taken(lent: Context, origin: str) -> None:
    outside = msgspec.structs.replace(lent, public_url="https://public.example/bot")
    visitor = await Visitor.enter(build(outside, allowed_origins="https://www.example.com, https://shop.example.com"))
    await visitor.adapter.verify(visitor.request(origin=origin))


async def test_a_request_without_a_host_is_nobodys(lent: Context) -> None:
    with pytest.raises(Unverified):
        await build(lent).verify(Request(headers={"origin": "https://"}))


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("name", ["GET /events", "GET /history"])
async def test_other_sites_cannot_make_a_browser_read(visitor: Visitor, name: str, site: str) -> None:
    with pytest.raises(Unverified) as caught:
        await route(visitor.adapter, name)(visitor.request(**{"sec-fetch-site": site}))
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "origins",
    [
        "www.example.com",
        "https://www.example.com/",
        "https://*.example.com",
        "*",
        "https://a.example; script-src *",
        "https://a b",
    ],
)
def test_allowed_origins_are_origins(origins: str) -> None:
    with pytest.raises(ValidationError, match="is not an origin such as"):
        WebchatSettings.model_validate({"allowed_origins": origins})


# -- what a message may be --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_only_json_is_taken(visitor: Visitor, kind: str) -> None:
    with pytest.raises(Malformed) as caught:
        await visitor.adapter.verify(visitor.request(**{"content-type": kind}))
    assert code(caught.value) == "bad_request"


async def test_a_large_body_is_refused_before_it_is_read(visitor: Visitor) -> None:
    with pytest.raises(TooLarge) as caught:
        await visitor.adapter.verify(msgspec.structs.replace(visitor.request(), body=b"x" * (MAX_BODY + 1)))
    assert code(caught.value) == "too_large"


async def test_the_longest_message_fits_and_a_longer_one_does_not(visitor: Visitor) -> None:
    longest = "喜" * MAX_CHARACTERS
    request = visitor.request({"id": "a", "text": longest})
    await visitor.adapter.verify(request)
    assert visitor.adapter.parse(request).messages[0].text == longest
    with pytest.raises(TooLarge) as caught:
        visitor.adapter.parse(visitor.request({"id": "a", "text": longest + "x"}))
    assert (caught.value.status, code(caught.value)) == (413, "message_too_long")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{}",
        b"[1]",
        b"\xff",
        b"{" * 5000,
        b'{"id":"a"}',
        b'{"id":"a","text":null}',
        b'{"id":"a","text":"  \\n "}',
        b'{"id":"","text":"x"}',
        b'{"id":"a:b","text":"x"}',
        b'{"id":"' + b"a" * 65 + b'","text":"x"}',
        b'{"id":7,"text":"x"}',
        b'{"id":"a","text":"x","locale":"' + b"z" * 36 + b'"}',
        b'{"id":"a","text":"\\ud800"}',
    ],
)
async def test_garbage_is_malformed(visitor: Visitor, body: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        visitor.adapter.parse(msgspec.structs.replace(visitor.request(), body=body))
    assert (caught.value.status, code(caught.value)) == (400, "bad_request")


async def test_a_message_sent_again_is_the_same_message(visitor: Visitor) -> None:
    parse = visitor.adapter.parse
    again = [parse(visitor.request({"id": "same", "text": "hello"})).messages[0].id for _ in range(2)]
    other = await Visitor.enter(visitor.adapter)
    assert again[0] == again[1]
    assert parse(other.request({"id": "same", "text": "hello"})).messages[0].id != again[0]


async def test_the_question_appears_in_the_visitors_other_tabs(visitor: Visitor) -> None:
    text = "long " * 500
    (message,) = visitor.adapter.parse(visitor.request({"id": "q1", "text": text})).messages
    async with aclosing(await visitor.events()) as heard:
        await anext(heard)
        await visitor.adapter.acknowledge(message)
        first = data(await anext(heard))
        assert (first["type"], first["id"]) == ("question", "q1")
        rest = [data(await anext(heard)) for _ in range(2)]
    assert "".join([first["text"], *(frame["text"] for frame in rest)]) == text
    assert [frame.get("more", False) for frame in (first, *rest)] == [True, True, False]


# -- how much ---------------------------------------------------------------------------------------------------------


class Clock:
    """Stands in for the time module of `limits`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limits, "time", clock)
    return clock


def test_a_rate_counts_over_a_sliding_window(clock: Clock) -> None:
    rate = limits.Rate(4, 60)
    assert [rate.take("a") for _ in range(5)] == [0, 0, 0, 0, 60]
    assert rate.take("b") == 0
    clock.now += 59.5
    assert rate.take("a") == 1
    clock.now += 16  # a quarter into the next minute: three of the four still count
    assert rate.take("a") == 0
    assert rate.take("a") > 0
    clock.now += 120
    assert [rate.take("a") for _ in range(5)][:4] == [0, 0, 0, 0]


def test_a_rate_of_zero_is_no_limit(clock: Clock) -> None:
    rate = limits.Rate(0, 60)
    assert not any(rate.take("a") for _ in range(1000))


async def test_messages_of_a_visitor_are_limited(lent: Context, clock: Clock) -> None:
    adapter = build(lent, messages_per_minute=2)
    visitor, other = await Visitor.enter(adapter), await Visitor.enter(adapter)
    await adapter.verify(visitor.request())
    await adapter.verify(visitor.request())
    with pytest.raises(TooMany) as caught:
        await adapter.verify(visitor.request())
    assert (caught.value.status, code(caught.value)) == (429, "too_many_messages")
    assert caught.value.response is not None
    assert caught.value.response.headers["Retry-After"] == "60"
    await adapter.verify(other.request())


async def test_messages_from_an_address_are_limited_whoever_sends_them(lent: Context, clock: Clock) -> None:
    adapter = build(lent, messages_per_minute_per_address=2)
    crowd = [await Visitor.enter(adapter) for _ in range(3)]
    for visitor in crowd[:2]:
        await adapter.verify(visitor.request())
    with pytest.raises(TooMany):
        await adapter.verify(crowd[2].request())
    elsewhere = Visitor(adapter, crowd[2].cookie, "198.51.100.1")
    await adapter.verify(elsewhere.request())


async def test_new_visitors_from_an_address_are_limited_and_known_ones_are_not(lent: Context, clock: Clock) -> None:
    adapter = build(lent, visitors_per_hour_per_address=1)
    visitor = await Visitor.enter(adapter)
    with pytest.raises(TooMany) as caught:
        await Visitor.enter(adapter)
    assert code(caught.value) == "too_many_visitors"
    assert (await route(adapter, "POST /session")(visitor.request({"embed": False}))).status == 200


FORWARDED = "6.6.6.6, 198.51.100.7, 192.0.2.1"


@pytest.mark.parametrize(
    ("remote", "forwarded", "proxies", "counted"),
    [
        ("203.0.113.9", FORWARDED, 0, "203.0.113.9"),
        ("203.0.113.9", FORWARDED, 1, "192.0.2.1"),
        ("203.0.113.9", FORWARDED, 2, "198.51.100.7"),
        ("203.0.113.9", "198.51.100.7", 2, "198.51.100.7"),
        ("203.0.113.9", "", 1, "203.0.113.9"),
        ("203.0.113.9", " , ", 1, "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "", 0, "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.9", "", 0, "203.0.113.9"),
        ("", "", 0, ""),
        ("x" * 100, "", 0, "x" * 64),
    ],
)
def test_whom_a_request_is_counted_for(remote: str, forwarded: str, proxies: int, counted: str) -> None:
    headers = {"x-forwarded-for": forwarded} if forwarded else {}
    assert limits.address(Request(headers=headers, remote=remote), proxies) == counted


async def test_open_pages_are_limited_and_give_their_place_back(lent: Context) -> None:
    adapter = build(lent, streams_per_visitor=2)
    visitor, other = await Visitor.enter(adapter), await Visitor.enter(adapter)
    first, second = await visitor.events(), await visitor.events()
    await anext(first)
    with pytest.raises(TooMany) as caught:
        await visitor.events()
    assert code(caught.value) == "too_many_streams"
    await (await other.events()).aclose()
    await first.aclose()
    await (await visitor.events()).aclose()
    del second, first, caught  # never begun, only dropped
    gc.collect()
    opened = [await visitor.events() for _ in range(2)]
    for stream in opened:
        await stream.aclose()


async def test_open_pages_of_an_address_are_limited(lent: Context) -> None:
    adapter = build(lent, streams_per_address=1)
    one, other = await Visitor.enter(adapter), await Visitor.enter(adapter)
    async with aclosing(await one.events()) as stream:
        await anext(stream)
        with pytest.raises(TooMany):
            await other.events()
    async with aclosing(await other.events()) as stream:
        assert await anext(stream)


# -- what the page hears ----------------------------------------------------------------------------------------------


def data(event: bytes) -> dict[str, Any]:
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2, "an event is one line"
    frame: dict[str, Any] = json.loads(event.removeprefix(b"data: "))
    return frame


class Screen:
    """Puts frames together as the page does."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.shown: dict[str, str] = {}

    def take(self, encoded: str) -> None:
        assert len(encoded.encode()) <= 7000
        frame = msgspec.json.decode(encoded, type=Frame)
        known = self.texts.get(frame.id, "")
        if frame.at > len(known):
            return
        self.texts[frame.id] = known[: frame.at] + frame.text
        if not frame.more:
            self.shown[frame.id] = self.texts[frame.id]


class Wire:
    """A chat whose frames are written down."""

    def __init__(self, adapter: WebchatAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
        self.adapter = adapter
        self.frames: list[str] = []

        async def publish(topic: str, frame: str) -> None:
            assert topic == "v"
            self.frames.append(frame)

        monkeypatch.setattr(adapter.context.state, "publish", publish)

    async def write(self, texts: Iterable[str], key: str = "k") -> None:
        """Show growing texts the way the core does."""
        chat, post = Chat("v"), None
        for text in texts:
            page = Page(text, key=key)
            if post is None:
                post = Post(await self.adapter.begin(chat, page), text)
            else:
                post = Post(await self.adapter.edit(chat, post, page, False), text, post.edits + 1)
        assert post is not None
        await self.adapter.edit(chat, post, Page(post.shown, key=key), True)

    def heard_from(self, start: int) -> dict[str, str]:
        screen = Screen()
        for frame in self.frames[start:]:
            screen.take(frame)
        return screen.shown


@pytest.fixture
def wire(lent: Context, monkeypatch: pytest.MonkeyPatch) -> Wire:
    return Wire(build(lent), monkeypatch)


def growing(text: str, step: int) -> list[str]:
    return [text[:end] for end in range(step, len(text) + step, step)]


NASTY = 'tab\t"quoted" \\ \x01\x02 line\nline 喜鹊 👩‍👩‍👧 \u2028 ' * 200


@pytest.mark.parametrize("step", [1, 7, 5000])
@pytest.mark.parametrize("text", ["short", NASTY[:3000]])
async def test_a_growing_answer_arrives_whole(wire: Wire, text: str, step: int) -> None:
    await wire.write(growing(text, step))
    assert wire.heard_from(0) == {"k": text}


async def test_who_comes_late_catches_up_before_the_end(wire: Wire) -> None:
    text = NASTY[:2000]
    texts = growing(text, 10)
    await wire.write(texts)
    begun = [at for at, frame in enumerate(wire.frames) if not json.loads(frame).get("at")]
    assert len(begun) >= len(texts) // 20
    for start in range(0, len(wire.frames), 13):
        assert wire.heard_from(start) == {"k": text}
    lost = Screen()
    for frame in (*wire.frames[:30], *wire.frames[33:90]):
        lost.take(frame)
    assert len(lost.shown["k"]) > 600, "lost frames are made up for by the next whole text"


async def test_edits_carry_only_what_was_added(wire: Wire) -> None:
    await wire.write(["The ", "The magpie ", "The magpie sings"])
    told = [json.loads(frame) for frame in wire.frames]
    assert [(frame.get("at", 0), frame["text"]) for frame in told] == [
        (0, "The "),
        (0, "The magpie "),  # edit 0 is whole
        (11, "sings"),
        (0, "The magpie sings"),
    ]
    assert [frame.get("last", False) for frame in told] == [False, False, False, True]


async def test_a_rewritten_end_replaces_the_old_one(wire: Wire) -> None:
    await wire.write(["x", "```py\nprint(", "```py\nprint(1)\n```", "```py\nprint(1)\nprint(2)\n```"])
    assert wire.heard_from(0) == {"k": "```py\nprint(1)\nprint(2)\n```"}


async def test_a_long_answer_costs_its_length_and_not_the_square_of_it(wire: Wire) -> None:
    async def cost(length: int) -> int:
        wire.frames.clear()
        await wire.write(growing("word " * (length // 5), 20))
        return sum(map(len, wire.frames))

    assert await cost(40_000) < 2.5 * await cost(20_000)


async def test_a_page_sent_again_takes_the_place_of_the_first(wire: Wire) -> None:
    for _ in range(2):
        await wire.adapter.send(Chat("v"), Page("answer", key="turn:0"))
    assert wire.heard_from(0) == {"turn:0": "answer"}
    assert await wire.adapter.send(Chat("v"), Page("a")) != await wire.adapter.send(Chat("v"), Page("b"))


async def test_the_page_learns_what_is_answered_and_what_failed(wire: Wire) -> None:
    await wire.adapter.send(Chat("v"), Page("Sorry.", reply_to="v:m7", failure="model_timeout"))
    await wire.adapter.typing(Chat("v"))
    answer, typing = map(json.loads, wire.frames)
    assert (answer["to"], answer["failure"], answer["last"]) == ("m7", "model_timeout", True)
    assert typing == {"type": "typing"}


async def test_a_silent_stream_stays_alive(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webchat, "KEEP_ALIVE", 0.01)
    async with aclosing(await visitor.events()) as heard:
        await anext(heard)
        assert await anext(heard) == b": still here\n\n"
        await visitor.adapter.send(Chat(visitor.id), Page("after the silence"))
        assert any([b"after the silence" in event async for event in _first(heard, 50)])


async def _first(stream: AsyncIterator[bytes], count: int) -> AsyncIterator[bytes]:
    async for event in stream:
        yield event
        count -= 1
        if b"data" in event or not count:
            return


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_common_beginnings(start: str, one: str, other: str) -> None:
    left, right = start + one, start + other
    count = frames.common(left, right)
    assert left[:count] == right[:count]
    assert left[count : count + 1] != right[count : count + 1] or count == len(left) == len(right)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=5000), st.integers(0, 9))
def test_cut_frames_fit_and_join(text: str, at: int) -> None:
    pieces = [msgspec.json.decode(piece, type=Frame) for piece in frames.cut(Frame("answer", "i", at, text))]
    assert all(len(piece.encode()) <= 7000 for piece in frames.cut(Frame("answer", "i" * 99, at, text, to="t" * 99)))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.at for piece in pieces] == [at + frames.PIECE * index for index in range(len(pieces))]


# -- the page and its files -------------------------------------------------------------------------------------------


async def test_the_page_may_do_nothing_but_talk_to_us(lent: Context) -> None:
    adapter = build(lent, allowed_origins="https://www.example.com")
    for name in ("GET /home", "GET /page"):
        answer: Response = await route(adapter, name)(Request(headers={"host": HOST}))
        policy = dict(rule.strip().split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split(";"))
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "connect-src": "'self'",
            "img-src": "'self' data:",
            "base-uri": "'none'",
            "form-action": "'none'",
            "require-trusted-types-for": "'script'",
            "trusted-types": "'none'",
            "frame-ancestors": "'self' https://www.example.com",
        }
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"]


async def test_the_page_has_no_code_within_and_all_its_files(lent: Context) -> None:
    adapter = build(lent)
    page = (await route(adapter, "GET /page")(Request(headers={"host": HOST}))).body.decode()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:|https?://", page)
    assert "{{" not in page
    sources = [site.read_text() for site in webchat.site.STATIC.iterdir() if site.suffix == ".js"]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", "".join(sources))
    imported = re.findall(r'from "\./(.+?)"', "".join(sources))
    linked = re.findall(r'(?:src|href)="([^#"]+)"', page)
    for file in {*imported, *linked}:
        assert (await route(adapter, f"GET /{file}")(Request())).status == 200, file


async def test_the_page_at_the_root_finds_its_files(lent: Context) -> None:
    page = (await route(build(lent), "GET /home")(Request(headers={"host": HOST}))).body.decode()
    assert set(re.findall(r'(?:src|href)="([^#"]+/)', page)) == {"webhooks/webchat/"}
    assert WebchatAdapter.also_at == {"/": "/home"}


async def test_what_the_operator_writes_is_text(lent: Context) -> None:
    adapter = build(lent, title='<script>"x"</script>', greeting='" onload="y')
    page = (await route(adapter, "GET /page")(Request(headers={"host": HOST}))).body.decode()
    assert "&lt;script&gt;&quot;x&quot;" in page
    assert '" onload' not in page


async def test_files_are_asked_for_again_and_sent_once(lent: Context) -> None:
    serve = route(build(lent), "GET /app.js")
    answer = await serve(Request())
    assert answer.content_type.startswith("text/javascript")
    again = await serve(Request(headers={"if-none-match": answer.headers["ETag"]}))
    assert (again.status, again.body) == (304, b"")
    assert (await serve(Request(headers={"if-none-match": '"old"'}))).status == 200


# -- inside other sites -----------------------------------------------------------------------------------------------


async def test_the_widget_is_told_where_it_may_be(lent: Context) -> None:
    embed = route(build(lent, allowed_origins="https://www.example.com", title="喜鹊"), "GET /embed")
    answer = await embed(Request(headers={"origin": "https://www.example.com"}))
    assert answer.headers["Access-Control-Allow-Origin"] == "https://www.example.com"
    assert json.loads(answer.body) == {"title": "喜鹊"}
    for origin in ("", "null", "https://evil.example", "http://www.example.com"):
        with pytest.raises(Unverified) as caught:
            await embed(Request(headers={"origin": origin}))
        assert code(caught.value) == "origin_not_allowed"
        assert caught.value.response is not None
        assert "Access-Control-Allow-Origin" not in caught.value.response.headers


@pytest.mark.parametrize(
    ("referer", "allowed"),
    [
        ("https://www.example.com/shop", True),
        (f"https://{HOST}/", True),
        ("", True),  # not told; the browser still obeys frame-ancestors
        ("https://evil.example/", False),
        ("https://www.example.com.evil.example/", False),
    ],
)
async def test_the_page_is_not_framed_by_strangers(lent: Context, referer: str, allowed: bool) -> None:
    page = route(build(lent, allowed_origins="https://www.example.com"), "GET /page")
    request = Request(headers={"host": HOST, "sec-fetch-dest": "iframe", "referer": referer})
    if allowed:
        assert (await page(request)).status == 200
    else:
        with pytest.raises(Unverified):
            await page(request)


@pytest.mark.parametrize(
    ("public_url", "origins", "ok"),
    [
        ("", "", True),
        ("https://bot.example.com", "https://www.example.com", True),
        ("http://bot.example.com", "https://www.example.com", False),
    ],
)
async def test_doctor_knows_that_embedding_needs_https(lent: Context, public_url: str, origins: str, ok: bool) -> None:
    adapter = build(msgspec.structs.replace(lent, public_url=public_url), allowed_origins=origins)
    (finding,) = await adapter.check("")
    assert (finding.ok, bool(finding.advice)) == (ok, not ok)
    (registered,) = await adapter.register("")
    assert registered.ok


# -- in the running bot -----------------------------------------------------------------------------------------------


async def test_a_message_travels_through_the_whole_bot() -> None:
    instance = Configured("chat", WebchatAdapter, WebchatSettings.model_validate({}))
    async with running(instance, model=ScriptedModel()) as magpie:
        adapter = magpie.adapters["chat"]
        assert isinstance(adapter, WebchatAdapter)
        visitor = await Visitor.enter(adapter)
        async with aclosing(await visitor.events()) as heard:
            await anext(heard)
            status, body = await call(magpie, "chat", visitor.request({"id": "m1", "text": "hello"}))
            assert (status, json.loads(body)) == (200, {"id": "m1"})
            screen = Screen()
            while "You said: hello" not in screen.shown.values():
                screen.take((await anext(heard)).decode().removeprefix("data: ").strip())
        assert await visitor.history() == [
            {"role": "user", "text": "hello"},
            {"role": "assistant", "text": "You said: hello"},
        ]


@pytest.mark.parametrize(
    ("change", "status"),
    [({"origin": "https://evil.example"}, 403), ({"cookie": ""}, 401), ({"content-type": "text/plain"}, 400)],
)
async def test_refusals_reach_the_page_as_json(change: Mapping[str, str], status: int) -> None:
    instance = Configured("chat", WebchatAdapter, WebchatSettings.model_validate({}))
    async with running(instance) as magpie:
        adapter = magpie.adapters["chat"]
        assert isinstance(adapter, WebchatAdapter)
        visitor = await Visitor.enter(adapter)
        answered, body = await call(magpie, "chat", visitor.request(**change))
        assert answered == status
        assert set(json.loads(body)["error"]) == {"code", "message"}
