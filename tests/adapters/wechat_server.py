"""A strict stand-in of WeChat for one Official Account: it refuses what WeChat refuses, waits and asks again as WeChat.

async with WechatServer() as wechat:
    settings = WechatSettings.model_validate(wechat.settings())
    await wechat.say(url, "hello")
    wechat.shown["oANN"]
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

from adapters.wechat_crypto import Envelope, signature
from adapters.wechat_xml import document, fields
from bot.adapter import Request
from bot.config import Secret
from bot.errors import MagpieError
from tests.adapters.tencent_server import Call, Json, Refusal, TencentServer, truncated

APP = "wxba5fad812f8e6fb9"
SECRET = "account-secret"
TOKEN = "AAAAA"
KEY = "A" * 43
ACCOUNT = "gh_97417a04a28d"
ANN = "oANN"
LONGEST = 2048  # bytes
QUOTA = 5  # messages an account may send for each one of a person
TRIES = 3
FAULT = "该公众号提供的服务出现故障，请稍后再试"
Mode = Literal["plain", "compatible", "safe"]


class WechatServer(TencentServer):
    """One account. `certified` accounts may send customer-service messages; `patience` is five seconds there."""

    def __init__(self, mode: Mode = "safe", certified: bool = False, patience: float = 5) -> None:
        super().__init__()
        self.mode = mode
        self.certified = certified
        self.patience = patience
        self.shown: dict[str, list[str]] = defaultdict(list)
        self.typing: list[str] = []
        self.tries = 0  # deliveries so far
        self.envelope = Envelope(Secret(TOKEN), Secret(KEY), APP)
        self._left: dict[str, int] = defaultdict(int)  # messages the account may still send to each person
        self._revoked = ""
        self._messages = itertools.count(1_234_567_890_123_456)

    def settings(self, **changes: object) -> dict[str, object]:
        """Return the settings of the bot for this account."""
        given: dict[str, object] = {"app_id": APP, "app_secret": SECRET, "token": TOKEN}
        if self.mode != "plain":
            given["encoding_aes_key"] = KEY
        return {**given, "api_base": self.base or "http://127.0.0.1:9", **changes}

    # -- callbacks

    def signed(self, **more: str) -> dict[str, str]:
        """Return a query signed now."""
        timestamp, nonce = str(int(time.time())), "415670741"
        return {"signature": signature(TOKEN, timestamp, nonce), "timestamp": timestamp, "nonce": nonce, **more}

    def test(self, echo: str = "4375120948345356249") -> Request:
        """Return what the console sends when the URL is submitted."""
        return Request(method="GET", query=self.signed(echostr=echo))

    def callback(self, **values: str | int) -> Request:
        """Return a signed callback with these fields."""
        return self.sealed(document(**values))

    def sealed(self, message: bytes) -> Request:
        """Return a signed callback around any bytes, as the account's mode has it."""
        if self.mode == "plain":
            return Request(query=self.signed(openid=ANN), body=message)
        sealed = self.envelope.seal(message)
        query = {"encrypt_type": "aes", "msg_signature": sealed.signature, "timestamp": sealed.timestamp}
        query |= {"nonce": sealed.nonce, "signature": signature(TOKEN, sealed.timestamp, sealed.nonce)}
        clear: dict[str, Any] = {"ToUserName": ACCOUNT}
        if self.mode == "compatible":
            clear |= {"FromUserName": "oFORGED", "MsgType": "text", "Content": "forged", "MsgId": 1}
        return Request(query=query, body=document(**clear, Encrypt=sealed.encrypt))

    def message(self, kind: str, by: str = ANN, **values: str | int) -> Request:
        """Return the callback about a message of a person."""
        given: dict[str, Any] = {"ToUserName": ACCOUNT, "FromUserName": by, "CreateTime": int(time.time())}
        return self.callback(**given, MsgType=kind, **values, MsgId=next(self._messages))

    def text(self, text: str, by: str = ANN) -> Request:
        """Return the callback about a text."""
        return self.message("text", by, Content=text)

    async def say(self, url: str, text: str, by: str = ANN) -> None:
        """Let a person write; return when WeChat is done with it."""
        await self.push(url, self.text(text, by), by)

    async def push(self, url: str, request: Request, by: str = ANN) -> None:
        """Deliver a callback up to three times, as WeChat does, and show the person what comes of it."""
        self._left[by] = QUOTA
        for _ in range(TRIES):
            self.tries += 1
            self.news()
            try:
                async with asyncio.timeout(self.patience):
                    status, body = await self.deliver(url, request)
            except TimeoutError:
                continue
            if text := self.understood(status, body, by):
                self.shown[by].append(text)
            self.news()
            return
        self.shown[by].append(FAULT)
        self.news()

    def understood(self, status: int, body: bytes, by: str) -> str:
        """Read a response as WeChat does: "" for nothing to show."""
        if status == 200 and body in (b"", b"success"):
            return ""
        try:
            it = fields(body)
            if self.mode != "plain" and "Encrypt" in it:
                query = {"msg_signature": it["MsgSignature"], "timestamp": it["TimeStamp"], "nonce": it["Nonce"]}
                it = fields(self.envelope.open(query, it["Encrypt"]))
            elif self.mode == "safe":
                return FAULT
            whole = (it["FromUserName"], it["ToUserName"], it["MsgType"]) == (ACCOUNT, by, "text")
            return truncated(it["Content"], LONGEST) if whole and int(it["CreateTime"]) else FAULT
        except (MagpieError, KeyError, ValueError):
            return FAULT

    # -- the API

    def routes(self) -> dict[str, Callable[[Call], Json | bytes]]:
        return {
            "/cgi-bin/stable_token": self._stable_token,
            "/cgi-bin/message/custom/send": self._send,
            "/cgi-bin/message/custom/typing": self._typing,
            "/cgi-bin/media/get": self.file,
            "/cgi-bin/get_api_domain_ip": self._addresses,
        }

    def revoke(self) -> None:
        """Refuse the token from now on; only a forced refresh brings another."""
        self._revoked = self._valid

    def authorize(self, call: Call) -> None:
        super().authorize(call)
        if call.query["access_token"] == self._revoked:
            raise Refusal(40001, "invalid credential, access_token is invalid or not latest rid: 65b0")

    def _stable_token(self, call: Call) -> Json:
        body = call.body
        if body.get("grant_type") != "client_credential":
            raise Refusal(40002, "invalid grant_type")
        if body.get("appid") != APP:
            raise Refusal(40013, "invalid appid")
        if body.get("secret") != SECRET:
            raise Refusal(40125, "invalid appsecret")
        if not self.trusted:
            raise Refusal(40164, "invalid ip 198.51.100.7 ipv6 ::ffff:198.51.100.7, not in whitelist rid: 65b0")
        if body.get("force_refresh") is True:
            self.expire()
        granted = self.grant()
        return {name: granted[name] for name in ("access_token", "expires_in")}

    def _permitted(self, call: Call) -> str:
        self.authorize(call)
        if not self.certified:
            raise Refusal(48001, "api unauthorized rid: 65b0")
        return str(call.body.get("touser"))

    def _send(self, call: Call) -> Json:
        person = self._permitted(call)
        text = call.body.get("text", {}).get("content")
        if call.body.get("msgtype") != "text" or not isinstance(text, str) or not text.strip():
            raise Refusal(44004, "empty content")
        if len(text.encode()) > LONGEST:
            raise Refusal(45002, "content size out of limit")
        if person not in self._left:
            raise Refusal(45015, "response out of time limit or subscription is canceled")
        if self._left[person] == 0:
            raise Refusal(45047, "out of response count limit")
        self._left[person] -= 1
        self.shown[person].append(text)
        return {"errcode": 0, "errmsg": "ok"}

    def _typing(self, call: Call) -> Json:
        person = self._permitted(call)
        if call.body.get("command") not in ("Typing", "CancelTyping"):
            raise Refusal(45072, "command not support")
        self.typing.append(person)
        return {"errcode": 0, "errmsg": "ok"}

    def _addresses(self, call: Call) -> Json:
        self.authorize(call)
        return {"ip_list": ["101.226.62.77"]}
