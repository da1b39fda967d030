"""The Chat Completions API, which nearly every compatible server speaks.

https://platform.openai.com/docs/api-reference/chat-streaming
"""

from __future__ import annotations

from typing import Any

import msgspec

from bot.model.contract import Usage, utf8_size
from bot.model.failures import Fault, read_error
from bot.model.wire import Body, Format, Question, with_pictures


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    prompt_cache_hit_tokens: int | None = None  # DeepSeek
    cached_tokens: int | None = None  # Moonshot

    def usage(self) -> Usage:
        details = self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None
        cached = details or self.prompt_cache_hit_tokens or self.cached_tokens or 0
        return Usage("", self.prompt_tokens or 0, cached, self.completion_tokens or 0)


class _Part(msgspec.Struct):  # Mistral's reasoning models send a list of these
    type: str = "text"
    text: str = ""


class _Delta(msgspec.Struct):
    content: str | list[_Part] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None  # DeepSeek, Qwen, vLLM: thoughts, not for the person
    reasoning: str | None = None  # OpenRouter: the same


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None  # the whole answer, from a server that does not stream
    text: str | None = None  # the legacy API
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    object: str | None = None  # "error": an older vLLM, with the error's fields beside it
    message: str | None = None


_decode = msgspec.json.Decoder(_Chunk).decode

CUT = {"length", "max_tokens", "model_length", "model_context_window_exceeded"}
REFUSED = {"content_filter", "sensitive", "safety", "prohibited_content", "recitation"}
BROKEN = {"insufficient_system_resource", "network_error", "error", "abort"}  # DeepSeek, Zhipu, OpenRouter, vLLM


class ChunkReader:
    """Reads the chunks of an answer, or one whole answer, of the chat and of the legacy API."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.finish = ""
        self.refused = False
        self.unseen = 0

    def event(self, data: bytes) -> str:
        """Return the text of one chunk."""
        if data == b"[DONE]":
            self.finish = self.finish or "stop"  # some servers send no finish reason
            return ""
        chunk = _decode(data)
        if chunk.error is not None or chunk.object == "error":
            raise read_error(msgspec.json.decode(data))
        if chunk.usage is not None:
            self.usage = chunk.usage.usage()
        return self._choice(chunk.choices[0]) if chunk.choices else ""

    def _choice(self, choice: _Choice) -> str:
        delta = choice.delta or choice.message
        text = choice.text or ""
        if delta is not None:
            text = self._delta(delta)
        if choice.finish_reason:
            self._end(choice.finish_reason)
        return text

    def _delta(self, delta: _Delta) -> str:
        if delta.refusal:
            self.refused = True
        if thought := delta.reasoning_content or delta.reasoning:
            self.unseen += utf8_size(thought)
        content = delta.content or ""
        return content if isinstance(content, str) else "".join(p.text for p in content if p.type == "text")

    def _end(self, reason: str) -> None:
        if reason in BROKEN:
            raise Fault(503, reason)
        self.refused |= reason in REFUSED
        self.finish = "length" if reason in CUT else "stop"


def _text(text: str) -> Body:
    return {"type": "text", "text": text}


def _picture(url: str) -> Body:
    return {"type": "image_url", "image_url": {"url": url}}


def body(question: Question) -> Body:
    """Put a question into the words of the API."""
    request: Body = {
        "model": question.model,
        "messages": with_pictures(question, _text, _picture),
        "stream": True,
        "stream_options": {"include_usage": True},
        **question.chosen("temperature", "top_p", "frequency_penalty", "presence_penalty"),
    }
    if limit := question.options.get("max_tokens"):
        request["max_completion_tokens" if question.official else "max_tokens"] = limit
    if question.person:
        request["safety_identifier"] = question.person
    return request


CHAT = Format("/chat/completions", body, ChunkReader)
