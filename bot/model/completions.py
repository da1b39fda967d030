"""The legacy Completions API: one prompt, put together from a template, is continued.

https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bot.adapter import Turn
from bot.errors import NoPictures
from bot.model.chat import ChunkReader
from bot.model.wire import Body, Format, Question

_FIELD = re.compile(r"\{(history|message)\}")


def labels(template: str) -> tuple[str, str]:
    """Return what stands before the person's words and before the bot's: "user:" and "assistant:"."""
    before, _, after = template.partition("{message}")
    return before.rpartition("{history}")[2].strip(), after.strip()


def prompt(template: str, turns: Sequence[Turn]) -> str:
    """Fill the template; earlier turns are written with its own labels, the system prompt on top without one."""
    user, assistant = labels(template)
    marks = {"system": "", "user": f"{user} ".lstrip(), "assistant": f"{assistant} ".lstrip()}
    *earlier, last = turns or [Turn("user", "")]
    fields = {"history": "".join(f"{marks[turn.role]}{turn.content}\n" for turn in earlier), "message": last.content}
    return _FIELD.sub(lambda found: fields[found[1]], template)


def body(question: Question) -> Body:
    """Put a question into the words of the API; the answer ends where the person's next line would begin.

    Raises NoPictures when there are some.
    """
    if question.pictures:
        raise NoPictures("the legacy API takes text only")
    user, _ = labels(question.template)
    request: Body = {
        "model": question.model,
        "prompt": prompt(question.template, question.turns),
        "stream": True,
        "stream_options": {"include_usage": True},
        **question.chosen("temperature", "top_p", "frequency_penalty", "presence_penalty", "max_tokens"),
    }
    if user:
        request["stop"] = [f"\n{user}"]
    if question.person:
        request["user"] = question.person
    return request


COMPLETIONS = Format("/completions", body, ChunkReader)
