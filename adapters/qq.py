"""QQ, the official bot: https://bot.q.qq.com/wiki/develop/api-v2/

Private chats (C2C), groups, guild channels and their private chats. A bot may hardly ever write first: an answer hangs
on the message it answers, at most five on one, for an hour in private chats and five minutes elsewhere. A page that is
sent again is shown once: the platform knows it by `msg_id` and `msg_seq`. Nothing can be edited.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Literal
from urllib.parse import quote

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
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
    decode,
)
from bot.client import Client, Reply, http_failure, shared_token
from bot.config import HttpUrl, Secret, variable
from bot.errors import Malformed, PlatformError, Refused, Throttled, Unauthorized, Unavailable
from bot.markup import Dialect, code_span, flanking, markdown_link, triple_backticks

SIGNATURE, TIMESTAMP = "x-signature-ed25519", "x-signature-timestamp"
FRESH = 3600.0  # seconds an event is taken: afterwards nobody could be answered any more
CHALLENGE_FRESH = 300.0
HEARTBEAT, VALIDATION = 1, 13
ACK = Response.json({"op": 12, "d": 0})
BEAT = Response.json({"op": 11})
REPLIES = 5  # to one message
SPARE = 10.0  # seconds before the end of its window in which a message is not replied to any more
PAUSE = 5.0  # seconds to wait where the platform names none
HOSTS = (".qq.com", ".qq.com.cn", ".qpic.cn")  # where files lie
DAY = 86400.0
KINDS: Mapping[str, Literal["image", "audio", "video", "file"]] = {
    "image": "image",
    "voice": "audio",
    "audio": "audio",
    "video": "video",
}

# https://bot.q.qq.com/wiki/develop/api-v2/server-inter/message/type/markdown.html
# Tables would trip the filter for addresses.
MARKDOWN = Dialect(
    "qq-markdown",
    boundary=flanking(),
    bold=("**", "**"),
    italic=("*", "*"),
    strike=("~~", "~~"),
    code=code_span,
    heading=(("# ", ""), ("## ", "")),
    fence=triple_backticks,
    link=markdown_link,
    image=markdown_link,
    nested_quotes=False,
    rule="***",
)


class Scene(msgspec.Struct, frozen=True):
    """A kind of chat. `window`: seconds a message can be replied to."""

    name: str
    path: str
    kind: Literal["direct", "group"]
    window: float
    rich: bool = True  # shows Markdown and counts `msg_seq`


USERS = Scene("users", "/v2/users/{}/messages", "direct", 3600)
GROUPS = Scene("groups", "/v2/groups/{}/messages", "group", 300)
CHANNELS = Scene("channels", "/channels/{}/messages", "group", 300, rich=False)
DMS = Scene("dms", "/dms/{}/messages", "direct", 300, rich=False)
SCENES = {scene.name: scene for scene in (USERS, GROUPS, CHANNELS, DMS)}
EVENTS: Mapping[str, tuple[Scene, bool]] = {  # type: (scene, whether the bot is meant in any case)
    "C2C_MESSAGE_CREATE": (USERS, True),
    "GROUP_AT_MESSAGE_CREATE": (GROUPS, True),
    "GROUP_MESSAGE_CREATE": (GROUPS, False),
    "AT_MESSAGE_CREATE": (CHANNELS, True),
    "MESSAGE_CREATE": (CHANNELS, False),
    "DIRECT_MESSAGE_CREATE": (DMS, True),
}

# https://bot.q.qq.com/wiki/develop/api-v2/openapi/error/error.html
SHOWN_BEFORE = 40054005
STALE_STATUS = 401
STALE = {11241, 11242, 11243, 11244, STALE_STATUS}
STRANGERS = STALE | {11298, 100016}
AUDITED = {304023, 304024}  # taken, and shown once somebody has looked at it
LATE = {304103, 304027, 40034005, 40034024, 40034025, 40034026, 40034128}
NO_MARKDOWN = {50056, 304036, 40034127}  # the bot may not; others: not this text
BUSY = {20028, 22009, 50002, 100001, 40034100}
BROKEN = {50001, 50055001, 50055002, 40054006, 40054016}
REASONS: Mapping[int, str] = {
    11298: "our address is not on the bot's list of IPs (IP 白名单)",
    100016: "the app id and the secret do not belong together",
    304003: "the message holds an address that is not on the bot's list",
    40034006: "the platform objects to the content",
    40034100: "the bot wrote first too often",
    40034101: "the bot is not in the group",
    40034102: "the bot may not write first",
    40034105: "the bot may not write first",
    40054002: "the bot is muted here",
    40054003: "the bot is not in the group",
    40054004: "the person has removed the bot",
    40054007: "the message is too long",
    40054010: "the message holds an address that is not on the bot's list",
    40054013: "the person does not want messages of the bot",
    40054018: "the message is too long",
}
STEPS = (
    "Open https://q.qq.com, your bot, Development. / 打开 q.qq.com，进入机器人的「开发」。",
    "Development settings: copy AppID and AppSecret; put this server's address on the list of IPs. "
    "/ 「开发设置」：复制 AppID、AppSecret，并把本服务器出口 IP 加入「IP 白名单」。",
    "Callback settings, URL: {url} (port 443, 80, 8443 or 8080). / 「回调配置」填入该地址。",
    "Save while the bot is running: the platform calls at once. / 先启动机器人再点保存，平台会立即验证。",
    "Tick the events of private chats, groups and guilds. / 勾选单聊、群聊、频道的消息事件。",
    "Until the bot is published, add people and groups in Sandbox. / 上线前在「沙箱配置」里添加成员和群。",
)


class QqSettings(AdapterSettings):
    """Variables QQ_*."""

    app_id: str = Field(min_length=1, description="q.qq.com > Development > Development settings: AppID")
    app_secret: Secret = Field(min_length=1, description="The same page: AppSecret; it also checks what comes in")
    token_base: HttpUrl = Field("https://bots.qq.com", min_length=1, description="The server that gives access tokens")
    api_base: HttpUrl = Field(
        "https://api.sgroup.qq.com",
        min_length=1,
        description="The API server; sandbox: https://sandbox.api.sgroup.qq.com",
    )


# -- what the platform sends: https://bot.q.qq.com/wiki/develop/api-v2/dev-prepare/interface-framework/event-emit.html


class Payload(msgspec.Struct):
    """One call of the webhook."""

    op: int
    t: str | None = None
    d: msgspec.Raw = msgspec.Raw(b"null")


class Validation(msgspec.Struct):
    """The test of the URL. Nothing in it may look like an event: we sign it with the key that proves events."""

    plain_token: str
    event_ts: str


class Author(msgspec.Struct):
    id: str | None = None
    user_openid: str | None = None
    member_openid: str | None = None
    username: str | None = None
    bot: bool | None = None


class Mention(msgspec.Struct):
    id: str | None = None
    member_openid: str | None = None
    username: str | None = None
    bot: bool | None = None
    is_you: bool | None = None


class File(msgspec.Struct):
    content_type: str | None = None
    filename: str | None = None
    url: str | None = None
    size: int | None = None
    voice_wav_url: str | None = None
    asr_refer_text: str | None = None  # what was said


class Reference(msgspec.Struct):
    message_id: str | None = None


class Incoming(msgspec.Struct):
    """A message, in any scene."""

    id: str | None = None
    content: str | None = None
    timestamp: str | None = None
    author: Author | None = None
    group_openid: str | None = None
    channel_id: str | None = None
    guild_id: str | None = None
    mentions: list[Mention] | None = None
    attachments: list[File] | None = None
    message_reference: Reference | None = None


class Ticket(msgspec.Struct):
    """The right to reply to a message, and until when (seconds since 1970)."""

    message: str = ""
    until: float = 0


# -- what it answers


class Problem(msgspec.Struct):
    code: int = 0
    err_code: int = 0


class Granted(msgspec.Struct):
    access_token: str = ""
    expires_in: int | str = 0
    code: int = 0


class Sent(msgspec.Struct):
    id: str = ""


class Me(msgspec.Struct):
    username: str = ""


def failure(reply: Reply) -> PlatformError | None:
    """Read an error off an answer. Known codes count whatever the HTTP status is; texts may quote the message."""
    problem = reply.json(Problem) if reply.body.startswith(b"{") else Problem()
    code = problem.err_code or problem.code
    if code in AUDITED or (reply.status < 300 and not code):
        return None
    reason = f"{REASONS.get(code, 'refused')} (HTTP {reply.status}, code {code})"
    if code in STRANGERS or reply.status == 401:
        return Unauthorized(reason, code or STALE_STATUS)
    if code in BUSY:
        return Throttled(reason, PAUSE)
    if code in BROKEN:
        return Unavailable(reason)
    if code not in KNOWN and (reply.status == 429 or reply.status >= 500):
        return http_failure(reply)
    return Refused(reason, code)


# -- the forms a page can take, in the order they are tried

_NAME = r"(?:[\w-]+\.)+[a-z]{2,}"
ADDRESS = re.compile(rf"(?:[a-z][a-z0-9+-]*://)?({_NAME}|(?:\d{{1,3}}\.){{3}}\d{{1,3}})", re.IGNORECASE)


def without_addresses(text: str) -> str:
    """Write addresses so that they are no links: `https://example.com/a` becomes `example[.]com/a`."""
    return ADDRESS.sub(lambda found: found[1].replace(".", "[.]"), text)


RICH, TEXT, HARMLESS = range(3)
FORMS: tuple[Callable[[Page], dict[str, object]], ...] = (
    lambda page: {"msg_type": 2, "markdown": {"content": page.text}},
    lambda page: {"msg_type": 0, "content": page.plain or page.text},
    lambda page: {"msg_type": 0, "content": without_addresses(page.plain or page.text)},
)
INSTEAD: Mapping[int, int] = {
    **dict.fromkeys(NO_MARKDOWN | {22006, 40034008, 40034009, 40034010, 40034011, 40034124}, TEXT),
    **dict.fromkeys((304003, 40054010), HARMLESS),
}
KNOWN = {SHOWN_BEFORE, *REASONS, *LATE, *INSTEAD}


class QqAdapter(WebhookAdapter[QqSettings]):
    """An official bot of QQ."""

    name = "qq"
    title = "QQ official bot (QQ 机器人)"
    docs = "https://bot.q.qq.com/wiki/develop/api-v2/"
    Settings = QqSettings
    # No limit is printed; 5,000 characters pass. The margin is for pages that grow when they lose their markup.
    can = Capabilities(max_length=4000, dialect=MARKDOWN, pages_per_second=2)

    def __init__(self, settings: QqSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.client = Client(settings.api_base, failure=failure)
        self.tokens = Client(settings.token_base, failure=failure)
        self._key = private_key(settings.app_secret.get_secret_value())
        self._public_key = self._key.public_key().public_bytes_raw().hex()

    async def stop(self) -> None:
        """Close the connections."""
        await self.client.close()
        await self.tokens.close()

    # -- inbound

    async def verify(self, request: Request) -> None:
        """Check the signature of time and raw body, of the URL's test too, which would else sign for anybody.

        https://bot.q.qq.com/wiki/develop/api-v2/dev-prepare/interface-framework/sign.html
        """
        timestamp = request.header(TIMESTAMP)
        signed = timestamp.encode(errors="surrogatepass") + request.body
        signing.ed25519(self._public_key, request.header(SIGNATURE), signed, "X-Signature-Ed25519")
        signing.fresh(timestamp, FRESH, "X-Signature-Timestamp")

    def parse(self, request: Request) -> Inbound:
        """Translate one call."""
        payload = request.json(Payload)
        if payload.op == VALIDATION:
            return Inbound(response=self._validated(decode(bytes(payload.d), Validation)), ignored="test of the URL")
        if payload.op == HEARTBEAT:
            return Inbound(response=BEAT, ignored="heartbeat")
        known = EVENTS.get(payload.t or "") if payload.op == 0 else None
        if known is None:
            return Inbound(response=ACK, ignored=payload.t or f"op {payload.op}")
        found = _message(*known, decode(bytes(payload.d), Incoming))
        if isinstance(found, str):
            return Inbound(response=ACK, ignored=found)
        return Inbound((found,), response=ACK)

    def _validated(self, asked: Validation) -> Response:
        """Sign the test's token. What could be the beginning of an event is not signed."""
        if not re.fullmatch(r"[A-Za-z0-9_+/=.-]{1,256}", asked.plain_token):
            raise Malformed("plain_token: not what the platform sends")
        if not re.fullmatch(r"[0-9]{1,16}", asked.event_ts):
            raise Malformed("event_ts: not a number")
        signing.fresh(asked.event_ts, CHALLENGE_FRESH, "event_ts")
        signature = self._sign((asked.event_ts + asked.plain_token).encode())
        return Response.json({"plain_token": asked.plain_token, "signature": signature})

    def _sign(self, message: bytes) -> str:
        return self._key.sign(message).hex()

    def sample(self) -> Request:
        """Return a test of the URL, as the console sends it."""
        now = str(int(time.time()))
        body = msgspec.json.encode({"op": VALIDATION, "d": {"plain_token": "sample", "event_ts": now}})
        return Request(headers={TIMESTAMP: now, SIGNATURE: self._sign(now.encode() + body)}, body=body)

    # -- outbound

    async def send(self, chat: Chat, page: Page) -> str:
        """Post a page: as Markdown where the bot may, else as text, without addresses where they are not allowed.

        https://bot.q.qq.com/wiki/develop/api-v2/server-inter/message/send-receive/send.html
        """
        form = RICH if _scene(chat).rich and not await self.context.state.get("plain") else TEXT
        while True:
            try:
                return await self._post(chat, page, form)
            except Refused as error:
                instead = INSTEAD.get(int(error.code or 0), form)
                if instead <= form:
                    raise
                if error.code in NO_MARKDOWN:
                    await self.context.state.set("plain", "1", DAY)
                form = instead

    async def _post(self, chat: Chat, page: Page, form: int) -> str:
        """Reply while that is possible, else write first, which few bots may."""
        body = FORMS[form](page)
        if reply := _reply(chat, page, form):
            try:
                return await self._sent(chat, body | reply)
            except Refused as error:
                if error.code == SHOWN_BEFORE:
                    return page.key
                if error.code not in LATE:
                    raise
        return await self._sent(chat, body)

    async def _sent(self, chat: Chat, body: dict[str, object]) -> str:
        scene, id = _scene(chat), quote(chat.id.partition("/")[2], safe="")
        if not scene.rich:
            body = {key: value for key, value in body.items() if key not in ("msg_type", "msg_seq")}
        return (await self._call("POST", scene.path.format(id), body)).json(Sent).id

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Fetch a file; the address itself is the permission."""
        return await self.client.download(attachment.ref, limit=limit, hosts=HOSTS)

    async def _call(self, method: str, path: str, body: object = None) -> Reply:
        """Make a call with the token of all replicas; with a new one when the platform refuses it."""
        token = await shared_token(self.context.state, self._token)
        try:
            return await self._authorized(token, method, path, body)
        except Unauthorized as error:
            if error.code not in STALE:
                raise
        token = await shared_token(self.context.state, self._token, stale=token)
        return await self._authorized(token, method, path, body)

    async def _authorized(self, token: str, method: str, path: str, body: object) -> Reply:
        return await self.client.call(method, path, json=body, headers={"Authorization": f"QQBot {token}"})

    async def _token(self) -> tuple[str, float]:
        """Get an access token: https://bot.q.qq.com/wiki/develop/api-v2/dev-prepare/interface-framework/api-use.html"""
        body = {"appId": self.settings.app_id, "clientSecret": self.settings.app_secret.get_secret_value()}
        granted = (await self.tokens.call("POST", "/app/getAppAccessToken", json=body)).json(Granted)
        if not granted.access_token or not re.fullmatch("[0-9]{1,9}", str(granted.expires_in)):
            raise Unavailable("no access token in the answer")
        return granted.access_token, float(granted.expires_in)

    # -- set up

    async def register(self, url: str) -> list[Finding]:
        """List what a person must do in the console; there is no API for it."""
        return [Finding(True, f"{n}. {step.format(url=url)}") for n, step in enumerate(STEPS, 1)]

    async def check(self, url: str) -> list[Finding]:
        """Ask who we are: that takes the app id, the secret and a listed IP."""
        try:
            me = (await self._call("GET", "/users/@me")).json(Me)
        except Unauthorized as error:
            advice = ", ".join(variable(self.context.instance, name) for name in ("app_id", "app_secret"))
            return [Finding(False, f"not let in: {error}", f"check {advice} and the IP list in the console")]
        except PlatformError as error:
            bases = ", ".join(variable(self.context.instance, name) for name in ("token_base", "api_base"))
            return [Finding(False, f"no answer: {error}", f"check {bases} and the network, then try again")]
        return [
            Finding(True, f"the secret is that of {me.username}"),
            Finding(True, f"whether the bot calls {url} cannot be asked: write to it to see"),
        ]


