"""WeChat Official Account (微信公众号): https://developers.weixin.qq.com/doc/service/guide/product/message/

WeChat waits five seconds for the answer to a message and asks three times. An answer that is ready by then goes into
the response. Later ones go out as customer-service messages where the account may send them. Where it may not, the
answer is kept on a shelf in the shared state, and the person, told so in time, fetches it by sending anything.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import structlog
from pydantic import Field

from adapters.wechat.errors import ADDRESS, ERRORS, NOT_PERMITTED
from adapters.wechat.shelf import Kept, Shelf
from adapters.wechat_api import Granted, authorized, failure, media
from adapters.wechat_crypto import WINDOW, EncodingAESKey, Envelope, signature
from adapters.wechat_state import change, load
from adapters.wechat_xml import attachments, document, envelope_of, fields, said
from bot import signing
from bot.adapter import (
    AdapterSettings,
    Answer,
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
from bot.errors import Malformed, PlatformError, Refused, Unverified
from bot.markup import PLAIN, pages, utf8

log = structlog.get_logger()
T = TypeVar("T")

# https://developers.weixin.qq.com/doc/service/guide/product/message/Receiving_standard_messages.html
WITHIN = 4.5  # seconds in which an answer reaches the person in the response
HOLD = 2.0  # seconds after which WeChat has surely hung up and asks again
TRIES = 3
TOGETHER = 3.0  # seconds in which the same text to the same person is one answer to several messages
REMEMBER = 600.0  # seconds for which a redelivered message gets the same response again
KEEP = 86400.0  # seconds an answer waits on the shelf
DAY = 86400.0

LONGEST = 2048  # bytes of a message; not documented
ROOM = 240  # bytes of it for our own notes
STILL = "还在思考，过一会儿发送任意内容即可查看回答。\nStill thinking. Send anything in a moment to see the answer."
MORE = "\n\n（若未完，发送任意内容继续。/ Send anything for the rest, if there is more.）"
EARLIER = (
    "\n\n（这是之前问题的回答，新问题请再发一次。/ This answers your earlier question; please send the new one again.）"
)
NUDGE = 6  # characters: who sends more to fetch an answer may have asked something

SUCCESS = Response(b"success")  # "nothing to say"; anything odd is shown to the person as a fault of the account
PICTURE = re.compile(r"https?://((?:[\w-]+\.)?qpic\.cn/\S+)")
PICTURE_HOSTS = (".qpic.cn",)
UNSUPPORTED = "【收到不支持的消息类型"

STEPS = (
    "Open https://developers.weixin.qq.com/platform, your account, Domains and message push. / "
    "打开微信开发者平台，进入公众号的「域名与消息推送配置」。",
    "URL: {url}",
    "Token: the value of {token}; EncodingAESKey: that of {key}. / 填入这两个变量的值。",
    "Mode: safe (plain needs {key} empty); format: XML. / 消息加解密方式选「安全模式」，数据格式选 XML。",
    "Submit while the bot is running: the platform calls at once. / 先启动机器人再提交，平台会立即验证。",
    "Add this server's address to the IP white list. / 把本服务器的出口 IP 加入「IP 白名单」。",
)


class WechatSettings(AdapterSettings):
    """Variables WECHAT_*."""

    app_id: str = Field(min_length=1, description="The account's AppID, wx...")
    app_secret: Secret = Field(min_length=1, description="The account's AppSecret")
    token: Secret = Field(min_length=1, description="Message push (消息推送): Token, 3 to 32 letters and digits")
    encoding_aes_key: EncodingAESKey | None = Field(
        None, description="Message push (消息推送): EncodingAESKey, 43 characters; empty in plain mode (明文模式)"
    )
    api_base: HttpUrl = Field("https://api.weixin.qq.com", min_length=1, description="The API server")


def spoken(it: Mapping[str, str]) -> str:
    """Put a message into words, without WeChat's stand-in for what it cannot pass on."""
    text = said(it)
    return "" if text.startswith(UNSUPPORTED) else text


def file_ref(it: Mapping[str, str]) -> str:
    """Return where a file is. A picture's address needs no permission; its media id does."""
    picture = PICTURE.fullmatch(it.get("PicUrl", ""))
    return f"https://{picture[1]}" if picture else it.get("MediaId", "")


# -- the adapter ------------------------------------------------------------------------------------------------


