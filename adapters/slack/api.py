"""What Slack's Web API answers: https://docs.slack.dev/apis/web-api/"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from bot.adapter import Page
from bot.client import Reply
from bot.errors import PlatformError, Refused, Throttled, Unauthorized, Unavailable
from bot.markup import escape_html


class Answer(msgspec.Struct):
    """Any answer. A failure comes with HTTP 200, too."""

    ok: bool
    error: str = ""
    needed: str = ""


class Posted(msgspec.Struct):
    """A message of ours: the timestamp is its id in the channel."""

    ts: str


class Me(msgspec.Struct):
    """What auth.test tells."""

    team: str = ""
    user: str = ""


class Located(msgspec.Struct):
    """A file as files.info tells it."""

    url_private_download: str = ""


class Info(msgspec.Struct):
    """What files.info answers."""

    file: Located


ERRORS: Mapping[str, type[PlatformError]] = {
    "ratelimited": Throttled,
    "rate_limited": Throttled,
    "internal_error": Unavailable,
    "fatal_error": Unavailable,
    "request_timeout": Unavailable,
    "service_unavailable": Unavailable,
    "messaging_processing_failed": Unavailable,
    "team_added_to_org": Unavailable,
    # A token that is rotated runs out after twelve hours. The reply waits for the operator's new one.
    "token_expired": Unavailable,
    "not_authed": Unauthorized,
    "invalid_auth": Unauthorized,
    "account_inactive": Unauthorized,
    "token_revoked": Unauthorized,
    "org_login_required": Unauthorized,
    "access_denied": Unauthorized,
    "no_permission": Unauthorized,
    "missing_scope": Unauthorized,
}
PAUSE = 1.0  # seconds, for a rate limit that comes without a number

STOPPED = "stopped_by_user"
STREAMING = "streaming_state_conflict"  # chat.update, while the message is a stream
GONE = ("message_not_found", "cant_update_message", "edit_window_closed", "message_not_owned_by_app")
NO_THREAD = ("thread_not_found", "invalid_thread_ts", "cannot_reply_to_message", "message_not_found")
UNREADABLE = (  # the Markdown, not the chat, is refused; "no_text" comes from servers that know no markdown_text
    "msg_too_long",
    "msg_blocks_too_long",
    "invalid_blocks",
    "invalid_blocks_format",
    "invalid_attachments",
    "markdown_text_conflict",
    "no_text",
)
NO_PREVIEW = {"unfurl_links": False, "unfurl_media": False}


def failure(reply: Reply) -> PlatformError | None:
    """Read Slack's own error out of an HTTP 200; the others speak for themselves."""
    if reply.status != 200:
        return None
    answer = reply.json(Answer)
    if answer.ok:
        return None
    kind = ERRORS.get(answer.error, Refused)
    reason = f"{answer.error} ({answer.needed})" if answer.needed else answer.error
    if issubclass(kind, Refused):
        return kind(reason, answer.error)
    return Throttled(reason, reply.retry_after or PAUSE) if kind is Throttled else kind(reason)


def repaired(fields: dict[str, Any], page: Page, error: Refused) -> dict[str, Any]:
    """Return a message without what was refused of it. Raises the error when there is no such thing."""
    if error.code in NO_THREAD and "thread_ts" in fields:
        return {name: value for name, value in fields.items() if name != "thread_ts"}
    if error.code in UNREADABLE and "markdown_text" in fields:
        plain = {"text": escape_html(page.plain or page.text)}
        return {name: value for name, value in fields.items() if name != "markdown_text"} | plain
    raise error