def private_key(secret: str) -> Ed25519PrivateKey:
    """Make the key that signs events: its seed is the secret, repeated up to 32 bytes.

    https://bot.q.qq.com/wiki/develop/api-v2/dev-prepare/interface-framework/sign.html
    """
    seed = secret.encode()
    return Ed25519PrivateKey.from_private_bytes((seed * (32 // len(seed) + 1))[:32])


def _scene(chat: Chat) -> Scene:
    return SCENES[chat.id.partition("/")[0]]


def _reply(chat: Chat, page: Page, form: int) -> dict[str, object]:
    """Return what ties a page to its question, {} when that is over. One page in one form has one `msg_seq`."""
    number = int(page.key.rpartition(":")[2] or 0)
    ticket = msgspec.json.decode(chat.ticket or "{}", type=Ticket)
    if number >= REPLIES or time.time() > ticket.until - SPARE:
        return {}
    return {"msg_id": ticket.message, "msg_seq": 1 + number + 100 * form}


def _message(scene: Scene, meant: bool, it: Incoming) -> Message | str:
    """Return the message of an event, or why there is none."""
    author = it.author or Author()
    if author.bot:
        return "message of a bot"
    user = author.user_openid or author.member_openid or author.id or ""
    chats = {USERS.name: user, GROUPS.name: it.group_openid, CHANNELS.name: it.channel_id, DMS.name: it.guild_id}
    chat = chats[scene.name]
    if not (it.id and user and chat):
        return "nobody to answer"
    text, named = _words(it)
    files = tuple(attachment for file in it.attachments or () if (attachment := _attachment(file)))
    if not (text or files or named or meant):
        return "nothing that can be read"
    ticket = msgspec.json.encode(Ticket(it.id, _written_at(it.timestamp) + scene.window)).decode()
    return Message(
        id=it.id,
        chat=Chat(f"{scene.name}/{chat}", scene.kind, ticket=ticket),
        user=user,
        text=text,
        user_name=author.username or "",
        addressed=meant or named or text.startswith(("/", "／")),
        attachments=files,
        reply_to=(it.message_reference.message_id if it.message_reference else "") or "",
        locale="zh",
    )


def _written_at(timestamp: str | None) -> float:
    """Return when a message was written (seconds since 1970), now when it does not say."""
    now = time.time()
    if not timestamp or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", timestamp):
        return now
    try:
        return min(datetime.fromisoformat(timestamp).timestamp(), now)
    except (ValueError, OverflowError):  # the 31st of February
        return now


def _words(it: Incoming) -> tuple[str, bool]:
    """Return what was said without the mention of the bot, and whether there was one."""
    mentions = it.mentions or []
    mine = [mention for mention in mentions if mention.is_you] or [mention for mention in mentions if mention.bot]
    named = any(mention.is_you for mention in mentions)
    text = re.sub(r"<faceType=[^<>]*>", "[表情]", it.content or "")
    for mention in mentions:
        shown = "" if mention in mine[:1] else f"@{mention.username or 'user'} "
        for id in filter(None, (mention.id, mention.member_openid)):
            text = re.sub(rf"<@!?{re.escape(id)}>\s*", shown.replace("\\", ""), text)
    if not mentions:
        text = re.sub(r"^\s*<@!?\w+>", "", text)  # guilds: the one who is called first is the bot
    spoken = " ".join(file.asr_refer_text for file in it.attachments or () if file.asr_refer_text)
    return text.strip() or spoken.strip(), named


def _attachment(file: File) -> Attachment | None:
    url = file.voice_wav_url or file.url or ""
    if not url:
        return None
    if not url.startswith("https://"):
        url = "https://" + re.sub("^(http:)?//", "", url)
    mime = (file.content_type or "").lower()
    kind = KINDS.get(mime.partition("/")[0], "file")
    size = max(file.size or 0, 0)
    return Attachment(kind, url, mime if "/" in mime else "", file.filename or "", size)
