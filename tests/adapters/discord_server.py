"""A strict Discord on loopback: its API, its Gateway, and the people who write. It refuses what Discord refuses.

    async with DiscordServer() as discord:
        adapter = DiscordAdapter(settings(api_base=discord.base, bot_token=discord.token, ...), context)
        alice = discord.direct("Alice")
        await discord.say(alice, "hello")  # by the Gateway, to whoever listens
        await discord.command(alice, "chat", message="hello")  # to the interactions endpoint, or by the Gateway
        [shown] = discord.shown(alice)

Codes are those of https://docs.discord.com/developers/topics/opcodes-and-status-codes. `script` makes calls fail.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import aiohttp
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC_KEY = KEY.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()
APP_ID = "1100000000000000001"
BOT_ID = "1100000000000000002"
GUILD = "1200000000000000000"
TOKEN = "MTEwMDAwMDAw.GtestX.not-a-real-token"
EPOCH = 1_420_070_400_000
LONGEST = 2000  # characters
MESSAGE_FIELDS = {"content", "allowed_mentions", "flags"}
CREATE_FIELDS = MESSAGE_FIELDS | {"nonce", "enforce_nonce", "message_reference"}
PRIVILEGED = 1 << 1 | 1 << 8 | 1 << 15
KNOWN_INTENTS = sum(1 << bit for bit in (*range(17), 20, 21, 24, 25))
AGENT = re.compile(r"DiscordBot \(https?://[^\s,]+, [\w.]+\)")
Fields = dict[str, Any]


class Refusal(Exception):
    """An answer other than 2xx."""

    def __init__(self, status: int, code: int, message: str = "No", **more: Any) -> None:
        super().__init__(f"{status} {code} {message}")
        self.status = status
        self.headers: dict[str, str] = more.pop("headers", {})
        self.body = {"code": code, "message": message, **more}


def flood(seconds: float, everywhere: bool = False) -> Refusal:
    """429: come back in `seconds`."""
    scope = {"X-RateLimit-Scope": "global" if everywhere else "user", "Retry-After": str(int(seconds) + 1)}
    return Refusal(429, 0, "You are being rate limited.", headers=scope, retry_after=seconds, **{"global": everywhere})


def bad(field: str) -> Refusal:
    """A body that is wrong in one field."""
    return Refusal(400, 50035, "Invalid Form Body", errors={field: {"_errors": [{"code": "INVALID"}]}})


@dataclass
class Cut:
    """The connection breaks; with `after` the call was carried out all the same."""

    after: bool = False


@dataclass
class LastOne:
    """The call goes well and uses up its bucket for so many seconds."""

    seconds: float


Outcome = Refusal | Cut | LastOne


@dataclass
class Call:
    """One call of the bot. `route` is like "POST /channels/{channel}/messages"."""

    route: str
    fields: Any
    headers: dict[str, str]


@dataclass
class Shown:
    """A message of the bot as people see it. `history` holds every text it had."""

    id: str
    history: list[str] = field(default_factory=list)
    reply_to: str | None = None
    flags: int = 0
    pings: list[str] = field(default_factory=list)
    thinking: bool = False

    @property
    def text(self) -> str:
        """What it says now."""
        return self.history[-1] if self.history else ""

    def become(self, fields: Fields) -> None:
        """Show another text."""
        self.history.append(fields["content"])
        self.flags = fields.get("flags", self.flags)
        self.pings = pings(fields)
        self.thinking = False


@dataclass
class Channel:
    """A direct chat, a channel or a thread of a server."""

    id: str
    name: str
    kind: Literal["direct", "guild"]
    posts: dict[str, Shown] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)  # ids of what people wrote
    nonces: dict[str, str] = field(default_factory=dict)
    typings: int = 0
    history: bool = True  # whether the bot may read what was written before
    lost: Refusal | None = None  # why the bot may not write here


@dataclass
class Opened:
    """An interaction whose token works. `whispers` are answers that only the person sees."""

    channel: Channel
    original: Shown | None = None
    posts: set[str] = field(default_factory=set)
    whispers: list[str] = field(default_factory=list)
    refusal: Refusal | None = None


@dataclass
class GatewaySession:
    """What one identify began. `events` are all it was told."""

    id: str
    events: list[Fields] = field(default_factory=list)
    socket: web.WebSocketResponse | None = None
    closed_by_us: bool = False


class DiscordServer:
    """Discord for one application."""

    def __init__(self, *, beat: float = 41_250) -> None:
        self.token = TOKEN
        self.beat = beat  # milliseconds between heartbeats
        self.deaf = False  # heartbeats are not acknowledged
        self.sessions_left = 1000
        self.reset_after = 0.0  # milliseconds
        self.intents_allowed = KNOWN_INTENTS & ~PRIVILEGED
        self.base = ""
        self.endpoint: str | None = None
        self.commands: list[Fields] = []
        self.channels: dict[str, Channel] = {}
        self.interactions: dict[str, Opened] = {}
        self.files: dict[str, bytes] = {}
        self.calls: list[Call] = []
        self.sessions: dict[str, GatewaySession] = {}
        self.identified: list[Fields] = []
        self.resumed: list[Fields] = []
        self.beats: list[int | None] = []
        self.closed_with: list[int | None] = []  # close codes of the bot
        self.connected_to: list[str] = []  # gateway paths
        self._scripts: dict[str, deque[Outcome]] = defaultdict(deque)
        self._serial = itertools.count()
        self._news = asyncio.Event()

    async def __aenter__(self) -> DiscordServer:
        app = web.Application()
        for route, handler in ROUTES.items():
            method, path = route.split(" ")
            app.router.add_route(method, path, self._route(route, handler))
        app.router.add_get("/gateway/", self._gateway)
        app.router.add_get("/resume/", self._gateway)
        app.router.add_get("/attachments/{name}", self._file)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.base = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        for session in self.sessions.values():
            if session.socket:
                await session.socket.close(code=1001)
        await self._runner.cleanup()

    def snowflake(self) -> str:
        """Return a new id, which holds the time."""
        return str((int(time.time() * 1000) - EPOCH) << 22 | next(self._serial))

    # -- the people's side

    def direct(self, name: str) -> Channel:
        """Let a person open a direct chat with the bot."""
        return self._open(name, "direct")

    def channel(self, name: str) -> Channel:
        """Open a channel, or a thread, in the server that the bot is in."""
        return self._open(name, "guild")

    def _open(self, name: str, kind: Literal["direct", "guild"]) -> Channel:
        channel = Channel(self.snowflake(), name, kind)
        self.channels[channel.id] = channel
        return channel

    def shown(self, channel: Channel) -> list[Shown]:
        """Return the bot's messages in a channel, oldest first."""
        return list(channel.posts.values())

    async def until(self, condition: Callable[[], object], seconds: float = 30) -> None:
        """Wait until what the bot did makes the condition true."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def called(self, route: str) -> list[Any]:
        """Return the fields of every call of a route."""
        return [call.fields for call in self.calls if call.route == route]

    def script(self, route: str, *outcomes: Outcome) -> None:
        """Decide how the next calls of a route end."""
        assert route in ROUTES
        self._scripts[route].extend(outcomes)

    def written(self, channel: Channel, text: str = "", *, by: str = "Alice", **more: Any) -> Fields:
        """Let a person write; return the message as the bot is told it, without asking for its content."""
        mentioned = [self.user(id) for id in dict.fromkeys(re.findall(r"<@!?(\d+)>", text))]
        message = {
            "id": self.snowflake(),
            "type": 0,
            "channel_id": channel.id,
            "author": self.user(person(by), by),
            "content": text,
            "mentions": mentioned,
            "mention_roles": [],
            "mention_everyone": "@everyone" in text,
            "attachments": [],
            "embeds": [],
            "timestamp": "2026-11-20T12:00:00.000000+00:00",
            **({"guild_id": GUILD, "member": {"nick": None, "roles": []}} if channel.kind == "guild" else {}),
            **more,
        }
        if channel.kind == "guild" and BOT_ID not in [user["id"] for user in message["mentions"]]:
            message |= {"content": "", "attachments": [], "embeds": []}
        channel.written.append(message["id"])
        return message

    async def say(self, channel: Channel, text: str = "", **more: Any) -> Fields:
        """Let a person write into a channel, and tell the Gateway."""
        message = self.written(channel, text, **more)
        await self.dispatch("MESSAGE_CREATE", message)
        return message

    def user(self, id: str, name: str = "") -> Fields:
        """Return a user object."""
        name = name or ("Magpie" if id == BOT_ID else f"user{id}")
        return {"id": id, "username": name.lower(), "global_name": name, "bot": id == BOT_ID, "discriminator": "0"}

    def interaction(
        self, channel: Channel, name: str, *, by: str = "Alice", locale: str = "en-US", **options: Any
    ) -> Fields:
        """Return a slash command that somebody sends."""
        guild = channel.kind == "guild"
        who = self.user(person(by), by)
        chosen = [{"name": option, "type": 3, "value": value} for option, value in options.items()]
        return {
            "id": self.snowflake(),
            "application_id": APP_ID,
            "type": 2,
            "token": f"aW50ZXJhY3Rpb24_{self.snowflake()}",
            "version": 1,
            "channel_id": channel.id,
            "context": 0 if guild else 1,
            "locale": locale,
            "data": {"id": "1", "type": 1, "name": name, "options": chosen},
            **({"guild_id": GUILD, "member": {"user": who, "nick": None}} if guild else {"user": who}),
        }

    async def command(self, channel: Channel, name: str, **more: Any) -> Opened:
        """Send a slash command and wait for the bot's first answer."""
        interaction = self.interaction(channel, name, **more)
        if self.endpoint:
            status, answer = await self.deliver(interaction)
            assert status == 200, "Discord shows: The application did not respond"
            self._answered(interaction, answer)
        else:
            self.interactions[interaction["token"]] = Opened(channel, refusal=Refusal(404, 10015, "Unknown Webhook"))
            await self.dispatch("INTERACTION_CREATE", interaction)
            await self.until(lambda: self.interactions[interaction["token"]].refusal is None)
        return self.interactions[interaction["token"]]

    async def deliver(self, interaction: Fields, tamper: bytes = b"") -> tuple[int, Fields]:
        """Call the interactions endpoint as Discord does; `tamper` is appended after the body was signed."""
        assert self.endpoint
        body = json.dumps(interaction).encode()
        async with asyncio.timeout(3 if not tamper else 10):
            async with self._session.post(self.endpoint, data=body + tamper, headers=signature(body)) as answer:
                text = await answer.read()
                return answer.status, json.loads(text) if answer.content_type == "application/json" else {}

    def _answered(self, interaction: Fields, answer: Fields) -> None:
        """Carry out the first answer to an interaction."""
        channel = self.channels[interaction["channel_id"]]
        opened = self.interactions[interaction["token"]] = Opened(channel)
        if answer["type"] == 5:
            opened.original = Shown(self.snowflake(), thinking=True)
            channel.posts[opened.original.id] = opened.original
            opened.posts.add(opened.original.id)
        elif answer["type"] == 4:
            assert answer["data"]["flags"] == 64
            opened.whispers.append(answer["data"]["content"])
        else:
            raise AssertionError(f"not an answer to a command: {answer}")
        self._news.set()

    # -- the API

    def _route(self, route: str, handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                return await self._handle(request, route, handler)
            except Refusal as error:
                return web.json_response(error.body, status=error.status, headers=error.headers)

        return handle

    async def _handle(self, request: web.Request, route: str, handler: Handler) -> web.StreamResponse:
        if not AGENT.fullmatch(request.headers.get("User-Agent", "")):
            return web.Response(status=403, text="<html>Access denied | Cloudflare</html>", content_type="text/html")
        by_token = route.split()[1].startswith(("/webhooks/", "/interactions/"))
        if not by_token and request.headers.get("Authorization") != f"Bot {self.token}":
            raise Refusal(401, 0, "401: Unauthorized")
        fields = await request.json() if request.can_read_body else {}
        self.calls.append(Call(route, fields, dict(request.headers)))
        outcome = self._scripts[route].popleft() if self._scripts[route] else None
        if isinstance(outcome, Refusal):
            raise outcome
        if isinstance(outcome, Cut) and not outcome.after:
            return hang_up(request)
        result = await handler(self, request.match_info, fields)
        self._news.set()
        if isinstance(outcome, Cut):
            return hang_up(request)
        left = ("0", str(outcome.seconds)) if outcome else ("4", "1.0")
        headers = {
            "X-RateLimit-Limit": "5",
            "X-RateLimit-Remaining": left[0],
            "X-RateLimit-Reset-After": left[1],
            "X-RateLimit-Bucket": f"bucket of {route}",
        }
        if result is None:
            return web.Response(status=204, headers=headers)
        return web.json_response(result, headers=headers)

    def _place(self, match: web.UrlMappingMatchInfo) -> Channel:
        channel = self.channels.get(match["channel"])
        if channel is None:
            raise Refusal(404, 10003, "Unknown Channel")
        if channel.lost:
            raise channel.lost
        return channel

    async def _create(self, match: web.UrlMappingMatchInfo, fields: Fields) -> Fields:
        channel = self._place(match)
        checked(fields, CREATE_FIELDS)
        nonce = fields.get("nonce")
        if nonce is not None and not (isinstance(nonce, str) and 0 < len(nonce) <= 25):
            raise bad("nonce")
        if fields.get("enforce_nonce") and nonce in channel.nonces:
            id = channel.nonces[nonce]
            return told(channel.posts.get(id) or Shown(id, ["a message that was deleted since"]))
        shown = Shown(self.snowflake(), reply_to=replied(channel, fields.get("message_reference")))
        shown.become(fields)
        channel.posts[shown.id] = shown
        if nonce:
            channel.nonces[nonce] = shown.id
        return told(shown)

    async def _edit(self, match: web.UrlMappingMatchInfo, fields: Fields) -> Fields:
        channel = self._place(match)
        checked(fields, MESSAGE_FIELDS)
        if match["message"] in channel.written:
            raise Refusal(403, 50005, "Cannot edit a message authored by another user")
        return edited(channel.posts.get(match["message"]), fields)

    async def _typing(self, match: web.UrlMappingMatchInfo, fields: Fields) -> None:
        self._place(match).typings += 1

    def _opened(self, match: web.UrlMappingMatchInfo) -> Opened:
        opened = self.interactions.get(match["token"])
        if match["app"] != APP_ID or opened is None:
            raise Refusal(404, 10015, "Unknown Webhook")
        if opened.refusal:
            raise opened.refusal
        return opened

    async def _follow(self, match: web.UrlMappingMatchInfo, fields: Fields) -> Fields:
        opened = self._opened(match)
        checked(fields, MESSAGE_FIELDS)
        if opened.original and opened.original.thinking:
            return edited(opened.original, fields)
        shown = Shown(self.snowflake())
        shown.become(fields)
        opened.channel.posts[shown.id] = shown
        opened.posts.add(shown.id)
        return told(shown)

    async def _edit_by_token(self, match: web.UrlMappingMatchInfo, fields: Fields) -> Fields:
        opened = self._opened(match)
        checked(fields, MESSAGE_FIELDS)
        id = match["message"]
        if id == "@original":
            id = opened.original.id if opened.original else ""
        return edited(opened.channel.posts.get(id) if id in opened.posts else None, fields)

    async def _callback(self, match: web.UrlMappingMatchInfo, fields: Fields) -> None:
        opened = self.interactions.get(match["token"])
        if opened is None:
            raise Refusal(404, 10062, "Unknown interaction")
        if opened.refusal is None:
            raise Refusal(400, 40060, "Interaction has already been acknowledged.")
        self._answered({"channel_id": opened.channel.id, "token": match["token"]}, fields)

    async def _application(self, match: web.UrlMappingMatchInfo, fields: Fields) -> Fields:
        return {
            "id": APP_ID,
            "name": "Magpie",
            "verify_key": PUBLIC_KEY,
            "interactions_endpoint_url": self.endpoint,
            "bot": self.user(BOT_ID),
        }

    async def _change(self, match: web.UrlMappingMatchInfo, fields: Fields) -> Fields:
        if set(fields) != {"interactions_endpoint_url"}:
            raise bad("body")
        before, self.endpoint = self.endpoint, fields["interactions_endpoint_url"]
        if not await self._endpoint_works():
            self.endpoint = before
            raise bad("interactions_endpoint_url")
        return await self._application(match, {})

    async def _endpoint_works(self) -> bool:
        """Try an endpoint as Discord does: a PING that is signed, and one that is not."""
        ping = {"id": self.snowflake(), "application_id": APP_ID, "type": 1, "token": "t", "version": 1}
        try:
            return (await self.deliver(ping)) == (200, {"type": 1}) and (await self.deliver(ping, b" "))[0] == 401
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _set_commands(self, match: web.UrlMappingMatchInfo, fields: Any) -> list[Fields]:
        if match["app"] != APP_ID:
            raise Refusal(403, 20012, "You are not authorized to perform this action on this application")
        if not isinstance(fields, list):
            raise bad("body")
        for command in fields:
            named(command)
            options = command.get("options", [])
            for option in options:
                named(option)
            if [option["required"] for option in options] != sorted((o["required"] for o in options), reverse=True):
                raise bad("options")
        self.commands = [{"id": self.snowflake(), "application_id": APP_ID, **command} for command in fields]
        return self.commands

    async def _get_commands(self, match: web.UrlMappingMatchInfo, fields: Fields) -> list[Fields]:
        return self.commands

    async def _address(self, match: web.UrlMappingMatchInfo, fields: Fields) -> Fields:
        left = {"total": 1000, "remaining": self.sessions_left, "reset_after": self.reset_after, "max_concurrency": 1}
        return {"url": self.base.replace("http", "ws") + "/gateway", "shards": 1, "session_start_limit": left}

    async def _file(self, request: web.Request) -> web.StreamResponse:
        self.calls.append(Call("GET /attachments/{name}", {}, dict(request.headers)))
        content = self.files.get(request.match_info["name"])
        if content is None or "ex" not in request.query:
            raise web.HTTPNotFound
        return web.Response(body=content)

    # -- the Gateway

    async def dispatch(self, event: str, data: Fields) -> None:
        """Tell every session about an event, those without a connection when they are resumed."""
        for session in self.sessions.values():
            frame = {"op": 0, "t": event, "s": len(session.events) + 1, "d": data}
            session.events.append(frame)
            if session.socket and not session.socket.closed:
                await session.socket.send_json(frame)

    async def send(self, op: int, data: Any = None) -> None:
        """Send a frame on every connection."""
        for session in self._connected():
            assert session.socket
            await session.socket.send_json({"op": op, "d": data})

    async def close(self, code: int) -> None:
        """Close every connection with a code."""
        for session in self._connected():
            assert session.socket
            session.closed_by_us = True
            await session.socket.close(code=code)

    def forget(self) -> None:
        """Drop all sessions, as Discord does after a few minutes."""
        self.sessions.clear()

    def listening(self) -> bool:
        """Whether somebody holds a connection with a session."""
        return bool(self._connected())

    def _connected(self) -> list[GatewaySession]:
        return [session for session in self.sessions.values() if session.socket and not session.socket.closed]

    async def _gateway(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.connected_to.append(request.path)
        if dict(request.query) != {"v": "10", "encoding": "json"}:
            await socket.close(code=4012)
            return socket
        await socket.send_json({"op": 10, "d": {"heartbeat_interval": self.beat}})
        session: GatewaySession | None = None
        async for message in socket:
            session = await self._heard(socket, session, message)
            self._news.set()
        if not (session and session.closed_by_us):
            self.closed_with.append(socket.close_code)
            if session and socket.close_code in (1000, 1001):
                self.sessions.pop(session.id, None)
        self._news.set()
        return socket

    async def _heard(
        self, socket: web.WebSocketResponse, session: GatewaySession | None, message: aiohttp.WSMessage
    ) -> GatewaySession | None:
        """Take one frame of the bot."""
        if message.type is not aiohttp.WSMsgType.TEXT or len(message.data.encode()) > 4096:
            await socket.close(code=4002)
            return session
        frame = json.loads(message.data)
        op, data = frame["op"], frame["d"]
        if op == 1:
            self.beats.append(data)
            if not self.deaf:
                await socket.send_json({"op": 11})
        elif op in (2, 6) and session:
            await socket.close(code=4005)
        elif op == 2:
            return await self._identify(socket, data)
        elif op == 6:
            return await self._resume(socket, data)
        else:
            await socket.close(code=4001 if session else 4003)
        return session

    async def _identify(self, socket: web.WebSocketResponse, data: Fields) -> GatewaySession | None:
        self.identified.append(data)
        self.sessions_left -= 1
        checks = (
            (data.get("token") != self.token, 4004),
            (not {"os", "browser", "device"} <= data.get("properties", {}).keys(), 4002),
            (data.get("intents", 0) & ~KNOWN_INTENTS or not data.get("intents"), 4013),
            (data.get("intents", 0) & ~self.intents_allowed, 4014),
        )
        if refused := [code for wrong, code in checks if wrong]:
            await socket.close(code=refused[0])
            return None
        session = GatewaySession(self.snowflake(), socket=socket)
        self.sessions[session.id] = session
        resume = self.base.replace("http", "ws") + "/resume"
        ready = {
            "v": 10,
            "session_id": session.id,
            "resume_gateway_url": resume,
            "user": self.user(BOT_ID),
            "guilds": [],
        }
        frame = {"op": 0, "t": "READY", "s": 1, "d": ready}
        session.events.append(frame)
        await socket.send_json(frame)
        return session

    async def _resume(self, socket: web.WebSocketResponse, data: Fields) -> GatewaySession | None:
        self.resumed.append(data)
        session = self.sessions.get(data["session_id"])
        if data["token"] != self.token:
            await socket.close(code=4004)
        elif session is None:
            await socket.send_json({"op": 9, "d": False})
        elif not isinstance(data["seq"], int) or data["seq"] > len(session.events):
            await socket.close(code=4007)
        else:
            session.socket, session.closed_by_us = socket, False
            for frame in session.events[data["seq"] :]:
                await socket.send_json(frame)
            await socket.send_json({"op": 0, "t": "RESUMED", "s": len(session.events), "d": {}})
            return session
        return None


Handler = Callable[[DiscordServer, web.UrlMappingMatchInfo, Any], Awaitable[Any]]
CREATE, EDIT = "POST /channels/{channel}/messages", "PATCH /channels/{channel}/messages/{message}"
FOLLOW, EDIT_BY_TOKEN = "POST /webhooks/{app}/{token}", "PATCH /webhooks/{app}/{token}/messages/{message}"
TYPING, CALLBACK = "POST /channels/{channel}/typing", "POST /interactions/{id}/{token}/callback"
APPLICATION, CHANGE = "GET /applications/@me", "PATCH /applications/@me"
SET_COMMANDS, GET_COMMANDS = "PUT /applications/{app}/commands", "GET /applications/{app}/commands"
ADDRESS = "GET /gateway/bot"
ROUTES: dict[str, Handler] = {
    CREATE: DiscordServer._create,
    EDIT: DiscordServer._edit,
    FOLLOW: DiscordServer._follow,
    EDIT_BY_TOKEN: DiscordServer._edit_by_token,
    TYPING: DiscordServer._typing,
    CALLBACK: DiscordServer._callback,
    APPLICATION: DiscordServer._application,
    CHANGE: DiscordServer._change,
    SET_COMMANDS: DiscordServer._set_commands,
    GET_COMMANDS: DiscordServer._get_commands,
    ADDRESS: DiscordServer._address,
}


def signature(body: bytes, timestamp: str = "") -> dict[str, str]:
    """Sign a body as Discord does."""
    timestamp = timestamp or str(int(time.time()))
    return {
        "content-type": "application/json",
        "x-signature-ed25519": KEY.sign(timestamp.encode() + body).hex(),
        "x-signature-timestamp": timestamp,
    }


def person(name: str) -> str:
    """Return the id of a person."""
    return str(1_300_000_000_000_000_000 + sum(name.encode()))


def hang_up(request: web.Request) -> web.StreamResponse:
    """Break the connection."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def checked(fields: Fields, known: set[str]) -> None:
    """Refuse a message that Discord refuses, or that holds a field we did not mean to send."""
    if unknown := set(fields) - known:
        raise bad(unknown.pop())
    content = fields.get("content")
    if not isinstance(content, str) or len(content) > LONGEST:
        raise bad("content")
    if not content.strip():
        raise Refusal(400, 50006, "Cannot send an empty message")
    if fields.get("flags", 0) & ~4:
        raise bad("flags")


def replied(channel: Channel, reference: Fields | None) -> str | None:
    """Return the message that is replied to."""
    if reference is None:
        return None
    if not channel.history:
        raise Refusal(403, 160002, "Cannot reply without permission to read message history")
    if reference["message_id"] in channel.written:
        return str(reference["message_id"])
    if reference.get("fail_if_not_exists", True):
        raise bad("message_reference")
    return None


def edited(shown: Shown | None, fields: Fields) -> Fields:
    """Edit a message of the bot."""
    if shown is None:
        raise Refusal(404, 10008, "Unknown Message")
    shown.become(fields)
    return told(shown)


def told(shown: Shown) -> Fields:
    """Return a message object; Discord strips what stands around the text."""
    return {"id": shown.id, "content": shown.text.strip(), "author": {"id": BOT_ID, "bot": True}}


def pings(fields: Fields) -> list[str]:
    """Return who is notified by a message."""
    found = re.findall(r"@everyone|@here|<@!?\d+>|<@&\d+>", fields["content"])
    allowed = fields.get("allowed_mentions")
    return found if allowed is None or allowed.get("parse", ["everyone"]) or allowed.get("replied_user") else []


def named(thing: Fields) -> None:
    """Refuse a command or an option without a proper name and description."""
    if not re.fullmatch(r"[-_a-z0-9]{1,32}", thing["name"]):
        raise bad("name")
    said = [thing["description"], *thing["description_localizations"].values()]
    if not all(1 <= len(text) <= 100 for text in said) or thing["type"] not in range(1, 12):
        raise bad("description")
    if not thing["description_localizations"].keys() <= {"zh-CN", "zh-TW", "en-US", "en-GB"}:
        raise bad("description_localizations")
