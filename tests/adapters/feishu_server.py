"""A strict Feishu on loopback: it refuses what Feishu refuses, and writes down what people would see.

    async with FeishuServer() as feishu:
        feishu.webhook = "http://127.0.0.1:8080/webhooks/feishu"
        await feishu.say("hello")  # calls the webhook, encrypted and signed
        [shown] = feishu.shown()

Errors carry the codes of https://open.feishu.cn/document/server-docs/im-v1/message/create. `script` makes calls fail.
"""

from __future__ import annotations

import asyncio
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

from adapters.feishu.crypto import encrypt, signature
from bot.adapter import Request

APP, SECRET, TOKEN, KEY = "cli_a1", "app-secret", "verification-token", "encrypt key"
BOT, ADA = "ou_bot", "ou_ada"
DIRECT, GROUP = "oc_direct", "oc_group"
LARGEST = 30 * 1024  # bytes of a card
HIGHEST = 2**31 - 1  # of the sequence numbers
SCOPES = {"im:message:send_as_bot", "im:resource", "cardkit:card:write"}
Json = dict[str, Any]


class Refusal(Exception):
    """An answer other than code 0. The platform says most of them with HTTP 400, some with 200."""

    def __init__(self, code: int, message: str = "", status: int = 400, **headers: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass
class Cut:
    """The connection breaks; with `after` the call was carried out all the same."""

    after: bool = False


@dataclass
class Card:
    """A card. `history` holds every text it had."""

    data: Json
    streaming: bool
    sequence: int = 0
    sent: bool = False
    history: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text it shows."""
        content = self.data["body"]["elements"][0]["content"]
        assert isinstance(content, str)
        return content

    @property
    def summary(self) -> str:
        """What the list of chats says."""
        if self.streaming:
            return "[生成中...]"
        return str(self.data["config"].get("summary", {}).get("content", ""))

    def become(self, text: str) -> None:
        """Show another text."""
        self.data["body"]["elements"][0]["content"] = text
        self.history.append(text)


@dataclass
class Shown:
    """A message as people see it: a card, or a plain text."""

    id: str
    chat: str
    by_bot: bool = True
    plain: str = ""
    card: Card | None = None
    entity: str = ""  # the id of a card that was made with CardKit
    reply_to: str = ""
    thread: bool = False
    recalled: bool = False

    @property
    def text(self) -> str:
        """The text, however it is shown."""
        return self.card.text if self.card else self.plain


@dataclass
class Call:
    """One call of the bot."""

    method: str
    path: str
    query: dict[str, str]
    body: Json


class FeishuServer:
    """The open platform for one app. `key` is the encrypt key, "" for plain events."""

    def __init__(self, key: str = KEY) -> None:
        self.key = key
        self.base = self.webhook = ""
        self.scopes = set(SCOPES)
        self.cards = True  # False: every card is refused
        self.members = {DIRECT, GROUP}  # chats that the bot is in
        self.status = 2
        self.messages: dict[str, Shown] = {}
        self.entities: dict[str, Card] = {}
        self.files: dict[str, bytes] = {}
        self.calls: list[Call] = []
        self.tokens: list[str] = []
        self._valid = ""
        self._uuids: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self._scripts: dict[str, deque[Refusal | Cut]] = defaultdict(deque)
        self._news = asyncio.Event()

    async def __aenter__(self) -> FeishuServer:
        app = web.Application()
        app.router.add_route("*", "/open-apis/{path:.+}", self._serve)
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
        given = {"app_id": APP, "app_secret": SECRET, "verification_token": TOKEN, "encrypt_key": self.key}
        return {**given, "api_base": self.base or "http://127.0.0.1:9", **changes}

    # -- the people's side

    def message(self, content: Json, kind: str = "text", chat: str = DIRECT, **more: Any) -> Json:
        """Let a person write; return the event, not yet delivered."""
        id = f"om_{next(self._numbers)}"
        self.messages[id] = Shown(id, chat, by_bot=False)
        return self.event(
            "im.message.receive_v1",
            {
                "sender": {
                    "sender_id": {"open_id": ADA, "user_id": "u1", "union_id": "on_1"},
                    "sender_type": "user",
                    "tenant_key": "t1",
                },
                "message": {
                    "message_id": id,
                    "create_time": "1609073151345",
                    "chat_id": chat,
                    "chat_type": "p2p" if chat == DIRECT else "group",
                    "message_type": kind,
                    "content": json.dumps(content),
                    **more,
                },
            },
        )

    def mention(self, text: str, *people: tuple[str, str], chat: str = GROUP, **more: Any) -> Json:
        """Let a person write in a group; "@1" in the text is the first of the people (open_id, name)."""
        people = people or ((BOT, "Magpie"),)
        mentions = [
            {"key": f"@_user_{n}", "id": {"open_id": id, "user_id": None}, "name": name, "tenant_key": "t1"}
            for n, (id, name) in enumerate(people, 1)
        ]
        return self.message({"text": re.sub(r"@(?=\d)", "@_user_", text)}, chat=chat, mentions=mentions, **more)

    def event(self, kind: str, event: Json) -> Json:
        """Return an event in its envelope."""
        header = {"event_id": f"e{next(self._numbers)}", "event_type": kind, "create_time": "1608725989000"}
        header |= {"token": TOKEN, "app_id": APP, "tenant_key": "t1"}
        return {"schema": "2.0", "header": header, "event": event}

    def handshake(self, challenge: str = "ajls384kdjx98XX", token: str = TOKEN) -> Request:
        """Return what the console sends when the URL is saved. It is not signed."""
        body = json.dumps({"challenge": challenge, "token": token, "type": "url_verification"}).encode()
        return Request(body=self._sealed(body))

    def request(self, event: Json, at: float | None = None) -> Request:
        """Return an event as it is delivered."""
        return self.sealed(json.dumps(event).encode(), at)

    def sealed(self, plain: bytes, at: float | None = None) -> Request:
        """Return any bytes as an event is delivered."""
        body = self._sealed(plain)
        now = str(int(at or time.time()))
        headers = {"x-lark-request-timestamp": now, "x-lark-request-nonce": "af1b2c3d"}
        if self.key:
            headers["x-lark-signature"] = signature(self.key, now, "af1b2c3d", body)
        return Request(headers=headers, body=body)

    def _sealed(self, plain: bytes) -> bytes:
        return json.dumps({"encrypt": encrypt(self.key, plain)}).encode() if self.key else plain

    async def say(self, text: str) -> Json:
        """Let a person write to the bot; return the event."""
        event = self.message({"text": text})
        await self.deliver(event)
        return event

    async def deliver(self, event: Json) -> int:
        """Call the webhook as the platform does, which waits three seconds; return the status."""
        request = self.request(event)
        limit = aiohttp.ClientTimeout(total=3)
        async with self._session.post(
            self.webhook, data=request.body, headers=request.headers, timeout=limit
        ) as answer:
            await answer.read()
            return answer.status

    # -- the test's side

    def shown(self, chat: str = DIRECT) -> list[Shown]:
        """Return the bot's messages in a chat, oldest first."""
        return [it for it in self.messages.values() if it.by_bot and it.chat == chat and not it.recalled]

    def done(self, chat: str = DIRECT) -> list[Shown]:
        """Return those that do not stream any more."""
        return [it for it in self.shown(chat) if it.card is None or not it.card.streaming]

    def recall(self, id: str) -> None:
        """Let somebody take back a message."""
        self.messages[id].recalled = True
        self._news.set()

    def end_streams(self) -> None:
        """End every stream, as the platform does after ten minutes."""
        for card in self.entities.values():
            card.streaming = False

    def expire(self) -> None:
        """Make the access token invalid."""
        self._valid = ""

    def script(self, call: str, *outcomes: Refusal | Cut) -> None:
        """Make the next calls fail in these ways, one each; `call` is the name of the method that serves them."""
        self._scripts[call].extend(outcomes)

    def called(self, name: str) -> list[Call]:
        """Return the calls that one method has served."""
        return [call for call in self.calls if self._route(call)[0] == name]

    async def until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Wait until the bot's calls have made the condition true."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._news.clear()
                await self._news.wait()

    # -- the bot's side

    ROUTES = (
        ("POST", r"auth/v3/tenant_access_token/internal", "grant"),
        ("GET", r"bot/v3/info", "info"),
        ("POST", r"im/v1/messages", "create"),
        ("POST", r"im/v1/messages/(\w+)/reply", "reply"),
        ("PATCH", r"im/v1/messages/(\w+)", "patch"),
        ("DELETE", r"im/v1/messages/(\w+)", "delete"),
        ("GET", r"im/v1/messages/(\w+)/resources/(\w+)", "file"),
        ("POST", r"cardkit/v1/cards", "make"),
        ("PUT", r"cardkit/v1/cards/(\w+)", "swap"),
        ("PUT", r"cardkit/v1/cards/(\w+)/elements/(\w+)/content", "stream"),
        ("PATCH", r"cardkit/v1/cards/(\w+)/settings", "close"),
    )

    def _route(self, call: Call) -> tuple[str, tuple[str, ...]]:
        for method, pattern, name in self.ROUTES:
            if method == call.method and (found := re.fullmatch(pattern, call.path)):
                return name, found.groups()
        return "", ()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        call = Call(request.method, request.match_info["path"], dict(request.query), json.loads(raw or b"{}"))
        self.calls.append(call)
        name, ids = self._route(call)
        script = self._scripts[name]
        outcome = script.popleft() if script else None
        try:
            if isinstance(outcome, Refusal):
                raise outcome
            if isinstance(outcome, Cut) and not outcome.after:
                return self._hang_up(request)
            if not name:
                raise Refusal(99991400 - 99, "no such path", 404)
            if name != "grant":
                self._authorize(request)
            answer = getattr(self, f"_{name}")(call, *ids)
        except Refusal as error:
            text = {"code": error.code, "msg": error.message}
            return web.json_response(text, status=error.status, headers=error.headers)
        finally:
            self._news.set()
        if outcome is not None:
            return self._hang_up(request)
        return web.Response(body=answer) if isinstance(answer, bytes) else web.json_response({"code": 0, **answer})

    def _authorize(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not given:
            raise Refusal(99991661, "Missing access token for authorization.")
        if given != self._valid:
            raise Refusal(99991663, "Invalid access token for authorization.")

    def _scope(self, scope: str) -> None:
        if scope not in self.scopes:
            raise Refusal(99991672, f"Access denied. One of the following scopes is required: [{scope}]. secret-words")

    def _grant(self, call: Call) -> Json:
        if call.body.get("app_id") != APP:
            raise Refusal(10003, "invalid param", 200)
        if call.body.get("app_secret") != SECRET:
            raise Refusal(10014, "app secret invalid", 200)
        if not self._valid:
            self._valid = f"t-{next(self._numbers)}"
            self.tokens.append(self._valid)
        return {"tenant_access_token": self._valid, "expire": 7200}

    def _info(self, call: Call) -> Json:
        return {"bot": {"open_id": BOT, "app_name": "Magpie", "activate_status": self.status}}

    def _create(self, call: Call) -> Json:
        if call.query.get("receive_id_type") != "chat_id":
            raise Refusal(99992402, "field validation failed")
        return self._posted(call.body, call.body["receive_id"])

    def _reply(self, call: Call, id: str) -> Json:
        if not isinstance(call.body.get("reply_in_thread"), bool):
            raise Refusal(99992402, "field validation failed")
        question = self._found(id)
        return self._posted(call.body, question.chat, id, call.body["reply_in_thread"])

    def _posted(self, body: Json, chat: str, reply_to: str = "", thread: bool = False) -> Json:
        self._scope("im:message:send_as_bot")
        if chat not in self.members:
            raise Refusal(230002, "Bot/User can NOT be out of the chat.")
        uuid = body.get("uuid", "")
        if not isinstance(uuid, str) or len(uuid) > 50:
            raise Refusal(99992402, "field validation failed: uuid")
        if uuid and uuid in self._uuids:
            return {"data": {"message_id": self._uuids[uuid]}}
        shown = Shown(f"om_{next(self._numbers)}", chat, reply_to=reply_to, thread=thread)
        self._fill(shown, body.get("msg_type", ""), self._loaded(body.get("content")))
        self.messages[shown.id] = shown
        self._uuids[uuid] = shown.id
        return {"data": {"message_id": shown.id, "chat_id": chat}}

    def _fill(self, shown: Shown, kind: str, content: Json) -> None:
        if kind == "text" and isinstance(content.get("text"), str) and content["text"]:
            shown.plain = content["text"]
            return
        if kind != "interactive":
            raise Refusal(230001, "invalid msg_type or content")
        if content.get("type") == "card":
            shown.entity = content["data"]["card_id"]
            shown.card = self._entity(shown.entity)
            if shown.card.sent:
                raise Refusal(230099, "Failed to create card content, ext=ErrCode: 11320; ErrMsg: card was sent before")
            shown.card.sent = True
        else:
            shown.card = self._valid_card(content)

    def _patch(self, call: Call, id: str) -> Json:
        shown = self._found(id)
        if not shown.by_bot or shown.card is None or shown.entity:
            raise Refusal(230001, "this message cannot be updated")
        card = self._valid_card(self._loaded(call.body.get("content")))
        shown.card.data = card.data
        shown.card.history.append(card.text)
        return {"data": {}}

    def _delete(self, call: Call, id: str) -> Json:
        self._found(id).recalled = True
        return {}

    def _found(self, id: str) -> Shown:
        if id not in self.messages:
            raise Refusal(230001, "message not found")
        if self.messages[id].recalled:
            raise Refusal(230011, "The message was withdrawn.")
        return self.messages[id]

    def _file(self, call: Call, id: str, key: str) -> bytes:
        self._found(id)
        self._scope("im:resource")
        wanted = "image" if key.startswith("img") else "file"
        if call.query.get("type") != wanted or key not in self.files:
            raise Refusal(234003, "File not in msg.")
        return self.files[key]

    # -- cards

    def _make(self, call: Call) -> Json:
        self._scope("cardkit:card:write")
        card = self._typed(call.body)
        id = f"card{next(self._numbers)}"
        self.entities[id] = card
        return {"data": {"card_id": id}}

    def _stream(self, call: Call, id: str, element: str) -> Json:
        card = self._next(call, id)
        if element != card.data["body"]["elements"][0]["element_id"]:
            raise Refusal(300313, "no such element")
        if not card.streaming:
            raise Refusal(300309, "streaming mode is closed")
        text = call.body.get("content")
        if not isinstance(text, str) or not text:
            raise Refusal(300301, "content is empty")
        self._valid_card({**card.data, "body": {"elements": [{**card.data["body"]["elements"][0], "content": text}]}})
        card.become(text)
        return {"data": {}}

    def _close(self, call: Call, id: str) -> Json:
        card = self._next(call, id)
        config = self._loaded(call.body.get("settings"))["config"]
        card.data["config"] |= config
        card.streaming = config.get("streaming_mode", card.streaming)
        return {"data": {}}

    def _swap(self, call: Call, id: str) -> Json:
        card = self._next(call, id)
        swapped = self._typed(call.body.get("card", {}))
        card.data, card.streaming = swapped.data, swapped.streaming
        card.history.append(swapped.text)
        return {"data": {}}

    def _next(self, call: Call, id: str) -> Card:
        self._scope("cardkit:card:write")
        card, sequence = self._entity(id), call.body.get("sequence")
        if type(sequence) is not int or not 1 <= sequence <= HIGHEST or sequence <= card.sequence:
            raise Refusal(300317, "sequence number compare failed")
        card.sequence = sequence
        return card

    def _entity(self, id: str) -> Card:
        if id not in self.entities:
            raise Refusal(230099, "Failed to create card content, ext=ErrCode: 11310; ErrMsg: cardid is invalid")
        return self.entities[id]

    def _typed(self, body: Json) -> Card:
        if body.get("type") != "card_json":
            raise Refusal(300301, "unknown type of card")
        return self._valid_card(self._loaded(body.get("data")))

    def _valid_card(self, data: Json) -> Card:
        if not self.cards:
            raise Refusal(230099, "Failed to create card content, ext=ErrCode: 200621; ErrMsg: parse card json err")
        config, elements = data.get("config", {}), data.get("body", {}).get("elements", [])
        if data.get("schema") != "2.0" or config.get("update_multi") is not True or len(elements) != 1:
            raise Refusal(200621, "parse card json err")
        [element] = elements
        if element.get("tag") != "markdown" or not re.fullmatch(r"[A-Za-z]\w{0,19}", element.get("element_id", "")):
            raise Refusal(200621, "parse card json err")
        text = element["content"]
        if len(json.dumps(json.dumps(data, ensure_ascii=False), ensure_ascii=False).encode()) > LARGEST:
            raise Refusal(230025, "The length of the message content reaches its limit.")
        if len(re.findall(r"^ *\| ?:?-+:? ?\|.*$", re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M), re.M)) > 3:
            raise Refusal(230099, "Failed to create card content, ext=ErrCode: 11310; ErrMsg: table number over limit")
        if re.search(r"<at ", text):
            raise Refusal(230099, "a test must not call anybody")
        return Card(data, bool(config.get("streaming_mode")), history=[text])

    @staticmethod
    def _loaded(value: object) -> Json:
        """Load JSON that was sent as a string."""
        if not isinstance(value, str):
            raise Refusal(230001, "content is not a string in json format")
        loaded = json.loads(value)
        if not isinstance(loaded, dict):
            raise Refusal(230001, "content is not a string in json format")
        return loaded

    @staticmethod
    def _hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()
