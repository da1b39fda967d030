"""Where one block of Markdown may be cut, and what completes both sides."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from markdown_it.token import Token

from bot.markup.breaks import BLOCK, CHARACTER, LINE, WORD, breaks
from bot.markup.dialect import code_span
from bot.markup.parse import CONTINUED, parse

_MARKER = re.compile(r"[ \t]*(?:>[ \t]?|(?:[-+*]|\d{1,9}[.)])[ \t]{0,4})")
_NUMBER = re.compile(r"\d+(?=[.)][ \t]*$)")
_LINE_END = re.compile(r"[ \t]*\\?\n[ \t]*")
_BLOCK_START = re.compile(
    r"[-+*](?:\s|$)|#{1,6}(?:\s|$)|[>|]|\d{1,9}[.)](?:\s|$)|([-*_])[ \t]*(?:\1[ \t]*){2,}$|```|~~~", re.MULTILINE
)
_CODE = 200  # places to cut one piece of inline code


class Boundary(NamedTuple):
    """A place to cut: the head ends `at` an offset and is completed by `closing`, the rest goes on at `resume`."""

    at: int
    rank: int
    resume: int
    closing: str = ""
    opening: str = ""

    def cut(self, source: str) -> tuple[str, str]:
        """Return head and rest."""
        return source[: self.at] + self.closing, self.opening + source[self.resume :]


class Container(NamedTuple):
    """A quote or list item that is open. `number` of an item: 0 with a bullet; of a quote: None."""

    line: int
    number: int | None = None


def boundaries(source: str, finest: int = CHARACTER) -> list[Boundary]:
    """Return every place of a rank up to `finest` where a block may be cut, in order."""
    return [boundary for boundary in _Reader(source, finest).read() if boundary.rank <= finest]


class _Reader:
    """Goes through the tokens of a block and knows which quotes and list items are open."""

    def __init__(self, source: str, finest: int) -> None:
        self.source, self.finest = source, finest
        self.lines = source.split("\n")
        self.starts = line_starts(source)
        self.open: list[Container] = []
        self.numbers: list[int | None] = []  # of the next item of each open list; None with bullets
        self.table = 0  # first line of the current one
        self.previous = ""  # type of the token before

    def read(self) -> Iterator[Boundary]:
        for token in parse(self.source):
            yield from self.token(token, token.map[0] if token.map else 0)
            self.previous = token.type

    def token(self, token: Token, line: int) -> Iterator[Boundary]:
        match token.type:
            case "paragraph_open" | "heading_open":
                yield from self.before(line)
            case "inline" if self.previous == "paragraph_open":
                yield from self.paragraph(token, line)
            case "bullet_list_open" | "ordered_list_open":
                self.numbers.append(int(token.attrs.get("start", 1)) if token.tag == "ol" else None)
            case "list_item_open":
                yield from self.item(line)
            case "bullet_list_close" | "ordered_list_close":
                self.numbers.pop()
            case "blockquote_open":
                yield from self.before(line)
                self.open.append(Container(line))
            case "list_item_close" | "blockquote_close":
                self.open.pop()
            case "fence":
                yield from self.before(line)
                yield from self.fence(token, line)
            case "code_block":
                for number in range(*(token.map or (0, 0))):
                    yield from self.before(number, "\n")
            case "hr":
                yield from self.before(line, "\n")
            case "table_open":
                yield from self.before(line)
                self.table = line
            case "tr_open" if line > self.table + 2:
                yield Boundary(self.starts[line], self.rank + 1, self.starts[line], "", self.table_header())

    # -- what is open

    @property
    def rank(self) -> int:
        return BLOCK + min(len(self.open), LINE - BLOCK - 2)

    def column(self, line: int, containers: Sequence[Container]) -> int:
        """Return where the content of the innermost container starts on a line."""
        end = 0
        for container in containers:
            if container.number is None or container.line == line:
                found = _MARKER.match(self.lines[line], end)
                end = found.end() if found else end
        return end

    def prefix(self, line: int, containers: Sequence[Container]) -> str:
        """Return what stands before it, with the number the item is shown with."""
        text = self.lines[line][: self.column(line, containers)]
        return _NUMBER.sub(str(containers[-1].number), text) if containers[-1].number else text

    def reopened(self) -> str:
        """Return lines that open the list items again that are open here, as ones that go on."""
        lines: dict[int, str] = {}
        for depth, container in enumerate(self.open, 1):
            if container.number is not None:
                lines[container.line] = self.prefix(container.line, self.open[:depth])
        return "".join(line + ("" if line[-1:].isspace() else " ") + CONTINUED + "\n" for line in lines.values())

    def pad(self, line: int, column: int) -> str:
        """Return what stands before the other lines of a block that starts at a column."""
        return re.sub(r"[^>\s]", " ", self.lines[line][:column])

    # -- boundaries

    def before(self, line: int, gap: str = "") -> Iterator[Boundary]:
        """Cut before a block. What leads to it should stay with it."""
        if line == 0 or any(container.line == line for container in self.open):
            return
        start, opening = self.starts[line], self.reopened()
        led = self.source[max(0, start - 8) : start].rstrip().endswith((":", "："))
        yield Boundary(
            start, WORD if led or self.previous == "heading_close" else self.rank, start, "", opening and opening + gap
        )

    def item(self, line: int) -> Iterator[Boundary]:
        """Cut before a list item, which keeps its number."""
        number = self.numbers[-1]
        container = Container(line, number or 0)
        inside = [*self.open, container]
        resume = self.starts[line] + self.column(line, inside)
        for boundary in self.before(line):
            yield boundary._replace(resume=resume, opening=boundary.opening + self.prefix(line, inside))
        self.open.append(container)
        if number is not None:
            self.numbers[-1] = number + 1

    def table_header(self) -> str:
        column = self.column(self.table, self.open)
        header = self.pad(self.table, column) + self.lines[self.table][column:]
        return f"{self.reopened()}{header}\n{self.lines[self.table + 1]}\n"

    def fence(self, token: Token, line: int) -> Iterator[Boundary]:
        """Cut a code block: after a line, or inside of a long one."""
        if not token.content:
            return
        column = self.lines[line].find(token.markup, self.column(line, self.open))
        pad = self.pad(line, column)
        closing = f"\n{pad}{token.markup}"
        opening = f"{self.reopened()}{pad}{self.lines[line][column:]}\n"
        for number, code in enumerate(token.content.removesuffix("\n").split("\n"), line + 1):
            start = self.starts[number]
            if number > line + 1:
                rank = LINE if self.lines[number - 1].strip() else LINE - 1
                yield Boundary(start - 1, rank, start, closing, opening)
            end = start + len(self.lines[number])
            for offset, rank in breaks(code, self.finest):
                if code[:offset].strip() and code[offset:].strip() and code[offset] not in "`~":
                    at = end - len(code) + offset
                    yield Boundary(at, max(rank, WORD), at, closing, opening + pad)

    def paragraph(self, token: Token, line: int) -> Iterator[Boundary]:
        """Cut inside of a paragraph. Its content is the source without what stands before each line."""
        texts = token.content.split("\n")
        columns = [self.lines[line + number].rfind(text.strip()) for number, text in enumerate(texts)]
        if min(columns) < 0:
            return
        starts = line_starts(token.content)
        shifts = [
            self.starts[line + number] + column - start - (len(text) - len(text.lstrip()))
            for number, (text, column, start) in enumerate(zip(texts, columns, starts, strict=False))
        ]
        opening = self.reopened() + self.pad(line, columns[0])

        def located(offset: int) -> int:
            return offset + shifts[bisect.bisect_right(starts, offset, hi=len(texts)) - 1]

        for found in _Text(token.content, self.finest).read(token.children or []):
            at, resume = located(found.at), located(found.resume)
            yield Boundary(at, found.rank, resume, found.closing, opening + found.opening)


class _Text:
    """Goes through the tokens of a paragraph and knows which marks are open."""

    def __init__(self, content: str, finest: int) -> None:
        self.content, self.finest = content, finest
        self.marks: list[str] = []
        self.position = 0

    def read(self, tokens: Sequence[Token]) -> Iterator[Boundary]:
        linked = False
        for token in tokens:
            linked = token.type == "link_open" or (linked and token.type != "link_close")
            if not linked:
                yield from self.token(token)

    def token(self, token: Token) -> Iterator[Boundary]:
        match token.type:
            case "text":
                yield from self.text(token.content)
            case "softbreak" | "hardbreak":
                yield from self.line_end()
            case "strong_open" | "em_open" | "s_open":
                self.marks.append(token.markup)
                self.position += len(token.markup)
            case "strong_close" | "em_close" | "s_close":
                self.marks.pop()
                yield from self.after(self.position + len(token.markup))
            case "text_special":
                yield from self.after(self.position + len(token.markup))
            case "code_inline":
                yield from self.code(token)
            case "link_close" | "image":
                yield from self.after(token.meta["end"])

    def text(self, text: str) -> Iterator[Boundary]:
        start = max(self.content.find(text, self.position), self.position)
        for offset, rank in breaks(text, self.finest):
            yield from self.boundary(start + offset, rank)
        self.position = start + len(text)

    def line_end(self) -> Iterator[Boundary]:
        found = _LINE_END.match(self.content, self.position)
        end = found.end() if found else self.position
        yield from self.boundary(self.position, LINE, end)
        self.position = end

    def code(self, token: Token) -> Iterator[Boundary]:
        code, end = token.content, token.meta["end"]
        offsets = [offset for offset, _ in breaks(code)] if self.finest == CHARACTER else []
        for offset in offsets[:: 1 + len(offsets) // _CODE]:
            first, second = code[:offset].strip(), code[offset:].strip()
            if first and second:
                closing, opening = code_span(first) + self.closing, self.opening + code_span(second)
                yield Boundary(self.position, CHARACTER, end, closing, opening)
        yield from self.after(end)

    def after(self, position: int) -> Iterator[Boundary]:
        self.position = position
        yield from self.boundary(position, CHARACTER)

    @property
    def closing(self) -> str:
        return "".join(reversed(self.marks))

    @property
    def opening(self) -> str:
        return "".join(self.marks)

    def boundary(self, at: int, rank: int, resume: int | None = None) -> Iterator[Boundary]:
        """Cut here, unless that makes something else of what follows, or marks around nothing."""
        content = self.content
        resume = at if resume is None else resume
        while resume < len(content) and content[resume].isspace():
            resume += 1
        while at and content[at - 1].isspace():
            at -= 1
        if not at or resume == len(content):
            return
        if self.marks and (content.startswith(self.marks[-1], resume) or content.endswith(self.marks[-1], 0, at)):
            return
        if not self.marks and _BLOCK_START.match(content, resume):
            return
        yield Boundary(at, rank, resume, self.closing, self.opening)


def line_starts(source: str) -> list[int]:
    """Return the offset of each line, and one beyond the end of the last."""
    starts = [0]
    for line in source.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    return starts
