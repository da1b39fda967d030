"""OneBot v11 over HTTP: an ordinary QQ account served by NapCat, Lagrange and others.

https://github.com/botuniverse/onebot-11. Events come as signed POSTs and want an empty response (a body would be read
as an order); answers are calls of the implementation's own HTTP API. Nothing can be edited, and an account that sends
too fast is suspended by QQ: answers are posted whole, and what QQ did not take is not pressed upon it.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterable
from typing import Literal, TypeVar

import msgspec
from pydantic import Field

from bot import signing
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
from bot.errors import PlatformError, Refused, Throttled, Unauthorized
from bot.markup import PLAIN

T = TypeVar("T")

SIGNATURE = "x-signature"
NOTHING = Response(status=204)
PAUSE = 90.0  # seconds of silence after a failure that may be QQ's control of risks: long, so that nobody insists
LONGEST_TEXT = 4000  # characters; nothing is documented, about 4,500 are seen to pass
GROUP = "group:"  # begins the ids of groups: a group and a person may have the same number
MENTION = "\0"  # stands for the bot's own name until it is taken out
HOSTS = (".qq.com", ".qq.com.cn", ".qpic.cn")  # where QQ keeps pictures and files
# Accounts of QQ's official bots: https://napneko.github.io/develop/api (get_robot_uin_range)
ROBOTS = (
    range(66600000, 66600001),
    range(2854196301, 2854216400),
    range(3328144510, 3328144511),
    range(3889000000, 3890000000),
    range(4010000000, 4020000000),
)
KINDS: dict[str, tuple[Literal["image", "audio", "video", "file"], str]] = {  # segment: (kind, action that fetches it)
    "image": ("image", "get_image"),
    "record": ("audio", "get_record"),
    "video": ("video", "get_file"),
    "file": ("file", "get_file"),
}
QUEUED = 1  # the implementation took the message and sends it later
RETCODES: dict[int, tuple[type[Refused], str]] = {
    1400: (Refused, "the request is not understood"),
    1401: (Unauthorized, "the access token is missing"),
    1403: (Unauthorized, "the access token is wrong"),
    1404: (Refused, "the action is not known"),
}
FINAL = re.compile(
    r"禁言|muted|不是好友|not (a )?friend|被移出|不在群|not in (the )?group|不存在|not exist|已解散", re.I
)
STEPS = (
    "Open the settings of your OneBot implementation (NapCat: WebUI at port 6099, Network). / 打开网络配置。",
    "Add an HTTP client (HTTP 客户端, HTTP POST). URL / 地址: {url}",
    "Its token (secret) / 上报密钥 token: the value of {secret}. Message format / 消息格式: array.",
    "Do not report own messages. / 不要上报自身消息。",
    "Add an HTTP server (HTTP 服务器). Its address goes into {base}, its token into {token}. / 填入这两个变量。",
    "In a container 127.0.0.1 is the container itself: use names or addresses. / 容器里不要用 127.0.0.1。",
)

NUMBER = re.compile("[0-9]{1,18}")
Number = int | str | None  # implementations differ
Scalar = str | int | float | bool | None


class OnebotSettings(AdapterSettings):
    """Variables ONEBOT_*."""

    api_base: HttpUrl = Field(
        "http://127.0.0.1:3000", min_length=1, description="The OneBot implementation's HTTP server"
    )
    access_token: Secret = Field(min_length=1, description="Token of that HTTP server; never leave it open without one")
    secret: Secret = Field(
        min_length=1,
        description="Token (secret) of its HTTP client, that signs every event",
        json_schema_extra={"invented": True},
    )


# -- what it reports: https://github.com/botuniverse/onebot-11/blob/master/event/message.md


class Data(msgspec.Struct):
    """The parameters of a segment that are read here."""

    text: Scalar = ""
    qq: Scalar = ""
    name: Scalar = ""
    id: Scalar = ""
    file: Scalar = ""
    file_id: Scalar = ""
    file_size: Scalar = 0
    url: Scalar = ""


class Segment(msgspec.Struct):
    """A piece of a message: text, a mention, a picture ..."""

    type: str = ""
    data: Data | None = None

    def get(self, name: str) -> str:
        """Return a parameter as text, "" when it is absent."""
        value = getattr(self.data, name, None)
        return "" if value is None else str(value)


class Sender(msgspec.Struct):
    nickname: str | None = None
    card: str | None = None
    group_id: Number = None


class Event(msgspec.Struct):
    """Anything an implementation reports."""

    post_type: str = ""
    message_type: str = ""
    sub_type: str | None = None
    meta_event_type: str = ""
    notice_type: str = ""
    time: Number = None
    self_id: Number = None
    message_id: Number = None
    user_id: Number = None
    group_id: Number = None
    message: str | list[Segment] | None = None
    raw_message: str | None = None
    sender: Sender | None = None


# -- CQ codes: https://github.com/botuniverse/onebot-11/blob/master/message/string.md

CODE = re.compile(r"\[CQ:([\w.-]+)((?:,[\w.-]+=[^,\[\]]*)*)\]")
ESCAPES = (("&#91;", "["), ("&#93;", "]"), ("&#44;", ","), ("&amp;", "&"))


def segments(message: str) -> list[Segment]:
    """Read a message in the string format."""
    found, end = [], 0
    for code in CODE.finditer(message):
        found.append(_text(message[end : code.start()]))
        pairs = (pair.split("=", 1) for pair in code[2].split(",")[1:])
        found.append(Segment(code[1], msgspec.convert({key: _unescaped(value) for key, value in pairs}, Data)))
        end = code.end()
    return [*found, _text(message[end:])]


def _text(text: str) -> Segment:
    return Segment("text", Data(_unescaped(text)))


def _unescaped(text: str) -> str:
    for code, character in ESCAPES:
        text = text.replace(code, character)
    return text


# -- what it answers: https://github.com/botuniverse/onebot-11/blob/master/communication/http.md


class Sent(msgspec.Struct):
    message_id: Number = None


class File(msgspec.Struct):
    base64: bytes | None = None
    url: str | None = None


class Account(msgspec.Struct):
    user_id: Number = None
    nickname: str = ""
    online: bool | None = None


class Result(msgspec.Struct):
    """The envelope of every answer. The texts may quote the message: they are looked at, not logged."""

    status: str = ""
    retcode: int = 0
    data: msgspec.Raw = msgspec.Raw(b"null")
    message: str | None = None
    wording: str | None = None


def failure(reply: Reply) -> PlatformError | None:
    """Read an error out of an HTTP 200. What is not known to be final is tried again, after a pause."""
    if reply.status >= 400:
        return None
    result = reply.json(Result)
    if result.retcode in (0, QUEUED) and result.status != "failed":
        return None
    if result.retcode in RETCODES:
        kind, reason = RETCODES[result.retcode]
        return kind(f"retcode {result.retcode}: {reason}", result.retcode)
    if FINAL.search(f"{result.message} {result.wording}"):
        return Refused(f"retcode {result.retcode}: muted, no friend, or no member of the group", result.retcode)
    return Throttled(f"retcode {result.retcode}: not sent, see the log of the OneBot implementation", PAUSE)


class OnebotAdapter(WebhookAdapter[OnebotSettings]):
    """A QQ account behind a OneBot implementation."""

    name = "onebot"
    title = "QQ by OneBot v11 (NapCat, Lagrange)"
    docs = "https://github.com/botuniverse/onebot-11"
    Settings = OnebotSettings
    can = Capabilities(max_length=LONGEST_TEXT, dialect=PLAIN, typing_every=8, pages_per_second=0.7)

    def __init__(self, settings: OnebotSettings, context: Context) -> None:
        super().__init__(settings, context)
        bearer = {"Authorization": f"Bearer {settings.access_token.get_secret_value()}"}
        self.client = Client(settings.api_base, headers=bearer, failure=failure)
        self._secret = settings.secret.get_secret_value()

    async def stop(self) -> None:
        """Close the connections."""
        await self.client.close()

    # -- inbound

    async def verify(self, request: Request) -> None:
        """Compare the HMAC of the raw body; without one nothing is taken.

        https://github.com/botuniverse/onebot-11/blob/master/communication/http-post.md#签名
        """
        signing.equal(request.header(SIGNATURE), self._signature(request.body), "X-Signature")

    def _signature(self, body: bytes) -> str:
        return "sha1=" + signing.digest(self._secret, body, "sha1")

    def parse(self, request: Request) -> Inbound:
        """Translate one event."""
        found = self._event(request.json(Event))
        if isinstance(found, str):
            return Inbound(response=NOTHING, ignored=found)
        return Inbound((found,), response=NOTHING)

    def _event(self, event: Event) -> Message | str:
        """Return the message of an event, or why there is none."""
        user, me = _id(event.user_id), _id(event.self_id)
        if event.post_type == "message_sent" or (user and user == me):
            return "own message"
        if event.post_type != "message":
            return event.meta_event_type or event.notice_type or event.post_type or "unknown event"
        if event.message_type not in ("private", "group") or event.sub_type == "notice":
            return event.sub_type or event.message_type or "unknown message"
        if _is_robot(user):
            return "message of a bot"
        group = _id(event.group_id) if event.message_type == "group" else ""
        if not user or event.message_id is None or (event.message_type == "group" and not group):
            return "nobody to answer"
        return self._message(event, user, me, group)

    def _message(self, event: Event, user: str, me: str, group: str) -> Message | str:
        said = event.message or event.raw_message or ""
        pieces = segments(said) if isinstance(said, str) else said
        text, named = _words(pieces, me)
        files = tuple(_attachments(pieces))
        if not (text or files or named):
            return "nothing that can be read"
        sender = event.sender or Sender()
        chat = Chat(GROUP + group, "group") if group else Chat(user, ticket=_id(sender.group_id))
        return Message(
            id=f"{me}:{_id(event.time)}:{_id(event.message_id)}",
            chat=chat,
            user=user,
            text=text,
            user_name=sender.card or sender.nickname or "",
            addressed=not group or named or text.startswith(("/", "／")),
            attachments=files,
            reply_to=next((piece.get("id") for piece in pieces if piece.type == "reply"), ""),
            locale="zh",
        )

    def sample(self) -> Request:
        """Return a heartbeat."""
        body = b'{"post_type":"meta_event","meta_event_type":"heartbeat","self_id":0,"time":0}'
        return Request(headers={SIGNATURE: self._signature(body)}, body=body)

    # -- outbound

    async def send(self, chat: Chat, page: Page) -> str:
        """Post a message, in segments: so nothing in a text is taken for a CQ code.

        https://github.com/botuniverse/onebot-11/blob/master/api/public.md
        """
        message: list[object] = [{"type": "text", "data": {"text": page.text}}]
        if chat.kind == "group" and page.reply_to and page.key.endswith(":0"):
            message.insert(0, {"type": "reply", "data": {"id": page.reply_to.rpartition(":")[2]}})
        body = {**_receiver(chat), "message": message, "auto_escape": True}
        action = "send_group_msg" if chat.kind == "group" else "send_private_msg"
        return _id((await self._call(action, body, Sent)).message_id)

    async def typing(self, chat: Chat) -> None:
        """Show that an answer is being written, in private chats. NapCat alone knows this action."""
        if chat.kind == "direct":
            await self.client.call("POST", "/set_input_status", json={"user_id": _number(chat.id), "event_type": 1})

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Fetch a file from QQ, or from the implementation where there is no address."""
        if attachment.ref.startswith("https://"):
            return await self.client.download(attachment.ref, limit=limit, hosts=HOSTS)
        action, _, name = attachment.ref.partition(":")
        file = await self._call(action, {"file": name, "file_id": name, "out_format": "mp3"}, File)
        if file.url and not file.base64:
            return await self.client.download(_https(file.url), limit=limit, hosts=HOSTS)
        if not file.base64 or len(file.base64) > limit:
            raise Refused(f"the file is larger than {limit} bytes, or on the implementation's own disk")
        return file.base64

    async def _call(self, action: str, body: object, type: type[T]) -> T:
        result = (await self.client.call("POST", f"/{action}", json=body)).json(Result)
        return Reply(200, {}, bytes(result.data)).json(type)

    # -- set up

    async def register(self, url: str) -> list[Finding]:
        """List what a person must set in the implementation; there is no API for it."""
        base, token, secret = self._variables()
        steps = (step.format(url=url, base=base, token=token, secret=secret) for step in STEPS)
        return [Finding(True, f"{n}. {step}") for n, step in enumerate(steps, 1)]

    async def check(self, url: str) -> list[Finding]:
        """Ask who we are and whether the account is online."""
        base, token, _ = self._variables()
        try:
            account = await self._call("get_login_info", {}, Account)
            status = await self._call("get_status", {}, Account)
        except Unauthorized:
            return [Finding(False, "the access token is refused", f"set {token} to the token of the HTTP server")]
        except PlatformError as error:
            return [Finding(False, f"the OneBot implementation does not answer: {error}", f"check {base}")]
        online = status.online is not False
        return [
            Finding(True, f"the account is {account.nickname} ({_id(account.user_id)})"),
            Finding(online, f"it is {'online' if online else 'offline'}", "log in again on the implementation's page"),
            Finding(True, f"whether it reports to {url} cannot be asked: write to it to see"),
        ]

    def _variables(self) -> tuple[str, str, str]:
        base, token, secret = (variable(self.context.instance, name) for name in ("api_base", "access_token", "secret"))
        return base, token, secret


