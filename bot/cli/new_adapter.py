"""`magpie new-adapter NAME`: an adapter that works, to be changed until it is yours."""

from __future__ import annotations

import keyword
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from string import Template

import typer

from bot import registry
from bot.cli.report import fail
from bot.cli.speech import say

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
SECTION = f'[project.entry-points."{registry.GROUP}"]\n'

Files = dict[str, str]  # path of a new file -> template
CHECKOUT: Files = {
    "adapters/$name.py": "adapter.py",
    "tests/adapters/test_$name.py": "test.py",
    "tests/adapters/fixtures/$name/message.json": "message.json",
}
PACKAGE: Files = {
    "magpie-$dashed/pyproject.toml": "pyproject.toml",
    "magpie-$dashed/README.md": "README.md",
    "magpie-$dashed/magpie_$name.py": "adapter.py",
    "magpie-$dashed/tests/test_$name.py": "test.py",
    "magpie-$dashed/tests/fixtures/message.json": "message.json",
}


def run(name: str, into: Path) -> None:
    """Write the files; ends the program with code 2 when the name is no good or a file is there already."""
    if not NAME.fullmatch(name) or keyword.iskeyword(name) or name.upper() in registry.TAKEN:
        raise fail(
            [
                say(
                    f'"{name}" is no good: a-z, 0-9 and "_", such as acme',
                    f"“{name}” 不可用：请用 a-z、0-9 和 “_”，例如 acme",
                )
            ]
        )
    inside = _is_checkout(into)
    words = _words(name, inside)
    written = {into / Template(path).substitute(words): _text(source, words) for path, source in _files(inside).items()}
    if present := [str(path) for path in written if path.exists()]:
        raise fail([f"{path}: " + say("is there already", "已存在") for path in present])
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        typer.echo(f"  {path}")
    if inside:
        _add_entry_point(into / "pyproject.toml", name, words["Class"])
    _next_steps(name, into, inside)


def _files(inside: bool) -> Files:
    return CHECKOUT if inside else PACKAGE


def _is_checkout(folder: Path) -> bool:
    """Whether a folder is Magpie's own source."""
    project = folder / "pyproject.toml"
    return project.exists() and tomllib.loads(project.read_text("utf-8")).get("project", {}).get("name") == "magpie-im"


def _words(name: str, inside: bool) -> dict[str, str]:
    """Return what the templates' variables stand for."""
    parts = [part.capitalize() for part in name.split("_")]
    return {
        "name": name,
        "dashed": name.replace("_", "-"),
        "PREFIX": name.upper(),
        "Class": "".join(parts),
        "title": " ".join(parts),
        "module": f"adapters.{name}" if inside else f"magpie_{name}",
        "fixtures": f"fixtures/{name}" if inside else "fixtures",
    }


def _text(source: str, words: dict[str, str]) -> str:
    template = files("bot.cli") / "templates" / f"{source}.tmpl"
    return Template(template.read_text("utf-8")).substitute(words)


def _add_entry_point(project: Path, name: str, stem: str) -> None:
    """Put the adapter's line into the sorted list of entry points."""
    head, section, tail = project.read_text("utf-8").partition(SECTION)
    listed, gap, rest = tail.partition("\n\n")
    lines = sorted([*listed.splitlines(), f'{name} = "adapters.{name}:{stem}Adapter"'])
    project.write_text(head + section + "\n".join(lines) + gap + rest, encoding="utf-8")
    typer.echo(f"  {project}")


def _next_steps(name: str, into: Path, inside: bool) -> None:
    typer.echo(
        say(
            "\nIt works as it stands, for an imaginary platform. Next:",
            "\n它现在就能运行（对接一个虚构的平台）。接下来：",
        )
    )
    if inside:
        steps = ["make install", f"pytest tests/adapters/test_{name}.py", "magpie adapters --env > .env.example"]
    else:
        steps = [f"cd {into / ('magpie-' + name.replace('_', '-'))}", 'pip install -e ".[dev]"', "pytest"]
    for step in steps:
        typer.echo(f"  {step}")
