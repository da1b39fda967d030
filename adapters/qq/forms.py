"""The forms a page can take, in the order they are tried: Markdown, text, text without addresses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from bot.adapter import Page
from bot.markup import Dialect, code_span, flanking, markdown_link, triple_backticks

# https://bot.q.qq.com/wiki/develop/api-v2/server-inter/message/type/markdown.html
# Tables would trip the filter for addresses.
MARKDOWN = Dialect(
    "qq-markdown",
    boundary=flanking(),
    bold=("**", "**"),
    italic=("*", "*"),
    strike=("~~", "~~"),
    code=code_span,
    heading=(("# ", ""), ("## ", "")),
    fence=triple_backticks,
    link=markdown_link,
    image=markdown_link,
    nested_quotes=False,
    rule="***",
)

_NAME = r"(?:[\w-]{1,63}\.)+[a-z]{2,}"  # bounds keep the search linear
ADDRESS = re.compile(rf"(?:[a-z][a-z0-9+-]{{0,15}}://)?({_NAME}|(?:\d{{1,3}}\.){{3}}\d{{1,3}})", re.IGNORECASE)


def without_addresses(text: str) -> str:
    """Write addresses so that they are no links: `https://example.com/a` becomes `example[.]com/a`."""
    return ADDRESS.sub(lambda found: found[1].replace(".", "[.]"), text)


RICH, TEXT, HARMLESS = range(3)
FORMS: tuple[Callable[[Page], dict[str, object]], ...] = (
    lambda page: {"msg_type": 2, "markdown": {"content": page.text}},
    lambda page: {"msg_type": 0, "content": page.plain or page.text},
    lambda page: {"msg_type": 0, "content": without_addresses(page.plain or page.text)},
)
NO_MARKDOWN = {50056, 304036, 40034127}  # the bot may not; others: not this text
INSTEAD: Mapping[int, int] = {
    **dict.fromkeys(NO_MARKDOWN | {22006, 40034008, 40034009, 40034010, 40034011, 40034124}, TEXT),
    **dict.fromkeys((304003, 40054010), HARMLESS),
}
