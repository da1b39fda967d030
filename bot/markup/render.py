"""Markdown -> a dialect."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from markdown_it.token import Token

from bot.markup.dialect import NOTHING, PLAIN, Dialect, Pair, Style, columns
from bot.markup.parse import CONTINUED, normalise, parse

_SPECIAL = re.compile(r"[\\`*_~\[<&\n\t\u2060]|^[ #>+=|-]|^\d{1,9}[.)]")
_LINKED = re.compile(r"(?:https?://|mailto:|tel:)", re.IGNORECASE)
_UNSAFE = {ord(character): f"%{ord(character):02X}" for character in "\"'<>`|\\"}
_VERBATIM = "\0"  # starts a line that must not be indented; the source holds none


class Node(NamedTuple):
    """A block and what is inside of it."""

    token: Token
    children: list[Node]


class Block(NamedTuple):
    """A top-level block: its lines in the source (from, up to) and how it is shown."""

    start: int
    end: int
    kind: str
    text: str


def render(source: str, dialect: Dialect) -> str:
    """Write Markdown in a dialect. Never raises; incomplete Markdown gives complete markup."""
    if dialect.passthrough:
        return source
    source = normalise(source)
    if not _SPECIAL.search(source):
        text = dialect.escape(source.strip())
        return text and _around(dialect.paragraph, text)
    return dialect.between.join(block.text for block in blocks(source, dialect) if block.text)


def blocks(source: str, dialect: Dialect) -> list[Block]:
    """Write each top-level block of a normalised source; `render` joins those that show anything."""
    renderer = _Renderer(dialect)
    return [_block(node, renderer) for node in _tree(parse(source))]


def _block(node: Node, renderer: _Renderer) -> Block:
    start, end = node.token.map or (0, 0)
    text = "" if renderer.dialect.passthrough else renderer.block(node).replace(_VERBATIM, "")
    return Block(start, end, node.token.type, text)


def _tree(tokens: Iterable[Token]) -> list[Node]:
    root: list[Node] = []
    stack = [root]
    for token in tokens:
        if token.nesting < 0:
            stack.pop()
            continue
        node = Node(token, [])
        stack[-1].append(node)
        if token.nesting > 0:
            stack.append(node.children)
    return root


def _around(pair: Pair, text: str) -> str:
    return pair[0] + text + pair[1]


def _prefixed(text: str, prefix: str) -> str:
    """Put a prefix before every line."""
    return "\n".join(_prefixed_line(line, prefix) for line in text.split("\n"))


def _prefixed_line(line: str, prefix: str) -> str:
    if line.startswith(_VERBATIM):
        return _VERBATIM + prefix + line[1:]
    return (prefix + line) if line else prefix.rstrip()


def _indented(text: str, indent: str) -> str:
    """Indent every line but the first, empty ones and code."""
    first, *others = text.split("\n")
    return "\n".join([first, *(_indented_line(line, indent) for line in others)])


def _indented_line(line: str, indent: str) -> str:
    return line if not line or line.startswith(_VERBATIM) else indent + line


class _Renderer:
    """Writes blocks. Remembers how deep in lists and quotes it is."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.depth = 0
        self.quotes = 0
        self.continued = False  # the next text is that of an item that goes on from the page before

    def block(self, node: Node) -> str:
        return _BLOCKS[node.token.type](self, node)

    def flow(self, nodes: Iterable[Node], between: str) -> str:
        """Join blocks; a list stays close to what introduces it inside of an item."""
        text = ""
        for node in nodes:
            part = self.block(node)
            close = self.depth and node.token.type in _LISTS
            text += (("\n" if close else between) if text and part else "") + part
        return text

    def paragraph(self, node: Node) -> str:
        text = self.inline(node)
        return text if node.token.hidden or not text else _around(self.dialect.paragraph, text)

    def heading(self, node: Node) -> str:
        styles = self.dialect.heading
        style = styles[min(int(node.token.tag[1:]), len(styles)) - 1]
        if callable(style):
            return style(self.inline(node))
        return _mark(style, self.inline(node, style))

    def code(self, node: Node) -> str:
        language = re.match(r"[\w+#.-]*", node.token.info.strip(), re.ASCII)
        text = self.dialect.escape_code(node.token.content.removesuffix("\n"))
        text = self.dialect.fence(text, language[0] if language else "")
        return text if self.dialect.native_lists else _VERBATIM + text.replace("\n", "\n" + _VERBATIM)

    def rule(self, node: Node) -> str:
        return self.dialect.rule

    def quote(self, node: Node) -> str:
        self.quotes += 1
        text = self.flow(node.children, self.dialect.between)
        self.quotes -= 1
        quote = self.dialect.quote
        if not text or (self.quotes and not self.dialect.nested_quotes):
            return text
        return _prefixed(text, quote) if isinstance(quote, str) else _around(quote, text)

    def bullets(self, node: Node) -> str:
        markers = self.dialect.bullets
        marker = markers[min(self.depth, len(markers) - 1)]
        return _around(self.dialect.bullet_list, self._items(node, lambda number: marker))

    def numbers(self, node: Node) -> str:
        first = int(node.token.attrs.get("start", 1))
        items = self._items(node, lambda number: self.dialect.ordered.format(first + number))
        opening, closing = self.dialect.ordered_list
        return opening.format(first) + items + closing

    def _items(self, node: Node, marker: Callable[[int], str]) -> str:
        self.depth += 1
        loose = any(_is_loose(item) for item in node.children)
        between = self.dialect.between if loose else "\n"
        items = [self._item(item, marker(number), between) for number, item in enumerate(node.children)]
        self.depth -= 1
        return between.join(items)

    def _item(self, node: Node, marker: str, between: str) -> str:
        dialect, blank = self.dialect, " " * columns(marker)
        self.continued = _continues(node)
        if self.continued and not dialect.native_lists:
            marker = blank
        text = _indented(self.flow(node.children, between), blank if dialect.indent is None else dialect.indent)
        if text.startswith(_VERBATIM) and marker:
            marker = marker.rstrip() + "\n" if marker.strip() else ""
        return _around(dialect.item, marker + text)

    def table(self, node: Node) -> str:
        rows = [row.children for part in node.children for row in part.children]
        return _TABLES[self.dialect.table](self, rows)

    def html_table(self, rows: list[list[Node]]) -> str:
        lines = ("".join(self._cell(cell) for cell in row) for row in rows)
        return "<table>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table>"

    def _cell(self, cell: Node) -> str:
        return f"<{cell.token.tag}>{self.inline(cell)}</{cell.token.tag}>"

    def native_table(self, rows: list[list[Node]]) -> str:
        lines = [_piped(re.sub(r"(?<!\\)\|", r"\\|", self.inline(cell)) for cell in row) for row in rows]
        lines.insert(1, _piped(_ALIGNED[str(cell.token.attrs.get("style", ""))] for cell in rows[0]))
        return "\n".join(lines)

    def code_table(self, rows: list[list[Node]]) -> str:
        plain = _Renderer(PLAIN)
        cells = [[plain.inline(cell) for cell in row] for row in rows]
        widths = [max(columns(cell) for cell in column) for column in zip(*cells, strict=True)]
        cells.insert(1, ["-" * width for width in widths])
        code = "\n".join(_aligned(row, widths) for row in cells)
        return _VERBATIM + self.dialect.fence(self.dialect.escape_code(code), "").replace("\n", "\n" + _VERBATIM)

    def list_table(self, rows: list[list[Node]]) -> str:
        names, *records = [[self.inline(cell) for cell in row] for row in rows]
        if not records:
            return " | ".join(names)
        return self.dialect.between.join(self._record(names, record) for record in records)

    def _record(self, names: list[str], values: list[str]) -> str:
        pairs = zip(names, values, strict=True)
        lines = (f"{name}: {value}" if name else value for name, value in pairs if value)
        return _around(self.dialect.paragraph, self.dialect.line_break.join(lines))

    def inline(self, node: Node, *styles: Style) -> str:
        """Write the text of a paragraph, heading or cell. `styles` are in force around it already."""
        tokens = [token for child in node.children for token in child.token.children or ()]
        if self.continued:
            tokens, self.continued = _unsigned(tokens), False
        return _inline(tokens, self.dialect, styles)


