"""`magpie inbox`: what was given up is seen, tried again or dropped, on either engine, beside a running bot or not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bot.adapter import Message
from bot.cli import speech
from bot.cli.commands import app
from bot.config import Secret
from bot.errors import Refused
from bot.registry import Configured
from bot.testing import PlainRecordingAdapter, RecordingSettings, ScriptedModel, running
from tests.postgres_server import PostgresServer
from tests.test_conversation import Talk

PLAIN = Configured("recording", PlainRecordingAdapter, RecordingSettings(token=Secret("test-token")))


@pytest.fixture(params=["sqlite", "postgres"])
async def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/magpie.db"
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = await server.create()
    monkeypatch.setenv("BOT_DATABASE_URL", url)
    monkeypatch.setenv("BOT_LANGUAGE", "en")
    speech.language.cache_clear()
    return url


async def inbox(*arguments: str, code: int = 0) -> str:
    """Run a command; return what it printed."""
    result = await asyncio.to_thread(CliRunner().invoke, app, ["inbox", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output


async def first_id() -> str:
    return (await inbox("list")).splitlines()[1].split()[0]


async def park(talk: Talk, chat: str) -> None:
    talk.adapter.failures = [Refused("blocked by the person")]
    await talk.say(f"question in {chat}", chat=chat)
    await talk.idle()


async def test_a_refused_reply_is_seen_and_delivered_later_without_the_model(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.dispatcher.LOOK_EVERY", 0.02)
    async with running(PLAIN, database_url=url) as magpie:
        talk = Talk(magpie)
        await park(talk, "c")
        assert talk.shown() == []
        assert "blocked by the person" in await inbox("list")
        assert "question in c" not in await inbox("list")
        identity = await first_id()
        shown = await inbox("show", identity[:6])
        assert "question in c" in shown
        assert "written, not delivered" in shown
        assert "brought back: 1" in await inbox("retry", identity)
        await talk.adapter.until(lambda: talk.shown() == ["You said: question in c"])
        await talk.idle()
        assert len(talk.model.asked) == 1
        assert "Nothing was given up" in await inbox("list")
        assert await magpie.store.answer("recording\nc\n\n", "m1") != ("", "", None)


async def test_a_message_that_failed_is_asked_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.dispatcher.LOOK_EVERY", 0.02)
    async with running(PLAIN, database_url=url) as magpie:
        talk = Talk(magpie)
        talk.adapter.failures = [Refused("blocked")]
        await talk.say("/help")
        await talk.idle()
    async with running(PLAIN, database_url=url) as magpie:
        talk = Talk(magpie)
        assert "not written" in await inbox("show", await first_id())
        await inbox("retry", "--all")
        await talk.adapter.until(lambda: bool(talk.shown()))
        assert "/reset" in talk.shown()[0]


async def test_all_are_tried_again_while_nobody_serves(url: str) -> None:
    async with running(PLAIN, database_url=url) as magpie:
        for number in range(3):
            await park(Talk(magpie), f"c{number}")
    assert "brought back: 3" in await inbox("retry", "--all")
    async with running(PLAIN, database_url=url, model=ScriptedModel()) as magpie:
        talk = Talk(magpie)
        await talk.adapter.until(lambda: len(talk.adapter.shown) == 3)
        assert talk.model.asked == []


async def test_dropped_ones_are_gone(url: str) -> None:
    async with running(PLAIN, database_url=url) as magpie:
        for number in range(2):
            await park(Talk(magpie), f"c{number}")
    assert "dropped: 1" in await inbox("drop", await first_id())
    assert "dropped: 1" in await inbox("drop", "--all")
    assert "Nothing was given up" in await inbox("list")


async def test_mistakes_are_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no message 123" in await inbox("show", "123", code=1)
    assert "--all" in await inbox("retry", code=2)
    assert "--all" in await inbox("drop", "123", "--all", code=2)
    monkeypatch.setenv("BOT_DATABASE_URL", "mysql://x")
    assert "BOT_DATABASE_URL" in await inbox("list", code=2)


@pytest.mark.parametrize("command", ["list", "show", "retry", "drop"])
async def test_every_command_has_help_with_an_example(command: str) -> None:
    assert f"magpie inbox {command}" in await inbox(command, "--help")


def test_ids_tell_conversations_apart() -> None:
    from bot.adapter import Chat
    from bot.store import Parked

    message = Message("m1", Chat("c"), "u")
    ids = {Parked(conversation, message, 0, 0, "").id for conversation in ("a\nc\n\n", "b\nc\n\n")}
    assert len(ids) == 2
