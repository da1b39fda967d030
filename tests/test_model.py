"""One answer: what is tried again, what is not, and what the caller hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from llmock.pytest_plugin import LLMock
from structlog.testing import capture_logs

from bot import errors
from bot.adapter import Turn
from bot.config import ModelSettings
from bot.model import Usage, answer, breaker, create, estimate_tokens, stream
from tests.model_server import (
    DONE,
    KEY,
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
    usage,
)

LONG = "one two three four five six seven eight nine ten"
APIS = pytest.mark.parametrize("api", ["chat", "responses"])
SEEN = {"chat": 4, "responses": 7}  # events until some text was shown


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer().serve() as server:
        yield server


@pytest.fixture
async def models() -> AsyncIterator[Models]:
    models = Models()
    yield models
    await models.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "BACKOFF", 0.06)


# --- against llmock ---


@APIS
async def test_answers(llmock: LLMock, models: Models, api: str) -> None:
    llmock.reply(LONG)
    completion = models.make(llmock.base_url(), api=api).ask(QUESTION)
    assert await read(completion) == LONG
    assert completion.finish == "stop"
    assert completion.usage.model == "main"
    assert completion.usage.prompt > 0
    assert completion.usage.completion > 0
    assert not completion.usage.estimated
    llmock.assert_resilient(strict=True)


@APIS
@pytest.mark.parametrize("fault", ["500", "503", "529", "429", "disconnect", "truncate", "corrupt"])
async def test_a_failure_before_the_first_word_is_tried_again(
    llmock: LLMock, models: Models, api: str, fault: str
) -> None:
    if fault.isdecimal():
        llmock.fail(int(fault), retry_after=0.05)
    else:
        getattr(llmock, fault)(after_chunks=1)
    llmock.reply(LONG, times=None)
    assert await read(models.make(llmock.base_url(), api=api).ask(QUESTION)) == LONG
    assert len(llmock.requests) == 2
    llmock.assert_resilient(strict=fault != "corrupt")  # it may still be writing the first answer when we are back


@APIS
async def test_a_stream_cut_short_is_raised_and_nothing_is_asked_again(
    llmock: LLMock, models: Models, api: str
) -> None:
    llmock.reply(LONG, times=None).truncate(after_chunks=SEEN[api])
    completion = models.make(llmock.base_url(), api=api, fallback_models=("other",)).ask(QUESTION)
    text, raised = await read_until_failure(completion)
    assert raised is errors.Interrupted
    assert text
    assert LONG.startswith(text)
    assert completion.finish == ""
    assert completion.usage.estimated
    assert completion.usage.completion == estimate_tokens(text)
    assert len(llmock.requests) == 1


@APIS
async def test_a_stall_after_the_first_word_is_timed_out(llmock: LLMock, models: Models, api: str) -> None:
    llmock.reply(LONG).stall(after_chunks=SEEN[api], seconds=4)
    text, raised = await read_until_failure(models.make(llmock.base_url(), api=api, timeout=0.5).ask(QUESTION))
    assert raised is errors.TimedOut
    assert text
    assert LONG.startswith(text)


@pytest.mark.parametrize("fault", ["delay", "slow_first_token"])
async def test_a_model_that_says_nothing_is_left_for_the_fallback(llmock: LLMock, models: Models, fault: str) -> None:
    getattr(llmock, fault)(4)
    llmock.reply("from the fallback", times=None)
    model = models.make(llmock.base_url(), timeout=0.5, fallback_models=("other",))
    completion = model.ask(QUESTION)
    text = await read(completion)
    assert text == "from the fallback"
    assert completion.usage.model == "other"


async def test_retry_after_is_waited_for(llmock: LLMock, models: Models) -> None:
    llmock.rate_limit(times=2, retry_after=0.3)
    llmock.reply(LONG, times=None)
    assert await read(models.make(llmock.base_url()).ask(QUESTION)) == LONG
    assert len(llmock.requests) == 3
    llmock.assert_resilient(strict=True)


async def test_a_long_retry_after_is_raised_and_not_waited_for(llmock: LLMock, models: Models) -> None:
    llmock.rate_limit(retry_after=120)
    model = models.make(llmock.base_url())
    with pytest.raises(errors.RateLimited) as raised:
        await read(model.ask(QUESTION))
    assert raised.value.retry_after == 120
    with pytest.raises(errors.RateLimited):  # and the server is left alone by the next question
        await read(model.ask(QUESTION))
    assert len(llmock.requests) == 1


async def test_an_outage_ends_after_three_tries(llmock: LLMock, models: Models) -> None:
    llmock.outage()
    with pytest.raises(errors.Overloaded):
        await read(models.make(llmock.base_url()).ask(QUESTION))
    assert len(llmock.requests) == 3
    llmock.assert_resilient(strict=True)


@pytest.mark.parametrize("status", [503, 404, 400])
async def test_the_fallback_models_are_asked_in_order(llmock: LLMock, models: Models, status: int) -> None:
    for model in ("main", "second"):
        llmock.fail(status, times=None, model=model, retry_after=0.05)
    llmock.reply("third", times=None)
    completion = models.make(llmock.base_url(), fallback_models=("second", "third")).ask(QUESTION)
    assert await read(completion) == "third"
    assert completion.usage.model == "third"
    asked = [record.model for record in llmock.requests]
    assert list(dict.fromkeys(asked)) == ["main", "second", "third"]
    llmock.assert_resilient()


async def test_the_first_failure_is_raised_when_no_model_answers(llmock: LLMock, models: Models) -> None:
    llmock.fail(404, model="other", times=None).fail(503, times=None, retry_after=0.05)
    with pytest.raises(errors.Overloaded):
        await read(models.make(llmock.base_url(), fallback_models=("other",)).ask(QUESTION))


async def test_too_long_is_raised_at_once(llmock: LLMock, models: Models) -> None:
    llmock.context_overflow()
    with pytest.raises(errors.TooLong):
        await read(models.make(llmock.base_url(), fallback_models=("other",)).ask(QUESTION))
    assert len(llmock.requests) == 1


async def test_a_model_that_keeps_failing_is_asked_last(llmock: LLMock, models: Models) -> None:
    llmock.fail(503, times=None, model="main", retry_after=0.05)
    llmock.reply("other", times=None)
    model = models.make(llmock.base_url(), fallback_models=("other",))
    for _ in range(breaker.FAILURES):
        assert await read(model.ask(QUESTION)) == "other"
    before = len(llmock.requests)
    assert await read(model.ask(QUESTION)) == "other"
    assert [record.model for record in llmock.requests[before:]] == ["other"]


async def test_an_open_breaker_leaves_something_to_try(llmock: LLMock, models: Models) -> None:
    llmock.fail(503, times=breaker.FAILURES, retry_after=0.05)
    llmock.reply("back", times=None)
    model = models.make(llmock.base_url())
    for _ in range(2):
        with pytest.raises(errors.Overloaded):
            await read(model.ask(QUESTION))
    assert await read(model.ask(QUESTION)) == "back"


# --- against the scripted server ---


async def test_no_connection_is_overloaded(models: Models) -> None:
    with pytest.raises(errors.Overloaded, match="no connection"):
        await read(models.make("http://127.0.0.1:9/v1").ask(QUESTION))


async def test_a_connection_that_breaks_before_the_answer_is_tried_again(server: ModelServer, models: Models) -> None:
    server.say(Say(ending="reset"), chat("Hello"))
    assert await read(models.make(server.url).ask(QUESTION)) == "Hello"


async def test_usage_with_the_cached_part(server: ModelServer, models: Models) -> None:
    details = {"cached_tokens": 1024}
    server.say(
        Say(
            blocks=[
                chunk("Hi"),
                chunk(finish="stop"),
                usage(prompt_tokens=2000, completion_tokens=5, prompt_tokens_details=details),
                DONE,
            ]
        )
    )
    completion = models.make(server.url).ask(QUESTION)
    await read(completion)
    assert completion.usage == Usage("main", 2000, 1024, 5, False)


async def test_the_token_limit_is_told(server: ModelServer, models: Models) -> None:
    server.say(Say(blocks=[chunk("Hi"), chunk(finish="length"), DONE]))
    completion = models.make(server.url).ask(QUESTION)
    assert await read(completion) == "Hi"
    assert completion.finish == "length"


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param([chunk("Hi"), DONE], id="no finish reason"),
        pytest.param([chunk("Hi"), chunk(finish="stop")], id="no [DONE], no usage"),
        pytest.param([chunk("Hi", "stop")], id="all in one"),
        pytest.param([b": hello\r\n\r\ndata:" + chunk("Hi", "stop")[6:].replace(b"\n", b"\r\n")], id="CRLF, comment"),
        pytest.param([b"event: x\nid: 1\n" + chunk("Hi", "stop").rstrip()], id="no line end"),
        pytest.param([bytes([byte]) for byte in chunk("Hi", "tool_calls")], id="byte by byte"),
    ],
)
async def test_a_complete_answer(server: ModelServer, models: Models, blocks: list[bytes]) -> None:
    server.say(Say(blocks=blocks))
    completion = models.make(server.url).ask(QUESTION)
    assert await read(completion) == "Hi"
    assert completion.finish == "stop"
    assert completion.usage.estimated
    assert len(server.asked) == 1


@pytest.mark.parametrize("ending", ["reset", "hang"])
async def test_what_comes_after_the_finish_reason_does_not_matter(
    server: ModelServer, models: Models, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(stream, "GRACE", 0.1)
    server.say(Say(blocks=[chunk("Hi"), chunk(finish="stop")], ending=ending))
    completion = models.make(server.url).ask(QUESTION)
    assert await read(completion) == "Hi"
    assert completion.finish == "stop"


async def test_a_network_read_is_one_item(server: ModelServer, models: Models) -> None:
    server.say(Say(blocks=[b"".join(map(chunk, "abcdefgh")) + chunk(finish="stop") + DONE]))
    assert [text async for text in models.make(server.url).ask(QUESTION)] == ["abcdefgh"]


async def test_a_character_cut_between_two_reads_stays_whole(server: ModelServer, models: Models) -> None:
    data = chunk("喜鹊") + chunk(finish="stop")
    cut = data.index("鹊".encode()) + 1
    server.say(Say(blocks=[data[:cut], data[cut:], DONE]))
    assert await read(models.make(server.url).ask(QUESTION)) == "喜鹊"


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        (["<think>secret</think>\n\nHi"], "Hi"),
        (["\n", "<th", "ink>", "sec", "ret</th", "ink>", " ", "Hi"], "Hi"),
        (["<thin", "g> is a tag"], "<thing> is a tag"),
        (["Hi", " <think>aloud</think>"], "Hi <think>aloud</think>"),
        (["  ", "\n", "Hi"], "Hi"),
        (["<thi"], "<thi"),
    ],
)
async def test_thoughts_are_not_shown(server: ModelServer, models: Models, texts: list[str], shown: str) -> None:
    thought = chunk(reasoning_content="thinking aloud", content=None)
    server.say(Say(blocks=[thought, *map(chunk, texts), chunk(finish="stop")]))
    assert await read(models.make(server.url).ask(QUESTION)) == shown


async def test_thoughts_are_counted_when_the_server_does_not_count(server: ModelServer, models: Models) -> None:
    server.say(Say(blocks=[chunk(reasoning_content="x" * 400), chunk("Hi", "stop")]))
    completion = models.make(server.url).ask(QUESTION)
    await read(completion)
    assert completion.usage.completion == 101


async def test_comments_are_no_answer(server: ModelServer, models: Models) -> None:
    server.say(Say(blocks=[b": keep-alive\n\n"] * 3, ending="hang"))
    with pytest.raises(errors.TimedOut):
        await read(models.make(server.url, timeout=0.3).ask(QUESTION))


async def test_a_slow_reader_is_no_silence_of_the_model(server: ModelServer, models: Models) -> None:
    server.say(Say(blocks=[chunk("Once "), None, chunk("upon"), chunk(finish="stop"), DONE]))
    texts = aiter(models.make(server.url, timeout=0.2).ask(QUESTION))
    assert await anext(texts) == "Once "
    await asyncio.sleep(0.5)  # longer than the time limit, which is the point
    server.seen.set()
    assert [text async for text in texts] == ["upon"]


async def test_an_empty_answer_is_asked_for_once_more(server: ModelServer, models: Models) -> None:
    empty = Say(blocks=[chunk(""), chunk(finish="stop"), usage(prompt_tokens=7, completion_tokens=1), DONE])
    server.say(empty, chat("Hello"))
    completion = models.make(server.url).ask(QUESTION)
    assert await read(completion) == "Hello"
    assert completion.usage.prompt == 14  # both are paid for
    server.say(empty, empty)
    with pytest.raises(errors.Interrupted):
        await read(models.make(server.url).ask(QUESTION))
    assert len(server.asked) == 4


async def test_a_token_limit_spent_on_thoughts_is_not_tried_again(server: ModelServer, models: Models) -> None:
    server.say(Say(blocks=[chunk(reasoning_content="hm"), chunk(finish="length"), DONE]))
    with pytest.raises(errors.BadRequest, match="token limit"):
        await read(models.make(server.url).ask(QUESTION))
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "blocks",
    [
        [chunk(refusal="I cannot help with that"), chunk(finish="stop"), DONE],
        [chunk(finish="content_filter"), DONE],
        [chunk(finish="sensitive"), DONE],
    ],
)
async def test_a_refusal_is_final(server: ModelServer, models: Models, blocks: list[bytes]) -> None:
    server.say(Say(blocks=blocks))
    with pytest.raises(errors.ContentRefused):
        await read(models.make(server.url, fallback_models=("other",)).ask(QUESTION))
    assert len(server.asked) == 1


MID_STREAM = [
    ({"error": {"message": "The server had an error", "type": "server_error"}}, errors.Overloaded),
    ({"error": {"message": "slow down", "code": "rate_limit_exceeded", "type": "requests"}}, errors.RateLimited),
    ({"error": {"message": "filtered", "code": "data_inspection_failed"}}, errors.ContentRefused),
    ({"error": {"message": "out", "code": "insufficient_quota"}}, errors.QuotaSpent),
    ({"object": "error", "message": "engine is dead", "code": 500}, errors.Overloaded),
    ({"choices": [{"delta": {}, "finish_reason": "insufficient_system_resource"}]}, errors.Overloaded),
]


@pytest.mark.parametrize(("said", "error"), MID_STREAM)
async def test_an_error_in_the_stream(
    server: ModelServer, models: Models, said: dict[str, Any], error: type[Exception]
) -> None:
    server.say(Say(blocks=[chunk("Hi "), None, chunk("there") + event(said)]))
    completion = models.make(server.url).ask(QUESTION)
    assert await read_until_failure(completion, server.seen) == ("Hi there", error)
    assert len(server.asked) == 1


@pytest.mark.parametrize("broken", [Say(ending="reset"), Say(blocks=[b'data: {"choi\n\n'])])
async def test_a_break_after_the_first_word_is_raised(server: ModelServer, models: Models, broken: Say) -> None:
    server.say(Say(blocks=[chunk("Hi"), None, *broken.blocks], ending=broken.ending))
    completion = models.make(server.url, fallback_models=("other",)).ask(QUESTION)
    assert await read_until_failure(completion, server.seen) == ("Hi", errors.Interrupted)
    assert completion.usage.completion == 1
    assert len(server.asked) == 1


@pytest.mark.parametrize("said", [b'data: {"choi\n\n', event({"error": {"message": "broken"}})])
async def test_text_that_nobody_saw_is_no_beginning(server: ModelServer, models: Models, said: bytes) -> None:
    server.say(Say(blocks=[chunk("Hi ") + said]))
    assert await read(models.make(server.url).ask(QUESTION)) == "Hello"


@pytest.mark.parametrize(
    ("content_type", "error"), [("application/json", errors.Interrupted), ("text/html", errors.NoSuchModel)]
)
async def test_what_is_no_answer(
    server: ModelServer, models: Models, content_type: str, error: type[Exception]
) -> None:
    server.script = [Say(blocks=[b"<html>welcome</html>"], content_type=content_type)] * 3
    with pytest.raises(error):
        await read(models.make(server.url).ask(QUESTION))


async def test_an_endless_event_is_not_kept(
    server: ModelServer, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "LONGEST_EVENT", 1000)
    server.say(Say(blocks=[chunk("Hi "), None, b"data: ", b"x" * 2000], ending="hang"))
    completion = models.make(server.url).ask(QUESTION)
    assert await read_until_failure(completion, server.seen) == ("Hi ", errors.Interrupted)


async def test_an_error_that_comes_in_pieces_is_read_whole(server: ModelServer, models: Models) -> None:
    (body,) = failure(400, "x" * 20_000, code="context_length_exceeded").blocks
    assert body is not None
    pieces = [body[start : start + 1000] for start in range(0, len(body), 1000)]
    server.say(Say(400, pieces, "application/json"))
    with pytest.raises(errors.TooLong):
        await read(models.make(server.url).ask(QUESTION))


async def test_an_endless_error_is_not_read_to_its_end(server: ModelServer, models: Models) -> None:
    server.say(Say(500, [b" " * 100_000], ending="hang"))
    assert await read(models.make(server.url).ask(QUESTION)) == "Hello"


async def test_redirects_are_not_followed(server: ModelServer, models: Models) -> None:
    server.say(Say(307, headers={"Location": server.url + "/elsewhere"}))
    with pytest.raises(errors.NoSuchModel, match="redirects"):
        await read(models.make(server.url).ask(QUESTION))
    assert len(server.asked) == 1


# --- keys ---

KEYS = ("sk-first", "sk-second", "sk-third")


async def test_keys_are_used_in_turn(server: ModelServer, models: Models) -> None:
    model = models.make(server.url, api_key=KEYS)
    for _ in range(4):
        await read(model.ask(QUESTION))
    assert [asked.key for asked in server.asked] == [*KEYS, KEYS[0]]


async def test_without_a_key_none_is_sent(server: ModelServer, models: Models) -> None:
    assert await read(models.make(server.url, api_key=()).ask(QUESTION)) == "Hello"
    assert "authorization" not in server.asked[0].headers


@pytest.mark.parametrize(
    "refusal",
    [
        failure(401, code="invalid_api_key"),
        failure(429, code="insufficient_quota"),
        failure(429, headers={"Retry-After": "30"}),
    ],
)
async def test_a_refused_key_rests_and_the_next_one_is_tried_at_once(
    server: ModelServer, models: Models, refusal: Say
) -> None:
    server.by_key = {KEYS[0]: refusal}
    model = models.make(server.url, api_key=KEYS)
    for _ in range(3):
        assert await read(model.ask(QUESTION)) == "Hello"
    assert [asked.key for asked in server.asked].count(KEYS[0]) == 1


@pytest.mark.parametrize(
    ("refusal", "error"),
    [(failure(401), errors.BadKey), (failure(402), errors.QuotaSpent), (failure(403), errors.BadKey)],
)
async def test_no_key_helps(server: ModelServer, models: Models, refusal: Say, error: type[errors.ModelError]) -> None:
    server.by_key = dict.fromkeys(KEYS, refusal)
    with pytest.raises(error):
        await read(models.make(server.url, api_key=KEYS, fallback_models=("other",)).ask(QUESTION))
    assert sorted(asked.key for asked in server.asked) == sorted(KEYS)


async def test_a_key_that_works_again_is_found(server: ModelServer, models: Models) -> None:
    server.say(failure(401))
    model = models.make(server.url)
    with pytest.raises(errors.BadKey):
        await read(model.ask(QUESTION))
    assert await read(model.ask(QUESTION)) == "Hello"


async def test_a_rate_limit_of_one_model_is_not_one_of_another(server: ModelServer, models: Models) -> None:
    server.by_model = {"main": failure(429, headers={"Retry-After": "30"})}
    assert await read(models.make(server.url, fallback_models=("other",)).ask(QUESTION)) == "Hello"
    assert [asked.body["model"] for asked in server.asked] == ["main", "other"]


# --- ending early, starting late ---


async def test_aclose_ends_the_request(server: ModelServer, models: Models) -> None:
    server.say(Say(blocks=[chunk("Once upon a time")], ending="hang"))
    completion = models.make(server.url).ask(QUESTION)
    texts = aiter(completion)
    assert await anext(texts) == "Once upon a time"
    await completion.aclose()
    await asyncio.wait_for(server.left.wait(), 10)
    assert [text async for text in texts] == []
    assert completion.usage.estimated
    assert completion.usage.prompt > 0
    assert completion.usage.completion == 4


async def test_aclose_ends_an_iteration_in_another_task(server: ModelServer, models: Models) -> None:
    server.say(Say(blocks=[chunk("Once")], ending="hang"))
    completion = models.make(server.url).ask(QUESTION)
    texts = aiter(completion)
    await anext(texts)

    async def rest() -> list[str]:
        return [text async for text in texts]

    waiting = asyncio.create_task(rest())
    await asyncio.sleep(0)
    await completion.aclose()
    assert await asyncio.wait_for(waiting, 10) == []
    assert completion.finish == ""


async def test_a_cancelled_reader_leaves_no_request_behind(server: ModelServer, models: Models) -> None:
    server.say(Say(blocks=[chunk("Once")], ending="hang"))
    completion = models.make(server.url).ask(QUESTION)
    begun = asyncio.Event()

    async def reading() -> None:
        async for _ in completion:
            begun.set()

    task = asyncio.create_task(reading())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(server.left.wait(), 10)
    assert completion.usage.completion == 1


async def test_many_first_questions_at_once(server: ModelServer, models: Models) -> None:
    model = models.make(server.url)
    assert await asyncio.gather(*(read(model.ask(QUESTION)) for _ in range(20))) == ["Hello"] * 20


async def test_closing_an_unused_model(models: Models) -> None:
    models.make("http://127.0.0.1:9/v1")


# --- what the operator reads ---


async def test_every_failure_is_logged_with_its_hint_and_without_texts_or_keys(
    server: ModelServer, models: Models
) -> None:
    server.script = [
        failure(500, f"key {KEY} and sk-live-abc123 broke"),
        failure(401, "Incorrect API key: sk-live-abc123"),
    ]
    turns = [Turn("user", "a private matter")]
    with capture_logs() as logs, pytest.raises(errors.BadKey) as raised:
        await read(models.make(server.url).ask(turns))
    assert [(line["model"], line["attempt"], line["error"]) for line in logs] == [
        ("main", 1, "model_unavailable"),
        ("main", 2, "model_bad_key"),
    ]
    assert all(line["hint"] and line["log_level"] == "warning" for line in logs)
    shown = f"{logs} {raised.value}"
    assert KEY not in shown
    assert "sk-live" not in shown
    assert "private" not in shown


async def test_check_tells_good_keys_from_bad_ones_and_finds_the_models(server: ModelServer, models: Models) -> None:
    server.models = Say(blocks=[b'{"data": [{"id": "main"}, {"id": "otter"}]}'], content_type="application/json")
    server.by_key = {"sk-bad": failure(401)}
    findings = await models.make(server.url, api_key=(KEY, "sk-bad"), fallback_models=("other",)).check()
    assert [finding.ok for finding in findings] == [True, False, True, False]
    assert "otter" in findings[-1].advice
    assert all(finding.ok or finding.advice for finding in findings)
    assert KEY not in str(findings)


@pytest.mark.parametrize("status", [404, 405])
async def test_check_asks_a_server_that_lists_no_models(server: ModelServer, models: Models, status: int) -> None:
    server.models = Say(status, content_type="text/plain")
    server.by_model = {"other": failure(404, code="model_not_found")}
    findings = await models.make(server.url, fallback_models=("other",)).check()
    assert [finding.ok for finding in findings] == [True, False]


async def test_check_of_a_server_that_is_not_there(models: Models) -> None:
    (finding,) = await models.make("http://127.0.0.1:9/v1").check()
    assert not finding.ok
    assert "OPENAI_BASE_URL" in finding.advice


def test_the_settings_choose_the_model() -> None:
    assert create(ModelSettings.model_validate({})).name == "demo"
