"""What the API answers: https://open.dingtalk.com/document/development/error-code"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping

import msgspec

from bot.client import Reply, http_failure
from bot.errors import PlatformError, Refused, Throttled, Unauthorized, Unavailable


class Status(msgspec.Struct):
    """How a call went: `code` names what went wrong, older calls and the session webhook have `errcode`."""

    code: str | int | None = ""
    message: str | None = ""
    errcode: int = 0
    success: bool | None = None


class Granted(msgspec.Struct, rename="camel"):
    """An access token and the seconds it lives."""

    access_token: str
    expire_in: float = 7200


class Sent(msgspec.Struct, rename="camel"):
    """What sending by the robot's API tells: the id, and whom it did not reach."""

    process_query_key: str | None = ""
    invalid_staff_id_list: list[str] | None = None
    flow_controlled_staff_id_list: list[str] | None = None


class Located(msgspec.Struct, rename="camel"):
    """Where a file is."""

    download_url: str


class Space(msgspec.Struct, rename="camel"):
    """Whether a card reached a chat."""

    success: bool = True


class Spaces(msgspec.Struct, rename="camel"):
    """Which chats a card was to reach."""

    deliver_results: list[Space] | None = None


class Delivered(msgspec.Struct):
    """What delivering a card answers."""

    result: Spaces | bool | None = None


class Stumbled(Unavailable):
    """DingTalk failed over this very call, and may do so every time: a card that is not there gives an HTTP 500."""


class Undelivered(Refused):
    """A card was made but did not reach the chat."""


STALE = ("invalidauthentication", "40014", "42001")  # this access token is not valid, or not any more
PAUSE = 2.0  # seconds, as rate limits come without a number
LONG_PAUSE = 20.0  # seconds, for those of the session webhook, which count by the minute
ERRORS: Mapping[int, tuple[type[PlatformError], str, float]] = {  # by `errcode`
    -1: (Unavailable, "the platform is busy", 0),
    88: (Throttled, "rate limit of the API", PAUSE),
    130101: (Throttled, "rate limit of the session webhook", LONG_PAUSE),
    410100: (Throttled, "rate limit of the session webhook", LONG_PAUSE),
}


def failure(reply: Reply) -> PlatformError | None:
    """Read an error off the body, else off the HTTP status. Of DingTalk's words only codes and scopes are kept."""
    status = Status()
    with contextlib.suppress(Unavailable):  # not JSON: the HTTP status alone speaks
        status = reply.json(Status)
    if status.errcode:
        return _old_failure(status.errcode)
    if reply.status < 400:
        return Refused(f"refused ({_code(status)})", _code(status)) if status.success is False else None
    if reply.status == 429 or not status.code:
        return http_failure(reply)
    return _failure(reply.status, status)


def _old_failure(code: int) -> PlatformError:
    if str(code) in STALE:
        return Unauthorized(f"the access token is not valid (errcode {code})", STALE[0])
    kind, reason, pause = ERRORS.get(code, (Refused, "refused", 0))
    text = f"{reason} (errcode {code})"
    if issubclass(kind, Refused):
        return kind(text, code)
    return Throttled(text, pause) if kind is Throttled else kind(text)


def _failure(http: int, status: Status) -> PlatformError:
    code = _code(status)
    scopes = ", ".join(re.findall(r"\b(?:[A-Z]\w+(?:\.[A-Z]\w+)+|qyapi_\w+)\b", status.message or ""))
    text = f"{code}{': ' if scopes else ''}{scopes}"
    if "qpslimit" in code.lower() or "throttl" in code.lower():
        return Throttled(text, PAUSE)
    if code.lower() in STALE:
        return Unauthorized(text, STALE[0])
    if http >= 500:
        return Stumbled(f"HTTP {http}: {text}")
    return Unauthorized(text, code) if http in (401, 403) or "client" in code.lower() else Refused(text, code)


def _code(status: Status) -> str:
    """Return the code, if it looks like one."""
    found = re.fullmatch(r"[\w.\-]{1,100}", str(status.code or ""))
    return found[0] if found else "no code"
