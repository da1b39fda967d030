"""Microsoft Teams, by the Bot Connector, REST API v3.

https://learn.microsoft.com/azure/bot-service/rest-api/bot-framework-rest-connector-api-reference

Personal chats, group chats and the threads of channels. In a personal chat an answer grows as Teams' own stream;
where that is refused, once it has died, and everywhere else, by edits.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from pydantic import Field

from adapters.teams.activities import (
    NO_QUESTION,
    THREAD,
    Activity,
    FileRef,
    Head,
    Ticket,
    attached,
    invoked,
    is_direct,
    mentions,
    place,
    words,
)
from adapters.teams.connector import STOPPED, Granted, Sent, failure, final, login_failure, message, piece
from adapters.teams.identity import KeyRing, caller, issuer
from adapters.teams.setup import STEPS
from adapters.teams.text import MARKDOWN, settled
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
    WebhookAdapter,
    decode,
)
from bot.client import Client, shared_token
from bot.config import HttpUrl, Secret, variable
from bot.errors import PlatformError, Refused, Throttled, Unauthorized
from bot.markup import utf16

T = TypeVar("T")
STREAM = "stream:"  # the id of a post that is a stream; without it, of a message
STREAM_LIVES = 600.0  # seconds after which a stream that nobody ended is forgotten; Teams ends it after 120
EDITS_FOR = 600.0  # seconds until a chat that refused a stream is offered one again
FILE_HOSTS = (".sharepoint.com", ".sharepoint.us", ".sharepoint.cn")  # by links that need no token


class TeamsSettings(AdapterSettings):
    """Variables TEAMS_*."""

    app_id: str = Field(pattern=r"^[\w-]+$", description="https://portal.azure.com, your Azure Bot: Microsoft App ID")
    app_password: Secret = Field(
        min_length=1, description="The app's client secret: its value, not its id (Manage Password, New client secret)"
    )
    tenant_id: str = Field(
        "botframework.com",
        pattern=r"^[\w.-]+$",
        description="Your Azure Bot: App Tenant ID; only an old multi-tenant bot leaves it out",
    )
    openid_url: HttpUrl = Field(
        "https://login.botframework.com/v1/.well-known/openidconfiguration",
        min_length=1,
        description="Names the keys that sign what Teams sends; another one in sovereign clouds",
    )
    login_base: HttpUrl = Field(
        "https://login.microsoftonline.com", min_length=1, description="Gives out access tokens"
    )
    api_base: HttpUrl = Field("", description="Send here instead of to the service URL that comes with each message")


class Stream:
    """A native stream: what it shows, its next number, and until when it is of interest (`time.monotonic()`)."""

    def __init__(self, sent: str) -> None:
        self.sent = sent
        self.next = 2
        self.until = time.monotonic() + STREAM_LIVES
        self.astray = False  # the page no longer begins with what was sent


class TeamsAdapter(WebhookAdapter[TeamsSettings]):
    """A bot in Microsoft Teams."""

    name = "teams"
    title = "Microsoft Teams"
    docs = "https://learn.microsoft.com/microsoftteams/platform/bots/what-are-bots"
    Settings = TeamsSettings
    can = Capabilities(
        max_length=18_000,  # UTF-16 units, two bytes each: Teams takes 100 KB, its older pages say 40
        measure=utf16,
        dialect=MARKDOWN,
        edit_every=2.0,  # 1,800 calls an hour in one conversation
        typing_every=3,
    )

    def __init__(self, settings: TeamsSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.keys = KeyRing(settings.openid_url)
        self.login = Client(settings.login_base, failure=login_failure)
        self._issuer = issuer(settings.openid_url)
        self._services: dict[str, Client] = {}  # by base URL
        self._streams: dict[str, Stream] = {}  # those that this process has begun, by the stream's id
        self._edits_only: dict[str, float] = {}  # chat: time.monotonic() from which a stream may be tried

    async def stop(self) -> None:
        """Close the connections."""
        for client in (self.login, *self._services.values()):
            await client.close()

    # -- inbound

    async def verify(self, request: Request) -> None:
        """Check the token, and that it vouches for the service URL we would send our own token to."""
        sender = await caller(request.header("authorization"), self.keys, self.settings.app_id, self._issuer)
        head = request.json(Head)
        sender.vouch(head.serviceUrl or "", head.channelId or "")

    def parse(self, request: Request) -> Inbound:
        """Translate an activity."""
        head = request.json(Head)
        if head.type == "invoke":
            return Inbound(response=invoked(head.name or ""), ignored=f"invoke {head.name or ''}".strip())
        if head.type != "message":
            return Inbound(ignored=head.type or "no activity")
        it = request.json(Activity)
        for reason, holds in NO_QUESTION:
            if holds(it):
                return Inbound(ignored=reason)
        return Inbound((self._message(it),))

    def _message(self, it: Activity) -> Message:
        text, files = words(it), tuple(attached(it))
        return Message(
            id=f"{it.conversation.id}/{it.id}",  # an activity's id is unique within its conversation
            chat=place(it),
            user=it.sender.aadObjectId or it.sender.id,
            user_name=it.sender.name or "",
            text=text or ("" if files else "/help"),  # nothing but our name
            addressed=is_direct(it) or bool(mentions(it)),
            attachments=files,
            reply_to=f"{it.conversation.id}/{it.replyToId}" if it.replyToId else "",
            locale=it.locale or "",
        )

    # -- outbound

    async def send(self, chat: Chat, page: Page) -> str:
        """Post a message.

        https://learn.microsoft.com/azure/bot-service/rest-api/bot-framework-rest-connector-send-and-receive-messages
        """
        question = _ticket(chat).question
        return await self._post(chat, message(page, **({"replyToId": question} if question else {})))

    async def begin(self, chat: Chat, page: Page) -> str:
        """Begin a stream in a personal chat, post a message elsewhere.

        https://learn.microsoft.com/microsoftteams/platform/bots/streaming-ux
        """
        if chat.kind == "group" or time.monotonic() < self._edits_only.get(chat.id, 0):
            return await self.send(chat, page)
        text = settled(page.text) or page.text
        try:
            id = await self._post(chat, piece(text, 1))
        except Refused:
            id = await self.send(chat, page)  # raises when it is the chat that is refused, not the stream
            _remember(self._edits_only, chat.id, time.monotonic() + EDITS_FOR, lambda until: until)
            return id
        _remember(self._streams, id, Stream(text), lambda stream: stream.until)
        return STREAM + id

    async def edit(self, chat: Chat, post: Post, page: Page, last: bool) -> str:
        """Let a stream grow or end, or put the page in a message's place."""
        id = post.id.removeprefix(STREAM)
        if id == post.id:
            return await self._replace(chat, id, page)
        stream = self._streams.get(id)
        if last or stream is None:
            return await self._end(chat, id, stream, page)
        return await self._grow(chat, id, stream, page)

    async def _grow(self, chat: Chat, id: str, stream: Stream, page: Page) -> str:
        """Show what is new. A stream only grows: once the page has gone another way, edits take over."""
        text = settled(page.text)
        if stream.sent.startswith(text):
            return STREAM + id
        if not text.startswith(stream.sent):
            if stream.astray:
                return await self._end(chat, id, stream, page)
            stream.astray = True  # a mark is half written, perhaps
            return STREAM + id
        try:
            await self._next(chat, id, stream, text)
        except Refused as error:
            if error.code == STOPPED:
                raise  # by the person: the model is stopped as well
            return await self._end(chat, id, stream, page)
        return STREAM + id

    async def _next(self, chat: Chat, id: str, stream: Stream, text: str) -> None:
        """Send the next piece. Its number is used up unless it was refused for being too early."""
        number = stream.next
        stream.next += 1
        try:
            await self._post(chat, piece(text, number, id))
        except Throttled:
            stream.next = number
            raise
        stream.sent, stream.astray = text, False

    async def _end(self, chat: Chat, id: str, stream: Stream | None, page: Page) -> str:
        """End a stream with the page: by an edit where it takes no more words, anew where it takes no edit either."""
        strayed = stream is not None and not page.text.startswith(stream.sent)
        whole = msgspec.structs.replace(page, text=stream.sent) if stream and strayed else page
        try:
            await self._post(chat, final(whole, id))
        except Refused as error:  # over its time, or ended by a call whose answer was lost
            strayed = error.code != STOPPED  # what a person has stopped shows what it showed
        self._streams.pop(id, None)
        if not strayed:
            return id
        try:
            return await self._replace(chat, id, page)
        except Refused:  # still open: begun by a process that has ended, which alone knew its words
            return await self.send(chat, page)

    async def _replace(self, chat: Chat, id: str, page: Page) -> str:
        """Show the page in the message's place, or in a new message when that is gone.

        https://learn.microsoft.com/microsoftteams/platform/bots/how-to/update-and-delete-bot-messages
        """
        try:
            await self._call(chat, "PUT", f"/{quote(id, safe='')}", message(page))
        except Refused as error:
            if error.code != 404:
                raise
            return await self.send(chat, page)
        return id

    async def typing(self, chat: Chat) -> None:
        """Show that we are typing, for a few seconds."""
        await self._post(chat, {"type": "typing"})

    async def _post(self, chat: Chat, activity: Mapping[str, Any]) -> str:
        return await self._call(chat, "POST", "", activity)

    async def _call(self, chat: Chat, method: str, path: str, activity: Mapping[str, Any]) -> str:
        """Send an activity to the service that the question's token vouched for; return its id."""
        client = self._service(self.settings.api_base or _ticket(chat).service)
        id = chat.id + (THREAD + chat.thread if chat.thread else "")
        url = f"/v3/conversations/{quote(id, safe='')}/activities{path}"
        reply = await self._authorized(lambda headers: client.call(method, url, json=activity, headers=headers))
        return reply.json(Sent).id if reply.body.strip() else ""

    def _service(self, url: str) -> Client:
        if not url:
            raise Refused("it is not known where this chat's messages go: nobody has written there")
        base = url.rstrip("/")
        return self._services.setdefault(base, Client(base, failure=failure))

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Fetch a file. Our token goes to the service's own host only.

        https://learn.microsoft.com/microsoftteams/platform/bots/how-to/bots-filesv4
        """
        file = decode(attachment.ref, FileRef)
        client = self._service(file.service)
        return await self._authorized(
            lambda headers: client.download(file.url, limit=limit, hosts=FILE_HOSTS, headers=headers)
        )

    async def _authorized(self, call: Callable[[Mapping[str, str]], Awaitable[T]]) -> T:
        """Make a call with the token that all replicas share; once more, with a new one, when it is refused."""
        token = await shared_token(self.context.state, self._grant)
        try:
            return await call({"Authorization": f"Bearer {token}"})
        except Unauthorized:
            token = await shared_token(self.context.state, self._grant, stale=token)
        return await call({"Authorization": f"Bearer {token}"})

    async def _grant(self) -> tuple[str, float]:
        """Ask for an access token.

        https://learn.microsoft.com/azure/bot-service/rest-api/bot-framework-rest-connector-authentication#bot-to-connector
        """
        form = {
            "grant_type": "client_credentials",
            "client_id": self.settings.app_id,
            "client_secret": self.settings.app_password.get_secret_value(),
            "scope": f"{self._issuer}/.default",
        }
        reply = await self.login.call("POST", f"/{self.settings.tenant_id}/oauth2/v2.0/token", data=form)
        granted = reply.json(Granted)
        return granted.access_token, granted.expires_in

    # -- set up

    async def register(self, url: str) -> list[Finding]:
        """List what a person must do in the portal; a bot's own token may not change its registration."""
        names = {field: variable(self.context.instance, field) for field in TeamsSettings.model_fields}
        values = {"url": url, "id": self.settings.app_id, **names}
        return [Finding(True, f"{number}. {step.format_map(values)}") for number, step in enumerate(STEPS, 1)]

    async def check(self, url: str) -> list[Finding]:
        """Ask for an access token, and for the keys that sign what Teams sends."""
        asked = [await self._ask_token(), await self._ask_keys()]
        return [*asked, Finding(True, f"whether Teams calls {url} cannot be asked: write to the bot to see")]

    async def _ask_token(self) -> Finding:
        names = [variable(self.context.instance, field) for field in ("app_id", "app_password", "tenant_id")]
        try:
            await self._grant()
        except Refused as error:
            return Finding(False, str(error), f"check {', '.join(names)}; client secrets expire")
        except PlatformError as error:
            return Finding(False, f"the login service: {error}", "wait; check the network")
        return Finding(True, f"app {self.settings.app_id} is given an access token")

    async def _ask_keys(self) -> Finding:
        advice = f"wait; check {variable(self.context.instance, 'openid_url')} and the network"
        try:
            keys = await self.keys.fetch()
        except PlatformError as error:
            return Finding(False, f"the signing keys: {error}", advice)
        return Finding(bool(keys), f"{len(keys)} signing keys are known", advice)


def _ticket(chat: Chat) -> Ticket:
    return decode(chat.ticket or "{}", Ticket)


def _remember(kept: dict[str, T], key: str, value: T, until: Callable[[T], float]) -> None:
    """Keep a value and forget those whose time is over."""
    now = time.monotonic()
    for old in [key for key, entry in kept.items() if until(entry) <= now]:
        del kept[old]
    kept[key] = value
