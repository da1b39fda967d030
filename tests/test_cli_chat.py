"""`magpie chat` as a person meets it: in a pseudo-terminal, and with lines piped in."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from tests.model_server import ModelServer, Say, chunk
from tests.process import ROOT

COMMAND = (sys.executable, "-m", "bot", "chat", "--user", "ada")


def environment(server: ModelServer | None = None) -> Mapping[str, str]:
    model = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "sk-test-4f9d8a"} if server else {}
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm",
        "COLUMNS": "80",
        "LINES": "24",
        **model,
    }


class Terminal:
    """The person's side of a pseudo-terminal in which the command runs."""

    def __init__(self, end: int, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._end = end
        self._shown = ""
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(end, self._read)

    def _read(self) -> None:
        try:
            self._shown += os.read(self._end, 65536).decode(errors="replace")
        except OSError:  # the other side is gone
            asyncio.get_running_loop().remove_reader(self._end)
        self._news.set()

    def type(self, keys: str) -> None:
        os.write(self._end, keys.encode())

    async def shows(self, text: str) -> str:
        """Wait until a text has appeared; return everything up to it, and forget that."""
        async with asyncio.timeout(30):
            while text not in self._shown:
                self._news.clear()
                await self._news.wait()
        before, _, self._shown = self._shown.partition(text)
        return before + text


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer().serve() as server:
        yield server


@pytest.fixture
async def terminal(server: ModelServer, tmp_path: Path) -> AsyncIterator[Terminal]:
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=environment(server),
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(theirs)
    terminal = Terminal(ours, process)
    yield terminal
    if process.returncode is None:
        process.kill()
        await process.wait()
    asyncio.get_running_loop().remove_reader(ours)
    os.close(ours)


def _take_terminal() -> None:
    """Make standard input the controlling terminal, so that Ctrl-C becomes a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


async def test_a_conversation_in_a_terminal(terminal: Terminal) -> None:
    await terminal.shows("> ")
    terminal.type("Hi\n")
    assert "Hello" in await terminal.shows("\r\n> ")
    terminal.type("\x03")
    await terminal.shows("exit or Ctrl-D leaves\r\n> ")
    terminal.type("退出\n")
    assert await asyncio.wait_for(terminal.process.wait(), 20) == 0


async def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(terminal: Terminal, server: ModelServer) -> None:
    server.say(Say(blocks=[chunk("Once upon a time")], ending="hang"))
    await terminal.shows("> ")
    terminal.type("Tell me everything\n")
    await terminal.shows("Once upon a time")
    terminal.type("\x03")
    assert "Once upon a time" in await terminal.shows("Stopped.")
    await asyncio.wait_for(server.left.wait(), 20)
    await terminal.shows("> ")
    terminal.type("And now?\n")
    await terminal.shows("Hello")
    await terminal.shows("> ")
    terminal.type("\x04")
    assert await asyncio.wait_for(terminal.process.wait(), 20) == 0


async def test_lines_piped_in_are_answered_without_control_codes_and_remembered(tmp_path: Path) -> None:
    for lines, answers in (("one\ntwo\n", ("“one”", "“two”. Before that you said: “one”")), ("three", ("“two”",))):
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=tmp_path,
            env=environment(),
        )
        out, err = await asyncio.wait_for(process.communicate(lines.encode()), 60)
        assert process.returncode == 0, err.decode()
        shown = out.decode()
        assert "\x1b" not in shown
        for answer in answers:
            assert answer in shown
