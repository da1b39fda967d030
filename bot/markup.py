from collections.abc import Callable
import msgspec
class Dialect(msgspec.Struct, frozen=True):
    name: str
MARKDOWN = Dialect("markdown")
def characters(text: str) -> int:
    return len(text)
