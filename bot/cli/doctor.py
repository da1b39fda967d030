"""`magpie doctor`: settings, database, model, and each platform from both sides."""

from __future__ import annotations

from bot import health, model, selfcall
from bot.adapter import AnyAdapter, Finding
from bot.cli import outside
from bot.cli.report import Report, asked
from bot.cli.speech import language, say
from bot.errors import MagpieError
from bot.registry import Config
from bot.store import Store


def run(name: str) -> None:
    """Look at everything; exit code 1 when something is wrong."""
    config = outside.configuration(outside.chosen(name))
    report = Report()
    report.heading(say("Settings", "设置"))
    report.add([Finding(True, say("all variables are valid", "所有变量有效"))])
    report.add(Finding(False, warning) for warning in config.warnings)
    outside.run(_examine(config, report))
    report.end()


async def _examine(config: Config, report: Report) -> None:
    await _model(config, report)
    report.heading(say("Database", "数据库"))
    try:
        async with outside.opened(config) as (store, adapters):
            await _database(config, store, report)
            for adapter in adapters.values():
                await _platform(config, adapter, store, report)
    except (MagpieError, OSError) as error:
        advice = say(
            "check BOT_DATABASE_URL, its folder's owner and the free space",
            "请检查 BOT_DATABASE_URL、目录权限与磁盘空间",
        )
        report.add([Finding(False, str(error), advice)])


async def _model(config: Config, report: Report) -> None:
    report.heading(say("Model", "模型"))
    asking = model.create(config.model)
    try:
        report.add(await asking.check())
    finally:
        await asking.close()


async def _database(config: Config, store: Store, report: Report) -> None:
    await store.probe()
    url = config.bot.database_url
    report.add([Finding(True, say(f"{url} can be written", f"{url} 可写"))])
    for what, count in (await store.counts()).items():
        report.note(f"{what}: {count}")


async def _platform(config: Config, adapter: AnyAdapter, store: Store, report: Report) -> None:
    instance = adapter.context.instance
    report.heading(f"{adapter.title} ({instance})")
    report.add(await asked(adapter.check(outside.webhook(config, instance))))
    report.add(await selfcall.call(adapter, config.bot, language()))
    seen = await health.read(store, instance)
    never = say("never", "从未")
    report.note(say("last delivery: ", "最近收到：") + (seen.last_delivery or never))
    report.note(say("last post: ", "最近发出：") + (seen.last_send or never))
    if seen.last_error:
        report.note(say("last error: ", "最近错误：") + seen.last_error)
