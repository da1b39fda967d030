"""Every error of Magpie, and what it makes the bot do.

MagpieError
├── ConfigError             a setting is missing or wrong    -> told by variable name, nothing starts
├── StoreUnavailable        the database cannot write        -> 503, the platform delivers again
├── Rejected                a webhook request is not taken   -> nothing stored, one log line
│   ├── Unverified          401   the platform did not send it
│   ├── Malformed           400   not what the platform sends
│   ├── TooLarge            413
│   └── TooMany             429   a limit per address or visitor
├── PlatformError           posting to a chat failed
│   ├── Throttled           wait `retry_after` seconds, same page again
│   ├── Unavailable         network or the platform's fault  -> again, with growing gaps
│   └── Refused             for good: blocked, chat gone, bad token -> parked with its reason
│       └── Unauthorized    our token is wrong: the operator must act
└── ModelError              the model gave no complete answer -> a sentence for the person, a hint for the operator
    ├── BadKey              401, 403
    ├── BadRequest          400
    │   ├── TooLong         the conversation does not fit    -> shortened and asked once more
    │   └── NoPictures      this model takes text only       -> asked once more without the pictures
    ├── NoSuchModel         404
    ├── RateLimited         429, passes by itself
    ├── QuotaSpent          429, somebody must pay
    ├── Overloaded          5xx, no connection
    ├── TimedOut            silent for longer than OPENAI_TIMEOUT
    ├── ContentRefused      refused by the model or its content filter
    └── Interrupted         the stream ended without a finish reason
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from bot.adapter import Response


class MagpieError(Exception):
    """Base of all errors that Magpie raises on purpose. The text is for the operator and holds no secret."""


class ConfigError(MagpieError):
    """Name every wrong or missing setting at once."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StoreUnavailable(MagpieError):
    """The database is locked, full, read-only or gone."""


class Rejected(MagpieError):
    """A webhook request is not taken. `response` is what the platform prescribes to hear, where it does."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "bad_request"

    def __init__(self, reason: str, response: Response | None = None) -> None:
        super().__init__(reason)
        self.response = response


class Unverified(Rejected):
    """The platform did not send this request."""

    status = 401
    code = "unauthorized"


class Malformed(Rejected):
    """The request is verified (or public) but is not what the platform sends."""


class TooLarge(Rejected):
    """The body is larger than the route takes."""

    status = 413
    code = "too_large"


class TooMany(Rejected):
    """This address or visitor asks more often than it may."""

    status = 429
    code = "too_many_requests"

    def __init__(self, reason: str, retry_after: float = 60, response: Response | None = None) -> None:
        super().__init__(reason, response)
        self.retry_after = retry_after


class PlatformError(MagpieError):
    """Posting to a chat failed."""


class Throttled(PlatformError):
    """The platform asks to wait `retry_after` seconds."""

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Unavailable(PlatformError):
    """The network or the platform failed; the same call may go through later."""


class Refused(PlatformError):
    """The platform refuses this for good. `code` is the platform's own, for adapters that act on it."""

    def __init__(self, reason: str, code: str | int = "") -> None:
        super().__init__(reason)
        self.code = code


class Unauthorized(Refused):
    """Our own token is wrong, expired or lacks a permission."""


class ModelError(MagpieError):
    """The model gave no complete answer.

    `code` names the sentence for the person (`bot/texts.py`) and the failure of the HTTP API; `hint` tells the
    operator what to do; `passing` says that the same call, or another model, may succeed.
    """

    code: ClassVar[str] = "model_error"
    hint: ClassVar[str] = "see the log line before this one"
    passing: ClassVar[bool] = False

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class BadKey(ModelError):
    """401 or 403."""

    code = "model_bad_key"
    hint = "check OPENAI_API_KEY (and that it may use OPENAI_MODEL)"


class BadRequest(ModelError):
    """400: the model's server does not take the request."""

    code = "model_bad_request"
    hint = "check OPENAI_MODEL, OPENAI_API and the sampling settings: the server refused the request"


class TooLong(BadRequest):
    """The conversation does not fit into the model's context."""

    code = "model_too_long"
    hint = "lower BOT_HISTORY_TOKENS or OPENAI_MAX_TOKENS, or use a model with a larger context"


class NoPictures(BadRequest):
    """The model takes text only."""

    code = "model_no_pictures"
    hint = "use a model that takes pictures"


class NoSuchModel(ModelError):
    """404."""

    code = "model_not_found"
    hint = "check OPENAI_MODEL and OPENAI_BASE_URL (most servers want it to end in /v1)"


class RateLimited(ModelError):
    """429 that passes by itself."""

    code = "model_rate_limited"
    hint = "the key's rate limit: wait, lower BOT_MAX_CONCURRENT, or add keys to OPENAI_API_KEY"
    passing = True


class QuotaSpent(ModelError):
    """429 insufficient_quota, 402."""

    code = "model_quota_spent"
    hint = "the account's quota or balance is used up: top it up at the model's vendor"


class Overloaded(ModelError):
    """5xx, or no connection."""

    code = "model_unavailable"
    hint = "the model's server failed or cannot be reached: wait, check OPENAI_BASE_URL, or set OPENAI_FALLBACK_MODELS"
    passing = True


class TimedOut(Overloaded):
    """The model said nothing for longer than OPENAI_TIMEOUT."""

    code = "model_timeout"
    hint = "the model was silent too long: raise OPENAI_TIMEOUT or use a faster model"


class ContentRefused(ModelError):
    """The model or its content filter refused."""

    code = "content_refused"
    hint = "the model's content policy refused this message; nothing to repair"


class Interrupted(ModelError):
    """The stream broke off, or ended without a finish reason."""

    code = "model_interrupted"
    hint = "the connection to the model broke in the middle of an answer; check proxies and their time limits"
    passing = True
