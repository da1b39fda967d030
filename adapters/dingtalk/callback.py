"""What DingTalk delivers: https://open.dingtalk.com/document/orgapp/receive-message"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterator, Mapping
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from bot.adapter import Attachment


class Said(msgspec.Struct, rename="camel"):
    """The text of a message that is answered."""

    text: str | None = None


class Replied(msgspec.Struct, rename="camel"):
    """The message that is answered."""

    msg_id: str | None = ""
    content: Said | str | None = None


class Text(msgspec.Struct, rename="camel"):
    """A text, without the mention of the robot."""

    content: str | None = ""
    replied_msg: Replied | None = None


class Piece(msgspec.Struct, rename="camel"):
    """A piece of a rich text: words or a picture."""

    text: str | None = None
    download_code: str | None = None


class Content(msgspec.Struct, rename="camel"):
    """What a message other than a text holds. `recognition` is what a voice message says."""

    download_code: str | None = None
    recognition: str | None = None
    file_name: str | None = None
    rich_text: list[Piece] | None = None


class Callback(msgspec.Struct, rename="camel"):
    """A message to the robot."""

    msgtype: str = ""
    msg_id: str = ""
    conversation_id: str = ""
    conversation_type: str | int = "2"  # "1" for a private chat
    sender_id: str = ""
    sender_staff_id: str | None = ""  # nothing for people who are not in the organisation
    sender_nick: str | None = ""
    chatbot_user_id: str | None = ""
    robot_code: str | None = ""
    session_webhook: str | None = ""
    session_webhook_expired_time: float | str | None = 0  # milliseconds since 1970
    is_in_at_list: bool | None = None
    text: Text | None = None
    content: Content | str | None = None

    @property
    def direct(self) -> bool:
        """Whether nobody else is in the chat."""
        return str(self.conversation_type) == "1"


class Ticket(msgspec.Struct, omit_defaults=True):
    """Where an answer goes: the person, by which robot, the session webhook and until when (seconds since 1970)."""

    staff: str = ""
    robot: str = ""
    webhook: str = ""
    until: float = 0


KINDS: Mapping[str, Literal["image", "audio", "video", "file"]] = {
    "picture": "image",
    "audio": "audio",
    "video": "video",
    "file": "file",
}


def said(it: Callback) -> str:
    """Put a message into words. A rich text still begins with the mention of the robot on some clients."""
    if it.text:
        return (it.text.content or "").strip()
    if not isinstance(it.content, Content):
        return ""
    text = "".join(piece.text or "" for piece in it.content.rich_text or ()).strip()
    if it.is_in_at_list and not it.direct:
        text = re.sub(r"\A@\S+\s*", "", text)
    return text or (it.content.recognition or "").strip()


def quoted(it: Callback) -> tuple[str, str]:
    """Return id and text of the message that is answered."""
    replied = it.text and it.text.replied_msg
    if not replied:
        return "", ""
    content = replied.content
    return replied.msg_id or "", (content.text if isinstance(content, Said) else content) or ""


def attached(it: Callback, robot: str) -> Iterator[Attachment]:
    """Yield the file of a message, or the pictures inside of a rich text. It takes the robot's code to load them."""
    if not isinstance(it.content, Content):
        return
    if it.msgtype in KINDS and it.content.download_code:
        name = it.content.file_name or ""
        mime = mimetypes.guess_type(name)[0] or ""
        yield Attachment(KINDS[it.msgtype], f"{robot}/{it.content.download_code}", mime=mime, name=name)
    for piece in it.content.rich_text or ():
        if piece.download_code:
            yield Attachment("image", f"{robot}/{piece.download_code}")


def seconds(milliseconds: float | str | None) -> float:
    """Return seconds since 1970, 0 for what is no time."""
    text = f"{milliseconds:.0f}" if isinstance(milliseconds, float | int) else milliseconds or ""
    return int(text) / 1000 if re.fullmatch(r"[0-9]{1,15}", text) else 0


def is_trusted(url: str, base: str) -> bool:
    """Whether an answer may be posted there: to DingTalk by https, or to where the API itself is."""
    try:
        parts, own = urlsplit(url), urlsplit(base)
    except ValueError:
        return False
    if (parts.scheme, parts.netloc) == (own.scheme, own.netloc):
        return True
    return parts.scheme == "https" and re.fullmatch(r"([a-z0-9-]+\.)*dingtalk\.com", parts.netloc) is not None
