"""The built-in demo model: no server, no key, always the same answer to the same conversation.

It streams, remembers and writes Markdown, so that everything but the model can be tried.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import structlog

from bot.adapter import Finding, Turn
from bot.model.contract import Picture, Usage, estimate_prompt, estimate_tokens

DELAY = 0.03  # seconds between words
QUOTED = 200  # characters of an earlier message that are repeated

log = structlog.get_logger()


class Phrases(NamedTuple):
    """Everything the demo can say in one language."""

    note: str
    greeting: str
    name: str
    no_name: str
    said: str
    before: str
    pictures: str
    markdown: str


ENGLISH = Phrases(
    note="*I am Magpie's built-in demo model. Set `OPENAI_API_KEY` to talk to a real one.*",
    greeting="Nice to meet you, {name}! I will remember your name.",
    name="Your name is {name}: you told me earlier.",
    no_name="You have not told me your name yet. Try: my name is Ada.",
    said="You said: “{text}”.",
    before="Before that you said: “{text}”.",
    pictures="I also received {count} picture(s), but a demo cannot see.",
    markdown="""Here is some Markdown.

- a list with **bold** and *italic* text
- a [link](https://example.com/) and `code`

```python
print("Hello from Magpie")
```

| Bird | Good at |
| --- | --- |
| Magpie | bringing news |
| Owl | listening |""",
)
CHINESE = Phrases(
    note="*我是喜鹊内置的演示模型。设置 `OPENAI_API_KEY` 后即可与真正的模型对话。*",
    greeting="很高兴认识你，{name}！我会记住你的名字。",
    name="你叫{name}，你之前告诉过我。",
    no_name="你还没有告诉我你的名字。可以说：我叫小明。",
    said="你说：“{text}”。",
    before="在那之前你说：“{text}”。",
    pictures="我还收到了 {count} 张图片，不过演示模型看不到图片。",
    markdown="""这是一段 Markdown。

- 列表，带有**粗体**和*斜体*
- [链接](https://example.com/)和 `代码`

```python
print("喜鹊向你问好")
```

| 鸟 | 擅长 |
| --- | --- |
| 喜鹊 | 报喜 |
| 猫头鹰 | 倾听 |""",
)

_HAN = re.compile(r"[\u3400-\u9fff]")
_NAME = re.compile(r"\bmy name is\s+([\w'-]+)|我叫(?!什么|啥)\s*([\w·]{1,12})", re.IGNORECASE)
_ASKS_NAME = re.compile(r"\b(what('s| is) my name|who am i)\b|我叫(什么|啥)|我是谁|我的名字是什么", re.IGNORECASE)
_ASKS_MARKDOWN = re.compile(r"markdown|\btable\b|表格", re.IGNORECASE)
_WORD = re.compile(r"\s*(?:[\u3000-\u9fff\uff00-\uffef]{1,2}|[^\s\u3000-\u9fff\uff00-\uffef]+)\s*")


class DemoModel:
    """Answers without a server."""

    name = "demo"

    def __init__(self, delay: float = DELAY) -> None:
        self._delay = delay
        log.warning("demo model", hint="set OPENAI_API_KEY (or OPENAI_BASE_URL) to talk to a real model")

    def ask(self, turns: Sequence[Turn], pictures: Sequence[Picture] = (), person: str = "") -> DemoAnswer:
        """Begin an answer."""
        said = [turn.content for turn in turns if turn.role == "user"]
        return DemoAnswer(reply(said, len(pictures)), estimate_prompt(turns, len(pictures)), self._delay)

    async def check(self) -> list[Finding]:
        """Say that there is nothing to check."""
        return [Finding(True, "model: the built-in demo (set OPENAI_API_KEY to talk to a real one)")]

    async def close(self) -> None:
        """There are no connections."""


class DemoAnswer:
    """A `Completion` whose text is known beforehand."""

    def __init__(self, text: str, prompt: int, delay: float) -> None:
        self.usage = Usage(DemoModel.name)
        self.finish = ""
        self._text = text
        self._prompt = prompt
        self._delay = delay
        self._given = ""
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield the text word by word."""
        try:
            for word in _WORD.findall(self._text):
                await asyncio.sleep(self._delay)
                if self._closed:
                    return
                self._given += word
                yield word
            self.finish = "stop"
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Stop and count what was said."""
        self._closed = True
        self.usage = Usage(DemoModel.name, self._prompt, 0, estimate_tokens(self._given), True)


def reply(said: Sequence[str], pictures: int = 0) -> str:
    """Return the answer to what the person said, oldest first."""
    last = said[-1] if said else ""
    words = CHINESE if _HAN.search(last) else ENGLISH
    parts = [_about(said, last, words)]
    if pictures:
        parts.append(words.pictures.format(count=pictures))
    return "\n\n".join([*parts, words.note])


def _about(said: Sequence[str], last: str, words: Phrases) -> str:
    if _ASKS_MARKDOWN.search(last):
        return words.markdown
    if _ASKS_NAME.search(last):
        name = _name_in(said)
        return words.name.format(name=name) if name else words.no_name
    if name := _name_in([last]):
        return words.greeting.format(name=name)
    sentences = [words.said.format(text=_quote(last))]
    if len(said) > 1:
        sentences.append(words.before.format(text=_quote(said[-2])))
    return " ".join(sentences)


def _name_in(said: Sequence[str]) -> str:
    found = (_NAME.search(text) for text in reversed(said))
    return next((match[1] or match[2] for match in found if match), "")


def _quote(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= QUOTED else line[:QUOTED] + "…"
