"""What the API answers: https://open.feishu.cn/document/server-docs/api-call-guide/generic-error-code"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Generic, TypeVar

import msgspec

from bot.client import Reply, http_failure, retry_after
from bot.errors import PlatformError, Refused, Throttled, Unauthorized, Unavailable

T = TypeVar("T")


class Status(msgspec.Struct):
    """How a call went; 0 is well. A failure comes with any HTTP status, 200 among them."""

    code: int = 0
    msg: str = ""


class Answer(msgspec.Struct, Generic[T]):
    """The result of a call."""

    data: T


class Granted(msgspec.Struct):
    """A tenant access token and the seconds it lives."""

    tenant_access_token: str
    expire: float


class Sent(msgspec.Struct):
    """A message of ours."""

    message_id: str


class Created(msgspec.Struct):
    """A card of ours."""

    card_id: str


class Bot(msgspec.Struct):
    """Who we are. `activate_status` 2: the tenant has switched us on."""

    open_id: str = ""
    app_name: str = ""
    activate_status: int = 2


class Me(msgspec.Struct):
    """What bot/v3/info answers, which has no `data`."""

    bot: Bot


STALE = (99991661, 99991663, 99991664, 99991665, 99991668)  # this access token is not valid, or not any more
OUTRUN = 300317  # a card has seen a higher sequence number
NO_SCOPE = (99991672, 99991679)
PAUSE = 1.0  # seconds, for a rate limit that comes without a number

ERRORS: Mapping[int, tuple[type[PlatformError], str]] = {
    10003: (Unauthorized, "the app id is not valid"),
    10014: (Unauthorized, "the app secret is not valid"),
    11232: (Throttled, "rate limit of the tenant"),
    230002: (Refused, "the bot is not in this chat"),
    230006: (Unauthorized, "the app has no bot, or no version of it is published"),
    230013: (Refused, "the person is outside of the app's availability"),
    230020: (Throttled, "rate limit of the chat"),
    230025: (Refused, "the message is too long"),
    230027: (Unauthorized, "the app lacks a permission"),
    230049: (Unavailable, "the same message is being sent"),
    300309: (Refused, "the card does not stream any more"),
    OUTRUN: (Refused, "the card has seen a higher sequence number"),
    99991400: (Throttled, "rate limit of the API"),
    **dict.fromkeys(STALE, (Unauthorized, "the access token is not valid")),
    **dict.fromkeys(NO_SCOPE, (Unauthorized, "the app lacks a permission")),
}


def failure(reply: Reply) -> PlatformError | None:
    """Read an error off the body, else off the HTTP status. Of Feishu's words only the names of scopes are kept."""
    status = Status()
    with contextlib.suppress(Unavailable):  # not JSON: the HTTP status alone speaks
        status = reply.json(Status)
    if status.code == 0 or (status.code not in ERRORS and (reply.status >= 500 or reply.status == 429)):
        return http_failure(reply)
    kind, reason = ERRORS.get(status.code, (Refused, "refused"))
    scopes = ", ".join(re.findall(r"\b[a-z]+(?::[a-z._]+)+\b", status.msg)) if status.code in NO_SCOPE else ""
    text = f"{reason} (code {status.code}{': ' if scopes else ''}{scopes})"
    if issubclass(kind, Refused):
        return kind(text, status.code)
    return Throttled(text, _wait(reply)) if kind is Throttled else kind(text)


def _wait(reply: Reply) -> float:
    """Return the seconds to wait, which have a header of their own: x-ogw-ratelimit-reset."""
    return retry_after(reply.headers.get("x-ogw-ratelimit-reset", "")) or reply.retry_after or PAUSE
