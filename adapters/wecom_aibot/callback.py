"""What WeCom tells the bot: https://developer.work.weixin.qq.com/document/path/100719"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import msgspec

from bot.adapter import Attachment


class Sealed(msgspec.Struct):
    """The body of a callback; both spellings are in use."""

    encrypt: str = ""
    Encrypt: str = ""


class Words(msgspec.Struct):
    """A text, or what a voice message says."""

    content: str = ""


class File(msgspec.Struct):
    """A file that can be fetched for five minutes."""

    url: str = ""


class Part(msgspec.Struct):
    """What a message, a quoted one or an item of a mixed one holds."""

    text: Words | None = None
    voice: Words | None = None
    image: File | None = None
    file: File | None = None
    video: File | None = None

    def words(self) -> Iterator[str]:
        yield from (part.content.strip() for part in (self.text, self.voice) if part)

    def files(self) -> Iterator[Attachment]:
        kinds: tuple[Literal["image", "file", "video"], ...] = ("image", "file", "video")
        yield from (Attachment(kind, file.url) for kind in kinds if (file := getattr(self, kind)) and file.url)


class Mixed(msgspec.Struct):
    """Texts and pictures in one message."""

    msg_item: list[Part] = []


class Content(Part):
    """A message without its head."""

    mixed: Mixed | None = None

    def parts(self) -> list[Part]:
        return [self, *(self.mixed.msg_item if self.mixed else ())]

    def said(self) -> str:
        """Return all its words."""
        return "\n".join(filter(None, (words for part in self.parts() for words in part.words())))

    def attached(self) -> tuple[Attachment, ...]:
        """Return all its files."""
        return tuple(file for part in self.parts() for file in part.files())


class Sender(msgspec.Struct):
    """A member of the company."""

    userid: str = ""


class Event(msgspec.Struct):
    """What happened besides messages."""

    eventtype: str = ""


class Polled(msgspec.Struct):
    """The stream that WeCom asks about."""

    id: str = ""


class Callback(Content):
    """A message, an event or a poll."""

    msgtype: str = ""
    msgid: str = ""
    chattype: str = "single"
    chatid: str = ""
    sender: Sender = msgspec.field(name="from", default_factory=Sender)
    response_url: str = ""
    quote: Content | None = None
    event: Event | None = None
    stream: Polled | None = None


def without_mention(text: str, name: str) -> str:
    """Remove the bot's mention: "@" and its name, or any mention at the start, else at the end."""
    if name and f"@{name}" in text:
        return text.replace(f"@{name}", "", 1).strip()
    shorter = re.sub(r"^@\S+\s*", "", text)
    return shorter if shorter != text else re.sub(r"(^|\s)@\S+$", "", text).rstrip()
