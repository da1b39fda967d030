"""Markdown in, a platform's dialect out; and pages of it that lose nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bot.markup import (
    HTML,
    MARKDOWN,
    PLAIN,
    Dialect,
    apart,
    backslash,
    characters,
    code_span,
    columns,
    cut,
    escape_html,
    escape_markdown,
    fenced,
    flanking,
    html_fence,
    html_link,
    markdown_image,
    markdown_link,
    pages,
    render,
    triple_backticks,
    utf8,
    utf16,
)
from bot.markup.parse import parse

TELEGRAM = Dialect(
    "telegram",
    escape=escape_html,
    escape_code=escape_html,
    escape_url=escape_html,
    bold=("<b>", "</b>"),
    italic=("<i>", "</i>"),
    strike=("<s>", "</s>"),
    code=("<code>", "</code>"),
    heading=(("<b>", "</b>"),),
    fence=html_fence,
    link=html_link,
    quote=("<blockquote>", "</blockquote>"),
    nested_quotes=False,
    table="code",
)
SLACK = Dialect(
    "slack",
    escape=escape_html,
    escape_code=escape_html,
    escape_url=escape_html,
    boundary=apart(),
    bold=("*", "*"),
    italic=("_", "_"),
    strike=("~", "~"),
    code=("`", "`"),
    heading=(("*", "*"),),
    fence=lambda code, language: triple_backticks(code, ""),
    link=lambda label, url: f"<{url}|{label}>",
    table="code",
)
WHATSAPP = Dialect(
    "whatsapp",
    boundary=apart(" "),
    bold=("*", "*"),
    italic=("_", "_"),
    strike=("~", "~"),
    code=("`", "`"),
    heading=(str.upper, ("*", "*")),
    fence=triple_backticks,
    bullets=("- ",),
)
DISCORD = Dialect(
    "discord",
    escape=escape_markdown,
    boundary=flanking(),
    bold=("**", "**"),
    italic=("*", "*"),
    strike=("~~", "~~"),
    code=code_span,
    heading=(("# ", ""), ("## ", ""), ("### ", "")),
    fence=fenced,
    link=markdown_link,
    image=markdown_image,
    bullets=("- ",),
    native_lists=True,
    rule="---",
    table="native",
)
DIALECTS = (PLAIN, MARKDOWN, HTML, TELEGRAM, SLACK, WHATSAPP, DISCORD)
BARE = msgspec.structs.replace(PLAIN, bullets=("",), ordered="", quote=("", ""), rule="")
MEASURES = (characters, utf16, utf8)

DOCUMENT = """# The plan 计划

