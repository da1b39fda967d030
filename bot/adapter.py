"""THE CONTRACT between the core and a platform. `docs/adding-an-adapter.md` walks through it.

An adapter translates. Inbound: `verify` one request, `parse` it into messages; both without network where the
platform allows. Outbound: `send` a finished page, or `begin` and `edit` a growing one. Everything else (storing,
ordering, history, the model, splitting, retries, limits) is the core's work. What a platform can do is declared in
`Capabilities`; the core asks them and never a name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from bot.errors import Malformed
from bot.markup import MARKDOWN, Dialect, characters

T = TypeVar("T")
S = TypeVar("S", bound="AdapterSettings")


class Request(msgspec.Struct, frozen=True):
    """One HTTP request as it came in. `path` is what follows the adapter's own route ("" or "/events")."""

    method: str = "POST"
    path: str = ""
    headers: Mapping[str, str] = {}  # names in lower case
    query: Mapping[str, str] = {}
    body: bytes = b""
    remote: str = ""  # the caller's address

    def header(self, name: str) -> str:
        """Return a header's value, "" when it is absent. `name` in lower case."""
        return self.headers.get(name, "")

    def json(self, type: type[T]) -> T:
        """Decode the body into a declared structure. Raises Malformed."""
        return decode(self.body, type)


def decode(data: bytes | str, type: type[T]) -> T:
    """Decode JSON into a declared structure, ignoring unknown fields. Raises Malformed."""
    try:
        return msgspec.json.decode(data, type=type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"body: {error}") from None


