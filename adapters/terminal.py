"""The terminal: one person at the keyboard, or lines piped in. `magpie chat` runs it.

Line editing: https://docs.python.org/3/library/readline.html, Markdown on the screen: https://rich.readthedocs.io
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import io
import itertools
import os
import sys
import threading
import unicodedata
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol

from pydantic import Field

from bot.adapter import Accept, Adapter, AdapterSettings, Capabilities, Chat, Context, Message, Page, Post
from bot.markup import MARKDOWN, characters

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

PROMPT = "> "
LEAVE = {"exit", "quit", "退出", "/exit", "/quit", "/退出"}
ALLOWED_CONTROLS = "\n\t"  # any other control character of an answer could command the terminal


class TerminalSettings(AdapterSettings):
    """Settings of one terminal."""

    user: str = Field("", description="Name of the person at the keyboard; empty: the login name")


class Screen(Protocol):
    """Where answers appear."""

    def grow(self, text: str) -> None:
        """Show an answer that is still being written."""

    def finish(self, text: str) -> None:
        """Show the whole answer, for good."""


class PlainScreen:
    """A pipe or a file: finished answers only, as they are."""

    def grow(self, text: str) -> None:
        """Wait for the end: what was written cannot be taken back."""

    def finish(self, text: str) -> None:
        """Write the answer's Markdown."""
        print(text, flush=True)


class RichScreen:
    """A terminal: Markdown that is drawn again and again while it grows."""

    def __init__(self) -> None:
        from rich.console import Console  # only who chats in a terminal pays for the import

        self._console = Console()
        self._live: Live | None = None

    def grow(self, text: str) -> None:
        """Draw the end of the answer, as much as fits."""
        from rich.live import Live

        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(_Tail(text), refresh=True)

    def finish(self, text: str) -> None:
        """Replace the drawing by the whole answer."""
        from rich.markdown import Markdown

        if self._live is not None:
            self._live.stop()
            self._live = None
        self._console.print(Markdown(text), "")


class _Tail:
    """The last lines of a Markdown text that fit on the screen."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.markdown import Markdown
        from rich.segment import Segment

        lines = console.render_lines(Markdown(self._text), options, pad=False)
        for line in lines[-max(console.height - 2, 1) :]:
            yield from line
            yield Segment.line()


class TerminalAdapter(Adapter[TerminalSettings]):
    """A chat with the person who started the program. `closed` is set when they leave."""

    name = "terminal"
    title = "Terminal"
    docs = "https://docs.python.org/3/library/readline.html"
    Settings = TerminalSettings
    can = Capabilities(
        max_length=1_000_000, measure=characters, dialect=MARKDOWN, edit_every=0.1, typing_every=5, pages_per_second=100
    )

    def __init__(self, settings: TerminalSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.closed = asyncio.Event()
        self._user = settings.user or getpass.getuser()
        self._screen: Screen = RichScreen() if sys.stdout.isatty() else PlainScreen()
        self._prompt = PROMPT if sys.stdin.isatty() and sys.stdout.isatty() else ""
        self._ids = itertools.count(1)
        self._awaited = ""  # id of the message whose answer comes next
        self._answered = asyncio.Event()
        self._accept: Accept | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Switch line editing on where there is a keyboard, and take any bytes where there is a pipe."""
        if self._prompt:
            with contextlib.suppress(ImportError):  # not on Windows
                import readline  # noqa: F401 - input() edits lines once it is imported
        elif isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")

    async def listen(self, accept: Accept) -> None:
        """Read a line, wait for its answer, read the next."""
        self._accept = accept
        async for text in self._lines():
            self._stopping = None
            self._answered.clear()
            await self._tell(accept, text)
            await self._answered.wait()
        self.closed.set()
        await asyncio.Event().wait()  # who has left does not come back

    def interrupt(self) -> bool:
        """Stop the answer being written (Ctrl-C); False when there is none. A second time: do not wait for it."""
        if self._answered.is_set() or self._accept is None:
            return False
        if self._stopping is not None:
            self._answered.set()
            return True
        self._stopping = asyncio.ensure_future(self._tell(self._accept, "/stop"))
        return True

    def hint(self, text: str) -> None:
        """Say something beside the conversation, then show the prompt again."""
        print(f"\n{text}\n{self._prompt}", end="", flush=True)

    async def send(self, chat: Chat, page: Page) -> str:
        """Show a finished answer."""
        self._finish(page)
        return str(next(self._ids))

    async def begin(self, chat: Chat, page: Page) -> str:
        """Show the beginning of an answer."""
        self._screen.grow(printable(page.text))
        return str(next(self._ids))

    async def edit(self, chat: Chat, post: Post, page: Page, last: bool) -> str:
        """Show the answer as it is now."""
        if last:
            self._finish(page)
        else:
            self._screen.grow(printable(page.text))
        return post.id

    async def typing(self, chat: Chat) -> None:
        """Show that something is coming."""
        self._screen.grow("…")

    async def _tell(self, accept: Accept, text: str) -> None:
        message = self._message(text)
        self._awaited = message.id
        await accept([message])

    def _finish(self, page: Page) -> None:
        self._screen.finish(printable(page.text))
        if self._answered.is_set() and self._prompt:  # it came while the person was typing
            print(self._prompt, end="", flush=True)
        if page.reply_to in ("", self._awaited):  # after Ctrl-C the beginning of an answer is not what we wait for
            self._answered.set()

    def _message(self, text: str) -> Message:
        locale = os.environ.get("LC_ALL") or os.environ.get("LANG", "")
        return Message(
            id=uuid.uuid4().hex,
            chat=Chat(self._user),
            user=self._user,
            user_name=self._user,
            text=text,
            locale=locale.partition(".")[0].replace("_", "-").lower(),
        )

    async def _lines(self) -> AsyncIterator[str]:
        """Yield what the person writes until they leave."""
        self._answered.set()
        while (line := await self._read()) is not None and line.strip().lower() not in LEAVE:
            if line.strip():
                yield line.strip()

    async def _read(self) -> str | None:
        """Read a line in a thread of its own, so that an open prompt never holds up the end of the program."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str | None] = loop.create_future()

        def settle(line: str | None) -> None:
            if not answer.done():
                answer.set_result(line)

        def read() -> None:
            try:
                line: str | None = input(self._prompt)
            except (EOFError, ValueError):  # Ctrl-D; a closed standard input
                line = None
            with contextlib.suppress(RuntimeError):  # the program ended meanwhile
                loop.call_soon_threadsafe(settle, line)

        threading.Thread(target=read, name="terminal", daemon=True).start()
        return await answer


def printable(text: str) -> str:
    """Return the text without characters that would command the terminal instead of being shown."""
    return "".join(char for char in text if char in ALLOWED_CONTROLS or unicodedata.category(char) != "Cc")
