"""Markdown in messages and in AI cards. https://open.dingtalk.com/document/development/typewriter-effect-streaming-ai-card"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from bot.markup import Dialect, flanking, markdown_link, triple_backticks

# How backslashes are read is not documented, so nothing is escaped; but a tag would vanish.
# https://open.dingtalk.com/document/orgapp/robot-message-types-and-data-format
MARKDOWN = Dialect(
    "dingtalk-markdown",
    escape=lambda text: re.sub(r"<(?=[A-Za-z/!])", "<\u200b", text),
    boundary=flanking(),
    bold=("**", "**"),
    italic=("*", "*"),
    code=("`", "`"),
    heading=tuple(("#" * level + " ", "") for level in range(1, 7)),
    line_break="  \n",
    fence=triple_backticks,
    link=markdown_link,
    bullets=("- ",),
    indent="    ",
    native_lists=True,
)
CARD = msgspec.structs.replace(MARKDOWN, name="dingtalk-card", line_break="<br>", rule="---", table="native")

WRITING, FINISHED, FAILED = "2", "3", "5"


def shown(key: str, text: str, status: str) -> dict[str, Any]:
    """Return the data of a card, all of whose values are texts. `key` is the template's variable for the answer."""
    data = {
        "flowStatus": status,
        key: text,
        "staticMsgContent": "",
        "sys_full_json_obj": msgspec.json.encode({"order": [key]}).decode(),
        "config": '{"autoLayout":true}',
    }
    return {"cardParamMap": data}


def title(plain: str) -> str:
    """Return what a notification shows of a message, in some twenty characters."""
    line = next((line.strip() for line in plain.splitlines() if line.strip()), "")
    return line[:20] or "…"
