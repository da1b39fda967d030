"""Matrix, as an application service: https://spec.matrix.org/v1.16/application-service-api/

The homeserver sends us the events of the rooms we are in; we post by its client API. An answer grows by edits.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import re
import secrets
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, Field, StringConstraints

from adapters.matrix import registration
from adapters.matrix.api import Homeserver
from adapters.matrix.errands import Errands
from adapters.matrix.events import PATH, Event, attached, localpart, no_question, spoken, transaction, without_name
from adapters.matrix.rooms import Rooms
from bot import signing
from bot.adapter import (
    Accept,
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
)
from bot.config import HttpUrl, Secret, variable
from bot.errors import PlatformError, Refused, Rejected, Unavailable, Unverified
from bot.markup import HTML

TYPING_FOR = 30_000  # milliseconds
MEDIA = re.compile(r"mxc://([^/?#\s]+)/([A-Za-z0-9_-]+)")
COMMAND = re.compile(r"\A!(?=\w)")  # clients keep "/" for commands of their own


def size(text: str) -> int:
    """Count the bytes a text has as JSON."""
    return len(msgspec.json.encode(text))


# -- settings


def _ascii(value: Secret) -> Secret:
    if not re.fullmatch(r"[!-~]+", value.get_secret_value()):
        raise ValueError("must be of letters, digits and signs, without spaces")
    return value


Token = Annotated[Secret, AfterValidator(_ascii)]
UserId = Annotated[str, StringConstraints(pattern=r"^@[a-z0-9._=/+-]+:[^\s/]+$")]
INVENTED: dict[str, Any] = {"invented": True}


class MatrixSettings(AdapterSettings):
    """Variables MATRIX_*."""

    api_base: HttpUrl = Field(
        min_length=1, description="The homeserver's client API, such as https://matrix.example.com"
    )
    user_id: UserId = Field(description="The bot's user id, which nobody has yet, such as @magpie:example.com")
    as_token: Token = Field(
        description="Any secret that nobody can guess; we show it to the homeserver", json_schema_extra=INVENTED
    )
    hs_token: Token = Field(description="Another one; the homeserver shows it to us", json_schema_extra=INVENTED)
    message_type: Literal["m.notice", "m.text"] = Field(
        "m.notice", description="How answers are marked: as a bot's, or as a person's, of which apps notify"
    )
    registration_file: str = Field(
        "", description="Where `magpie register` writes the registration; empty: data/matrix-registration.yaml"
    )


# -- what the homeserver hears: https://spec.matrix.org/v1.16/application-service-api/#unknown-routes

OK = Response.json({})
NOT_FOUND = Response.json({"errcode": "M_NOT_FOUND", "error": "not here"}, 404)
UNRECOGNIZED = Response.json({"errcode": "M_UNRECOGNIZED", "error": "no such path"}, 404)
FORBIDDEN = Response.json({"errcode": "M_FORBIDDEN", "error": "wrong hs_token"}, 403)
LATER = Response.json({"errcode": "M_UNKNOWN", "error": "send it again"}, 503)


class NotYet(Rejected):
    """The homeserver has to deliver again: it did not tell who is in the room."""

    status = 503
    code = "unavailable"


class MatrixAdapter(WebhookAdapter[MatrixSettings]):
    """A user of a homeserver."""

    name = "matrix"
    title = "Matrix"
    docs = "https://spec.matrix.org/latest/application-service-api/"
    Settings = MatrixSettings
    # An event has at most 65,536 bytes; an edit says everything twice, once more without markup, and is signed.
    # https://spec.matrix.org/v1.16/client-server-api/#size-limits
    can = Capabilities(
        max_length=19_000,
        measure=size,
        dialect=HTML,
        edit_every=2.5,  # every edit is an event that all homeservers of the room keep
        typing_every=20,
    )

    def __init__(self, settings: MatrixSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.me = settings.user_id
        self.homeserver = Homeserver(settings.api_base, settings.as_token.get_secret_value(), self.me)
        self.rooms = Rooms(partial(self.homeserver.call, "GET", "v3", "rooms"), self.me)
        self._service = f"magpie-{context.instance}"
        self.errands = Errands(self.homeserver, context, self._service, self.rooms.learn, self._messages)
        self._hs_token = settings.hs_token.get_secret_value()
        self._unsure: set[str] = set()  # pages that may have been begun: a call got no answer
        self._typing: set[str] = set()  # rooms that show us typing

    async def stop(self) -> None:
        """Close the connections."""
        await self.homeserver.client.close()

    # -- inbound

    async def verify(self, request: Request) -> None:
        """Compare the homeserver's token; then learn who is in the rooms of its events, which `parse` has to know.

        https://spec.matrix.org/v1.16/application-service-api/#authorization
        """
        try:
            for token in tokens(request):
                signing.equal(token, self._hs_token, "hs_token")
        except Unverified as error:
            raise Unverified(str(error), FORBIDDEN) from None
        await self.rooms.prepare(transaction(request))

    def parse(self, request: Request) -> Inbound:
        """Translate a transaction; answer the homeserver's questions."""
        route = PATH.fullmatch(request.path)
        what = (request.method, route[1]) if route else ()
        if route and what == ("PUT", "transactions"):
            return self._transaction(transaction(request))
        if route and (what == ("POST", "ping") or (what == ("GET", "users") and route[2] == self.me)):
            return Inbound(response=OK, ignored=f"question for {route[1]}")
        asked = what in (("GET", "users"), ("GET", "rooms"))
        return Inbound(response=NOT_FOUND if asked else UNRECOGNIZED, ignored="unknown user, room or path")

    def _transaction(self, events: Sequence[Event]) -> Inbound:
        reasons = dict.fromkeys(filter(None, map(self._ignored, events)))
        return Inbound(tuple(self._messages(events)), OK, ", ".join(reasons))

    def _messages(self, events: Sequence[Event]) -> list[Message]:
        return [self._message(event) for event in events if not self._ignored(event)]

    def _ignored(self, event: Event) -> str:
        here = self.rooms.members(event.room_id) != {}
        return no_question(event, self.me) or ("" if here else "not in the room")

    def _message(self, event: Event) -> Message:
        """Translate an event. Raises NotYet when we cannot tell whether it is meant for us."""
        members = self.rooms.members(event.room_id)
        names = members or {}
        quote, words = spoken(event)
        text, called = without_name(words, event.content, self.me, names.get(self.me, ""))
        if members is None and not called:
            raise NotYet("who is in the room is not known yet", LATER)
        direct = 0 < len(names) <= 2
        thread = event.relation.event_id if event.relation.rel_type == "m.thread" else ""
        return Message(
            id=event.event_id,
            chat=Chat(event.room_id, "direct" if direct else "group", thread, "" if direct else event.sender),
            user=event.sender,
            user_name=names.get(event.sender) or localpart(event.sender),
            text=COMMAND.sub("/", text),
            addressed=direct or called,
            attachments=attached(event),
            reply_to=event.answered,
            quote=quote or self.rooms.quote(event.answered),
        )

    async def at_once(self, request: Request, inbound: Inbound) -> None:
        """Note what is to be done besides answering."""
        for event in transaction(request):
            await self.errands.note(event)

    async def listen(self, accept: Accept) -> None:
        """Enter the rooms we are invited into; explain ourselves in encrypted ones."""
        await self.errands.run(accept)

    def sample(self) -> Request:
        """Return the homeserver's ping."""
        headers = {"authorization": f"Bearer {self._hs_token}", "content-type": "application/json"}
        return Request("POST", "/_matrix/app/v1/ping", headers, body=b'{"transaction_id":"magpie"}')

    # -- outbound

    async def send(self, chat: Chat, page: Page) -> str:
        """Post a message: https://spec.matrix.org/v1.16/client-server-api/#mroommessage-msgtypes"""
        if page.key in self._unsure:  # begun, perhaps: to begin it again finds the message, or makes it
            return await self.edit(chat, Post(await self.begin(chat, page)), page, last=True)
        id = transaction_id(page.key, "send", page.text)
        event = await self.homeserver.post(chat.id, id, self._content(chat, page) | relation(chat, page))
        await self._stop_typing(chat.id)
        return event

    async def begin(self, chat: Chat, page: Page) -> str:
        """Post a message that will grow. Every attempt at a page begins the same one, whatever it says by then."""
        with self._watched(page.key):
            id = transaction_id(page.key, "begin")
            return await self.homeserver.post(chat.id, id, self._content(chat, page) | relation(chat, page))

    @contextlib.contextmanager
    def _watched(self, key: str) -> Iterator[None]:
        try:
            yield
        except Unavailable:
            self._unsure.add(key)
            raise

    async def edit(self, chat: Chat, post: Post, page: Page, last: bool) -> str:
        """Replace a message: https://spec.matrix.org/v1.16/client-server-api/#event-replacements"""
        content = self._content(chat, page)
        edit = {
            "msgtype": content["msgtype"],
            "body": f"* {content['body']}",
            "m.mentions": {},
            "m.new_content": content,
            "m.relates_to": {"rel_type": "m.replace", "event_id": post.id},
        }
        id = transaction_id(page.key, "edit", post.id, str(post.edits), str(last), page.text)
        await self.homeserver.post(chat.id, id, edit)
        if last:
            self._unsure.discard(page.key)
            await self._stop_typing(chat.id)
        return post.id

    def _content(self, chat: Chat, page: Page) -> dict[str, Any]:
        """Return what a message says. It notifies who asked in a group, and nobody whom the answer happens to name."""
        return {
            "msgtype": self.settings.message_type,
            "body": plain(page),
            "format": "org.matrix.custom.html",
            "formatted_body": page.text,
            "m.mentions": {"user_ids": [chat.ticket]} if chat.ticket else {},
        }

    async def typing(self, chat: Chat) -> None:
        """Show that we are typing: https://spec.matrix.org/v1.16/client-server-api/#typing-notifications"""
        self._typing.add(chat.id)
        await self._show_typing(chat.id, {"typing": True, "timeout": TYPING_FOR})

    async def _stop_typing(self, room: str) -> None:
        if room in self._typing:
            self._typing.discard(room)
            with contextlib.suppress(PlatformError):  # it fades by itself
                await self._show_typing(room, {"typing": False})

    async def _show_typing(self, room: str, fields: dict[str, Any]) -> None:
        await self.homeserver.call("PUT", "v3", "rooms", room, "typing", self.me, json=fields)

    async def acknowledge(self, message: Message) -> None:
        """Mark a message as read: https://spec.matrix.org/v1.16/client-server-api/#receipts"""
        await self.homeserver.call("POST", "v3", "rooms", message.chat.id, "receipt", "m.read", message.id, json={})

    async def download(self, attachment: Attachment, limit: int) -> bytes:
        """Fetch a file from our homeserver, which fetches it from wherever it lies."""
        media = MEDIA.fullmatch(attachment.ref)
        if media is None:
            raise Refused("the attachment is no mxc:// address")
        return await self.homeserver.download(media[1], media[2], limit)

    # -- set up

    async def register(self, url: str) -> list[Finding]:
        """Write the registration file, and say what the homeserver's administrator does with it."""
        own, instance = self.settings, self.context.instance
        file = Path(own.registration_file or f"data/{instance}-registration.yaml")
        text = registration.registration(self._service, url, own.as_token.get_secret_value(), self._hs_token, self.me)
        try:
            registration.write(file, text)
        except OSError as error:
            name = variable(instance, "registration_file")
            return [Finding(False, f"{file} cannot be written: {error.strerror}", f"set {name} to another path")]
        return registration.steps(file, url, instance, self.me)

    async def check(self, url: str) -> list[Finding]:
        """Ask who we are, and let the homeserver call us."""
        known = await registration.known(self.homeserver)
        return [known, await registration.reached(self.homeserver, self._service, url)] if known.ok else [known]


