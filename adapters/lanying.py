"""Lanying IM (蓝莺IM, MaxIM). https://docs.lanyingim.com/

The REST API is documented: https://docs.lanyingim.com/reference/server-api/message.html
The callback and the streaming of replies are not: what is read and written here is what the vendor's own connector
reads and writes. https://github.com/maxim-top/lanying-connector
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec
from pydantic import Field

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
    Turn,
    WebhookAdapter,
    decode,
)
from bot.client import Client, Reply, http_failure
from bot.config import HttpUrl, Secret
from bot.errors import Malformed, PlatformError, Refused, Throttled, Unauthorized, Unavailable
from bot.markup import MARKDOWN
from bot.signing import equal

INT64 = 2**63 - 1
Kind: TypeAlias = Literal["direct", "group"]
Media: TypeAlias = Literal["image", "audio", "video", "file"]
Json: TypeAlias = dict[str, Any]
# A number or a string of digits. A float is refused: it could not hold the last digits of an int64.
Id: TypeAlias = (
    Annotated[int, msgspec.Meta(ge=0, le=INT64)] | Annotated[str, msgspec.Meta(pattern=r"^[0-9]{0,19}\Z")] | None
)

# -- the vendor's words -----------------------------------------------------------------------------------------

CHATS: Mapping[str, Kind] = {"CHAT": "direct", "GROUPCHAT": "group"}  # `type` of a callback
OPERATIONS = ("APPEND", "REPLACE", "READ_ACK", "READ_ALL", "READ_CANCEL", "DELIVER_ACK", "PLAY_ACK", "RECALL", "DELETE")
MEDIA: Mapping[str, Media] = {"IMAGE": "image", "AUDIO": "audio", "VIDEO": "video", "FILE": "file"}  # its `ctype`
READABLE = ("TEXT", "LOCATION", *MEDIA)  # COMMAND, FORWARD and RTC are not words of a person
COMMANDS = {"#reset_prompt": "/reset", "/reset_prompt": "/reset", "/": "/help"}  # the connector's, and ours

TARGETS: Mapping[Kind, int] = {"direct": 1, "group": 2}  # `type` of a request
TEXT, READ_ACK, APPEND, REPLACE = 0, 9, 11, 12  # its `content_type`
BLOCKED = "The content filter blocked this answer. / 这条回答被内容审核拦截，无法显示。"

# A client may give turns to remember (`prompt_ext`). In a group, where memory may be shared, nobody gets to write
# the bot's instructions.
ROLES: Mapping[Kind, tuple[str, ...]] = {"direct": ("system", "user", "assistant"), "group": ("user", "assistant")}
CONTEXT_TURNS = 20
CONTEXT_LENGTH = 4000  # characters of one turn
FEEDBACK_LENGTH = 2000  # bytes of JSON

FILES = "/file/download/chat"
FILE_URL = re.compile(r"https?://[A-Za-z0-9.:-]+(/[^?#\s]*)\?file_sign=[^&?#\s]+")
FILE_HOSTS = (".maximtop.cn", "api.maximtop.com")  # these get the token,
STORAGE_HOSTS = (".aliyuncs.com", ".lanyingim.com")  # these, where they redirect to, do not
FILE_OPTIONS: Mapping[str, str] = {"image": "&image_type=1", "audio": "&format=mp3"}  # original size; AMR converted

# Errors inside an HTTP 200. From 10000 on: https://docs.lanyingim.com/quick-start/server-api-quick-start.html
# The small ones are the SDK's; which of them the REST API uses is not documented.
PAUSE = 2.0  # seconds to wait after a rate limit, which comes without a number
ERRORS: Mapping[int, tuple[type[PlatformError], str]] = {
    20: (Throttled, "rate limit"),
    402: (Refused, "operation rejected"),
    406: (Throttled, "rate limit of messages"),
    716: (Throttled, "rate limit of the server"),
    10000: (Refused, "no such user"),
    10002: (Refused, "bad parameter"),
    10003: (Unauthorized, "the access token is missing"),
    10006: (Refused, "the bot is on the person's block list"),
    10008: (Unauthorized, "the access token is not valid"),
    10010: (Unauthorized, "the access token lacks a permission"),
    20000: (Unavailable, "the platform's database failed"),
    20001: (Refused, "no such group"),
    20002: (Refused, "the bot is not a member of the group"),
    20006: (Unavailable, "the group is being repaired"),
    30021: (Unauthorized, "the app's licence is not valid"),
    30022: (Unauthorized, "the app's licence has expired"),
    30023: (Unauthorized, "the app's licence is used up"),
    40000: (Unauthorized, "the app id is missing"),
}
ADVICE: tuple[tuple[type[PlatformError], str], ...] = (
    (Unauthorized, "check LANYING_ADMIN_TOKEN and LANYING_APP_ID: both must be of the same app"),
    (Refused, "check LANYING_BOT_USER_ID: create the bot as an IM user of the app and copy its user_id"),
    (PlatformError, "check LANYING_API_BASE (api_endpoint in the console) and the network, then try again"),
)
STEPS = (
    "Open https://console.lanyingim.com, your app, Subscriptions. / 打开控制台，进入应用的「信息订阅」。",
    "Add a subscription; receiver white-list: {me}. / 新增订阅，「接收方白名单」填 {me}。",
    "Callback URL / 「回调地址」: {url}",
    "Signature: the value of LANYING_CALLBACK_SIGNATURE. / 「签名」填 LANYING_CALLBACK_SIGNATURE 的值。",
    "For groups: add their ids, or leave the white-list empty. / 群聊：白名单加上群 ID，或者留空。",
    "Save, then write to the bot. / 保存，然后给机器人发一条消息。",
)


class LanyingSettings(AdapterSettings):
    """Variables LANYING_*."""

    app_id: str = Field(min_length=1, description="Console, App information (应用信息): app_id")
    bot_user_id: int = Field(gt=0, le=INT64, description="user_id (digits) of the IM user that is the bot")
    admin_token: Secret = Field(min_length=1, description="Console, Tokens (Token 管理): an admin token")
    callback_signature: Secret = Field(
        min_length=1, description="Console, Subscriptions (信息订阅): the signature, any long random text"
    )
    api_base: HttpUrl = Field("https://s-1-3-api.maximtop.cn", description="App information: api_endpoint")


# -- a callback -------------------------------------------------------------------------------------------------


class Head(msgspec.Struct, rename="camel"):
    """Tells messages from what else can be subscribed, whose shape is not documented."""

    app_id: object = None
    type: object = None


class Party(msgspec.Struct):
    """A user or a group."""

    uid: Id

    @property
    def id(self) -> str:
        return decimal(self.uid)


class Callback(msgspec.Struct, rename="camel"):
    """A message. `ext`, `config` and `attachment` arrive as JSON inside a string, or as objects."""

    type: Literal["CHAT", "GROUPCHAT"]
    sender: Party = msgspec.field(name="from")
    to: Party
    msg_id: Id = None
    ctype: str = "TEXT"
    content: str | None = None
    is_system: bool | None = None
    ext: Any = None
    config: Any = None
    attachment: Any = None

    def __post_init__(self) -> None:
        self.ext, self.config, self.attachment = map(embedded, (self.ext, self.config, self.attachment))

    @property
    def kind(self) -> Kind:
        return CHATS[self.type]

    @property
    def id(self) -> str:
        """Digits, "" when there is none."""
        return decimal(self.msg_id).lstrip("0")

    @property
    def ai(self) -> Json:
        """What a client asks of the bot, or another bot says of its words; `lanying_connector` is the older name."""
        return {**embedded(self.ext.get("lanying_connector")), **embedded(self.ext.get("ai"))}

    @property
    def for_all(self) -> bool:
        """Whether everybody in the group is mentioned; both spellings are in use."""
        return self.config.get("mentionAll") is True or self.config.get("mention_all") is True

    @property
    def mentions(self) -> set[str]:
        """Ids of the mentioned. They come as numbers, as strings, and twice."""
        entries = self.config.get("mentionList")
        found = {str(entry) for entry in entries if type(entry) in (int, str)} if isinstance(entries, list) else set()
        return found - {self.sender.id}


# The first that holds says why a message is not taken. `me` is the bot's id.
IGNORED: tuple[tuple[str, Callable[[Callback, str], bool]], ...] = (
    ("system message", lambda it, me: it.is_system is True or it.sender.id == "0"),
    ("control message", lambda it, me: it.sender.id == it.to.id and any(k.startswith("openclaw") for k in it.ext)),
    ("own message", lambda it, me: it.sender.id == me),
    ("message of an AI", lambda it, me: it.ai.get("role") == "ai"),
    ("debug message", lambda it, me: it.ai.get("is_debug_msg") is True),
    ("typing", lambda it, me: "input_status" in it.ext),
    ("message to somebody else", lambda it, me: it.kind == "direct" and it.to.id != me),
    ("command, forward or call", lambda it, me: it.ctype not in READABLE),
)


def decimal(value: Id) -> str:
    """Write an id in digits, "0" when there is none. Raises Malformed beyond int64."""
    if int(value or 0) > INT64:
        raise Malformed("body: an id beyond int64")
    return str(int(value or 0))


def string(value: object) -> str:
    """Return a string as it is, "" for anything else."""
    return value if isinstance(value, str) else ""


def embedded(value: object) -> Json:
    """Read an object, or JSON of one inside a string; {} for anything else: garbage there loses no message."""
    with contextlib.suppress(Malformed):
        value = decode(value, object) if isinstance(value, str) else value
    return value if isinstance(value, dict) else {}


def as_json(value: object) -> str:
    """Write JSON as UTF-8 without escapes."""
    return msgspec.json.encode(value).decode()


SPACE = r"\s\u2000-\u200d\u2060\u3000"  # clients put some of these around a mention
# The look-behind keeps a long run of spaces from being tried from every one of them.
MENTION = re.compile(rf"^(@[^{SPACE}]+)[{SPACE}]+|(?<![{SPACE}])[{SPACE}]+(@[^{SPACE}]+)\Z")


def without_mention(text: str) -> str:
    """Remove "@Nickname" from the start or the end, unless the two ends carry different ones.

    The bot's nickname is not in the callback; this is for messages that mention nobody else.
    """
    names = {start or end for start, end in MENTION.findall(text)}
    return MENTION.sub("", text) if len(names) == 1 else text


def place(it: Callback) -> str:
    """Put a location into words."""
    point = (it.attachment.get("lat"), it.attachment.get("lon"))
    where = f"({point[0]}, {point[1]})" if all(type(part) in (int, float) for part in point) else ""
    text = " ".join(filter(None, (string(it.attachment.get("addr")), where)))
    return f"Location / 位置: {text}" if text and it.ctype == "LOCATION" else ""


def words(it: Callback, me: str) -> str:
    """Return what the person says, without the mention; the connector's commands become ours."""
    text = "\n".join(filter(None, ((it.content or "").strip(), place(it))))
    if it.kind == "group" and it.mentions == {me} and not it.for_all:
        text = without_mention(text) or text
    if not text and it.kind == "direct" and it.ai.get("reset_prompt") is True:
        return "/reset"  # a button of a client
    return COMMANDS.get(text, text)


