"""LINE, Messaging API: https://developers.line.biz/en/reference/messaging-api/

An answer is free while the reply token of the question lives (about a minute, once); later it is pushed, which counts
against the account's monthly quota. LINE shows plain text and cannot edit, so answers are posted when they are whole.
"""

from __future__ import annotations

import time
import uuid
from typing import Literal
from urllib.parse import urlsplit

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
    WebhookAdapter,
)
from bot.client import Client, Reply, http_failure
from bot.config import HttpUrl, Secret
from bot.errors import PlatformError, Refused, Throttled, Unauthorized, Unavailable
from bot.markup import PLAIN, utf16

SIGNATURE = "x-line-signature"
TOKEN_LIVES = 50.0  # seconds a reply token is tried for; LINE promises about a minute
LONGEST_LOADING = 60  # seconds, a multiple of five
UNSURE = 1000  # reply tokens whose fate is not known that are remembered
CONTENT: dict[str, Literal["image", "audio", "video", "file"]] = {
    "image": "image",
    "audio": "audio",
    "video": "video",
    "file": "file",
}
MIME = {"image": "image/jpeg", "audio": "audio/mp4", "video": "video/mp4"}
QUOTA = "monthly limit"  # in the text of a 429 that does not pass by itself
ACCEPTED_BEFORE = 409  # a push with this retry key went through
NO_TOKEN = "Invalid reply token"  # noqa: S105 - an error's text


class LineSettings(AdapterSettings):
    """Settings of one channel."""

    channel_access_token: Secret = Field(description="Channel access token (long-lived), console > Messaging API")
    channel_secret: Secret = Field(description="Channel secret, console > Basic settings")
    api_base: HttpUrl = Field("https://api.line.me", min_length=1, description="The Messaging API server")


# -- what LINE sends: https://developers.line.biz/en/reference/messaging-api/#webhook-event-objects


class Source(msgspec.Struct):
    type: str = ""
    userId: str = ""
    groupId: str = ""
    roomId: str = ""


class Mentionee(msgspec.Struct):
    index: int = 0  # in UTF-16 units, as the length
    length: int = 0
    type: str = ""
    isSelf: bool = False


class Mention(msgspec.Struct):
    mentionees: list[Mentionee] = []


class Provider(msgspec.Struct):
    type: str = ""


class Content(msgspec.Struct):
    """A message. `text`, or what can be downloaded by `id`."""

    id: str = ""
    type: str = ""
    text: str = ""
    mention: Mention | None = None
    fileName: str = ""
    fileSize: int = 0
    title: str | None = None
    address: str | None = None
    latitude: float = 0
    longitude: float = 0
    keywords: list[str] = []
    contentProvider: Provider | None = None
    quotedMessageId: str = ""


class Redelivery(msgspec.Struct):
    isRedelivery: bool = False


class Event(msgspec.Struct):
    """Something that happened in a chat."""

    type: str = ""
    mode: str = "active"
    webhookEventId: str = ""
    replyToken: str = ""
    deliveryContext: Redelivery | None = None
    source: Source | None = None
    message: Content | None = None


class Delivery(msgspec.Struct):
    """One call of the webhook; the console's test has no events."""

    events: list[Event]


class Ticket(msgspec.Struct):
    """The right to answer for free, and until when (seconds since 1970)."""

    token: str = ""
    until: float = 0


# -- what it answers


class Detail(msgspec.Struct):
    message: str = ""


class Endpoint(msgspec.Struct):
    endpoint: str = ""
    active: bool = False


class Info(msgspec.Struct):
    displayName: str = ""
    chatMode: str = ""


class Tested(msgspec.Struct):
    success: bool = False
    statusCode: int = 0
    reason: str = ""
    detail: str = ""


def failure(reply: Reply) -> PlatformError | None:
    """Read an error: https://developers.line.biz/en/reference/messaging-api/#error-responses"""
    if reply.status < 400:
        return None
    try:
        text = msgspec.json.decode(reply.body, type=Detail).message
    except msgspec.MsgspecError:
        text = ""
    if reply.status == 429:
        return Unavailable(text) if QUOTA in text.lower() else Throttled("HTTP 429", reply.retry_after or 2.0)
    if reply.status in (401, 403):
        return Unauthorized(f"HTTP {reply.status}: {text}", reply.status)
    return Refused(f"HTTP {reply.status}: {text}", reply.status) if reply.status < 500 else http_failure(reply)


