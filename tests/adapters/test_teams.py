"""Microsoft Teams: tokens of every wrong kind, streams that die in every way, a whole bot against a strict server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import settings as relax
from hypothesis import strategies as st
from microsoft_agents.activity import Activity
from pydantic import ValidationError

import adapters.teams
from adapters.teams import TeamsAdapter, TeamsSettings, identity
from adapters.teams.identity import Caller, KeyRing, caller, issuer
from adapters.teams.text import settled
from bot.adapter import Attachment, Chat, Inbound, Message, Page, Post, Request, State, Turn
from bot.adapter import Context as Lent
from bot.app import Magpie
from bot.config import Environment
from bot.errors import Malformed, PlatformError, Refused, Throttled, Unauthorized, Unavailable, Unverified
from bot.markup import render, utf16
from bot.registry import Configured
from bot.testing import AdapterPromises, Script, ScriptedModel, context, echo, running
from tests.adapters.teams_server import (
    APP_ID,
    BOT,
    ISSUER,
    PASSWORD,
    PRIVATE,
    Cut,
    Refusal,
    Room,
    TeamsServer,
    flood,
    no_stream,
    stream_info,
)

RELAXED = relax(deadline=None)
FIXTURES = sorted(Path(__file__).with_name("fixtures").glob("teams/*.json"))
ANSWER = Page("**Hello** & welcome", "Hello & welcome", "reply:0")
MAGPIE = {"app_id": APP_ID, "app_password": PASSWORD}


def offline() -> TeamsAdapter:
    """Return an adapter that has nobody to talk to."""
    return TeamsAdapter(TeamsSettings.model_validate(MAGPIE), Lent("teams", create_autospec(State)))


def parse(activity: object, adapter: TeamsAdapter | None = None) -> Inbound:
    return (adapter or offline()).parse(Request(body=json.dumps(activity).encode()))


def signed(teams: TeamsServer, activity: object, token: str | None = None) -> Request:
    headers = {"authorization": f"Bearer {teams.signed() if token is None else token}"}
    return Request(headers=headers, body=json.dumps(activity).encode())


@pytest.fixture
async def teams() -> AsyncIterator[TeamsServer]:
    async with TeamsServer() as server:
        yield server


@pytest.fixture
async def adapter(teams: TeamsServer) -> AsyncIterator[TeamsAdapter]:
    async with made(teams) as adapter:
        yield adapter


@contextlib.asynccontextmanager
async def made(teams: TeamsServer, **more: str) -> AsyncIterator[TeamsAdapter]:
    async with context("teams") as lent:
        adapter = TeamsAdapter(TeamsSettings.model_validate(teams.settings(**more)), lent)
        yield adapter
        await adapter.stop()


def asked(teams: TeamsServer, room: Room, text: str = "@Magpie hi", **more: Any) -> Chat:
    """Let a person ask something; return where the answer goes."""
    return parse(teams.written(room, text, **more)).messages[0].chat


# -- settings ---------------------------------------------------------------------------------------------------------


def test_settings_are_read_and_the_secret_hidden() -> None:
    env = Environment({"SALES_APP_ID": APP_ID, "SALES_APP_PASSWORD": PASSWORD, "SALES_TENANT_ID": "contoso.com"})
    read = env.read(TeamsSettings, "sales")
    assert read is not None
    assert read.openid_url == "https://login.botframework.com/v1/.well-known/openidconfiguration"
    assert PASSWORD not in repr(read)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("APP_ID", None),
        ("APP_ID", "not an id"),
        ("APP_PASSWORD", None),
        ("TENANT_ID", "../x"),
        ("OPENID_URL", "login.botframework.com"),
        ("API_BASE", "ftp://x"),
    ],
)
def test_a_wrong_setting_is_told_by_its_name_and_not_by_its_value(field: str, value: str | None) -> None:
    env = Environment({"T_APP_ID": APP_ID, "T_APP_PASSWORD": PASSWORD, f"T_{field}": value})
    assert env.read(TeamsSettings, "t") is None
    [problem] = env.problems
    assert problem.startswith(f"T_{field}: ")
    assert value is None or value not in problem


def test_an_empty_secret_does_not_pass() -> None:
    with pytest.raises(ValidationError):
        TeamsSettings.model_validate({**MAGPIE, "app_password": " "})


@pytest.mark.parametrize(
    ("url", "who"),
    [
        ("https://login.botframework.com/v1/.well-known/openidconfiguration", ISSUER),
        ("https://login.botframework.azure.us/v1/.well-known/openidconfiguration", "https://api.botframework.us"),
        ("https://login.botframework.azure.cn/v1/.well-known/openidconfiguration", "https://api.botframework.azure.cn"),
        ("https://proxy.example.com/openid", ISSUER),
    ],
)
def test_a_cloud_has_its_own_issuer(url: str, who: str) -> None:
    assert issuer(url) == who


# -- verify -----------------------------------------------------------------------------------------------------------

VECTOR_AT = 1_700_000_100
VECTOR_JWK = {
    "kty": "RSA",
    "use": "sig",
    "alg": "RS256",
    "kid": "testkid",
    "n": (
        "xYSQhedcnjJ6BlNSJM2l2fe6stloHBD9b9G4aBp4uKQrih_dU0veOBUy2IGTTUxvuiS_7rKrqnBHrmdZp22ElbH21RizvvH2n_IH"
        "ogvGuEWxmhgvluniXNx9zMFeNLcomw5kxVAv-ReVICTgoISpRzYDbO_2AaNt_LZNKGAApF9TMB-cHG9VNTm0Nt1RRnZU-yuEy1tu"
        "ls1Pk67emWO4Tg5YVx6rqy_bHye2mdXxOVpuoYr7sHvSWwVoXJN-IojLWjlHTe45jsGkz0GFgZI--aAyEc2xMN3uQoWBk4tZNpUW"
        "fhmXQdW8gLaQMnWGcfdg-e_VW0dllJauPWvoqtGuhQ"
    ),
    "e": "AQAB",
    "endorsements": ["msteams"],
}
VECTOR_TOKEN = (
    "eyJhbGciOiJSUzI1NiIsImtpZCI6InRlc3RraWQiLCJ0eXAiOiJKV1QifQ.eyJpc3MiOiJodHRwczovL2FwaS5ib3RmcmFtZXdvc"
    "msuY29tIiwiYXVkIjoiMTExMTExMTEtMjIyMi0zMzMzLTQ0NDQtNTU1NTU1NTU1NTU1Iiwic2VydmljZXVybCI6Imh0dHBzOi8vc"
    "21iYS50cmFmZmljbWFuYWdlci5uZXQvYW1lci8iLCJuYmYiOjE3MDAwMDAwMDAsImV4cCI6MTcwMDAwMzYwMH0.QU9NJqcwKFUJz"
    "PQn5hRjwHc6VhTYhfy_Z5gLsRoqRac3He3JQJqf3a_9MAZKScgfSqNTZm0M8qMU8NModQ_Uu_6xyXnM0auWQOgPv2t0xdigWF3pI"
    "V8RaV3S8Bdq7YA3ZhRoBUCa5xiDiTUncZG5fYfH-py-eaSRBsdQ5wPGcu8XhTU7NxWIuqKOacFA9i98pvfp9bmvUqFAeb6SytgIJ"
    "ZY6F-4frIvI5hSgoBgUTdsSMY8lwens7yc7TjmCApmEX0LTLI6JoTcy7tKbwH7nUIRdCrF3xA8p4ADzQ9ylhrt58OFtwJGOncFb0"
    "5CETkMup_5RcOaf46j_fQLWQTO0Og"
)


def at(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set the clock by which tokens are judged."""

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
            return cls.fromtimestamp(seconds, tz)

    monkeypatch.setattr("jwt.api_jwt.datetime", Clock)


