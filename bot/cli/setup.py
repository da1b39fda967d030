"""`magpie setup NAME`: from nothing to a platform that calls us."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import msgspec
import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from bot import log, registry
from bot.adapter import AnyAdapter, Finding, WebhookAdapter
from bot.cli import envfile, outside, register
from bot.cli.report import Report, asked, fail
from bot.cli.speech import say
from bot.config import BotSettings, Environment, variable
from bot.errors import ConfigError, MagpieError
from bot.registry import Config

ENV_FILE = Path(".env")
ADAPTERS, PUBLIC_URL = "BOT_ADAPTERS", "BOT_PUBLIC_URL"
INVENTED = "invented"  # in a field's json_schema_extra: a secret the operator makes up, so we offer one

Values = dict[str, str]


class Target(msgspec.Struct, frozen=True):
    """What is being set up: an entry of BOT_ADAPTERS and its adapter."""

    entry: str
    instance: str
    adapter: type[AnyAdapter]

    @property
    def variables(self) -> dict[str, FieldInfo]:
        """The instance's variables in the order they are asked for."""
        return {variable(self.instance, name): field for name, field in envfile.fields(self.adapter.Settings)}


def run(name: str, given: Sequence[str]) -> None:
    """Ask (unless values are `given`), try, write .env, register; exit code 1 when the platform refuses."""
    log.configure("console", "warning")
    target = _target(name)
    env = Environment.load(ENV_FILE)
    values = _parse(target, given) if given else _ask_all(target, env)
    config = _checked(target, env, values)
    report = Report()
    _try(config, report, interactive=not given)
    _save(target, env, values)
    outside.run(_register(config, report))
    _next_steps(target, config)
    report.end()


def _target(name: str) -> Target:
    instance, adapter = registry.split(name)
    points = registry.installed()
    if adapter not in points:
        problem = say(f'there is no adapter "{adapter}"', f"没有适配器 “{adapter}”")
        raise fail([problem + registry.did_you_mean(adapter), say("see: magpie adapters", "参见：magpie adapters")])
    try:
        return Target(name, instance, registry.import_adapter(points[adapter]))
    except MagpieError as error:
        raise fail([str(error)]) from None


# -- answers


def _parse(target: Target, given: Sequence[str]) -> Values:
    """Read VARIABLE=VALUE options; ends the program for a variable that does not belong here."""
    core = {variable(prefix, field) for prefix, model in registry.TAKEN.items() for field in model.model_fields}
    known = core | target.variables.keys()
    values = {name: value for name, _, value in (pair.partition("=") for pair in given)}
    if problems := [_unknown(name, known) for name in values if name not in known]:
        raise fail(problems)
    return values


def _unknown(name: str, known: set[str]) -> str:
    near = registry.nearest(name, known)
    return f"{name}: " + say("is not a setting", "不是有效的变量") + (f" ({near}?)" if near else "")


def _ask_all(target: Target, env: Environment) -> Values:
    """Ask for each setting; what equals its default is not written down."""
    adapter = target.adapter
    typer.secho(f"{adapter.title}: {adapter.docs}", bold=True)
    typer.echo(say("Enter keeps what is in brackets.", "直接回车则使用方括号中的值。"))
    values = {}
    for name, field in target.variables.items():
        present = env.variables.get(name, "")
        value = _ask(target, name, field, present)
        if present or value != envfile.default(field):
            values[name] = value
    if _needs_public_url(adapter) and PUBLIC_URL not in env.variables:
        values |= _ask_public_url()
    return values


def _ask(target: Target, name: str, field: FieldInfo, present: str) -> str:
    """Ask until the answer is valid."""
    secret = field.annotation is SecretStr or SecretStr in get_args(field.annotation)
    default = present or envfile.default(field) or _invented(field)
    typer.secho(f"\n{field.description}", dim=True)
    while True:
        value = str(
            typer.prompt(
                name + (say(" [unchanged]", " [不变]") if secret and default else ""),
                default=default or (None if field.is_required() else ""),
                hide_input=secret,
                show_default=bool(default) and not secret,
            )
        ).strip()
        problem = _problem(target, name, value)
        if not problem:
            return value
        typer.secho(problem, fg=typer.colors.RED)


