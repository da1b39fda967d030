"""A strict stand-in of WeCom for one AI bot: it polls streams as WeCom does, and takes one late answer a question.

async with AibotServer() as wecom:
    shown = await wecom.say(url, "hello")
    shown.text, shown.steps
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from adapters.wechat_crypto import Envelope
from bot.adapter import Request
from bot.config import Secret
from tests.adapters.tencent_server import Call, Json, Refusal, TencentServer, truncated

TOKEN, KEY = "QDG6eK", "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C"
LONGEST = 20_480  # bytes
LATE = "/cgi-bin/aibot/response"


class Broken(Exception):
    """WeCom does not understand what the bot answers."""


@dataclass
class Shown:
    """A streamed answer as people see it: every text it had, and the late answer."""

    id: str = ""
    steps: list[str] = field(default_factory=list)
    finished: bool = False
    late: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What it shows now."""
        return self.steps[-1] if self.steps else ""


class AibotServer(TencentServer):
    """One bot in one company. It is polled every `pause` seconds."""

    def __init__(self, pause: float = 0.02) -> None:
        super().__init__()
        self.pause = pause
        self.envelope = Envelope(Secret(TOKEN), Secret(KEY), "")
        self.polls = 0
        self._rights: dict[str, Shown] = {}  # by response code
        self._messages = itertools.count(1)

    def settings(self, **changes: object) -> dict[str, object]:
        """Return the settings of the bot."""
        given = {"token": TOKEN, "encoding_aes_key": KEY, "api_base": self.base or "http://127.0.0.1:9"}
        return {**given, **changes}

    # -- callbacks

    def sealed(self, message: bytes, method: str = "POST") -> Request:
        """Return a signed callback around any bytes."""
        sealed = self.envelope.seal(message)
        query = {"msg_signature": sealed.signature, "timestamp": sealed.timestamp, "nonce": sealed.nonce}
        if method == "GET":
            return Request("GET", query=query | {"echostr": sealed.encrypt})
        return Request(query=query, body=json.dumps({"encrypt": sealed.encrypt}).encode())

    def callback(self, **values: Any) -> Request:
        """Return a signed callback with these fields."""
        return self.sealed(json.dumps(values, ensure_ascii=False).encode())

    def message(self, kind: str, group: str = "", by: str = "ann", **values: Any) -> Json:
        """Return a message of a member, not yet sealed."""
        id = f"MSG{next(self._messages)}"
        head: Json = {"msgid": id, "aibotid": "AIBOT", "from": {"userid": by}, "msgtype": kind}
        head |= {"chattype": "group", "chatid": group} if group else {"chattype": "single"}
        return {**head, "response_url": f"https://qyapi.weixin.qq.com{LATE}?response_code=CODE-{id}", **values}

    def text(self, text: str, **more: Any) -> Json:
        """Return a text message, not yet sealed."""
        return self.message("text", text={"content": text}, **more)

    async def say(self, url: str, text: str, **more: Any) -> Shown:
        """Let a member write; return when the answer's stream has ended."""
        return await self.push(url, self.text(text, **more))

    async def push(self, url: str, message: Json) -> Shown:
        """Deliver a message and poll its stream until it has ended."""
        shown = await self.ask(url, message)
        while not shown.finished:
            await asyncio.sleep(self.pause)
            await self.poll(url, shown)
        return shown

    async def ask(self, url: str, message: Json) -> Shown:
        """Deliver a message once."""
        shown = Shown()
        self._rights[f"CODE-{message['msgid']}"] = shown
        self._show(shown, await self.hear(url, self.callback(**message)))
        return shown

    async def poll(self, url: str, shown: Shown) -> None:
        """Ask for the stream once."""
        self.polls += 1
        head = {"msgid": f"POLL{self.polls}", "aibotid": "AIBOT", "chattype": "single", "from": {"userid": "ann"}}
        poll = self.callback(**head, msgtype="stream", stream={"id": shown.id})
        self._show(shown, await self.hear(url, poll))
        self.news()

    async def hear(self, url: str, request: Request) -> Json:
        """Call the webhook and read its answer as WeCom does, {} for none. Raises Broken."""
        status, body = await self.deliver(url, request)
        if status != 200:
            raise Broken(f"HTTP {status}")
        return self.understood(request, body) if body else {}

    def understood(self, request: Request, body: bytes) -> Json:
        """Open an answer."""
        reply = json.loads(body)
        if reply["nonce"] != request.query["nonce"] or type(reply["timestamp"]) is not int:
            raise Broken("nonce or timestamp")
        query = {"msg_signature": reply["msgsignature"], "nonce": reply["nonce"], "timestamp": str(reply["timestamp"])}
        opened = json.loads(self.envelope.open(query, reply["encrypt"]))
        assert isinstance(opened, dict)
        return opened

    @staticmethod
    def _show(shown: Shown, answer: Json) -> None:
        stream = answer["stream"]
        if answer["msgtype"] != "stream" or (shown.id and stream["id"] != shown.id):
            raise Broken("not the stream that was asked for")
        shown.id, shown.finished = stream["id"], stream["finish"]
        text = truncated(stream["content"], LONGEST)
        if text != shown.text:
            shown.steps.append(text)

    # -- the API

    def routes(self) -> dict[str, Callable[[Call], Json | bytes]]:
        files = {f"/{name}": lambda call, name=name: self.media[name] for name in self.media}
        return {LATE: self._late, **files}

    def _late(self, call: Call) -> Json:
        shown = self._rights.pop(call.query.get("response_code", ""), None)
        if shown is None:
            raise Refusal(40001, "invalid response_code")
        text = call.body.get("markdown", {}).get("content", "")
        if call.body.get("msgtype") != "markdown" or not text or len(text.encode()) > LONGEST:
            raise Refusal(40058, "invalid Request Parameter")
        shown.late.append(text)
        return {"errcode": 0, "errmsg": "ok"}