@pytest.fixture
def vector_keys(monkeypatch: pytest.MonkeyPatch) -> KeyRing:
    ring = KeyRing("https://login.example.com/openid")

    async def fetch() -> dict[str, identity.Key]:
        return dict(identity._usable(msgspec.convert({"keys": [VECTOR_JWK]}, identity.Jwks)))

    monkeypatch.setattr(ring, "fetch", fetch)
    return ring


async def test_the_vector_verifies(vector_keys: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, VECTOR_AT)
    found = await caller(f"Bearer {VECTOR_TOKEN}", vector_keys, APP_ID, ISSUER)
    assert found == Caller("https://smba.trafficmanager.net/amer/", ("msteams",))
    found.vouch("https://smba.trafficmanager.net/amer", "msteams")


@pytest.mark.parametrize(
    ("seconds", "holds"),
    [
        (1_700_000_000 - 299, True),
        (1_700_000_000 - 301, False),
        (1_700_003_600 + 299, True),
        (1_700_003_600 + 301, False),
    ],
)
async def test_clocks_may_differ_by_five_minutes(
    vector_keys: KeyRing, monkeypatch: pytest.MonkeyPatch, seconds: int, holds: bool
) -> None:
    at(monkeypatch, seconds)
    with contextlib.nullcontext() if holds else pytest.raises(Unverified):
        await caller(f"Bearer {VECTOR_TOKEN}", vector_keys, APP_ID, ISSUER)


