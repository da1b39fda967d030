"""The three APIs: what is sent, what is read, and what is left out once a server refused it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot import errors
from bot.adapter import Turn
from bot.model import Picture, Usage
from bot.model.chat import CHAT
from bot.model.client import FORMATS, OpenAIModel, is_openai
from bot.model.completions import COMPLETIONS, labels, prompt
from bot.model.failures import Fault, classify
from bot.model.parameters import OPTIONAL, Parameters
from bot.model.responses import RESPONSES
from bot.model.stream import Stream
from bot.model.wire import Format, Question
from tests.model_server import (
    DONE,
    QUESTION,
    Models,
    ModelServer,
    Say,
    chat,
    chunk,
    event,
    failure,
    read,
    read_until_failure,
)

PICTURE = Picture("image/png", b"\x89PNG")
URL = "data:image/png;base64," + base64.b64encode(PICTURE.data).decode()
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "frequency_penalty": 0.1, "presence_penalty": -0.2, "max_tokens": 99}
TURNS = [{"role": turn.role, "content": turn.content} for turn in QUESTION]


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer().serve() as server:
        yield server


@pytest.fixture
async def models() -> AsyncIterator[Models]:
    models = Models()
    yield models
    await models.close()


def written(format: Format, **question: Any) -> dict[str, Any]:
    """Return the body as it goes over the wire."""
    body = format.body(Question("main", **{"turns": QUESTION, **question}))
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(body))
    return decoded


# --- what is sent ---


def test_chat_request() -> None:
    assert written(CHAT) == {
        "model": "main",
        "messages": TURNS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_responses_request_leaves_nothing_on_the_server() -> None:
    assert written(RESPONSES) == {"model": "main", "input": TURNS, "stream": True, "store": False}


def test_completions_request() -> None:
    body = written(COMPLETIONS, template="{history}user: {message}\nassistant:")
    assert body.pop("prompt") == "Be kind.\nuser: Hi\nassistant: Hello\nuser: How are you?\nassistant:"
    assert body == {
        "model": "main",
        "stop": ["\nuser:"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    ("format", "official", "limit", "names"),
    [
        (CHAT, False, "max_tokens", set(SAMPLING)),
        (CHAT, True, "max_completion_tokens", set(SAMPLING)),
        (RESPONSES, True, "max_output_tokens", {"temperature", "top_p", "max_tokens"}),
        (COMPLETIONS, False, "max_tokens", set(SAMPLING)),
    ],
)
def test_sampling_is_sent_only_when_set(format: Format, official: bool, limit: str, names: set[str]) -> None:
    plain = written(format, official=official)
    body = written(format, official=official, options=SAMPLING)
    expected = {limit if name == "max_tokens" else name: SAMPLING[name] for name in names}
    assert {name: value for name, value in body.items() if name not in plain} == expected


@pytest.mark.parametrize(
    ("format", "messages", "parts"),
    [
        (
            CHAT,
            "messages",
            [{"type": "text", "text": "How are you?"}, {"type": "image_url", "image_url": {"url": URL}}],
        ),
        (
            RESPONSES,
            "input",
            [{"type": "input_text", "text": "How are you?"}, {"type": "input_image", "image_url": URL}],
        ),
    ],
)
def test_pictures_belong_to_the_last_turn_of_the_user(
    format: Format, messages: str, parts: list[dict[str, Any]]
) -> None:
    body = written(format, turns=[*QUESTION, Turn("assistant", "Well")], pictures=[URL])
    sent = body[messages]
    assert sent[:3] == TURNS[:3]
    assert sent[3] == {"role": "user", "content": parts}
    assert sent[4] == {"role": "assistant", "content": "Well"}


@pytest.mark.parametrize("turns", [[Turn("user", " ")], []])
def test_a_picture_without_words(turns: list[Turn]) -> None:
    body = written(CHAT, turns=turns, pictures=[URL])
    assert body["messages"] == [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL}}]}]


async def test_pictures_are_sent_as_data_urls(server: ModelServer, models: Models) -> None:
    await read(models.make(server.url).ask(QUESTION, [PICTURE]))
    assert server.asked[0].body["messages"][-1]["content"][1]["image_url"]["url"] == URL


async def test_no_pictures_is_raised_at_once(server: ModelServer, models: Models) -> None:
    server.say(failure(400, "unknown variant `image_url`, expected `text`"))
    with pytest.raises(errors.NoPictures):
        await read(models.make(server.url, fallback_models=("other",)).ask(QUESTION, [PICTURE]))
    assert len(server.asked) == 1


async def test_the_legacy_api_takes_no_pictures(server: ModelServer, models: Models) -> None:
    with pytest.raises(errors.NoPictures):
        await read(models.make(server.url, api="completions").ask(QUESTION, [PICTURE]))
    assert not server.asked


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{message}", "How are you?"),
        ("{history}Q: {message}\nA:", "Be kind.\nQ: Hi\nA: Hello\nQ: How are you?\nA:"),
        ("<s>{history}{message} ", "<s>Be kind.\nHi\nHello\nHow are you? "),
        ('{"x"} {message} {0}', '{"x"} How are you? {0}'),
    ],
)
def test_prompt_templates(template: str, expected: str) -> None:
    assert prompt(template, QUESTION) == expected


def test_a_message_that_looks_like_a_field_stays_as_it_is() -> None:
    turns = [Turn("user", "{message}"), Turn("user", "{history} {0}")]
    assert prompt("{history}> {message}", turns) == "> {message}\n> {history} {0}"
    assert labels("{history}> {message}") == (">", "")


@pytest.mark.parametrize(
    ("url", "official"),
    [
        ("", True),
        ("https://api.openai.com/v1", True),
        ("https://eu.api.openai.com/v1", True),
        ("https://api.deepseek.com", False),
        ("https://api.openai.com.evil.example/v1", False),
        ("http://127.0.0.1:11434/v1", False),
    ],
)
def test_which_server_is_openai(url: str, official: bool) -> None:
    assert is_openai(url) is official


async def test_openai_is_told_a_pseudonym_and_nobody_else_anything(models: Models) -> None:
    def told(url: str, person: str) -> str:
        model = models.make(url)
        assert isinstance(model, OpenAIModel)
        question = model.ask(QUESTION, person=person).question
        return question.person

    name = told("https://api.openai.com/v1", "+4915112345678")
    assert name == told("https://api.openai.com/v1", "+4915112345678")
    assert name != told("https://api.openai.com/v1", "+4915112345679")
    assert len(name) == 64  # the most that is allowed
    assert "15112345678" not in name
    assert told("https://example.com/v1", "+4915112345678") == ""
    assert told("https://api.openai.com/v1", "") == ""
    assert written(CHAT, person=name)["safety_identifier"] == name
    assert written(RESPONSES, person=name)["safety_identifier"] == name
    assert written(COMPLETIONS, person=name)["user"] == name
    assert not {"safety_identifier", "user"} & set(written(CHAT))


async def test_half_a_character_is_no_crash(server: ModelServer, models: Models) -> None:
    with pytest.raises(errors.BadRequest):
        await read(models.make(server.url).ask([Turn("user", "\ud83d")]))


# --- what is read ---

ANSWER = {"id": "1", "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
RESPONSE = {
    "id": "1",
    "status": "completed",
    "usage": {"input_tokens": 7, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 2}},
    "output": [
        {"type": "reasoning", "summary": []},
        {"type": "message", "content": [{"type": "output_text", "text": "Hel"}, {"type": "output_text", "text": "lo"}]},
    ],
}


def response_event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\n".encode() + event({"type": kind, "sequence_number": 1, **fields})


WHOLE = [
    ("chat", {**ANSWER, "choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]}, 0),
    ("completions", {**ANSWER, "choices": [{"text": " Hello", "finish_reason": "stop"}]}, 0),
    ("responses", {**RESPONSE, "object": "response", "error": None}, 2),
]


@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
@pytest.mark.parametrize(("api", "answer", "cached"), WHOLE)
async def test_a_server_that_does_not_stream(
    server: ModelServer, models: Models, api: str, answer: dict[str, Any], cached: int, content_type: str
) -> None:
    data = msgspec.json.encode(answer)
    server.say(Say(blocks=[b"\n" + data[:9], data[9:]], content_type=content_type))
    completion = models.make(server.url, api=api).ask(QUESTION)
    assert await read(completion) == "Hello"
    assert completion.usage == Usage("main", 7, cached, 3, False)
    assert completion.finish == "stop"


@pytest.mark.parametrize("api", list(FORMATS))
async def test_an_error_with_status_200(server: ModelServer, models: Models, api: str) -> None:
    server.say(Say(blocks=[b'{"error": {"message": "no", "code": "insufficient_quota"}}']))
    with pytest.raises(errors.QuotaSpent):
        await read(models.make(server.url, api=api).ask(QUESTION))


async def test_completions_are_read(server: ModelServer, models: Models) -> None:
    texts = [event({"choices": [{"text": text, "index": 0, "finish_reason": None}]}) for text in (" Hel", "lo")]
    end = event({"choices": [{"text": "", "finish_reason": "length"}], "usage": ANSWER["usage"]})
    server.say(Say(blocks=[*texts, end, DONE]))
    completion = models.make(server.url, api="completions").ask(QUESTION)
    assert await read(completion) == "Hello"
    assert completion.finish == "length"
    assert completion.usage == Usage("main", 7, 0, 3, False)


async def test_responses_are_read(server: ModelServer, models: Models) -> None:
    server.say(
        Say(
            blocks=[
                response_event("response.created", response={**RESPONSE, "status": "in_progress", "usage": None}),
                response_event("response.reasoning_text.delta", delta="hm"),
                response_event("response.output_text.delta", delta="Hel"),
                response_event("response.output_text.delta", delta="lo"),
                response_event("response.function_call_arguments.delta", delta="{}"),
                response_event("response.completed", response=RESPONSE),
            ]
        )
    )
    completion = models.make(server.url, api="responses").ask(QUESTION)
    assert await read(completion) == "Hello"
    assert completion.usage == Usage("main", 7, 2, 3, False)
    assert completion.finish == "stop"


def ended(status: str, **fields: Any) -> bytes:
    return response_event(f"response.{status}", response={**RESPONSE, "output": [], "status": status, **fields})


TEXT = response_event("response.output_text.delta", delta="Hello")
REFUSAL = response_event("response.refusal.delta", delta="I cannot")
ENDS: list[tuple[list[bytes], str, type[Exception] | None]] = [
    ([ended("incomplete", incomplete_details={"reason": "max_output_tokens"})], "length", None),
    ([ended("incomplete", incomplete_details={"reason": "content_filter"})], "", errors.ContentRefused),
    ([REFUSAL, ended("completed")], "", errors.ContentRefused),
    ([ended("failed", error={"code": "server_error", "message": "oops"})], "", errors.Overloaded),
    ([ended("failed", error={"code": "rate_limit_exceeded", "message": "slow"})], "", errors.RateLimited),
    ([response_event("error", code="insufficient_quota", message="out", param=None)], "", errors.QuotaSpent),
    ([], "", errors.Interrupted),
    ([response_event("response.output_text.delta", delta=7)], "", errors.Interrupted),
    ([DONE], "", errors.Interrupted),  # the event that ends a response did not come
]


@pytest.mark.parametrize(("blocks", "finish", "error"), ENDS)
async def test_the_end_of_a_response(
    server: ModelServer, models: Models, blocks: list[bytes], finish: str, error: type[Exception] | None
) -> None:
    server.say(Say(blocks=[TEXT, None, *blocks]))
    completion = models.make(server.url, api="responses").ask(QUESTION)
    assert await read_until_failure(completion, server.seen) == ("Hello", error)
    assert completion.finish == finish


@pytest.mark.parametrize(
    ("numbers", "cached"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 3, "prompt_cache_hit_tokens": 5}, 5),
        ({"prompt_tokens": 7, "completion_tokens": 3, "cached_tokens": 4}, 4),
        ({"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": None}, 0),
        ({"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"audio_tokens": 0}}, 0),
    ],
)
async def test_cached_tokens_by_any_name(
    server: ModelServer, models: Models, numbers: dict[str, Any], cached: int
) -> None:
    server.say(Say(blocks=[chunk("Hi", "stop"), event({"choices": [], "usage": numbers}), DONE]))
    completion = models.make(server.url).ask(QUESTION)
    await read(completion)
    assert completion.usage == Usage("main", 7, cached, 3, False)


async def test_parts_of_thought_are_not_shown(server: ModelServer, models: Models) -> None:
    thought = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Hi"}]
    server.say(Say(blocks=[chunk(content=thought), chunk(finish="stop")]))
    assert await read(models.make(server.url).ask(QUESTION)) == "Hi"


PIECES = [
    b"data: ",
    b"data:",
    b"\n\n",
    b"\r\n",
    b": comment\n",
    b"[DONE]",
    b'{"choices": [',
    b"]}",
    b'{"delta": {"content": "Hi"}, "finish_reason": null}',
    b'{"finish_reason": "stop"}',
    b'{"error": {"code": 429}}',
    b'{"type": "response.output_text.delta", "delta": "Hi"}',
    b'{"type": "response.completed", "response": {"status": "completed"}}',
    b'{"type": "error"}',
    b"null",
    "喜".encode(),
]
BLOCKS = st.lists(st.lists(st.sampled_from(PIECES) | st.binary(), min_size=1).map(b"".join))


class Recorded:
    """A response whose blocks are known."""

    def __init__(self, blocks: list[bytes]) -> None:
        self._blocks = iter([block for block in blocks if block])

    async def read(self) -> bytes:
        return next(self._blocks, b"")

    async def close(self) -> None:
        pass


@given(blocks=BLOCKS, api=st.sampled_from(sorted(FORMATS)))
async def test_any_bytes_end_in_an_answer_or_a_model_error(blocks: list[bytes], api: str) -> None:
    reader = FORMATS[api].reader()
    stream = Stream(Recorded(blocks), reader, timeout=60, since=0, prompt=int, classify=classify)
    text = ""
    try:
        while more := await stream.read():
            text += more
        assert text
        assert stream.finish
    except errors.ModelError:
        pass
    await stream.close()
    assert stream.usage().completion >= 0


# --- what a server refuses ---

REFUSALS = [
    failure(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", param="max_tokens"),
    failure(400, "'temperature' does not support 0.5 with this model.", param="temperature"),
    Say(422, [b'{"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}]}']),
]


async def test_refused_parameters_are_left_out_from_then_on(server: ModelServer, models: Models) -> None:
    server.say(*REFUSALS)
    model = models.make(server.url, temperature=0.5, max_tokens=99, top_p=0.9)
    assert await read(model.ask(QUESTION)) == "Hello"
    assert await read(model.ask(QUESTION)) == "Hello"
    assert len(server.asked) == 5
    for asked in server.asked[3:]:
        assert asked.body["max_completion_tokens"] == 99
        assert asked.body["top_p"] == 0.9
        assert not {"max_tokens", "temperature", "stream_options"} & set(asked.body)


async def test_what_one_model_refuses_another_is_still_told(server: ModelServer, models: Models) -> None:
    server.say(REFUSALS[1], failure(404), chat("other"))
    assert await read(models.make(server.url, temperature=0.5, fallback_models=("other",)).ask(QUESTION)) == "other"
    assert [asked.body.get("temperature") for asked in server.asked] == [0.5, None, 0.5]


async def test_a_model_that_may_not_stream_is_asked_without(server: ModelServer, models: Models) -> None:
    whole = Say(blocks=[msgspec.json.encode(WHOLE[0][1])], content_type="application/json")
    server.say(failure(400, "Your organization must be verified to stream this model.", param="stream"), whole)
    assert await read(models.make(server.url).ask(QUESTION)) == "Hello"
    assert not {"stream", "stream_options"} & set(server.asked[1].body)


async def test_an_unknown_refusal_is_a_bad_request(server: ModelServer, models: Models) -> None:
    server.say(failure(400, "the messages of the user must alternate, stop it", param="messages"))
    with pytest.raises(errors.BadRequest):
        await read(models.make(server.url).ask(QUESTION))
    assert len(server.asked) == 1


@pytest.mark.parametrize("name", OPTIONAL)
@pytest.mark.parametrize("message", ["Unknown parameter: '{}'.", 'unexpected field "{}"'])
def test_every_optional_parameter_can_be_refused(name: str, message: str) -> None:
    parameters = Parameters()
    for _ in range(2):  # renamed, then left out
        body = parameters.apply({name: 1, "model": "main"})
        if sent := set(body) - {"model"}:
            assert parameters.learn(Fault(400, message=message.format(*sent)), body)
    assert parameters.apply({name: 1, "model": "main"}) == {"model": "main"}


def test_only_parameters_that_were_sent_are_left_out() -> None:
    parameters = Parameters()
    assert not parameters.learn(Fault(400, message="'temperature' is wrong", param="temperature"), {"model"})
    assert not parameters.learn(Fault(500, message="'temperature' is wrong"), {"temperature"})
