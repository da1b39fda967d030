"""What an operator types, with a stranger's adapter installed."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from dotenv import dotenv_values
from typer.testing import CliRunner, Result

from bot import __version__, health
from bot.cli import serve, speech
from bot.cli.commands import app
from bot.registry import GROUP
from bot.store import open_store
from tests.strangers import Install, install

__all__ = ["install"]  # a fixture

ROOT = Path(__file__).parent.parent
ACME = """
from pydantic import Field
from bot.adapter import *
from bot.config import Secret
from bot.errors import Unavailable, Unverified

class Settings(AdapterSettings):
    token: Secret = Field(description="Console > API")
    flavour: str = Field("plain", description="How it tastes", max_length=9)
    secret: Secret = Field(description="Anything", json_schema_extra={"invented": True})

class AcmeAdapter(WebhookAdapter[Settings]):
    name, title, docs = "acme", "Acme Chat", "https://acme.example/docs"
    Settings = Settings
    async def verify(self, request):
        raise Unverified("no")
    def parse(self, request):
        return Inbound()
    async def send(self, chat, page):
        return "1"
    async def register(self, url):
        return [Finding(True, f"registered {url}")]
    async def check(self, url):
        token = self.settings.token.get_secret_value()
        if token == "offline-token":
            raise Unavailable("no answer within 20 s")
        if token != "good-token":
            return [Finding(False, f"the token {token} is refused", "copy it again")]
        return [Finding(True, "the token is good"), Finding(False, "the webhook is not set", "magpie register")]

class PollingAdapter(Adapter[AdapterSettings]):
    name, title, docs = "polling", "Polling", "https://polling.example"
    async def send(self, chat, page):
        return "1"
"""
GOOD = {"ACME_TOKEN": "good-token", "ACME_SECRET": "s3cret-s3cret"}
KEPT = ("PATH", "HOME", "PYTHONPATH", "VIRTUAL_ENV")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Install) -> Iterator[None]:
    """An empty folder, an empty environment, and a stranger's package."""
    for name in os.environ.keys() - set(KEPT):
        monkeypatch.delenv(name)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    speech.language.cache_clear()
    install("acmecli", ACME, acme="AcmeAdapter", polling="PollingAdapter")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level
    speech.language.cache_clear()


def magpie(*arguments: str, typed: str | None = None, code: int = 0, **env: str) -> str:
    """Run a command; return what it printed, errors included."""
    return run(*arguments, typed=typed, code=code, **env).output


def run(*arguments: str, typed: str | None = None, code: int = 0, **env: str) -> Result:
    """Run a command to its end, which must be the expected one and no traceback."""
    result = CliRunner().invoke(app, arguments, input=typed, env=env)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def env_file() -> dict[str, str | None]:
    return dict(dotenv_values(".env", interpolate=False))


# -- help


