"""Facebook Messenger: https://developers.facebook.com/documentation/business-messaging/messenger-platform

Private chats with one page. Messenger shows plain text and no message that grows: an answer is sent when it is
finished, while three dots move.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import mimetypes
from collections.abc import AsyncIterator, Iterator
from functools import partial
from posixpath import basename
from typing import Literal
from urllib.parse import unquote, urlsplit

import msgspec
from pydantic import Field

import adapters.meta as meta
from adapters.meta import Codes, Data, Meaning, Object
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
from bot.client import Client, Reply
from bot.config import HttpUrl, Secret, variable
from bot.errors import PlatformError, Refused, Unauthorized, Unavailable
from bot.markup import PLAIN, utf16

OBJECT = "page"
FIELDS = ("messages", "messaging_postbacks")
SCOPES = ("pages_messaging", "pages_manage_metadata")
FILE_HOSTS = (".fbcdn.net", ".fbsbx.com")  # where files lie; they want no token
LEARN_GAPS = (1.0, 5.0, 30.0, 300.0)  # seconds between attempts to learn our page's id
RECEIVED = Response(b"EVENT_RECEIVED")

# https://developers.facebook.com/documentation/business-messaging/messenger-platform/error-codes
WINDOW = Meaning(Refused, "the person last wrote over 24 hours ago; a bot may not write to them now")
AWAY = Meaning(Refused, "the person cannot be reached: they blocked the page, or are gone")
CODES: Codes = {
    (10, 2018065): WINDOW,
    (10, 2018278): WINDOW,
    (10, 1893063): Meaning(Refused, "the page is restricted"),
    (100, 2018001): Meaning(Refused, "this page has no chat with that person"),
    (200, 1545041): AWAY,
    (200, 2018028): Meaning(Unauthorized, "before its review the app may write to people with a role in it only"),
    551: AWAY,
    1200: Meaning(Unavailable, "Messenger is down for a moment"),
}

MENU = {  # by locale: commands, in the language of which they are answered, and what people read
    "default": {"/help": "What I can do", "/reset": "Forget our conversation", "/retry": "Answer again"},
    "zh_CN": {"/帮助": "使用说明", "/重置": "忘掉之前的对话", "/重试": "重新回答"},
}

STEPS = (
    "Open https://developers.facebook.com/apps, your app, Messenger, Messenger API Settings. / "
    "打开 https://developers.facebook.com/apps，进入你的应用，选择 Messenger 的 API 设置。",
    "Configure webhooks: callback URL {url}, verify token: what {verify_token} holds. Press Verify and save while the "
    "bot is running. / 配置 Webhooks：回调 URL 填 {url}，验证口令填 {verify_token} 的值，"
    "保持机器人运行，点击验证并保存。",
    "Generate access tokens: at your page press Add subscriptions and choose {fields}. / "
    "在生成访问口令一栏，为你的主页添加订阅：{fields}。",
)


# -- settings ----------------------------------------------------------------------------------------------------------


class MessengerSettings(AdapterSettings):
    """Settings of one page."""

    page_access_token: Secret = Field(
        min_length=1,
        description="developers.facebook.com, your app, Messenger API Settings, Generate access tokens: the page's",
    )
    app_secret: Secret = Field(
        min_length=1, description="developers.facebook.com, your app, App settings, Basic: App secret"
    )
    verify_token: Secret = Field(
        min_length=1,
        description="Any long random text; Meta repeats it when the webhook is set",
        json_schema_extra={"invented": True},
    )
    api_base: HttpUrl = Field(meta.GRAPH, min_length=1, description="The Graph API with its version")


# -- what Messenger sends ----------------------------------------------------------------------------------------------
# https://developers.facebook.com/documentation/business-messaging/messenger-platform/reference/webhook-events


class Coordinates(msgspec.Struct):
    """A place."""

    lat: float
    long: float


class Payload(msgspec.Struct):
    """What an attachment holds."""

    url: str | None = None
    coordinates: Coordinates | None = None


class File(msgspec.Struct):
    """An attachment. A shared link has its title and address here."""

    type: str
    payload: Payload | None = None
    title: str | None = None
    url: str | None = None


class QuickReply(msgspec.Struct):
    """What a pressed quick reply carries."""

    payload: str = ""


class Quoted(msgspec.Struct):
    """The message that this one answers."""

    mid: str = ""


class Said(msgspec.Struct):
    """A message."""

    mid: str
    text: str = ""
    is_echo: bool = False
    is_deleted: bool = False
    attachments: list[File] = []
    quick_reply: QuickReply | None = None
    reply_to: Quoted = msgspec.field(default_factory=Quoted)


class Postback(msgspec.Struct):
    """A pressed button."""

    mid: str = ""
    title: str = ""
    payload: str = ""


class Event(msgspec.Struct):
    """One piece of news in a chat. `timestamp` in milliseconds."""

    sender: Object
    timestamp: int = 0
    message: Said | None = None
    postback: Postback | None = None


class Entry(msgspec.Struct):
    """News about one page. `standby` is what another app answers."""

    id: str
    messaging: list[msgspec.Raw] = []
    standby: list[msgspec.Raw] = []


class Notification(msgspec.Struct):
    """The body of a webhook request."""

    object: str
    entry: list[Entry] = []


KINDS: dict[str, Literal["image", "audio", "video", "file"]] = {
    "image": "image",
    "sticker": "image",
    "audio": "audio",
    "video": "video",
    "file": "file",
}


def words(said: Said) -> str:
    """Put a message into words, "" when it has none."""
    if said.quick_reply:
        return meta.pressed(said.quick_reply.payload, said.text)
    return "\n".join(filter(None, (said.text, *(described(file) for file in said.attachments))))


def described(file: File) -> str:
    """Put a place or a shared link into words, "" for anything else."""
    if file.payload and (point := file.payload.coordinates):
        return f"Location / 位置: ({point.lat}, {point.long})"
    return " ".join(filter(None, (file.title, file.url))) if file.type == "fallback" else ""


def attached(said: Said) -> Iterator[Attachment]:
    """Yield the files of a message. What they are shows in their addresses only."""
    for file in said.attachments:
        if file.type in KINDS and file.payload and file.payload.url:
            name = filename(file.payload.url)
            yield Attachment(KINDS[file.type], file.payload.url, mimetypes.guess_type(name)[0] or "", name)


def filename(url: str) -> str:
    """Return the last part of an address, "" for what is none."""
    with contextlib.suppress(ValueError):
        return basename(unquote(urlsplit(url).path))
    return ""


# -- the adapter -------------------------------------------------------------------------------------------------------


class Sent(msgspec.Struct):
    """The answer to a message of ours."""

    message_id: str


class Profile(msgspec.Struct):
    """A page."""

    id: str
    name: str = ""


class Subscriber(msgspec.Struct):
    """An app that gets a page's messages."""

    id: str
    subscribed_fields: list[str] = []