def tokens(request: Request) -> list[str]:
    """Return each token that a request shows, [""] for none. Old homeservers put it into the query."""
    scheme, _, token = request.header("authorization").partition(" ")
    shown = [token.strip() if scheme.lower() == "bearer" else ""] if scheme else []
    return [*shown, *([request.query["access_token"]] if "access_token" in request.query else [])] or [""]


def transaction_id(key: str, *parts: str) -> str:
    """Return an id for a call that is the same whenever its parts are; a new one without a key."""
    return hashlib.sha256("\n".join((key, *parts)).encode()).hexdigest()[:32] if key else secrets.token_hex(16)


def relation(chat: Chat, page: Page) -> dict[str, Any]:
    """Return what puts a message into its thread, or makes it a reply in a group.

    https://spec.matrix.org/v1.16/client-server-api/#threading
    """
    if not chat.thread and (chat.kind == "direct" or not page.reply_to):
        return {}
    reply = {"m.in_reply_to": {"event_id": page.reply_to or chat.thread}}
    thread = {"rel_type": "m.thread", "event_id": chat.thread, "is_falling_back": True} if chat.thread else {}
    return {"m.relates_to": thread | reply}


def plain(page: Page) -> str:
    """Return a page for apps without HTML. It is never longer than the page, so that both fit into an event."""
    if page.plain not in ("", page.text) and size(page.plain) <= size(page.text):
        return page.plain
    return html.unescape(re.sub(r"<[^<>]*>", "", page.text))
