"""What the codes of the platform mean."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from adapters.qq.forms import INSTEAD
from bot.client import Reply, http_failure
from bot.errors import PlatformError, Refused, Throttled, Unauthorized, Unavailable

PAUSE = 5.0  # seconds to wait where the platform names none

# https://bot.q.qq.com/wiki/develop/api-v2/openapi/error/error.html
SHOWN_BEFORE = 40054005
STALE_STATUS = 401
STALE = {11241, 11242, 11243, 11244, STALE_STATUS}
STRANGERS = STALE | {11298, 100016}
AUDITED = {304023, 304024}  # taken, and shown once somebody has looked at it
LATE = {304103, 304027, 40034005, 40034024, 40034025, 40034026, 40034128}
BUSY = {20028, 22009, 50002, 100001, 40034100}
BROKEN = {50001, 50055001, 50055002, 40054006, 40054016}
REASONS: Mapping[int, str] = {
    11298: "our address is not on the bot's list of IPs (IP 白名单)",
    100016: "the app id and the secret do not belong together",
    304003: "the message holds an address that is not on the bot's list",
    40034006: "the platform objects to the content",
    40034100: "the bot wrote first too often",
    40034101: "the bot is not in the group",
    40034102: "the bot may not write first",
    40034105: "the bot may not write first",
    40054002: "the bot is muted here",
    40054003: "the bot is not in the group",
    40054004: "the person has removed the bot",
    40054007: "the message is too long",
    40054010: "the message holds an address that is not on the bot's list",
    40054013: "the person does not want messages of the bot",
    40054018: "the message is too long",
}
KNOWN = {SHOWN_BEFORE, *REASONS, *LATE, *INSTEAD}


class Problem(msgspec.Struct):
    code: int = 0
    err_code: int = 0


def failure(reply: Reply) -> PlatformError | None:
    """Read an error off an answer. Known codes count whatever the HTTP status is; texts may quote the message."""
    problem = reply.json(Problem) if reply.body.startswith(b"{") else Problem()
    code = problem.err_code or problem.code
    if code in AUDITED or (reply.status < 300 and not code):
        return None
    reason = f"{REASONS.get(code, 'refused')} (HTTP {reply.status}, code {code})"
    if code in STRANGERS or reply.status == STALE_STATUS:
        return Unauthorized(reason, code if code in STRANGERS else STALE_STATUS)
    if code in BUSY:
        return Throttled(reason, PAUSE)
    if code in BROKEN:
        return Unavailable(reason)
    if code not in KNOWN and (reply.status == 429 or reply.status >= 500):
        return http_failure(reply)
    return Refused(reason, code)
