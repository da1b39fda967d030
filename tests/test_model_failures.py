"""What vendors say when they fail, and which error that is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot import errors
from bot.model.failures import LONGEST_MESSAGE, Fault, classify, read_error, read_response, redact


def said(message: str = "", **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


SAID: list[tuple[int, Any, type[errors.ModelError]]] = [
    (401, said("Incorrect API key provided", code="invalid_api_key"), errors.BadKey),
    (403, said("Country, region, or territory not supported"), errors.BadKey),
    (403, said("Project `p` does not have access to model `m`", code="model_not_found"), errors.NoSuchModel),
    (404, said("The model `m` does not exist", code="model_not_found"), errors.NoSuchModel),
    (404, "404 page not found", errors.NoSuchModel),
    (400, said("Model Not Exist", type="invalid_request_error"), errors.NoSuchModel),  # DeepSeek
    (400, said("m is not a valid model ID"), errors.BadRequest),
    (429, said("Rate limit reached for gpt-4o", type="tokens", code="rate_limit_exceeded"), errors.RateLimited),
    (429, said("You exceeded your current quota", code="insufficient_quota"), errors.QuotaSpent),
    (429, said("Request too large for gpt-4o on tokens per min (TPM)", type="tokens"), errors.TooLong),
    (429, said("余额不足或无可用资源包,请充值。", code="1113"), errors.QuotaSpent),  # Zhipu
    (402, said("Insufficient Balance"), errors.QuotaSpent),  # DeepSeek
    (400, {"code": "Arrearage", "message": "Access denied"}, errors.QuotaSpent),  # Alibaba Cloud
    (403, said("用户额度不足", code="insufficient_user_quota"), errors.QuotaSpent),  # one-api
    (403, said("账户已欠费", code="AccountOverdueError"), errors.QuotaSpent),  # Volcengine
    (429, said("suspended, check your plan", type="exceeded_current_quota_error"), errors.QuotaSpent),  # Moonshot
    (400, said("maximum context length is 8192 tokens", code="context_length_exceeded"), errors.TooLong),
    (400, said("This model's maximum context length is 4096 tokens. However, you requested 5000"), errors.TooLong),
    (400, {"code": "x", "message": "Range of input length should be [1, 30720]"}, errors.TooLong),
    (400, said("Input token length too long"), errors.BadRequest),
    (400, said("prompt is too long: 210000 tokens > 200000 maximum"), errors.TooLong),
    (400, said("the request exceeds the available context size"), errors.TooLong),  # llama.cpp
    (413, "", errors.TooLong),
    (
        400,
        said("Your request was rejected by the safety system", code="content_policy_violation"),
        errors.ContentRefused,
    ),
    (400, said("filtered", code="content_filter"), errors.ContentRefused),  # Azure
    (400, {"code": "data_inspection_failed", "message": "Input may contain"}, errors.ContentRefused),
    (400, {"code": "DataInspectionFailed", "message": "x"}, errors.ContentRefused),
    (400, said("系统检测到输入或生成内容可能包含不安全或敏感内容", code="1301"), errors.ContentRefused),
    (400, said("Invalid value for 'messages'"), errors.BadRequest),
    (422, {"detail": [{"loc": ["body", "x"], "msg": "no"}]}, errors.BadRequest),
    (408, "", errors.Overloaded),
    (500, said("oops"), errors.Overloaded),
    (502, "<html>Bad gateway</html>", errors.Overloaded),
    (529, said("Overloaded", type="overloaded_error"), errors.Overloaded),
    (500, said("This model's billing service is down"), errors.Overloaded),
    (307, "", errors.NoSuchModel),
    (400, {"error": "model requires more system memory"}, errors.BadRequest),  # Ollama
    (400, [said("list", code=400)], errors.BadRequest),  # Google
]


@pytest.mark.parametrize(("status", "body", "kind"), SAID)
def test_what_a_server_says(status: int, body: Any, kind: type[errors.ModelError]) -> None:
    raw = body.encode() if isinstance(body, str) else msgspec.json.encode(body)
    assert type(classify(read_response(status, {}, raw))) is kind


@pytest.mark.parametrize(
    "message",
    [
        "unknown variant `image_url`, expected `text`",
        "m is not a multimodal model",
        "Invalid content type. image_url is only supported by certain models.",
        "该模型不支持图片输入",
    ],
)
def test_a_complaint_about_pictures_counts_only_when_there_were_some(message: str) -> None:
    assert type(classify(Fault(400, message=message), pictures=True)) is errors.NoPictures
    assert type(classify(Fault(400, message=message))) is errors.BadRequest


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"retry-after": "7"}, 7), ({"retry-after-ms": "250", "retry-after": "1"}, 0.25), ({}, None)],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert classify(read_response(429, headers, b"")).retry_after == seconds


def test_the_error_tells_the_operator_what_happened() -> None:
    error = classify(read_response(429, {}, msgspec.json.encode(said("slow down", type="requests", code="rate"))))
    assert str(error) == "HTTP 429 rate requests: slow down"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Incorrect API key provided: sk-proj-ab_c*****xyz. See", "Incorrect API key provided: *** See"),
        ("the key 0123secret is wrong", "the key *** is wrong"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("{'msg': 'Extra inputs', 'input': 'what the person wrote'}", "{'msg': 'Extra inputs'"),
        ("two\n  lines", "two lines"),
        ("x" * 1000, "x" * LONGEST_MESSAGE + "…"),
    ],
)
def test_no_key_and_no_quoted_request_reaches_the_log(text: str, shown: str) -> None:
    assert redact(text, ("0123secret",)) == shown


def test_a_key_in_the_code_is_hidden_too() -> None:
    assert "sk-abc" not in str(classify(read_error(said("m", code="sk-abc-def"))))


@pytest.mark.parametrize("value", [None, 7, [], {}, {"error": None}, {"error": {"message": {"a": 1}}}, {"detail": [1]}])
def test_any_shape_is_read(value: Any) -> None:
    assert isinstance(classify(read_error(value)), errors.ModelError)


NAMES = st.sampled_from(["error", "message", "code", "type", "param", "detail", "loc", "msg", "error_msg"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_read(value: Any) -> None:
    assert isinstance(classify(read_error(value)), errors.ModelError)


@given(st.integers(300, 599), st.binary())
def test_any_body_is_read(status: int, body: bytes) -> None:
    assert isinstance(classify(read_response(status, {"retry-after": "soon"}, body)), errors.ModelError)
