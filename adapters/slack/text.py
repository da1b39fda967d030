"""How Slack writes: Markdown in what we post, its own marks in what people write."""

from __future__ import annotations

import re
from collections.abc import Collection

from bot.markup import Dialect, apart, code_span, fenced, markdown_link

# Bold and the like are read at the edge of a word only, so a hair space is put between them and a CJK neighbour.
# Nothing is escaped but what would call people: the reading of backslashes is not documented.
# https://docs.slack.dev/reference/blocks/markdown-block
MARKDOWN = Dialect(
    "slack-markdown",
    escape=lambda text: re.sub(r"<(?=[@#!])", "<\u200b", text),
    boundary=apart("\u200a"),
    bold=("**", "**"),
    italic=("_", "_"),  # with asterisks a half-written "**" would look like it
    strike=("~~", "~~"),
    code=code_span,
    heading=tuple(("#" * level + " ", "") for level in range(1, 7)),
    fence=fenced,
    link=markdown_link,
    image=markdown_link,
    bullets=("- ",),
    native_lists=True,
    rule="---",
    table="native",
)

_MARK = re.compile(r"\*+|~~|`+")
_LOOSE = re.compile(r"[\s*_~`|:\u200a-]*\Z")


def settled(text: str) -> str:
    """Return the part of a growing page that will stay as it is, as far as one can tell.

    What follows an open mark may still become bold or code. The last character is held back as well: the next piece
    then begins with a visible one, and Slack drops white space at the beginning of a piece.
    """
    marks = [mark.start() for mark in _MARK.finditer(text, text.rfind("\n") + 1)]
    sure = text[: marks[-1]] if len(marks) % 2 else text
    return _LOOSE.sub("", sure)[:-1]


_ADDRESS = r"<@(?:{})(?:\|[^<>]*)?>\s*"
_TOKEN = re.compile(r"<([@#!]?)([^<>|\n]*)(?:\|([^<>\n]*))?>")
_ESCAPED = (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&"))


def mentioned(text: str) -> list[str]:
    """Return the ids of the mentioned people and bots, in order."""
    return re.findall(r"<@(\w+)", text)


def spoken(text: str, mine: Collection[str]) -> str:
    """Return a text as a person reads it, without the mention of us (`mine` are our ids).

    https://docs.slack.dev/messaging/formatting-message-text#advanced
    """
    if mine:
        text = re.sub(_ADDRESS.format("|".join(map(re.escape, mine))), "", text).lstrip(" ,:，：")
    text = _TOKEN.sub(_word, text)
    for escaped, character in _ESCAPED:
        text = text.replace(escaped, character)
    return text.strip()


def _word(token: re.Match[str]) -> str:
    """Write "<@U1|ada>" as "@ada", "<!here>" as "@here", "<https://example.com|Example>" as "Example (https://...)"."""
    sigil, target, label = token[1], token[2], token[3] or ""
    if sigil == "!":
        return label or f"@{target}"
    if sigil:
        return sigil + (label or target)
    address = target.removeprefix("mailto:").removeprefix("tel:")
    return address if label in ("", address, target) else f"{label} ({address})"
