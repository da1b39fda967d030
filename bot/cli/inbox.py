"""`magpie inbox`: the messages that were given up, for the operator to decide about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import typer
from rich.console import Console
from rich.table import Table

from bot import log
from bot.cli import outside
from bot.cli.report import fail
from bot.cli.speech import say
from bot.log import redact
from bot.store import Parked, Store

SHOWN = 200  # messages in the list
LOOKED_AT = 100_000  # messages among which an id is looked for

Deed = Callable[[Store, Parked], Awaitable[bool]]


def list_all() -> None:
    """Print the newest of them, one a line, without their texts."""
    outside.run(_list())


def show(identity: str) -> None:
    """Print one of them."""
    outside.run(_show(identity))


def retry(ids: Sequence[str], everything: bool) -> None:
    """Bring them back into their conversations."""
    outside.run(_each(ids, everything, lambda store, parked: store.revive(parked), *_RETRIED))


def drop(ids: Sequence[str], everything: bool) -> None:
    """Delete them."""
    outside.run(_each(ids, everything, lambda store, parked: store.drop(parked), *_DROPPED))


_RETRIED = (
    ("brought back: {}", "已放回：{}"),
    ("is being worked on, try again in a moment: {}", "正在处理，请稍后再试：{}"),
)
_DROPPED = (("dropped: {}", "已丢弃：{}"), ("cannot be dropped now: {}", "暂时无法丢弃：{}"))


async def _list() -> None:
    log.configure("console", "error")
    async with outside.store() as store:
        parked = await store.parked(SHOWN)
        total = (await store.counts())["parked"]
    if not parked:
        typer.echo(say("Nothing was given up.", "没有搁置的消息。"))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("id", say("when", "时间"), say("instance", "实例"), say("person", "用户"), say("reason", "原因")):
        table.add_column(head, overflow="fold")
    for one in parked:
        table.add_row(one.id, _time(one), one.instance, one.message.user, redact(one.reason))
    Console().print(table)
    if total > len(parked):
        typer.echo(say(f"and {total - len(parked)} older ones", f"另有更早的 {total - len(parked)} 条"))


async def _show(identity: str) -> None:
    log.configure("console", "error")
    async with outside.store() as store:
        (one,) = await _find(store, [identity])
    written = say("written, not delivered", "已写好，未送达") if one.turn else say("not written", "未写")
    for name, value in (
        ("id", one.id),
        (say("message", "消息"), one.message.id),
        (say("when", "时间"), _time(one)),
        (say("instance", "实例"), one.instance),
        (say("chat", "会话"), one.message.chat.id),
        (say("person", "用户"), one.message.user),
        (say("tries", "次数"), str(one.tries)),
        (say("reason", "原因"), redact(one.reason)),
        (say("answer", "回答"), written),
    ):
        typer.echo(f"{name}: {value}")
    typer.echo(f"\n{one.message.text}")


async def _each(
    ids: Sequence[str], everything: bool, deed: Deed, done: tuple[str, str], undone: tuple[str, str]
) -> None:
    """Do something with the chosen ones; exit code 1 when some of them could not be had."""
    log.configure("console", "error")
    if bool(ids) == everything:
        raise fail([say("name messages by their ids, or say --all", "请给出编号，或使用 --all")])
    async with outside.store() as store:
        chosen = await store.parked(LOOKED_AT) if everything else await _find(store, ids)
        for one in chosen:
            await deed(store, one)
        still = {one.id for one in await store.parked(LOOKED_AT)}
    left = [one.id for one in chosen if one.id in still]
    typer.echo(say(*done).format(len(chosen) - len(left)))
    if left:
        raise fail([say(*undone).format(" ".join(left))], 1)


async def _find(store: Store, ids: Sequence[str]) -> list[Parked]:
    """Return the messages of these ids, of which the beginning is enough. Ends the program for an unknown one."""
    parked = await store.parked(LOOKED_AT)
    found = [[one for one in parked if one.id.startswith(identity)] for identity in ids]
    unknown = [identity for identity, matches in zip(ids, found, strict=True) if len(matches) != 1]
    if unknown:
        raise fail(
            [
                say(f"no message {identity}; see `magpie inbox list`", f"没有 {identity}；见 `magpie inbox list`")
                for identity in unknown
            ],
            1,
        )
    return [one for (one,) in found]


def _time(one: Parked) -> str:
    return datetime.fromtimestamp(one.accepted).astimezone().isoformat(" ", "seconds")