class LineAdapter(WebhookAdapter[LineSettings]):
    """A LINE channel."""

    name = "line"
    title = "LINE"
    docs = "https://developers.line.biz/en/reference/messaging-api/"
    Settings = LineSettings
    can = Capabilities(max_length=5000, measure=utf16, dialect=PLAIN, typing_every=50, pages_per_second=2)

    def __init__(self, settings: LineSettings, context: Context) -> None:
        super().__init__(settings, context)
        bearer = {"Authorization": f"Bearer {settings.channel_access_token.get_secret_value()}"}
        self.client = Client(settings.api_base, headers=bearer, failure=failure)
        self._bearer = bearer
        self._secret = settings.channel_secret.get_secret_value()
        self._unsure: set[str] = set()  # reply tokens whose use had no answer

    async def stop(self) -> None:
        """Close the connections."""
        await self.client.close()

    # -- inbound

    async def verify(self, request: Request) -> None:
        """Compare the HMAC of the raw body: https://developers.line.biz/en/docs/messaging-api/receiving-messages/"""
        expected = signing.digest(self._secret, request.body, encoding="base64")
        signing.equal(request.header(SIGNATURE), expected, "X-Line-Signature")

    def parse(self, request: Request) -> Inbound:
        """Translate all events of one call."""
        found = [self._event(event) for event in request.json(Delivery).events]
        reasons = [reason for reason in found if isinstance(reason, str)]
        messages = tuple(message for message in found if isinstance(message, Message))
        return Inbound(messages, ignored=", ".join(reasons) or "no events")

    def _event(self, event: Event) -> Message | str:
        """Return the message of an event, or why there is none."""
        source, content = event.source, event.message
        if event.mode != "active":
            return "standby: another module of the account answers"
        if event.type != "message" or source is None or content is None:
            return event.type or "unknown event"
        group = source.groupId or source.roomId
        if not (group or source.userId) or not (event.webhookEventId or content.id):
            return "nobody to answer"
        text, named = _without_mention(content)
        return Message(
            id=event.webhookEventId or content.id,
            chat=Chat(group or source.userId, "group" if group else "direct", ticket=_ticket(event)),
            user=source.userId or group,
            text=text or _words(content),
            addressed=not group or named or text.startswith(("/", "／")),
            attachments=_attachments(content),
            reply_to=content.quotedMessageId,
        )

    def sample(self) -> Request:
        """Return what the console's "Verify" button sends: no events."""
        body = b'{"destination":"","events":[]}'
        return Request(headers={SIGNATURE: signing.digest(self._secret, body, encoding="base64")}, body=body)

    # -- outbound

    async def send(self, chat: Chat, page: Page) -> str:
        """Answer with the reply token while it lives, else push.

        https://developers.line.biz/en/reference/messaging-api/#send-reply-message
        """
        messages = [{"type": "text", "text": page.text}]
        token = _alive(chat.ticket) if page.key.endswith(":0") else ""
        if not (token and await self._reply(token, messages)):
            await self._push(chat.id, page.key, messages)
        return page.key

    async def _push(self, to: str, key: str, messages: list[dict[str, str]]) -> None:
        """Send without a token, once for a key: https://developers.line.biz/en/docs/messaging-api/retrying-api-request/"""
        headers = {"X-Line-Retry-Key": str(uuid.uuid5(uuid.NAMESPACE_URL, key))}
        try:
            await self.client.call(
                "POST", "/v2/bot/message/push", json={"to": to, "messages": messages}, headers=headers
            )
        except Refused as error:
            if error.code != ACCEPTED_BEFORE:
                raise

    async def _reply(self, token: str, messages: list[dict[str, str]]) -> bool:
        """Use the reply token. False: it is not valid any more, and nothing was shown with it."""
        try:
            await self.client.call("POST", "/v2/bot/message/reply", json={"replyToken": token, "messages": messages})
        except Unavailable:
            self._unsure.add(token)
            raise
        except Refused as error:
            if NO_TOKEN not in str(error):
                raise
            # A token this young is refused after a lost answer because it was used: the message is there.
            return token in self._unsure
        finally:
            if len(self._unsure) > UNSURE:
                self._unsure.clear()
        return True

    async def typing(self, chat: Chat) -> None:
        """Show the loading animation, in private chats only.

        https://developers.line.biz/en/reference/messaging-api/#display-a-loading-indicator
        """
        if chat.kind == "direct":
            body = {"chatId": chat.id, "loadingSeconds": LONGEST_LOADING}
            await self.client.call("POST", "/v2/bot/chat/loading/start", json=body)

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Fetch a file: https://developers.line.biz/en/reference/messaging-api/#get-content

        LINE keeps content at a host of its own beside the API's.
        """
        base = self.settings.api_base.replace("https://api.line.me", "https://api-data.line.me")
        url = f"{base}/v2/bot/message/{attachment.ref}/content"
        host = urlsplit(base).hostname or ""
        return await self.client.download(url, limit=limit, trusted=(host,), headers=self._bearer)

    # -- set up

    async def register(self, url: str) -> list[Finding]:
        """Set the webhook and let LINE try it: https://developers.line.biz/en/reference/messaging-api/#webhook-settings"""
        try:
            await self.client.call("PUT", "/v2/bot/channel/webhook/endpoint", json={"endpoint": url})
            tested = (await self.client.call("POST", "/v2/bot/channel/webhook/test", json={})).json(Tested)
        except PlatformError as error:
            return [_trouble(error)]
        answered = f"LINE called the webhook: {tested.statusCode} {tested.reason} {tested.detail}".strip()
        return [
            Finding(True, f"the webhook is set to {url}"),
            Finding(tested.success, answered, "is the bot running, and does its public address lead to it?"),
            *await self._switches(url),
        ]

    async def check(self, url: str) -> list[Finding]:
        """Ask who we are and where LINE delivers: https://developers.line.biz/en/reference/messaging-api/#get-bot-info"""
        try:
            info = (await self.client.call("GET", "/v2/bot/info")).json(Info)
        except PlatformError as error:
            return [_trouble(error)]
        return [Finding(True, f"the token is that of {info.displayName}"), *await self._switches(url)]

    async def _switches(self, url: str) -> list[Finding]:
        try:
            found = (await self.client.call("GET", "/v2/bot/channel/webhook/endpoint")).json(Endpoint)
        except PlatformError as error:
            return [_trouble(error)]
        console = (
            "console > Messaging API: switch on *Use webhook* (and *Webhook redelivery*), off *Auto-reply messages*"
        )
        return [
            Finding(
                found.endpoint == url, f"LINE delivers to {found.endpoint or 'nobody'}", "run: magpie register line"
            ),
            Finding(found.active, "*Use webhook* is on" if found.active else "*Use webhook* is off", console),
        ]