Intro with **bold**, *italic*, ~~gone~~, `a < b` and a [link](https://a.example/b_(c)?d=1&e=2).
A second line, 中文**“粗体”**中文。

1. first item
   - nested *one*
   - nested two

     with a paragraph
2. second item
   ```python
   def f(x: int) -> int:
       return x << 2  # `ticks`
   ```
3. third item

> a quote
> - in a list

| name | 数量 |
|:-----|----:|
| 苹果 | `12` |
| a\\|b | **3** |

---

End 👨‍👩‍👧‍👦 <b>not html</b> &amp; [x](javascript:alert(1)) https://a.example/c_d_e
"""


def words(source: str) -> str:
    """Return what a text says, without spaces and without the marks of lists and quotes."""
    return re.sub(r"\s+", "", render(source, BARE))


def heads(source: str, limit: int, dialect: Dialect, measure: Callable[[str], int] = characters) -> list[str]:
    """Cut a text to the end."""
    found = []
    while source:
        head, source = cut(source, limit, dialect, measure)
        found.append(head)
        assert len(found) < 10_000
    return found


# -- dialects


@pytest.mark.parametrize(
    ("source", "plain", "html", "telegram", "slack"),
    [
        ("plain words", "plain words", "<p>plain words</p>", "plain words", "plain words"),
        ("a < b & c", "a < b & c", "<p>a &lt; b &amp; c</p>", "a &lt; b &amp; c", "a &lt; b &amp; c"),
        ("**b**", "b", "<p><strong>b</strong></p>", "<b>b</b>", "*b*"),
        ("*i* _j_", "i j", "<p><em>i</em> <em>j</em></p>", "<i>i</i> <i>j</i>", "_i_ _j_"),
        ("~~s~~", "s", "<p><del>s</del></p>", "<s>s</s>", "~s~"),
        ("***x***", "x", "<p><em><strong>x</strong></em></p>", "<i><b>x</b></i>", "_*x*_"),
        ("`a<b`", "a<b", "<p><code>a&lt;b</code></p>", "<code>a&lt;b</code>", "`a&lt;b`"),
        ("`` a`b ``", "a`b", "<p><code>a`b</code></p>", "<code>a`b</code>", "a`b"),
        ("# A **b**", "A b", "<h1>A <strong>b</strong></h1>", "<b>A b</b>", "*A b*"),
        ("###### A", "A", "<h6>A</h6>", "<b>A</b>", "*A*"),
        ("a\nb", "a\nb", "<p>a<br>\nb</p>", "a\nb", "a\nb"),
        ("a\\\nb", "a\nb", "<p>a<br>\nb</p>", "a\nb", "a\nb"),
        ("**a\nb**", "a\nb", "<p><strong>a<br>\nb</strong></p>", "<b>a\nb</b>", "*a*\n*b*"),
        ("a\n\n\n\nb", "a\n\nb", "<p>a</p>\n<p>b</p>", "a\n\nb", "a\n\nb"),
        ("- a\n- b", "• a\n• b", "<ul>\n<li>a</li>\n<li>b</li>\n</ul>", "• a\n• b", "• a\n• b"),
        ("7. a\n8. b", "7. a\n8. b", '<ol start="7">\n<li>a</li>\n<li>b</li>\n</ol>', "7. a\n8. b", "7. a\n8. b"),
        ("> a", "> a", "<blockquote>\n<p>a</p>\n</blockquote>", "<blockquote>a</blockquote>", "> a"),
        ("***", "———", "<hr>", "———", "———"),
        ("a\n---", "a\n\n———", "<p>a</p>\n<hr>", "a\n\n———", "a\n\n———"),
        ("<b>x</b>", "<b>x</b>", "<p>&lt;b&gt;x&lt;/b&gt;</p>", "&lt;b&gt;x&lt;/b&gt;", "&lt;b&gt;x&lt;/b&gt;"),
        ("&lt;b&gt;", "<b>", "<p>&lt;b&gt;</p>", "&lt;b&gt;", "&lt;b&gt;"),
        ("[a]: http://b", "[a]: http://b", "<p>[a]: http://b</p>", "[a]: http://b", "[a]: http://b"),
        (
            "```c++ x\na < b\n```",
            "a < b",
            '<pre><code class="language-c++">a &lt; b</code></pre>',
            '<pre><code class="language-c++">a &lt; b</code></pre>',
            "```\na &lt; b\n```",
        ),
        (
            '```"><script>\nx\n```',
            "x",
            "<pre><code>x</code></pre>",
            "<pre><code>x</code></pre>",
            "```\nx\n```",
        ),
        (
            "[a](https://b.example/?c=1&d=2)",
            "a (https://b.example/?c=1&d=2)",
            '<p><a href="https://b.example/?c=1&amp;d=2">a</a></p>',
            '<a href="https://b.example/?c=1&amp;d=2">a</a>',
            "<https://b.example/?c=1&amp;d=2|a>",
        ),
        (
            "<https://b.example>",
            "https://b.example",
            '<p><a href="https://b.example">https://b.example</a></p>',
            '<a href="https://b.example">https://b.example</a>',
            "<https://b.example|https://b.example>",
        ),
        (
            "![cat](https://b.example/c.png)",
            "cat (https://b.example/c.png)",
            '<p><a href="https://b.example/c.png">cat</a></p>',
            '<a href="https://b.example/c.png">cat</a>',
            "<https://b.example/c.png|cat>",
        ),
    ],
)
def test_render(source: str, plain: str, html: str, telegram: str, slack: str) -> None:
    shown = [render(source, dialect) for dialect in (PLAIN, HTML, TELEGRAM, SLACK)]
    assert shown == [plain, html, telegram, slack]


@pytest.mark.parametrize(
    "target", ["javascript:alert(1)", "JaVaScRiPt:x", "data:text/html,x", "file:///x", "/x", "ftp://x"]
)
@pytest.mark.parametrize("dialect", [HTML, TELEGRAM])
def test_other_targets_stay_text(target: str, dialect: Dialect) -> None:
    for source in (f"[a]({target})", f"![a]({target})", f"<{target}>", f"[a](<{target}>)"):
        shown = render(source, dialect)
        assert "href" not in shown
        assert target.partition("(")[0] in shown


@pytest.mark.parametrize("target", ["http://a.example", "HTTPS://a.example", "mailto:a@b.example", "tel:+4912345"])
def test_link_targets(target: str) -> None:
    assert f'<a href="{target}">x</a>' in render(f"[x]({target})", TELEGRAM)


def test_addresses_cannot_leave_their_attribute() -> None:
    shown = render('[a](<https://b.example/"onclick="x\'`>)', HTML)
    assert shown == '<p><a href="https://b.example/%22onclick=%22x%27%60">a</a></p>'


@pytest.mark.parametrize(
    ("source", "html"),
    [
        ("**“粗体”**中文", "<strong>“粗体”</strong>中文"),
        ("这是**粗体。**好", "这是<strong>粗体。</strong>好"),
        ("中文**(a)**中文", "中文<strong>(a)</strong>中文"),
        ("**注意：**请看", "<strong>注意：</strong>请看"),
        ("日本語の*「強調」*です", "日本語の<em>「強調」</em>です"),
        ("~~“旧”~~新", "<del>“旧”</del>新"),
        ('a**"b"**c', 'a**"b"**c'),
        ("a * b * c", "a * b * c"),
        ("乘法 3 * 4 * 5", "乘法 3 * 4 * 5"),
        ("snake_case_name", "snake_case_name"),
    ],
)
def test_emphasis_next_to_cjk(source: str, html: str) -> None:
    assert render(source, HTML) == f"<p>{html}</p>"


@pytest.mark.parametrize(
    ("dialect", "source", "shown"),
    [
        (SLACK, "这是**粗体**。", "这是\u200b*粗体*\u200b。"),
        (SLACK, "这是 **粗体** 吗", "这是 *粗体* 吗"),
        (SLACK, "(**a**)", "(*a*)"),
        (SLACK, "x`y`z", "x\u200b`y`\u200bz"),
        (SLACK, "**a***b*", "*a*\u200b_b_"),
        (SLACK, "***粗***体", "_*粗*_\u200b体"),
        (WHATSAPP, "这是**粗体**吗", "这是 *粗体* 吗"),
        (DISCORD, "这是**粗体**吗", "这是**粗体**吗"),
        (DISCORD, "**“粗体”**中文", "**“粗体”**\u200a中文"),
        (TELEGRAM, "这是**粗体**吗", "这是<b>粗体</b>吗"),
    ],
)
def test_boundaries_of_marks(dialect: Dialect, source: str, shown: str) -> None:
    assert render(source, dialect) == shown


def test_styles_by_level() -> None:
    assert render("# a\n## b\n### c", WHATSAPP) == "A\n\n*b*\n\n*c*"
    assert render("# a\n## b\n##### c", DISCORD) == "# a\n\n## b\n\n### c"


@pytest.mark.parametrize(
    ("dialect", "shown"),
    [
        (PLAIN, "name: 苹果\n数量: 12\n\nname: a|b\n数量: 3"),
        (TELEGRAM, "<pre><code>name  数量\n----  ----\n苹果  12\na|b   3</code></pre>"),
        (DISCORD, "| name | 数量 |\n| :-- | --: |\n| 苹果 | `12` |\n| a\\|b | **3** |"),
        (
            HTML,
            "<table>\n<tr><th>name</th><th>数量</th></tr>\n<tr><td>苹果</td><td><code>12</code></td></tr>\n"
            "<tr><td>a|b</td><td><strong>3</strong></td></tr>\n</table>",
        ),
    ],
)
def test_tables(dialect: Dialect, shown: str) -> None:
    source = "| name | 数量 |\n|:-----|----:|\n| 苹果 | `12` |\n| a\\|b | **3** |"
    assert render(source, dialect) == shown


def test_a_table_without_rows_shows_its_header() -> None:
    assert render("| a | b |\n|---|---|", PLAIN) == "a | b"


@pytest.mark.parametrize(
    ("dialect", "shown"),
    [
        (PLAIN, "1. one\n   ◦ nested\n     ▪ deep\n2.\ncode\n  more"),
        (DISCORD, "1. one\n   - nested\n     - deep\n2. ```\n   code\n     more\n   ```"),
        (SLACK, "1. one\n   ◦ nested\n     ▪ deep\n2.\n```\ncode\n  more\n```"),
    ],
)
def test_nested_lists(dialect: Dialect, shown: str) -> None:
    assert render("1. one\n   - nested\n     - deep\n2. ```\n   code\n     more\n   ```", dialect) == shown


def test_quotes_are_not_nested_where_the_platform_refuses_it() -> None:
    assert render("> a\n>> b", TELEGRAM) == "<blockquote>a\n\nb</blockquote>"
    assert render("> a\n>> b", PLAIN) == "> a\n>\n> > b"


@pytest.mark.parametrize(
    ("code", "shown"),
    [("a", "`a`"), ("a`b", "``a`b``"), ("`", "`` ` ``"), ("``a", "``` ``a ```"), (" a ", "`  a  `")],
)
def test_code_spans_hold_backticks(code: str, shown: str) -> None:
    assert code_span(code) == shown
    assert render(shown, PLAIN).strip() == code.strip()


def test_fences_hold_fences() -> None:
    source = "````md\n```\ncode\n```\n````"
    assert render(source, DISCORD) == source
    assert render(source, WHATSAPP).count("```") == 2


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a*b_c", "a\\*b\\_c"),
        ("https://a.example/b_c and d_e", "https://a.example/b_c and d\\_e"),
        ("- a", "\\- a"),
        ("12. a", "12\\. a"),
        ("# a\n> b", "\\# a\n\\> b"),
        ("&amp;", "\\&amp;"),
        ("a | b", "a \\| b"),
    ],
)
def test_escape_markdown(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped
    assert words(escaped) == text.replace(" ", "").replace("\n", "")


def test_backslash_spares_addresses() -> None:
    assert backslash("_*")("a_b https://c.example/d_e *") == "a\\_b https://c.example/d_e \\*"


def test_measures() -> None:
    assert [measure("a中👍") for measure in MEASURES] == [3, 4, 8]
    assert columns("a中e\u0301👍") == 6


# -- what models write while they are writing


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_every_beginning_renders(dialect: Dialect) -> None:
    for end in range(len(DOCUMENT)):
        shown = render(DOCUMENT[:end], dialect)
        if dialect in (HTML, TELEGRAM):
            assert_balanced(shown)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("```python\nx = 1", '<pre><code class="language-python">x = 1</code></pre>'),
        ("a **b", "a **b"),
        ("see [link", "see [link"),
        ("see [link](https://a.ex", "see [link](https://a.ex"),
        ("| a | b |\n|--", "| a | b |\n|--"),
        ("Steps:\n-", "Steps:\n-"),
        ("Steps:\n- a", "Steps:\n\n• a"),
    ],
)
def test_incomplete(source: str, shown: str) -> None:
    assert render(source, TELEGRAM) == shown


ALLOWED = {
    "p", "h1", "h2", "h3", "h4", "h5", "h6", "strong", "em", "del", "code", "pre", "a", "ul", "ol", "li", "blockquote",
    "table", "tr", "th", "td", "b", "i", "s",
}  # fmt: skip
ATTRIBUTES = {"a": {"href"}, "code": {"class"}, "ol": {"start"}}


class Balance(HTMLParser):
    """Refuses what a strict platform refuses."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("br", "hr"):
            return
        assert tag in ALLOWED
        assert {name for name, _ in attrs} <= ATTRIBUTES.get(tag, set())
        for name, value in attrs:
            assert name != "href" or re.match(r"(?i)https?://|mailto:|tel:", value or "")
        self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(decl)

    def handle_pi(self, data: str) -> None:
        raise AssertionError(data)

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(data)


def assert_balanced(html: str) -> None:
    parser = Balance()
    parser.feed(html)
    parser.close()
    assert parser.stack == []
    assert not re.search(r"&(?!amp;|lt;|gt;)", html)


# -- pages


def test_what_fits_is_not_touched() -> None:
    source = "a  \r\n\r\n\r\n* b\n"
    assert cut(source, 100, PLAIN) == (source, "")
    assert cut("", 100, PLAIN) == ("", "")
    assert pages("", 100, HTML) == []
    assert pages("\n\n", 1, HTML) == []


@pytest.mark.parametrize(
    ("source", "limit", "head", "rest"),
    [
        ("first paragraph\n\nsecond paragraph", 30, "first paragraph", "second paragraph"),
        ("first line\nsecond line\nthird line", 25, "first line\nsecond line", "third line"),
        ("One sentence. Another one here.", 25, "One sentence.", "Another one here."),
        ("第一句话。第二句话很长。", 9, "第一句话。", "第二句话很长。"),
        ("他说：“你好。”然后走了。", 9, "他说：“你好。”", "然后走了。"),
        ("some words here", 12, "some words", "here"),
        ("x" * 30, 20, "x" * 20, "x" * 10),
        ("**some bold words here**", 14, "**some bold**", "**words here**"),
        ("*a **b c d e f g h***", 16, "*a **b c d e***", "***f g h***"),
        ("`some code here`", 12, "`some code`", "`here`"),
        ("see [the link](http://a.b) now", 27, "see [the link](http://a.b)", "now"),
        ("# Title\n\nwords and words", 16, "# Title\n\nwords", "and words"),
        ("words, many words\n\n# Title\n\nwords", 30, "words, many words", "# Title\n\nwords"),
        ("words, many words\n\nSteps:\n\n- a\n- b\n- c", 30, "words, many words", "Steps:\n\n- a\n- b\n- c"),
        ("1. one\n2. two\n3. three", 15, "1. one\n2. two", "3. three"),
        ("1. one\n1. two\n1. three", 15, "1. one\n1. two", "3. three"),
        ("> one line\n> two lines", 16, "> one line", "> two lines"),
        ("> one long line", 13, "> one long", "> line"),
        ("```py\na = 1\nb = 2\nc = 3\n```", 22, "```py\na = 1\nb = 2\n```", "```py\nc = 3\n```"),
        ("```py\na = 1\nb = 2\nc = 3", 22, "```py\na = 1\nb = 2\n```", "```py\nc = 3"),
        ("| a |\n|---|\n| b |\n| c |", 20, "| a |\n|---|\n| b |", "| a |\n|---|\n| c |"),
        ("a word or - five", 10, "a word", "or - five"),
    ],
)
def test_cut(source: str, limit: int, head: str, rest: str) -> None:
    assert cut(source, limit, MARKDOWN) == (head, rest)


def test_nested_items_go_on_at_their_depth() -> None:
    source = "1. first\n   - nested a\n   - nested b\n     and more of it\n2. second"
    head, rest = cut(source, 25, MARKDOWN)
    assert head == "1. first\n   - nested a"
    assert render(rest, PLAIN) == "   ◦ nested b\n     and more of it\n2. second"
    assert render(rest, DISCORD) == "1. - nested b\n     and more of it\n2. second"
    assert "<ol" in render(rest, HTML)


def test_an_item_goes_on_without_a_second_number() -> None:
    shown = pages("8. one\n9. a long item with many words in it\n10. ten", 30, PLAIN)
    assert shown == ["8. one\n9. a long item with", "   many words in it\n10. ten"]


def test_code_in_a_list_goes_on() -> None:
    source = "- run:\n  ```sh\n  one\n  two\n  three\n  ```\n- done"
    head, rest = cut(source, 32, MARKDOWN)
    assert head == "- run:\n  ```sh\n  one\n  two\n  ```"
    assert render(rest, TELEGRAM) == '<pre><code class="language-sh">three</code></pre>\n• done'


def test_fences_in_quotes_go_on() -> None:
    source = "> ```sh\n> one\n> two\n> ```"
    assert cut(source, 24, MARKDOWN) == ("> ```sh\n> one\n> ```", "> ```sh\n> two\n> ```")


def test_long_code_lines_are_cut() -> None:
    found = heads("```\n" + "abcd" * 100 + "\n```", 100, MARKDOWN)
    assert all(head.startswith("```\n") and head.endswith("\n```") for head in found)
    assert "".join(head[4:-4] for head in found) == "abcd" * 100


@pytest.mark.parametrize("cluster", ["👨‍👩‍👧‍👦", "e\u0301\u0323", "🇨🇳", "👍🏽", "\ud83d\ude00", "☎️"])
def test_characters_stay_whole(cluster: str) -> None:
    for limit in range(20, 30):
        assert all(set(re.split(re.escape(cluster), head)) == {""} for head in heads(cluster * 30, limit, PLAIN))


def test_a_link_longer_than_a_page_becomes_text() -> None:
    source = f"[label](https://a.example/{'x' * 60})"
    shown = pages(source, 40, TELEGRAM)
    assert "".join(shown).replace(" ", "") == f"label(https://a.example/{'x' * 60})"


def test_what_is_all_markup_gives_way() -> None:
    shown = pages("```python\nprint(1)\n```\n\n> > > > - deep words", 20, HTML)
    assert "".join(re.sub(r"<[^>]*>|\s", "", text) for text in shown) == "print(1)deepwords"
    assert all(len(text) <= 20 for text in shown)


def test_the_measure_is_that_of_the_rendered_text() -> None:
    source = "<>&" * 100
    assert len(pages(source, 310, PLAIN)) == 1
    assert [utf8(text) for text in pages(source, 310, TELEGRAM)] == [299, 299, 299, 299, 104]
    assert len(pages("**a** " * 100, 200, PLAIN)) == 1


GROWING = [
    ("word " * 40, "more words."),
    ("```python\n" + "x = 1\n" * 30, "y = 2\n```\nafter **it**"),
    ("- item\n" * 30 + "- last **it", "em** goes on\n- next"),
    ("| a | b |\n|---|---|\n" + "| c | d |\n" * 20 + "| e", " | f |\n\nafter"),
    ("> " + "quote " * 30, "goes on\n\nafter"),
    ("1. a\n   - " + "b " * 90, "c\n   - d\n2. e"),
]


@pytest.mark.parametrize(("source", "more"), GROWING)
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_a_growing_answer_goes_on(source: str, more: str, dialect: Dialect) -> None:
    head, rest = cut(source, 90, dialect)
    assert rest
    assert words(head) + words(rest + more) == words(source + more)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("step", [1, 7, 40])
def test_an_answer_is_cut_while_it_grows(dialect: Dialect, step: int) -> None:
    found, rest = [], ""
    for start in range(0, len(DOCUMENT), step):
        head, rest = cut(rest + DOCUMENT[start : start + step], 150, dialect)
        while rest:
            found.append(head)
            head, rest = cut(rest, 150, dialect)
        rest = head
    assert "".join(map(words, [*found, rest])) == words(DOCUMENT)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("limit", [60, 90, 150, 333])
def test_pages_of_a_document(dialect: Dialect, measure: Callable[[str], int], limit: int) -> None:
    found = heads(DOCUMENT, limit, dialect, measure)
    assert all(measure(render(head, dialect)) <= limit for head in found)
    assert "".join(words(head) for head in found) == words(DOCUMENT)


def test_a_long_answer() -> None:
    item = "{0}. **Item {0}** with `code`, a [link](https://a.example/{0}) and words that go on for a while.\n"
    source = "".join(item.format(number) for number in range(1, 2000))
    shown = pages(source, 4096, TELEGRAM, utf16)
    assert all(2048 <= utf16(text) <= 4096 for text in shown[:-1])
    assert [int(number) for text in shown for number in re.findall(r"(?m)^(\d+)\.", text)] == list(range(1, 2000))


# -- anything


FRAGMENTS = [
    "word ", "Hello, world. ", "0", "=", "中文，", "“粗体”", "。", "！", "👨‍👩‍👧‍👦", "e\u0301", "🇨🇳", "\ud83d",
    "x" * 30, "\n", "\n\n", "\r\n", "\t", "    ", "\u3000", "\0", "\u2060", '"', "'", "|", "\\", "&", "&amp;",
    "<b>", "<script>", "<!--",
    "**", "*", "***", "_", "~~", "`", "``", "**bold text here** ", "[", "](", ")", "[x](http://y.example)",
    "![i](http://y.example)", "https://a.example/c", "<https://q.example>", "javascript:alert(1)",
    "- ", "  - ", "+ ", "1. ", "2. ", "10) ", "> ", "# ", "## ", "---\n", "- item one\n", "  - nested item\n",
    "1. first item\n", "   more\n", "> quoted\n", "| a | b |\n|---|---|\n", "| c | d |\n",
    "```\n", "```python\n", "~~~\n", "def f():\n    return 1\n", "\n    code\n",
]  # fmt: skip
SOURCES = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=8), max_size=60).map("".join)
RELAXED = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


