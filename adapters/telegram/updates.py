"""What Telegram sends: https://core.telegram.org/bots/api#update"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec

from bot.adapter import Attachment, Chat
from bot.markup import utf16


class Sender(msgspec.Struct):
    """A person, a bot, or a chat that speaks for itself (the group of an anonymous admin)."""

    id: int
    is_bot: bool = False
    first_name: str = ""
    last_name: str = ""
    title: str = ""
    username: str = ""
    language_code: str = ""
    can_read_all_group_messages: bool = False


class Place(msgspec.Struct):
    """A chat: "private", "group", "supergroup" or "channel"."""

    id: int
    type: str
    first_name: str = ""


class Entity(msgspec.Struct):
    """A special part of a text. `offset` and `length` in UTF-16 units."""

    type: str
    offset: int
    length: int
    user: Sender | None = None


class File(msgspec.Struct):
    """Any kind of file."""

    file_id: str
    file_size: int = 0
    file_name: str = ""
    mime_type: str = ""


class Sticker(msgspec.Struct):
    """A sticker, which stands for an emoji."""

    emoji: str = ""


class Location(msgspec.Struct):
    """A point on the map."""

    latitude: float
    longitude: float


class Quote(msgspec.Struct):
    """The part of a message that a reply quotes."""

    text: str


class Rich(msgspec.Struct):
    """A message of blocks. Their kinds grow with every version, so `flat` reads them by the names of their fields."""

    blocks: list[Any] = []


class Incoming(msgspec.Struct):
    """A message. What a person can send and we cannot read is `Any`; the rest are service messages."""

    message_id: int
    chat: Place
    sender: Sender | None = msgspec.field(default=None, name="from")
    sender_chat: Sender | None = None
    message_thread_id: int = 0
    is_topic_message: bool = False
    is_automatic_forward: bool = False
    migrate_to_chat_id: int = 0
    forum_topic_created: Any = None
    reply_to_message: Incoming | None = None
    quote: Quote | None = None
    text: str = ""
    caption: str = ""
    entities: list[Entity] = []
    caption_entities: list[Entity] = []
    rich_message: Rich | None = None
    sticker: Sticker | None = None
    location: Location | None = None
    photo: list[File] = []
    voice: File | None = None
    audio: File | None = None
    video: File | None = None
    video_note: File | None = None
    document: File | None = None
    contact: Any = None
    poll: Any = None
    dice: Any = None
    game: Any = None
    story: Any = None
    checklist: Any = None
    paid_media: Any = None


class Stopped(msgspec.Struct):
    """Somebody pressed the stop button of a draft."""

    chat: Place
    message_thread_id: int = 0


class Update(msgspec.Struct):
    """One delivery. Of the many kinds these mean something to us."""

    update_id: int
    message: Incoming | None = None
    stopped_message_generation: Stopped | None = None


UPDATES = Update.__struct_fields__[1:]
UNREADABLE = ("contact", "poll", "dice", "game", "story", "checklist", "paid_media")
FILES = {  # fields of a message, and the type of the file where Telegram names none
    "photo": "image/jpeg",
    "voice": "audio/ogg",
    "audio": "audio/mpeg",
    "video": "video/mp4",
    "video_note": "video/mp4",
    "document": "application/octet-stream",
}
KINDS: dict[str, Literal["image", "audio", "video", "file"]] = {"image": "image", "audio": "audio", "video": "video"}


def content(incoming: Incoming) -> tuple[str, Sequence[Entity]]:
    """Return a message's text and what is special in it."""
    if incoming.rich_message:
        text = flat(incoming.rich_message.blocks)
        return text, marked(text)
    if incoming.text or incoming.caption:
        return incoming.text or incoming.caption, incoming.entities or incoming.caption_entities
    if point := incoming.location:
        return f"📍 {point.latitude}, {point.longitude}", ()
    return incoming.sticker.emoji if incoming.sticker else "", ()


def attached(incoming: Incoming) -> Iterator[Attachment]:
    """Yield the files of a message. Of a photo's sizes the last is the largest."""
    for field, usual in FILES.items():
        if value := getattr(incoming, field):
            file: File = value[-1] if isinstance(value, list) else value
            mime = file.mime_type or usual
            kind = KINDS.get(mime.partition("/")[0], "file")
            yield Attachment(kind, file.file_id, mime, file.file_name, file.file_size)


def answered_by(incoming: Incoming) -> Incoming | None:
    """Return the message this one replies to. In a topic the message that opened it stands for none."""
    answered = incoming.reply_to_message
    return answered if answered and answered.forum_topic_created is None else None


def place(chat: Place, thread: int, ticket: str = "") -> Chat:
    """Return where an answer goes; the ticket is the message it answers."""
    return Chat(str(chat.id), "direct" if chat.type == "private" else "group", str(thread or ""), ticket)


def index(text: str, offset: int) -> int:
    """Return the index of the character at an offset in UTF-16 units."""
    return len(text.encode("utf-16-le", "surrogatepass")[: 2 * max(offset, 0)].decode("utf-16-le", "ignore"))


def span(text: str, entity: Entity) -> tuple[int, int]:
    """Return where an entity begins and ends in a text."""
    return index(text, entity.offset), index(text, entity.offset + entity.length)


def marked(text: str) -> list[Entity]:
    """Find the mentions and the leading command of a rich message, which has no entities."""
    found = re.finditer(r"\A/\w+(@\w+)?|(?<!\w)@\w+", text)
    types = {"/": "bot_command", "@": "mention"}
    return [Entity(types[hit[0][0]], utf16(text[: hit.start()]), utf16(hit[0])) for hit in found]


# Fields of blocks and rich texts that hold something to read, in reading order, and what joins the lists in them:
# https://core.telegram.org/bots/api#richblock
RICH: dict[str, tuple[str, ...]] = {
    "label": ("",),
    "summary": ("",),
    "text": ("",),
    "expression": ("",),
    "alternative_text": ("",),
    "cells": ("\n", " | "),
    "blocks": ("\n",),
    "items": ("\n",),
    "caption": ("",),
    "credit": ("",),
}


def flat(node: Any, joins: tuple[str, ...] = ("\n",), depth: int = 80) -> str:
    """Return the text in a tree of rich blocks, down to `depth` levels of JSON."""
    if isinstance(node, str) or depth == 0:
        return node if isinstance(node, str) else ""
    if isinstance(node, list):
        return joins[0].join(flat(child, joins[1:] or joins, depth - 1) for child in node)
    if not isinstance(node, dict):
        return ""
    parts = (flat(node[field], inner, depth - 1) for field, inner in RICH.items() if field in node)
    return (" " if "label" in node else "\n").join(filter(None, parts))
