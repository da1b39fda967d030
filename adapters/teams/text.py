"""How Teams writes: a subset of Markdown in what we post, <at> elements in what people write.

https://learn.microsoft.com/microsoftteams/platform/bots/how-to/format-your-bot-messages
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from bot.markup import Dialect, code_span, escape_markdown, fenced, flanking, markdown_link


def escape(text: str) -> str:
    """Escape text. Teams reads HTML in Markdown as well, so `<` becomes an entity: `<at>` would be a mention."""
    return escape_markdown(text).replace("\\<", "&lt;")


# Headings and tables are for cards only; a single line feed is no line break, as everywhere in Markdown.
MARKDOWN = Dialect(
    "teams-markdown",
    escape=escape,
    boundary=flanking(),
    bold=("**", "**"),
    italic=("*", "*"),
    strike=("~~", "~~"),
    code=code_span,
    heading=(("**", "**"),),
    line_break="  \n",
    fence=fenced,
    link=markdown_link,
    image=markdown_link,
    bullets=("- ",),
    native_lists=True,
    table="code",
)

# Escaped or not: a mark stays escaped until what it marks is complete.
_MARK = re.compile(r"(?:\\?\*)+|(?:\\?~){2,}|(?:\\?`)+|(?<![\w\\])\\_")
_OPEN_LINK = re.compile(r"\\?\[(?![^\]\n]{0,500}\](?:[^(]|\([^)\n]{0,2000}\)))")
_LOOSE = " \t\n*_~`|:>\\\u200a.&-0123456789"  # may become the beginning of something else


def settled(text: str) -> str:
    """Return the part of a growing page that will stay as it is, as far as one can tell.

    What follows an open mark in the last line may still become bold, code or a link.
    """
    line = text.rfind("\n") + 1
    open_marks: dict[str, int] = {}
    for found in _MARK.finditer(text, line):
        mark = found[0].replace("\\", "")
        if open_marks.pop(mark, None) is None:
            open_marks[mark] = found.start()
    link = _OPEN_LINK.search(text, line)
    ends = [*open_marks.values(), link.start() if link else len(text)]
    return text[: min(ends)].rstrip(_LOOSE)


_AT = re.compile(r"<at(?:\s[^<>]*)?>([^<>]*)</at>")
_BLANK = re.compile("\xa0|&nbsp;")


def spoken(text: str, mine: Iterable[str]) -> str:
    """Return a text as a person reads it, without the mentions of us (`mine`, as they stand there)."""
    for mention in mine:
        text = text.replace(mention, "")
    return _AT.sub(r"@\1", _BLANK.sub(" ", text)).strip().lstrip(",:，：").strip()
