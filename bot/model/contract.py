"""What the rest of the bot knows of a model: ask it, read the text as it comes, see what it cost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from bot.adapter import Finding, Turn

BYTES_PER_TOKEN = 4  # of UTF-8; English and Chinese text both come close to it with the tokenizers of today
TOKENS_PER_TURN = 4  # the role and the separators around a turn
TOKENS_PER_PICTURE = 800  # about what one picture of 1024 x 1024 costs


class Picture(msgspec.Struct, frozen=True):
    """A picture of the person's, such as ("image/png", b"...")."""

    mime: str
    data: bytes


class Usage(msgspec.Struct):
    """What an answer cost, in tokens. `cached` is the part of `prompt` that the vendor had in its prompt cache."""

    model: str = ""
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    estimated: bool = False  # the server did not say (all of) it; counted from bytes

    def add(self, other: Usage) -> None:
        """Count another attempt at the same answer in."""
        self.prompt += other.prompt
        self.cached += other.cached
        self.completion += other.completion
        self.estimated |= other.estimated


class Completion(Protocol):
    """One answer being written. Iterate it once."""

    usage: Usage  # complete when the iteration has ended, however it ended
    finish: str  # "" while it is written, then "stop", or "length" when the token limit cut it

    def __aiter__(self) -> AsyncIterator[str]:
        """Yield the text as it comes; one item may hold many tokens. Raises ModelError."""

    async def aclose(self) -> None:
        """Stop early: close the connection, end the iteration, settle `usage`. May be called at any time."""


class Model(Protocol):
    """Something that answers conversations."""

    name: str

    def ask(self, turns: Sequence[Turn], pictures: Sequence[Picture] = (), person: str = "") -> Completion:
        """Begin an answer; the request leaves when it is iterated.

        `pictures` belong to the last turn of the user. `person` is any stable id: it never leaves in clear.
        """

    async def check(self) -> list[Finding]:
        """Ask the server: is each key valid, is each model there?"""

    async def close(self) -> None:
        """Close all connections."""


def utf8_size(text: str) -> int:
    """Return the number of bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def tokens_of(size: int) -> int:
    """Estimate the tokens of `size` bytes, rounded up."""
    return -(-size // BYTES_PER_TOKEN)


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text from its UTF-8 bytes; cheap and without a tokenizer."""
    return tokens_of(utf8_size(text))


def estimate_prompt(turns: Sequence[Turn], pictures: int = 0) -> int:
    """Estimate the tokens of a whole request."""
    return sum(estimate_tokens(turn.content) + TOKENS_PER_TURN for turn in turns) + pictures * TOKENS_PER_PICTURE
