"""A strict stand-in of WeCom for one self-built app: it refuses what WeCom refuses, and cuts what WeCom cuts.

async with WecomServer() as wecom:
    settings = WecomSettings.model_validate(wecom.settings())
    await wecom.deliver(url, wecom.text("hello"))
    wecom.shown["ann"]
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from adapters.wechat_crypto import Envelope
from adapters.wechat_xml import document
from bot.adapter import Request
from bot.config import Secret
from tests.adapters.tencent_server import Call, Json, Refusal, TencentServer, truncated

CORP = "ww1436e0e65a779aee"
AGENT = 1000002
SECRET = "app-secret"
TOKEN = "hJqcu3uJ9Tn2gXPmxx2w9kkCkCE2EPYo"
KEY = "6qkdMrq68nTKduznJYO1A37W2oEgpkMUvkttRToqhUt"
LONGEST = 2048  # bytes


class WecomServer(TencentServer):
    """One company with one app, whose members are `members`."""

    def __init__(self) -> None:
        super().__init__()
        self.members = {"ann", "ben", "ZhangSan"}
        self.unlicensed: set[str] = set()
        self.shown: dict[str, list[str]] = defaultdict(list)
        self.envelope = Envelope(Secret(TOKEN), Secret(KEY), CORP)
        self._messages = itertools.count(7_000_000_000_000_001)

    def settings(self, **changes: object) -> dict[str, object]:
        """Return the settings of the bot for this company."""
        given = {"corp_id": CORP, "agent_id": str(AGENT), "secret": SECRET, "token": TOKEN, "encoding_aes_key": KEY}
        return {**given, "api_base": self.base or "http://127.0.0.1:9", **changes}

    # -- callbacks

    def callback(self, **values: str | int) -> Request:
        """Return a signed callback with these fields."""
        return self.sealed(document(**values))

    def sealed(self, message: bytes) -> Request:
        """Return a signed callback around any bytes."""
        sealed = self.envelope.seal(message)
        query = {"msg_signature": sealed.signature, "timestamp": sealed.timestamp, "nonce": sealed.nonce}
        return Request(query=query, body=document(ToUserName=CORP, Encrypt=sealed.encrypt, AgentID=str(AGENT)))

    def message(self, kind: str, by: str = "ann", **values: str | int) -> Request:
        """Return the callback about a message of a member."""
        fields: dict[str, Any] = {"ToUserName": CORP, "FromUserName": by, "CreateTime": int(time.time())}
        fields |= {"MsgType": kind, **values, "MsgId": next(self._messages), "AgentID": AGENT}
        return self.callback(**fields)

    def text(self, text: str, by: str = "ann") -> Request:
        """Return the callback about a text."""
        return self.message("text", by, Content=text)

    def test(self, echo: bytes = b"1288432023552776189") -> Request:
        """Return what the console sends when the URL is saved."""
        sealed = self.envelope.seal(echo)
        query = {"msg_signature": sealed.signature, "timestamp": sealed.timestamp, "nonce": sealed.nonce}
        return Request(method="GET", query=query | {"echostr": sealed.encrypt})

    # -- the API

    def routes(self) -> dict[str, Callable[[Call], Json | bytes]]:
        return {
            "/cgi-bin/gettoken": self._gettoken,
            "/cgi-bin/message/send": self._send,
            "/cgi-bin/media/get": self.file,
            "/cgi-bin/agent/get": self._agent,
        }

    def authorize(self, call: Call) -> None:
        super().authorize(call)
        if not self.trusted:
            raise Refusal(60020, "not allow to access from your ip, hint: [1], from ip: 198.51.100.7, more info at ...")

    def _gettoken(self, call: Call) -> Json:
        if call.query.get("corpid") != CORP:
            raise Refusal(40013, "invalid corpid")
        if call.query.get("corpsecret") != SECRET:
            raise Refusal(40001, "invalid credential")
        return self.grant()

    def _send(self, call: Call) -> Json:
        self.authorize(call)
        body = call.body
        if body.get("agentid") != AGENT:
            raise Refusal(40056, "invalid agentid")
        kind = body.get("msgtype")
        if kind not in ("text", "markdown") or not isinstance(body.get(kind), dict):
            raise Refusal(40008, "invalid message type")
        text = body[kind].get("content")
        if not isinstance(text, str) or not text.strip():
            raise Refusal(44004, "empty content")
        names = set(str(body.get("touser", "")).split("|"))
        reached = names & self.members
        if not reached:
            raise Refusal(81013, "user & party & tag all invalid")
        for name in reached - self.unlicensed:
            self.shown[name].append(truncated(text, LONGEST))
        answer = {"errcode": 0, "errmsg": "ok", "msgid": f"msg-{len(self.calls)}"}
        return answer | {"unlicenseduser": "|".join(names & self.unlicensed)}

    def _agent(self, call: Call) -> Json:
        self.authorize(call)
        if call.query.get("agentid") != str(AGENT):
            raise Refusal(301002, "not allow operate another agent with this accesstoken")
        return {"errcode": 0, "errmsg": "ok", "agentid": AGENT, "name": "Magpie"}