@RELAXED
@given(SOURCES)
def test_anything_renders(source: str) -> None:
    for dialect in DIALECTS:
        shown = render(source, dialect)
        if dialect in (HTML, TELEGRAM):
            assert_balanced(shown)


@RELAXED
@given(SOURCES, st.sampled_from(DIALECTS), st.sampled_from(MEASURES), st.sampled_from([90, 150, 400]))
def test_anything_is_cut(source: str, dialect: Dialect, measure: Callable[[str], int], limit: int) -> None:
    found = heads(source, limit, dialect, measure)
    for head in found:
        assert measure(render(head, dialect)) <= limit
        if dialect in (HTML, TELEGRAM):
            assert_balanced(render(head, dialect))
    for head in found[:-1]:
        assert_fences_closed(head)
    assert "".join(words(head) for head in found) == words(source)


@RELAXED
@given(SOURCES, st.sampled_from(DIALECTS), st.sampled_from(MEASURES), st.integers(1, 30))
def test_tiny_limits_make_progress(source: str, dialect: Dialect, measure: Callable[[str], int], limit: int) -> None:
    found = heads(source, limit, dialect, measure)
    assert "".join(words(head) for head in found) == words(source)


def assert_fences_closed(head: str) -> None:
    lines = head.split("\n")
    for token in parse(head):
        if token.type == "fence":
            start, end = token.map or (0, 0)
            assert end - start >= 2
            assert lines[end - 1].strip(" \t>") == token.markup


