"""What people write in rooms, read out of a homeserver's transactions.

https://spec.matrix.org/v1.16/client-server-api/#room-event-format
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Literal
from urllib.parse import unquote

import msgspec

from bot.adapter import Attachment, Request, decode
from bot.errors import Malformed

# With the prefix, and without it for homeservers that fall back to the paths of before 2019:
# https://spec.matrix.org/v1.16/application-service-api/#legacy-routes
PATH = re.compile(r"(?:/_matrix/app/v1)?/(transactions|users|rooms|ping)(?:/(.+))?")
FILES: dict[str, Literal["image", "audio", "video", "file"]] = {
    "m.image": "image",
    "m.audio": "audio",
    "m.video": "video",
    "m.file": "file",
    "m.sticker": "image",
}
WORDS = ("m.text", "m.emote", "m.location")
ENCRYPTED = "m.room.encrypted"
FALLBACK = re.compile(r"\A> <(@[^>\s]+)> ?.*\n(?:>.*\n)*\n?")
START, EDGE, MARKS = "(?<![A-Za-z0-9_])", "(?![A-Za-z0-9_])", ":,：，"  # of a name, and what may follow it
LARGEST_SIZE = 1 << 53  # bytes that anybody may claim for a file


class Replied(msgspec.Struct):
    """The message that is answered."""

    event_id: str = ""


class Relation(msgspec.Struct):
    """What an event has to do with another: https://spec.matrix.org/v1.16/client-server-api/#forwarding-relations"""

    rel_type: str = ""
    event_id: str = ""
    is_falling_back: bool = False  # the reply is there only for clients that do not know threads
    in_reply_to: Replied | None = msgspec.field(default=None, name="m.in_reply_to")


class Mentions(msgspec.Struct):
    """Who is to be notified: https://spec.matrix.org/v1.16/client-server-api/#user-and-room-mentions"""

    user_ids: list[str] = []


class Info(msgspec.Struct):
    """About a file."""

    mimetype: str | None = None
    size: int | float | None = None


class Content(msgspec.Struct):
    """What an event says: a message, or somebody's membership."""

    msgtype: str = ""
    body: str = ""
    formatted_body: str | None = None
    filename: str | None = None
    url: str | None = None
    info: Info | None = None
    relates_to: Relation | None = msgspec.field(default=None, name="m.relates_to")
    mentions: Mentions | None = msgspec.field(default=None, name="m.mentions")
    new_content: Content | None = msgspec.field(default=None, name="m.new_content")
    membership: str = ""
    displayname: str | None = None


class Relations(msgspec.Struct):
    """What came after an event: its last edit."""

    replace: Event | None = msgspec.field(default=None, name="m.replace")


class Unsigned(msgspec.Struct):
    """What the homeserver adds."""

    relations: Relations | None = msgspec.field(default=None, name="m.relations")


class Event(msgspec.Struct):
    """Something that happened in a room."""

    type: str
    event_id: str
    room_id: str
    sender: str
    content: Content
    state_key: str | None = None
    unsigned: Unsigned | None = None

    @property
    def relation(self) -> Relation:
        """What it has to do with another event."""
        return self.content.relates_to or Relation()

    @property
    def answered(self) -> str:
        """The id of the event it answers, "" for none."""
        relation = self.relation
        return relation.in_reply_to.event_id if relation.in_reply_to and not relation.is_falling_back else ""

    def makes(self, user: str, membership: str) -> bool:
        """Whether it makes somebody "join", "invite", "leave" or "ban"."""
        return self.type == "m.room.member" and self.state_key == user and self.content.membership == membership


class Transaction(msgspec.Struct):
    """https://spec.matrix.org/v1.16/application-service-api/#put_matrixappv1transactionstxnid"""

    events: list[msgspec.Raw]


