"""`magpie register`: tell the platforms where we are, then call ourselves the way they do."""

from __future__ import annotations

from bot import selfcall
from bot.adapter import AnyAdapter, WebhookAdapter
from bot.cli import outside
from bot.cli.report import Report, asked
from bot.cli.speech import language, say
from bot.registry import Config


def run(name: str) -> None:
    """Register one instance or all; exit code 1 when something failed."""
    config = outside.configuration(outside.chosen(name))
    report = Report()
    outside.run(_register(config, report))
    report.end()


async def _register(config: Config, report: Report) -> None:
    async with outside.opened(config) as (_, adapters):
        for instance, adapter in adapters.items():
            report.heading(f"{adapter.title} ({instance})")
            await with_platform(config, adapter, report)
            report.add(await selfcall.call(adapter, config.bot, language()))


async def with_platform(config: Config, adapter: AnyAdapter, report: Report) -> None:
    """Let an adapter register its webhook, where it has one and the world can reach it."""
    if not isinstance(adapter, WebhookAdapter):
        report.note(say("nothing to register: no platform calls it", "无需登记：没有平台回调它"))
    elif config.bot.public_url:
        report.add(await asked(adapter.register(outside.webhook(config, adapter.context.instance))))
