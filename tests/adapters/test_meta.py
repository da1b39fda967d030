"""What WhatsApp and Messenger share: verification, batches, Graph's errors, and setting up, against strict servers."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import create_autospec

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from adapters import meta
from adapters.messenger import MessengerAdapter
from adapters.whatsapp import WhatsAppAdapter
from adapters.whatsapp.api import CODES
from bot.adapter import AnyAdapter, Chat, Context, Inbound, Message, Page, Request, State, WebhookAdapter
from bot.app import Magpie
from bot.client import Reply
from bot.config import Environment
from bot.errors import Malformed, PlatformError, Refused, Throttled, Unauthorized, Unavailable, Unverified
from bot.registry import Configured
from bot.testing import ScriptedModel, running
from tests.adapters.graph_server import APP, Cut, GraphServer, Refusal, bad, expired
from tests.adapters.messenger_server import MessengerServer
from tests.adapters.whatsapp_server import NUMBER, WhatsAppServer

URL = "https://bot.example.com/webhooks/it"
VERIFY_TOKEN = "v3rify_me"
ANSWER = Page("Hello", "Hello", "reply:0", "17")


@dataclass(frozen=True)
class Platform:
    """What the tests below need to know of one."""

    adapter: type[WebhookAdapter[Any]]
    server: Callable[[], Any]
    token: str  # its setting
    also: dict[str, str]

    def settings(self, server: GraphServer) -> dict[str, str]:
        return {
            self.token: server.token,
            "app_secret": server.app_secret,
            "verify_token": VERIFY_TOKEN,
            "api_base": server.base or "http://127.0.0.1:9/v25.0",
            **self.also,
        }

    def make(self, server: GraphServer, **changed: str) -> WebhookAdapter[Any]:
        settings = self.adapter.Settings.model_validate(self.settings(server) | changed)
        return self.adapter(settings, Context("it", create_autospec(State)))


PLATFORMS = {
    "whatsapp": Platform(WhatsAppAdapter, WhatsAppServer, "access_token", {"phone_number_id": NUMBER}),
    "messenger": Platform(MessengerAdapter, MessengerServer, "page_access_token", {}),
}


@pytest.fixture(params=list(PLATFORMS.values()), ids=list(PLATFORMS))
def platform(request: pytest.FixtureRequest) -> Platform:
    assert isinstance(request.param, Platform)
    return request.param


@pytest.fixture
async def server(platform: Platform) -> AsyncIterator[Any]:
    async with platform.server() as server:
        yield server


@pytest.fixture
async def adapter(platform: Platform, server: GraphServer) -> AsyncIterator[WebhookAdapter[Any]]:
    adapter = platform.make(server)
    yield adapter
    await adapter.stop()


def signed(body: bytes, secret: str = "0123456789abcdef0123456789abcdef") -> Request:
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return Request(headers={"x-hub-signature-256": f"sha256={digest}"}, body=body)


def shake(**query: str) -> Request:
    return Request("GET", query={f"hub.{name}": value for name, value in query.items()})


# -- settings ---------------------------------------------------------------------------------------------------------


def test_without_its_secrets_nothing_starts(platform: Platform) -> None:
    given = platform.settings(platform.server())
    for missing in (platform.token, "app_secret", "verify_token"):
        with pytest.raises(ValidationError):
            platform.adapter.Settings.model_validate({**given, missing: ""})
        env = Environment({f"IT_{name}".upper(): value for name, value in given.items() if name != missing})
        assert env.read(platform.adapter.Settings, "it") is None
        assert env.problems == [f"IT_{missing.upper()}: is not set"]


def test_secrets_are_hidden(platform: Platform) -> None:
    given = platform.settings(platform.server())
    shown = repr(platform.adapter.Settings.model_validate(given))
    assert not [name for name in (platform.token, "app_secret", "verify_token") if given[name] in shown]


# -- verify -----------------------------------------------------------------------------------------------------------


async def test_a_signature_is_taken(platform: Platform) -> None:
    adapter = platform.make(platform.server())
    await adapter.verify(signed(b'{"caf\\u00e9":1}'))
    await adapter.verify(signed(b""))
    sample = adapter.sample()
    assert sample is not None
    await adapter.verify(sample)


TRUE = signed(b'{"object":"x"}').headers["x-hub-signature-256"]


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "sha256=",
        TRUE.removeprefix("sha256="),
        TRUE[:-1],
        TRUE + "0",
        TRUE.upper(),
        TRUE.replace("sha256", "sha1"),
        "sha256=ключ",
        "\udcff",
        signed(b'{"object":"x"}', "another secret").headers["x-hub-signature-256"],
        signed(b'{"object": "x"}').headers["x-hub-signature-256"],
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_every_other_signature_is_refused_with_403(platform: Platform, method: str, header: str | None) -> None:
    headers = {} if header is None else {"x-hub-signature-256": header}
    # The old SHA-1 header and the verify token are no way in.
    headers["x-hub-signature"] = "sha1=" + hmac.new(b"0", b'{"object":"x"}', hashlib.sha1).hexdigest()
    query = {"hub.mode": "subscribe", "hub.verify_token": VERIFY_TOKEN}
    with pytest.raises(Unverified) as refused:
        await platform.make(platform.server()).verify(Request(method, "", headers, query, b'{"object":"x"}'))
    assert refused.value.response is not None
    assert refused.value.response.status == 403


async def test_the_handshake_is_answered_with_its_challenge_alone(platform: Platform) -> None:
    adapter = platform.make(platform.server())
    request = shake(mode="subscribe", verify_token=VERIFY_TOKEN, challenge="1158201444<b>é\udcff")
    await adapter.verify(request)
    inbound = adapter.parse(request)
    assert inbound.messages == ()
    assert inbound.response.body == "1158201444<b>é?".encode()
    assert inbound.response.content_type.startswith("text/plain")


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"mode": "subscribe"},
        {"mode": "subscribe", "verify_token": ""},
        {"mode": "subscribe", "verify_token": VERIFY_TOKEN.upper()},
        {"mode": "subscribe", "verify_token": "ключ"},
        {"mode": "unsubscribe", "verify_token": VERIFY_TOKEN},
        {"verify_token": VERIFY_TOKEN},
    ],
)
async def test_every_other_handshake_is_refused_with_403(platform: Platform, query: dict[str, str]) -> None:
    with pytest.raises(Unverified) as refused:
        await platform.make(platform.server()).verify(shake(challenge="1", **query))
    assert refused.value.response is not None
    assert refused.value.response.status == 403
    assert VERIFY_TOKEN not in str(refused.value)


# -- batches ----------------------------------------------------------------------------------------------------------


def part(outcome: Inbound | Malformed) -> Callable[[], Inbound]:
    def read() -> Inbound:
        if isinstance(outcome, Malformed):
            raise outcome
        return outcome

    return read


def test_a_broken_part_does_not_take_the_others_with_it() -> None:
    one, two = (Inbound((Message(id, Chat("c"), "u"),)) for id in "12")
    news = Inbound(ignored="status read", moved=("a", "b"))
    outcomes: list[Inbound | Malformed] = [one, Malformed("x"), news, news, two]
    inbound = meta.batch(part(outcome) for outcome in outcomes)
    assert [message.id for message in inbound.messages] == ["1", "2"]
    assert inbound.ignored == "status read"
    assert inbound.moved == ("a", "b")
    with pytest.raises(Malformed):
        meta.batch([part(Malformed("x")), part(Malformed("y"))])
    assert meta.batch([]).ignored == "no event"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(body=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
@pytest.mark.parametrize("name", PLATFORMS)
def test_garbage_is_malformed(name: str, body: bytes) -> None:
    with pytest.raises(Malformed):
        PLATFORMS[name].make(PLATFORMS[name].server()).parse(Request(body=body))


@given(parts=st.lists(JSON), shape=st.sampled_from(["messaging", "standby", "messages", "statuses", "user_id_update"]))
@pytest.mark.parametrize("name", PLATFORMS)
def test_garbage_in_a_notification_is_malformed_or_ignored(name: str, parts: list[Any], shape: str) -> None:
    value = {"metadata": {"phone_number_id": NUMBER}, "messages": parts, shape: parts}
    changes = [{"field": "messages", "value": value}]
    server = PLATFORMS[name].server()
    body = {"object": server.about, "entry": [{"id": "1", "changes": changes, "messaging": parts, shape: parts}]}
    try:
        inbound = PLATFORMS[name].make(server).parse(Request(body=json.dumps(body).encode()))
    except Malformed:
        return
    assert inbound.messages == ()


# -- errors -----------------------------------------------------------------------------------------------------------


def reply(error: Refusal) -> Reply:
    return Reply(error.status, error.headers or {}, json.dumps({"error": error.error}).encode())


@pytest.mark.parametrize(
    ("refusal", "kind", "text"),
    [
        (expired("EAAGsecret"), Unauthorized, "190/463 the access token is invalid or has expired"),
        (Refusal(403, 10, "(#10) denied"), Unauthorized, "10 a permission is missing"),
        (Refusal(403, 299, "(#299) denied"), Unauthorized, "299 a permission is missing"),
        (Refusal(500, 1, "unknown"), Unavailable, "1 an unknown error at Meta"),
        (Refusal(400, 2, "later"), Unavailable, "2 the service is down for a moment"),
        (Refusal(400, 4, "limit"), Throttled, "4 the app calls too often"),
        (Refusal(400, 131047, "Re-engagement"), Refused, "131047 the person last wrote over 24 hours ago;"),
        (Refusal(400, 131056, "pair"), Throttled, "131056 too many messages to the same person"),
        (bad("No such object", 33), Refused, "100/33 there is no such object"),
        (bad("Param x is wrong: 'a text of ours'"), Refused, "100 (#100) Param x is wrong"),
        (bad("Invalid EAAG" + "x" * 60 + " here"), Refused, "100 (#100) Invalid ... here"),
        (Refusal(400, 777001, "new and passing", is_transient=True), Unavailable, "777001 new and passing"),
        (Refusal(503, 777002, "new"), Unavailable, "777002 new"),
        (Refusal(429, 777003, "new"), Throttled, "777003 new"),
        (Refusal(401, 777004, "new"), Unauthorized, "777004 new"),
        (Refusal(400, 777005, "new"), Refused, "777005 new"),
    ],
)
def test_errors(refusal: Refusal, kind: type[PlatformError], text: str) -> None:
    error = meta.failure(CODES)(reply(refusal))
    assert type(error) is kind
    assert str(error).startswith(text)
    assert "secret" not in str(error)
    assert "of ours" not in str(error)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 60),
        ({"retry-after": "7"}, 7),
        ({"x-business-use-case-usage": '{"1":[{"call_count":100,"estimated_time_to_regain_access":19}]}'}, 1140),
        ({"x-business-use-case-usage": '{"1":[{"estimated_time_to_regain_access":9999}]}'}, 3600),
        ({"x-business-use-case-usage": '{"1":[{"estimated_time_to_regain_access":0}]}', "retry-after": "7"}, 7),
        ({"x-business-use-case-usage": "nonsense"}, 60),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float) -> None:
    error = meta.failure({})(reply(Refusal(400, 613, "too many", headers=headers)))
    assert isinstance(error, Throttled)
    assert error.retry_after == seconds


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"error":null}', b"[]"])
def test_what_is_no_error_of_graph_is_left_to_the_status(body: bytes) -> None:
    assert meta.failure(CODES)(Reply(502, {}, body)) is None


def test_an_answer_that_is_fine_is_no_error() -> None:
    assert meta.failure(CODES)(Reply(200, {}, b'{"error":{"code":190}}')) is None


# -- every call survives what passes ----------------------------------------------------------------------------------


def begin(server: Any) -> Chat:
    """Let a person write, so that they can be answered."""
    person = server.person("Ada")
    message = server.message(person)
    return Chat(person.id) if isinstance(server, MessengerServer) else Chat(person.user_id, ticket=message["id"] + " ")


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Refusal(429, 4, "(#4) Application request limit reached", headers={"Retry-After": "7"}), Throttled),
        (Refusal(500, 2, "Service temporarily unavailable", is_transient=True), Unavailable),
        (expired(), Unauthorized),
        (Cut(), Unavailable),
        (Cut(after=True), Unavailable),
    ],
    ids=str,
)
async def test_failures_name_no_secret(
    server: Any, adapter: AnyAdapter, outcome: Refusal | Cut, error: type[PlatformError]
) -> None:
    chat = begin(server)
    for act in (lambda: adapter.typing(chat), lambda: adapter.send(chat, ANSWER)):
        server.script("POST messages", outcome)
        with pytest.raises(error) as failed:
            await act()
        assert server.token not in str(failed.value)
        assert "Hello" not in str(failed.value)
    if isinstance(failed.value, Throttled):
        assert failed.value.retry_after == 7
    await adapter.send(chat, ANSWER)


async def test_an_unreachable_api_is_unavailable(platform: Platform) -> None:
    adapter = platform.make(platform.server())
    with pytest.raises(Unavailable):
        await adapter.send(Chat("15550000001"), ANSWER)
    await adapter.stop()


# -- register and check -----------------------------------------------------------------------------------------------


@pytest.fixture
async def magpie(platform: Platform, server: GraphServer) -> AsyncIterator[Magpie]:
    settings = platform.adapter.Settings.model_validate(platform.settings(server))
    async with running(Configured("it", platform.adapter, settings), model=ScriptedModel()) as magpie:
        yield magpie


async def test_register_sets_everything_and_check_agrees(platform: Platform, server: Any, magpie: Magpie) -> None:
    adapter, url = magpie.adapters["it"], f"http://127.0.0.1:{magpie.port}/webhooks/it"
    findings = await adapter.register(url)
    assert [finding.what for finding in findings if not finding.ok] == []
    assert server.subscriptions[server.about].callback_url == url
    assert APP in server.subscribed
    assert server.app_secret not in str(findings)
    findings = await adapter.check(url)
    assert [finding.what for finding in findings if not finding.ok] == []
    assert "Jasper's Market" in findings[0].what


async def test_an_app_token_is_used_for_the_app_only(server: Any, magpie: Magpie) -> None:
    await magpie.adapters["it"].register(f"http://127.0.0.1:{magpie.port}/webhooks/it")
    own = {call.path for call in server.calls if call.token != server.token}
    assert own == {"debug_token", f"{APP}/subscriptions"}


async def test_register_while_the_bot_is_down_lists_the_steps(server: Any, adapter: AnyAdapter) -> None:
    findings = await adapter.register("http://127.0.0.1:9/webhooks/it")
    assert not findings[0].ok
    assert "start the bot" in findings[0].advice
    steps = [finding.what for finding in findings[1:]]
    assert steps[0].startswith("1. Open https://developers.facebook.com/apps")
    assert any("http://127.0.0.1:9/webhooks/it" in step and "IT_VERIFY_TOKEN" in step for step in steps)
    assert VERIFY_TOKEN not in str(findings)


async def test_check_before_register_says_what_to_run(server: Any, adapter: AnyAdapter) -> None:
    findings = await adapter.check(URL)
    assert "events go nowhere" in [finding.what for finding in findings]
    assert all(finding.advice.endswith("magpie register it") for finding in findings if not finding.ok)


async def test_check_finds_events_that_go_elsewhere(server: Any, magpie: Magpie) -> None:
    adapter, url = magpie.adapters["it"], f"http://127.0.0.1:{magpie.port}/webhooks/it"
    await adapter.register(url)
    [finding] = [finding for finding in await adapter.check(URL) if not finding.ok]
    assert finding.what == f"events go to {url}"
    server.subscriptions[server.about].active = False
    assert any(finding.what.startswith("not subscribed: ") for finding in await adapter.check(url))


@pytest.mark.parametrize("ask", ["check", "register"])
async def test_a_wrong_token_names_its_variable(platform: Platform, server: Any, ask: str) -> None:
    adapter = platform.make(server, **{platform.token: "EAAGwrong"})
    finding = (await getattr(adapter, ask)(URL))[0]
    assert not finding.ok
    assert f"IT_{platform.token.upper()}" in finding.advice
    assert "EAAGwrong" not in finding.what + finding.advice
    await adapter.stop()


@pytest.mark.parametrize("ask", ["check", "register"])
async def test_a_wrong_app_secret_names_its_variable(platform: Platform, server: Any, ask: str) -> None:
    adapter = platform.make(server, app_secret="wrong-secret")
    finding = next(finding for finding in await getattr(adapter, ask)(URL) if not finding.ok)
    assert "IT_APP_SECRET" in finding.advice
    assert "wrong-secret" not in finding.what + finding.advice
    await adapter.stop()


async def test_check_warns_of_a_token_that_expires_or_lacks_permissions(server: Any, adapter: AnyAdapter) -> None:
    server.expires_at = int(time.time()) + 3600
    server.scopes.pop(0)
    told = [finding.what for finding in await adapter.check(URL) if not finding.ok]
    assert any(what.startswith("the token lacks ") for what in told)
    assert any(what.startswith("the token expires at 2") for what in told)
    server.expires_at = int(time.time()) + 60 * 86400
    assert not any("expires" in finding.what for finding in await adapter.check(URL))


async def test_check_while_meta_is_down_says_to_wait(server: Any, adapter: AnyAdapter) -> None:
    server.script("GET app", Refusal(503, 2, "Service temporarily unavailable"))
    finding = (await adapter.check(URL))[-1]
    assert not finding.ok
    assert "IT_API_BASE" in finding.advice


# -- the whole bot ----------------------------------------------------------------------------------------------------


async def register(magpie: Magpie) -> None:
    findings = await magpie.adapters["it"].register(f"http://127.0.0.1:{magpie.port}/webhooks/it")
    assert all(finding.ok for finding in findings)


async def test_a_question_is_answered_once_however_often_it_is_delivered(server: Any, magpie: Magpie) -> None:
    await register(magpie)
    ada, bob = server.person("Ada"), server.person("Bob")
    notification = await server.say(ada, "Où? 哪里? a/b")
    assert {await server.deliver(notification) for _ in range(3)} == {200}
    await server.until(lambda: server.shown(ada))
    await server.say(bob, "and?")
    await server.until(lambda: server.shown(bob))
    assert server.shown(ada) == ["You said: Où? 哪里? a/b"]
    assert server.shown(bob) == ["You said: and?"]


async def test_a_forged_notification_is_not_stored(server: Any, magpie: Magpie) -> None:
    await register(magpie)
    ada = server.person("Ada")
    secret, server.app_secret = server.app_secret, "guessed"
    message = server.message(ada, text={"body": "hi"}) if hasattr(ada, "phone") else server.message(ada, "hi")
    notification = server.notification(message)
    assert await server.deliver(notification) == 403
    assert isinstance(magpie.model, ScriptedModel)
    assert magpie.model.asked == []
    server.app_secret = secret
    assert await server.deliver(notification) == 200
    await server.until(lambda: server.shown(ada))


@pytest.mark.parametrize(
    "outcome",
    [
        Refusal(429, 4, "(#4) Application request limit reached", headers={"Retry-After": "0.01"}),
        Refusal(500, 2, "Service temporarily unavailable"),
        Cut(),
    ],
    ids=str,
)
async def test_what_passes_is_survived(server: Any, magpie: Magpie, outcome: Refusal | Cut) -> None:
    await register(magpie)
    ada = server.person("Ada")
    for _ in range(3):  # the receipt, and what else goes before the answer
        server.script("POST messages", outcome)
    await server.say(ada, "hello")
    await server.until(lambda: server.shown(ada))
    assert server.shown(ada) == ["You said: hello"]


async def test_an_expired_token_parks_the_answer_and_the_next_one_goes_out(server: Any, magpie: Magpie) -> None:
    await register(magpie)
    ada = server.person("Ada")
    real, server.token = server.token, "EAAGrenewed"
    await server.say(ada, "one")
    while not (await magpie.store.counts())["parked"]:
        await asyncio.sleep(0.01)
    assert server.shown(ada) == []
    server.token = real
    await server.say(ada, "two")
    await server.until(lambda: server.shown(ada))
    assert server.shown(ada) == ["You said: two"]