def attachments(it: Callback, me: str) -> tuple[Attachment, ...]:
    """Return the file of a message. Voice is asked for as MP3: clients record AMR, which models do not hear."""
    kind, url = MEDIA.get(it.ctype), string(it.attachment.get("url"))
    if kind is None or not url:
        return ()
    voice = kind == "audio"
    name, size = string(it.attachment.get("dName")), it.attachment.get("fLen")
    file = Attachment(
        kind,
        # The connector fetches files in the bot's name, everything else in the sender's.
        as_json(FileRef(url, me if kind == "file" else it.sender.id)),
        mime="audio/mpeg" if voice else "",
        name=re.sub(r"\.\w+\Z", "", name or "voice") + ".mp3" if voice else name,
        size=int(size) if isinstance(size, (int, float)) and 0 < size < INT64 else 0,
    )
    return (file,)


def turns(value: object, roles: tuple[str, ...]) -> tuple[Turn, ...]:
    """Read `prompt_ext`: the last turns with a known role and something said, each of a bounded length."""
    rows = [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
    said = [(row["role"], string(row.get("content")).strip()) for row in rows if row.get("role") in roles]
    return tuple(Turn(role, content[:CONTEXT_LENGTH]) for role, content in said[-CONTEXT_TURNS:] if content)


def ticket(it: Callback) -> str:
    """Keep what the answer's `ext` and `config` repeat."""
    feedback = it.ai.get("feedback")
    short = len(msgspec.json.encode(feedback)) <= FEEDBACK_LENGTH
    return as_json(Ticket(it.sender.id, it.id, feedback if short else None))


# -- requests and replies ---------------------------------------------------------------------------------------


class Ticket(msgspec.Struct, omit_defaults=True):
    """`Chat.ticket` as JSON: who asked, by which message, and what their client wants to get back."""

    user: str = ""
    question: str = ""
    feedback: Any = None


class FileRef(msgspec.Struct):
    """`Attachment.ref` as JSON: where a file lies, and in whose name it is fetched."""

    url: str
    user: str


class Ai(msgspec.Struct, omit_defaults=True):
    """`ext.ai` of the bot's messages, as the vendor's clients and other bots read it."""

    role: Literal["ai"]  # other bots do not answer it
    stream: bool
    seq: int
    finish: bool
    stream_interval: int = 0  # seconds between appends; clients animate by it
    request_msg_id: str = ""
    feedback: Any = None
    finish_reason: str = ""
    result: str = ""
    error_code: str = ""


class Answer(msgspec.Struct):
    """What every REST call answers."""

    code: int
    data: Any = None
    msg_ids: list[Id] | None = None  # only when there was one target


def failure(reply: Reply) -> PlatformError | None:
    """Read the error off the HTTP status, or off the code in the body."""
    if reply.status >= 400:
        return http_failure(reply)
    code = reply.json(Answer).code
    if code == 200:
        return None
    kind, reason = ERRORS.get(code, (Refused, "refused"))
    text = f"{reason} (code {code})"
    if issubclass(kind, Refused):
        return kind(text, code)
    return Throttled(text, PAUSE) if kind is Throttled else kind(text)


def file_error(data: bytes) -> object:
    """Return the code of the file gateway's error, which comes with HTTP 200 in place of a file; None for a file."""
    error = embedded(data.decode(errors="replace")) if data[:1] == b"{" and len(data) < 4096 else {}
    return error.get("code") if set(error) <= {"code", "data", "message"} else None


def transaction_id(*parts: object) -> int:
    """Hash a request's identity into a positive int64, by which the platform knows a repeated one."""
    return int.from_bytes(hashlib.sha256(as_json(parts).encode()).digest()[:8], "big") >> 1 or 1


# -- the adapter ------------------------------------------------------------------------------------------------


class LanyingAdapter(WebhookAdapter[LanyingSettings]):
    """The bot is an ordinary IM user: callbacks bring what it is told, an admin token speaks in its name."""

    name = "lanying"
    title = "Lanying IM (蓝莺IM)"
    docs = "https://docs.lanyingim.com/"
    Settings = LanyingSettings
    can = Capabilities(
        max_length=10_000,  # no limit is documented
        dialect=MARKDOWN,  # clients render it
        edit_every=1.0,  # the connector appends once a second at most
        pages_per_second=2,
    )

    def __init__(self, settings: LanyingSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.me = str(settings.bot_user_id)
        self.client = Client(
            settings.api_base,
            headers={"app_id": settings.app_id, "access-token": settings.admin_token.get_secret_value()},
            failure=failure,
        )
        self._unsure: set[str] = set()  # pages of which we may not know what they show: a call got no answer

    async def stop(self) -> None:
        await self.client.close()

    async def verify(self, request: Request) -> None:
        """Compare the header `signature`, which is the secret itself and no digest."""
        equal(request.header("signature"), self.settings.callback_signature.get_secret_value(), "signature")

    def parse(self, request: Request) -> Inbound:
        """Translate a callback. The vendor expects an empty 200 to each, also to those that are ignored.

        A callback of another app under our signature did come from the platform. It is ignored and named in the log
        rather than refused: what the platform does after a refusal is not documented.
        """
        head = request.json(Head)
        if head.app_id != self.settings.app_id:
            return Inbound(ignored="callback of another app (see LANYING_APP_ID)")
        if head.type not in tuple(CHATS):
            return Inbound(ignored="operation" if head.type in OPERATIONS else "unknown event")
        it = request.json(Callback)
        for reason, holds in IGNORED:
            if holds(it, self.me):
                return Inbound(ignored=reason)
        message = self._message(it, request.body)
        return Inbound((message,)) if message.text or message.attachments else Inbound(ignored="empty message")

    def _message(self, it: Callback, body: bytes) -> Message:
        addressed = it.kind == "direct" or it.for_all or self.me in it.mentions
        options = it.ai if addressed else {}
        return Message(
            id=it.id or f"sha256-{hashlib.sha256(body).hexdigest()}",
            chat=Chat(it.sender.id if it.kind == "direct" else it.to.id, it.kind, ticket=ticket(it)),
            user=it.sender.id,
            text=words(it, self.me),
            user_name=string(it.config.get("senderNickname")),
            addressed=addressed,
            attachments=attachments(it, self.me),
            reset=options.get("reset_prompt") is True,
            context=turns(options.get("prompt_ext"), ROLES[it.kind]),
            wants_reply=options.get("need_reply") is not False and options.get("ai_generate") is not False,
        )

    async def acknowledge(self, message: Message) -> None:
        """Show a read receipt, in private chats only, as the vendor's connector does."""
        if message.chat.kind == "direct" and message.id.isdecimal():
            await self._post(message.chat, READ_ACK, "", related_mid=int(message.id))

    async def send(self, chat: Chat, page: Page) -> str:
        if page.key in self._unsure:  # begun, perhaps: to begin it again finds the message, or makes it
            post = Post(await self.begin(chat, page))
            if post.id:
                return await self.edit(chat, post, page, last=True)
        return await self._say(chat, page, TEXT, page.text)

    async def begin(self, chat: Chat, page: Page) -> str:
        """Post the first words of an answer. Returns "" when the platform took them without giving an id."""
        with self._watched(page.key):
            return await self._say(chat, page, TEXT, page.text, stream=True, finish=False)

    async def edit(self, chat: Chat, post: Post, page: Page, last: bool) -> str:
        """Append the new words; in the end replace the whole, which history and those offline get.

        Without an id there is nothing to edit: the whole follows, finished, as a message of its own.
        """
        if not post.id:
            return await self.send(chat, page) if last else ""
        grows = page.text.startswith(post.shown) and page.key not in self._unsure and not last
        operation, content = (APPEND, page.text[len(post.shown) :]) if grows else (REPLACE, page.text)
        edit: Json = {"related_mid": int(post.id), "online_only": not last}
        with self._watched(page.key):
            await self._say(chat, page, operation, content, seq=post.edits + 2, stream=True, finish=last, **edit)
        self._unsure.discard(page.key)
        return post.id

    @contextlib.contextmanager
    def _watched(self, key: str) -> Iterator[None]:
        try:
            yield
        except Unavailable:
            self._unsure.add(key)
            raise

    async def _say(
        self,
        chat: Chat,
        page: Page,
        content_type: int,
        content: str,
        *,
        seq: int = 1,
        stream: bool = False,
        finish: bool = True,
        **fields: object,
    ) -> str:
        asked = decode(chat.ticket or "{}", Ticket)
        ai = Ai("ai", stream, seq, finish, int(stream), asked.question, asked.feedback)
        if page.failure:
            ai.result, ai.error_code = "error", page.failure
        elif finish:
            ai.finish_reason = "stop"
        config: Json = {"antispam_prompt": BLOCKED}
        if content_type == TEXT and chat.kind == "group" and asked.user:
            config |= {"mentionAll": False, "mentionList": [int(asked.user)]}
        if content_type == REPLACE and finish:
            config["force_callback"] = True  # those who subscribe to the bot (an archive) get the whole text
        if page.key:
            # The text of an edit counts: after a crash the same one may come again with more. The text of a message
            # does not: the same one never comes twice.
            text = content if content_type != TEXT else ""
            fields["transaction_id"] = transaction_id(self.me, chat.id, page.key, content_type, seq, finish, text)
        return await self._post(chat, content_type, content, ext=as_json({"ai": ai}), config=as_json(config), **fields)

    async def _post(self, chat: Chat, content_type: int, content: str, **fields: object) -> str:
        """Send a message or an operation and return its id. Ids are numbers here; `ext`, `config` are strings."""
        body = {
            "type": TARGETS[chat.kind],
            "from_user_id": self.settings.bot_user_id,
            "targets": [int(chat.id)],
            "content_type": content_type,
            "content": content,
            **fields,
        }
        ids = (await self.client.call("POST", "/message/send", json=body)).json(Answer).msg_ids
        return str(ids[0] or "") if ids else ""

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Fetch a file through the platform's gateway, which redirects to a storage.

        A person's client wrote the URL and our request carries the admin token: only the gateway is asked.
        """
        file = decode(attachment.ref, FileRef)
        url = FILE_URL.fullmatch(file.url)
        if not url or url[1] not in (FILES, urlsplit(self.client.base).path + FILES):
            raise Refused("the attachment does not lie behind the platform's file gateway")
        data = await self.client.download(
            file.url + FILE_OPTIONS.get(attachment.kind, ""),
            limit=limit,
            hosts=STORAGE_HOSTS,
            trusted=FILE_HOSTS,
            headers={**self.client.headers, "user_id": file.user},
        )
        if code := file_error(data):
            raise Refused(f"the platform does not hand out the file (code {code})")
        return data

    async def register(self, url: str) -> list[Finding]:
        """List what a person must do in the console; there is no API for it."""
        return [Finding(True, f"{n}. {step.format(url=url, me=self.me)}") for n, step in enumerate(STEPS, 1)]

    async def check(self, url: str) -> list[Finding]:
        """Ask for the bot's own profile: that takes a valid token, the right app and an existing user."""
        try:
            answer = await self.client.call("GET", "/user/profile", headers={"user_id": self.me})
        except PlatformError as error:
            advice = next(advice for kind, advice in ADVICE if isinstance(error, kind))
            return [Finding(False, f"profile of the bot (user {self.me}): {error}", advice)]
        profile = embedded(answer.json(Answer).data)
        if not profile:
            return [Finding(False, f"there is no user {self.me}", ADVICE[1][1])]
        name = string(profile.get("nick_name")) or string(profile.get("username"))
        return [
            Finding(True, f"the token is valid; the bot is user {self.me} ({name or 'no nickname'})"),
            Finding(True, f"whether {url} is subscribed cannot be asked: write to the bot to see"),
        ]

    def sample(self) -> Request:
        """Return a signed read receipt, which holds no message."""
        body = {"appId": self.settings.app_id, "type": "READ_ACK", "from": {"uid": "0"}, "to": {"uid": self.me}}
        signature = self.settings.callback_signature.get_secret_value()
        return Request(headers={"signature": signature}, body=msgspec.json.encode(body))