class WechatAdapter(WebhookAdapter[WechatSettings]):
    """A subscription or service account."""

    name = "wechat"
    title = "WeChat Official Account (微信公众号)"
    docs = "https://developers.weixin.qq.com/doc/service/guide/product/message/"
    Settings = WechatSettings
    can = Capabilities(max_length=LONGEST - ROOM, measure=utf8, dialect=PLAIN, typing_every=16, answer_within=WITHIN)

    def __init__(self, settings: WechatSettings, context: Context) -> None:
        super().__init__(settings, context)
        key = settings.encoding_aes_key
        self.envelope = Envelope(settings.token, key, settings.app_id) if key else None
        self.client = Client(settings.api_base, failure=failure(ERRORS))

    async def stop(self) -> None:
        await self.client.close()

    # -- inbound

    async def verify(self, request: Request) -> None:
        """Check the signature, and in safe mode that the message is for our app id.

        https://developers.weixin.qq.com/doc/service/guide/dev/push/encryption.html
        """
        self._opened(request)

    def _opened(self, request: Request) -> bytes:
        """Return what the platform says. The signature of plain mode and of the console's test covers no content."""
        if request.method == "GET" or self.envelope is None:
            self._check_signature(request.query)
            return (
                request.query.get("echostr", "").encode(errors="replace") if request.method == "GET" else request.body
            )
        if not request.query.get("msg_signature"):
            raise Unverified("not encrypted: choose safe mode in the console, or leave the EncodingAESKey unset")
        return self.envelope.open(request.query, envelope_of(request.body))

    def _check_signature(self, query: Mapping[str, str]) -> None:
        timestamp = query.get("timestamp", "")
        expected = signature(self.settings.token.get_secret_value(), timestamp, query.get("nonce", ""))
        signing.equal(query.get("signature", ""), expected, "signature")
        signing.fresh(timestamp, WINDOW, "timestamp")

    def parse(self, request: Request) -> Inbound:
        """Translate a message or an event, or answer the console's test."""
        opened = self._opened(request)
        if request.method == "GET":
            return Inbound(response=Response(opened), ignored="test of the URL")
        it = fields(opened)
        kind, user = it.get("MsgType", ""), it.get("FromUserName", "")
        if "Encrypt" in it and not kind:
            raise Malformed("body: encrypted; set the EncodingAESKey")
        if not (kind and user):
            raise Malformed("body: MsgType or FromUserName is missing")
        chat = Chat(user, ticket=it.get("ToUserName", ""))
        if kind == "event":
            return self._event(it, chat)
        if not (id := it.get("MsgId", "")):
            raise Malformed("body: MsgId is missing")
        return Inbound((Message(id, chat, user, spoken(it), attachments=attachments(it, file_ref(it)), locale="zh"),))

    def _event(self, it: Mapping[str, str], chat: Chat) -> Inbound:
        """Greet a new follower. Events have no id of their own."""
        if it.get("Event", "") != "subscribe":
            return Inbound(response=SUCCESS, ignored=f"event {it.get('Event', '')[:40]}")
        id = f"{chat.id}-{it.get('CreateTime', '')}"
        return Inbound((Message(id, chat, chat.id, "/help", locale="zh"),))

    def sample(self) -> Request:
        """Return an event that holds no message."""
        event = document(FromUserName="sample", CreateTime=int(time.time()), MsgType="event", Event="sample")
        if self.envelope is None:
            timestamp = str(int(time.time()))
            signed = signature(self.settings.token.get_secret_value(), timestamp, "sample")
            return Request(query={"signature": signed, "timestamp": timestamp, "nonce": "sample"}, body=event)
        sealed = self.envelope.seal(event)
        query = {"msg_signature": sealed.signature, "timestamp": sealed.timestamp, "nonce": sealed.nonce}
        return Request(query=query | {"encrypt_type": "aes"}, body=document(Encrypt=sealed.encrypt))

    # -- in the response

    async def at_once(self, request: Request, inbound: Inbound) -> Response | None:
        """Say again what a redelivered message heard, or hand out what is kept. Commands always go through."""
        for message in inbound.messages:
            if told := await self.context.state.get(f"told/{message.id}"):
                return self._reply(message, told)
            if not message.text.startswith(("/", "／")):
                return await self._fetch(message)
        return None

    async def _fetch(self, message: Message) -> Response | None:
        """Answer with the next page of the shelf, or that it is not there yet. None: nothing is awaited."""
        shelf = await self.shelf(message.user)
        if not (shelf.pages or shelf.awaited):
            return None
        taken = await self.context.state.get(f"tries/{message.id}")  # then it waits for its own answer
        if page := await self._take(message, message.id if taken else ""):
            return await self._tell(message, page.text, EARLIER if not taken and len(message.text) > NUDGE else "")
        return None if taken or not shelf.awaited else self._reply(message, STILL)

    async def respond(self, request: Request, inbound: Inbound, answer: Answer) -> Response:
        """Answer with the reply when it is there in time; otherwise see that it can reach the person later."""
        (message,) = inbound.messages
        tries = await self._count(message)
        if tries > 1 and (given := await answer.wait(0)):
            return await self._tell(message, await self._given(message, given.text))
        if reply := await answer.wait(WITHIN):
            return await self._tell(message, reply.text)
        if page := await self._take(message, message.id):
            return await self._tell(message, page.text)
        if await self._may_speak() == "yes":
            return SUCCESS
        return await self._gain_time(message, tries)

    async def _take(self, message: Message, answered: str) -> Kept | None:
        """Take the next page off the person's shelf: of those that answer a certain message, or "" for any."""
        return await self._change(message.user, lambda shelf: shelf.take(answered))

    async def _given(self, message: Message, text: str) -> str:
        """Return what to show of an answer that is there already: what is kept of it, else how it begins."""
        if page := await self._take(message, message.id):
            return page.text
        if utf8(text) <= self.can.max_length:
            return text
        return pages(text, self.can.max_length, self.can.dialect, self.can.measure)[0]

    async def _gain_time(self, message: Message, tries: int) -> Response:
        """Let WeChat ask again; the last time, tell the person how to get the answer."""
        if tries < TRIES:
            await asyncio.sleep(HOLD)
            return Response(status=503)  # nobody hears this any more
        await self._change(message.user, lambda shelf: shelf.wait_for(message.id))
        return self._reply(message, STILL)

    async def _count(self, message: Message) -> int:
        """Return how often this message has come, this time included."""
        key = f"tries/{message.id}"
        tries = int(await self.context.state.get(key) or 0) + 1
        await self.context.state.set(key, str(tries), REMEMBER)
        return tries

    async def _tell(self, message: Message, text: str, note: str = "") -> Response:
        """Build the response with a text, and remember it. Messages that are answered together wait together."""
        if not text:
            return SUCCESS
        digest = hashlib.sha256(f"{message.user}\n{text}".encode()).hexdigest()[:32]
        if not await self.context.state.swap(f"said/{digest}", None, "1", TOGETHER):
            return SUCCESS
        if utf8(text) > self.can.max_length / 2 and await self._may_speak() != "yes":
            note += MORE
        await self.context.state.set(f"told/{message.id}", text + note, REMEMBER)
        return self._reply(message, text + note)

    def _reply(self, message: Message, text: str) -> Response:
        """https://developers.weixin.qq.com/doc/service/guide/product/message/Passive_user_reply_message.html"""
        now = int(time.time())
        body = document(
            ToUserName=message.user, FromUserName=message.chat.ticket, CreateTime=now, MsgType="text", Content=text
        )
        if self.envelope is not None:
            sealed = self.envelope.seal(body)
            body = document(
                Encrypt=sealed.encrypt,
                MsgSignature=sealed.signature,
                TimeStamp=int(sealed.timestamp),
                Nonce=sealed.nonce,
            )
        return Response(body, content_type="application/xml; charset=utf-8")

    # -- later

    async def send(self, chat: Chat, page: Page) -> str:
        """Post a customer-service message; keep the page where that is refused.

        https://developers.weixin.qq.com/doc/service/api/customer/message/api_sendcustommessage.html
        """
        spoken = await self._may_speak() != "no" and await self._said(chat, page.text)
        kept = Kept(page.key, page.text, page.reply_to)
        await self._change(chat.id, lambda shelf: shelf.settle(kept) if spoken else shelf.put(kept))
        return page.key

    async def _said(self, chat: Chat, text: str) -> bool:
        """Post a customer-service message. False: the account may not, or not now."""
        try:
            await self._speak(
                "/cgi-bin/message/custom/send", {"touser": chat.id, "msgtype": "text", "text": {"content": text}}
            )
        except Refused as error:
            log.warning("answer kept to be fetched", instance=self.context.instance, reason=str(error))
            return False
        return True

    async def typing(self, chat: Chat) -> None:
        """Show that an answer is being written, for 15 s.

        https://developers.weixin.qq.com/doc/service/api/customer/message/api_customtyping.html
        """
        if await self._may_speak() != "no":
            await self._speak("/cgi-bin/message/custom/typing", {"touser": chat.id, "command": "Typing"})

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Fetch a file, for three days.

        https://developers.weixin.qq.com/doc/service/api/material/temporary/api_getmedia.html
        """
        if attachment.ref.startswith("https://"):
            return await self.client.download(attachment.ref, limit=limit, hosts=PICTURE_HOSTS)
        return await authorized(
            self.context.state, self._token, lambda token: media(self.client, token, attachment.ref, limit, ERRORS)
        )

    async def shelf(self, user: str) -> Shelf:
        """Return what a person may fetch now."""
        return await load(self.context.state, f"shelf/{user}", Shelf)

    async def _change(self, user: str, how: Callable[[Shelf], T]) -> T:
        return await change(self.context.state, f"shelf/{user}", Shelf, how, KEEP)

    async def _may_speak(self) -> str:
        """Return "yes", "no", or "" as long as it is not known whether the account may write by itself."""
        return await self.context.state.get("may_speak") or ""

    async def _speak(self, path: str, body: object) -> None:
        """Call the customer-service API and learn from it whether the account may."""
        try:
            await self._call("POST", path, body)
        except Refused as error:
            if error.code == NOT_PERMITTED:
                await self.context.state.set("may_speak", "no", DAY)
            raise
        await self.context.state.swap("may_speak", None, "yes", DAY)

    # -- the API

    async def _call(self, method: str, path: str, body: object = None) -> Reply:
        async def call(token: str) -> Reply:
            return await self.client.call(method, path, json=body, query={"access_token": token})

        return await authorized(self.context.state, self._token, call)

    async def _token(self, stale: str) -> Granted:
        """Get the access token; a new one when this one was refused.

        https://developers.weixin.qq.com/doc/service/api/base/api_getstableaccesstoken.html
        """
        granted = await self._granted(force=False)
        return await self._granted(force=True) if granted.access_token == stale else granted

    async def _granted(self, force: bool) -> Granted:
        body = {
            "grant_type": "client_credential",
            "appid": self.settings.app_id,
            "secret": self.settings.app_secret.get_secret_value(),
            "force_refresh": force,
        }
        return (await self.client.call("POST", "/cgi-bin/stable_token", json=body)).json(Granted)

    # -- set up

    async def register(self, url: str) -> list[Finding]:
        """List what a person must do in the console; there is no API for it."""
        token, key = (variable(self.context.instance, name) for name in ("token", "encoding_aes_key"))
        steps = (step.format(url=url, token=token, key=key) for step in STEPS)
        return [Finding(True, f"{n}. {step}") for n, step in enumerate(steps, 1)]

    async def check(self, url: str) -> list[Finding]:
        """Call the API, which takes the secret and the white list; tell what is known of customer-service messages."""
        try:
            await self._call("GET", "/cgi-bin/get_api_domain_ip")
        except PlatformError as error:
            return [Finding(False, f"account {self.settings.app_id}: {error}", self._advice(error))]
        known = {
            "yes": "late answers go out as customer-service messages",
            "no": "the account may not send customer-service messages: people fetch late answers by sending anything",
            "": "whether the account may send customer-service messages shows when somebody writes to it",
        }
        return [
            Finding(True, f"the secret of {self.settings.app_id} is valid"),
            Finding(True, known[await self._may_speak()]),
            Finding(True, f"whether the account calls {url} cannot be asked: write to it to see"),
        ]

    def _advice(self, error: PlatformError) -> str:
        app, secret, base = (variable(self.context.instance, name) for name in ("app_id", "app_secret", "api_base"))
        if not isinstance(error, Refused):
            return f"check {base} and the network, then try again"
        if error.code in ADDRESS:
            return "add that address to the account's IP white list in the console"
        return f"check {app} and {secret}: both must be of the same account"
