"""`magpie chat`: the whole bot in one process, with the terminal as its only platform and no port."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Protocol, cast

import msgspec
import typer

from bot.app import Magpie
from bot.cli import outside
from bot.cli.speech import say
from bot.registry import Config

KEYBOARD = "terminal"  # the adapter this command is made for


class Keyboard(Protocol):
    """What this command needs of that adapter."""

    closed: asyncio.Event

    def interrupt(self) -> bool:
        """Stop the answer being written; False when there is none."""

    def hint(self, text: str) -> None:
        """Say something beside the conversation."""


def run(user: str) -> None:
    """Talk until the person leaves."""
    config = outside.configuration([KEYBOARD], "warning")
    (one,) = config.instances
    if user:
        one = msgspec.structs.replace(one, settings=one.settings.model_copy(update={"user": user}))
    with _restored():
        outside.run(_talk(msgspec.structs.replace(config, instances=(one,))))


async def _talk(config: Config) -> None:
    magpie = Magpie(config)
    keyboard = cast(Keyboard, magpie.adapters[KEYBOARD])
    _greet(magpie.model.name)
    _catch_signals(keyboard)
    try:
        await magpie.start(http=False)
        await keyboard.closed.wait()
    finally:
        await magpie.stop()


def _greet(model: str) -> None:
    if sys.stdin.isatty() and sys.stdout.isatty():
        typer.secho(f"Magpie · {model} · {_how_to_leave()}", dim=True)


def _how_to_leave() -> str:
    return say("Ctrl-C stops an answer, exit or Ctrl-D leaves", "Ctrl-C 停止回答，输入 退出 或按 Ctrl-D 离开")


def _catch_signals(keyboard: Keyboard) -> None:
    def interrupted() -> None:
        if keyboard.interrupt():
            return
        if sys.stdin.isatty():
            keyboard.hint(_how_to_leave())
        else:
            keyboard.closed.set()

    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # on Windows, where Ctrl-C ends the program
        loop.add_signal_handler(signal.SIGINT, interrupted)
        loop.add_signal_handler(signal.SIGTERM, keyboard.closed.set)


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Leave the terminal as it was, also when line editing was under way."""
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
