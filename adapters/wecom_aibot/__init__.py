"""WeCom AI bot (企业微信智能机器人), called by URL: https://developer.work.weixin.qq.com/document/path/101039

Private chats and groups. A callback is answered at once with an empty stream; WeCom then polls for the whole text so
far, until it is told that the text is finished or six minutes are over. What `begin`, `edit` and `send` write into the
shared state is what a poll hears, on any replica. https://developer.work.weixin.qq.com/document/path/101031
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec
from pydantic import Field

from adapters.wechat_api import Answer, Errors, error_of
from adapters.wechat_crypto import EncodingAESKey, Envelope, decrypt
from adapters.wechat_state import change, load
from adapters.wecom_aibot.callback import Callback, Polled, Sealed, without_mention
from adapters.wecom_aibot.stream import Stream, Ticket, queue, stream_id
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
    Post,
    Request,
    Response,
    WebhookAdapter,
    decode,
)
from bot.client import Client, Reply, http_failure
from bot.config import HttpUrl, Secret, variable
from bot.errors import Malformed, PlatformError, Refused, Throttled, Unavailable, Unverified
from bot.markup import MARKDOWN, utf8

T = TypeVar("T")

LONGEST = 20_480 - 256  # bytes of a stream, with room for our own notes
POLLED_FOR = 330.0  # seconds; WeCom stops after six minutes
TAKEN_WITHIN = 10.0  # seconds in which a question that is going to be answered has been stored
REMEMBER = 7200.0  # seconds for which a stream is kept; the right to a late answer lives an hour
LATE = "/cgi-bin/aibot/response"  # where a late answer goes, once
MEDIA_HOSTS = (".myqcloud.com", ".qpic.cn", ".qq.com")  # they get no token

POLL = "poll"
WELCOME = "你好！直接给我发消息就行，发送 /帮助 查看命令。\nHello! Just write to me; /help lists the commands."
NOT_YET = "（还没写完，写好后会另发一条消息。/ Not finished yet; the answer follows as another message.）"
TOGETHER = "（已和后面的消息一起回答。/ Answered together with your next message.）"
NOT_TAKEN = "（消息太快啦，请过一分钟再发。/ You are writing faster than I may answer. Please wait a minute.）"
GONE = "（这条回答已经找不到了，请再问一次。/ This answer is no longer here. Please ask again.）"

# https://developer.work.weixin.qq.com/document/path/90313
ERRORS: Errors = {
    -1: (Unavailable, "the platform is busy"),
    45009: (Throttled, "rate limit of the API"),
    45033: (Throttled, "too many calls at once"),
}
STEPS = (
    "Open https://work.weixin.qq.com/wework_admin, Security and management, Management tools, AI bots. / "
    "打开管理后台「安全与管理」→「管理工具」→「智能机器人」。",
    "Create a bot in API mode, by URL callback. / 创建机器人，选「API 模式」→「URL 回调」。",
    "URL: {url}",
    "Token: the value of {token}. EncodingAESKey: the value of {key}. / 填入这两个变量的值。",
    "Save while the bot is running: the platform calls at once. / 先启动机器人再保存，平台会立即验证。",
)


class WecomAibotSettings(AdapterSettings):
    """Variables WECOM_AIBOT_*."""

    token: Secret = Field(min_length=1, description="API mode (API 模式): Token")
    encoding_aes_key: EncodingAESKey = Field(description="API mode (API 模式): EncodingAESKey, 43 characters")
    name: str = Field("", description="The bot's name, if it holds spaces: needed to remove its mention in groups")
    api_base: HttpUrl = Field("https://qyapi.weixin.qq.com", min_length=1, description="The API server")


def late_failure(reply: Reply) -> PlatformError | None:
    """Read an error off the answer to a late message. What a success looks like is not documented."""
    if error := http_failure(reply):
        return error
    return error_of(reply.json(Answer), ERRORS) if reply.body[:1] == b"{" else None


# -- the adapter ------------------------------------------------------------------------------------------------


class WecomAibotAdapter(WebhookAdapter[WecomAibotSettings]):
    """A bot that members write to, also in their groups."""

    name = "wecom_aibot"
    title = "WeCom AI bot (企业微信智能机器人)"
    docs = "https://developer.work.weixin.qq.com/document/path/101039"
    Settings = WecomAibotSettings
    can = Capabilities(max_length=LONGEST, measure=utf8, dialect=MARKDOWN, edit_every=0.5)

    def __init__(self, settings: WecomAibotSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.envelope = Envelope(settings.token, settings.encoding_aes_key, "")
        self.client = Client(settings.api_base, failure=late_failure)

    async def stop(self) -> None:
        await self.client.close()

    # -- inbound

    async def verify(self, request: Request) -> None:
        """Check the signature: https://developer.work.weixin.qq.com/document/path/101033"""
        self._opened(request)

    def _opened(self, request: Request) -> bytes:
        if request.method == "GET":
            return self.envelope.open(request.query, request.query.get("echostr", "").replace(" ", "+"))
        try:
            sealed = request.json(Sealed)
        except Malformed as error:
            raise Unverified(str(error)) from None
        return self.envelope.open(request.query, sealed.encrypt or sealed.Encrypt)

    def parse(self, request: Request) -> Inbound:
        """Translate a callback and begin its stream, or answer the console's test."""
        opened = self._opened(request)
        if request.method == "GET":
            return Inbound(response=Response(opened), ignored="test of the URL")
        it = decode(opened, Callback)
        if it.msgtype == "stream":
            return Inbound(ignored=POLL)
        if it.msgtype == "event":
            return self._event(request, it)
        if it.sender.userid == "sys" or (it.chattype == "group" and not it.chatid):
            return Inbound(ignored="message of the system")
        if not (it.msgid and it.sender.userid):
            raise Malformed("body: msgid or from.userid is missing")
        message = self._message(it)
        return Inbound((message,), self._stream(request, stream_id(message.id), "", finish=False))

    def _event(self, request: Request, it: Callback) -> Inbound:
        """Welcome who opens the chat; other events need no answer."""
        kind = it.event.eventtype if it.event else ""
        welcome = {"msgtype": "text", "text": {"content": WELCOME}}
        response = self._reply(request, welcome) if kind == "enter_chat" else Response()
        return Inbound(response=response, ignored=f"event {kind[:40]}")

    def _message(self, it: Callback) -> Message:
        group = it.chattype == "group"
        text, member = it.said(), it.sender.userid
        ticket = Ticket(stream_id(it.msgid), time.time(), member, it.response_url)
        return Message(
            id=it.msgid,
            chat=Chat(
                it.chatid if group else member,
                "group" if group else "direct",
                ticket=msgspec.json.encode(ticket).decode(),
            ),
            user=member,
            text=without_mention(text, self.settings.name) if group else text,
            attachments=it.attached() + (it.quote.attached() if it.quote else ()),
            quote=it.quote.said() if it.quote else "",
            locale="zh",
        )

    def sample(self) -> Request:
        """Return an event that holds no message."""
        event = {"msgtype": "event", "msgid": "sample", "event": {"eventtype": "sample"}}
        sealed = self.envelope.seal(msgspec.json.encode(event))
        query = {"msg_signature": sealed.signature, "timestamp": sealed.timestamp, "nonce": sealed.nonce}
        return Request(query=query, body=msgspec.json.encode({"encrypt": sealed.encrypt}))

    # -- polls

    async def at_once(self, request: Request, inbound: Inbound) -> Response | None:
        """Note when a question came; answer a poll with what is written so far."""
        for message in inbound.messages:
            await self._open(message)
        return await self._polled(request) if inbound.ignored == POLL else None

    async def _open(self, message: Message) -> None:
        ticket, mine = decode(message.chat.ticket, Ticket), queue(message.chat.id, message.user)
        await self._change(ticket.stream, lambda stream: stream.open(ticket.since, mine))

    async def _polled(self, request: Request) -> Response:
        polled = decode(self._opened(request), Callback).stream or Polled()
        stream = await load(self.context.state, f"stream/{polled.id}", Stream)
        note = "" if stream.finished else await self._ending(stream)
        if note:
            stream = await self._change(polled.id, Stream.close)
        content = stream.content if stream.finished else "\n\n".join(filter(None, (stream.content, note)))
        return self._stream(request, polled.id, content, finish=bool(stream.finished or note))

    async def _ending(self, stream: Stream) -> str:
        """Say why a stream ends although it is not finished, "" when it goes on."""
        age = time.time() - stream.since
        if not stream.since:
            return GONE
        if age > POLLED_FOR:
            return NOT_YET
        if stream.content:
            return ""
        if age > TAKEN_WITHIN and not stream.taken:
            return NOT_TAKEN
        begun = float(await self.context.state.get(f"begun/{stream.queue}") or 0)
        return TOGETHER if begun > stream.since else ""

    async def acknowledge(self, message: Message) -> None:
        """Note that a question will be answered."""
        await self._change(decode(message.chat.ticket, Ticket).stream, Stream.take)

    def _stream(self, request: Request, id: str, content: str, *, finish: bool) -> Response:
        stream = {"id": id, "finish": finish, "content": content}
        return self._reply(request, {"msgtype": "stream", "stream": stream})

    def _reply(self, request: Request, value: object) -> Response:
        """Encrypt an answer: https://developer.work.weixin.qq.com/document/path/101033"""
        sealed = self.envelope.seal(msgspec.json.encode(value), request.query.get("nonce", ""))
        reply = {
            "encrypt": sealed.encrypt,
            "msgsignature": sealed.signature,
            "timestamp": int(sealed.timestamp),
            "nonce": sealed.nonce,
        }
        return Response(msgspec.json.encode(reply))

    # -- outbound

    async def begin(self, chat: Chat, page: Page) -> str:
        """Show the beginning of a page to those who poll."""
        id = await self.edit(chat, Post(decode(chat.ticket, Ticket).stream), page, last=False)
        await self._begun(chat)
        return id

    async def send(self, chat: Chat, page: Page) -> str:
        """Show a finished page to those who poll; what does not fit there goes out as a late answer."""
        id = await self.edit(chat, Post(decode(chat.ticket, Ticket).stream), page, last=True)
        await self._begun(chat)
        return id

    async def edit(self, chat: Chat, post: Post, page: Page, last: bool) -> str:
        """Show the page to those who poll."""
        ticket = decode(chat.ticket, Ticket)
        shown = await self._change(ticket.stream, lambda stream: stream.write(page, last))
        if last and not shown and page.key:
            await self._post(ticket, page)
        return post.id

    async def _begun(self, chat: Chat) -> None:
        """Note that this question is being answered: those before it were, or are with it."""
        ticket = decode(chat.ticket, Ticket)
        await self.context.state.set(f"begun/{queue(chat.id, ticket.member)}", repr(ticket.since), REMEMBER)

    async def _post(self, ticket: Ticket, page: Page) -> None:
        """Post a late answer, once: https://developer.work.weixin.qq.com/document/path/101138"""
        where, _, query = ticket.url.partition("?")
        posted = (await load(self.context.state, f"stream/{ticket.stream}", Stream)).posted
        if posted == page.key:
            return
        if posted or not where.endswith(LATE):
            raise Refused("a question gives the right to one stream and one late answer")
        body = {"msgtype": "markdown", "markdown": {"content": page.text}}
        await self.client.call("POST", LATE, json=body, query=dict(parse_qsl(query)))
        await self._change(ticket.stream, lambda stream: stream.post(page.key))

    async def _change(self, id: str, how: Callable[[Stream], T]) -> T:
        return await change(self.context.state, f"stream/{id}", Stream, how, REMEMBER)

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Fetch a file, which is encrypted as callbacks are, without a head."""
        data = await self.client.download(attachment.ref, limit=limit, hosts=MEDIA_HOSTS)
        try:
            return decrypt(self.envelope.key, data)
        except Unverified as error:
            raise Refused(f"the file: {error}") from None

    # -- set up

    async def register(self, url: str) -> list[Finding]:
        """List what a person must do in the console; there is no API for it."""
        token, key = (variable(self.context.instance, name) for name in ("token", "encoding_aes_key"))
        steps = (step.format(url=url, token=token, key=key) for step in STEPS)
        return [Finding(True, f"{n}. {step}") for n, step in enumerate(steps, 1)]

    async def check(self, url: str) -> list[Finding]:
        """Nothing can be asked: the bot has no token of its own."""
        return [Finding(True, f"whether WeCom calls {url} cannot be asked: write to the bot to see")]
