"""What WhatsApp sends: https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/reference/messages"""

from __future__ import annotations

from typing import Literal

import msgspec

import adapters.meta as meta
from adapters.whatsapp.api import CODES
from bot.adapter import Attachment, Inbound


class Change(msgspec.Struct):
    """One piece of news; what `value` is depends on the field."""

    field: str
    value: msgspec.Raw


class Entry(msgspec.Struct):
    """News about one business account."""

    changes: list[Change] = []


class Notification(msgspec.Struct):
    """The body of a webhook request."""

    object: str
    entry: list[Entry] = []


class Metadata(msgspec.Struct):
    """Which of the app's business numbers this is about."""

    phone_number_id: str


class Profile(msgspec.Struct):
    """How a person appears."""

    name: str | None = None
    username: str | None = None


class Contact(msgspec.Struct):
    """Who wrote: a phone number, an id of their own for this business, or both."""

    wa_id: str | None = None
    user_id: str | None = None
    profile: Profile = msgspec.field(default_factory=Profile)


class Status(msgspec.Struct):
    """What became of a message of ours."""

    status: str
    errors: list[meta.Error] = []


class Renamed(msgspec.Struct):
    """A person's old and new id."""

    previous: str
    current: str


class IdUpdate(msgspec.Struct):
    """A person got a new id, with a new phone number."""

    user_id: Renamed


class Value(msgspec.Struct):
    """What a change is about."""

    metadata: Metadata
    contacts: list[Contact] = []
    messages: list[msgspec.Raw] = []
    statuses: list[Status] = []
    user_id_update: list[IdUpdate] = []


class Text(msgspec.Struct):
    """The text of a message."""

    body: str = ""


class Button(msgspec.Struct):
    """A pressed button of a template."""

    text: str = ""
    payload: str = ""


class Choice(msgspec.Struct):
    """A pressed button or a chosen row."""

    id: str = ""
    title: str = ""


class Interactive(msgspec.Struct):
    """An answer to a message with buttons or a list."""

    button_reply: Choice | None = None
    list_reply: Choice | None = None


class File(msgspec.Struct):
    """A file; its content is asked for by its id."""

    id: str
    mime_type: str = ""
    filename: str = ""
    caption: str = ""
    animated: bool = False


class Location(msgspec.Struct):
    """A place on the map."""

    latitude: float
    longitude: float
    name: str = ""
    address: str = ""


class Quoted(msgspec.Struct):
    """The message that this one answers."""

    id: str | None = None


class Incoming(msgspec.Struct):
    """A message of a person, of which the member named by its type is filled."""

    id: str
    type: str
    phone: str | None = msgspec.field(name="from", default=None)
    from_user_id: str | None = None
    group_id: str | None = None
    context: Quoted = msgspec.field(default_factory=Quoted)
    text: Text | None = None
    button: Button | None = None
    interactive: Interactive | None = None
    location: Location | None = None
    image: File | None = None
    sticker: File | None = None
    audio: File | None = None
    video: File | None = None
    document: File | None = None


QUIET = {"reaction", "system", "edit", "revoke", "ephemeral", "request_welcome"}  # types that ask nothing
FILES: dict[str, Literal["image", "audio", "video", "file"]] = {
    "image": "image",
    "sticker": "image",
    "audio": "audio",
    "video": "video",
    "document": "file",
}


def words(it: Incoming) -> str:
    """Put a message into words, "" when it has none."""
    if it.text:
        return it.text.body
    if it.button:
        return meta.pressed(it.button.payload, it.button.text)
    if it.interactive:
        choice = it.interactive.button_reply or it.interactive.list_reply or Choice()
        return meta.pressed(choice.id, choice.title)
    if it.location:
        point = f"({it.location.latitude}, {it.location.longitude})"
        return " ".join(filter(None, ("Location / 位置:", it.location.name, it.location.address, point)))
    return "\n".join(file.caption for file in (getattr(it, name) for name in FILES) if file)


def attachments(it: Incoming) -> tuple[Attachment, ...]:
    """Return the files of a message. A sticker that moves is no picture to a model."""
    files = ((kind, getattr(it, name)) for name, kind in FILES.items())
    return tuple(
        Attachment("video" if file.animated else kind, file.id, file.mime_type.partition(";")[0], file.filename)
        for kind, file in files
        if file
    )


def sender(it: Incoming, contacts: list[Contact]) -> Contact:
    """Return who wrote a message. Since there are usernames the phone number may be missing.

    https://developers.facebook.com/documentation/business-messaging/whatsapp/business-scoped-user-ids
    """
    mine = (one for one in contacts if it.from_user_id in (None, one.user_id) and it.phone in (None, one.wa_id))
    known = next(mine, contacts[0] if len(contacts) == 1 else Contact())
    return Contact(it.phone or known.wa_id, it.from_user_id or known.user_id, known.profile)


def became(status: Status) -> Inbound:
    """Say what became of a message of ours; one that was accepted may still be refused later."""
    reasons = [meta.explain(error, CODES) for error in status.errors]
    return Inbound(ignored=f"not delivered: {', '.join(reasons)}" if reasons else f"status {status.status}")
