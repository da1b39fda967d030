"""Parameters that some servers refuse: learned from the refusal, remembered for each model.

No table of models is needed: the server names the parameter it does not take, and is asked again without it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from bot.model.failures import Fault
from bot.model.wire import Body

RENAMED = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
OPTIONAL = (
    "stream_options",
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "safety_identifier",
    "store",
    "stop",
    "stream",
    "user",
)
_WORDS = {"store", "stop", "stream", "user"}  # they stand in ordinary sentences too: only quoted they are names
_NAMED = {name: re.compile(rf"[`'\"]{name}[`'\"]" if name in _WORDS else rf"\b{name}\b") for name in OPTIONAL}


def refused(fault: Fault, sent: Collection[str]) -> str:
    """Return the optional parameter among those sent that a 400 complains about, "" when it is about something else."""
    if fault.status not in (400, 422):
        return ""
    if fault.param in OPTIONAL and fault.param in sent:
        return fault.param
    return next((name for name in OPTIONAL if name in sent and _NAMED[name].search(fault.message)), "")


class Parameters:
    """What one model was found not to take: parameter -> its other name, or None when it is left out."""

    def __init__(self) -> None:
        self._changes: dict[str, str | None] = {}

    def apply(self, body: Body) -> Body:
        """Leave out or rename what the model does not take."""
        for name, other in self._changes.items():
            if name in body:
                value = body.pop(name)
                if other:
                    body[other] = value
        if "stream" not in body:
            body.pop("stream_options", None)
        return body

    def learn(self, fault: Fault, sent: Collection[str]) -> str:
        """Remember the parameter a fault complains about and return its name, "" when there is none."""
        name = refused(fault, sent)
        if name and name not in self._changes:
            other = RENAMED.get(name)
            self._changes[name] = None if other in self._changes else other
        return name
