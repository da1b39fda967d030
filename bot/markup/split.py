"""Cutting Markdown into pages that are complete in themselves.

A page ends between two blocks when that leaves it at least half full, else inside of the block that does not fit:
a fence is closed and opened again, a table repeats its header, marks are closed and opened, lists and quotes go on at
their depth. The rest ends with the source's own characters, so an answer that still grows goes on by appending to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from bot.markup.boundaries import Boundary, boundaries, line_starts
from bot.markup.breaks import CHARACTER, LINE, WORD
from bot.markup.dialect import PLAIN, Dialect, characters
from bot.markup.parse import normalise
from bot.markup.render import Block, blocks, render

Measure = Callable[[str], int]
Parts = tuple[str, str]

_BARE = msgspec.structs.replace(PLAIN, bullets=("",), ordered="", quote=("", ""), rule="")  # the words alone
_TRIES = 6  # boundaries that are tried before a block is taken apart
_FULL, _AIM = 0.95, 0.975  # of the limit: where the search for the last boundary ends, and what it tries to hit


def pages(source: str, limit: int, dialect: Dialect, measure: Measure = characters) -> list[str]:
    """Return the rendered pages of a text, each of at most `limit` in `measure`."""
    texts = []
    while source:
        head, source = cut(source, limit, dialect, measure)
        texts.append(render(head, dialect))
    return [text for text in texts if text.strip()]


def cut(source: str, limit: int, dialect: Dialect, measure: Measure = characters) -> Parts:
    """Split Markdown so that the head, rendered, measures at most `limit`; the rest is "" when all of it fits.

    Both are Markdown complete in themselves and nothing is lost. Always makes progress: a limit too small for one
    character and its markup is exceeded.
    """
    size = _window(limit)
    if len(source) <= size and measure(render(source, dialect)) <= limit:
        return source, ""
    source, simplified = normalise(source), False
    while page := _Page.of(source, limit, dialect, measure):
        if parts := page.between_blocks() or page.inside_block() or page.before_block():
            return _tidy(*parts)
        unit, rest = page.smallest()
        plain = _literal(render(unit, _BARE))
        if simplified or plain == unit.strip():
            return _tidy(unit, rest)
        source, simplified = (f"{plain}\n\n{rest}", True) if plain else (rest, False)
    return source, ""


def _window(limit: int) -> int:
    """Return how many characters are read first: a rendered text is seldom much shorter than its Markdown."""
    return limit + limit // 4 + 1000


def _tidy(head: str, rest: str) -> Parts:
    return head.rstrip(" \t\n"), "" if rest.isspace() else rest.lstrip("\n")


def _literal(text: str) -> str:
    """Write a text as Markdown that shows just it."""
    lines = (re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", line.strip()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def _words(source: str) -> str:
    """Return what must not get lost."""
    return re.sub(r"\s+", "", render(source, _BARE))


class _Fitting(NamedTuple):
    """A block that fits: where it starts, what the page measures with it, whether the next one belongs to it."""

    start: int
    used: int
    leads: bool


class _Page:
    """The beginning of a source: the blocks that fit, and the one that does not."""

    def __init__(self, source: str, limit: int, dialect: Dialect, measure: Measure) -> None:
        self.source, self.limit, self.dialect, self.measure = source, limit, dialect, measure
        self.fitting: list[_Fitting] = []
        self.used = 0

    @classmethod
    def of(cls, source: str, limit: int, dialect: Dialect, measure: Measure) -> _Page | None:
        """Find the block that does not fit. None: everything fits."""
        size = _window(limit)
        while True:
            page = cls(source, limit, dialect, measure)
            window = source if len(source) <= size else _whole_lines(source[:size])
            if page.fill(window):
                return page
            if len(window) == len(source):
                return None
            size *= 2

    def fill(self, window: str) -> bool:
        """Take blocks until one does not fit. False: they all do."""
        starts = line_starts(window)
        for block in blocks(window, self.dialect):
            self.start, self.end = starts[block.start], min(starts[block.end], len(window))
            used = self.measured(block)
            if used > self.limit:
                self.block, self.kind = window[self.start : self.end], block.kind
                self.words = _words(self.block)
                return True
            leads = block.kind == "heading_open" or window[self.start : self.end].rstrip().endswith((":", "："))
            self.fitting.append(_Fitting(self.start, used, leads))
            self.used = used
        return False

    def measured(self, block: Block) -> int:
        """Measure the page with one block more."""
        if self.dialect.passthrough:
            return self.measure(self.source[: self.end].rstrip(" \t\n"))
        if not block.text:
            return self.used
        return self.used + self.measure((self.dialect.between if self.used else "") + block.text)

    def room(self) -> int:
        """Return what is left for a part of the block that does not fit."""
        if self.dialect.passthrough:
            return self.limit - self.measure(self.source[: self.start])
        return self.limit - self.used - (self.measure(self.dialect.between) if self.used else 0)

    def at(self, offset: int) -> Parts:
        return self.source[:offset], self.source[offset:]

    # -- ways to end the page, the best first

    def between_blocks(self) -> Parts | None:
        """End it before the block, when it is half full then. What leads to the block goes with it."""
        kept = len(self.fitting)
        while kept and self.fitting[kept - 1].leads:
            kept -= 1
        start = self.fitting[kept].start if kept < len(self.fitting) else self.start
        return self.at(start) if kept and self.fitting[kept - 1].used * 2 >= self.limit else None

    def inside_block(self) -> Parts | None:
        """End it inside of the block, as coarsely as leaves it half full."""
        parts = None
        for finest in (LINE, WORD, CHARACTER) if self.words else ():
            parts = self.best(boundaries(self.block, finest)) or parts
            if parts and self.size(parts[0]) * 2 >= self.room():
                break
        return parts and self.around(*parts)

    def best(self, found: list[Boundary]) -> Parts | None:
        """Cut the block at the best boundary that fits."""
        if not found:
            return None
        last = self.last_fitting(found)
        for boundary in _by_rank(found[: last + 1])[:_TRIES]:
            head, rest = boundary.cut(self.block)
            if self.size(head) <= self.room() and self.intact(head, rest):
                return head, rest
        return None

    def before_block(self) -> Parts | None:
        """End it before the block, however little there is."""
        return self.at(self.start) if self.used else None

    def smallest(self) -> Parts:
        """Return a piece of the block to show without any markup, and the rest: not even its markup fits."""
        found = boundaries(self.block) if self.words else []
        near = [boundary for boundary in found if boundary.at <= self.limit]
        for boundary in [*near[-1:], *found[:_TRIES]]:
            head, rest = boundary.cut(self.block)
            if self.intact(head, rest):
                return self.around(head, rest)
        return self.at(self.end)

    def around(self, head: str, rest: str) -> Parts:
        """Add what stands before and after the block. The rest of a line must not become the header of a table."""
        gap = "\n" if "|" in rest and self.end < len(self.source) and self.kind == "paragraph_open" else ""
        return self.source[: self.start] + head, rest + gap + self.source[self.end :]

    def size(self, source: str) -> int:
        return self.measure(render(source, self.dialect))

    def intact(self, head: str, rest: str) -> bool:
        """Tell whether a head shows something and nothing gets lost."""
        words = _words(head)
        return bool(words) and words + _words(rest) == self.words

    def last_fitting(self, found: list[Boundary]) -> int:
        """Find the last boundary whose head fits, or one that fills the room nearly: by proportion and by halves."""
        low, high = -1, len(found)
        filled, over = 0, self.size(self.block)
        room = self.room()
        proportional = True
        while high - low > 1 and filled < _FULL * room:
            share = (_AIM * room - filled) / max(over - filled, 1) if proportional else 0.5
            middle = min(max(low + round((high - low) * share), low + 1), high - 1)
            size = self.size(found[middle].cut(self.block)[0])
            if size <= room:
                low, filled = middle, size
            else:
                high, over = middle, size
            proportional = not proportional
        return low


def _by_rank(found: list[Boundary]) -> list[Boundary]:
    """Sort boundaries: those that fill at least half first, the best rank first, then the last."""
    if not found:
        return []  # none fits
    half = (found[-1].at + len(found[-1].closing)) // 2
    order = sorted(range(len(found)), key=lambda i: (found[i].at + len(found[i].closing) < half, found[i].rank, -i))
    return [found[i] for i in order]


def _whole_lines(text: str) -> str:
    """Leave out a last line that is not complete, unless it is most of the text."""
    end = text.rfind("\n", len(text) // 2)
    return text if end < 0 else text[: end + 1]