def transaction(request: Request) -> list[Event]:
    """Return the events of a transaction, none for another request. Raises Malformed.

    An event that is not as the specification says is left out: a refusal would hold up everything behind it for hours.
    """
    route = PATH.fullmatch(request.path)
    if not route or (request.method, route[1]) != ("PUT", "transactions"):
        return []
    return [event for raw in request.json(Transaction).events if (event := readable(raw))]


def readable(raw: msgspec.Raw) -> Event | None:
    """Decode an event, None when it has an odd form: people write them, and homeservers hardly check."""
    with contextlib.suppress(Malformed):
        return decode(bytes(raw), Event)
    return None


IGNORED: tuple[tuple[str, Callable[[Event, str], bool]], ...] = (
    ("own message", lambda it, me: it.sender == me),
    ("not a message", lambda it, me: it.type not in ("m.room.message", "m.sticker")),
    ("notice of a bot", lambda it, me: it.content.msgtype == "m.notice"),
    ("edit", lambda it, me: it.relation.rel_type == "m.replace"),
    ("redacted or empty", lambda it, me: not it.content.body and not it.content.url),
    ("nothing to read", lambda it, me: it.type == "m.room.message" and it.content.msgtype not in (*WORDS, *FILES)),
)


def no_question(event: Event, me: str) -> str:
    """Return why nobody asks us anything with an event, "" when somebody may."""
    if event.type == ENCRYPTED and event.sender != me:
        return "encrypted"
    return next((reason for reason, holds in IGNORED if holds(event, me)), "")


def spoken(event: Event) -> tuple[str, str]:
    """Return (quote, words): older clients put what they answer before their words, with a ">" on each line.

    https://spec.matrix.org/v1.12/client-server-api/#fallbacks-for-rich-replies
    """
    content = event.content
    if event.type == "m.sticker":
        return "", content.body
    if content.msgtype in FILES:
        captioned = content.filename and content.filename != content.body
        return "", content.body if captioned else ""
    found = FALLBACK.match(content.body) if event.relation.in_reply_to else None
    if not found:
        return "", content.body
    quote = re.sub(r"(?m)^> ?", "", found[0].removeprefix(f"> <{found[1]}>")).strip()
    return quote, content.body[found.end() :]


def attached(event: Event) -> tuple[Attachment, ...]:
    """Return the file of a message."""
    content = event.content
    kind = FILES.get(content.msgtype or event.type)
    if kind is None or not content.url:
        return ()
    info = content.info or Info()
    name = content.filename or content.body
    return (Attachment(kind, content.url, info.mimetype or "", name, min(max(0, int(info.size or 0)), LARGEST_SIZE)),)


def without_name(text: str, content: Content, me: str, title: str) -> tuple[str, bool]:
    """Return the text without our name, and whether it calls us: "@magpie ...", "magpie: ..." or a mention.

    `title` is our display name in the room, "" when it is not known.
    """
    names = {localpart(me), title} - {""}
    name = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    at_name = rf"(?:{re.escape(me)}|@(?:{name})(?!:[\w.-]+\.\w)){EDGE}"  # and not a namesake's id elsewhere
    rest, calls = re.subn(rf"(?i:\A\s*(?:{name})\s*[{MARKS}]|{START}{at_name}\s*[{MARKS}]?)", "", text)
    mentioned = calls > 0 or mentions(content, me)
    if mentioned and not calls:  # a client that shows a pill writes the bare name into the body
        rest = re.sub(rf"(?i:{START}(?:{name}){EDGE}\s*[{MARKS}]?)", "", text, count=1)
    return rest.strip(), mentioned


def localpart(user: str) -> str:
    """Return "magpie" of "@magpie:example.com"."""
    return user.partition(":")[0].removeprefix("@")


def mentions(content: Content, user: str) -> bool:
    """Whether a message mentions a user, on purpose or, in older clients, by a link to them."""
    if content.mentions is not None:
        return user in content.mentions.user_ids
    return f"https://matrix.to/#/{user}" in unquote(content.formatted_body or "")
