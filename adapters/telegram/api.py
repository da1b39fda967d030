"""What Telegram answers: https://core.telegram.org/bots/api#making-requests"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from bot.client import Reply
from bot.errors import PlatformError, Refused, Throttled, Unauthorized, Unavailable

T = TypeVar("T")


class Answer(msgspec.Struct, Generic[T]):
    """A call that went well."""

    result: T


class Sent(msgspec.Struct):
    """A message of ours."""

    message_id: int


class Located(msgspec.Struct):
    """Where a file lies below /file/bot<token>/."""

    file_path: str


class Webhook(msgspec.Struct):
    """What getWebhookInfo tells. `last_error_date` in seconds since 1970."""

    url: str
    pending_update_count: int = 0
    last_error_date: int = 0
    last_error_message: str = ""


class Parameters(msgspec.Struct):
    """What can be done about a failure."""

    retry_after: float = 0
    migrate_to_chat_id: int = 0


class Failed(msgspec.Struct):
    """A call that did not go well."""

    error_code: int
    description: str = ""
    parameters: Parameters = msgspec.field(default_factory=Parameters)


class Migrated(Refused):
    """The group became a supergroup, which has the id `to`."""

    def __init__(self, reason: str, to: int) -> None:
        super().__init__(reason, 400)
        self.to = to


def failure(reply: Reply) -> PlatformError | None:
    """Read Telegram's own error out of a reply. None when there is none, or when a proxy speaks instead."""
    if reply.status < 400 or "json" not in reply.headers.get("content-type", ""):
        return None
    failed = reply.json(Failed)
    code, parameters = failed.error_code, failed.parameters
    # What follows a second colon may repeat a piece of our text.
    reason = f"{code} {': '.join(failed.description.split(': ')[:2])}"
    if parameters.migrate_to_chat_id:
        return Migrated(reason, parameters.migrate_to_chat_id)
    if code == 429:
        return Throttled(reason, parameters.retry_after or reply.retry_after or 1.0)
    if code >= 500:
        return Unavailable(reason)
    return (Unauthorized if code == 401 else Refused)(reason, code)


NO_PREVIEW = {"link_preview_options": {"is_disabled": True}}
NOT_MODIFIED = "message is not modified"
GONE = ("message to edit not found", "message can't be edited", "MESSAGE_ID_INVALID")
REPAIRS = (  # what Telegram says, and the field without which it takes the same message
    ("can't parse entities", "parse_mode"),
    ("message to be replied not found", "reply_parameters"),  # allow_sending_without_reply is no help in topics
    ("message thread not found", "message_thread_id"),
)


def repaired(fields: dict[str, Any], plain: str, error: Refused) -> dict[str, Any]:
    """Return the fields without the one that was refused. Raises the error when there is none."""
    refused = next((field for reason, field in REPAIRS if reason in str(error) and field in fields), None)
    if refused is None:
        raise error
    text = plain if refused == "parse_mode" and plain else fields["text"]
    return {field: value for field, value in (fields | {"text": text}).items() if field != refused}


def may_move(chat_id: int) -> bool:
    """Whether a chat is a basic group: these become supergroups, once."""
    return -(10**12) < chat_id < 0
