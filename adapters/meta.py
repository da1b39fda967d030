"""What Meta's platforms share: webhooks, the Graph API's errors, subscriptions.

https://developers.facebook.com/docs/graph-api/webhooks/getting-started
https://developers.facebook.com/docs/graph-api/guides/error-handling
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Generic, NamedTuple, TypeVar

import msgspec

from bot import signing
from bot.adapter import Finding, Inbound, Request, Response
from bot.client import Client, Failure, Reply, http_failure
from bot.config import variable
from bot.errors import Malformed, PlatformError, Refused, Throttled, Unauthorized, Unavailable, Unverified

T = TypeVar("T")
GRAPH = "https://graph.facebook.com/v25.0"
SIGNATURE = "x-hub-signature-256"
LONGEST_WAIT = 3600.0  # seconds
SOON = 7 * 86400  # seconds in which a token that expires is worth a warning
HANDSHAKE_FAILED = 2200  # what subscribing a URL that does not answer is refused with
MISMATCH = "mismatch"  # our own code for an app secret that is not of the token's app


# -- webhooks ----------------------------------------------------------------------------------------------------------


def verify(request: Request, app_secret: str, verify_token: str) -> None:
    """Check the token of a handshake (GET) or the signature of an event. Raises Unverified, with the 403 Meta wants.

    Meta signs the bytes it sends, in which it has escaped everything beyond ASCII: they are never built again.
    """
    try:
        if request.method == "GET":
            signing.equal(request.query.get("hub.mode", ""), "subscribe", "hub.mode")
            signing.equal(request.query.get("hub.verify_token", ""), verify_token, "hub.verify_token")
        else:
            signing.equal(request.header(SIGNATURE), sign(app_secret, request.body), "X-Hub-Signature-256")
    except Unverified as error:
        raise Unverified(str(error), Response(b"Forbidden", 403)) from None


def sign(app_secret: str, body: bytes) -> str:
    """Return the header that Meta sends along with a body."""
    return "sha256=" + signing.digest(app_secret, body)


def sample(app_secret: str, object: str) -> Request:
    """Return a signed event about nothing."""
    body = msgspec.json.encode({"object": object, "entry": []})
    return Request(headers={SIGNATURE: sign(app_secret, body)}, body=body)


def handshake(request: Request) -> Inbound:
    """Answer a verified GET with its challenge, as plain text."""
    challenge = request.query.get("hub.challenge", "").encode(errors="replace")
    return Inbound(response=Response(challenge), ignored="handshake")


def batch(parts: Iterable[Callable[[], Inbound]]) -> Inbound:
    """Read the parts of one request. A part that cannot be read does not take the others with it.

    Raises Malformed when there are parts and none can be read.
    """
    read, broken = [], None
    for part in parts:
        try:
            read.append(part())
        except Malformed as error:
            broken = error
    if broken and not read:
        raise broken
    reasons = dict.fromkeys(inbound.ignored for inbound in read if inbound.ignored)
    return Inbound(
        messages=tuple(message for inbound in read for message in inbound.messages),
        ignored="; ".join(reasons) or ("" if read else "no event"),
        moved=next((inbound.moved for inbound in read if inbound.moved), None),
    )


def pressed(payload: str, label: str) -> str:
    """Return what a pressed button says: its label, or the command it carries."""
    return payload if payload.startswith("/") else label or payload


# -- errors ------------------------------------------------------------------------------------------------------------


class Meaning(NamedTuple):
    """What an error code makes us do, in words that repeat nothing of what we sent. `pause` in seconds."""

    kind: type[PlatformError]
    reason: str
    pause: float = 0


Codes = Mapping[int | tuple[int, int], Meaning]  # by code, or by (code, subcode), which goes first

# https://developers.facebook.com/docs/graph-api/guides/error-handling#errorcodes
CODES: Codes = {
    0: Meaning(Unauthorized, "the access token is not accepted"),
    1: Meaning(Unavailable, "an unknown error at Meta"),
    2: Meaning(Unavailable, "the service is down for a moment"),
    3: Meaning(Unauthorized, "the app lacks a capability or permission"),
    4: Meaning(Throttled, "the app calls too often", 60),
    10: Meaning(Unauthorized, "a permission is missing"),
    17: Meaning(Throttled, "too many calls", 60),
    32: Meaning(Throttled, "too many calls for this page", 60),
    (100, 33): Meaning(Refused, "there is no such object, or the token may not see it"),
    102: Meaning(Unauthorized, "the session is over"),
    190: Meaning(Unauthorized, "the access token is invalid or has expired"),
    341: Meaning(Throttled, "the app has reached a limit", 600),
    368: Meaning(Refused, "blocked by Meta for a violation of its policies"),
    613: Meaning(Throttled, "too many calls", 60),
    HANDSHAKE_FAILED: Meaning(Refused, "the handshake with our webhook failed"),
}
PERMISSION = Meaning(Unauthorized, "a permission is missing")  # 200 to 299


class Error(msgspec.Struct):
    """An error of the Graph API, or of a message that could not be delivered later on."""

    code: int
    message: str = ""
    error_subcode: int | None = None
    is_transient: bool = False


class Failed(msgspec.Struct):
    """The body of a failed call."""

    error: Error | None = None


def failure(codes: Codes) -> Failure:
    """Return what reads Graph's errors out of replies; `codes` are the platform's own."""
    known = {**CODES, **codes}

    def read(reply: Reply) -> PlatformError | None:
        if reply.status < 400 or not reply.body.startswith(b"{"):
            return None
        error = reply.json(Failed).error
        return _raised(error, _meaning(error, known), reply) if error else None

    return read


def explain(error: Error, codes: Codes) -> str:
    """Say what an error means: our words where we know the code, else Meta's without what might be quoted from us."""
    return _text(error, _meaning(error, {**CODES, **codes}))


