"""What people write: https://docs.discord.com/developers/resources/message"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from bot.adapter import Attachment, Chat, Inbound, Message

WRITTEN = (0, 19)  # an ordinary message and a reply; all other types are about joins, pins, boosts, calls ...
MENTION = re.compile(r"<@!?(\d+)>")
EMOJI = re.compile(r"<a?(:\w+:)\d+>")
KINDS: dict[str, Literal["image", "audio", "video"]] = {"image": "image", "audio": "audio", "video": "video"}


class User(msgspec.Struct):
    """A person, a bot, or Discord itself (`system`)."""

    id: str
    username: str = ""
    global_name: str | None = None
    bot: bool = False
    system: bool = False


class Member(msgspec.Struct):
    """What a person is in a server. `user` is there in interactions only."""

    nick: str | None = None
    user: User | None = None


class File(msgspec.Struct):
    """A file. Its URL is signed, and good for a day. `size` in bytes."""

    url: str
    filename: str = ""
    content_type: str | None = None
    size: int = 0


class Quoted(msgspec.Struct):
    """A message that is answered or forwarded."""

    id: str = ""
    content: str = ""
    attachments: list[File] = []


class Snapshot(msgspec.Struct):
    """A forwarded message."""

    message: Quoted


class Incoming(msgspec.Struct):
    """A message: the `d` of MESSAGE_CREATE."""

    id: str
    channel_id: str
    author: User
    type: int = 0
    content: str = ""
    guild_id: str | None = None
    webhook_id: str | None = None
    member: Member | None = None
    mentions: list[User] = []
    attachments: list[File] = []
    referenced_message: Quoted | None = None
    message_snapshots: list[Snapshot] = []


def heard(incoming: Incoming, me: str) -> Inbound:
    """Translate a message. `me` is the id of our own user."""
    if incoming.author.bot or incoming.author.system or incoming.webhook_id:
        return Inbound(ignored="message of a bot")
    if incoming.type not in WRITTEN:
        return Inbound(ignored="service message")
    answered = incoming.referenced_message
    parts: list[Incoming | Quoted] = [incoming, *(snapshot.message for snapshot in incoming.message_snapshots)]
    message = Message(
        id=incoming.id,
        chat=Chat(incoming.channel_id, "group" if incoming.guild_id else "direct"),
        user=incoming.author.id,
        user_name=name(incoming.author, incoming.member),
        text=readable("\n".join(part.content for part in parts if part.content), incoming.mentions, me),
        addressed=not incoming.guild_id or any(user.id == me for user in incoming.mentions),
        attachments=tuple(attachment(file) for part in parts for file in part.attachments),
        reply_to=answered.id if answered else "",
        quote=readable(answered.content, (), me) if answered else "",
    )
    return Inbound((message,))


def readable(text: str, mentioned: Iterable[User], me: str) -> str:
    """Return a text without our own mention, other people and emojis by their names."""
    names = {user.id: name(user) for user in mentioned}
    text = re.sub(rf"<@!?{re.escape(me)}>\s*", "", text)
    text = MENTION.sub(lambda found: f"@{names.get(found[1], found[1])}", text)
    return EMOJI.sub(r"\1", text).strip()


def name(user: User, member: Member | None = None) -> str:
    """Return what people call somebody."""
    return (member and member.nick) or user.global_name or user.username


def attachment(file: File) -> Attachment:
    """Translate a file."""
    mime = (file.content_type or "").partition(";")[0]
    return Attachment(KINDS.get(mime.partition("/")[0], "file"), file.url, mime, file.filename, file.size)
