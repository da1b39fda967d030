"""The documentation is true: what exists is documented, what is linked exists, the two READMEs say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from prometheus_client import Metric
from pydantic import BaseModel

from adapters.api import LIMITS, REFUSALS
from bot import __version__, errors, metrics, registry
from bot.adapter import AnyAdapter
from bot.cli import envfile
from bot.cli.commands import app
from bot.commands import NAMES
from bot.config import BotSettings, ModelSettings, variable

ROOT = Path(__file__).parent.parent
ADAPTERS = registry.available()
PAGES = sorted(path for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md") for path in ROOT.glob(pattern))
READMES = ("README.md", "README.zh-CN.md")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
SHARED = {"system_prompt", "api_base"}  # documented once, as <INSTANCE>_...


def text(name: str) -> str:
    path = ROOT / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


def prose(name: str) -> str:
    """Return a page without its code blocks."""
    return FENCE.sub("", text(name))


def identity(value: object) -> str:
    return str(value)


# -- settings


def settings_of_the_core() -> Iterator[tuple[str, str]]:
    """Yield each variable with its default."""
    core: tuple[tuple[str, type[BaseModel]], ...] = (("bot", BotSettings), ("openai", ModelSettings))
    for prefix, model in core:
        for name, field in envfile.fields(model):
            yield variable(prefix, name), envfile.default(field)


@pytest.mark.parametrize(("name", "default"), list(settings_of_the_core()), ids=identity)
def test_settings_are_documented_with_their_defaults(name: str, default: str) -> None:
    row = re.search(rf"^\| `{name}` \| (.*?) ?\| (.+) \|$", text("docs/configuration.md"), re.MULTILINE)
    assert row, f"docs/configuration.md has no row for {name}"
    assert row[1].strip("`") == default.replace("\n", "\\n")


@pytest.mark.parametrize("adapter", list(ADAPTERS.values()), ids=list(ADAPTERS))
def test_settings_of_adapters_are_documented(adapter: type[AnyAdapter]) -> None:
    pages = text("docs/configuration.md") + text(f"docs/{adapter.name}.md")
    own = adapter.Settings.model_fields.keys() - SHARED
    missing = [name for field in own if (name := variable(adapter.name, field)) not in pages]
    assert not missing, f"neither docs/configuration.md nor docs/{adapter.name}.md"


def test_documented_variables_exist() -> None:
    known = {name for name, _ in settings_of_the_core()}
    known |= {variable(name, field) for name, adapter in ADAPTERS.items() for field in adapter.Settings.model_fields}
    named = set(re.findall(r"^\| `([A-Z][A-Z_]+)` \|", text("docs/configuration.md"), re.MULTILINE))
    assert named <= known


# -- what people type and see


@pytest.mark.parametrize(
    "command", app.registered_commands, ids=lambda command: command.name or command.callback.__name__
)
def test_commands_are_documented(command: object) -> None:
    name = getattr(command, "name", None) or getattr(command, "callback").__name__  # noqa: B009
    documented = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert re.search(rf"\bmagpie [^`]*\b{re.escape(name)}\b", documented)


@pytest.mark.parametrize("readme", READMES)
def test_readmes_list_every_chat_command_and_platform(readme: str) -> None:
    missing = [f"/{name}" for name in NAMES if f"`/{name}`" not in text(readme)]
    missing += [name for name in ADAPTERS if not re.search(rf"^\| `{name}` \|", text(readme), re.MULTILINE)]
    assert not missing


def codes(error: type[errors.ModelError]) -> Iterator[str]:
    yield error.code
    for kind in error.__subclasses__():
        yield from codes(kind)


def test_error_codes_of_the_api_are_documented() -> None:
    used = {*codes(errors.ModelError), *LIMITS, *REFUSALS, "timeout", "turn_timeout", "unauthorized", "bad_request"}
    assert not [code for code in sorted(used) if f"`{code}`" not in text("docs/api.md")]


@pytest.mark.parametrize("metric", list(metrics.REGISTRY.collect()), ids=lambda metric: metric.name)
def test_metrics_are_documented(metric: Metric) -> None:
    name = f"{metric.name}_total" if metric.type == "counter" else metric.name
    assert re.search(rf"^\| `{name}\b", text("docs/deploying.md"), re.MULTILINE)


def test_changelog_has_this_version() -> None:
    assert f"\n## {__version__} " in text("CHANGELOG.md")


# -- links


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
            if not re.match(r"[a-z]+:", link):
                yield page, link


@pytest.mark.parametrize(
    ("page", "link"), list(links()), ids=lambda part: part.name if isinstance(part, Path) else part
)
def test_links_lead_somewhere(page: Path, link: str) -> None:
    path, _, anchor = unquote(link).partition("#")
    target = (page.parent / path).resolve() if path else page
    assert target.is_relative_to(ROOT)
    assert target.exists()
    assert not anchor or anchor in anchors(target)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_code_exist(page: Path) -> None:
    """`bot/adapter.py` and the like in running text are files of ours."""
    named = re.findall(
        r"`((?:bot|adapters|tests|docs|deploy|examples)/[\w./-]+\.\w+)`", prose(str(page.relative_to(ROOT)))
    )
    assert not [name for name in named if not (ROOT / name).exists() and "acme" not in name]


# -- the two READMEs


def test_readmes_have_the_same_shape() -> None:
    english, chinese = (re.findall(r"^(#+) |^(\||\d\.|!\[)", prose(name), re.MULTILINE) for name in READMES)
    assert english == chinese


def test_readmes_have_the_same_code() -> None:
    english, chinese = (FENCE.findall(text(name)) for name in READMES)
    assert english == chinese


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([\w./]+):", text("Makefile"), re.MULTILINE))
    code = "\n".join(part for page in PAGES for part in CODE.findall(page.read_text(encoding="utf-8")))
    assert set(re.findall(r"(?:^|`|&& |-u magpie )make ([\w./]+)", code, re.MULTILINE)) <= targets
