"""`magpie adapters`: what is installed, and which variables it wants."""

from __future__ import annotations

from typing import Any

import msgspec
import typer

from bot import log, registry
from bot.adapter import AnyAdapter
from bot.cli import envfile
from bot.cli.report import fail
from bot.cli.speech import say
from bot.config import Environment, variable


def run(as_json: bool, as_env: bool) -> None:
    """Print all installed adapters: a table, JSON, or an example of a .env file."""
    log.configure("console", "warning")
    adapters = registry.available()
    if not adapters:
        raise fail([say("no adapter is installed: run `make install`", "没有安装任何适配器：请运行 `make install`")], 1)
    if as_env:
        typer.echo(envfile.example(adapters), nl=False)
        return
    described = [_describe(name, adapter, _instances(name)) for name, adapter in adapters.items()]
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(described)).decode())
    else:
        _print_table(described)


def _instances(name: str) -> list[str]:
    pairs = map(registry.split, registry.entries(Environment.load()))
    return [instance for instance, adapter in pairs if adapter == name]


def _describe(name: str, adapter: type[AnyAdapter], instances: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "title": adapter.title,
        "docs": adapter.docs,
        "instances": instances,
        "variables": [
            {
                "name": variable(name, field),
                "required": info.is_required(),
                "default": envfile.default(info),
                "description": info.description,
            }
            for field, info in envfile.fields(adapter.Settings)
        ],
    }


def _print_table(described: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in (
        say("name", "名称"),
        say("platform", "平台"),
        say("on", "启用"),
        say("variables (* required)", "变量（* 必填）"),
    ):
        table.add_column(head, overflow="fold")
    for one in described:
        names = [f"{each['name']}{'*' if each['required'] else ''}" for each in one["variables"]]
        table.add_row(one["name"], one["title"], ", ".join(one["instances"]) or "-", " ".join(names))
    Console().print(table)
