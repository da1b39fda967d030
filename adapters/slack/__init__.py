"""Slack: Events API, slash commands and interactivity on one URL. https://docs.slack.dev/apis/

In a thread an answer grows as Slack's native stream; where that is not to be had, or once it has died, by edits.
A slash command is answered to the person alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import AfterValidator, Field

from adapters.slack.api import (
    GONE,
    NO_PREVIEW,
    STOPPED,
    STREAMING,
    UNREADABLE,
    Answer,
    Info,
    Me,
    Posted,
    failure,
    repaired,
)
from adapters.slack.console import STEPS, manifest, scopes
from adapters.slack.events import (
    SUBTYPES,
    Envelope,
    Event,
    FileRef,
    Interaction,
    Kind,
    Slash,
    Ticket,
    as_json,
    asked,
    attached,
    called,
    form,
    is_direct,
    is_trusted,
    mine,
    no_question,
    pressed,
    quoted,
)
from adapters.slack.text import MARKDOWN, mentioned, settled, spoken
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
    Post,
    Request,
    Response,
    WebhookAdapter,
    decode,
)
from bot.client import Client
from bot.config import HttpUrl, Secret, variable
from bot.errors import PlatformError, Refused, Throttled
from bot.markup import escape_html

T = TypeVar("T")
WINDOW = 300.0  # seconds for which a signed request is taken
FORM = "application/x-www-form-urlencoded"
STATUS = "is thinking… / 正在思考…"
FILE_HOSTS = ("files.slack.com", "files.slack-gov.com")
EDITS_FOR = 600.0  # seconds until a chat that refused a stream is offered one again
STREAM_LIVES = 900.0  # seconds after which a stream that nobody ended is forgotten; Slack ends it after some 300
LOGIN_PAGE = b"<!doctype html"
OTHER_TOKENS = {"xapp-": "an app-level token", "xoxp-": "a user's token", "xoxe-": "a refresh token"}


def _bot_token(value: Secret) -> Secret:
    what = OTHER_TOKENS.get(value.get_secret_value()[:5])
    if what or not value.get_secret_value():
        raise ValueError(f"is {what or 'empty'}; the Bot User OAuth Token begins with xoxb-")
    return value


class SlackSettings(AdapterSettings):
    """Variables SLACK_*."""

    bot_token: Annotated[Secret, AfterValidator(_bot_token)] = Field(
        description="https://api.slack.com/apps, your app, Install App: Bot User OAuth Token (xoxb-...)"
    )
    signing_secret: Secret = Field(min_length=1, description="Your app, Basic Information: Signing Secret")
    api_base: HttpUrl = Field(
        "https://slack.com/api", min_length=1, description="The Web API; GovSlack: https://slack-gov.com/api"
    )
    thread_memory: bool = Field(
        False, description="In direct messages, remember every thread by itself; false: one memory for all of them"
    )


class Stream:
    """A native stream: what was appended to it, and until when it is of interest (`time.monotonic()`)."""

    def __init__(self, sent: str) -> None:
        self.sent = sent
        self.until = time.monotonic() + STREAM_LIVES
        self.astray = False  # the page no longer begins with what was sent


class SlackAdapter(WebhookAdapter[SlackSettings]):
    """A Slack app in one workspace."""

    name = "slack"
    title = "Slack"
    docs = "https://docs.slack.dev/apis/events-api/"
    Settings = SlackSettings
    can = Capabilities(
        max_length=11_500,  # characters of Markdown; Slack takes 12,000
        dialect=MARKDOWN,
        edit_every=1.2,  # chat.update may be called 50 times a minute, chat.appendStream 100 times
        typing_every=90,  # the status fades after two minutes
    )

    def __init__(self, settings: SlackSettings, context: Context) -> None:
        super().__init__(settings, context)
        token = settings.bot_token.get_secret_value()
        self.client = Client(settings.api_base, headers={"Authorization": f"Bearer {token}"}, failure=failure)
        self.hooks = Client("")  # without the token
        self._secret = settings.signing_secret.get_secret_value()
        self._streams: dict[str, Stream] = {}  # those that this process has begun, by the message's id
        self._edits_only: dict[str, float] = {}  # chat: time.monotonic() from which a stream may be tried

    async def stop(self) -> None:
        """Close the connections."""
        await self.client.close()
        await self.hooks.close()

    # -- inbound

    async def verify(self, request: Request) -> None:
        """Check time and signature: https://docs.slack.dev/authentication/verifying-requests-from-slack"""
        timestamp = request.header("x-slack-request-timestamp")
        signing.fresh(timestamp, WINDOW, "X-Slack-Request-Timestamp")
        signing.equal(
            request.header("x-slack-signature"), self._signature(timestamp, request.body), "X-Slack-Signature"
        )

    def _signature(self, timestamp: str, body: bytes) -> str:
        return "v0=" + signing.digest(self._secret, f"v0:{timestamp}:".encode() + body)

    def sample(self) -> Request:
        """Return the challenge that Slack sends when the URL is saved."""
        body, timestamp = b'{"type":"url_verification","challenge":"magpie"}', str(int(time.time()))
        headers = {"x-slack-request-timestamp": timestamp, "x-slack-signature": self._signature(timestamp, body)}
        return Request(headers=headers | {"content-type": "application/json"}, body=body)

    def parse(self, request: Request) -> Inbound:
        """Translate a delivery, which is JSON for events and a form for commands and interactions."""
        if request.header("content-type").lower().startswith(FORM):
            return self._form(dict(parse_qsl(request.body.decode(errors="replace"), keep_blank_values=True)))
        envelope = request.json(Envelope)
        if envelope.type == "url_verification":
            return Inbound(response=Response.json({"challenge": envelope.challenge}), ignored="url verification")
        if envelope.type != "event_callback":
            return Inbound(ignored=envelope.type.replace("_", " "))
        return self._event(envelope)

    def _event(self, envelope: Envelope) -> Inbound:
        kind = decode(bytes(envelope.event), Kind)
        if kind.type not in ("message", "app_mention") or kind.subtype not in SUBTYPES:
            return Inbound(ignored=(kind.subtype or kind.type).replace("_", " "))
        event, own = decode(bytes(envelope.event), Event), mine(envelope)
        reason = no_question(event, own)
        return Inbound(ignored=reason) if reason else Inbound((self._message(event, own, envelope.team_id or ""),))

    def _message(self, event: Event, own: set[str], team: str) -> Message:
        """Translate a message. Its id is its place, so a mention that arrives as two events is one message.

        https://docs.slack.dev/reference/events/app_mention
        """
        text, mention = event.text or "", event.type == "app_mention"
        names = mentioned(text)
        own = own or (set(names[:1]) if mention else set())
        direct = is_direct(event.channel, event.channel_type)
        root = event.thread_ts or event.ts
        ticket = Ticket(root, event.user or "", event.user_team or event.team or team)
        quote = quoted(event)
        return Message(
            id=f"{event.channel}/{event.ts}",
            chat=self._chat(event.channel, direct, root, ticket),
            user=event.user or "",
            user_name=called(event.user_profile),
            text=spoken(text, own) or ("" if event.files or quote else "/help"),  # nothing but our name
            addressed=direct or mention or not own.isdisjoint((*names, event.parent_user_id)),
            attachments=tuple(attached(event.files)),
            reply_to=f"{event.channel}/{root}" if root != event.ts else "",
            quote=quote,
        )

    def _chat(self, channel: str, direct: bool, root: str, ticket: Ticket) -> Chat:
        """Return where an answer goes; the thread is in the ticket, too, where it has no memory of its own."""
        thread = root if not direct or self.settings.thread_memory else ""
        return Chat(channel, "direct" if direct else "group", thread, as_json(ticket))

    def _form(self, fields: dict[str, str]) -> Inbound:
        """Translate a slash command or an interaction. The empty answer shows nothing."""
        if "ssl_check" in fields:
            return Inbound(ignored="ssl check")
        sent = form(fields)
        message = self._command(sent) if isinstance(sent, Slash) else self._interaction(sent)
        return Inbound((message,)) if message else Inbound(ignored="interaction without words")

    def _command(self, slash: Slash) -> Message:
        """https://docs.slack.dev/interactivity/implementing-slash-commands"""
        ticket = Ticket("", slash.user_id, slash.team_id, self._hook(slash.response_url))
        return Message(
            id=f"command/{slash.trigger_id}",
            chat=self._chat(slash.channel_id, is_direct(slash.channel_id), "", ticket),
            user=slash.user_id,
            user_name=slash.user_name,
            text=asked(slash),
        )

    def _interaction(self, sent: Interaction) -> Message | None:
        """Take a button or a menu as what it says. The shortcut of a message asks about it, for the person alone."""
        text, message, shortcut = pressed(sent), sent.message, sent.type == "message_action"
        if not text or not sent.user or not sent.channel or not sent.trigger_id:
            return None
        root = (message.thread_ts or message.ts) if message else ""
        team = sent.user.team_id or (sent.team.id if sent.team else "")
        ticket = Ticket(root, sent.user.id, team, self._hook(sent.response_url) if shortcut else "")
        return Message(
            id=f"interaction/{sent.trigger_id}",
            chat=self._chat(sent.channel.id, is_direct(sent.channel.id), root, ticket),
            user=sent.user.id,
            user_name=sent.user.name or "",
            text=text,
            attachments=tuple(attached(message.files)) if message and shortcut else (),
        )

    def _hook(self, url: str) -> str:
        return url if is_trusted(url, self.client.base) else ""

    # -- outbound

    async def send(self, chat: Chat, page: Page) -> str:
        """Post a message: https://docs.slack.dev/reference/methods/chat.postMessage"""
        ticket = _ticket(chat)
        if ticket.reply:
            return await self._respond(ticket, page)
        return await self._post(chat.id, ticket.thread, page)

    async def begin(self, chat: Chat, page: Page) -> str:
        """Begin a stream in a thread, post a message elsewhere; nothing yet for a command, whose answer cannot grow.

        https://docs.slack.dev/reference/methods/chat.startStream
        """
        ticket = _ticket(chat)
        if ticket.reply:
            return ""
        if not ticket.thread or time.monotonic() < self._edits_only.get(chat.id, 0):
            return await self.send(chat, page)
        text = settled(page.text) or page.text
        recipient = {"recipient_user_id": ticket.user, "recipient_team_id": ticket.team}
        fields = {"channel": chat.id, "thread_ts": ticket.thread, "markdown_text": text}
        try:
            id = (await self._call("chat.startStream", Posted, fields | recipient)).ts
        except Refused:
            id = await self.send(chat, page)  # raises when it is the chat that is refused, not the stream
            _remember(self._edits_only, chat.id, time.monotonic() + EDITS_FOR, lambda until: until)
            return id
        _remember(self._streams, id, Stream(text), lambda stream: stream.until)
        return id

    async def edit(self, chat: Chat, post: Post, page: Page, last: bool) -> str:
        """Append to a stream, or put the page in the message's place."""
        if not post.id:  # a page without a key only blanks what an earlier attempt has left
            return await self.send(chat, page) if last and page.key else ""
        stream = self._streams.get(post.id)
        if stream and await self._append(chat, post.id, stream, page, last):
            return post.id
        return await self._replace(chat, post.id, page, last)

    async def _append(self, chat: Chat, id: str, stream: Stream, page: Page, last: bool) -> bool:
        """Append what is new. False when that cannot be done any more, so that the whole has to take its place.

        https://docs.slack.dev/reference/methods/chat.appendStream
        """
        text = page.text if last else settled(page.text)
        if not text.startswith(stream.sent):
            return await self._strayed(chat, id, stream, text, last)
        more = text[len(stream.sent) :]
        if more or last:
            self._streams.pop(id)  # until we know that it went well: never append the same twice
            fields = {"channel": chat.id, "ts": id, "markdown_text": more}
            try:
                await self._call("chat.stopStream" if last else "chat.appendStream", Answer, fields)
            except Throttled:
                self._streams[id] = stream
                raise
            except Refused as error:
                if error.code == STOPPED and not last:
                    raise  # the person has pressed the stop button: the model is stopped as well
                return False
        if not last:
            stream.sent, stream.astray = text, False
            self._streams[id] = stream
        return True

    async def _strayed(self, chat: Chat, id: str, stream: Stream, text: str, last: bool) -> bool:
        """Wait once for a page that differs from what was sent of it (a mark is half written?), then end the stream."""
        held = stream.sent.startswith(text)
        if not last and (held or not stream.astray):
            stream.astray = not held
            return True
        del self._streams[id]
        await self._end(chat, id)
        return False

    async def _end(self, chat: Chat, id: str) -> None:
        with contextlib.suppress(Refused):  # it has ended by itself
            await self._call("chat.stopStream", Answer, {"channel": chat.id, "ts": id})

    async def _replace(self, chat: Chat, id: str, page: Page, last: bool) -> str:
        """Show the page in the message's place, or in a new message where Slack does not take that."""
        try:
            await self._update(chat, id, page)
        except Refused as error:
            if error.code in UNREADABLE and not last:
                return id  # the last page is shown in another way
            if error.code not in (*GONE, *UNREADABLE):
                raise
            with contextlib.suppress(Refused):
                await self._call("chat.delete", Answer, {"channel": chat.id, "ts": id})
            return await self.send(chat, page)
        return id

    async def _update(self, chat: Chat, id: str, page: Page) -> None:
        """https://docs.slack.dev/reference/methods/chat.update"""
        fields = {"channel": chat.id, "ts": id, "markdown_text": page.text}
        try:
            await self._call("chat.update", Answer, fields)
        except Refused as error:
            if error.code != STREAMING:
                raise
            await self._end(chat, id)  # a stream that another process has begun, or that may have got our last words
            await self._call("chat.update", Answer, fields)

    async def _post(self, channel: str, thread: str, page: Page) -> str:
        """Post a message, without what Slack does not take of it."""
        fields: dict[str, Any] = {"channel": channel, "markdown_text": page.text} | NO_PREVIEW
        if thread:
            fields["thread_ts"] = thread
        while True:
            try:
                return (await self._call("chat.postMessage", Posted, fields)).ts
            except Refused as error:
                fields = repaired(fields, page, error)

    async def _respond(self, ticket: Ticket, page: Page) -> str:
        """Answer a command, to the person alone. After five answers or half an hour that is a direct message.

        https://docs.slack.dev/interactivity/handling-user-interaction#message_responses
        """
        blocks = [{"type": "markdown", "text": page.text}]
        answer = {"response_type": "ephemeral", "text": escape_html(page.plain or page.text), "blocks": blocks}
        try:
            await self.hooks.call("POST", ticket.reply, json=answer)
        except Refused:
            await self._post(ticket.user, "", page)
        return ""

    async def typing(self, chat: Chat) -> None:
        """Show that we are thinking: https://docs.slack.dev/reference/methods/assistant.threads.setStatus"""
        if thread := _ticket(chat).thread:
            fields = {"channel_id": chat.id, "thread_ts": thread, "status": STATUS}
            await self._call("assistant.threads.setStatus", Answer, fields)

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Fetch a file; one from another organisation has to be located first.

        https://docs.slack.dev/reference/objects/file-object
        """
        file = decode(attachment.ref, FileRef)
        url = file.url or await self._located(file.id)
        data = await self.client.download(url, limit=limit, trusted=FILE_HOSTS, headers=self.client.headers)
        if data[:64].lstrip().lower().startswith(LOGIN_PAGE) and "html" not in attachment.mime:
            raise Refused("Slack shows its login page in place of the file; does the app have the scope files:read?")
        return data

    async def _located(self, id: str) -> str:
        reply = await self.client.call("POST", "/files.info", data={"file": id})
        return reply.json(Info).file.url_private_download

    async def _call(self, method: str, kind: type[T], fields: dict[str, Any]) -> T:
        given = {name: value for name, value in fields.items() if value != ""}
        return (await self.client.call("POST", f"/{method}", json=given)).json(kind)

    # -- set up

    async def register(self, url: str) -> list[Finding]:
        """List what a person must do in the console; an app cannot change itself."""
        token, secret = (variable(self.context.instance, field) for field in ("bot_token", "signing_secret"))
        values = {"url": url, "manifest": as_json(manifest(url)), "token": token, "secret": secret}
        return [Finding(True, f"{number}. {step.format(**values)}") for number, step in enumerate(STEPS, 1)]

    async def check(self, url: str) -> list[Finding]:
        """Ask who we are and what we may do: https://docs.slack.dev/reference/methods/auth.test"""
        token, base = (variable(self.context.instance, field) for field in ("bot_token", "api_base"))
        try:
            reply = await self.client.call("POST", "/auth.test")
        except Refused as error:
            return [Finding(False, f"the token is refused: {error}", f"copy {token} from Install App again")]
        except PlatformError as error:
            return [Finding(False, f"Slack does not serve us: {error}", f"wait; check {token}, {base} and the network")]
        me = reply.json(Me)
        return [
            Finding(True, f"the token is that of @{me.user} in {me.team}"),
            *scopes(reply.headers.get("x-oauth-scopes", "")),
            Finding(True, f"whether Slack calls {url} cannot be asked: write to the app to see"),
        ]


def _ticket(chat: Chat) -> Ticket:
    return decode(chat.ticket or "{}", Ticket)


def _remember(kept: dict[str, T], key: str, value: T, until: Callable[[T], float]) -> None:
    """Keep a value and forget those whose time is over."""
    now = time.monotonic()
    for old in [key for key, entry in kept.items() if until(entry) <= now]:
        del kept[old]
    kept[key] = value
