"""A strict stand-in for QQ's bot platform: tokens, messages with their windows and budgets, and signed events."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

APP_ID, SECRET = "102000001", "DG5g3B4j9X2KOErG"
PUBLIC_URL = "https://bot.example.com/webhooks/qq"
Json = dict[str, Any]
CHINA = timezone(timedelta(hours=8))


def sign(timestamp: str, body: bytes, secret: str = SECRET) -> str:
    """Sign as the platform does."""
    seed = (secret * 32)[:32].encode()
    return Ed25519PrivateKey.from_private_bytes(seed).sign(timestamp.encode() + body).hex()


def headers(body: bytes, secret: str = SECRET, timestamp: str = "") -> dict[str, str]:
    """Return the headers of an event."""
    timestamp = timestamp or str(int(time.time()))
    return {
        "X-Bot-Appid": APP_ID,
        "User-Agent": "QQBot-Callback",
        "X-Signature-Timestamp": timestamp,
        "X-Signature-Ed25519": sign(timestamp, body, secret),
        "Content-Type": "application/json",
    }


class QqServer:
    """Use as `async with`. `faults`: (HTTP status, code) of the next sends; a negative status is after the fact."""

    def __init__(self) -> None:
        self.shown: dict[str, list[Json]] = {}
        self.windows: dict[str, float] = {}  # message: until when it can be replied to
        self.replies: dict[str, set[int]] = {}  # message: the msg_seq of its replies
        self.faults: deque[tuple[int, int]] = deque()
        self.calls: list[tuple[str, Json]] = []
        self.markdown = True
        self.may_write_first = False
        self.granted = 0
        self.expired: set[str] = set()
        self._ids = itertools.count(1)
        self._news = asyncio.Event()
        app = web.Application()
        app.router.add_post("/app/getAppAccessToken", self._grant)
        app.router.add_get("/users/@me", self._me)
        for scene in ("v2/users", "v2/groups", "channels", "dms"):
            app.router.add_post(f"/{scene}/{{id}}/messages", self._message)
        self._server = TestServer(app)

    async def __aenter__(self) -> QqServer:
        await self._server.start_server()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._server.close()

    @property
    def url(self) -> str:
        """QQ_API_BASE and QQ_TOKEN_BASE."""
        return str(self._server.make_url("/")).rstrip("/")

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a state of the chats."""
        async with asyncio.timeout(20):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def texts(self, chat: str) -> list[str]:
        """Return what a chat shows."""
        return [body.get("content") or body["markdown"]["content"] for body in self.shown.get(chat, [])]

    # -- events

    def event(self, kind: str, content: str, lives: float = 300, **fields: Any) -> Json:
        """Let somebody write; return the payload."""
        number = next(self._ids)
        id = f"ROBOT1.0_{number}"
        self.windows[id] = time.time() + lives
        where: dict[str, Json] = {
            "C2C_MESSAGE_CREATE": {"author": {"id": "U1", "user_openid": "U1"}},
            "GROUP_AT_MESSAGE_CREATE": {"author": {"id": "M1", "member_openid": "M1"}, "group_openid": "G1"},
            "GROUP_MESSAGE_CREATE": {"author": {"id": "M1", "member_openid": "M1"}, "group_openid": "G1"},
            "AT_MESSAGE_CREATE": {"author": {"id": "7", "username": "Ann"}, "channel_id": "C1", "guild_id": "D1"},
            "DIRECT_MESSAGE_CREATE": {"author": {"id": "7", "username": "Ann"}, "channel_id": "C2", "guild_id": "D2"},
        }
        written = datetime.now(CHINA).isoformat(timespec="seconds")
        d = {"id": id, "content": content, "timestamp": written, **where[kind], **fields}
        return {"op": 0, "s": number, "t": kind, "id": f"{kind}:evt{number}", "d": d}

    async def deliver(self, url: str, payload: Json, secret: str = SECRET) -> tuple[int, Json]:
        """Call the webhook; return status and JSON body of the response."""
        body = json.dumps(payload, ensure_ascii=False).encode()
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=body, headers=headers(body, secret)) as answer,
        ):
            return answer.status, await answer.json()

    # -- the API

    async def _grant(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body != {"appId": APP_ID, "clientSecret": SECRET}:
            return web.json_response({"code": 100016, "message": "invalid appid or secret"})
        self.granted += 1
        return web.json_response({"access_token": f"token-{self.granted}", "expires_in": "7200"})

    def _unauthorized(self, request: web.Request) -> web.Response | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme == "QQBot" and token == f"token-{self.granted}" and token not in self.expired:
            return None
        return _problem(401, 11244)

    async def _me(self, request: web.Request) -> web.Response:
        return self._unauthorized(request) or web.json_response({"id": "1", "username": "Magpie"})

    async def _message(self, request: web.Request) -> web.Response:
        if refused := self._unauthorized(request):
            return refused
        body = await request.json()
        self.calls.append((request.path, body))
        status, code = self.faults.popleft() if self.faults else (0, 0)
        if status > 0:
            return _problem(status, code)
        rich = request.path.startswith("/v2/")
        if code := self._mistake(body, rich) or self._late(body, rich):
            return _problem(500 if code == 40054005 else 400, code)
        self.shown.setdefault(request.match_info["id"], []).append(body)
        self._news.set()
        return _problem(-status, code) if status < 0 else web.json_response({"id": f"sent-{next(self._ids)}"})

    def _mistake(self, body: Json, rich: bool) -> int:
        markdown = body.get("markdown", {}).get("content", "")
        text = body.get("content") or markdown
        if rich and body.get("msg_type") != (2 if markdown else 0):
            return 22006
        if not rich and set(body) - {"content", "msg_id"}:
            return 304061
        if markdown and not self.markdown:
            return 50056
        if re.search(r"[a-z0-9]\.[a-z]{2,}", text):
            return 40054010
        return 40054007 if not 0 < len(text) <= 5000 else 0

    def _late(self, body: Json, rich: bool) -> int:
        if "msg_id" not in body:
            return 0 if self.may_write_first else 40034105
        id, seq = body["msg_id"], body.get("msg_seq", 1)
        used = self.replies.setdefault(id, set())
        if id not in self.windows:
            return 40034024
        if time.time() > self.windows[id]:
            return 40034005
        if rich and seq in used:
            return 40054005
        if len(used) >= 5:
            return 40034128
        used.add(seq if rich else len(used))
        return 0


def _problem(status: int, code: int) -> web.Response:
    return web.json_response({"message": "scripted", "code": code, "err_code": code, "trace_id": "t"}, status=status)