async def test_what_teams_signs_is_taken(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    await adapter.verify(signed(teams, teams.written(teams.personal(), "hi")))
    without_slash = teams.signed(serviceurl=teams.service.rstrip("/"))
    await adapter.verify(signed(teams, teams.written(teams.personal(), "hi"), without_slash))


def unsigned(teams: TeamsServer) -> str:
    return jwt.encode({"iss": ISSUER, "aud": APP_ID}, "", "none", headers={"kid": "one"})


def by_public_key(teams: TeamsServer) -> str:
    """Sign with the public key as if it were a shared secret: the oldest trick against such checks."""
    public = PRIVATE["one"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return forged({"alg": "HS256", "kid": "one"}, teams, public)


def forged(header: dict[str, Any], teams: TeamsServer, secret: bytes = b"x") -> str:
    claims = teams.signed().split(".")[1]
    head = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    mac = hmac.new(secret, f"{head}.{claims}".encode(), hashlib.sha256).digest()
    return f"{head}.{claims}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def changed(teams: TeamsServer) -> str:
    head, claims, signature = teams.signed().split(".")
    return f"{head}.{claims[:-2]}{'A' if claims[-2] != 'A' else 'B'}{claims[-1]}.{signature}"


LIES: dict[str, Callable[[TeamsServer], str]] = {
    "no token": lambda teams: "",
    "not a token": lambda teams: "x.y.z",
    "not even ASCII": lambda teams: "\udcff.é.x",
    "nested deeply": lambda teams: base64.urlsafe_b64encode(b"[" * 5000).decode() + ".e30.x",
    "alg none": unsigned,
    "signed by the public key": by_public_key,
    "no kid": lambda teams: forged({"alg": "RS256"}, teams),
    "kid of another type": lambda teams: forged({"alg": "RS256", "kid": ["one"]}, teams),
    "one character changed": changed,
    "another key under this id": lambda teams: teams.signed(key="two"),
    "unknown key": lambda teams: teams.signed(kid="two"),
    "another issuer": lambda teams: teams.signed(iss="https://sts.windows.net/72f988bf/"),
    "no issuer": lambda teams: teams.signed(iss=None),
    "another bot": lambda teams: teams.signed(aud="22222222-2222-3333-4444-555555555555"),
    "several bots": lambda teams: teams.signed(aud=[APP_ID, "22222222"]),
    "no audience": lambda teams: teams.signed(aud=None),
    "expired": lambda teams: teams.signed(exp=int(time.time()) - 400),
    "no expiry": lambda teams: teams.signed(exp=None),
    "not yet": lambda teams: teams.signed(nbf=int(time.time()) + 400),
    "no beginning": lambda teams: teams.signed(nbf=None),
    "expiry of another type": lambda teams: teams.signed(exp="tomorrow"),
    "another service": lambda teams: teams.signed(serviceurl="https://evil.example.com/"),
    "no service": lambda teams: teams.signed(serviceurl=None),
    "empty service": lambda teams: teams.signed(serviceurl=""),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_every_other_token_is_refused(
    teams: TeamsServer, adapter: TeamsAdapter, lie: Callable[[TeamsServer], str]
) -> None:
    token = lie(teams)
    with pytest.raises(Unverified) as refused:
        await adapter.verify(signed(teams, teams.written(teams.personal(), "hi"), token))
    assert refused.value.response is None  # which makes it a 401
    assert len(token) < 8 or token not in str(refused.value)


@pytest.mark.parametrize("header", ["", "Bearer", "Basic abc", "Bearer  "])
async def test_no_bearer_is_refused(adapter: TeamsAdapter, header: str) -> None:
    with pytest.raises(Unverified):
        await adapter.verify(Request(headers={"authorization": header}, body=b"{}"))


@pytest.mark.parametrize("service", ["https://evil.example.com/", "", None, "http://127.0.0.1:1/amer/"])
async def test_a_message_that_names_another_service_is_refused(
    teams: TeamsServer, adapter: TeamsAdapter, service: str | None
) -> None:
    with pytest.raises(Unverified, match="service URL"):
        await adapter.verify(signed(teams, teams.written(teams.personal(), "hi", serviceUrl=service)))


@pytest.mark.parametrize("claim", ["", None])
async def test_a_token_vouches_for_nothing_by_saying_nothing(
    teams: TeamsServer, adapter: TeamsAdapter, claim: str | None
) -> None:
    activity = teams.written(teams.personal(), "hi", serviceUrl="")
    with pytest.raises(Unverified, match="service URL"):
        await adapter.verify(signed(teams, activity, teams.signed(serviceurl=claim)))


@pytest.mark.parametrize("channel", ["skype", "", None])
async def test_a_key_speaks_for_its_channels_only(
    teams: TeamsServer, adapter: TeamsAdapter, channel: str | None
) -> None:
    with pytest.raises(Unverified, match="not endorsed") as refused:
        await adapter.verify(signed(teams, teams.written(teams.personal(), "hi", channelId=channel)))
    assert refused.value.response is not None
    assert refused.value.response.status == 403


async def test_a_key_without_endorsements_speaks_for_nobody(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    teams.published["one"] = []
    with pytest.raises(Unverified, match="not endorsed"):
        await adapter.verify(signed(teams, teams.written(teams.personal(), "hi")))


# -- keys -------------------------------------------------------------------------------------------------------------


async def test_keys_are_fetched_once(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    request = signed(teams, teams.written(teams.personal(), "hi"))
    await asyncio.gather(*(adapter.verify(request) for _ in range(20)))
    assert teams.key_fetches == 1


async def test_a_rotated_key_is_fetched_at_once_and_the_old_one_is_gone(
    teams: TeamsServer, adapter: TeamsAdapter
) -> None:
    activity = teams.written(teams.personal(), "hi")
    old = signed(teams, activity)
    await adapter.verify(old)
    teams.rotate()
    await adapter.verify(signed(teams, activity))
    assert teams.key_fetches == 2
    with pytest.raises(Unverified):
        await adapter.verify(old)


async def test_unknown_keys_make_us_fetch_once_a_minute(
    teams: TeamsServer, adapter: TeamsAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    activity = teams.written(teams.personal(), "hi")
    for number in range(10):
        with pytest.raises(Unverified, match="unknown"):
            await adapter.verify(signed(teams, activity, teams.signed(kid=f"made up {number}")))
    assert teams.key_fetches == 2
    later = time.monotonic() + identity.UNKNOWN_EVERY + 1
    monkeypatch.setattr("adapters.teams.identity.time.monotonic", lambda: later)
    teams.rotate()
    await adapter.verify(signed(teams, activity))
    assert teams.key_fetches == 3


async def test_what_is_no_token_makes_us_fetch_nothing(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    for lie in ("x.y.z", unsigned(teams), by_public_key(teams)):
        with pytest.raises(Unverified):
            await adapter.verify(signed(teams, {}, lie))
    assert teams.key_fetches == 0


async def test_keys_are_renewed_every_day_and_outlive_an_outage(
    teams: TeamsServer, adapter: TeamsAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = signed(teams, teams.written(teams.personal(), "hi"))
    await adapter.verify(request)
    teams.keys_down = True
    now = time.monotonic() + identity.KEYS_LIVE + 1
    monkeypatch.setattr("adapters.teams.identity.time.monotonic", lambda: now)
    await adapter.verify(request)
    teams.keys_down = False
    now += identity.UNKNOWN_EVERY + 1
    await adapter.verify(request)
    assert teams.key_fetches == 2


async def test_without_keys_nothing_is_taken_and_teams_shall_come_again(
    teams: TeamsServer, adapter: TeamsAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = signed(teams, teams.written(teams.personal(), "hi"))
    teams.keys_down = True
    for _ in range(2):
        with pytest.raises(Unverified) as refused:
            await adapter.verify(request)
        assert refused.value.response is not None
        assert refused.value.response.status == 503
    teams.keys_down = False
    later = time.monotonic() + identity.DOWN_FOR + 1
    monkeypatch.setattr("adapters.teams.identity.time.monotonic", lambda: later)
    await adapter.verify(request)


def test_keys_of_other_kinds_are_left_out() -> None:
    odd = [{"kid": "ec", "kty": "EC", "crv": "P-256"}, {"kid": "x", "kty": "RSA", "n": "?", "e": ""}, {"kty": "RSA"}]
    assert [*dict(identity._usable(msgspec.convert({"keys": [*odd, VECTOR_JWK]}, identity.Jwks)))] == ["testkid"]


# -- parse ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_parse(path: Path) -> None:
    case = json.loads(path.read_text())
    inbound = parse(case["activity"])
    expected = [msgspec.convert(case["message"], Message)] if "message" in case else []
    assert list(inbound.messages) == expected
    assert inbound.ignored == case.get("ignored", "")
    assert inbound.response.status == 200


def test_a_redelivery_carries_the_same_id_and_two_chats_do_not_share_one() -> None:
    teams = TeamsServer()
    one = teams.written(teams.personal("Ada"), "hi")
    other = {**teams.written(teams.personal("Bob"), "hi"), "id": one["id"]}
    first, again, another = (parse(activity).messages[0].id for activity in (one, one, other))
    assert first == again != another


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("adaptiveCard/action", 200, {"statusCode": 200, "type": "application/vnd.microsoft.activity.message"}),
        ("message/submitAction", 200, {}),
        ("fileConsent/invoke", 200, {}),
        ("composeExtension/query", 501, None),
        ("", 501, None),
    ],
)
def test_an_invoke_is_answered_at_once(name: str, status: int, said: dict[str, Any] | None) -> None:
    response = parse({"type": "invoke", "name": name, "value": {"action": {"data": {}}}}).response
    assert response.status == status
    if said is None:
        assert response.body == b""
    else:
        assert said.items() <= json.loads(response.body).items()
        assert not said or "请" in json.loads(response.body)["value"]


BODY = st.binary() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["type", "from", "text"]), inner),
).map(lambda value: json.dumps(value).encode())


@RELAXED
@given(BODY)
def test_garbage_is_malformed_or_holds_nothing(body: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert offline().parse(Request(body=body)).messages == ()


def leaves(node: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(leaf for key, child in children for leaf in leaves(child, (*path, key)))]


@RELAXED
@given(st.data())
def test_a_wrong_type_anywhere_is_malformed_or_harmless(data: st.DataObject) -> None:
    activity = json.loads(data.draw(st.sampled_from(FIXTURES)).read_text())["activity"]
    path = data.draw(st.sampled_from(leaves(activity)[1:]))
    holder = activity
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = data.draw(st.sampled_from([None, True, -1, 10**30, 1.5, "", "\U0001f426", [], [[]], {}, [{}]]))
    with contextlib.suppress(Malformed):
        parse(activity)


# -- send -------------------------------------------------------------------------------------------------------------


async def test_an_answer_goes_to_the_service_the_token_vouched_for(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    ada = teams.personal()
    id = await adapter.send(asked(teams, ada), ANSWER)
    [shown] = teams.shown(ada)
    assert (shown.id, shown.text) == (id, ANSWER.text)
    assert shown.entities[0]["additionalType"] == ["AIGeneratedContent"]


async def test_the_bots_own_words_are_not_marked_as_a_models(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    ada = teams.personal()
    await adapter.send(asked(teams, ada), Page("Sorry. / 抱歉。", failure="model_timeout"))
    assert teams.shown(ada)[0].entities == []


async def test_an_answer_goes_into_the_thread_of_its_question(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    channel = teams.channel()
    question = teams.written(channel, "@Magpie hi", thread="1699")
    post = await adapter.begin(parse(question).messages[0].chat, ANSWER)
    [shown] = teams.shown(channel)
    assert (shown.id, shown.thread, shown.reply_to) == (post, "1699", question["id"])


async def test_a_private_cloud_may_stand_in_for_the_service(teams: TeamsServer) -> None:
    ada = teams.personal()
    chat = msgspec.structs.replace(asked(teams, ada), ticket='{"service":"https://smba.trafficmanager.net/amer/"}')
    async with made(teams, api_base=teams.service) as adapter:
        await adapter.send(chat, ANSWER)
    assert len(teams.shown(ada)) == 1


async def test_without_a_service_nothing_is_sent(adapter: TeamsAdapter) -> None:
    with pytest.raises(Refused):
        await adapter.send(Chat("a:1"), ANSWER)


async def test_the_longest_page_fits(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    ada = teams.personal()
    longest = "🐦" * (adapter.can.max_length // 2)
    assert adapter.can.measure(longest) == adapter.can.max_length == utf16(longest)
    await adapter.send(asked(teams, ada), Page(longest))
    assert teams.shown(ada)[0].text == longest
    with pytest.raises(Refused, match="MessageSizeTooBig"):
        await adapter.send(asked(teams, ada), Page(longest * 2))


async def test_a_chat_that_is_lost_refuses(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    ada = teams.personal()
    chat = asked(teams, ada)
    ada.member = False
    for act in (adapter.send, adapter.begin):
        with pytest.raises(Refused, match="BotNotInConversationRoster") as refused:
            await act(chat, ANSWER)
        assert not isinstance(refused.value, Unauthorized)
    del teams.rooms[ada.id]
    with pytest.raises(Refused, match="ConversationNotFound"):
        await adapter.edit(chat, Post("1:1"), ANSWER, last=True)


PASSING: list[tuple[Refusal | Cut, type[PlatformError]]] = [
    (flood(7), Throttled),
    (flood(), Throttled),
    (Refusal(412, "PreconditionFailed"), Unavailable),
    (Refusal(500, "ServiceError"), Unavailable),
    (Refusal(502, "BadGateway"), Unavailable),
    (Refusal(504, "GatewayTimeout"), Unavailable),
    (Cut(), Unavailable),
]


@pytest.mark.parametrize(("outcome", "kind"), PASSING)
@pytest.mark.parametrize("call", ["message", "PUT", "typing", "streaming"])
async def test_failures_that_pass(
    teams: TeamsServer, adapter: TeamsAdapter, outcome: Refusal | Cut, kind: type[PlatformError], call: str
) -> None:
    chat = asked(teams, teams.personal())
    post = await adapter.send(chat, ANSWER)
    acts: dict[str, Callable[[], Any]] = {
        "message": lambda: adapter.send(chat, ANSWER),
        "PUT": lambda: adapter.edit(chat, Post(post), Page("new"), last=True),
        "typing": lambda: adapter.typing(chat),
        "streaming": lambda: adapter.begin(chat, ANSWER),
    }
    teams.script(call, *[outcome] * (2 if call == "PUT" and isinstance(outcome, Cut) else 1))  # aiohttp repeats a PUT
    with pytest.raises(kind) as failed:
        await acts[call]()
    if isinstance(failed.value, Throttled):
        assert failed.value.retry_after == (7 if "7" in str(outcome.headers) else adapters.teams.connector.PAUSE)  # type: ignore[union-attr]
    await acts[call]()


async def test_typing_is_shown(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    channel = teams.channel()
    await adapter.typing(asked(teams, channel))
    assert channel.typed == 1


# -- access tokens ----------------------------------------------------------------------------------------------------


async def test_replicas_share_one_token(teams: TeamsServer) -> None:
    ada = teams.personal()
    async with context("teams") as lent:
        replicas = [TeamsAdapter(TeamsSettings.model_validate(teams.settings()), lent) for _ in range(3)]
        await asyncio.gather(*(replica.send(asked(teams, ada), ANSWER) for replica in replicas * 3))
        for replica in replicas:
            await replica.stop()
    assert len(teams.shown(ada)) == 9
    assert len(teams.issued) == 1


async def test_a_token_that_expired_is_replaced_and_nothing_is_sent_twice(
    teams: TeamsServer, adapter: TeamsAdapter
) -> None:
    ada = teams.personal()
    await adapter.send(asked(teams, ada), ANSWER)
    teams.expire()
    await adapter.send(asked(teams, ada), ANSWER)
    assert len(teams.shown(ada)) == 2
    assert len(teams.issued) == 2


async def test_a_token_that_is_never_taken_is_unauthorized(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    chat = asked(teams, teams.personal())
    denied = Refusal(401, "Unauthorized")
    teams.script("message", denied, denied)
    with pytest.raises(Unauthorized):
        await adapter.send(chat, ANSWER)
    assert len(teams.issued) == 2


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("app_password", "invalid_client (AADSTS7000215)"),
        ("app_id", "unauthorized_client (AADSTS700016)"),
        ("tenant_id", "invalid_request (AADSTS90002)"),
    ],
)
async def test_a_wrong_setting_is_unauthorized(teams: TeamsServer, setting: str, reason: str) -> None:
    async with made(teams, **{setting: "wrong-one"}) as adapter:
        with pytest.raises(Unauthorized) as refused:
            await adapter.send(asked(teams, teams.personal()), ANSWER)
    assert reason in str(refused.value)
    assert "wrong-one" not in str(refused.value)


# -- what it looks like -----------------------------------------------------------------------------------------------

WRITTEN = """# Birds

A *magpie* is **clever**, ~~slow~~, `x < 1` & a <at>Bob</at>.
It said **“粗体”**文字 with snake_case and 2 * 3.

- one
  - nested
- two

| a | b |
|---|---|
| 1 | 中 |

```python
if a < b: print("**")
```

[docs](https://example.com/a_b) and ![bird](https://example.com/b.png)

> quoted"""
SHOWN = """**Birds**

A *magpie* is **clever**, ~~slow~~, `x < 1` & a &lt;at>Bob&lt;/at>.  
It said **“粗体”**\u200a文字 with snake\\_case and 2 \\* 3.

- one
  - nested
- two

```
a  b
-  --
1  中
```

```python
if a < b: print("**")
```

[docs](https://example.com/a_b) and [bird](https://example.com/b.png)

> quoted"""  # noqa: W291


def test_the_dialect() -> None:
    assert render(WRITTEN, TeamsAdapter.can.dialect) == SHOWN


@RELAXED
@given(st.text(alphabet="ab 1\n*_~`[]()<>&\\.#-|中文", max_size=60), st.integers(1, 20))
def test_whatever_a_model_writes_mentions_nobody(source: str, step: int) -> None:
    shown = render(f"<at>Ada</at> {source}".replace("`", ""), TeamsAdapter.can.dialect)
    assert "<at>" not in shown
    assert shown.startswith(settled(shown[:step]))


@pytest.mark.parametrize(
    ("page", "sure"),
    [
        ("", ""),
        ("two words ", "two words"),
        ("**bold**", "**bold"),
        ("plain **half", "plain"),
        ("plain `half", "plain"),
        ("see [docs](https://exa", "see"),
        ("see [docs](https://example.com) now", "see [docs](https://example.com) now"),
        ("plain \\*\\*half", "plain"),
        ("two \\* 3 and", "two"),
        ("a \\**half*", "a"),
        ("2 \\* 3\nand", "2 \\* 3\nand"),
        ("a snake\\_case and \\_it", "a snake\\_case and"),
        ("see \\[docs", "see"),
        ("see \\[1\\] there", "see \\[1\\] there"),
        ("a\n\n- b\n- c", "a\n\n- b\n- c"),
        ("a\n\n1. b\n2", "a\n\n1. b"),
        ("```python\nx = 1\n```", "```python\nx ="),
    ],
)
def test_only_what_is_settled_is_streamed(page: str, sure: str) -> None:
    assert settled(page) == sure


# -- streams ----------------------------------------------------------------------------------------------------------

TEXTS = ("One", "One two", "One two three", "One two three four.")


async def grow(adapter: TeamsAdapter, chat: Chat, *texts: str, between: Callable[[int], object] = int) -> Post:
    """Let an answer grow as the core does. `between` is called before every edit with its number."""
    post = Post(await adapter.begin(chat, Page(texts[0], key="k:0")), texts[0])
    for number, text in enumerate(texts[1:], 1):
        between(number)
        id = await adapter.edit(chat, post, Page(text, text, "k:0"), last=number == len(texts) - 1)
        post = Post(id, text, post.edits + 1)
    return post


async def test_in_a_personal_chat_an_answer_grows_as_a_stream(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    ada = teams.personal()
    post = await grow(adapter, asked(teams, ada), *TEXTS)
    [shown] = teams.shown(ada)
    assert (shown.id, shown.state, shown.history) == (post.id, "", list(TEXTS))
    assert [stream_info(piece)["streamSequence"] for piece in teams.called("streaming")] == [1, 2, 3]
    assert not teams.called("PUT")


@pytest.mark.parametrize("kind", ["group", "channel"])
async def test_elsewhere_an_answer_grows_by_edits(teams: TeamsServer, adapter: TeamsAdapter, kind: str) -> None:
    room: Room = getattr(teams, kind)()
    await grow(adapter, asked(teams, room), *TEXTS)
    [shown] = teams.shown(room)
    assert shown.history == list(TEXTS)
    assert not teams.called("streaming")


@pytest.mark.parametrize("step", [1, 7, 50])
async def test_markdown_that_grows_ends_as_it_should(teams: TeamsServer, adapter: TeamsAdapter, step: int) -> None:
    ada = teams.personal()
    texts = [render(WRITTEN[:end], adapter.can.dialect) for end in range(step, len(WRITTEN) + step, step)]
    await grow(adapter, asked(teams, ada), *filter(None, texts))
    [shown] = teams.shown(ada)
    assert (shown.text, shown.state) == (SHOWN, "")


async def test_prose_is_streamed_to_its_end(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    ada = teams.personal()
    source = "喜鹊是**鸦科**的一种鸟。\n\n- 一\n- 二 `code`\n\n1. A\n2. B\n\n" + "It is a **bird**, it *sings*. " * 20
    texts = [render(source[:end], adapter.can.dialect) for end in range(11, len(source) + 11, 11)]
    await grow(adapter, asked(teams, ada), *texts)
    [shown] = teams.shown(ada)
    assert shown.text == render(source, adapter.can.dialect)
    assert not teams.called("PUT")


DEATHS: dict[str, Callable[[TeamsServer, Room], object]] = {
    "its two minutes are over": lambda teams, room: teams.end_streams(room, "expired"),
    "a piece is refused": lambda teams, room: teams.script("streaming", no_stream("Content stream is not allowed")),
    "a piece is bad": lambda teams, room: teams.script("streaming", Refusal(400, "BadSyntax")),
    "the end is refused": lambda teams, room: teams.script("final", Refusal(400, "BadSyntax")),
}


@pytest.mark.parametrize("dies", DEATHS.values(), ids=DEATHS)
@pytest.mark.parametrize("when", [1, 2, 3])
async def test_a_stream_that_dies_goes_on_by_edits(
    teams: TeamsServer, adapter: TeamsAdapter, dies: Callable[[TeamsServer, Room], object], when: int
) -> None:
    ada = teams.personal()

    def between(number: int) -> None:
        if number == when:
            dies(teams, ada)
            if teams._scripts["final"]:
                teams.end_streams(ada, "expired")

    await grow(adapter, asked(teams, ada), *TEXTS, between=between)
    [shown] = teams.shown(ada)
    assert (shown.text, shown.state) == (TEXTS[-1], "")
    assert not adapter._streams


async def test_a_page_that_goes_another_way_is_edited(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    ada = teams.personal()
    await grow(adapter, asked(teams, ada), "One two", "Another", "Another way", "Another way to", "Another way to go")
    [shown] = teams.shown(ada)
    assert (shown.text, shown.state) == ("Another way to go", "")
    await grow(adapter, asked(teams, ada), "One two", "Three")
    assert teams.shown(ada)[1].text == "Three"


@pytest.mark.parametrize("call", ["streaming", "final"])
@pytest.mark.parametrize("after", [True, False])
async def test_a_piece_whose_answer_was_lost(teams: TeamsServer, adapter: TeamsAdapter, call: str, after: bool) -> None:
    ada = teams.personal()
    chat = asked(teams, ada)
    post = Post(await adapter.begin(chat, Page(TEXTS[0])), TEXTS[0])
    teams.script(call, Cut(after))
    with pytest.raises(Unavailable):
        await adapter.edit(chat, post, Page(TEXTS[1]), last=call == "final")
    post = Post(await adapter.edit(chat, post, Page(TEXTS[2]), last=False), TEXTS[2])
    await adapter.edit(chat, post, Page(TEXTS[3]), last=True)
    [shown] = teams.shown(ada)
    assert (shown.text, shown.state) == (TEXTS[3], "")


async def test_a_stream_that_was_throttled_goes_on(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    ada = teams.personal()
    chat = asked(teams, ada)
    post = Post(await adapter.begin(chat, Page(TEXTS[0])))
    for call, last in (("streaming", False), ("final", True)):
        teams.script(call, flood(1))
        with pytest.raises(Throttled):
            await adapter.edit(chat, post, Page(TEXTS[-1]), last)
        await adapter.edit(chat, post, Page(TEXTS[-1]), last)
    assert [stream_info(piece)["streamSequence"] for piece in teams.called("streaming")] == [1, 2, 2]
    assert teams.shown(ada)[0].text == TEXTS[-1]


@pytest.mark.parametrize("state", ["streaming", "expired", ""])
async def test_a_fresh_process_finishes_a_stream_it_did_not_begin(
    teams: TeamsServer, adapter: TeamsAdapter, state: Any
) -> None:
    ada = teams.personal()
    chat = asked(teams, ada)
    post = Post(await adapter.begin(chat, Page(TEXTS[1])), TEXTS[0])
    teams.end_streams(ada, state)
    async with made(teams) as after:
        post = Post(await after.edit(chat, post, Page(TEXTS[2]), last=False), TEXTS[2])
        await after.edit(chat, post, Page(TEXTS[3]), last=True)
    [shown] = teams.shown(ada)
    assert (shown.text, shown.state) == (TEXTS[3], "")


async def test_a_fresh_process_with_another_answer_is_heard_all_the_same(
    teams: TeamsServer, adapter: TeamsAdapter
) -> None:
    ada = teams.personal()
    chat = asked(teams, ada)
    post = Post(await adapter.begin(chat, Page("One two")), "One two")
    async with made(teams) as after:
        id = await after.edit(chat, post, Page("Another"), last=True)
    assert (teams.shown(ada)[-1].id, teams.shown(ada)[-1].text) == (id, "Another")


async def test_where_streams_are_refused_the_answer_grows_by_edits(
    teams: TeamsServer, adapter: TeamsAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = teams.personal()
    ada.streams = False
    await grow(adapter, asked(teams, ada), *TEXTS)
    await grow(adapter, asked(teams, ada), *TEXTS)
    assert [shown.history for shown in teams.shown(ada)] == [list(TEXTS), list(TEXTS)]
    assert len(teams.called("streaming")) == 1  # not offered again for a while
    later = time.monotonic() + adapters.teams.EDITS_FOR + 1
    monkeypatch.setattr("adapters.teams.time.monotonic", lambda: later)
    ada.streams = True
    assert (await adapter.begin(asked(teams, ada), ANSWER)).startswith("stream:")


async def test_streams_that_nobody_ended_are_forgotten(
    teams: TeamsServer, adapter: TeamsAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await adapter.begin(asked(teams, teams.personal("Ada")), ANSWER)
    later = time.monotonic() + adapters.teams.STREAM_LIVES + 1
    monkeypatch.setattr("adapters.teams.time.monotonic", lambda: later)
    await adapter.begin(asked(teams, teams.personal("Bob")), ANSWER)
    assert len(adapter._streams) == 1


async def test_a_deleted_post_is_posted_anew(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    group = teams.group()
    chat = asked(teams, group)
    post = await adapter.begin(chat, Page("One"))
    del group.messages[post]
    assert await adapter.edit(chat, Post(post, "One"), Page("One two"), last=True) != post
    assert [shown.text for shown in teams.shown(group)] == ["One two"]


# -- files ------------------------------------------------------------------------------------------------------------


def attachment(teams: TeamsServer, url: str) -> Attachment:
    return Attachment("image", json.dumps({"url": url, "service": teams.service}))


async def test_download(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    teams.files["0-1"] = b"picture"
    url = f"{teams.service}v3/attachments/0-1/views/original"
    activity = teams.written(teams.personal(), "", attachments=[{"contentType": "image/*", "contentUrl": url}])
    [file] = parse(activity).messages[0].attachments
    assert await adapter.download(file, 7) == b"picture"
    teams.expire()
    assert await adapter.download(file, 7) == b"picture"
    with pytest.raises(Refused, match="larger"):
        await adapter.download(file, 6)


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example.com/x",
        "http://contoso.sharepoint.com/x",
        "https://contoso.sharepoint.com.evil.example/x",
        "https://contoso.sharepoint.com@evil.example/x",
        "http://127.0.0.1:1/x",
        "file:///etc/passwd",
        "https://[x/",
    ],
)
async def test_other_hosts_are_not_asked(teams: TeamsServer, adapter: TeamsAdapter, url: str) -> None:
    with pytest.raises(Refused, match="not allowed"):
        await adapter.download(attachment(teams, url), 100)


async def test_the_token_stays_with_the_service(
    teams: TeamsServer, adapter: TeamsAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, object]] = []

    async def fetch(self: object, url: str, limit: int, headers: object) -> bytes:
        asked.append((url, headers))
        return b"x"

    monkeypatch.setattr("bot.client.Client._fetch", fetch)
    await adapter.download(attachment(teams, "https://contoso.sharepoint.com/x"), 100)
    await adapter.download(attachment(teams, f"{teams.service}x"), 100)
    assert asked == [
        ("https://contoso.sharepoint.com/x", None),
        (f"{teams.service}x", {"Authorization": "Bearer token-1"}),
    ]


# -- set up -----------------------------------------------------------------------------------------------------------

URL = "https://bot.example.com/webhooks/teams"


async def test_register_lists_the_steps_with_the_url(adapter: TeamsAdapter) -> None:
    steps = [finding.what for finding in await adapter.register(URL)]
    assert any(URL in step for step in steps)
    told = " ".join(steps)
    assert all(name in told for name in ("TEAMS_APP_ID", "TEAMS_APP_PASSWORD", "TEAMS_TENANT_ID", APP_ID))
    assert PASSWORD not in told
    assert "{" not in told


async def test_check_tells_that_all_is_well(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    assert all(finding.ok for finding in await adapter.check(URL))


async def test_check_names_the_variables_of_a_wrong_secret(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    teams.password = "another"
    [bad] = [finding for finding in await adapter.check(URL) if not finding.ok]
    assert "AADSTS7000215" in bad.what
    assert "TEAMS_APP_PASSWORD" in bad.advice


async def test_check_survives_everything_being_down(teams: TeamsServer) -> None:
    nowhere = "http://127.0.0.1:9"
    async with made(teams, openid_url=nowhere, login_base=nowhere) as adapter:
        bad = [finding for finding in await adapter.check(URL) if not finding.ok]
    assert len(bad) == 2
    assert "TEAMS_OPENID_URL" in bad[1].advice


# -- the shared promises, and the whole bot ---------------------------------------------------------------------------


class TestPromises(AdapterPromises):
    adapter = TeamsAdapter
    settings = MAGPIE
    server: TeamsServer

    @pytest.fixture(autouse=True)
    async def _served(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
        async with TeamsServer() as server:
            monkeypatch.setattr(type(self), "server", server, raising=False)
            monkeypatch.setattr(type(self), "settings", server.settings())
            self.body = json.dumps(server.written(server.personal(), "What is a magpie?")).encode()
            yield

    def text_message(self) -> Request:
        return Request(headers={"authorization": f"Bearer {self.server.signed()}"}, body=self.body)


@contextlib.asynccontextmanager
async def serving(teams: TeamsServer, script: Script = echo, **options: Any) -> AsyncIterator[Magpie]:
    """Run the whole bot, with Teams calling it."""
    fast = type("Fast", (TeamsAdapter,), {"can": msgspec.structs.replace(TeamsAdapter.can, edit_every=0.05)})
    instance = Configured("teams", fast, TeamsSettings.model_validate(teams.settings()))
    async with running(instance, model=ScriptedModel(script), **options) as magpie:
        teams.webhook = f"http://127.0.0.1:{magpie.port}/webhooks/teams"
        yield magpie


def questions(magpie: Magpie) -> int:
    """Count what the model was asked."""
    assert isinstance(magpie.model, ScriptedModel)
    return len(magpie.model.asked)


def finished(teams: TeamsServer, room: Room, count: int = 1) -> Callable[[], bool]:
    """Tell when a chat shows `count` answers, none of them still growing."""

    def look() -> bool:
        shown = teams.shown(room)
        return len(shown) >= count and all(not message.state for message in shown)

    return look


async def test_a_forged_request_stores_and_sends_nothing(teams: TeamsServer) -> None:
    async with serving(teams) as magpie:
        activity = teams.written(teams.personal(), "hello")
        forged = [(401, teams.signed(aud="another")), (401, "x.y.z"), (401, teams.signed(serviceurl="https://a.b"))]
        for status, token in forged:
            assert (await teams.deliver(activity, token))[0] == status
        assert (await teams.deliver({**activity, "channelId": "skype"}))[0] == 403
        assert (await magpie.store.counts())["waiting"] == 0
        assert questions(magpie) == 0
    assert teams.calls == []


async def test_without_the_keys_teams_is_asked_to_come_again(
    teams: TeamsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "DOWN_FOR", 0)
    ada = teams.personal()
    question = teams.written(ada, "hello")
    async with serving(teams) as magpie:
        teams.keys_down = True
        assert (await teams.deliver(question))[0] == 503
        assert (await magpie.store.counts())["waiting"] == 0
        teams.keys_down = False
        assert (await teams.deliver(question))[0] == 200
        await teams.until(finished(teams, ada))
    assert [shown.text for shown in teams.shown(ada)] == ["You said: hello"]


async def test_an_invoke_hears_its_answer(teams: TeamsServer) -> None:
    ada = teams.personal()
    async with serving(teams) as magpie:
        card = teams.written(ada, "", type="invoke", name="adaptiveCard/action")
        status, body = await teams.deliver(card)
        assert (status, json.loads(body)["statusCode"]) == (200, 200)
        assert (await teams.deliver({**card, "name": "task/fetch"}))[0] == 501
        assert questions(magpie) == 0


async def test_an_answer_outlives_its_stream(teams: TeamsServer) -> None:
    ada = teams.personal()

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        yield "One two "
        await teams.until(lambda: teams.shown(ada))
        teams.end_streams(ada, "expired")
        yield "three four "
        await teams.until(lambda: teams.called("PUT"))
        yield "five."

    async with serving(teams, script):
        await teams.say(ada, "count")
        await teams.until(lambda: "five" in teams.shown(ada)[0].text if teams.shown(ada) else False)
    assert [(shown.text, shown.state) for shown in teams.shown(ada)] == [("One two three four five.", "")]


@pytest.mark.parametrize("kind", ["personal", "group", "channel"])
async def test_a_question_is_answered_while_the_model_writes(teams: TeamsServer, kind: str) -> None:
    room: Room = getattr(teams, kind)()
    go_on = asyncio.Event()

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        await teams.until(lambda: room.typed)
        yield "A magpie is "
        await go_on.wait()
        yield "a **bird**."

    async with serving(teams, script):
        await teams.say(room, "@Magpie what is a magpie?")
        await teams.until(lambda: teams.shown(room))
        assert teams.shown(room)[0].text.strip() == "A magpie is"
        assert teams.shown(room)[0].state == ("streaming" if kind == "personal" else "")
        go_on.set()
        await teams.until(lambda: finished(teams, room)() and "bird" in teams.shown(room)[0].text)
    [shown] = teams.shown(room)
    assert shown.text == "A magpie is a **bird**."


async def test_a_redelivery_is_answered_once_and_chatter_not_at_all(teams: TeamsServer) -> None:
    group, ada = teams.group(), teams.personal()
    async with serving(teams) as magpie:
        await teams.say(group, "nobody asks")
        question = teams.written(group, "@Magpie who?")
        answers = await asyncio.gather(*(teams.deliver(question) for _ in range(6)))
        assert {status for status, _ in answers} == {200}
        await teams.until(finished(teams, group))
        await teams.say(ada, "hello")
        await teams.until(finished(teams, ada))
        assert questions(magpie) == 2
    assert [shown.text for shown in teams.shown(group)] == ["You said: who?"]


async def test_threads_of_a_channel_have_their_own_memories(teams: TeamsServer) -> None:
    channel = teams.channel()
    async with serving(teams, lambda turns: (str(len(turns)),)):
        root = (await teams.say(channel, "@Magpie one"))["id"]
        await teams.until(finished(teams, channel))
        await teams.say(channel, "@Magpie two", thread=root)
        await teams.until(finished(teams, channel, 2))
        await teams.say(channel, "@Magpie elsewhere")
        await teams.until(finished(teams, channel, 3))
    first, second, other = (int(shown.text) for shown in teams.shown(channel))
    assert (second, other) == (first + 2, first)


async def test_a_long_answer_arrives_whole_in_pages(teams: TeamsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = msgspec.structs.replace(TeamsAdapter.can, pages_per_second=1000)
    monkeypatch.setattr(TeamsAdapter, "can", fast)
    ada = teams.personal()
    words = [f"**word{number}** " for number in range(3000)]
    async with serving(teams, lambda turns: words):
        await teams.say(ada, "tell me everything")
        await teams.until(lambda: finished(teams, ada)() and "word2999" in teams.shown(ada)[-1].text)
    shown = teams.shown(ada)
    assert len(shown) > 1
    assert " ".join(message.text for message in shown).split() == [f"**word{number}**" for number in range(3000)]


@pytest.mark.parametrize("kind", ["personal", "group"])
async def test_what_passes_is_waited_for_and_nothing_is_lost(teams: TeamsServer, kind: str) -> None:
    room: Room = getattr(teams, kind)()
    async with serving(teams):
        await teams.say(room, "@Magpie one")
        await teams.until(finished(teams, room))
        teams.expire()
        for call in ("message", "streaming", "final", "PUT"):
            teams.script(call, flood(0), Cut())
        await teams.say(room, "@Magpie two")
        await teams.until(lambda: finished(teams, room, 2)() and "two" in teams.shown(room)[1].text)
    assert [shown.text for shown in teams.shown(room)] == ["You said: one", "You said: two"]


async def test_the_stop_button_ends_the_answer(teams: TeamsServer) -> None:
    ada = teams.personal()
    written: list[int] = []

    async def script(turns: Sequence[Turn]) -> AsyncIterator[str]:
        for number in range(100_000):
            written.append(number)
            yield f"word{number} "
            await asyncio.sleep(0.005)

    async with serving(teams, script) as magpie:
        await teams.say(ada, "tell me everything")
        await teams.until(lambda: len(teams.called("streaming")) > 2)
        teams.end_streams(ada, "stopped")
        seen = teams.shown(ada)[0].text
        while magpie.dispatcher.busy:
            await asyncio.sleep(0.01)
    assert len(written) < 50_000
    assert [shown.text for shown in teams.shown(ada)] == [seen]


async def test_a_picture_reaches_the_model(teams: TeamsServer) -> None:
    ada = teams.personal()
    teams.files["0-1"] = b"\x89PNG"
    url = f"{teams.service}v3/attachments/0-1/views/original"
    async with serving(teams) as magpie:
        await teams.say(ada, "what is this?", attachments=[{"contentType": "image/png", "contentUrl": url}])
        await teams.until(finished(teams, ada))
        assert isinstance(magpie.model, ScriptedModel)
        assert [(picture.mime, picture.data) for picture in magpie.model.pictures[0]] == [("image/png", b"\x89PNG")]


# -- the vendor's model of an activity as an oracle -------------------------------------------------------------------


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_the_vendors_sdk_reads_our_fixtures(path: Path) -> None:
    activity = json.loads(path.read_text())["activity"]
    Activity.model_validate({name: value for name, value in activity.items() if value is not None})


async def test_the_vendors_sdk_reads_what_we_post(teams: TeamsServer, adapter: TeamsAdapter) -> None:
    ada, channel = teams.personal(), teams.channel()
    await adapter.typing(asked(teams, ada))
    await grow(adapter, asked(teams, ada), *TEXTS)
    await grow(adapter, asked(teams, channel), *TEXTS)
    for _, posted in teams.calls:
        read = Activity.model_validate(posted)
        assert read.model_dump(by_alias=True, exclude_unset=True, mode="json")["type"] == posted["type"]
        assert read.text == posted.get("text")
    assert BOT not in json.dumps(teams.calls)
