"""How a platform writes things. A dialect is a value; an adapter declares its own beside its protocol.

    SHOUTS = Dialect("shouts", bold=("*", "*"), heading=(("*", "*"),), fence=triple_backticks, boundary=apart())

What a dialect leaves out is shown as readable plain text: the defaults are those of PLAIN.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from typing import Literal

import msgspec

Pair = tuple[str, str]
Style = Pair | Callable[[str], str]
NOTHING: Pair = ("", "")


# -- measures: how long a platform says a text is


def characters(text: str) -> int:
    """Count Unicode code points."""
    return len(text)


def utf16(text: str) -> int:
    """Count UTF-16 code units: an emoji is two."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def utf8(text: str) -> int:
    """Count UTF-8 bytes."""
    return len(text.encode("utf-8", "surrogatepass"))


def columns(text: str) -> int:
    """Count the columns of a monospace font: East Asian wide characters and emoji take two."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


# -- escapes


def verbatim(text: str) -> str:
    """Escape nothing."""
    return text


def escape_html(text: str) -> str:
    """Escape the content of an element, or of an attribute in double quotes that holds no such quote."""
    return html.escape(text, quote=False)


_ADDRESS = r"(?P<address>https?://[^\s<>()\[\]*`|\\]+)"  # a backslash in a bare address would break it


def backslash(specials: str) -> Callable[[str], str]:
    """Return an escape that puts a backslash before `specials`, except inside of bare web addresses."""
    pattern = re.compile(rf"{_ADDRESS}|[{re.escape(specials)}]")
    return lambda text: pattern.sub(lambda found: found["address"] or "\\" + found[0], text)


_MARKDOWN = re.compile(
    rf"{_ADDRESS}|[\\`*_~\[\]<|]|&(?=#?\w)|(?m:^[ \t]*(?P<number>\d{{1,9}})(?=[.)](?:\s|$))|^[ \t]*[-+#>=])"
)


def escape_markdown(text: str) -> str:
    """Escape for platforms that read CommonMark with its backslashes."""
    return _MARKDOWN.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    if found["address"]:
        return found[0]
    return found[0] + "\\" if found["number"] else found[0][:-1] + "\\" + found[0][-1]


# -- code


def code_span(code: str) -> str:
    """Write inline code as CommonMark does, with more backticks than it contains."""
    ticks = "`" * (_longest_run(code) + 1 if "`" in code else 1)
    pad = " " if code.startswith(("`", " ")) or code.endswith(("`", " ")) else ""
    return f"{ticks}{pad}{code}{pad}{ticks}"


def fenced(code: str, language: str) -> str:
    """Write a code block as CommonMark does, its fence longer than any in the code."""
    ticks = "`" * max(3, _longest_run(code) + 1)
    return f"{ticks}{language}\n{code}\n{ticks}"


def triple_backticks(code: str, language: str) -> str:
    """Write a code block for platforms that know three backticks only; those in the code are kept apart."""
    code = code.replace("```", "`\u200b``")
    return f"```{language}\n{code}\n```"


def html_fence(code: str, language: str) -> str:
    """Write a code block as `<pre><code class="language-...">`."""
    return (
        f'<pre><code class="language-{language}">{code}</code></pre>' if language else f"<pre><code>{code}</code></pre>"
    )


def _plain_fence(code: str, language: str) -> str:
    return code


def _longest_run(code: str) -> int:
    return max(map(len, re.findall("`+", code)), default=0)


# -- links: `label` is written in the dialect already and equal to `url` when the address itself is shown


def plain_link(label: str, url: str) -> str:
    """Write `label (url)`."""
    return url if label == url else f"{label} ({url})"


def markdown_link(label: str, url: str) -> str:
    """Write `[label](url)`, or the address alone."""
    return url if label == url else f"[{label}]({url.replace('(', '%28').replace(')', '%29')})"


def markdown_image(label: str, url: str) -> str:
    """Write `![label](url)`."""
    return "!" + markdown_link("" if label == url else label, url)


def html_link(label: str, url: str) -> str:
    """Write `<a href>`."""
    return f'<a href="{url}">{label}</a>'


# -- word boundaries: what has to stand between a mark and the text outside of it

Boundary = Callable[[str, str], str]


def no_boundary(outer: str, inner: str) -> str:
    """Nothing: marks are understood everywhere."""
    return ""


def apart(separator: str = "\u200b") -> Boundary:
    """Return a boundary for platforms that read marks at the edge of a word only (`中*粗*文` stays as it is)."""
    return lambda outer, inner: "" if outer.isspace() or _PUNCTUATION.match(outer) else separator


def flanking(separator: str = "\u200a") -> Boundary:
    """Return a boundary for platforms with CommonMark's flanking rule (`**“粗体”**文` stays as it is).

    https://spec.commonmark.org/0.31.2/#left-flanking-delimiter-run
    """
    return lambda outer, inner: separator if _is_punctuation(inner) and not _is_edge(outer) else ""


_PUNCTUATION = re.compile(r"[!-)+-/:-@\[-^{|}]")  # ASCII without the marks `*`, `_`, `~` and the backtick


def _is_punctuation(character: str) -> bool:
    return bool(character) and unicodedata.category(character)[0] in "PS"


def _is_edge(character: str) -> bool:
    return character.isspace() or _is_punctuation(character)


# -- the dialect


class Dialect(msgspec.Struct, frozen=True):
    """One platform's way of writing. A Pair stands before and after; two empty strings: not shown at all."""

    name: str
    passthrough: bool = False  # the platform shows Markdown itself: nothing is rendered
    escape: Callable[[str], str] = verbatim  # ordinary text
    escape_code: Callable[[str], str] = verbatim  # inside of code
    escape_url: Callable[[str], str] = verbatim  # a web address; it holds no quotes, spaces or angle brackets
    boundary: Boundary = no_boundary  # (character outside, character inside) -> what stands between them
    bold: Pair = NOTHING
    italic: Pair = NOTHING
    strike: Pair = NOTHING
    code: Style = NOTHING
    heading: tuple[Style, ...] = (NOTHING,)  # by level, the last one for all below
    paragraph: Pair = NOTHING
    line_break: str = "\n"
    between: str = "\n\n"  # blocks
    fence: Callable[[str, str], str] = _plain_fence  # (escaped code, language of [A-Za-z0-9_+#.-] or "")
    link: Callable[[str, str], str] = plain_link  # (label, url), both escaped
    image: Callable[[str, str], str] | None = None  # None: as a link
    bullets: tuple[str, ...] = ("• ", "◦ ", "▪ ")  # by depth, the last one for all below
    ordered: str = "{}. "
    indent: str | None = None  # of what is inside of an item; None: as wide as its bullet or number
    native_lists: bool = False  # the platform makes lists of our bullets and numbers, as Markdown does
    bullet_list: Pair = NOTHING
    ordered_list: Pair = NOTHING  # "{}" is the first number
    item: Pair = NOTHING
    quote: str | Pair = "> "  # before every line, or around
    nested_quotes: bool = True
    rule: str = "———"
    table: Literal["native", "code", "list", "html"] = "list"  # GFM, aligned in a fence, `header: value`, elements


PLAIN = Dialect("plain")
MARKDOWN = Dialect("markdown", passthrough=True)
HTML = Dialect(
    "html",
    escape=escape_html,
    escape_code=escape_html,
    escape_url=escape_html,
    bold=("<strong>", "</strong>"),
    italic=("<em>", "</em>"),
    strike=("<del>", "</del>"),
    code=("<code>", "</code>"),
    heading=tuple((f"<h{level}>", f"</h{level}>") for level in range(1, 7)),
    paragraph=("<p>", "</p>"),
    line_break="<br>\n",
    between="\n",
    fence=html_fence,
    link=html_link,
    bullets=("",),
    ordered="",
    indent="",
    bullet_list=("<ul>\n", "\n</ul>"),
    ordered_list=('<ol start="{}">\n', "\n</ol>"),
    item=("<li>", "</li>"),
    quote=("<blockquote>\n", "\n</blockquote>"),
    rule="<hr>",
    table="html",
)
