"""Markdown as a model writes it -> a platform's dialect, and pages that measure what is shown.

`dialect.py` says how a platform writes things, `parse.py` reads Markdown, `render.py` writes it in a dialect and
`split.py` cuts what is too long.
"""

from bot.markup.dialect import (
    HTML,
    MARKDOWN,
    PLAIN,
    Dialect,
    Pair,
    apart,
    backslash,
    characters,
    code_span,
    columns,
    escape_html,
    escape_markdown,
    fenced,
    flanking,
    html_fence,
    html_link,
    markdown_image,
    markdown_link,
    plain_link,
    triple_backticks,
    utf8,
    utf16,
    verbatim,
)
from bot.markup.render import render
from bot.markup.split import cut, pages

__all__ = [
    "HTML",
    "MARKDOWN",
    "PLAIN",
    "Dialect",
    "Pair",
    "apart",
    "backslash",
    "characters",
    "code_span",
    "columns",
    "cut",
    "escape_html",
    "escape_markdown",
    "fenced",
    "flanking",
    "html_fence",
    "html_link",
    "markdown_image",
    "markdown_link",
    "pages",
    "plain_link",
    "render",
    "triple_backticks",
    "utf8",
    "utf16",
    "verbatim",
]
