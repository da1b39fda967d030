"""A strict stand-in for Lanying IM: its REST API, and the chats as people's clients would show them.

It refuses what the platform refuses (wrong token or app, ids as strings, `ext` as an object, unknown targets and
messages) and does a request with a known transaction_id only once. Point LANYING_API_BASE at `url`.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

Json = dict[str, Any]
APP, TOKEN, SIGNATURE = "magpie-app", "admin-token-secret", "callback-secret"
BOT, ANN, BEN, GROUP = 2417000000101, 2417000000202, 2417000000204, 2417000000303

TEXT, READ_ACK, RECALL, APPEND, REPLACE = 0, 9, 10, 11, 12
FIELDS: dict[str, tuple[type, bool]] = {  # field: type, required
    "type": (int, True),
    "targets": (list, True),
    "content_type": (int, True),
    "content": (str, True),
    "from_user_id": (int, False),
    "ext": (str, False),
    "config": (str, False),
    "attachment": (str, False),
    "related_mid": (int, False),
    "online_only": (bool, False),
    "transaction_id": (int, False),
}


@dataclass
class Shown:
    """A message as a client shows it."""

    id: int
    sender: int
    text: str
    ext: Json
    config: Json
    final: bool = False  # whether somebody who was offline gets this text too


@dataclass
class Fault:
    """What one coming call of /message/send is answered instead. `executed`: although it was done."""

    status: int = 200
    code: int = 200
    executed: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> web.Response:
        body = {"code": self.code, "data": self.code == 200, "message": "scripted"}
        return web.json_response(body, status=self.status, headers=self.headers)


@dataclass
class File:
    """A file behind the gateway: its bytes, or where the gateway redirects to. `readers` may fetch it."""

    data: bytes = b""
    redirect: str = ""
    readers: tuple[int, ...] = (ANN, BOT)


class Refusal(Exception):
    """A business error."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class LanyingServer:
    """One app with a bot, two people and a group. Use as `async with`."""

    def __init__(self) -> None:
        self.users: dict[int, str] = {BOT: "Magpie", ANN: "Ann", BEN: "Ben"}
        self.groups: dict[int, set[int]] = {GROUP: {BOT, ANN, BEN}}
        self.blocked_by: set[int] = set()
        self.chats: dict[int, list[Shown]] = {}  # by the other person's id, or the group's
        self.files: dict[str, File] = {}  # by file_sign
        self.faults: deque[Fault] = deque()
        self.budget: int | None = None  # calls before the rate limit; None: no limit
        self.sent: list[Json] = []  # bodies of /message/send, also of refused calls
        self.raw: list[bytes] = []
        self.seen: list[web.BaseRequest] = []  # every call
        self.receipts: list[int] = []
        self._incoming: dict[int, tuple[int, int]] = {}  # message id: (chat, sender), of people's messages
        self._done: dict[int, Json] = {}
        self._next_id = 6701000000000
        self._changed = asyncio.Condition()
        app = web.Application(middlewares=[self._front])
        app.router.add_route("POST", "/message/send", self._send)
        app.router.add_route("PUT", "/message/send", self._send)
        app.router.add_get("/user/profile", self._profile)
        app.router.add_get("/file/download/chat", self._download)
        self._server = TestServer(app)

    async def __aenter__(self) -> LanyingServer:
        await self._server.start_server()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._server.close()

    @property
    def url(self) -> str:
        """LANYING_API_BASE."""
        return str(self._server.make_url("/")).rstrip("/")

    def texts(self, chat: int = ANN) -> list[str]:
        """What everybody in a chat sees of the bot."""
        return [shown.text for shown in self.chats.get(chat, [])]

    async def until(self, holds: Callable[[], bool], seconds: float = 20) -> None:
        """Wait for a state of the chats. Raises TimeoutError."""
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(holds), seconds)

    def callback(
        self, text: str, user: int = ANN, group: int = 0, mention: Iterable[int | str] = (), **fields: object
    ) -> Json:
        """Let a person say something; return what the platform calls back."""
        self._next_id += 1
        self._incoming[self._next_id] = (group or user, user)
        return {
            "appId": APP,
            "msgId": str(self._next_id),
            "type": "GROUPCHAT" if group else "CHAT",
            "ctype": "TEXT",
            "content": text,
            "from": {"uid": str(user)},
            "to": {"uid": str(group or BOT)},
            "ext": "",
            "config": json.dumps({"mentionList": list(mention)}) if group else "",
            **fields,
        }

    async def deliver(self, url: str, callback: Json, signature: str = SIGNATURE) -> int:
        """Call a webhook back, as often as you like; return its status."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=callback, headers={"signature": signature}) as answer,
        ):
            await answer.read()
            return answer.status

    # -- the API ------------------------------------------------------------------------------------------------

    @web.middleware
    async def _front(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        """Check who calls; turn refusals into HTTP 200 with a code; tell those who wait."""
        self.seen.append(request)
        try:
            self._authorize(request)
            response: web.StreamResponse = await handler(request)
        except Refusal as refusal:
            response = web.json_response({"code": refusal.code, "data": None, "message": str(refusal)})
        async with self._changed:
            self._changed.notify_all()
        return response

    def _authorize(self, request: web.Request) -> None:
        if request.headers.get("app_id") != APP:
            raise Refusal(40000, "app_id missing or unknown")
        if "access-token" not in request.headers:
            raise Refusal(10003, "no access-token")
        if request.headers["access-token"] != TOKEN:
            raise Refusal(10008, "access-token invalid")

    async def _send(self, request: web.Request) -> web.Response:
        self.raw.append(await request.read())
        body = self._checked(request)
        if self.budget is not None:
            self.budget -= 1
            if self.budget < 0:
                raise Refusal(716, "too many requests")
        fault = self.faults.popleft() if self.faults else None
        if fault is None or fault.executed:
            answer = self._once(body)
        return fault.response() if fault else web.json_response(answer)

    def _checked(self, request: web.Request) -> Json:
        """Check the form of a request, then that everybody in it exists."""
        try:
            body = json.loads(self.raw[-1])
        except ValueError:
            raise Refusal(10002, "body is not JSON") from None
        if request.content_type != "application/json" or not isinstance(body, dict):
            raise Refusal(10002, "body is not a JSON object")
        self.sent.append(body)
        for name, (kind, required) in FIELDS.items():
            if required and name not in body:
                raise Refusal(10002, f"{name} missing")
            if name in body and type(body[name]) is not kind:
                raise Refusal(10002, f"{name} is not {kind.__name__}")
        if unknown := set(body) - set(FIELDS):
            raise Refusal(10002, f"unknown {unknown}")
        if body["type"] not in (1, 2) or not 0 <= body["content_type"] <= 12:
            raise Refusal(10002, "type or content_type out of range")
        if not body["targets"] or any(type(target) is not int for target in body["targets"]):
            raise Refusal(10002, "targets are int64")
        if not 0 < body.get("transaction_id", 1) < 2**63:
            raise Refusal(10002, "transaction_id is a positive int64")
        for name in ("ext", "config", "attachment"):
            _object(body.get(name, ""))
        for target in body["targets"]:
            self._reachable(body, target)
        if body["content_type"] >= READ_ACK:
            self._operable(body)
        return body

    def _reachable(self, body: Json, target: int) -> None:
        sender = body.get("from_user_id", 0)
        if sender and sender not in self.users:
            raise Refusal(10000, "sender does not exist")
        if body["type"] == 1 and target not in self.users:
            raise Refusal(10000, "user does not exist")
        if body["type"] == 1 and target in self.blocked_by:
            raise Refusal(10006, "blocked")
        if body["type"] == 2 and target not in self.groups:
            raise Refusal(20001, "group does not exist")
        if body["type"] == 2 and sender not in self.groups[target]:
            raise Refusal(20002, "not a member")

    def _operable(self, body: Json) -> None:
        """An operation belongs to a message of the same chat: a receipt to theirs, an edit to one's own."""
        chat, related = body["targets"][0], body.get("related_mid")
        if body["content_type"] == READ_ACK:
            if body["type"] != 1 or self._incoming.get(related or 0) != (chat, chat):
                raise Refusal(10002, "no such message to have read")
        elif not any(it.id == related and it.sender == body.get("from_user_id") for it in self.chats.get(chat, [])):
            raise Refusal(10002, "no such message to edit")

    def _once(self, body: Json) -> Json:
        transaction = body.get("transaction_id", 0)
        if transaction in self._done:
            return self._done[transaction]
        ids = [self._execute(body, target) for target in body["targets"]]
        answer: Json = {"code": 200, "data": True, "message": None}
        if len(ids) == 1:
            answer["msg_ids"] = ids
        if transaction:
            self._done[transaction] = answer
        return answer

    def _execute(self, body: Json, chat: int) -> int:
        self._next_id += 1
        ext, config = _object(body.get("ext", "")), _object(body.get("config", ""))
        kind, content, final = body["content_type"], body["content"], not body.get("online_only", False)
        if kind < READ_ACK:
            shown = Shown(self._next_id, body.get("from_user_id", 0), content, ext, config, final)
            self.chats.setdefault(chat, []).append(shown)
        elif kind == READ_ACK:
            self.receipts.append(body["related_mid"])
        elif kind == RECALL:
            self.chats[chat] = [it for it in self.chats[chat] if it.id != body["related_mid"]]
        else:
            shown = next(it for it in self.chats[chat] if it.id == body["related_mid"])
            shown.text = shown.text + content if kind == APPEND else content or shown.text
            shown.final = final
            _merge(shown.ext, ext)
            _merge(shown.config, config)
        return self._next_id  # also of an operation: it is not the id of the message

    async def _profile(self, request: web.Request) -> web.Response:
        user = int(request.headers.get("user_id", "0"))
        if user not in self.users:
            raise Refusal(10000, "user does not exist")
        profile = {"user_id": user, "username": f"user{user}", "nick_name": self.users[user], "avatar": ""}
        return web.json_response({"code": 200, "data": profile, "message": None})

    async def _download(self, request: web.Request) -> web.StreamResponse:
        file = self.files.get(request.query.get("file_sign", ""))
        if file is None or int(request.headers.get("user_id", "0")) not in file.readers:
            return web.json_response({"code": 402, "message": "Operation rejected"})
        if file.redirect:
            return web.Response(status=302, headers={"Location": file.redirect})
        return web.Response(body=file.data, content_type="application/octet-stream")


def _object(text: str) -> Json:
    """Read the JSON inside a string. Raises Refusal."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        raise Refusal(10002, "not JSON inside a string") from None
    if not isinstance(value, dict):
        raise Refusal(10002, "not an object inside a string")
    return value


def _merge(old: Json, new: Json) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            _merge(old[key], value)
        else:
            old[key] = value