# -- hostile input: the time limit of the suite is the test


REPEATED = [
    ">", "> ", "[", "![", "*", "_", "**a ", "*a _a ", "`", "- ", "  - ", "- > ", "|", "<", "\\", "&", "~~", "[a](",
    "[](", "(", "*a**a**a*", "[a][", "- a\n", "- - \n", "|a|b|\n", "`a``b```c", "\n", "<!--", "\u0301", "\u200d",
    "\u2060",
    "🇨🇳", "中", "*中", "\ud83d",
]  # fmt: skip
NESTED = [
    "[" * 2000 + "](u)" * 2000,
    "\n".join("  " * depth + "- a" for depth in range(200)),
    "*a _b " * 1000 + "_ *" * 1000,
    "|" + "a|" * 300 + "\n|" + "-|" * 300 + "\n" + "|b\n" * 300,
    "".join("e" + "`" * run for run in range(1, 150)),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("source", [*(piece * (10_000 // len(piece)) for piece in REPEATED), *NESTED])
def test_hostile_input(source: str) -> None:
    for dialect in (HTML, DISCORD):
        assert_balanced(render(source, HTML))
        assert all(utf16(text) <= 4096 for text in pages(source, 4096, dialect, utf16))


def test_nothing_deep_is_lost() -> None:
    assert "word" in render("> " * 100 + "word", HTML)
    assert "word" in render("- " * 100 + "word", PLAIN)


def test_a_megabyte() -> None:
    source = "The quick brown fox. " * 50_000
    assert "".join(pages(source, 4000, PLAIN)).replace(" ", "") == source.replace(" ", "")
