"""What a model's server says when it fails, and which ModelError that is.

Vendors agree on little: the same status means "slow down" here and "pay" there. The tables below therefore look at
the code, the type and the message before the status.

https://platform.openai.com/docs/guides/error-codes
https://api-docs.deepseek.com/quick_start/error_codes
https://help.aliyun.com/zh/model-studio/error-code
https://docs.bigmodel.cn/cn/faq/api-code
https://platform.moonshot.cn/docs/api/chat#错误说明
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from bot.client import retry_after
from bot.errors import (
    BadKey,
    BadRequest,
    ContentRefused,
    ModelError,
    NoPictures,
    NoSuchModel,
    Overloaded,
    QuotaSpent,
    RateLimited,
    TooLong,
)

LONGEST_MESSAGE = 200  # characters of the server's own words in an error text


class Broken(Exception):
    """There is no connection to the server, or it broke. The text names what happened, without a URL."""


class Fault(Exception):
    """What the server said: in the answer to a request, or as an event in the middle of a stream."""

    def __init__(
        self, status: int, code: str = "", message: str = "", param: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(status, code)
        self.status = status  # 0: none was given
        self.code = code  # the code and the type, joined by a blank
        self.message = message
        self.param = param  # the parameter the server complains about
        self.retry_after = retry_after


def read_response(status: int, headers: Mapping[str, str], body: bytes) -> Fault:
    """Read the answer to a failed request."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        value = None  # a proxy's page: the status has to do
    fault = read_error(value)
    fault.status = status
    if 300 <= status < 400:
        fault.message = "the server redirects elsewhere, which is not followed"
    fault.retry_after = _pause(headers)
    return fault


def read_error(value: Any) -> Fault:
    """Read an error object, in whichever of the common shapes it comes."""
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return Fault(0, message=_text(value))
    inner = value.get("error") or value
    error = inner if isinstance(inner, dict) else {"message": inner}
    code, kind = _text(error.get("code")), _text(error.get("type"))
    status = _status(code)
    return Fault(
        status or _STATUS_OF_TYPE.get(code) or _STATUS_OF_TYPE.get(kind, 0),
        kind if status else f"{code} {kind}".strip(),
        _text(error.get("message") or error.get("error_msg")) or _validation(error.get("detail")),
        _text(error.get("param")),
    )


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | int) else ""


def _status(code: str) -> int:
    return int(code) if re.fullmatch(r"[45]\d\d", code) else 0


def _validation(detail: Any) -> str:
    """Render what FastAPI servers (vLLM, SGLang) say: [{"loc": ["body", "stream_options"], "msg": "..."}]."""
    if not isinstance(detail, list):
        return _text(detail)
    return "; ".join(
        f"{_place(entry.get('loc'))}: {_text(entry.get('msg'))}" for entry in detail if isinstance(entry, dict)
    )


def _place(loc: Any) -> str:
    return ".".join(map(_text, loc)) if isinstance(loc, list) else _text(loc)


def _pause(headers: Mapping[str, str]) -> float | None:
    milliseconds = headers.get("retry-after-ms", "")
    if milliseconds.isdecimal():
        return int(milliseconds) / 1000
    return retry_after(headers.get("retry-after", ""))


