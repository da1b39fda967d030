"""The demo model: says that it is one, streams, remembers, shows Markdown."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from bot.adapter import Turn
from bot.model import Picture, estimate_tokens
from bot.model.demo import DemoModel, reply
from tests.model_server import read


@pytest.mark.parametrize("text", ["Hi", "你好", "markdown", "表格", "what is my name?", "", "\ud83d"])
def test_every_reply_says_what_is_talking(text: str) -> None:
    assert "OPENAI_API_KEY" in reply([text])
    assert "demo" in reply([text]) or "演示" in reply([text])


def test_the_log_says_it_at_start() -> None:
    with capture_logs() as logs:
        DemoModel()
    (line,) = logs
    assert line["event"] == "demo model"
    assert "OPENAI_API_KEY" in line["hint"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["My name is Ada", "I like tea", "What is my name?"], "Ada"),
        (["我叫小明", "今天天气不错", "我叫什么？"], "小明"),
        (["I like tea", "And cake"], "I like tea"),
        (["我喜欢茶", "还有蛋糕"], "我喜欢茶"),
        (["My name is Ada"], "Ada"),
        (["what's my name"], "not told me"),
        (["我叫什么"], "还没有"),
    ],
)
def test_it_remembers(said: list[str], expected: str) -> None:
    assert expected in reply(said)


@pytest.mark.parametrize(
    ("said", "part"), [("Show me Markdown", "| --- |"), ("画一个表格", "```python"), ("a table", "- a list")]
)
def test_it_shows_markdown(said: str, part: str) -> None:
    assert part in reply([said])


def test_it_answers_in_the_language_of_the_question() -> None:
    assert "你说" in reply(["Hello", "你好"])
    assert "You said" in reply(["你好", "Hello"])


def test_it_mentions_pictures() -> None:
    assert "2 picture" in reply(["look"], 2)


@pytest.mark.parametrize(
    "text", ["Hello there, how are you?", "今天天气怎么样？", "markdown", "表格", "  ", "mixed 中文 text"]
)
async def test_it_streams_word_by_word_and_loses_nothing(text: str) -> None:
    completion = DemoModel(delay=0).ask([Turn("system", "Be kind"), Turn("user", text)])
    items = [item async for item in completion]
    assert len(items) > 5
    assert "".join(items) == reply([text])
    assert completion.finish == "stop"
    assert completion.usage.model == "demo"
    assert completion.usage.estimated
    assert completion.usage.completion == estimate_tokens(reply([text]))
    assert completion.usage.prompt > 0


async def test_it_can_be_stopped() -> None:
    completion = DemoModel(delay=0).ask([Turn("user", "Hi")], [Picture("image/png", b"")])
    texts = aiter(completion)
    first = await anext(texts)
    await completion.aclose()
    assert [text async for text in texts] == []
    assert completion.finish == ""
    assert completion.usage.completion == estimate_tokens(first)


async def test_the_same_question_has_the_same_answer() -> None:
    model = DemoModel(delay=0)
    turns = [Turn("user", "Hi")]
    assert await read(model.ask(turns)) == await read(model.ask(turns))
    (finding,) = await model.check()
    assert finding.ok
    await model.close()


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a", 1), ("four", 1), ("fives", 2), ("喜鹊报喜", 3), ("\ud83d", 1)]
)
def test_tokens_are_estimated_from_bytes(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens
