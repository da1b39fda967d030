"""The log: one line an event, for people or machines. Secrets never reach it, message texts neither.

Everything goes to standard error, the standard library's loggers (aiohttp, openai, asyncio) included. Code logs with
`structlog.get_logger()`; only the command line calls `configure`.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

HIDDEN = "***"
SHORTEST_SECRET = 6  # a shorter one would blot out half the log

# What looks like a secret although nobody named it: model keys, bot tokens in paths, passwords and tokens in URLs.
_SHAPES = (
    r"\bsk-[\w-]{8,}",
    r"(?<=\bbot)\d+:[\w-]{8,}",
    r"(?i:(?<=bearer )|(?<=basic ))[\w.~+/=-]{8,}",
    r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)",
    r"(?i:(?<=[?&]key=)|(?<=[?&]sign=)|(?<=[_?&]token=)|(?<=[_?&]secret=)|(?<=[_?&]signature=))[^&\s\"']+",
)
_secrets: set[str] = set()
_pattern = re.compile("|".join(_SHAPES))

# Told at their own pace: the SDK's and the HTTP client's debug lines would hold whole messages.
_QUIET = {
    "openai": logging.INFO,
    "httpx": logging.WARNING,
    "httpx2": logging.WARNING,
    "httpcore": logging.WARNING,
    "aiohttp.access": logging.CRITICAL,
}


def hide(*secrets: str) -> None:
    """Replace these by *** wherever they appear in a logged value. Shorter than six characters: not hidden."""
    global _pattern
    _secrets.update(secret for secret in secrets if len(secret) >= SHORTEST_SECRET)
    longest_first = sorted(_secrets, key=len, reverse=True)
    _pattern = re.compile("|".join([*map(re.escape, longest_first), *_SHAPES]))


def redact(text: str) -> str:
    """Return the text without the secrets that were hidden and without what looks like one."""
    return _pattern.sub(HIDDEN, text)


def configure(style: Literal["console", "json"] = "console", level: str = "info") -> None:
    """Send structlog and the standard library's loggers through the same steps to standard error."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _redact_values,
    ]
    renderer = _renderer(style)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=_StandardError()),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )
    _catch_standard_library(shared, renderer, threshold)


def _renderer(style: str) -> Processor:
    if style == "json":
        return structlog.processors.JSONRenderer(serializer=_json)
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)


def _json(event: EventDict, **_: object) -> str:
    return msgspec.json.encode(event).decode()


def _catch_standard_library(shared: list[Processor], renderer: Processor, threshold: int) -> None:
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler = logging.StreamHandler(_StandardError())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared[:-1]],
            processors=[strip, _redact_values, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=threshold, force=True)
    for name, lowest in _QUIET.items():
        logging.getLogger(name).setLevel(max(lowest, threshold))


def _redact_values(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {key: _clean(value) for key, value in event.items()}


def _clean(value: Any) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return redact(value)
        case Mapping():
            return {str(key): _clean(inner) for key, inner in value.items()}
        case bytes():
            return redact(value.decode(errors="replace"))
        case Iterable():
            return [_clean(inner) for inner in value]
        case _:
            return redact(str(value))


class _StandardError:
    """Today's sys.stderr, not the one of the moment of configuration: a live display may stand in for it."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()
