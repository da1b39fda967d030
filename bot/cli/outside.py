"""Settings and adapters for commands that run beside the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from bot import log, registry
from bot.adapter import AnyAdapter, Context
from bot.cli.report import fail
from bot.cli.speech import language, say
from bot.config import BotSettings, Environment
from bot.errors import ConfigError, MagpieError
from bot.registry import Config
from bot.store import Store, open_store

T = TypeVar("T")


def configuration(adapters: Sequence[str] | None = None, level: str = "error") -> Config:
    """Read the settings; ends the program with code 2 when they are wrong, naming every problem."""
    log.configure("console", level)
    try:
        return registry.load(Environment.load(), adapters)
    except ConfigError as error:
        hint = say("(set it in .env or the environment)", "（在 .env 或环境变量中设置）")
        raise fail([*error.problems, hint]) from None


def chosen(name: str) -> list[str]:
    """Return the entries of BOT_ADAPTERS, or just the one of an instance. Ends the program for an unknown one."""
    entries = list(registry.entries(Environment.load()))
    if not name:
        return entries
    instances = {registry.split(entry)[0]: entry for entry in entries}
    if name not in instances:
        known = ", ".join(instances)
        problem = say(f'"{name}" is not in BOT_ADAPTERS ({known})', f"BOT_ADAPTERS（{known}）中没有 “{name}”")
        raise fail([problem, say(f"add it: magpie setup {name}", f"添加：magpie setup {name}")])
    return [instances[name]]


@asynccontextmanager
async def store() -> AsyncIterator[Store]:
    """Open the database that BOT_DATABASE_URL names; nothing else of the settings matters. Raises StoreUnavailable."""
    env = Environment.load()
    bot = env.read(BotSettings, "bot")
    if bot is None:
        raise fail(env.problems)
    store = open_store(bot.database_url)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[tuple[Store, dict[str, AnyAdapter]]]:
    """Open the database and start the configured adapters. Raises StoreUnavailable."""
    store = open_store(config.bot.database_url)
    async with AsyncExitStack() as stack:
        await store.open()
        stack.push_async_callback(store.close)
        adapters = {}
        for one in config.instances:
            context = Context(one.instance, store.state(one.instance), config.bot.public_url, language())
            adapters[one.instance] = adapter = one.adapter(one.settings, context)
            await adapter.start()
            stack.push_async_callback(adapter.stop)
        yield store, adapters


def webhook(config: Config, instance: str) -> str:
    """Return the public address of an instance's webhook."""
    return f"{config.bot.public_url}/webhooks/{instance}"


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; what Magpie raises on purpose is one line and exit code 1, no traceback."""
    try:
        return asyncio.run(work)
    except (MagpieError, OSError) as error:
        raise fail([str(error)], 1) from None
