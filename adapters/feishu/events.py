"""What Feishu delivers: https://open.feishu.cn/document/server-docs/im-v1/message/events/receive"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Literal
from urllib.parse import quote

import msgspec

from bot.adapter import Attachment, decode

MESSAGE = "im.message.receive_v1"
HANDSHAKE = "url_verification"


class Header(msgspec.Struct):
    """What every event of schema 2.0 begins with."""

    event_type: str = ""
    token: str = ""


class Callback(msgspec.Struct):
    """A body once it is decrypted: an event, or the test of the URL. `token` and `type` are those of the old schema."""

    type: str = ""
    token: str = ""
    challenge: str = ""
    header: Header | None = None
    event: msgspec.Raw = msgspec.Raw(b"{}")

    @property
    def secret(self) -> str:
        """The verification token, from where this kind of callback has it."""
        return self.header.token if self.header else self.token

    @property
    def kind(self) -> str:
        """The type of the event."""
        return self.header.event_type if self.header else self.type


class Encrypted(msgspec.Struct):
    """A body as it is sent when there is an encrypt key."""

    encrypt: str = ""


class UserId(msgspec.Struct):
    """The id that a person or a bot has for this app."""

    open_id: str | None = None


class Sender(msgspec.Struct):
    """Who wrote a message: a "user", or an "app"."""

    sender_id: UserId | None = None
    sender_type: str = "user"


class Mention(msgspec.Struct):
    """Who stands behind a key such as "@_user_1" in the text."""

    key: str = ""
    id: UserId | None = None
    name: str = ""

    @property
    def open_id(self) -> str:
        """The id of who is mentioned, "" when it is not told."""
        return (self.id and self.id.open_id) or ""


class Incoming(msgspec.Struct):
    """A message."""

    message_id: str
    chat_id: str
    chat_type: str = "group"
    message_type: str = ""
    content: str = "{}"
    thread_id: str | None = None
    parent_id: str | None = None
    mentions: list[Mention] | None = None


class Received(msgspec.Struct):
    """The event of a message."""

    message: Incoming
    sender: Sender


class Element(msgspec.Struct):
    """A piece of a paragraph of a post."""

    tag: str = ""
    text: str | None = None
    href: str | None = None
    user_id: str | None = None
    user_name: str | None = None
    image_key: str | None = None
    file_key: str | None = None
    language: str | None = None


class Content(msgspec.Struct):
    """What a message says, by any of the types we read."""

    text: str | None = None
    title: str | None = None
    content: list[list[Element]] | None = None
    image_key: str | None = None
    file_key: str | None = None
    file_name: str | None = None


KINDS: Mapping[str, Literal["image", "audio", "video", "file"]] = {
    "image": "image",
    "audio": "audio",
    "media": "video",
    "file": "file",
}
READABLE = ("text", "post", *KINDS)
MIMES = {"audio": "audio/ogg", "media": "video/mp4"}


def content_of(incoming: Incoming) -> Content:
    """Read what a message says; nothing where its type is not for us (its content may not even be JSON)."""
    return decode(incoming.content, Content) if incoming.message_type in READABLE else Content()


# -- text


def _link(element: Element) -> str:
    text, href = element.text or "", element.href or ""
    return text if href in ("", text) else f"{text} ({href})" if text else href


def _at(element: Element) -> str:
    key = element.user_id or ""
    return key if key.startswith("@") else f"@{element.user_name or key}"


WRITTEN: Mapping[str, Callable[[Element], str]] = {
    "a": _link,
    "at": _at,
    "code_block": lambda element: f"```{(element.language or '').lower()}\n{element.text or ''}\n```",
    "hr": lambda element: "---",
}


def written(content: Content) -> str:
    """Return the text of a message, its mentions still as keys."""
    lines = ("".join(_piece(element) for element in paragraph) for paragraph in content.content or ())
    return "\n".join(part for part in (content.title, content.text, *lines) if part)


def _piece(element: Element) -> str:
    write = WRITTEN.get(element.tag)
    return write(element) if write else element.text or ""


_KEY = re.compile(r"(@_user_\d+|@_all)( ?)")


def spoken(text: str, mentions: Mapping[str, str]) -> str:
    """Put names (by key) in the place of keys; without a name the mention goes."""

    def named(found: re.Match[str]) -> str:
        name = mentions.get(found[1], "all" if found[1] == "@_all" else found[1][1:])
        return f"@{name}{found[2]}" if name else ""

    return _KEY.sub(named, text).strip()


# -- files


def attached(incoming: Incoming, content: Content) -> Iterator[Attachment]:
    """Yield the files of a message, and the pictures inside of a post."""
    kind = incoming.message_type
    key = content.image_key if kind == "image" else content.file_key  # a video's picture is its cover
    if kind in KINDS and key:
        name = content.file_name or ""
        mime = MIMES.get(kind) or mimetypes.guess_type(name)[0] or ""
        yield Attachment(KINDS[kind], resource(incoming.message_id, key, kind == "image"), mime=mime, name=name)
    for element in (element for paragraph in content.content or () for element in paragraph):
        if element.tag == "img" and element.image_key:
            yield Attachment("image", resource(incoming.message_id, element.image_key, True))
        elif element.tag == "media" and element.file_key:
            yield Attachment("video", resource(incoming.message_id, element.file_key, False), mime=MIMES["media"])


def resource(message: str, key: str, image: bool) -> str:
    """Return the path of a file: https://open.feishu.cn/document/server-docs/im-v1/message/get-2"""
    kind = "image" if image else "file"
    return f"/im/v1/messages/{quote(message, safe='')}/resources/{quote(key, safe='')}?type={kind}"
