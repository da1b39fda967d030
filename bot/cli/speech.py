"""The operator's language: Chinese or English."""

from __future__ import annotations

import os
from functools import cache

from dotenv import dotenv_values


@cache
def language() -> str:
    """Return "zh" or "en": BOT_LANGUAGE where it chooses, else the terminal's."""
    chosen = os.environ.get("BOT_LANGUAGE") or dotenv_values(".env", interpolate=False).get("BOT_LANGUAGE")
    if chosen not in ("zh", "en"):
        chosen = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG") or ""
    return "zh" if chosen.startswith("zh") else "en"


def say(english: str, chinese: str) -> str:
    """Return the sentence in the operator's language."""
    return chinese if language() == "zh" else english
