"""A strict stand-in for the Messaging API: one channel, its people, and what they see."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

TOKEN, SECRET = "channel-token", "channel-secret"
Json = dict[str, Any]


def signature(body: bytes) -> str:
    """Sign as LINE does."""
    return base64.b64encode(hmac.new(SECRET.encode(), body, hashlib.sha256).digest()).decode()


class LineServer:
    """Use as `async with`. `faults`: statuses of the next calls to reply or push; a negative one is after the fact."""

    def __init__(self) -> None:
        self.shown: dict[str, list[str]] = {}
        self.tokens: dict[str, tuple[str, float]] = {}  # reply token: (chat, valid until)
        self.keys: dict[str, str] = {}  # retry key: what was sent with it
        self.faults: deque[int] = deque()
        self.calls: list[tuple[str, Json]] = []
        self.endpoint: Json = {"endpoint": "", "active": True}
        self._ids = itertools.count(1)
        self._news = asyncio.Event()
        app = web.Application()
        app.router.add_post("/v2/bot/message/reply", self._reply)
        app.router.add_post("/v2/bot/message/push", self._push)
        app.router.add_post("/v2/bot/chat/loading/start", self._loading)
        app.router.add_get("/v2/bot/message/{id}/content", self._content)
        app.router.add_get("/v2/bot/info", self._info)
        app.router.add_route("*", "/v2/bot/channel/webhook/endpoint", self._endpoint)
        app.router.add_post("/v2/bot/channel/webhook/test", self._test)
        self._server = TestServer(app)

    async def __aenter__(self) -> LineServer:
        await self._server.start_server()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._server.close()

    @property
    def url(self) -> str:
        """LINE_API_BASE."""
        return str(self._server.make_url("/")).rstrip("/")

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a state of the chats."""
        async with asyncio.timeout(20):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def event(self, text: str, user: str = "U1", group: str = "", lives: float = 60, **message: Any) -> Json:
        """Let somebody write; return the event."""
        number = next(self._ids)
        chat = group or user
        self.tokens[f"token{number}"] = (chat, time.time() + lives)
        source = {"type": "group", "groupId": group, "userId": user} if group else {"type": "user", "userId": user}
        return {
            "type": "message",
            "mode": "active",
            "webhookEventId": f"01H{number}",
            "deliveryContext": {"isRedelivery": False},
            "timestamp": 1_790_000_000_000,
            "source": source,
            "replyToken": f"token{number}",
            "message": {"id": str(number), "type": "text", "text": text, "quoteToken": "q", **message},
        }

    async def deliver(self, url: str, *events: Json, sign: Callable[[bytes], str] = signature) -> int:
        """Call a webhook; return its status."""
        body = json.dumps({"destination": "Ubot", "events": events}).encode()
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=body, headers={"X-Line-Signature": sign(body)}) as answer,
        ):
            return answer.status

    # -- the API

    async def _take(self, request: web.Request) -> Json:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            raise web.HTTPUnauthorized(text='{"message":"Authentication failed"}')
        body = await request.json()
        self.calls.append((request.path.rpartition("/")[2], body))
        return body  # type: ignore[no-any-return]

    def _fault(self, after: bool) -> None:
        if self.faults and (self.faults[0] < 0) == after:
            status = abs(self.faults.popleft())
            text = {429: "The API rate limit has been exceeded. Try again later."}.get(status, "scripted")
            answer = web.Response(status=status, text=json.dumps({"message": text}))
            raise _Stop(answer)

    async def _reply(self, request: web.Request) -> web.Response:
        body = await self._take(request)
        return await self._send(request, body, self._token(body.get("replyToken", "")))

    async def _push(self, request: web.Request) -> web.Response:
        body = await self._take(request)
        key = request.headers.get("x-line-retry-key", "")
        if key in self.keys:
            return _problem(409, "The retry key is already accepted")
        return await self._send(request, body, body.get("to", ""), key)

    async def _send(self, request: web.Request, body: Json, chat: str, key: str = "") -> web.Response:
        try:
            self._fault(after=False)
            if not chat:
                return _problem(400, "Invalid reply token")
            messages = body.get("messages", [])
            if not 1 <= len(messages) <= 5:
                return _problem(400, "The request body has 1 error(s)")
            for message in messages:
                text = message.get("text", "")
                if message.get("type") != "text" or not 1 <= len(text.encode("utf-16-le")) // 2 <= 5000:
                    return _problem(400, "Length must be between 0 and 5000")
                self.shown.setdefault(chat, []).append(text)
            self.tokens.pop(body.get("replyToken", ""), None)
            if key:
                self.keys[key] = chat
            self._news.set()
            self._fault(after=True)
        except _Stop as stop:
            return stop.answer
        return web.json_response({"sentMessages": [{"id": "1"}]})

    def _token(self, token: str) -> str:
        chat, until = self.tokens.get(token, ("", 0.0))
        return chat if time.time() < until else ""

    async def _loading(self, request: web.Request) -> web.Response:
        body = await self._take(request)
        if not body["chatId"].startswith("U") or body["loadingSeconds"] % 5 or not 5 <= body["loadingSeconds"] <= 60:
            return _problem(400, "bad request")
        return web.json_response({}, status=202)

    async def _content(self, request: web.Request) -> web.Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _problem(401, "Authentication failed")
        return web.Response(body=b"picture " + request.match_info["id"].encode())

    async def _info(self, request: web.Request) -> web.Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _problem(401, "Authentication failed")
        return web.json_response({"displayName": "Magpie", "chatMode": "bot"})

    async def _endpoint(self, request: web.Request) -> web.Response:
        if request.method == "PUT":
            self.endpoint["endpoint"] = (await self._take(request))["endpoint"]
            return web.json_response({})
        return web.json_response(self.endpoint)

    async def _test(self, request: web.Request) -> web.Response:
        return web.json_response({"success": True, "statusCode": 200, "reason": "OK", "detail": "200"})


class _Stop(Exception):
    def __init__(self, answer: web.Response) -> None:
        super().__init__()
        self.answer = answer


def _problem(status: int, text: str) -> web.Response:
    return web.json_response({"message": text}, status=status)
