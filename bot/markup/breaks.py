"""Where a text may be broken, and how well: after a sentence, a word, a character."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

BLOCK, LINE, SENTENCE, WORD, CHARACTER = 0, 10, 20, 30, 40  # the lower, the better; blocks count their depth

_CLOSING = "，。、；：？！）】》〉」』〕”’…·ー"  # never at the beginning of a line
_OPENING = "（【《〈「『〔“‘"  # never at its end
_SENTENCE = re.compile(rf"[.!?…][\"')\]”’]*\s+|[。！？；…]+[”’」』）】》]*(?![{_CLOSING}])")
_WORD = re.compile(
    rf"\s+|(?![{_OPENING}])[\u3000-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uff65{_CLOSING}](?![{_CLOSING}])"
    r"|.(?=[\u3040-\u30ff\u3400-\u9fff])(?<![\w(（【《〈「『〔“‘\u3400-\u9fff])"
)
_LONGEST = 32  # code points of one visible character; whatever is longer may be broken


def breaks(text: str, finest: int = CHARACTER) -> Iterator[tuple[int, int]]:
    """Yield (offset, rank) for each place inside of a text, and for its end, in order."""
    if finest < SENTENCE:
        return
    ranks = dict.fromkeys((found.end() for found in _WORD.finditer(text)), WORD)
    ranks.update(dict.fromkeys((found.end() for found in _SENTENCE.finditer(text)), SENTENCE))
    plain, begin = text.isascii(), 0
    for offset in range(1, len(text) + 1) if finest == CHARACTER else sorted(ranks):
        if plain or offset == len(text) or not _joined(text, offset) or offset - begin >= _LONGEST:
            begin = offset
            yield offset, ranks.get(offset, CHARACTER)


def _joined(text: str, offset: int) -> bool:
    """Tell whether the characters around an offset are shown as one.

    The common cases of https://www.unicode.org/reports/tr29/#Grapheme_Cluster_Boundaries
    """
    left, right = text[offset - 1], text[offset]
    if right < "\u0300":
        return left == "\u200d"
    return (
        _extends(right)
        or left == "\u200d"
        or ("\ud800" <= left <= "\udbff" and "\udc00" <= right <= "\udfff")
        or ("\u1100" <= left <= "\u11ff" and "\u1160" <= right <= "\u11ff")
        or (_is_flag(left) and _is_flag(right) and _flags_before(text, offset) % 2 == 1)
    )


def _extends(character: str) -> bool:
    return (
        unicodedata.category(character)[0] == "M"
        or character in "\u200d\ufe0e\ufe0f"
        or "\U0001f3fb" <= character <= "\U0001f3ff"
        or "\U000e0020" <= character <= "\U000e007f"
    )


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _flags_before(text: str, offset: int) -> int:
    run = re.search("[\U0001f1e6-\U0001f1ff]*$", text[max(0, offset - 2 * _LONGEST) : offset])
    return len(run[0]) if run else 0
