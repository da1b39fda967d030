"""What the Bot Connector says no with, and the activities we send it.

https://learn.microsoft.com/microsoftteams/platform/bots/streaming-ux
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

import msgspec

from bot.adapter import Page
from bot.client import Reply, http_failure
from bot.errors import PlatformError, Refused, Throttled, Unauthorized, Unavailable

PAUSE = 3.0  # seconds to wait after a rate limit that comes without a number
PASSING = (412, 502, 504)  # https://learn.microsoft.com/microsoftteams/platform/bots/how-to/rate-limit
STOPPED = "stopped"  # the code of our error when the person has pressed the stop button
BY_A_MODEL = {
    "type": "https://schema.org/Message",
    "@type": "Message",
    "@context": "https://schema.org",
    "additionalType": ["AIGeneratedContent"],
}


class Fault(msgspec.Struct):
    """An error of the Connector."""

    code: str | None = None
    message: str | None = None


class Failed(msgspec.Struct):
    """The body of an error."""

    error: Fault | None = None


class Denied(msgspec.Struct):
    """The body of an error of the login service: https://learn.microsoft.com/entra/identity-platform/reference-error-codes"""

    error: str = ""
    error_description: str = ""


class Granted(msgspec.Struct):
    """An access token and the seconds it lives."""

    access_token: str
    expires_in: float


class Sent(msgspec.Struct):
    """What is answered to an activity; an edit may be answered with nothing."""

    id: str = ""


def failure(reply: Reply) -> PlatformError | None:
    """Read an error off the status; of the Connector's words only its code is kept."""
    status = reply.status
    if status < 400:
        return None
    fault = _fault(reply.body)
    text = f"HTTP {status} ({fault.code})" if fault.code else f"HTTP {status}"
    if status == 429:
        return Throttled(text, PAUSE if reply.retry_after is None else reply.retry_after)
    if status in PASSING:
        return Unavailable(text)
    if status == 403:  # of this chat: the bot was removed, is blocked, or may not stream
        return Refused(text, STOPPED if "cancel" in (fault.message or "").lower() else fault.code or status)
    return http_failure(reply) if status in (401, 408, 425) or status >= 500 else Refused(text, status)


def _fault(body: bytes) -> Fault:
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(body, type=Failed).error or Fault()
    return Fault()


def login_failure(reply: Reply) -> PlatformError | None:
    """Read an error of the login service, which refuses wrong secrets with 400 or 401."""
    if reply.status not in (400, 401, 403, 404):
        return http_failure(reply)
    denied = Denied()
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        denied = msgspec.json.decode(reply.body, type=Denied)
    number = re.match(r"AADSTS\d+", denied.error_description)
    return Unauthorized(
        f"no access token: {denied.error or reply.status}{f' ({number[0]})' if number else ''}", "login"
    )


def message(page: Page, **more: object) -> dict[str, Any]:
    """Return a message; what the model wrote is marked as written by one.

    https://learn.microsoft.com/microsoftteams/platform/bots/how-to/bot-messages-ai-generated-content
    """
    entities = [] if page.failure else [BY_A_MODEL]
    return {"type": "message", "text": page.text, "textFormat": "markdown", "entities": entities, **more}


def piece(text: str, number: int, stream: str = "") -> dict[str, Any]:
    """Return a piece of a stream: the whole text so far. The first one has no stream yet; its own id becomes it."""
    info = {"type": "streaminfo", "streamType": "streaming", "streamSequence": number}
    return {"type": "typing", "text": text, "entities": [info | ({"streamId": stream} if stream else {})]}


def final(page: Page, stream: str) -> dict[str, Any]:
    """Return the message that ends a stream."""
    whole = message(page)
    whole["entities"].insert(0, {"type": "streaminfo", "streamType": "final", "streamId": stream})
    return whole
