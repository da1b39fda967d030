"""How Discord writes Markdown: https://support.discord.com/hc/articles/210298617

Its own reading of Markdown: headings to the third level, lists, quotes that do not nest, no tables. Marks need no word
boundary, so bold next to Chinese works as it is; two marks that touch would be read as one.
"""

from __future__ import annotations

from bot.markup import Dialect, code_span, escape_markdown, markdown_link, plain_link, triple_backticks

ZERO_WIDTH_SPACE = "\u200b"


def link(label: str, url: str) -> str:
    """Write `[label](url)`, which Discord does not read when the label holds an address or the URL is no web page."""
    write = markdown_link if url.startswith(("http://", "https://")) and "://" not in label else plain_link
    return write(label, url)


def code(text: str) -> str:
    """Write inline code; three backticks would begin a block."""
    return code_span(text.replace("``", f"`{ZERO_WIDTH_SPACE}`"))


def boundary(outer: str, inner: str) -> str:
    """Keep two marks apart."""
    return ZERO_WIDTH_SPACE if outer in "*_~`" else ""


DISCORD = Dialect(
    "discord",
    escape=escape_markdown,
    boundary=boundary,
    bold=("**", "**"),
    italic=("*", "*"),
    strike=("~~", "~~"),
    code=code,
    heading=(("# ", ""), ("## ", ""), ("### ", ""), ("**", "**")),
    fence=triple_backticks,
    link=link,
    image=link,
    bullets=("- ",),
    nested_quotes=False,
    table="code",
)
