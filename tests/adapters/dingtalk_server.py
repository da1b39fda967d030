"""A strict DingTalk on loopback: it refuses what DingTalk refuses, and writes down what people would see.

    async with DingtalkServer() as dingtalk:
        dingtalk.webhook = "http://127.0.0.1:8080/webhooks/dingtalk"
        await dingtalk.deliver(dingtalk.text("hello"))  # calls the webhook, signed
        [shown] = dingtalk.shown()

Codes are those of https://open.dingtalk.com/document/development/error-code. `script` makes calls fail.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp import web

from bot.adapter import Request

CLIENT, SECRET = "dingclient", "this is a secret"
TEMPLATE = "02fcf2f4-5e02-4a85-b672-46d1f715543e.schema"
ADA, OUTSIDER = "user01", ""
DIRECT, GROUP = "cidDirect==", "cidGroup=="
LARGEST = 20_000  # bytes of a message
KEYS = {"sampleMarkdown": ("title", "text"), "sampleText": ("content",)}
Json = dict[str, Any]


class Refusal(Exception):
    """An answer that is a failure; an int is the `errcode` of an HTTP 200."""

    def __init__(self, code: str | int, message: str = "", status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = 200 if isinstance(code, int) else status

    @property
    def body(self) -> Json:
        """What is answered."""
        if isinstance(self.code, int):
            return {"errcode": self.code, "errmsg": self.message}
        return {"code": self.code, "message": self.message, "requestid": "r1"}


FLOOD = ("Forbidden.AccessDenied.QpsLimitForAppkeyAndApi", "qps limit", 403)


def flood() -> Refusal:
    """Too many calls a second."""
    return Refusal(*FLOOD)


@dataclass
class Cut:
    """The connection breaks; with `after` the call was carried out all the same."""

    after: bool = False


@dataclass
class Shown:
    """A message or a card as people see it. `history` holds every text a card had."""

    chat: str
    kind: str  # "markdown", "text", "card"
    text: str
    by: str = "robot"  # or "webhook"
    title: str = ""
    status: str = ""  # of a card: "2" is being written, "3" finished, "5" failed
    final: bool = False
    history: list[str] = field(default_factory=list)


@dataclass
class Call:
    """One call of the bot."""

    path: str
    body: Json


class DingtalkServer:
    """DingTalk for one app with a robot."""

    def __init__(self) -> None:
        self.base = self.webhook = ""
        self.staff = {ADA}
        self.groups = {GROUP}
        self.cards = True  # False: the app may not use cards
        self.reachable = True  # False: cards are made but do not reach the chat
        self.content_key = "msgContent"
        self.seen: list[Shown] = []
        self.tracks: dict[str, Shown] = {}
        self.files: dict[str, bytes] = {}
        self.elsewhere: dict[str, str] = {}  # files that lie on another host: code -> URL
        self.calls: list[Call] = []
        self.tokens: list[str] = []
        self.sessions: dict[str, str] = {}  # session -> chat
        self._valid = ""
        self._guids: set[str] = set()
        self._numbers = itertools.count(1)
        self._scripts: dict[str, deque[Refusal | Cut]] = defaultdict(deque)
        self._news = asyncio.Event()

    async def __aenter__(self) -> DingtalkServer:
        app = web.Application()
        app.router.add_get("/files/{code}", self._file)
        app.router.add_route("*", "/{path:.+}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.base = f"http://{host}:{port}"
        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._runner.cleanup()

    def settings(self, **changes: object) -> Json:
        """Return the settings of the bot for this app."""
        given = {"client_id": CLIENT, "client_secret": SECRET, "api_base": self.base or "http://127.0.0.1:9"}
        return {**given, **changes}

    # -- the people's side

    def message(self, kind: str, chat: str = DIRECT, staff: str = ADA, lives: float = 5400, **more: Any) -> Json:
        """Let a person write; return the callback, not yet delivered. The session webhook lives for some seconds."""
        number = next(self._numbers)
        self.sessions[f"s{number}"] = chat
        return {
            "conversationId": chat,
            "conversationType": "1" if chat == DIRECT else "2",
            "chatbotCorpId": "ding1",
            "chatbotUserId": "$:LWCP_v1:$bot",
            "msgId": f"msg{number}",
            "senderNick": "Ada",
            "senderStaffId": staff,
            "senderId": "$:LWCP_v1:$ada",
            "senderCorpId": "ding1",
            "isAdmin": False,
            "sessionWebhook": f"{self.base}/robot/sendBySession?session=s{number}",
            "sessionWebhookExpiredTime": int((time.time() + lives) * 1000),
            "createAt": int(time.time() * 1000),
            "robotCode": CLIENT,
            "msgtype": kind,
            **({"isInAtList": True, "conversationTitle": "Team"} if chat == GROUP else {}),
            **more,
        }

    def text(self, text: str, chat: str = DIRECT, **more: Any) -> Json:
        """Let a person write a text."""
        return self.message("text", chat, text={"content": text}, **more)

    def request(self, callback: Json | bytes, at: float | None = None) -> Request:
        """Return a callback as it is delivered."""
        body = callback if isinstance(callback, bytes) else json.dumps(callback).encode()
        now = str(int((at or time.time()) * 1000))
        return Request(headers={"timestamp": now, "sign": sign(now)}, body=body)

    async def deliver(self, callback: Json) -> int:
        """Call the webhook; return the status."""
        request = self.request(callback)
        async with self._session.post(self.webhook, data=request.body, headers=request.headers) as answer:
            await answer.read()
            return answer.status

    # -- the test's side

    def shown(self, chat: str = DIRECT) -> list[Shown]:
        """Return what the robot shows in a chat, oldest first."""
        return [it for it in self.seen if it.chat == chat]

    def done(self, chat: str = DIRECT) -> list[Shown]:
        """Return what is not being written any more."""
        return [it for it in self.shown(chat) if it.status in ("", "3")]

    def expire(self) -> None:
        """Make the access token invalid."""
        self._valid = ""

    def script(self, path: str, *outcomes: Refusal | Cut) -> None:
        """Make the next calls of a path fail in these ways, one each."""
        self._scripts[path].extend(outcomes)

    def called(self, path: str) -> list[Json]:
        """Return the bodies of every call of a path."""
        return [call.body for call in self.calls if call.path == path]

    async def until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Wait until the bot's calls have made the condition true."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()

    # -- the bot's side

    def _routes(self) -> dict[tuple[str, str], Callable[[Json], Json]]:
        return {
            ("POST", "v1.0/oauth2/accessToken"): self._grant,
            ("POST", "v1.0/robot/oToMessages/batchSend"): self._to_person,
            ("POST", "v1.0/robot/groupMessages/send"): self._to_group,
            ("POST", "v1.0/robot/messageFiles/download"): self._locate,
            ("POST", "v1.0/card/instances/createAndDeliver"): self._make,
            ("PUT", "v1.0/card/instances"): self._update,
            ("PUT", "v1.0/card/streaming"): self._stream,
        }

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        path, raw = request.match_info["path"], await request.read()
        call = Call(path, json.loads(raw or b"{}"))
        self.calls.append(call)
        script = self._scripts[path]
        outcome = script.popleft() if script else None
        try:
            if isinstance(outcome, Refusal):
                raise outcome
            if isinstance(outcome, Cut) and not outcome.after:
                return self._hang_up(request)
            answer = self._answer(request, call, len(raw))
        except Refusal as error:
            return web.json_response(error.body, status=error.status)
        finally:
            self._news.set()
        return self._hang_up(request) if outcome is not None else web.json_response(answer)

    def _answer(self, request: web.Request, call: Call, size: int) -> Json:
        token = request.headers.get("x-acs-dingtalk-access-token", "")
        if call.path == "robot/sendBySession":
            assert not token, "the session webhook must not see the token"
            return self._by_session(request.query.get("session", ""), call.body, size)
        route = self._routes().get((request.method, call.path))
        if route is None:
            raise Refusal("InvalidAction.NotFound", "no such path", 404)
        if call.path != "v1.0/oauth2/accessToken" and token != self._valid:
            raise Refusal("InvalidAuthentication", "不合法的access_token")
        return route(call.body)

    def _grant(self, body: Json) -> Json:
        if (body.get("appKey"), body.get("appSecret")) != (CLIENT, SECRET):
            raise Refusal("invalidClientIdOrSecret", "无效的clientId或者clientSecret")
        if not self._valid:
            self._valid = f"token-{next(self._numbers)}"
            self.tokens.append(self._valid)
        return {"accessToken": self._valid, "expireIn": 7200}

    def _by_session(self, session: str, body: Json, size: int) -> Json:
        if session not in self.sessions:
            raise Refusal(300001, "session is not exist or expired")
        kind = body.get("msgtype", "")
        content = body.get(kind)
        if kind not in ("text", "markdown") or not isinstance(content, dict):
            raise Refusal(400402, "msgtype is wrong")
        if size > LARGEST:
            raise Refusal(460101, "message too long, exceed 20000 bytes")
        text = content["content"] if kind == "text" else content["text"]
        self._show(Shown(self.sessions[session], kind, text, "webhook", content.get("title", "")))
        return {"errcode": 0, "errmsg": "ok"}

    def _to_person(self, body: Json) -> Json:
        users = body.get("userIds")
        if not isinstance(users, list) or not 1 <= len(users) <= 20:
            raise Refusal("invalidParameter.userIds", "")
        known = [user for user in users if user in self.staff]
        for _ in known:
            self._show(self._read(body, DIRECT))
        return {
            "processQueryKey": f"key{next(self._numbers)}",
            "invalidStaffIdList": [user for user in users if user not in self.staff],
            "flowControlledStaffIdList": [],
        }

    def _to_group(self, body: Json) -> Json:
        if body.get("openConversationId") not in self.groups:
            raise Refusal("invalidParameter.openConversationId", "机器人不在群里")
        self._show(self._read(body, body["openConversationId"]))
        return {"processQueryKey": f"key{next(self._numbers)}"}

    def _read(self, body: Json, chat: str) -> Shown:
        if body.get("robotCode") != CLIENT:
            raise Refusal("invalidParameter.robotCode.notExsit", "")
        key, parameters = body.get("msgKey", ""), body.get("msgParam")
        if key not in KEYS or not isinstance(parameters, str):
            raise Refusal("invalidParameter.msgParam.invalid", "")
        content = json.loads(parameters)
        if sorted(content) != sorted(KEYS[key]) or not all(isinstance(text, str) and text for text in content.values()):
            raise Refusal("invalidParameter.msgParam.invalid", "")
        kind = "text" if key == "sampleText" else "markdown"
        return Shown(chat, kind, content.get("text") or content["content"], "robot", content.get("title", ""))

    def _show(self, shown: Shown) -> None:
        if not shown.text.strip():
            raise Refusal("invalidParameter", "empty text")
        self.seen.append(shown)

    # -- cards

    def _make(self, body: Json) -> Json:
        self._scope("Card.Instance.Write")
        if body.get("cardTemplateId") != TEMPLATE:
            raise Refusal("param.templateNotExist", "")
        track = body.get("outTrackId", "")
        if not track or track in self.tracks:
            raise Refusal("param.outTrackIdDuplicated", "")
        space = re.fullmatch(r"dtv1\.card//(IM_GROUP|IM_ROBOT)\.(.+)", body.get("openSpaceId", ""))
        if not space:
            raise Refusal("param.openSpaceIdInvalid", "")
        group = space[1] == "IM_GROUP"
        model = body.get("imGroupOpenDeliverModel" if group else "imRobotOpenDeliverModel", {})
        if model.get("robotCode") != CLIENT or (not group and model.get("spaceType") != "IM_ROBOT"):
            raise Refusal("param.deliverModelInvalid", "")
        reached = self.reachable and space[2] in (self.groups if group else self.staff)
        values = self._values(body)
        shown = Shown(space[2] if group else DIRECT, "card", values.get(self.content_key, ""), "robot")
        shown.status = values["flowStatus"]
        shown.history.append(shown.text)
        self.tracks[track] = shown
        if reached:
            self.seen.append(shown)
        result = {"spaceType": space[1], "spaceId": space[2], "success": reached, "errorMsg": "" if reached else "no"}
        return {"success": True, "result": {"outTrackId": track, "deliverResults": [result]}}

    def _stream(self, body: Json) -> Json:
        self._scope("Card.Streaming.Write")
        card = self.tracks.get(body.get("outTrackId", ""))
        if card is None or body.get("key") != self.content_key:
            raise Refusal("unknownError", "", 500)
        guid = body.get("guid")
        if not isinstance(guid, str) or guid in self._guids:
            raise Refusal("param.guidInvalid", "")
        self._guids.add(guid)
        if card.final:
            raise Refusal("param.streamFinalized", "")
        if not isinstance(body.get("content"), str) or body.get("isFull") is not True:
            raise Refusal("param.contentInvalid", "")
        card.text, card.final = body["content"], body["isFinalize"]
        card.history.append(card.text)
        return {"success": True, "result": True}

    def _update(self, body: Json) -> Json:
        self._scope("Card.Instance.Write")
        card = self.tracks.get(body.get("outTrackId", ""))
        if card is None:
            raise Refusal("param.outTrackIdNotExist", "")
        if body.get("cardUpdateOptions") != {"updateCardDataByKey": True}:
            raise Refusal("a test must keep the other data", "")
        values = self._values(body)
        card.text, card.status = values.get(self.content_key, card.text), values["flowStatus"]
        return {"success": True, "result": True}

    @staticmethod
    def _values(body: Json) -> dict[str, str]:
        values = body.get("cardData", {}).get("cardParamMap")
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            raise Refusal("param.cardDataInvalid", "")
        return values

    def _scope(self, scope: str) -> None:
        if not self.cards:
            text = f"应用尚未开通所需的权限：[{scope}]，点击链接申请 secret-words"
            raise Refusal("Forbidden.AccessDenied.AccessTokenPermissionDenied", text, 403)

    # -- files

    def _locate(self, body: Json) -> Json:
        code = body.get("downloadCode", "")
        if body.get("robotCode") != CLIENT or code not in {*self.files, *self.elsewhere}:
            raise Refusal("invalidParameter.downloadCode", "")
        return {"downloadUrl": self.elsewhere.get(code) or f"{self.base}/files/{code}"}

    async def _file(self, request: web.Request) -> web.Response:
        assert "x-acs-dingtalk-access-token" not in request.headers
        return web.Response(body=self.files[request.match_info["code"]])

    @staticmethod
    def _hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()


def sign(timestamp: str, secret: str = SECRET) -> str:
    """Sign as DingTalk does."""
    return base64.b64encode(
        hmac.new(secret.encode(), f"{timestamp}\n{secret}".encode(), hashlib.sha256).digest()
    ).decode()