def _trouble(error: PlatformError) -> Finding:
    if isinstance(error, Unauthorized):
        return Finding(False, f"the token is refused: {error}", "issue the channel access token again in the console")
    return Finding(False, f"LINE does not serve us: {error}", "wait; check LINE_API_BASE and the network")


def _without_mention(content: Content) -> tuple[str, bool]:
    """Return the text without the mention of the bot, and whether there was one. Offsets are UTF-16 units."""
    mentions = content.mention.mentionees if content.mention else []
    mine = [mention for mention in mentions if mention.isSelf]
    units = content.text.encode("utf-16-le", "surrogatepass")
    for mention in sorted(mine, key=lambda mention: mention.index, reverse=True):
        start = max(mention.index, 0) * 2
        after = units[start + max(mention.length, 0) * 2 :].decode("utf-16-le", "replace").lstrip()
        units = units[:start] + after.encode("utf-16-le")
    return units.decode("utf-16-le", "replace").strip(), bool(mine)


def _words(content: Content) -> str:
    """Put into words what is no text: a place, a sticker."""
    if content.type == "location":
        place = ", ".join(part for part in (content.title, content.address) if part)
        return f"📍 {place} ({content.latitude}, {content.longitude})".replace("  ", " ")
    return " ".join(content.keywords[:3]) if content.type == "sticker" else ""


def _attachments(content: Content) -> tuple[Attachment, ...]:
    kind: Literal["image", "audio", "video", "file"] | None = CONTENT.get(content.type)
    if kind is None or (content.contentProvider and content.contentProvider.type == "external"):
        return ()
    return (Attachment(kind, content.id, MIME.get(kind, ""), content.fileName, content.fileSize),)


def _ticket(event: Event) -> str:
    """Keep the reply token; that of a redelivered event may be used or too old already."""
    again = event.deliveryContext and event.deliveryContext.isRedelivery
    if again or not event.replyToken:
        return ""
    return msgspec.json.encode(Ticket(event.replyToken, time.time() + TOKEN_LIVES)).decode()


def _alive(ticket: str) -> str:
    """Return the reply token while it can be used."""
    if not ticket:
        return ""
    found = msgspec.json.decode(ticket, type=Ticket)
    return found.token if time.time() < found.until else ""
