"""What the three APIs of OpenAI-compatible servers have in common: a question becomes a body, events become text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from bot.adapter import Turn
from bot.model.contract import Usage

Body = dict[str, object]


class Question(msgspec.Struct, frozen=True):
    """What is asked, before it is put into one API's words."""

    model: str
    turns: Sequence[Turn]
    pictures: Sequence[str] = ()  # data URLs; they belong to the last turn of the user
    options: Mapping[str, float] = {}  # those that are set, by their names in ModelSettings
    person: str = ""  # a pseudonym, "" where the server is not told
    official: bool = False  # asked at OpenAI itself
    template: str = ""  # of the prompt, for the legacy API

    def chosen(self, *names: str) -> Body:
        """Return the options of these names that are set."""
        return {name: self.options[name] for name in names if name in self.options}


class Reader(Protocol):
    """Reads the events of one answer."""

    usage: Usage | None  # as the server reported it
    finish: str  # "stop" or "length" once the server said that the answer is complete
    refused: bool  # by the model or a content filter
    unseen: int  # bytes of text that is billed but not shown (reasoning)

    def event(self, data: bytes) -> str:
        """Return the text an event brings. Raises Fault; msgspec.MsgspecError when it is malformed."""


class Source(Protocol):
    """The body of a response as it comes."""

    async def read(self) -> bytes:
        """Return what one read of the network brought, b"" at the end. Raises Broken."""

    async def close(self) -> None:
        """Let go of it; a read that waits ends with Broken."""


class Format(NamedTuple):
    """One of a server's APIs."""

    path: str
    body: Callable[[Question], Body]
    reader: Callable[[], Reader]


def with_pictures(question: Question, text: Callable[[str], Body], picture: Callable[[str], Body]) -> Sequence[object]:
    """Return the turns as an API takes them; `text` and `picture` build the parts of the turn with the pictures."""
    turns = question.turns
    if not question.pictures:
        return turns  # structures of role and content: msgspec writes them as they are
    last = max((n for n, turn in enumerate(turns) if turn.role == "user"), default=len(turns))
    said = [text(turn.content) for turn in turns[last : last + 1] if turn.content.strip()]
    shown = {"role": "user", "content": said + [picture(url) for url in question.pictures]}
    return [*turns[:last], shown, *turns[last + 1 :]]
