"""Cards and the Markdown in them.

https://open.feishu.cn/document/feishu-cards/card-json-v2-components/content-components/rich-text
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import msgspec

from bot.markup import Dialect, flanking, markdown_link, triple_backticks

ELEMENT = "answer"  # the id of the one element in our cards
TABLES = 3  # tables a card may hold
SUMMARY = 100  # characters of the preview in the list of chats
# How the client types what a stream brings: https://open.feishu.cn/document/cardkit-v1/streaming-updates-openapi-overview
TYPING = {"print_frequency_ms": {"default": 40}, "print_step": {"default": 2}, "print_strategy": "fast"}

_SPECIAL = re.compile(
    r"(?P<address>https?://[^\s<>()\[\]*`|\\]+)"
    r"|[<*`|\\\[]|(?<!\w)_|_(?!\w)|~(?=~)|&(?=#?\w+;)"
    r"|(?m:^[ \t]*(?:[-+]|#{1,6}|\d{1,9}[.)])(?=\s|$)|^[ \t]*>)"
)


def escape(text: str) -> str:
    """Write what would be a mark, a tag or a call of people as an entity; the cards know no backslashes."""
    return _SPECIAL.sub(lambda found: found["address"] or f"{found[0][:-1]}&#{ord(found[0][-1])};", text)


MARKDOWN = Dialect(
    "feishu-card",
    escape=escape,
    boundary=flanking(),
    bold=("**", "**"),
    italic=("*", "*"),
    strike=("~~", "~~"),
    code=("`", "`"),
    heading=(("#### ", ""), ("##### ", "")),  # those of the first levels are as large as a poster
    fence=triple_backticks,
    link=markdown_link,
    bullets=("- ",),
    indent="    ",
    native_lists=True,
    rule="---",
    table="native",
)

_BLOCK = re.compile(r"^(?P<dent> *)```.*?^(?P=dent)```|(?P<table>(?:^ *\|[^\n]*(?:\n|\Z))+)", re.MULTILINE | re.DOTALL)


def few_tables(text: str) -> str:
    """Show the tables after the third as code: a card with more of them is refused."""
    number = itertools.count(1)

    def shown(block: re.Match[str]) -> str:
        table = block["table"]
        if not table or next(number) <= TABLES:
            return block[0]
        dent = " " * (len(table) - len(table.lstrip(" ")))
        return f"{dent}```\n{table.removesuffix(chr(10))}\n{dent}```\n"

    return _BLOCK.sub(shown, text)


def as_json(value: object) -> str:
    """Write what the API wants as JSON inside of its JSON."""
    return msgspec.json.encode(value).decode()


def finished(plain: str) -> dict[str, Any]:
    """Return the configuration of a card that is complete."""
    summary = " ".join(plain.split())[:SUMMARY]
    return {"streaming_mode": False, "update_multi": True} | ({"summary": {"content": summary}} if summary else {})


def growing() -> dict[str, Any]:
    """Return the configuration of a card that streams; until it is finished the list of chats says that."""
    return {"streaming_mode": True, "update_multi": True, "streaming_config": TYPING}


def card(text: str, config: dict[str, Any]) -> str:
    """Return a card of one text."""
    body = {"elements": [{"tag": "markdown", "element_id": ELEMENT, "content": few_tables(text)}]}
    return as_json({"schema": "2.0", "config": config, "body": body})
