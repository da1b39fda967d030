"""The log: nothing secret, one form, standard error."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import msgspec
import pytest
import structlog

from bot import log

TOKEN = "hunter2-is-my-token"


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level


class Secretive:
    def __str__(self) -> str:
        return f"object with {TOKEN}"


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [msgspec.json.decode(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize(
    "value",
    [
        TOKEN,
        f"https://api.example.com/{TOKEN}/send",
        ["a", {"b": TOKEN}],
        Secretive(),
        TOKEN.encode(),
        ValueError(TOKEN),
        "sk-abcdefghijklmnop",
        "https://api.telegram.org/bot123456:ABC-defghijk/sendMessage",
        "Authorization: Bearer abcdefghij.klm",
        "postgresql://magpie:opensesame@db/magpie",
        "https://api.example.com/send?access_token=abcdefgh&x=1",
    ],
    ids=str,
)
def test_secrets_are_hidden_in_any_value(value: object, capsys: pytest.CaptureFixture[str]) -> None:
    log.hide(TOKEN)
    log.configure("json")
    structlog.get_logger().info("sent", value=value)
    logging.getLogger("aiohttp.client").warning("sent %s", value)
    written = capsys.readouterr().err
    assert written.count("\n") == 2
    assert "***" in written
    for secret in (TOKEN, "abcdefgh", "ABC-", "opensesame"):
        assert secret not in written


def test_what_is_not_secret_stays(capsys: pytest.CaptureFixture[str]) -> None:
    log.hide("tiny", "")
    log.configure("json")
    structlog.get_logger().info("tiny", seconds=1.5, ok=True, none=None, names=("a", "b"))
    (line,) = lines(capsys)
    assert line.pop("timestamp", "").endswith("Z")  # type: ignore[attr-defined]
    assert line == {"event": "tiny", "level": "info", "seconds": 1.5, "ok": True, "none": None, "names": ["a", "b"]}


def test_exceptions_are_told_without_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json")
    private = "a message of a person"
    try:
        raise KeyError(len(private))
    except KeyError:
        structlog.get_logger().exception("failed")
    (line,) = lines(capsys)
    assert "KeyError: 21" in str(line["exception"])
    assert private not in str(line).replace('private = "a message of a person"', "")


def test_the_level_holds_for_both_kinds_of_loggers(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json", "warning")
    structlog.get_logger().info("quiet")
    logging.getLogger("asyncio").info("quiet")
    structlog.get_logger().warning("loud")
    logging.getLogger("asyncio").warning("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud", "loud"]


@pytest.mark.parametrize("name", ["openai", "httpx", "aiohttp.access"])
def test_talkative_libraries_do_not_write_messages_into_a_debug_log(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("json", "debug")
    logging.getLogger(name).debug("Request options: a message of a person")
    assert capsys.readouterr().err == ""


def test_the_console_form_has_no_colours_when_it_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("console")
    structlog.get_logger().info("started", port=8080)
    written = capsys.readouterr().err
    assert "started" in written
    assert "port=8080" in written
    assert "\x1b" not in written
