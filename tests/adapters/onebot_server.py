"""A strict stand-in for a OneBot v11 implementation: its HTTP API, the account's chats, and the events it reports."""

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

TOKEN, SECRET = "api-token", "event-secret"
ME, ANN, GROUP = 10001000, 12345678, 123
LONGEST = 4500
Json = dict[str, Any]


def signature(body: bytes) -> str:
    """Sign as OneBot does."""
    return "sha1=" + hmac.new(SECRET.encode(), body, hashlib.sha1).hexdigest()


def text(words: str) -> Json:
    """Return a text segment."""
    return {"type": "text", "data": {"text": words}}


def at(qq: int | str) -> Json:
    """Return a mention."""
    return {"type": "at", "data": {"qq": str(qq)}}


class OnebotServer:
    """Use as `async with`. `faults`: what the next sends answer, an HTTP status or a failed envelope."""

    def __init__(self) -> None:
        self.shown: dict[str, list[str]] = {}
        self.replied: list[str] = []  # ids of the messages that were answered by a reply segment
        self.calls: list[tuple[str, Json]] = []
        self.faults: deque[int | Json] = deque()
        self.files: dict[str, Json] = {}
        self.muted: set[int] = set()
        self.online = True
        self._ids = itertools.count(1)
        self._news = asyncio.Event()
        app = web.Application()
        app.router.add_post("/{action}", self._serve)
        self._actions: dict[str, Callable[[Json], Json]] = {
            "send_private_msg": self._private,
            "send_group_msg": self._group,
            "set_input_status": lambda body: _ok(None),
            "get_login_info": lambda body: _ok({"user_id": ME, "nickname": "Magpie"}),
            "get_status": lambda body: _ok({"online": self.online, "good": True}),
            "get_image": self._file,
            "get_file": self._file,
            "get_record": self._file,
        }
        self._server = TestServer(app)

    async def __aenter__(self) -> OnebotServer:
        await self._server.start_server()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._server.close()

    @property
    def url(self) -> str:
        """ONEBOT_API_BASE."""
        return str(self._server.make_url("/")).rstrip("/")

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a state of the chats."""
        async with asyncio.timeout(20):
            while not condition():
                self._news.clear()
                await self._news.wait()

    # -- events

    def event(self, message: Any, group: int = 0, user: int = ANN, **fields: Any) -> Json:
        """Let somebody write `message` (segments or a string with CQ codes); return the event."""
        number = next(self._ids)
        where = {"message_type": "group", "group_id": group} if group else {"message_type": "private"}
        return {
            "time": int(time.time()),
            "self_id": ME,
            "post_type": "message",
            "sub_type": "normal" if group else "friend",
            "message_id": -2147483000 + number,
            "user_id": user,
            "message": message,
            "raw_message": "",
            "font": 14,
            "sender": {"user_id": user, "nickname": "Ann", "card": "Ann of the group" if group else ""},
            **where,
            **fields,
        }

    async def deliver(self, url: str, event: Json, sign: Callable[[bytes], str] = signature) -> tuple[int, bytes]:
        """Report an event; return status and body of the response."""
        body = json.dumps(event, ensure_ascii=False).encode()
        headers = {"X-Self-ID": str(ME), "X-Signature": sign(body), "Content-Type": "application/json"}
        async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as answer:
            return answer.status, await answer.read()

    # -- the API

    async def _serve(self, request: web.Request) -> web.Response:
        given = request.headers.get("authorization")
        if given != f"Bearer {TOKEN}":
            return web.json_response(_failed(1403, "token"), status=403 if given else 401)
        if request.content_type != "application/json":
            return web.Response(status=406)
        action, body = request.match_info["action"], await request.json()
        if action not in self._actions:
            return web.json_response(_failed(1404, "no such action"), status=404)
        self.calls.append((action, body))
        if action.startswith("send") and self.faults:
            fault = self.faults.popleft()
            if isinstance(fault, int):
                return web.Response(status=fault, headers={"Retry-After": "0"})
            return web.json_response(fault)
        return web.json_response(self._actions[action](body))

    def _private(self, body: Json) -> Json:
        return self._send(body, body.get("user_id"), "")

    def _group(self, body: Json) -> Json:
        if body.get("group_id") in self.muted:
            return _failed(1200, "发送失败，你已被禁言")
        return self._send(body, body.get("group_id"), "group:")

    def _send(self, body: Json, receiver: object, kind: str) -> Json:
        segments = body.get("message")
        if not isinstance(receiver, int) or not isinstance(segments, list) or not segments:
            return _failed(1400, "bad parameters")
        words = "".join(segment["data"]["text"] for segment in segments if segment["type"] == "text")
        if {segment["type"] for segment in segments} - {"text", "reply"} or not words:
            return _failed(1400, "bad segments")
        if len(words) > LONGEST:
            return _failed(1200, "too long")
        self.replied += [segment["data"]["id"] for segment in segments if segment["type"] == "reply"]
        self.shown.setdefault(f"{kind}{receiver}", []).append(words)
        self._news.set()
        return _ok({"message_id": next(self._ids)})

    def _file(self, body: Json) -> Json:
        return _ok(self.files[body["file"]]) if body.get("file") in self.files else _failed(1200, "file not found")


def _ok(data: object) -> Json:
    return {"status": "ok", "retcode": 0, "data": data, "message": "", "wording": "", "echo": None}


def _failed(retcode: int, wording: str) -> Json:
    return {"status": "failed", "retcode": retcode, "data": None, "message": wording, "wording": wording}


failed = _failed


def encoded(data: bytes) -> str:
    """Return a file as an implementation hands it over."""
    return base64.b64encode(data).decode()