def _text(error: Error, meaning: Meaning | None) -> str:
    code = f"{error.code}/{error.error_subcode}" if error.error_subcode else str(error.code)
    return f"{code} {meaning.reason if meaning else _unquoted(error.message)}".strip()


def _meaning(error: Error, codes: Codes) -> Meaning | None:
    meaning = codes.get((error.code, error.error_subcode or 0)) or codes.get(error.code)
    return meaning or (PERMISSION if 200 <= error.code < 300 else None)


def _raised(error: Error, meaning: Meaning | None, reply: Reply) -> PlatformError:
    text = _text(error, meaning)
    kind = meaning.kind if meaning else Unavailable if error.is_transient else type(http_failure(reply))
    if issubclass(kind, Throttled):
        return Throttled(text, _pause(reply) or (meaning.pause if meaning else 1.0))
    return kind(text, error.code) if issubclass(kind, Refused) else Unavailable(text)


def _pause(reply: Reply) -> float | None:
    """Return the seconds after which Meta lets us go on, if it says so.

    https://developers.facebook.com/docs/graph-api/overview/rate-limiting#headers (minutes there)
    """
    usage = reply.headers.get("x-business-use-case-usage", "")
    minutes = re.findall(r'"estimated_time_to_regain_access"\s*:\s*([1-9]\d{0,3})', usage)
    return min(60.0 * max(map(int, minutes)), LONGEST_WAIT) if minutes else reply.retry_after


def _unquoted(message: str) -> str:
    """Cut a message where it may begin to repeat a value: a token, a number, a text."""
    return re.sub(r"\S{40,}", "...", re.split(r"[:'\"“‘]", message)[0])[:120].strip()


# -- set up ------------------------------------------------------------------------------------------------------------


class Data(msgspec.Struct, Generic[T]):
    """The envelope of most answers."""

    data: T


class Object(msgspec.Struct):
    """Anything with an id."""

    id: str


class App(NamedTuple):
    """The Meta app that an access token belongs to. `token` is the app's own."""

    id: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        """What makes a call the app's own."""
        return {"Authorization": f"Bearer {self.token}"}


class Granted(msgspec.Struct):
    """A permission, and the objects it is limited to; None: all of them."""

    scope: str
    target_ids: list[str] | None = None


class Token(msgspec.Struct):
    """What Meta knows about an access token. `expires_at` in seconds since 1970, 0: never."""

    expires_at: int = 0
    scopes: list[str] = []
    granular_scopes: list[Granted] = []


class Topic(msgspec.Struct):
    """A kind of event that an app is subscribed to."""

    name: str