_STATUS_OF_TYPE = {  # or of code; an error event has no HTTP status
    "authentication_error": 401,
    "invalid_request_error": 400,
    "not_found_error": 404,
    "permission_error": 403,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "requests": 429,
    "tokens": 429,
}


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_TOO_LONG = _any(
    r"context_length_exceeded",
    r"context_window_exceeded",
    r"string_above_max_length",
    r"maximum context length",
    r"(exceeds?|over|beyond) .{0,40}(context|maximum (input|prompt|token))",
    r"(prompt|input|request|messages?) (is |are |was )?too (long|large|many tokens)",
    r"range of input length should be",  # Alibaba Cloud
    r"reduce the length",
    r"(上下文|输入|token|长度).{0,12}(超出|超过|过长|超长)",
    r"(超出|超过).{0,12}(上下文|长度|token)",
)
_QUOTA_SPENT = _any(
    r"insufficient[_ ](user_)?(quota|balance|credit|funds)",
    r"exceeded_current_quota",  # Moonshot
    r"exceeded your current quota",
    r"billing",
    r"arrear",  # Alibaba Cloud
    r"accountoverdue",  # Volcengine
    r"余额不足",
    r"欠费",
    r"额度(不足|已用|用尽)",
    r"充值",
)
_REFUSED = _any(
    r"content_policy",
    r"content policy",
    r"content_filter",
    r"content management policy",
    r"data_?inspection",  # Alibaba Cloud
    r"inappropriate content",
    r"moderation_blocked",
    r"safety system",
    r"(^|\s)invalid_prompt(\s|$)",
    r"(^|\s)1301(\s|$)",  # Zhipu
    r"敏感内容",
    r"不安全或敏感",
    r"违规",
)
_NO_PICTURES = _any(r"image", r"vision", r"picture", r"multi-?modal", r"图片", r"图像", r"多模态")
_NO_SUCH_MODEL = _any(
    r"model_not_found",
    r"model_not_exist",
    r"invalid_?model",
    r"(^|\s)model\b.{0,80}\b(not exist|not found|no longer available|not available)",
    r"no such model",
    r"unknown model",
    r"模型.{0,20}不存在",
)
_COMPLAINTS = {400, 404, 415, 422, 500, 501}  # about the request; Ollama says 500, OpenRouter 404

# The first row whose statuses and pattern fit decides. An event in a stream often has no status (0).
_BY_WORDS: tuple[tuple[range, re.Pattern[str], type[ModelError]], ...] = (
    (range(430), _TOO_LONG, TooLong),
    (range(430), _QUOTA_SPENT, QuotaSpent),
    (range(500), _REFUSED, ContentRefused),
    (range(400, 425), _NO_SUCH_MODEL, NoSuchModel),
)
_BY_STATUS: dict[int, type[ModelError]] = {
    0: Overloaded,  # a stream broke with words we do not know
    **dict.fromkeys(range(300, 400), NoSuchModel),
    401: BadKey,
    402: QuotaSpent,
    403: BadKey,
    404: NoSuchModel,
    405: NoSuchModel,
    408: Overloaded,
    409: Overloaded,
    413: TooLong,
    425: Overloaded,
    429: RateLimited,
}


def classify(fault: Fault, secrets: Iterable[str] = (), pictures: bool = False) -> ModelError:
    """Return the ModelError for what the server said. Its text holds none of `secrets`.

    `pictures`: there were some in the request, so a complaint about images is about them.
    """
    kind = _kind(fault, pictures)
    head = " ".join(filter(None, (f"HTTP {fault.status}" if fault.status else "error event", fault.code)))
    message = redact(fault.message, secrets)
    return kind(f"{redact(head, secrets)}: {message}" if message else head, fault.retry_after)


def _kind(fault: Fault, pictures: bool) -> type[ModelError]:
    words = f"{fault.code} {fault.message}"
    if pictures and fault.status in _COMPLAINTS and _NO_PICTURES.search(words):
        return NoPictures
    for statuses, pattern, kind in _BY_WORDS:
        if fault.status in statuses and pattern.search(words):
            return kind
    return _BY_STATUS.get(fault.status, Overloaded if fault.status >= 500 else BadRequest)


_ECHO = re.compile(r"""[,{\s]*['"]?input['"]?\s*[:=].*""", re.DOTALL)  # validators quote what they were sent
_KEY = re.compile(r"\bsk-[\w*.-]+|\bBearer\s+\S+", re.IGNORECASE)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Shorten a server's message to one line, without keys and without what it quotes of the request."""
    for secret in secrets:
        text = text.replace(secret, "***")
    line = " ".join(_ECHO.sub("", _KEY.sub("***", text)).split())
    return line if len(line) <= LONGEST_MESSAGE else line[:LONGEST_MESSAGE] + "…"
