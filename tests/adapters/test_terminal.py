"""The terminal: lines in, answers out, no control codes into a pipe."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from unittest.mock import create_autospec

import pytest

from adapters.terminal import RichScreen, TerminalAdapter, TerminalSettings, printable
from bot.adapter import Chat, Context, Message, Page, Post, State

CHAT = Chat("ada")


def make(user: str = "ada") -> TerminalAdapter:
    return TerminalAdapter(TerminalSettings.model_validate({"user": user}), Context("terminal", create_autospec(State)))


class Bot:
    """Stands in for the core: answers each message unless it is told to be silent."""

    def __init__(self, adapter: TerminalAdapter, silent: bool = False) -> None:
        self.adapter = adapter
        self.silent = silent
        self.heard: list[Message] = []
        self.news = asyncio.Event()

    async def accept(self, messages: Sequence[Message]) -> None:
        self.heard += messages
        self.news.set()
        if not self.silent:
            for message in messages:
                await self.adapter.send(message.chat, Page(f"echo: {message.text}", reply_to=message.id))


@pytest.fixture
async def leftovers() -> AsyncIterator[set[asyncio.Task[None]]]:
    tasks: set[asyncio.Task[None]] = set()
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


Leftovers = set["asyncio.Task[None]"]


async def converse(
    monkeypatch: pytest.MonkeyPatch, leftovers: Leftovers, typed: str, *, silent: bool = False
) -> tuple[Bot, TerminalAdapter]:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    adapter = make()
    bot = Bot(adapter, silent)
    await adapter.start()
    leftovers.add(asyncio.create_task(adapter.listen(bot.accept)))
    if not silent:
        await asyncio.wait_for(adapter.closed.wait(), 10)
    return bot, adapter


async def test_each_line_is_a_message_and_its_answer_a_line(
    monkeypatch: pytest.MonkeyPatch, leftovers: Leftovers, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    bot, _ = await converse(monkeypatch, leftovers, "hello\n\n  你好  \nlast without end")
    assert [message.text for message in bot.heard] == ["hello", "你好", "last without end"]
    assert capsys.readouterr().out == "echo: hello\necho: 你好\necho: last without end\n"
    first = bot.heard[0]
    assert (first.chat, first.user, first.locale) == (CHAT, "ada", "zh-cn")
    assert len({message.id for message in bot.heard}) == 3


@pytest.mark.parametrize("word", ["exit", "quit", "退出", "/exit", "QUIT"])
async def test_a_word_leaves(word: str, monkeypatch: pytest.MonkeyPatch, leftovers: Leftovers) -> None:
    bot, adapter = await converse(monkeypatch, leftovers, f"hi\n{word}\nnever read\n")
    assert [message.text for message in bot.heard] == ["hi"]
    assert adapter.closed.is_set()


async def test_only_the_finished_answer_goes_into_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    adapter = make()
    await adapter.typing(CHAT)
    post = Post(await adapter.begin(CHAT, Page("**He")))
    assert await adapter.edit(CHAT, post, Page("**Hello"), last=False) == post.id
    assert capsys.readouterr().out == ""
    assert await adapter.edit(CHAT, post, Page("**Hello** you"), last=True) == post.id
    assert capsys.readouterr().out == "**Hello** you\n"


async def test_a_stopped_answer_is_over_when_the_bot_says_so(
    monkeypatch: pytest.MonkeyPatch, leftovers: Leftovers
) -> None:
    bot, adapter = await converse(monkeypatch, leftovers, "tell me everything\n", silent=True)
    await asyncio.wait_for(bot.news.wait(), 10)
    bot.news.clear()
    adapter.interrupt()
    await asyncio.wait_for(bot.news.wait(), 10)
    await adapter.send(CHAT, Page("Stopped.", reply_to=bot.heard[1].id))
    await asyncio.wait_for(adapter.closed.wait(), 10)


async def test_an_interrupt_stops_the_answer_and_a_second_one_does_not_wait(
    monkeypatch: pytest.MonkeyPatch, leftovers: Leftovers
) -> None:
    bot, adapter = await converse(monkeypatch, leftovers, "tell me everything\n", silent=True)
    await asyncio.wait_for(bot.news.wait(), 10)
    bot.news.clear()
    assert adapter.interrupt()
    await asyncio.wait_for(bot.news.wait(), 10)
    assert [message.text for message in bot.heard] == ["tell me everything", "/stop"]
    await adapter.send(CHAT, Page("It all beg", reply_to=bot.heard[0].id))
    assert not adapter.closed.is_set()
    assert adapter.interrupt()
    await asyncio.wait_for(adapter.closed.wait(), 10)
    assert len(bot.heard) == 2
    assert not adapter.interrupt()


def test_the_login_name_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "grace")
    assert make("")._message("hi").user == "grace"


def test_an_answer_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\r\n\tc\x9b31m喜鹊") == "a[2Jb\n\tc31m喜鹊"


def test_a_growing_answer_is_drawn_within_the_screen_and_then_printed_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "LINES": "6", "COLUMNS": "40"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = RichScreen()
    lines = [f"- line {number}" for number in range(20)]
    screen.grow("\n".join(lines))
    drawn = capsys.readouterr().out
    assert "line 19" in drawn
    assert "line 1\n" not in drawn
    screen.finish("\n".join(lines))
    printed = capsys.readouterr().out
    assert all(f"line {number}" in printed for number in range(20))
