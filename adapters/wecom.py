"""WeCom (企业微信), a self-built app: https://developer.work.weixin.qq.com/document/path/90238

Members write to the app in private chats; there are no groups. Callbacks come as encrypted XML and are answered with an
empty 200 at once; answers go out by the API. https://developer.work.weixin.qq.com/document/path/90236
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal

import msgspec
from pydantic import Field

from adapters.wechat_api import Answer, Errors, Granted, authorized, failure, media
from adapters.wechat_crypto import EncodingAESKey, Envelope
from adapters.wechat_xml import attachments, document, envelope_of, fields, said
from bot.adapter import (
    AdapterSettings,
    Attachment,
    Capabilities,
    Chat,
    Context,
    Finding,
    Inbound,
    Message,
    Page,
    Request,
    Response,
    WebhookAdapter,
)
from bot.client import Client, Reply
from bot.config import HttpUrl, Secret, variable
from bot.errors import Malformed, PlatformError, Refused, Throttled, Unauthorized, Unavailable
from bot.markup import PLAIN, Dialect, markdown_link, utf8

# https://developer.work.weixin.qq.com/document/path/90236#markdown消息
MARKDOWN = Dialect(
    "wecom-markdown",
    bold=("**", "**"),
    code=("`", "`"),
    heading=tuple((f"{'#' * level} ", "") for level in range(1, 7)),
    link=markdown_link,
    image=markdown_link,
    nested_quotes=False,
)
DIALECTS: Mapping[str, Dialect] = {"text": PLAIN, "markdown": MARKDOWN}

# https://developer.work.weixin.qq.com/document/path/90313
ERRORS: Errors = {
    -1: (Unavailable, "the platform is busy"),
    40001: (Unauthorized, "the app's secret or the access token is not valid"),
    40013: (Unauthorized, "the corp id is not valid"),
    40014: (Unauthorized, "the access token is not valid"),
    40056: (Unauthorized, "the agent id is not valid"),
    42001: (Unauthorized, "the access token has expired"),
    45002: (Refused, "the message is too long"),
    45009: (Throttled, "rate limit of the API"),
    45033: (Throttled, "too many calls at once"),
    48002: (Unauthorized, "the app may not use this API"),
    60011: (Unauthorized, "the app lacks a permission"),
    60020: (Unauthorized, "our address is not on the app's list of trusted IPs"),
    81013: (Refused, "the person is outside of the app's visible range, or has no licence"),
    301002: (Unauthorized, "the agent id is not that of the secret's app"),
}
STEPS = (
    "Open https://work.weixin.qq.com/wework_admin, App management, your app. / 打开管理后台「应用管理」，进入应用。",
    "Receive messages, Set up API. / 「接收消息」→「设置API接收」。",
    "URL: {url}",
    "Token: the value of {token}. EncodingAESKey: the value of {key}. / 填入这两个变量的值。",
    "Save while the bot is running: the platform calls at once. / 先启动机器人再点保存，平台会立即验证。",
    "Then add this server's address to Trusted IPs. / 再把本服务器的出口 IP 加入「企业可信IP」。",
)


class WecomSettings(AdapterSettings):
    """Variables WECOM_*."""

    corp_id: str = Field(min_length=1, description="My company (我的企业): the corp id, ww...")
    agent_id: int = Field(ge=0, description="The app's page: AgentId")
    secret: Secret = Field(min_length=1, description="The app's page: Secret")
    token: Secret = Field(min_length=1, description="Receive messages (接收消息): Token, 3 to 32 letters and digits")
    encoding_aes_key: EncodingAESKey = Field(description="Receive messages (接收消息): EncodingAESKey, 43 characters")
    message_format: Literal["text", "markdown"] = Field(
        "text", description="markdown looks better, but those who read WeCom inside WeChat do not see it at all"
    )
    api_base: HttpUrl = Field("https://qyapi.weixin.qq.com", min_length=1, description="The API server")


class Sent(Answer):
    """What message/send answers. Members that cannot be reached are listed, with `errcode` 0."""

    msgid: str = ""
    invaliduser: str = ""
    unlicenseduser: str = ""


class Agent(Answer):
    """What agent/get answers."""

    name: str = ""


def sent_failure(reply: Reply) -> PlatformError | None:
    """Read an error off an answer, also that nobody was reached."""
    if error := failure(ERRORS)(reply):
        return error
    sent = reply.json(Sent)
    if sent.invaliduser or sent.unlicenseduser:
        return Refused(ERRORS[81013][1], 81013)
    return None


class WecomAdapter(WebhookAdapter[WecomSettings]):
    """An app of the company's own."""

    name = "wecom"
    title = "WeCom app (企业微信自建应用)"
    docs = "https://developer.work.weixin.qq.com/document/path/90238"
    Settings = WecomSettings
    # More than 30 messages a minute to a member are dropped without an error.
    can = Capabilities(max_length=2048, measure=utf8, dialect=PLAIN, pages_per_second=0.5)

    def __init__(self, settings: WecomSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.can = msgspec.structs.replace(self.can, dialect=DIALECTS[settings.message_format])
        self.envelope = Envelope(settings.token, settings.encoding_aes_key, settings.corp_id)
        self.client = Client(settings.api_base, failure=sent_failure)

    async def stop(self) -> None:
        await self.client.close()

    # -- inbound

    async def verify(self, request: Request) -> None:
        """Check signature and receiver: https://developer.work.weixin.qq.com/document/path/90930"""
        self._opened(request)

    def _opened(self, request: Request) -> bytes:
        if request.method == "GET":
            encrypt = request.query.get("echostr", "").replace(" ", "+")  # a raw + in a query is a space
        else:
            encrypt = envelope_of(request.body)
        return self.envelope.open(request.query, encrypt)

    def parse(self, request: Request) -> Inbound:
        """Translate a callback, or answer the console's test: https://developer.work.weixin.qq.com/document/path/90239"""
        opened = self._opened(request)
        if request.method == "GET":
            return Inbound(response=Response(opened), ignored="test of the URL")
        it = fields(opened)
        if it.get("AgentID", "") not in ("", str(self.settings.agent_id)):
            return Inbound(ignored="message to another app (see the agent id)")
        kind, user, id = it.get("MsgType", ""), it.get("FromUserName", ""), it.get("MsgId", "")
        if kind == "event":
            return Inbound(ignored=f"event {it.get('Event', '')[:40]}")
        if user == "sys":
            return Inbound(ignored="message of the system")
        if not (kind and user and id):
            raise Malformed("body: MsgType, FromUserName or MsgId is missing")
        files = attachments(it, it.get("MediaId", ""))
        return Inbound((Message(id, Chat(user), user, said(it), attachments=files, locale="zh"),))

    def sample(self) -> Request:
        """Return an event that holds no message."""
        now = int(time.time())
        event = document(FromUserName="sys", CreateTime=now, MsgType="event", Event="sample")
        sealed = self.envelope.seal(event)
        query = {"msg_signature": sealed.signature, "timestamp": sealed.timestamp, "nonce": sealed.nonce}
        return Request(query=query, body=document(ToUserName=self.settings.corp_id, Encrypt=sealed.encrypt))

    # -- outbound

    async def send(self, chat: Chat, page: Page) -> str:
        """Post a message: https://developer.work.weixin.qq.com/document/path/90236

        The platform's check for duplicates drops equal texts too, and is left off.
        """
        form = self.settings.message_format
        body = {"touser": chat.id, "agentid": self.settings.agent_id, "msgtype": form, form: {"content": page.text}}
        return (await self._call("POST", "/cgi-bin/message/send", body)).json(Sent).msgid

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Fetch a file, for three days: https://developer.work.weixin.qq.com/document/path/90254"""
        return await authorized(
            self.context.state, self._token, lambda token: media(self.client, token, attachment.ref, limit, ERRORS)
        )

    async def _call(self, method: str, path: str, body: object = None, **query: str) -> Reply:
        async def call(token: str) -> Reply:
            return await self.client.call(method, path, json=body, query={"access_token": token, **query})

        return await authorized(self.context.state, self._token, call)

    async def _token(self, stale: str) -> Granted:
        """Get an access token: https://developer.work.weixin.qq.com/document/path/91039"""
        query = {"corpid": self.settings.corp_id, "corpsecret": self.settings.secret.get_secret_value()}
        return (await self.client.call("GET", "/cgi-bin/gettoken", query=query)).json(Granted)

    # -- set up

    async def register(self, url: str) -> list[Finding]:
        """List what a person must do in the console; there is no API for it."""
        token, key = (variable(self.context.instance, name) for name in ("token", "encoding_aes_key"))
        steps = (step.format(url=url, token=token, key=key) for step in STEPS)
        return [Finding(True, f"{n}. {step}") for n, step in enumerate(steps, 1)]

    async def check(self, url: str) -> list[Finding]:
        """Ask for the app itself: that takes the secret, the agent id and a trusted IP.

        https://developer.work.weixin.qq.com/document/path/90227
        """
        try:
            answer = await self._call("GET", "/cgi-bin/agent/get", agentid=str(self.settings.agent_id))
        except PlatformError as error:
            return [Finding(False, f"app {self.settings.agent_id}: {error}", self._advice(error))]
        return [
            Finding(True, f"the secret is valid; the app is {answer.json(Agent).name} ({self.settings.agent_id})"),
            Finding(True, f"whether the app calls {url} cannot be asked: write to it to see"),
        ]

    def _advice(self, error: PlatformError) -> str:
        corp, agent, secret, base = (
            variable(self.context.instance, name) for name in ("corp_id", "agent_id", "secret", "api_base")
        )
        if not isinstance(error, Refused):
            return f"check {base} and the network, then try again"
        if error.code == 60020:
            return "add that address to the app's trusted IPs (企业可信IP) in the console"
        return f"check {corp}, {agent} and {secret}: all three must be of the same app"
