"""A scripted model server: what `llmock` cannot say, and strict about what it is asked.

Each request takes the next entry of the script. A request with a field the API does not know is answered 400, as the
real one does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web

from bot.adapter import Turn
from bot.config import ModelSettings
from bot.model import Completion, Model, create

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
COMPLETIONS = "/v1/completions"
_SAMPLING = {"temperature", "top_p", "model", "stream"}
_PENALTIES = {"frequency_penalty", "presence_penalty", "stream_options"}
FIELDS = {
    CHAT: {"messages", "max_tokens", "max_completion_tokens", *_SAMPLING, *_PENALTIES},
    RESPONSES: {"input", "store", "max_output_tokens", *_SAMPLING},
    COMPLETIONS: {"prompt", "stop", "max_tokens", *_SAMPLING, *_PENALTIES},
}


class Asked(msgspec.Struct):
    """One request as the server saw it."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def key(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")


class Say(msgspec.Struct):
    """One scripted answer. `blocks` are written one by one; then the connection is ended as `ending` says."""

    status: int = 200
    blocks: Sequence[bytes | None] = ()  # None: wait until the test has seen what came before
    content_type: str = "text/event-stream"
    headers: Mapping[str, str] = {}
    ending: str = "close"  # "close": properly; "reset": cut; "hang": silent until the client leaves


def event(value: object) -> bytes:
    """Write one event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def chunk(text: str | None = None, finish: str | None = None, **delta: object) -> bytes:
    """Write one chunk of the chat API."""
    content = {} if text is None else {"content": text}
    return event({"choices": [{"index": 0, "delta": {**content, **delta}, "finish_reason": finish}], "usage": None})


def usage(**numbers: object) -> bytes:
    """Write the last chunk of the chat API, with the usage."""
    return event({"choices": [], "usage": numbers})


DONE = b"data: [DONE]\n\n"


def chat(*texts: str) -> Say:
    """Answer by the chat API."""
    return Say(blocks=[*map(chunk, texts), chunk(finish="stop"), usage(prompt_tokens=7, completion_tokens=3), DONE])


def failure(status: int, message: str = "no", *, headers: Mapping[str, str] | None = None, **fields: object) -> Say:
    """Refuse as OpenAI does."""
    body = msgspec.json.encode({"error": {"message": message, **fields}})
    return Say(status, [body], "application/json", headers or {})


class ModelServer:
    """The server. `script` is consumed request by request; an unscripted request is answered "Hello"."""

    def __init__(self) -> None:
        self.script: list[Say] = []
        self.by_key: dict[str, Say] = {}  # answers that depend on the key
        self.by_model: dict[str, Say] = {}  # and on the model
        self.models: Say = Say(404, content_type="text/plain")
        self.asked: list[Asked] = []
        self.seen = asyncio.Event()
        self.left = asyncio.Event()  # a client went away in the middle of an answer
        self.url = ""

    def say(self, *answers: Say) -> None:
        """Script the next answers."""
        self.script += answers

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[ModelServer]:
        """Listen on a free port."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/{path:.*}", self._answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield self
        await runner.cleanup()

    async def _list(self, request: web.Request) -> web.StreamResponse:
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return await self._write(request, self.by_key.get(key, self.models))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        asked = Asked(request.path, headers, msgspec.json.decode(await request.read()))
        self.asked.append(asked)
        return await self._write(request, self._choose(asked))

    def _choose(self, asked: Asked) -> Say:
        if unknown := set(asked.body) - FIELDS.get(asked.path, set()):
            return failure(400, f"Unknown parameter: '{min(unknown)}'.", param=min(unknown))
        if asked.key in self.by_key:
            return self.by_key[asked.key]
        if asked.body["model"] in self.by_model:
            return self.by_model[asked.body["model"]]
        return self.script.pop(0) if self.script else chat("Hello")

    async def _write(self, request: web.Request, say: Say) -> web.StreamResponse:
        response = web.StreamResponse(status=say.status, headers={"Content-Type": say.content_type, **say.headers})
        await response.prepare(request)
        try:
            for block in say.blocks:
                if block is None:
                    await self.seen.wait()
                else:
                    await response.write(block)
            await _ENDINGS[say.ending](request)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise
        return response


async def _close(request: web.Request) -> None:
    pass


async def _reset(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()


async def _hang(request: web.Request) -> None:
    await asyncio.Event().wait()


_ENDINGS: dict[str, Callable[[web.Request], Any]] = {"close": _close, "reset": _reset, "hang": _hang}


KEY = "sk-test-4f9d8a"
QUESTION = (Turn("system", "Be kind."), Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "How are you?"))


class Models:
    """Makes models and closes them all."""

    def __init__(self) -> None:
        self._made: list[Model] = []

    def make(self, url: str, **settings: Any) -> Model:
        """Return a model of the server at `url`."""
        model = create(ModelSettings(**{"api_key": (KEY,), "model": "main", "timeout": 20, **settings}, base_url=url))
        self._made.append(model)
        return model

    async def close(self) -> None:
        """Close all models."""
        for model in self._made:
            await model.close()


async def read(completion: Completion) -> str:
    """Return the whole text."""
    return "".join([text async for text in completion])


async def read_until_failure(
    completion: Completion, seen: asyncio.Event | None = None
) -> tuple[str, type[Exception] | None]:
    """Return the text and the class of what ended it; set `seen` when the first of it has come."""
    text = ""
    try:
        async for more in completion:
            text += more
            if seen is not None:
                seen.set()
    except Exception as error:  # the test names the class it expects
        return text, type(error)
    return text, None
