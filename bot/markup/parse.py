"""Markdown as models write it: CommonMark, tables and strikethrough; HTML is text.

Three things differ from CommonMark. Emphasis is recognised next to Chinese, Japanese and Korean characters. A line of
dashes below a paragraph is a rule: while a list is being written, its first dash would turn the line above into a
heading. Link definitions stay visible: they may end up on another page than the link.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.parser_inline import ParserInline
from markdown_it.rules_block import StateBlock, table
from markdown_it.rules_inline.state_inline import Scanned, StateInline
from markdown_it.token import Token

DEEPEST = 16  # levels of lists and quotes; what is deeper is shown as text
_SHORT = 16_384  # characters
WIDEST = 32  # columns of a table
CONTINUED = "\u2060"  # a list item that starts with this goes on from the page before

_CJK = re.compile(
    "[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]"
)

Rule = Callable[[StateInline, bool], bool]


def normalise(source: str) -> str:
    """Return the text with line feeds only, without NUL."""
    return source.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")


def parse(source: str) -> Sequence[Token]:
    """Return the tokens of a normalised text. Links, images and code know where they end: `meta["end"]`.

    Short texts are remembered, because a page is rendered to be measured, to be posted and once more without markup;
    so the tokens are not to be changed.
    """
    return _remembered(source) if len(source) <= _SHORT else _parse(source)


def _parse(source: str) -> Sequence[Token]:
    return _parser().parse(source)


_remembered = functools.lru_cache(maxsize=16)(_parse)


@functools.cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("zero")
    parser.inline = _Inline()
    parser.configure("commonmark", {"html": False, "maxNesting": DEEPEST + 4})
    parser.enable(["table", "strikethrough"])
    parser.disable(["reference", "lheading", "text_join"])
    parser.block.ruler.at("table", _table, {"alt": ["paragraph"]})
    parser.block.ruler.before("table", "deep", _deep)
    for name in ("backticks", "link", "image", "autolink"):
        rules = parser.inline.ruler
        rules.at(name, _located(next(rule.fn for rule in rules.__rules__ if rule.name == name)))
    return parser


def _deep(state: StateBlock, line: int, end: int, silent: bool) -> bool:
    """Take a line as a paragraph where the parser would stop reading."""
    if silent or state.level < DEEPEST:
        return False
    state.line = line + 1
    state.push("paragraph_open", "p", 1).map = [line, line + 1]
    token = state.push("inline", "", 0)
    token.content = state.getLines(line, line + 1, state.blkIndent, False).strip()
    token.map, token.children = [line, line + 1], []
    state.push("paragraph_close", "p", -1)
    return True


def _table(state: StateBlock, line: int, end: int, silent: bool) -> bool:
    """Read a table, unless it is so wide that its empty cells, made up for short rows, would be most of the work."""
    delimiters = state.src[state.bMarks[line + 1] : state.eMarks[line + 1]] if line + 1 < end else ""
    return delimiters.count("|") <= WIDEST and table(state, line, end, silent)


def _located(rule: Rule) -> Rule:
    """Let a rule note where in the text its last token ends."""

    def apply(state: StateInline, silent: bool) -> bool:
        count = len(state.tokens)
        found = rule(state, silent)
        if found and len(state.tokens) > count:
            state.tokens[-1].meta["end"] = state.pos
        return found

    return apply


class _State(StateInline):
    def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:
        """Let marks open and close next to CJK characters, whatever the punctuation on their other side."""
        scanned = super().scanDelims(start, canSplitWord)
        end = start + scanned.length
        before, after = self.src[max(start - 1, 0) : start], self.src[end : min(end + 1, self.posMax)]
        if not canSplitWord or not (_CJK.match(before) or _CJK.match(after)):
            return scanned
        can_open = bool(after) and not after.isspace()
        can_close = bool(before) and not before.isspace()
        return Scanned(can_open, can_close, scanned.length)


class _Inline(ParserInline):
    def parse(self, src: str, md: MarkdownIt, env: Any, tokens: list[Token]) -> list[Token]:
        state = _State(src, md, env, tokens)
        self.tokenize(state)
        for rule in self.ruler2.getRules(""):
            rule(state)
        return state.tokens