class Response(msgspec.Struct, frozen=True):
    """What the caller of a route hears. `stream` is sent after `body`, as it comes."""

    body: bytes = b""
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = {}
    stream: AsyncGenerator[bytes, None] | None = None

    @classmethod
    def json(cls, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        """Build an application/json response."""
        return cls(msgspec.json.encode(value), status, "application/json", headers or {})


class Chat(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where an answer goes. `ticket` is whatever the adapter needs to answer this very message (a reply token)."""

    id: str
    kind: Literal["direct", "group"] = "direct"
    thread: str = ""
    ticket: str = ""


class Attachment(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file that came with a message. `ref` is whatever `Adapter.download` needs. `size` in bytes, 0 if unknown."""

    kind: Literal["image", "audio", "video", "file"]
    ref: str
    mime: str = ""
    name: str = ""
    size: int = 0


class Turn(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of a conversation's history."""

    role: Literal["system", "user", "assistant"]
    content: str


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a person to the bot, as the platform delivered it."""

    id: str  # unique within the instance; a redelivery carries the same one
    chat: Chat
    user: str
    text: str = ""  # without the mention of the bot; a command is "/name rest"
    user_name: str = ""
    addressed: bool = True  # False: group chatter that is not meant for the bot
    attachments: tuple[Attachment, ...] = ()
    reply_to: str = ""  # id of the message this one answers
    quote: str = ""  # text of the message this one answers
    locale: str = ""  # as the platform says it: "zh-hans", "en", ...
    reset: bool = False  # forget the conversation before this message
    context: tuple[Turn, ...] = ()  # turns to remember before this message
    wants_reply: bool = True  # False: remember it, say nothing
    awaited: bool = False  # the platform shows that an answer to just this message is coming: it gets one of its own


class Inbound(msgspec.Struct, frozen=True):
    """What one verified request holds, and what the platform expects to hear back at once."""

    messages: tuple[Message, ...] = ()
    response: Response = Response()
    ignored: str = ""  # why there are no messages: "typing", "own message", ... (logged)
    moved: tuple[str, str] | None = None  # a chat got a new id: (old, new)


class Page(msgspec.Struct, frozen=True):
    """One message to post: a reply, or the part of it that fits."""

    text: str  # in the adapter's dialect, within max_length
    plain: str = ""  # the same without markup, for when the platform refuses the markup
    key: str = ""  # idempotency key: the same for every attempt at this page
    reply_to: str = ""  # id of the message that is answered
    failure: str = ""  # not the model's words but the bot's, about this error (a code such as "model_timeout")


class Post(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message that was begun in the chat: its id there, the text it shows, how often it was edited."""

    id: str
    shown: str = ""
    edits: int = 0


class Capabilities(msgspec.Struct, frozen=True):
    """What a platform can show. Declared, so that the core never asks for a name."""

    max_length: int = 4000  # of one message, in `measure`
    measure: Callable[[str], int] = characters  # or markup.utf16, markup.utf8
    dialect: Dialect = MARKDOWN
    edit_every: float | None = None  # seconds between edits of a growing message; None: it is sent when finished
    typing_every: float | None = None  # seconds after which `typing` fades; None: there is none
    answer_within: float = 0  # seconds the platform holds its request for the answer; 0: it wants an ack at once
    pages_per_second: float = 1  # how fast the pages of one long reply may follow each other


class AdapterSettings(BaseModel):
    """Settings of one instance. Field `bot_token` of instance `sales` is the variable SALES_BOT_TOKEN."""

    model_config = ConfigDict(frozen=True, str_strip_whitespace=True)

    system_prompt: str = Field("", description="Persona of this instance; empty: BOT_SYSTEM_PROMPT")


class Finding(msgspec.Struct, frozen=True):
    """One line of `magpie register` or `magpie doctor`. `advice` says what to do when it is not `ok`."""

    ok: bool
    what: str
    advice: str = ""


class State(Protocol):
    """Small values shared by all replicas, and messages between them. Keys are the instance's own."""

    async def get(self, key: str) -> str | None:
        """Return the value, None when absent or expired."""

    async def set(self, key: str, value: str, ttl: float) -> None:
        """Store a value for `ttl` seconds."""

    async def swap(self, key: str, old: str | None, new: str | None, ttl: float) -> bool:
        """Compare and set: replace `old` (None: absent) by `new` (None: delete). False when it was not `old`."""

    async def publish(self, topic: str, data: str) -> None:
        """Hand `data` to every current subscriber of the topic, on any replica. At most 7,000 UTF-8 bytes."""

    def subscribe(self, topic: str) -> Subscription:
        """Listen to a topic from now on, until the subscription is closed."""


class Subscription(Protocol):
    """An open ear on a topic. Use as `async with` and iterate; the oldest entries are dropped beyond 1,000 unread."""

    async def __aenter__(self) -> Subscription: ...
    async def __aexit__(self, *exc: object) -> None: ...
    def __aiter__(self) -> AsyncIterator[str]: ...
    async def __anext__(self) -> str: ...


class Reply(msgspec.Struct, frozen=True):
    """A finished answer: Markdown, or, where `failure` names an error, the bot's sentence about it."""

    text: str
    failure: str = ""


class Answer(Protocol):
    """The answer a held request waits for (see `Capabilities.answer_within`)."""

    async def wait(self, seconds: float) -> Reply | None:
        """Return the finished answer, None when it takes longer."""

    def deltas(self) -> AsyncIterator[str]:
        """Yield the text as it is written, from now on; ends when the answer is finished."""


class Context(msgspec.Struct, frozen=True):
    """What the core lends an adapter."""

    instance: str
    state: State
    public_url: str = ""  # BOT_PUBLIC_URL without a trailing slash, "" when unset
    language: str = "en"  # BOT_LANGUAGE, for texts without a person to ask ("en" or "zh")
    history: Callable[[Chat, int], Awaitable[list[Turn]]] | None = None  # the last n turns of a direct chat


Accept = Callable[[Sequence[Message]], Awaitable[None]]
Handler = Callable[[Request], Awaitable[Response]]


class Adapter(ABC, Generic[S]):
    """A platform. `name` is the entry point's, `title` what people call it."""

    name: ClassVar[str]
    title: ClassVar[str]
    docs: ClassVar[str]  # URL of the vendor's reference
    Settings: ClassVar[type[AdapterSettings]] = AdapterSettings
    can: Capabilities = Capabilities()
    also_at: ClassVar[Mapping[str, str]] = {}  # absolute paths and the path below our route they stand for

    def __init__(self, settings: S, context: Context) -> None:
        self.settings = settings
        self.context = context

    async def start(self) -> None:
        """Open connections. Makes no call that must succeed: a platform that is down must not stop the others."""

    async def stop(self) -> None:
        """Close what `start` opened."""

    @abstractmethod
    async def send(self, chat: Chat, page: Page) -> str:
        """Post a finished page and return its id in the chat. Raises PlatformError."""

    async def begin(self, chat: Chat, page: Page) -> str:
        """Post a page that will grow and return its id. Needed with `edit_every`."""
        return await self.send(chat, page)

    async def edit(self, chat: Chat, post: Post, page: Page, last: bool) -> str:
        """Make the post show the page, for good when `last`. Return the id it has from now on."""
        raise NotImplementedError(f"{self.name} declares edit_every without edit()")

    async def typing(self, chat: Chat) -> None:
        """Show that an answer is being written. Needed with `typing_every`."""
        raise NotImplementedError(f"{self.name} declares typing_every without typing()")

    async def acknowledge(self, message: Message) -> None:
        """Mark a message as read, where the platform shows that. Called once, after it was stored."""

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Fetch an attachment of at most `limit` bytes. Raises PlatformError."""
        raise NotImplementedError(f"{self.name} yields attachments without download()")

    async def register(self, url: str) -> list[Finding]:
        """Register the webhook `url` with the platform, or list the exact steps for the vendor's console."""
        return []

    async def check(self, url: str) -> list[Finding]:
        """Ask the platform: is the token valid, is the webhook `url` set, what error did it see last?"""
        return []

    async def listen(self, accept: Accept) -> None:
        """Receive messages where there is no webhook (long poll, websocket). Runs until cancelled."""

    def routes(self) -> Mapping[tuple[str, str], Handler]:
        """Serve more than the webhook: {("GET", "/history"): handler}, below the adapter's route."""
        return {}


class WebhookAdapter(Adapter[S]):
    """A platform that calls us."""

    @abstractmethod
    async def verify(self, request: Request) -> None:
        """Raise Unverified unless the platform itself sent this. Raw bytes, constant time, fails closed."""

    @abstractmethod
    def parse(self, request: Request) -> Inbound:
        """Translate one verified request. Never talks to the network. Raises Malformed."""

    async def at_once(self, request: Request, inbound: Inbound) -> Response | None:
        """Answer out of `context.state` instead of taking the messages: what was kept for later, or is asked again.

        Called for every request that was parsed. None: the messages are taken.
        """
        return None

    def sample(self) -> Request | None:
        """Return a request signed as the platform signs, that holds no message. `register` sends it to itself."""
        return None

    async def respond(self, request: Request, inbound: Inbound, answer: Answer) -> Response:
        """Build the response out of the answer. Needed with `answer_within`."""
        raise NotImplementedError(f"{self.name} declares answer_within without respond()")


AnyAdapter = Adapter[Any]
