"""What people sent, put into words and pictures for the model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from bot.adapter import AnyAdapter, Attachment, Message, Turn
from bot.errors import PlatformError
from bot.model import Picture, estimate_tokens
from bot.store import Entry

log = structlog.get_logger()

PICTURES = 4  # pictures of one question that the model is shown
PICTURE_BYTES = 8 * 1024 * 1024
TEXT_BYTES = 60_000  # a text file up to this size is read as part of the question
TEXT_TYPES = ("text/", "application/json", "application/xml", "application/x-yaml")


async def entries(adapter: AnyAdapter, messages: Sequence[Message], named: bool) -> list[Entry]:
    """Return the turns that messages become; with `named`, each says who wrote it."""
    found: list[Entry] = []
    for message in messages:
        found += [Entry(turn, estimate_tokens(turn.content)) for turn in message.context]
        if content := await _content(adapter, message):
            content = f"{message.user_name or message.user}: {content}" if named else content
            found.append(Entry(Turn("user", content), estimate_tokens(content)))
    return found


async def pictures(adapter: AnyAdapter, messages: Sequence[Message]) -> list[Picture]:
    """Download the pictures of a question; one that cannot be loaded is left out."""
    images = [image for message in messages for image in message.attachments if image.kind == "image"][:PICTURES]
    loaded = await asyncio.gather(*(_download(adapter, image, PICTURE_BYTES) for image in images))
    return [Picture(image.mime or "image/jpeg", data) for image, data in zip(images, loaded, strict=True) if data]


async def _content(adapter: AnyAdapter, message: Message) -> str:
    files = [await _describe(adapter, attachment) for attachment in message.attachments]
    words = "\n".join(part for part in (message.text.strip(), *files) if part)
    quote = "".join(f"> {line}\n" for line in message.quote.splitlines())
    return f"{quote}\n{words}" if quote and words else words


async def _describe(adapter: AnyAdapter, attachment: Attachment) -> str:
    """Put a file into words: a text file's content, a picture's mark; nothing for what we cannot read."""
    name = attachment.name or attachment.kind
    if attachment.kind == "image":
        return f"[{name}]"
    if attachment.mime.startswith(TEXT_TYPES) and attachment.size <= TEXT_BYTES:
        data = await _download(adapter, attachment, TEXT_BYTES)
        return f"[{name}]\n```\n{data.decode(errors='replace')}\n```" if data else ""
    return ""


async def _download(adapter: AnyAdapter, attachment: Attachment, limit: int) -> bytes:
    try:
        return await adapter.download(attachment, limit)
    except PlatformError as error:
        log.warning("attachment not loaded", adapter=adapter.name, kind=attachment.kind, error=str(error))
        return b""
