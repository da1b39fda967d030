"""The .env file: changed in place, by its owner only, and the example that lists every variable."""

from __future__ import annotations

import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from dotenv import dotenv_values

from bot import registry
from bot.cli import envfile
from bot.config import BotSettings, ModelSettings, variable

ROOT = Path(__file__).parent.parent

BEFORE = """\
# my bot
OPENAI_API_KEY=sk-old # the old one

export ACME_TOKEN='two
lines'
BOT_PORT = 9000
this line means nothing
LAST=1"""
AFTER = """\
# my bot
OPENAI_API_KEY=sk-new

ACME_TOKEN=token
BOT_PORT = 9000
this line means nothing
LAST=1
ACME_SECRET='with space'
"""


def test_lines_are_changed_in_place_and_everything_else_stays(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text(BEFORE)
    path.chmod(0o644)
    envfile.update(path, {"OPENAI_API_KEY": "sk-new", "ACME_TOKEN": "token", "ACME_SECRET": "with space"})
    assert path.read_text() == AFTER
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_there_is_made_for_its_owner_only(tmp_path: Path) -> None:
    envfile.update(tmp_path / ".env", {"A": "1"})
    assert (tmp_path / ".env").read_text() == "A=1\n"
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / ".env"
    real.write_text("A=1\n")
    link.symlink_to(real)
    envfile.update(link, {"A": "2"})
    assert link.is_symlink()
    assert real.read_text() == "A=2\n"


@pytest.mark.parametrize(
    "value",
    ["", "plain", "a b", "it's", 'say "hi"', "back\\slash\\", "#no comment", "$HOME ${X}", "喜鹊", "two\nlines", " x "],
)
def test_any_value_is_read_back_as_it_was(value: str, tmp_path: Path) -> None:
    path = tmp_path / ".env"
    envfile.update(path, {"BEFORE": "1", "VALUE": value, "AFTER": "2"})
    assert dotenv_values(path, interpolate=False) == {"BEFORE": "1", "VALUE": value, "AFTER": "2"}


def test_the_same_variable_twice_is_changed_twice(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("A=1\nA=2\n")
    envfile.update(path, {"A": "3"})
    assert dotenv_values(path) == {"A": "3"}


def test_nothing_is_left_behind_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError("no space left on device")

    path = tmp_path / ".env"
    path.write_text("A=1\n")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        envfile.update(path, {"A": "2"})
    assert path.read_text() == "A=1\n"
    assert list(tmp_path.iterdir()) == [path]


def test_the_example_in_the_repository_is_up_to_date() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = sorted(project["entry-points"][registry.GROUP].items())
    points = [EntryPoint(name, value, registry.GROUP) for name, value in ours]
    generated = envfile.example({point.name: registry.import_adapter(point) for point in points})
    told = "run: magpie adapters --env > .env.example"
    assert (ROOT / ".env.example").read_text(encoding="utf-8") == generated, told


def test_the_example_holds_every_variable_of_the_core_and_sets_none(tmp_path: Path) -> None:
    text = envfile.example({})
    for prefix, model in (("bot", BotSettings), ("openai", ModelSettings)):
        for field, info in model.model_fields.items():
            assert f"\n#{variable(prefix, field)}={envfile._quoted(envfile.default(info))}\n" in text
    path = tmp_path / ".env"
    path.write_text(text)
    assert dotenv_values(path) == {}
    path.write_text(text.replace("\n#OPENAI", "\nOPENAI").replace("\n#BOT", "\nBOT"))
    read = BotSettings.model_validate({}).database_url
    assert dotenv_values(path)["BOT_DATABASE_URL"] == read
