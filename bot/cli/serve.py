"""`magpie serve`: the server."""

from __future__ import annotations

import asyncio
import os
import sys
import webbrowser
from collections.abc import Coroutine

import structlog
import typer

from bot import app, log
from bot.cli import outside
from bot.cli.report import fail
from bot.cli.speech import say
from bot.errors import MagpieError
from bot.registry import Config, Configured


def run(open_browser: bool) -> None:
    """Serve until SIGTERM or Ctrl-C. Exit code 2 for wrong settings, 1 when it cannot start."""
    config = outside.configuration()
    log.configure(config.bot.log, config.bot.log_level)
    for warning in config.warnings:
        structlog.get_logger().warning("setting", problem=warning)

    def ready(address: str) -> None:
        if config.bot.log == "console":
            _announce(config, address)
        if open_browser and _has_display():
            webbrowser.open(address)

    try:
        _run(app.serve(config, ready))
    except (MagpieError, OSError) as error:
        raise fail([str(error)], 1) from None


def _run(server: Coroutine[None, None, None]) -> None:
    try:
        import uvloop
    except ImportError:  # not on Windows
        return asyncio.run(server)
    return uvloop.run(server)


def _announce(config: Config, address: str) -> None:
    address = address.replace("//0.0.0.0", "//127.0.0.1").rstrip("/")
    typer.echo(say(f"Magpie listens at {address} (Ctrl-C ends it)", f"Magpie 已启动：{address}（Ctrl-C 结束）"))
    for one in config.instances:
        typer.echo(f"  {one.adapter.title}: {config.bot.public_url or address}{_path(one)}")
    if config.model.demo:
        typer.echo(
            say(
                "No OPENAI_API_KEY: a small built-in demo model answers.",
                "未设置 OPENAI_API_KEY：由内置的演示模型回答。",
            )
        )


def _path(one: Configured) -> str:
    """Where an instance is found: an address of its own, or its webhook."""
    return next(iter(one.adapter.also_at), f"/webhooks/{one.instance}")


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
