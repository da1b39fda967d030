"""What the Bot Connector sends us.

https://learn.microsoft.com/azure/bot-service/rest-api/bot-framework-rest-connector-api-reference#activity-object
"""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from adapters.teams.text import spoken
from bot.adapter import Attachment, Chat, Response

FILE_INFO = "application/vnd.microsoft.teams.file.download.info"
CARD_SAYS = "Please write to me instead. / 请直接发消息给我。"
THREAD = ";messageid="  # between a channel's id and the message its thread began with
Kind = Literal["image", "audio", "video", "file"]
KINDS: Mapping[str, Kind] = {"image": "image", "audio": "audio", "video": "video"}  # by the first half of the type


class Account(msgspec.Struct):
    """A person or a bot. The id is the bot's own name for a person, `aadObjectId` the directory's."""

    id: str = ""
    name: str | None = None
    aadObjectId: str | None = None
    role: str | None = None


class Conversation(msgspec.Struct):
    """Where an activity happens. Channels other than Teams tell groups by `isGroup` alone."""

    id: str = ""
    conversationType: str | None = None
    isGroup: bool | None = None


class Entity(msgspec.Struct):
    """Something in the text: here a mention. `text` is how it stands there."""

    type: str | None = None
    mentioned: Account | None = None
    text: str | None = None


class Enclosed(msgspec.Struct):
    """An attachment; `content` depends on the type."""

    contentType: str | None = None
    contentUrl: str | None = None
    content: Any = None
    name: str | None = None


class ChannelData(msgspec.Struct):
    """What only Teams says: https://learn.microsoft.com/microsoftteams/platform/bots/how-to/update-and-delete-bot-messages"""

    eventType: str | None = None


class Head(msgspec.Struct):
    """What tells activities apart, and what their token has to vouch for."""

    type: str = ""
    name: str | None = None
    serviceUrl: str | None = None
    channelId: str | None = None


class Activity(msgspec.Struct):
    """A message."""

    conversation: Conversation
    id: str | None = None
    sender: Account = msgspec.field(name="from", default_factory=Account)
    recipient: Account = msgspec.field(default_factory=Account)
    text: str | None = None
    entities: list[Entity] | None = None
    attachments: list[Enclosed] | None = None
    channelData: ChannelData | None = None
    serviceUrl: str = ""
    replyToId: str | None = None
    locale: str | None = None


class Ticket(msgspec.Struct, omit_defaults=True):
    """`Chat.ticket` as JSON: the service that the token vouched for, and the message that is answered."""

    service: str = ""
    question: str = ""


class FileRef(msgspec.Struct, omit_defaults=True):
    """`Attachment.ref` as JSON: where a file lies, and the service that may see our token for it."""

    url: str
    service: str = ""


def as_json(value: object) -> str:
    """Encode a ticket or a reference."""
    return msgspec.json.encode(value).decode()


# -- messages


def is_direct(it: Activity) -> bool:
    """Whether a person is alone with the bot."""
    kind = it.conversation.conversationType
    return kind == "personal" if kind else not it.conversation.isGroup


def place(it: Activity) -> Chat:
    """Return where an answer goes: the thread of a channel is part of its conversation's id."""
    id, _, thread = it.conversation.id.partition(THREAD)
    ticket = as_json(Ticket(it.serviceUrl, it.id or ""))
    return Chat(id, "direct" if is_direct(it) else "group", thread, ticket)


def mentions(it: Activity) -> list[str]:
    """Return how the mentions of us stand in the text."""
    me = it.recipient.id
    return [
        one.text or ""
        for one in it.entities or ()
        if one.type == "mention" and one.mentioned and one.mentioned.id == me
    ]


def words(it: Activity) -> str:
    """Return what the person says, without the mentions of us."""
    return spoken(it.text or "", filter(None, mentions(it)))


def attached(it: Activity) -> Iterator[Attachment]:
    """Yield the files of a message; a text/html attachment is the text once more, a card is none."""
    for one in it.attachments or ():
        kind = one.contentType or ""
        shared = one.content if kind == FILE_INFO and isinstance(one.content, dict) else {}
        url = shared.get("downloadUrl") or one.contentUrl
        if kind.startswith(("text/html", "application/vnd.microsoft.card")) or not isinstance(url, str):
            continue
        if url.startswith(("https://", "http://")):
            mime = _mime(one, shared.get("fileType"))
            ref = as_json(FileRef(url, it.serviceUrl))
            yield Attachment(KINDS.get(kind.partition("/")[0]) or _kind(mime), ref, mime, one.name or "")


def _mime(one: Enclosed, extension: object) -> str:
    """Return the type of a file; pasted pictures come as "image/*"."""
    kind = one.contentType or ""
    if kind != FILE_INFO:
        return "" if kind.endswith("*") else kind
    guessed, _ = mimetypes.guess_type(f"file.{extension}" if isinstance(extension, str) else one.name or "")
    return guessed or ""


def _kind(mime: str) -> Kind:
    return KINDS.get(mime.partition("/")[0], "file")


# Why nobody asks us anything with a message; the first that holds is logged.
NO_QUESTION: tuple[tuple[str, Callable[[Activity], object]], ...] = (
    ("own message", lambda it: it.sender.id == it.recipient.id),
    ("message of a bot", lambda it: it.sender.role in ("bot", "skill") or it.sender.id.startswith("28:")),
    ("message without a sender", lambda it: not it.sender.id or not it.conversation.id or not it.id),
    ("change of a message", lambda it: it.channelData and _changed(it.channelData.eventType or "")),
    ("empty message", lambda it: not (it.text or "").strip() and not any(attached(it))),
)


def _changed(event: str) -> bool:
    return event.startswith(("edit", "softDelete", "undelete"))


# -- invokes, which want their answer at once


def invoked(name: str) -> Response:
    """Answer an invoke; 501 for those that nobody can send us unless the app's manifest is changed.

    https://learn.microsoft.com/microsoftteams/platform/task-modules-and-cards/cards/universal-actions-for-adaptive-cards/work-with-universal-actions-for-adaptive-cards
    """
    answer = INVOKES.get(name)
    return Response(status=501) if answer is None else Response.json(answer)


INVOKES: Mapping[str, Mapping[str, object]] = {
    "adaptiveCard/action": {
        "statusCode": 200,
        "type": "application/vnd.microsoft.activity.message",
        "value": CARD_SAYS,
    },
    "message/submitAction": {},  # thumbs up or down
    "fileConsent/invoke": {},
    "suggestedActions/submit": {},
}
