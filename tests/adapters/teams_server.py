"""A strict Bot Connector on loopback, with its keys and its login service: it refuses what Microsoft's refuse.

    async with TeamsServer() as teams:
        ada = teams.personal("Ada")
        adapter = TeamsAdapter(TeamsSettings.model_validate(teams.settings()), context)
        teams.webhook = "http://127.0.0.1:8080/webhooks/teams"
        await teams.say(ada, "hello")  # calls the webhook, signed
        [shown] = teams.shown(ada)

Streams follow https://learn.microsoft.com/microsoftteams/platform/bots/streaming-ux. `script` makes calls fail.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import aiohttp
import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

APP_ID, PASSWORD = "11111111-2222-3333-4444-555555555555", "s3cr3t~Value"
TENANT = "72f988bf-86f1-41af-91ab-2d7cd011db47"
BOT = f"28:{APP_ID}"
ISSUER = "https://api.botframework.com"
LARGEST = 40 * 1024  # bytes of an activity in UTF-16; the smallest number that Microsoft's pages name
Fields = dict[str, Any]
State = Literal["", "streaming", "stopped", "expired"]
PRIVATE = {kid: rsa.generate_private_key(65537, 2048) for kid in ("one", "two")}


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str = "", retry_after: int | None = None) -> None:
        super().__init__(code)
        self.status = status
        self.body = {"error": {"code": code, "message": message}}
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


def flood(seconds: int | None = None) -> Refusal:
    """A rate limit: come back in `seconds`, or at some time."""
    return Refusal(429, "TooManyRequests", "rate limited", seconds)


def bad(message: str) -> Refusal:
    """A request that is wrong."""
    return Refusal(400, "BadSyntax", message)


def no_stream(message: str) -> Refusal:
    """A stream that is not taken, or not any more."""
    return Refusal(403, "ContentStreamNotAllowed", message)


@dataclass
class Cut:
    """The connection breaks; with `after` the call was carried out all the same."""

    after: bool = False


@dataclass
class Shown:
    """A message as people see it. `history` holds every text it had, the current one last."""

    id: str
    text: str
    state: State = ""
    sequence: int = 0
    thread: str = ""
    reply_to: str = ""
    entities: list[Fields] = field(default_factory=list)
    history: list[str] = field(default_factory=list)

    def become(self, text: str) -> None:
        """Show another text."""
        self.text = text
        self.history.append(text)


@dataclass
class Room:
    """A conversation. `streams`: whether it takes native streams; `member`: whether the bot is in it."""

    id: str
    kind: str
    person: str
    streams: bool = True
    member: bool = True
    messages: dict[str, Shown] = field(default_factory=dict)
    typed: int = 0


class TeamsServer:
    """Teams, for one bot of one tenant."""

    def __init__(self) -> None:
        self.origin = self.webhook = ""
        self.rooms: dict[str, Room] = {}
        self.files: dict[str, bytes] = {}
        self.calls: list[tuple[str, Fields]] = []  # ("POST" or "PUT", activity)
        self.key_fetches = 0
        self.keys_down = False
        self.kid = "one"
        self.published: dict[str, list[str]] = {"one": ["msteams", "webchat"]}  # key: endorsements
        self.issued: list[str] = []
        self.password = PASSWORD
        self._valid: set[str] = set()
        self._scripts: dict[str, deque[Refusal | Cut]] = defaultdict(deque)
        self._numbers = itertools.count(1)
        self._news = asyncio.Event()

    @property
    def service(self) -> str:
        """The service URL of our messages."""
        return f"{self.origin}/amer/"

    async def __aenter__(self) -> TeamsServer:
        app = web.Application()
        app.router.add_get("/openid", self._openid)
        app.router.add_get("/keys", self._keys)
        app.router.add_post("/login/{tenant}/oauth2/v2.0/token", self._token)
        app.router.add_post("/amer/v3/conversations/{id}/activities", self._post)
        app.router.add_put("/amer/v3/conversations/{id}/activities/{activity}", self._put)
        app.router.add_get("/amer/v3/attachments/{id}/views/original", self._file)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.origin = f"http://{host}:{port}"
        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._runner.cleanup()

    def settings(self, **more: str) -> dict[str, str]:
        """Return the settings of a bot that talks to this server."""
        return {
            "app_id": APP_ID,
            "app_password": PASSWORD,
            "tenant_id": TENANT,
            "openid_url": f"{self.origin}/openid",
            "login_base": f"{self.origin}/login",
            **more,
        }

    # -- the people's side

    def personal(self, person: str = "Ada") -> Room:
        """Let a person open the bot's chat."""
        return self._open(Room(f"a:1{person}", "personal", person))

    def group(self, person: str = "Ada") -> Room:
        """Make a group chat with the bot."""
        return self._open(Room("19:readers@thread.v2", "groupChat", person))

    def channel(self, person: str = "Ada") -> Room:
        """Make a channel with the bot in its team."""
        return self._open(Room("19:general@thread.tacv2", "channel", person))

    def _open(self, room: Room) -> Room:
        self.rooms[room.id] = room
        return room

    def shown(self, room: Room) -> list[Shown]:
        """Return the bot's messages in a chat, oldest first."""
        return [*room.messages.values()]

    async def until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Wait until the bot's calls have made the condition true."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def script(self, call: str, *outcomes: Refusal | Cut) -> None:
        """Make the next calls fail in these ways: "message", "streaming", "final", "typing", "PUT", "token"."""
        self._scripts[call].extend(outcomes)

    def called(self, call: str) -> list[Fields]:
        """Return the activities of every call of a kind."""
        return [activity for kind, activity in self.calls if kind == call]

    def expire(self) -> None:
        """Let every token we gave run out before its time."""
        self._valid.clear()

    def end_streams(self, room: Room, state: State) -> None:
        """End what is being streamed: its time is over, or the person pressed stop."""
        for message in room.messages.values():
            message.state = state if message.state == "streaming" else message.state

    def rotate(self) -> None:
        """Sign with another key from now on."""
        self.kid = "two"
        self.published = {"two": ["msteams"]}

    def written(self, room: Room, text: str, *, thread: str = "", **more: Any) -> Fields:
        """Let a person write; return the activity, not yet delivered. "@Magpie" becomes a mention."""
        id = str(1_700_000_000_000 + next(self._numbers))
        mention = {"type": "mention", "mentioned": {"id": BOT, "name": "Magpie"}, "text": "<at>Magpie</at>"}
        suffix = f";messageid={thread or id}" if room.kind == "channel" else ""
        return {
            "type": "message",
            "id": id,
            "timestamp": "2026-11-20T12:00:00.000Z",
            "channelId": "msteams",
            "serviceUrl": self.service,
            "from": {"id": f"29:{room.person}", "name": room.person, "aadObjectId": f"aad-{room.person}"},
            "conversation": {
                "id": room.id + suffix,
                "conversationType": room.kind,
                "tenantId": TENANT,
                **({} if room.kind == "personal" else {"isGroup": True}),
            },
            "recipient": {"id": BOT, "name": "Magpie"},
            "text": text.replace("@Magpie", "<at>Magpie</at>"),
            "textFormat": "plain",
            "locale": "en-US",
            "entities": [
                {"type": "clientInfo", "locale": "en-US", "country": "US", "platform": "Web"},
                *([mention] if "@Magpie" in text else []),
            ],
            "channelData": {"tenant": {"id": TENANT}},
            **more,
        }

    async def say(self, room: Room, text: str, **more: Any) -> Fields:
        """Let a person write and deliver it; return the activity."""
        activity = self.written(room, text, **more)
        status, _ = await self.deliver(activity)
        assert status == 200, status
        return activity

    async def deliver(self, activity: Fields, token: str | None = None) -> tuple[int, bytes]:
        """Call the webhook as the Connector does, which waits fifteen seconds."""
        headers = {"Authorization": f"Bearer {token or self.signed()}", "Content-Type": "application/json"}
        limit = aiohttp.ClientTimeout(total=15)
        body = json.dumps(activity).encode()
        async with self._session.post(self.webhook, data=body, headers=headers, timeout=limit) as answer:
            return answer.status, await answer.read()

    def signed(self, kid: str = "", key: str = "", **claims: Any) -> str:
        """Return a token. A claim that is None is left out."""
        now = int(time.time())
        all = {"iss": ISSUER, "aud": APP_ID, "serviceurl": self.service, "nbf": now, "exp": now + 3600, **claims}
        held = {name: value for name, value in all.items() if value is not None}
        return jwt.encode(held, PRIVATE[key or self.kid], "RS256", headers={"kid": kid or self.kid})

    # -- Microsoft's side

    async def _openid(self, request: web.Request) -> web.Response:
        if self.keys_down:
            raise web.HTTPBadGateway
        self.key_fetches += 1
        return web.json_response({"issuer": ISSUER, "jwks_uri": f"{self.origin}/keys"})

    async def _keys(self, request: web.Request) -> web.Response:
        return web.json_response({"keys": [jwk(kid, channels) for kid, channels in self.published.items()]})

    async def _token(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        if request.match_info["tenant"] != TENANT:
            return denied(400, "invalid_request", "AADSTS90002: Tenant not found.")
        if form.get("grant_type") != "client_credentials" or form.get("scope") != f"{ISSUER}/.default":
            return denied(400, "invalid_scope", "AADSTS70011: The provided value for scope is not valid.")
        if form.get("client_id") != APP_ID:
            return denied(400, "unauthorized_client", "AADSTS700016: Application was not found in the directory.")
        if form.get("client_secret") != self.password:
            return denied(401, "invalid_client", "AADSTS7000215: Invalid client secret provided.")
        token = f"token-{len(self.issued) + 1}"
        self.issued.append(token)
        self._valid.add(token)
        return web.json_response({"token_type": "Bearer", "expires_in": 3599, "access_token": token})

    def _known(self, request: web.Request) -> None:
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self._valid:
            raise Refusal(401, "Unauthorized", "Authorization has been denied for this request.")

    async def _file(self, request: web.Request) -> web.StreamResponse:
        try:
            self._known(request)
        except Refusal as error:
            return web.json_response(error.body, status=error.status)
        return web.Response(body=self.files[request.match_info["id"]])

    async def _post(self, request: web.Request) -> web.StreamResponse:
        return await self._served(request, self._taken)

    async def _put(self, request: web.Request) -> web.StreamResponse:
        return await self._served(request, self._edited)

    async def _served(
        self, request: web.Request, act: Callable[[Room, Fields, web.Request], str]
    ) -> web.StreamResponse:
        activity = await request.json()
        kind = "PUT" if request.method == "PUT" else call_of(activity)
        self.calls.append((kind, activity))
        outcome = self._scripts[kind].popleft() if self._scripts[kind] else None
        try:
            self._known(request)
            if isinstance(outcome, Refusal):
                raise outcome
            if outcome and not outcome.after:
                return _hang_up(request)
            answer = {"id": act(self._place(request, activity), activity, request)}
        except Refusal as error:
            return web.json_response(error.body, status=error.status, headers=error.headers)
        finally:
            self._news.set()
        return _hang_up(request) if outcome else web.json_response(answer, status=201)

    def _place(self, request: web.Request, activity: Fields) -> Room:
        room = self.rooms.get(request.match_info["id"].partition(";")[0])
        if room is None:
            raise Refusal(404, "ConversationNotFound", "Conversation not found.")
        if not room.member:
            raise Refusal(403, "BotNotInConversationRoster", "The bot is not part of the conversation roster.")
        if len(json.dumps(activity, ensure_ascii=False).encode("utf-16-le")) > LARGEST:
            raise Refusal(413, "MessageSizeTooBig", "Message size too large.")
        return room

    def _taken(self, room: Room, activity: Fields, request: web.Request) -> str:
        if info := stream_info(activity):
            return self._streamed(room, activity, info)
        if activity["type"] == "typing":
            room.typed += 1
            return ""
        thread = request.match_info["id"].partition(";messageid=")[2]
        shown = self._new(room, Shown("", "", thread=thread, reply_to=activity.get("replyToId", "")))
        shown.become(self._text(activity))
        shown.entities = activity["entities"]
        return shown.id

    def _new(self, room: Room, shown: Shown) -> Shown:
        shown.id = f"1:{next(self._numbers)}"
        room.messages[shown.id] = shown
        return shown

    def _text(self, activity: Fields) -> str:
        text = activity.get("text")
        if activity["type"] != "message" or activity.get("textFormat") != "markdown":
            raise bad("not a message in Markdown")
        if not isinstance(text, str) or not text.strip():
            raise bad("The message has no text.")
        return text

    def _streamed(self, room: Room, activity: Fields, info: Fields) -> str:
        """Take the first piece, a further one, or the final message of a stream."""
        if room.kind != "personal" or not room.streams:
            raise no_stream("Content stream is not allowed.")
        text = activity.get("text")
        if not isinstance(text, str) or not text.strip():
            raise bad("Start streaming activities should include text.")
        if "streamId" in info:
            return self._continued(room, activity, info)
        if activity["type"] != "typing" or info["streamSequence"] != 1:
            raise bad("A stream begins with a typing activity and sequence 1.")
        if any(message.state == "streaming" for message in room.messages.values()):
            raise no_stream("Another stream is in progress.")
        shown = self._new(room, Shown("", "", "streaming", 1))
        shown.become(text)
        return shown.id

    def _continued(self, room: Room, activity: Fields, info: Fields) -> str:
        shown, text = room.messages.get(info["streamId"]), activity["text"]
        if shown is None:
            raise bad("Unknown stream.")
        reason = ENDED.get(shown.state)
        if reason:
            raise no_stream(reason)
        if not text.startswith(shown.text):
            raise bad("Streamed content should contain previously streamed content.")
        if info["streamType"] == "final":
            if activity["type"] != "message" or "streamSequence" in info:
                raise bad("A stream ends with a message without a sequence.")
            shown.state, shown.entities = "", activity["entities"]
        elif activity["type"] != "typing" or info["streamSequence"] <= shown.sequence:
            raise Refusal(412, "ContentStreamSequenceOrderPreConditionFailed")
        else:
            shown.sequence = info["streamSequence"]
        shown.become(text)
        return shown.id

    def _edited(self, room: Room, activity: Fields, request: web.Request) -> str:
        shown = room.messages.get(request.match_info["activity"])
        if shown is None:
            raise Refusal(404, "ActivityNotFoundInConversation", "Activity not found.")
        if shown.state == "streaming":
            raise no_stream("The message is still being streamed.")
        shown.state = ""
        shown.become(self._text(activity))
        return shown.id


ENDED: dict[State, str] = {
    "": "Content stream is not allowed on an already completed streamed message.",
    "stopped": "Content stream was canceled by user.",
    "expired": "Content stream exceeded streaming time.",
}


def stream_info(activity: Fields) -> Fields:
    """Return the entity that makes an activity part of a stream, {} when there is none."""
    return next((one for one in activity.get("entities", ()) if one.get("type") == "streaminfo"), {})


def call_of(activity: Fields) -> str:
    """Name a kind of call, for scripts."""
    return str(stream_info(activity).get("streamType") or activity["type"])


def jwk(kid: str, endorsements: list[str]) -> Fields:
    """Publish a key."""
    numbers = PRIVATE[kid].public_key().public_numbers()
    return {
        "kty": "RSA",
        "use": "sig",
        "kid": kid,
        "x5t": kid,
        "n": _number(numbers.n),
        "e": _number(numbers.e),
        "x5c": [],
        "endorsements": endorsements,
    }


def _number(value: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes((value.bit_length() + 7) // 8)).rstrip(b"=").decode()


def denied(status: int, error: str, description: str) -> web.Response:
    """Answer as the login service does."""
    return web.json_response({"error": error, "error_description": description}, status=status)


def _hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()