class Subscription(msgspec.Struct):
    """Where an app's events about one kind of object go."""

    object: str = ""
    callback_url: str = ""
    active: bool = True
    fields: list[Topic] = []


async def app_of(client: Client, app_secret: str) -> App:
    """Ask which app the client's access token belongs to; with its secret that makes the app's own token.

    https://developers.facebook.com/docs/facebook-login/guides/access-tokens#apptokens
    """
    id = (await client.call("GET", "/app", query={"fields": "id"})).json(Object).id
    return App(id, f"{id}|{app_secret}")


async def inspect(client: Client, app: App, token: str) -> Token:
    """Ask about an access token: https://developers.facebook.com/docs/graph-api/reference/debug_token

    This is the first call with the app's own token, so it is also the one that finds a wrong app secret.
    """
    try:
        reply = await client.call("GET", "/debug_token", query={"input_token": token}, headers=app.headers)
    except Refused as error:
        raise Refused(f"the app secret is not that of app {app.id} ({error})", MISMATCH) from None
    return reply.json(Data[Token]).data


async def subscribe(
    client: Client, app: App, object: str, fields: Iterable[str], url: str, verify_token: str
) -> Finding:
    """Let Meta send an app's events to `url`. Meta calls it at once, so the bot must be running.

    https://developers.facebook.com/docs/graph-api/reference/app/subscriptions
    """
    names = ",".join(fields)
    wanted = {"object": object, "callback_url": url, "verify_token": verify_token, "fields": names}
    await client.call("POST", f"/{app.id}/subscriptions", json=wanted, headers=app.headers)
    return Finding(True, f"app {app.id} sends {names} to {url}")


async def subscription(client: Client, app: App, object: str) -> Subscription:
    """Return where an app's events about `object` go; an empty one when nowhere."""
    reply = await client.call("GET", f"/{app.id}/subscriptions", headers=app.headers)
    return next((one for one in reply.json(Data[list[Subscription]]).data if one.object == object), Subscription())


def goes_to(found: str, url: str, instance: str) -> Finding:
    """Judge where events go."""
    what = f"events go to {found}" if found else "events go nowhere"
    return Finding(found == url, what, f"they should go to {url}: run magpie register {instance}")


def topics(found: Subscription, wanted: Iterable[str], instance: str) -> Iterator[Finding]:
    """Yield what is missing among the subscribed kinds of events."""
    missing = sorted(set(wanted) - {topic.name for topic in found.fields if found.active})
    if missing:
        yield Finding(False, f"not subscribed: {', '.join(missing)}", f"run: magpie register {instance}")


def permissions(token: Token, wanted: Collection[str], name: str) -> Iterator[Finding]:
    """Yield what is wrong with the access token in the variable `name`."""
    missing = sorted(set(wanted) - set(token.scopes))
    if missing:
        yield Finding(False, f"the token lacks {', '.join(missing)}", f"make a new {name} with these permissions")
    if 0 < token.expires_at < time.time() + SOON:
        at = f"{datetime.fromtimestamp(token.expires_at, UTC):%Y-%m-%d %H:%M} UTC"
        advice = f"put one that does not expire into {name}; the console's are for a first try only"
        yield Finding(False, f"the token expires at {at}", advice)


async def collected(steps: AsyncIterator[Finding], instance: str, token: str) -> list[Finding]:
    """Return what the steps of a set-up find; where Meta refuses one, that ends them. `token` is its setting's name."""
    found = []
    try:
        async for finding in steps:
            found.append(finding)  # noqa: PERF401 - kept when a later step fails
    except PlatformError as error:
        found.append(Finding(False, str(error), _advice(error, instance, token)))
    return found


def _advice(error: PlatformError, instance: str, token: str) -> str:
    if not isinstance(error, Refused):
        return f"wait; check {variable(instance, 'api_base')} and the network"
    if error.code == MISMATCH:
        return f"copy {variable(instance, 'app_secret')} from the app's console: App settings, Basic"
    if error.code == HANDSHAKE_FAILED:
        return f"start the bot, see that its public address leads to it, then run: magpie register {instance}"
    if isinstance(error, Unauthorized):
        return f"make a new {variable(instance, token)} with the permissions it needs"
    return "do it in the console"