_LISTS = ("bullet_list_open", "ordered_list_open")
_BLOCKS: dict[str, Callable[[_Renderer, Node], str]] = {
    "paragraph_open": _Renderer.paragraph,
    "heading_open": _Renderer.heading,
    "fence": _Renderer.code,
    "code_block": _Renderer.code,
    "hr": _Renderer.rule,
    "blockquote_open": _Renderer.quote,
    "bullet_list_open": _Renderer.bullets,
    "ordered_list_open": _Renderer.numbers,
    "table_open": _Renderer.table,
}
_TABLES: dict[str, Callable[[_Renderer, list[list[Node]]], str]] = {
    "html": _Renderer.html_table,
    "native": _Renderer.native_table,
    "code": _Renderer.code_table,
    "list": _Renderer.list_table,
}
_ALIGNED = {"": "---", "text-align:left": ":--", "text-align:center": ":-:", "text-align:right": "--:"}


def _piped(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _aligned(row: list[str], widths: list[int]) -> str:
    return "  ".join(cell + " " * (width - columns(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()


def _is_loose(item: Node) -> bool:
    return any(child.token.type == "paragraph_open" and not child.token.hidden for child in item.children)


def _continues(item: Node) -> bool:
    """Tell whether an item goes on from the page before."""
    if not item.children or item.children[0].token.type in _LISTS:
        return False
    tokens = [token for child in item.children[0].children for token in child.token.children or ()]
    return bool(tokens) and tokens[0].content.startswith(CONTINUED)


def _unsigned(tokens: list[Token]) -> list[Token]:
    """Leave out the sign that an item goes on, and a line that holds nothing else."""
    if tokens[0].content == CONTINUED:
        return tokens[2:] if [token.type for token in tokens[1:2]] == ["softbreak"] else tokens[1:]
    return [tokens[0].copy(content=tokens[0].content[1:]), *tokens[1:]]


# -- inline


class Segment(NamedTuple):
    """A piece of a line. `first` and `last` are the characters just inside of its marks; None: it has none."""

    text: str
    first: str | None = None
    last: str | None = None


def _inline(tokens: Iterable[Token], dialect: Dialect, styles: Iterable[Style]) -> str:
    frames: list[tuple[Token | None, list[Segment]]] = [(None, [])]
    active = Counter(styles)
    for token in tokens:
        if token.nesting > 0:
            frames.append((token, []))
            active[_style(token, dialect)] += 1
        elif token.nesting < 0:
            opener, inner = frames.pop()
            assert opener is not None  # the parser pairs them
            active[_style(opener, dialect)] -= 1
            frames[-1][1].extend(_closed(opener, inner, dialect, active))
        else:
            frames[-1][1].append(_LEAVES[token.type](token, dialect))
    return _joined(frames[0][1], dialect)


def _style(token: Token, dialect: Dialect) -> Pair:
    match token.type:
        case "strong_open":
            return dialect.bold
        case "em_open":
            return dialect.italic
        case "s_open":
            return dialect.strike
    return NOTHING


def _closed(opener: Token, inner: list[Segment], dialect: Dialect, active: Counter[Style]) -> list[Segment]:
    if opener.type == "link_open":
        return [_link(opener, _joined(inner, dialect), dialect)]
    style = _style(opener, dialect)
    if style == NOTHING or active[style] > 0:
        return inner
    text = _joined(inner, dialect)
    core = text.strip()
    if not core:
        return [Segment(text)]
    start = text.index(core)
    marked = Segment(_mark(style, core), core[0], core[-1])
    return [Segment(text[:start]), marked, Segment(text[start + len(core) :])]


def _mark(pair: Pair, text: str) -> str:
    """Put marks around a text; those that look alike on both sides end with the line."""
    if not text or pair == NOTHING:
        return text
    if pair[0] != pair[1] or "\n" not in text:
        return _around(pair, text)
    return "\n".join(_around(pair, line) if line.strip() else line for line in text.split("\n"))


def _joined(segments: Iterable[Segment], dialect: Dialect) -> str:
    parts: list[str] = []
    before = Segment("")
    for segment in segments:
        if segment.text:
            parts += (_between(before, segment, dialect), segment.text)
            before = segment
    return "".join(parts)


def _between(left: Segment, right: Segment, dialect: Dialect) -> str:
    if not left.text:
        return ""
    if right.first is not None:
        return dialect.boundary(left.text[-1], right.first)
    return "" if left.last is None else dialect.boundary(right.text[0], left.last)


def _text(token: Token, dialect: Dialect) -> Segment:
    return Segment(dialect.escape(token.content))


def _line_break(token: Token, dialect: Dialect) -> Segment:
    return Segment(dialect.line_break)


def _code(token: Token, dialect: Dialect) -> Segment:
    code, style = token.content, dialect.code
    if callable(style):
        return Segment(style(dialect.escape_code(code)), "", "")
    if style[0] and style[0] == style[1] and style[0] in code:
        return Segment(dialect.escape(code))  # a mark cannot contain itself
    return Segment(_around(style, dialect.escape_code(code)), "", "") if style != NOTHING else _text(token, dialect)


def _address(url: str) -> str:
    """Return a web address in which no mark or quote is left, "" when it must not become a link."""
    return url.translate(_UNSAFE) if _LINKED.match(url) and not re.search(r"[\s\0-\x1f]", url) else ""


def _link(opener: Token, label: str, dialect: Dialect) -> Segment:
    href = str(opener.attrs.get("href", ""))
    url = dialect.escape_url(_address(href))
    if not url:
        return Segment(label + dialect.escape(f" ({href})"))
    itself = not label.strip() or opener.markup == "autolink" or label == dialect.escape(href)
    return Segment(dialect.link(url if itself else label, url))


def _image(token: Token, dialect: Dialect) -> Segment:
    label = "".join(child.content for child in token.children or ()).strip()
    source = str(token.attrs.get("src", ""))
    url = dialect.escape_url(_address(source))
    if not url:
        return Segment(dialect.escape(f"{label} ({source})"))
    return Segment((dialect.image or dialect.link)(dialect.escape(label) or url, url))


_LEAVES: dict[str, Callable[[Token, Dialect], Segment]] = {
    "text": _text,
    "text_special": _text,
    "softbreak": _line_break,
    "hardbreak": _line_break,
    "code_inline": _code,
    "image": _image,
}
