from collections.abc import Callable

import msgspec


class Dialect(msgspec.Struct, frozen=True):
    name: str


MARKDOWN = Dialect("markdown")
PLAIN = Dialect("plain")


def characters(text: str) -> int:
    return len(text)


def render(source: str, dialect: Dialect) -> str:
    return source


def cut(
    source: str, limit: int, dialect: Dialect, measure: Callable[[str], int] = characters
) -> tuple[str, str]:
    if measure(source) <= limit:
        return source, ""
    at = max(source.rfind(" ", 0, limit), source.rfind("\n", 0, limit))
    at = at if at > 0 else limit
    return source[:at], source[at:].lstrip()


def pages(source: str, limit: int, dialect: Dialect, measure: Callable[[str], int] = characters) -> list[str]:
    found = []
    while source:
        head, source = cut(source, limit, dialect, measure)
        found.append(head)
    return found
