"""A model behind an OpenAI-compatible server: what all of its answers share."""

from __future__ import annotations

import asyncio
import base64
import difflib
import functools
import importlib
import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from bot.adapter import Finding, Turn
from bot.config import ModelSettings
from bot.errors import BadRequest, ModelError, NoSuchModel, Overloaded, TimedOut
from bot.model.answer import Answer
from bot.model.breaker import Breaker
from bot.model.chat import CHAT
from bot.model.completions import COMPLETIONS
from bot.model.contract import Picture, estimate_prompt
from bot.model.failures import Broken, Fault, classify
from bot.model.keys import KeyRing
from bot.model.parameters import Parameters
from bot.model.responses import RESPONSES
from bot.model.stream import Stream
from bot.model.wire import Question
from bot.signing import digest

if TYPE_CHECKING:
    from bot.model.transport import Response, Transport

FORMATS = {"chat": CHAT, "responses": RESPONSES, "completions": COMPLETIONS}
OPTIONS = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "max_tokens")


class _Entry(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Entry]


class OpenAIModel:
    """Answers with `settings.model`, and with the fallback models when it fails."""

    def __init__(self, settings: ModelSettings) -> None:
        self.name = settings.model
        self.settings = settings
        self.models = tuple(dict.fromkeys((settings.model, *settings.fallback_models)))
        self.keys = KeyRing(settings.api_key)
        self.breakers: defaultdict[str, Breaker] = defaultdict(Breaker)
        self._parameters: defaultdict[str, Parameters] = defaultdict(Parameters)
        self._format = FORMATS[settings.api]
        self._official = is_openai(settings.base_url)
        self._options = {name: value for name in OPTIONS if (value := getattr(settings, name)) is not None}
        self._transport: Transport | None = None
        self._opening = asyncio.Lock()
        threading.Thread(target=_import_transport, name="model").start()

    def ask(self, turns: Sequence[Turn], pictures: Sequence[Picture] = (), person: str = "") -> Answer:
        """Begin an answer; the request leaves when it is iterated."""
        question = Question(
            self.name,
            turns,
            pictures=[_data_url(picture) for picture in pictures],
            options=self._options,
            person=self._pseudonym(person),
            official=self._official,
            template=self.settings.prompt_template,
        )
        return Answer(self, question)

    async def begin(self, question: Question, key: str) -> Stream:
        """Send a question once, or again without the parameters the server refuses. Raises ModelError."""
        parameters = self._parameters[question.model]
        while True:
            body = parameters.apply(self._format.body(question))
            since = asyncio.get_running_loop().time()
            try:
                response = await self._post(_encode(body), key)
            except Fault as fault:
                if not parameters.learn(fault, body):
                    raise self._classify(question, fault) from None
            else:
                return Stream(
                    response,
                    self._format.reader(),
                    timeout=self.settings.timeout,
                    since=since,
                    prompt=functools.partial(estimate_prompt, question.turns, len(question.pictures)),
                    classify=functools.partial(self._classify, question),
                )

    def order(self) -> list[str]:
        """Return the models in the order to ask them now: those that keep failing come last."""
        return sorted(self.models, key=lambda name: self.breakers[name].open)

    async def check(self) -> list[Finding]:
        """Try each key, and look for each model among those the server lists; where it lists none, ask each."""
        findings: list[Finding] = []
        names: set[str] = set()
        for number, key in enumerate(self.keys.keys, 1):
            which = f"key {number} of {len(self.keys.keys)}" if key else "without a key"
            try:
                names |= await self._listed(key)
                findings.append(Finding(True, f"model server: reached, {which} is accepted"))
            except NoSuchModel:
                return [await self._tried(name) for name in self.models]
            except ModelError as error:
                findings.append(Finding(False, f"model server, {which}: {error}", error.hint))
        if names:
            findings += [_found(name, names) for name in self.models]
        return findings

    async def close(self) -> None:
        """Close all connections."""
        if self._transport is not None:
            await self._transport.close()

    def _classify(self, question: Question, fault: Fault) -> ModelError:
        return classify(fault, self.settings.api_key, bool(question.pictures))

    async def _post(self, body: bytes, key: str) -> Response:
        transport = await self._open()
        try:
            async with asyncio.timeout(self.settings.timeout):
                response = await transport.post(self._format.path, body, key)
        except TimeoutError:
            raise TimedOut(f"silent for {self.settings.timeout:g} s") from None
        except Broken as error:
            raise Overloaded(f"no connection ({error})") from None
        if "text/html" in response.content_type:
            await response.close()
            raise NoSuchModel("the server answered with a web page: is OPENAI_BASE_URL complete?")
        return response

    async def _listed(self, key: str) -> set[str]:
        """Return the names of the models; none when the server does not list them."""
        transport = await self._open()
        try:
            async with asyncio.timeout(self.settings.timeout):
                listing = await transport.get("/models", key)
            return {entry.id for entry in msgspec.json.decode(listing, type=_Models).data}
        except TimeoutError:
            raise TimedOut(f"silent for {self.settings.timeout:g} s") from None
        except Broken as error:
            raise Overloaded(f"no connection ({error})") from None
        except Fault as fault:
            raise classify(fault, self.settings.api_key) from None
        except msgspec.MsgspecError:
            raise NoSuchModel("the list of models is not one: is OPENAI_BASE_URL complete?") from None

    async def _tried(self, name: str) -> Finding:
        question = Question(name, [Turn("user", "Hello")], template=self.settings.prompt_template)
        try:
            stream = await self.begin(question, self.keys.pick(name)[0])
        except ModelError as error:
            return Finding(False, f"model {name}: {error}", error.hint)
        await stream.close()
        return Finding(True, f"model {name}: answers")

    async def _open(self) -> Transport:
        if self._transport is None:
            async with self._opening:
                if self._transport is None:
                    self._transport = await asyncio.to_thread(_connect, self.settings)
        return self._transport

    def _pseudonym(self, person: str) -> str:
        """Return what OpenAI is told of the person: a keyed hash, so that a phone number cannot be guessed from it."""
        if not person or not self._official:
            return ""
        return digest(self.keys.keys[0] or self.name, person.encode("utf-8", "surrogatepass"))


def is_openai(base_url: str) -> bool:
    """Tell OpenAI itself from compatible servers, which may refuse fields they do not know."""
    host = urlsplit(base_url).hostname or "api.openai.com"
    return host == "api.openai.com" or host.endswith(".api.openai.com")


def _import_transport() -> None:
    importlib.import_module("bot.model.transport")


def _connect(settings: ModelSettings) -> Transport:
    """Open the transport. It imports the SDK and reads the CA certificates: not on the event loop."""
    from bot.model.transport import Transport

    return Transport(settings)


def _encode(body: dict[str, object]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:
        raise BadRequest("the conversation holds half a character (a lone surrogate)") from None


def _data_url(picture: Picture) -> str:
    return f"data:{picture.mime};base64,{base64.b64encode(picture.data).decode()}"


def _found(name: str, names: set[str]) -> Finding:
    if name in names or f"{name}:latest" in names:  # Ollama's names carry a tag
        return Finding(True, f"model {name}: there")
    close = ", ".join(difflib.get_close_matches(name, names, 3, 0.4)) or ", ".join(sorted(names)[:5])
    return Finding(False, f"model {name}: the server does not list it", f"set OPENAI_MODEL; it lists {close}")