def _id(value: Number) -> str:
    return "" if value is None else str(value)


def _number(id: str) -> int | str:
    """Return an id as most implementations want it."""
    return int(id) if NUMBER.fullmatch(id) else id


def _is_robot(user: str) -> bool:
    number = _number(user)
    return isinstance(number, int) and any(number in robots for robots in ROBOTS)


def _receiver(chat: Chat) -> dict[str, int | str]:
    """Say who gets the message; to a stranger, out of which common group (`ticket`) it is."""
    if chat.kind == "group":
        return {"group_id": _number(chat.id.removeprefix(GROUP))}
    common: dict[str, int | str] = {"group_id": _number(chat.ticket)} if chat.ticket else {}
    return {"user_id": _number(chat.id), **common}


def _words(pieces: Iterable[Segment], me: str) -> tuple[str, bool]:
    """Return what was said without the mention of the bot, and whether there was one."""
    text = "".join(_written(piece, me) for piece in pieces)
    return re.sub(rf"{MENTION}\s?", "", text).strip(), MENTION in text


def _written(piece: Segment, me: str) -> str:
    if piece.type == "text":
        return piece.get("text").replace(MENTION, "")
    if piece.type != "at":
        return ""
    return MENTION if piece.get("qq") == me else f"@{piece.get('name').removeprefix('@') or piece.get('qq')}"


def _attachments(pieces: Iterable[Segment]) -> Iterable[Attachment]:
    for piece in pieces:
        if piece.type in KINDS:
            kind, action = KINDS[piece.type]
            url, name, size = _https(piece.get("url")), piece.get("name") or piece.get("file"), piece.get("file_size")
            ref = url or f"{action}:{piece.get('file_id') or piece.get('file')}"
            mime = (mimetypes.guess_type(name)[0] or "").lower()
            yield Attachment(kind, ref, mime, name, int(size) if NUMBER.fullmatch(size) else 0)


def _https(url: str) -> str:
    """Return an address of QQ, that some implementations write with http, as we ask for it; "" for none."""
    return re.sub("^http://", "https://", url) if url.startswith("http") else ""
