"""`magpie migrate`: from a SQLite file into PostgreSQL."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bot import log
from bot.cli import outside
from bot.cli.report import fail
from bot.cli.speech import say
from bot.errors import ConfigError

COLUMNS = (TextColumn("{task.description:14}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def run(source: str, target: str) -> None:
    """Copy everything. Exit code 1 when it cannot be done; what was copied by then is not copied again."""
    log.configure("console", "error")
    if not target.startswith(("postgresql://", "postgres://")):
        raise fail([say("the target must begin with postgresql://", "目标地址须以 postgresql:// 开头")])
    with Progress(*COLUMNS, console=Console()) as bars:
        outside.run(_migrate(source.removeprefix("sqlite:///"), target, bars))
    typer.echo(say("Done. Now set BOT_DATABASE_URL and start.", "完成。请设置 BOT_DATABASE_URL 后启动。"))


async def _migrate(source: str, target: str, bars: Progress) -> None:
    tables: dict[str, TaskID] = {}

    def progress(table: str, done: int, total: int) -> None:
        if table not in tables:
            tables[table] = bars.add_task(table, total=total)
        bars.update(tables[table], completed=done)

    try:
        from bot.store.migrate import migrate
    except ConfigError as error:
        raise fail(error.problems) from None
    await migrate(source, target, progress)
