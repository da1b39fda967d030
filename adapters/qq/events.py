"""What the platform sends, and the message in it."""

from __future__ import annotations

import mimetypes
import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import msgspec

from bot.adapter import Attachment, Chat, Message

KINDS: Mapping[str, Literal["image", "audio", "video", "file"]] = {
    "image": "image",
    "voice": "audio",
    "audio": "audio",
    "video": "video",
}


class Scene(msgspec.Struct, frozen=True):
    """A kind of chat. `window`: seconds a message can be replied to."""

    name: str
    path: str
    kind: Literal["direct", "group"]
    window: float
    rich: bool = True  # shows Markdown and counts `msg_seq`


USERS = Scene("users", "/v2/users/{}/messages", "direct", 3600)
GROUPS = Scene("groups", "/v2/groups/{}/messages", "group", 300)
CHANNELS = Scene("channels", "/channels/{}/messages", "group", 300, rich=False)
DMS = Scene("dms", "/dms/{}/messages", "direct", 300, rich=False)
SCENES = {scene.name: scene for scene in (USERS, GROUPS, CHANNELS, DMS)}
EVENTS: Mapping[str, tuple[Scene, bool]] = {  # type: (scene, whether the bot is meant in any case)
    "C2C_MESSAGE_CREATE": (USERS, True),
    "GROUP_AT_MESSAGE_CREATE": (GROUPS, True),
    "GROUP_MESSAGE_CREATE": (GROUPS, False),
    "AT_MESSAGE_CREATE": (CHANNELS, True),
    "MESSAGE_CREATE": (CHANNELS, False),
    "DIRECT_MESSAGE_CREATE": (DMS, True),
}


# -- what the platform sends: https://bot.q.qq.com/wiki/develop/api-v2/dev-prepare/interface-framework/event-emit.html


class Payload(msgspec.Struct):
    """One call of the webhook."""

    op: int
    t: str | None = None
    d: msgspec.Raw = msgspec.Raw(b"null")


class Validation(msgspec.Struct):
    """The test of the URL. Nothing in it may look like an event: we sign it with the key that proves events."""

    plain_token: str
    event_ts: str


class Author(msgspec.Struct):
    id: str | None = None
    user_openid: str | None = None
    member_openid: str | None = None
    username: str | None = None
    bot: bool | None = None


class Mention(msgspec.Struct):
    id: str | None = None
    member_openid: str | None = None
    username: str | None = None
    bot: bool | None = None
    is_you: bool | None = None


class File(msgspec.Struct):
    content_type: str | None = None
    filename: str | None = None
    url: str | None = None
    size: int | None = None
    voice_wav_url: str | None = None
    asr_refer_text: str | None = None  # what was said


class Reference(msgspec.Struct):
    message_id: str | None = None


class Incoming(msgspec.Struct):
    """A message, in any scene."""

    id: str | None = None
    content: str | None = None
    timestamp: str | None = None
    author: Author | None = None
    group_openid: str | None = None
    channel_id: str | None = None
    guild_id: str | None = None
    mentions: list[Mention] | None = None
    attachments: list[File] | None = None
    message_reference: Reference | None = None


class Ticket(msgspec.Struct):
    """The right to reply to a message, and until when (seconds since 1970)."""

    message: str = ""
    until: float = 0


def message_of(scene: Scene, meant: bool, it: Incoming) -> Message | str:
    """Return the message of an event, or why there is none."""
    author = it.author or Author()
    if author.bot:
        return "message of a bot"
    user = author.user_openid or author.member_openid or author.id or ""
    chats = {USERS.name: user, GROUPS.name: it.group_openid, CHANNELS.name: it.channel_id, DMS.name: it.guild_id}
    chat = chats[scene.name]
    if not (it.id and user and chat):
        return "nobody to answer"
    text, named = _words(it)
    files = tuple(attachment for file in it.attachments or () if (attachment := _attachment(file)))
    if not (text or files or named or meant):
        return "nothing that can be read"
    ticket = msgspec.json.encode(Ticket(it.id, _written_at(it.timestamp) + scene.window)).decode()
    return Message(
        id=it.id,
        chat=Chat(f"{scene.name}/{chat}", scene.kind, ticket=ticket),
        user=user,
        text=text,
        user_name=author.username or "",
        addressed=meant or named or text.startswith(("/", "／")),
        attachments=files,
        reply_to=(it.message_reference.message_id if it.message_reference else "") or "",
        locale="zh",
    )


def _written_at(timestamp: str | None) -> float:
    """Return when a message was written (seconds since 1970), now when it does not say."""
    now = time.time()
    if not timestamp or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", timestamp):
        return now
    try:
        return min(datetime.fromisoformat(timestamp).timestamp(), now)
    except (ValueError, OverflowError):  # the 31st of February
        return now


def _words(it: Incoming) -> tuple[str, bool]:
    """Return what was said without the mention of the bot, and whether there was one."""
    mentions = it.mentions or []
    mine = [mention for mention in mentions if mention.is_you] or [mention for mention in mentions if mention.bot]
    named = any(mention.is_you for mention in mentions)
    text = re.sub(r"<faceType=[^<>]*>", "[表情]", it.content or "")
    for mention in mentions:
        shown = "" if mention in mine[:1] else f"@{mention.username or 'user'} "
        for id in filter(None, (mention.id, mention.member_openid)):
            text = re.sub(rf"<@!?{re.escape(id)}>\s*", shown.replace("\\", ""), text)
    if not mentions:
        text = re.sub(r"^\s*<@!?\w+>", "", text)  # guilds: the one who is called first is the bot
    spoken = " ".join(file.asr_refer_text for file in it.attachments or () if file.asr_refer_text)
    return text.strip() or spoken.strip(), named


def _attachment(file: File) -> Attachment | None:
    url = file.voice_wav_url or file.url or ""
    if not url:
        return None
    if not url.startswith("https://"):
        url = "https://" + re.sub("^(http:)?//", "", url)
    mime = (file.content_type or "").lower()
    kind = KINDS.get(mime.partition("/")[0], "file")
    name = file.filename or ""
    mime = mime if "/" in mime else (mimetypes.guess_type(name)[0] or "").lower()
    return Attachment(kind, url, mime, name, max(file.size or 0, 0))
