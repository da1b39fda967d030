"""Answers that WeCom polls for: https://developer.work.weixin.qq.com/document/path/101031"""

from __future__ import annotations

import hashlib

import msgspec

from bot.adapter import Page


class Ticket(msgspec.Struct, omit_defaults=True):
    """`Chat.ticket` as JSON: the question's stream, and what a late answer needs."""

    stream: str = ""
    since: float = 0  # when the question came, in seconds since 1970
    member: str = ""
    url: str = ""


class Stream(msgspec.Struct, omit_defaults=True):
    """What a poll hears. One page fits into it, that of `key`; `posted` is the key of the one that came late."""

    since: float = 0
    queue: str = ""  # whose questions are answered one after the other
    taken: bool = False  # the question is stored
    content: str = ""
    key: str = ""
    finished: bool = False  # the content is whole
    closed: bool = False  # WeCom was told that nothing more comes here
    posted: str = ""

    def write(self, page: Page, last: bool) -> bool:
        """Show a page. False: it does not fit here any more."""
        if self.closed or (self.finished and self.key != page.key):
            return False
        self.content, self.key, self.finished = page.text, page.key, last
        return True

    def open(self, since: float, queue: str) -> None:
        """Begin, unless it has begun."""
        self.since, self.queue = self.since or since, queue

    def close(self) -> Stream:
        """Note that nobody will ask any more, unless it is finished. Return what it is by then."""
        self.closed = not self.finished
        return self

    def take(self) -> None:
        """Note that the question is stored."""
        self.taken = True

    def post(self, key: str) -> None:
        """Note that a page came late."""
        self.posted = key


def stream_id(message: str) -> str:
    """Return the id of a message's stream; a redelivery gets the same one."""
    return hashlib.sha256(message.encode()).hexdigest()[:32]


def queue(chat: str, member: str) -> str:
    """Name whose questions are answered one after the other."""
    return hashlib.sha256(f"{chat}\n{member}".encode()).hexdigest()[:32]
