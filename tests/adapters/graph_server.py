"""A strict piece of Meta's Graph API on loopback: apps, tokens, subscriptions, signed webhooks.

Subclasses add a platform's own edges as methods: `post_messages` serves POST .../messages, `get_me` serves GET /me.
`script` makes calls fail in Meta's own form.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import json
import secrets
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web

VERSION = "/v25.0"
APP = "90010001"
Fields = dict[str, Any]


class Refusal(Exception):
    """An error of the Graph API: https://developers.facebook.com/docs/graph-api/guides/error-handling"""

    def __init__(
        self,
        status: int,
        code: int,
        message: str,
        subcode: int = 0,
        *,
        details: str = "",
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(f"{code} {message}")
        self.status = status
        self.headers = headers
        self.error: Fields = {"message": message, "type": "OAuthException", "code": code, "fbtrace_id": "Az8or2yhqkZ"}
        if subcode:
            self.error["error_subcode"] = subcode
        if details:
            self.error["error_data"] = {"messaging_product": "whatsapp", "details": details}
        self.error |= more


def bad(message: str, subcode: int = 0, details: str = "") -> Refusal:
    """A request that is wrong."""
    return Refusal(400, 100, f"(#100) {message}", subcode, details=details)


def expired(token: str = "") -> Refusal:
    """A token that is none, or no longer one. Meta repeats it."""
    return Refusal(401, 190, f"Malformed access token {token}" if token else "Error validating access token", 463)


@dataclass
class Cut:
    """The connection breaks; with `after` the call was carried out all the same."""

    after: bool = False


@dataclass
class Call:
    """One call of the bot."""

    method: str
    path: str
    fields: Fields
    token: str


@dataclass
class Subscription:
    """Where an app's events about one kind of object go."""

    callback_url: str
    fields: list[str]
    active: bool = True


@dataclass
class GraphServer:
    """One app, one access token. `about` is what the app's webhook is about."""

    about = ""
    token: str = "EAAG" + "t0ken" * 12
    app_secret: str = "0123456789abcdef0123456789abcdef"
    scopes: list[str] = field(default_factory=list)
    granular_scopes: list[Fields] = field(default_factory=list)
    expires_at: int = 0
    base: str = ""
    calls: list[Call] = field(default_factory=list)
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    scripts: dict[str, deque[Refusal | Cut]] = field(default_factory=lambda: defaultdict(deque))

    async def __aenter__(self) -> Self:
        self._ids = itertools.count(1)
        self._news = asyncio.Event()
        app = web.Application()
        app.router.add_route("*", VERSION + "/{path:.+}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.base = f"http://{host}:{port}{VERSION}"
        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._runner.cleanup()

    # -- for tests

    def script(self, edge: str, *outcomes: Refusal | Cut) -> None:
        """Make the next calls of an edge ("POST messages") fail in these ways, one each."""
        self.scripts[edge].extend(outcomes)

    def called(self, edge: str) -> list[Fields]:
        """Return the fields of every call of an edge."""
        return [call.fields for call in self.calls if f"{call.method} {call.path.split('/')[-1]}" == edge]

    async def until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Wait until the bot's calls have made the condition true."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def next_id(self, prefix: str) -> str:
        """Return an id that was not used before."""
        return f"{prefix}{next(self._ids):04d}"

    # -- webhooks

    async def deliver(self, notification: Fields) -> int:
        """Call the webhook once, escaped and signed as Meta does it; return the status it answered."""
        body = json.dumps(notification).replace("/", "\\/").encode()
        digest = hmac.new(self.app_secret.encode(), body, hashlib.sha256).hexdigest()
        headers = {"X-Hub-Signature-256": f"sha256={digest}", "Content-Type": "application/json"}
        url = self.subscriptions[self.about].callback_url
        async with self._session.post(url, data=body, headers=headers) as answer:
            return answer.status

    async def _handshake(self, url: str, verify_token: str) -> None:
        challenge = str(secrets.randbelow(10**10))
        query = {"hub.mode": "subscribe", "hub.challenge": challenge, "hub.verify_token": verify_token}
        try:
            async with self._session.get(url, params=query) as answer:
                if answer.status == 200 and await answer.text() == challenge:
                    return
        except aiohttp.ClientError:
            pass
        raise Refusal(400, 2200, f"(#2200) Callback verification failed with the following errors: {url}")

    # -- the API

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._do(request)
        except Refusal as error:
            return web.json_response({"error": error.error}, status=error.status, headers=error.headers)

    async def _do(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (self.token, f"{APP}|{self.app_secret}"):
            raise expired(token)
        fields = await self._fields(request)
        self.calls.append(Call(request.method, path, fields, token))
        script = self.scripts[f"{request.method} {path.split('/')[-1]}"]
        outcome = script.popleft() if script else None
        if isinstance(outcome, Refusal):
            raise outcome
        result = await self._result(request.method, path, fields, token) if outcome != Cut() else None
        self._news.set()
        if outcome:
            assert request.transport is not None
            request.transport.abort()
        return result if isinstance(result, web.Response) else web.json_response(result)

    @staticmethod
    async def _fields(request: web.Request) -> Fields:
        fields = dict(request.query)
        if request.can_read_body:
            if request.content_type != "application/json":
                raise bad("Unsupported content type")
            fields |= await request.json()
        return fields

    async def _result(self, method: str, path: str, fields: Fields, token: str) -> object:
        own = token.startswith(f"{APP}|")
        if path == f"{APP}/subscriptions":
            if not own:
                raise Refusal(403, 200, "(#200) This call requires an app access token")
            return await self._subscribe(fields) if method == "POST" else self._subscribed()
        if path == "debug_token":
            return self._debugged(fields, own)
        if path == "app":
            return {"id": APP}
        act = self.find(method, path)
        if act is None:
            raise bad(f"Unsupported {method.lower()} request. Object with ID '{path}' does not exist", 33)
        return act(fields)

    def find(self, method: str, path: str) -> Callable[[Fields], object] | None:
        """Return what serves a platform's own edge, None when there is no such thing."""
        raise NotImplementedError

    def _debugged(self, fields: Fields, own: bool) -> Fields:
        if not own:
            raise bad("You must provide an app access token, or a user access token that is an owner of the app")
        if fields["input_token"] != self.token:
            return {"data": {"is_valid": False, "scopes": [], "error": {"code": 190, "message": "Malformed"}}}
        told = {"scopes": self.scopes, "granular_scopes": self.granular_scopes, "expires_at": self.expires_at}
        return {"data": {"app_id": APP, "type": "SYSTEM_USER", "is_valid": True, **told}}

    async def _subscribe(self, fields: Fields) -> Fields:
        names = fields["fields"].split(",")
        await self._handshake(fields["callback_url"], fields["verify_token"])
        self.subscriptions[fields["object"]] = Subscription(fields["callback_url"], names)
        return {"success": True}

    def _subscribed(self) -> Fields:
        return {
            "data": [
                {
                    "object": name,
                    "callback_url": one.callback_url,
                    "active": one.active,
                    "fields": [{"name": topic, "version": "v25.0"} for topic in one.fields],
                }
                for name, one in self.subscriptions.items()
            ]
        }


def units(text: str) -> int:
    """Count UTF-16 units."""
    return len(text.encode("utf-16-le")) // 2
