"""What the page hears while an answer grows: small JSON frames, `static/conversation.js` puts them together.

`text` goes where the `at` characters (code points) that stay end; with `more` the rest follows in the next frame. A
page that does not have those characters, because it came late or lost a frame, waits for a frame that begins at 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

PIECE = 1100  # characters a frame; JSON makes at most 6 bytes of one, and a frame may have 7,000


class Frame(msgspec.Struct, frozen=True, omit_defaults=True):
    """One frame: a piece of an "answer", of a "question" (for the visitor's other tabs), or "typing"."""

    type: str
    id: str = ""
    at: int = 0
    text: str = ""
    more: bool = False
    last: bool = False
    to: str = ""  # id of the question that is answered
    failure: str = ""


def cut(frame: Frame) -> Iterator[str]:
    """Yield the frame as JSON, in as many pieces as its text needs."""
    for start in range(0, len(frame.text) or 1, PIECE):
        piece = frame.text[start : start + PIECE]
        more = start + PIECE < len(frame.text)
        yield encode(msgspec.structs.replace(frame, at=frame.at + start, text=piece, more=more))


def encode(frame: Frame) -> str:
    """Return one frame as JSON."""
    return msgspec.json.encode(frame).decode()


def whole_due(edits: int, length: int) -> bool:
    """Return whether this edit carries the whole text: every 20th does.

    From 400 edits on a long text takes twice as many for each doubling, so that the sum of all frames grows with the
    length and not with its square.
    """
    long = length > 4000
    return edits % (20 << (edits // 400).bit_length() * long) == 0


def common(before: str, after: str) -> int:
    """Return how many characters at the beginning of both are the same."""
    low, high = 0, min(len(before), len(after))
    if after.startswith(before):
        return len(before)
    while low < high:
        middle = (low + high + 1) // 2
        if before[low:middle] == after[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
