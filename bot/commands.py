"""The commands that people type, the same on every platform, in English and Chinese."""

from __future__ import annotations

from enum import StrEnum


class Command(StrEnum):
    """What a person can tell the bot to do."""

    HELP = "help"
    RESET = "reset"
    STOP = "stop"
    RETRY = "retry"
    USAGE = "usage"


NAMES = {
    "help": Command.HELP,
    "start": Command.HELP,
    "帮助": Command.HELP,
    "reset": Command.RESET,
    "new": Command.RESET,
    "clear": Command.RESET,
    "重置": Command.RESET,
    "清空": Command.RESET,
    "新对话": Command.RESET,
    "stop": Command.STOP,
    "停止": Command.STOP,
    "停": Command.STOP,
    "retry": Command.RETRY,
    "重试": Command.RETRY,
    "usage": Command.USAGE,
    "用量": Command.USAGE,
}


def command(text: str) -> Command | None:
    """Return the command that a message is, None for an ordinary one. Some keyboards type a full-width slash."""
    if text[:1] not in ("/", "／"):
        return None
    word = text[1:].split(maxsplit=1)
    return NAMES.get(word[0].lower()) if word else None
