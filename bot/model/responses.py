"""The Responses API.

https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from typing import Any

import msgspec

from bot.model.contract import Usage, utf8_size
from bot.model.failures import Fault, read_error
from bot.model.wire import Body, Format, Question, with_pictures


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    reason: str | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None

    def usage(self) -> Usage:
        cached = self.input_tokens_details.cached_tokens if self.input_tokens_details else None
        return Usage("", self.input_tokens or 0, cached or 0, self.output_tokens or 0)


class _Part(msgspec.Struct):
    type: str = ""
    text: str = ""


class _Item(msgspec.Struct):
    type: str = ""
    content: list[_Part] | None = None


class _Response(msgspec.Struct):
    status: str | None = None
    output: list[_Item] = []
    usage: _Usage | None = None
    incomplete_details: _Details | None = None
    error: Any = None


class _Event(msgspec.Struct):
    type: str = ""  # "": not an event but the whole response, from a server that does not stream
    delta: Any = None
    response: _Response | None = None


_decode = msgspec.json.Decoder(_Event).decode
_decode_whole = msgspec.json.Decoder(_Response).decode

ENDS = {"response.completed", "response.incomplete", "response.failed", "response.cancelled"}


class EventReader:
    """Reads the events of a response, or one whole response."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.finish = ""
        self.refused = False
        self.unseen = 0
        self._begun = False

    def event(self, data: bytes) -> str:
        """Return the text of one event."""
        if data == b"[DONE]":
            return ""
        event = _decode(data)
        if event.type == "response.output_text.delta":
            self._begun = True
            return msgspec.convert(event.delta, str)
        if event.type in ENDS and event.response is not None:
            return self._end(event.response)
        return self._other(event, data)

    def _other(self, event: _Event, data: bytes) -> str:
        if event.type.startswith("response.refusal."):
            self.refused = True
        elif event.type.startswith("response.reasoning_text.") and isinstance(event.delta, str):
            self.unseen += utf8_size(event.delta)
        elif event.type == "error":
            raise read_error({**msgspec.json.decode(data, type=dict[str, Any]), "type": ""})
        elif not event.type:
            return self._whole(data)
        return ""

    def _whole(self, data: bytes) -> str:
        response = _decode_whole(data)
        if response.status is None:  # {"error": ...} without any frame
            raise read_error(msgspec.json.decode(data))
        return self._end(response)

    def _end(self, response: _Response) -> str:
        if response.status in ("failed", "cancelled"):
            raise read_error(response.error) if response.error else Fault(0, response.status)
        if response.usage is not None:
            self.usage = response.usage.usage()
        reason = response.incomplete_details.reason if response.incomplete_details else None
        parts = [part for item in response.output if item.type == "message" for part in item.content or ()]
        self.refused |= reason == "content_filter" or any(part.type == "refusal" for part in parts)
        self.finish = "length" if response.status == "incomplete" else "stop"
        return "" if self._begun else "".join(part.text for part in parts if part.type == "output_text")


def _text(text: str) -> Body:
    return {"type": "input_text", "text": text}


def _picture(url: str) -> Body:
    return {"type": "input_image", "image_url": url}


def body(question: Question) -> Body:
    """Put a question into the words of the API; nothing is kept on the server."""
    request: Body = {
        "model": question.model,
        "input": with_pictures(question, _text, _picture),
        "stream": True,
        "store": False,
        **question.chosen("temperature", "top_p"),
    }
    if limit := question.options.get("max_tokens"):
        request["max_output_tokens"] = limit
    if question.person:
        request["safety_identifier"] = question.person
    return request


RESPONSES = Format("/responses", body, EventReader)