def _invented(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return secrets.token_urlsafe(32) if isinstance(extra, Mapping) and extra.get(INVENTED) else ""


def _problem(target: Target, name: str, value: str) -> str:
    """Return what is wrong with one value, "" for nothing."""
    env = Environment({name: value})
    env.read(target.adapter.Settings, target.instance)
    return next((problem for problem in env.problems if problem.startswith(f"{name}: ")), "")


def _needs_public_url(adapter: type[AnyAdapter]) -> bool:
    """Whether a platform out there calls it, rather than a page or an app of our own."""
    return issubclass(adapter, WebhookAdapter) and not adapter.also_at


def _ask_public_url() -> Values:
    description = BotSettings.model_fields["public_url"].description
    typer.secho(f"\n{description}" + say(" (Enter: later)", "（回车：以后再说）"), dim=True)
    url = str(typer.prompt(PUBLIC_URL, default="", show_default=False)).strip()
    return {PUBLIC_URL: url} if url else {}


# -- trying, writing, registering


def _checked(target: Target, env: Environment, values: Values) -> Config:
    try:
        return registry.load(Environment({**env.variables, **values}), [target.entry])
    except ConfigError as error:
        raise fail(error.problems) from None


def _try(config: Config, report: Report, interactive: bool) -> None:
    """Show the settings to the platform; what it refuses altogether is written down only if the operator insists."""
    report.heading(say("Trying the settings", "验证设置"))
    findings = outside.run(_check(config))
    good = [finding for finding in findings if finding.ok]
    report.add(good or findings)  # before the registration a missing webhook is nothing to report
    question = say("Write them down all the same?", "仍然写入吗？")
    if findings and not good and not (interactive and typer.confirm(question, default=False)):
        raise typer.Exit(1)


async def _check(config: Config) -> list[Finding]:
    async with outside.opened(config) as (_, adapters):
        (adapter,) = adapters.values()
        return await asked(adapter.check(outside.webhook(config, adapter.context.instance)))


def _save(target: Target, env: Environment, values: Values) -> None:
    """Write .env, with the instance switched on."""
    entries = list(registry.entries(Environment({**env.variables, **values})))
    if target.instance not in (registry.split(entry)[0] for entry in entries):
        values = {**values, ADAPTERS: ",".join([*entries, target.entry])}
    try:
        envfile.update(ENV_FILE, values)
    except OSError as error:
        raise fail([f"{ENV_FILE}: {error.strerror}"], 1) from None
    typer.echo(say(f"\nWritten to {ENV_FILE}: ", f"\n已写入 {ENV_FILE}：") + ", ".join(values))
    for name, value in values.items():
        if os.environ.get(name, value) != value:
            beaten = say("in the environment is another and beats .env", "环境变量中的值不同，并优先于 .env")
            typer.secho(f"{name}: {beaten}", fg=typer.colors.YELLOW)


async def _register(config: Config, report: Report) -> None:
    async with outside.opened(config) as (_, adapters):
        (adapter,) = adapters.values()
        report.heading(say("Registering the webhook", "登记回调地址"))
        await register.with_platform(config, adapter, report)


def _next_steps(target: Target, config: Config) -> None:
    typer.echo()
    if _needs_public_url(target.adapter) and not config.bot.public_url:
        typer.echo(say(f"Then set {PUBLIC_URL}.", f"接下来请设置 {PUBLIC_URL}。"))
    again = f"`magpie register {target.instance}`"
    typer.echo(say("Now (re)start the server: `magpie serve`.", "现在请（重新）启动服务：`magpie serve`。"))
    typer.echo(say(f"Then {again} tries the way from outside.", f"然后用 {again} 从外部自测。"))