class MessengerAdapter(WebhookAdapter[MessengerSettings]):
    """A page."""

    name = "messenger"
    title = "Facebook Messenger"
    docs = "https://developers.facebook.com/documentation/business-messaging/messenger-platform"
    Settings = MessengerSettings
    can = Capabilities(max_length=2000, measure=utf16, dialect=PLAIN, typing_every=15)

    def __init__(self, settings: MessengerSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.page = ""  # its id, learned after the start
        self._token = settings.page_access_token.get_secret_value()
        self._secret = settings.app_secret.get_secret_value()
        self._verify_token = settings.verify_token.get_secret_value()
        self.client = Client(
            settings.api_base, headers={"Authorization": f"Bearer {self._token}"}, failure=meta.failure(CODES)
        )
        self._typing: set[str] = set()  # chats in which the dots move
        self.learning: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to learn our page's id; messages may come before it is known."""
        self.learning = asyncio.create_task(self._learn_page())

    async def stop(self) -> None:
        """Close the connections."""
        if self.learning:
            self.learning.cancel()
        await self.client.close()

    async def _learn_page(self) -> None:
        for gap in itertools.chain(LEARN_GAPS, itertools.repeat(LEARN_GAPS[-1])):
            with contextlib.suppress(PlatformError):
                self.page = (await self._me()).id
                return
            await asyncio.sleep(gap)

    async def _me(self) -> Profile:
        return (await self.client.call("GET", "/me", query={"fields": "id,name"})).json(Profile)

    # -- inbound

    async def verify(self, request: Request) -> None:
        """Check the verify token of a handshake, the app's signature of everything else."""
        meta.verify(request, self._secret, self._verify_token)

    def parse(self, request: Request) -> Inbound:
        """Translate a notification, which may hold many messages of many people."""
        if request.method == "GET":
            return meta.handshake(request)
        notification = request.json(Notification)
        if notification.object != OBJECT:
            return Inbound(response=RECEIVED, ignored=f"object {notification.object}")
        inbound = meta.batch(partial(self._entry, entry) for entry in notification.entry)
        return msgspec.structs.replace(inbound, response=RECEIVED)

    def _entry(self, entry: Entry) -> Inbound:
        if self.page and entry.id != self.page:
            return Inbound(ignored="for another page")
        if not entry.messaging:
            return Inbound(ignored="standby: another app answers this chat" if entry.standby else "no message")
        return meta.batch(partial(self._event, entry.id, event) for event in entry.messaging)

    def _event(self, page: str, raw: msgspec.Raw) -> Inbound:
        kinds = decode(bytes(raw), dict[str, msgspec.Raw]).keys() - {"sender", "recipient", "timestamp"}
        if not kinds & {"message", "postback"}:
            return Inbound(ignored=", ".join(sorted(kinds)) or "empty event")
        event = decode(bytes(raw), Event)
        chat = Chat(event.sender.id)
        if postback := event.postback:
            id = postback.mid or f"{chat.id}:{event.timestamp}"
            return Inbound((Message(id, chat, chat.id, meta.pressed(postback.payload, postback.title)),))
        said = event.message
        if said is None or said.is_deleted:
            return Inbound(ignored="deleted message")
        if said.is_echo or chat.id == page:
            return Inbound(ignored="own message")
        files = tuple(attached(said))
        return Inbound((Message(said.mid, chat, chat.id, words(said), attachments=files, reply_to=said.reply_to.mid),))

    def sample(self) -> Request:
        """Return a notification of nothing."""
        return meta.sample(self._secret, OBJECT)

    # -- outbound

    async def send(self, chat: Chat, page: Page) -> str:
        """Post a message and stop the dots: .../messenger-platform/reference/send-api"""
        sent = await self._post(chat, messaging_type="RESPONSE", message={"text": page.text})
        if chat.id in self._typing:
            self._typing.discard(chat.id)
            with contextlib.suppress(PlatformError):  # they stop by themselves, a little later
                await self._post(chat, sender_action="typing_off")
        return sent.json(Sent).message_id

    async def typing(self, chat: Chat) -> None:
        """Let the dots move, for 20 seconds: .../messenger-platform/send-messages/sender-actions"""
        self._typing.add(chat.id)
        await self._post(chat, sender_action="typing_on")

    async def acknowledge(self, message: Message) -> None:
        """Mark the chat as read."""
        await self._post(message.chat, sender_action="mark_seen")

    async def _post(self, chat: Chat, **fields: object) -> Reply:
        return await self.client.call("POST", "/me/messages", json={"recipient": {"id": chat.id}, **fields})

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Fetch a file from Meta's public storage, without our token."""
        return await self.client.download(attachment.ref, limit=limit, hosts=FILE_HOSTS)

    # -- set up

    async def register(self, url: str) -> list[Finding]:
        """Subscribe the app to the page's messages; what Meta does not let us do is listed for the console."""
        found = await meta.collected(self._register(url), self.context.instance, "page_access_token")
        return found if all(finding.ok for finding in found) else [*found, *self._steps(url)]

    async def _register(self, url: str) -> AsyncIterator[Finding]:
        app = await meta.app_of(self.client, self._secret)
        await meta.inspect(self.client, app, self._token)
        yield await meta.subscribe(self.client, app, OBJECT, FIELDS, url, self._verify_token)
        await self.client.call("POST", "/me/subscribed_apps", json={"subscribed_fields": ",".join(FIELDS)})
        yield Finding(True, f"app {app.id} answers for the page")
        await self.client.call("POST", "/me/messenger_profile", json=profile())
        yield Finding(True, "the menu is set, in English and Chinese")

    def _steps(self, url: str) -> list[Finding]:
        facts = {"url": url, "verify_token": variable(self.context.instance, "verify_token")}
        steps = (step.format(fields=", ".join(FIELDS), **facts) for step in STEPS)
        return [Finding(True, f"{number}. {step}") for number, step in enumerate(steps, 1)]

    async def check(self, url: str) -> list[Finding]:
        """Ask about the page, the token and where the page's messages go."""
        return await meta.collected(self._check(url), self.context.instance, "page_access_token")

    async def _check(self, url: str) -> AsyncIterator[Finding]:
        instance = self.context.instance
        me = await self._me()
        yield Finding(True, f"the token is that of page {me.id} ({me.name})")
        app = await meta.app_of(self.client, self._secret)
        token = await meta.inspect(self.client, app, self._token)
        for finding in meta.permissions(token, SCOPES, variable(instance, "page_access_token")):
            yield finding
        subscription = await meta.subscription(self.client, app, OBJECT)
        yield meta.goes_to(subscription.callback_url, url, instance)
        for finding in meta.topics(subscription, FIELDS, instance):
            yield finding
        apps = (await self.client.call("GET", "/me/subscribed_apps")).json(Data[list[Subscriber]]).data
        subscribed = any(one.id == app.id and set(FIELDS) <= set(one.subscribed_fields) for one in apps)
        what = f"app {app.id} {'answers' if subscribed else 'does not answer'} for the page"
        yield Finding(subscribed, what, f"run: magpie register {instance}")


def profile() -> dict[str, object]:
    """Return the page's menu: .../messenger-platform/send-messages/persistent-menu"""
    menu = [
        {
            "locale": locale,
            "composer_input_disabled": False,
            "call_to_actions": [
                {"type": "postback", "title": title, "payload": command} for command, title in items.items()
            ],
        }
        for locale, items in MENU.items()
    ]
    return {"get_started": {"payload": "/help"}, "persistent_menu": menu}