@pytest.mark.parametrize("command", ["serve", "chat", "setup", "register", "doctor", "adapters", "new-adapter"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    output = magpie(command, "--help")
    assert "Example:" in output
    assert f"magpie {command}" in output


def test_the_version_is_told() -> None:
    assert magpie("--version").strip() == f"magpie {__version__}"


def test_help_needs_neither_the_model_nor_the_server() -> None:
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom bot.cli.commands import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print({'openai', 'aiohttp', 'pydantic', 'structlog'} & sys.modules.keys() or 'light')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "light", done.stderr


@pytest.mark.parametrize(
    ("env", "language"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"BOT_LANGUAGE": "zh"}, "zh"),
        ({"BOT_LANGUAGE": "en", "LANG": "zh_CN.UTF-8"}, "en"),
        ({"BOT_LANGUAGE": "auto", "LANG": "zh_CN.UTF-8"}, "zh"),
    ],
)
def test_the_operators_language(env: dict[str, str], language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert speech.language() == language


def test_the_language_may_stand_in_the_env_file() -> None:
    Path(".env").write_text("BOT_LANGUAGE=zh\n")
    assert "平台" in magpie("adapters")


# -- adapters


def test_adapters_are_listed_with_their_variables() -> None:
    output = magpie("adapters", BOT_ADAPTERS="acme,sales=acme", COLUMNS="200")
    assert "Acme Chat" in output
    assert "acme, sales" in output
    assert "ACME_TOKEN* ACME_FLAVOUR ACME_SECRET* ACME_SYSTEM_PROMPT" in output


def test_adapters_are_told_to_machines() -> None:
    (acme,) = (
        one for one in json.loads(run("adapters", "--json", BOT_ADAPTERS="sales=acme").stdout) if one["name"] == "acme"
    )
    assert acme["instances"] == ["sales"]
    assert acme["variables"][0] == {
        "name": "ACME_TOKEN",
        "required": True,
        "default": "",
        "description": "Console > API",
    }


def test_adapters_are_told_as_an_env_file() -> None:
    output = magpie("adapters", "--env")
    assert "# Required. Console > API\n#ACME_TOKEN=\n# How it tastes\n#ACME_FLAVOUR=plain\n" in output
    assert "\n#BOT_PORT=8080\n" in output


# -- setup


def test_setup_asks_tries_writes_and_registers() -> None:
    Path(".env").write_text("# mine\nBOT_PUBLIC_URL=https://bot.example.com\n")
    output = magpie("setup", "acme", typed="good-token\n\n\n\n")
    assert "the token is good" in output
    assert "the webhook is not set" not in output
    assert "registered https://bot.example.com/webhooks/acme" in output
    written = env_file()
    assert Path(".env").read_text().startswith("# mine\nBOT_PUBLIC_URL=https://bot.example.com\n")
    assert written["ACME_TOKEN"] == "good-token"
    assert written["BOT_ADAPTERS"] == "webchat,acme"
    assert len(written["ACME_SECRET"] or "") >= 32
    assert "ACME_FLAVOUR" not in written
    assert Path(".env").stat().st_mode & 0o777 == 0o600
    assert "good-token" not in output
    assert str(written["ACME_SECRET"]) not in output


def test_setup_asks_again_what_is_wrong() -> None:
    output = magpie("setup", "acme", typed="good-token\nmuch too long\nsweet\n\n\n\n")
    assert "ACME_FLAVOUR: String should have at most 9 characters" in output
    assert env_file()["ACME_FLAVOUR"] == "sweet"


def test_setup_offers_what_is_there_and_keeps_it() -> None:
    Path(".env").write_text("ACME_TOKEN=good-token\nACME_SECRET=mine-mine\nACME_FLAVOUR=sour\nBOT_ADAPTERS=acme\n")
    before = Path(".env").read_text()
    assert "ACME_FLAVOUR [sour]" in magpie("setup", "acme", typed="\n\n\n\n\n")
    assert Path(".env").read_text() == before


def test_setup_of_a_second_bot_has_variables_of_its_own() -> None:
    Path(".env").write_text("BOT_ADAPTERS=acme\nACME_TOKEN=other\n")
    magpie("setup", "sales=acme", "--set", "SALES_TOKEN=good-token", "--set", "SALES_SECRET=s3cret")
    assert env_file() == {
        "BOT_ADAPTERS": "acme,sales=acme",
        "ACME_TOKEN": "other",
        "SALES_TOKEN": "good-token",
        "SALES_SECRET": "s3cret",
    }


def test_setup_writes_nothing_that_the_platform_refuses() -> None:
    output = magpie("setup", "acme", "--set", "ACME_TOKEN=wrong-token", "--set", "ACME_SECRET=s3cret", code=1)
    assert "the token *** is refused" in output
    assert "copy it again" in output
    assert not Path(".env").exists()


def test_setup_writes_what_was_refused_when_the_operator_insists() -> None:
    output = magpie("setup", "acme", typed="offline-token\n\n\n\n\ny\n", code=1)
    assert "no answer within 20 s" in output
    assert env_file()["ACME_TOKEN"] == "offline-token"


def test_setup_without_questions_names_what_is_missing() -> None:
    output = magpie("setup", "acme", "--set", "ACME_TOKEN=good-token", code=2)
    assert "ACME_SECRET: is not set" in output


def test_setup_names_a_variable_that_does_not_belong() -> None:
    assert "ACME_TOKE: is not a setting (ACME_TOKEN?)" in magpie("setup", "acme", "--set", "ACME_TOKE=x", code=2)


def test_setup_of_an_unknown_platform_names_the_nearest() -> None:
    assert 'there is no adapter "acne" (did you mean "acme"?)' in magpie("setup", "acne", code=2)


def test_setup_says_when_the_environment_beats_the_file() -> None:
    given = ("--set", "ACME_TOKEN=good-token", "--set", "ACME_SECRET=s3cret")
    assert "ACME_TOKEN: in the environment is another" in magpie("setup", "acme", *given, ACME_TOKEN="stale")


# -- register and doctor


def test_register_tells_what_was_done_and_what_does_not_come_through(unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    output = magpie("register", code=1, BOT_ADAPTERS="acme,polling", BOT_PUBLIC_URL=url, **GOOD)
    assert f"✓ registered {url}/webhooks/acme" in output
    assert "✗ 127.0.0.1 refuses connections" in output
    assert "nothing to register" in output


def test_register_needs_an_address() -> None:
    output = magpie("register", "acme", code=1, BOT_ADAPTERS="acme", **GOOD)
    assert "BOT_PUBLIC_URL is not set" in output
    assert "registered" not in output


def test_register_of_one_instance_does_not_mind_the_others() -> None:
    magpie("register", "polling", BOT_ADAPTERS="acme,polling")


def test_register_of_what_is_not_switched_on_says_how_to() -> None:
    assert "magpie setup acme" in magpie("register", "acme", code=2, BOT_ADAPTERS="polling")


def test_wrong_settings_are_listed_at_once_without_a_traceback() -> None:
    for command in ("serve", "register", "doctor"):
        output = magpie(command, code=2, BOT_ADAPTERS="acme,nobody", BOT_PORT="high")
        for name in ("ACME_TOKEN: is not set", "ACME_SECRET: is not set", "BOT_ADAPTERS: there is no", "BOT_PORT: "):
            assert f"✗ {name}" in output
        assert "Traceback" not in output


def test_doctor_looks_at_everything() -> None:
    async def remember() -> None:
        store = open_store("sqlite:///data/magpie.db")
        await store.open()
        vitals = health.Health(store)
        vitals.failed("acme", "HTTP 500")
        await vitals.flush()
        await store.close()

    asyncio.run(remember())
    output = magpie("doctor", code=1, BOT_ADAPTERS="acme", ACME_TOKNE="x", **GOOD)
    assert "✗ ACME_TOKNE: is not a setting; did you mean ACME_TOKEN?" in output
    assert "✓ sqlite:///data/magpie.db can be written" in output
    assert "✓ the token is good" in output
    assert "✗ the webhook is not set\n    → magpie register" in output
    assert "· last delivery: never" in output
    assert "HTTP 500" in output


def test_doctor_finds_nothing_wrong_where_nothing_is() -> None:
    assert "✗" not in magpie("doctor", BOT_ADAPTERS="polling")


def test_doctor_names_a_database_that_cannot_be_written() -> None:
    Path("file").write_text("")
    output = magpie("doctor", code=1, BOT_ADAPTERS="polling", BOT_DATABASE_URL="sqlite:///file/magpie.db")
    assert "→ check BOT_DATABASE_URL" in output


def test_doctor_shows_no_password() -> None:
    url = "postgresql://magpie:opensesame@127.0.0.1:1/magpie"
    assert "opensesame" not in magpie("doctor", code=1, BOT_ADAPTERS="polling", BOT_DATABASE_URL=url)


def test_it_speaks_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    output = magpie("doctor", BOT_ADAPTERS="polling")
    assert "数据库" in output
    assert "最近收到：从未" in output


# -- new-adapter


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Enough of Magpie's own source for one more adapter."""
    folder = tmp_path / "checkout"
    for package in ("adapters", "tests/adapters"):
        (folder / package).mkdir(parents=True)
    for file in ("adapters/__init__.py", "adapters/py.typed", "tests/__init__.py", "tests/adapters/__init__.py"):
        (folder / file).touch()
    (folder / "bot").symlink_to(ROOT / "bot")
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    return folder


def tool(folder: Path, *command: str) -> None:
    """Run a development tool in a folder as a developer would."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_adapter_in_the_checkout_is_complete_and_clean(checkout: Path) -> None:
    before = (checkout / "pyproject.toml").read_text()
    magpie("new-adapter", "acme_two", "--into", str(checkout))
    assert json.loads((checkout / "tests/adapters/fixtures/acme_two/message.json").read_text())["text"] == "Hello!"
    after = (checkout / "pyproject.toml").read_text()
    (line,) = set(after.splitlines()) - set(before.splitlines())
    assert line == 'acme_two = "adapters.acme_two:AcmeTwoAdapter"'
    listed = tomllib.loads(after)["project"]["entry-points"][GROUP]
    assert list(listed) == sorted(listed)
    written = ("adapters/acme_two.py", "tests/adapters/test_acme_two.py")
    tool(checkout, "pytest", "-q", written[1])
    tool(checkout, "ruff", "check", *written)
    tool(checkout, "ruff", "format", "--check", *written)
    tool(checkout, "mypy", *written)


def test_a_new_package_keeps_every_promise_and_is_clean() -> None:
    magpie("new-adapter", "acme_two")
    folder = Path("magpie-acme-two").resolve()
    tool(folder, "pytest", "-q")
    tool(folder, "ruff", "check", "--config", str(ROOT / "pyproject.toml"), "--ignore", "I001", ".")


def test_a_new_adapter_never_overwrites() -> None:
    magpie("new-adapter", "acme")
    assert "is there already" in magpie("new-adapter", "acme", code=2)


@pytest.mark.parametrize("name", ["Acme", "9lives", "acme-two", "import", "bot", "a__b", ""])
def test_a_name_that_python_cannot_import_is_refused(name: str) -> None:
    assert "is no good" in magpie("new-adapter", name, code=2)


# -- serve


@pytest.mark.parametrize(("display", "opened"), [({}, False), ({"DISPLAY": ":0"}, True)])
def test_the_browser_is_opened_only_where_there_is_a_display(
    display: dict[str, str], opened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name, value in display.items():
        monkeypatch.setenv(name, value)
    assert serve._has_display() is opened
