"""Which adapters are installed, which are switched on, and with what settings.

Adapters enter by the entry point group `magpie.adapters`, ours and strangers' alike. Only what is switched on is
imported.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from urllib.parse import unquote, urlsplit

import msgspec
import structlog
from pydantic import BaseModel, SecretStr

from bot import log
from bot.adapter import Adapter, AdapterSettings, AnyAdapter
from bot.config import BotSettings, Environment, ModelSettings, variable
from bot.errors import MagpieError

GROUP = "magpie.adapters"
INSTANCE = re.compile(r"[a-z][a-z0-9_-]*")
TAKEN: dict[str, type[BaseModel]] = {"BOT": BotSettings, "OPENAI": ModelSettings}  # prefixes no instance may have
READ_BY_THE_SDK = {"OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY", "OPENAI_WEBHOOK_SECRET", "OPENAI_LOG"}


class Configured(msgspec.Struct, frozen=True):
    """One entry of BOT_ADAPTERS with its settings."""

    instance: str
    adapter: type[AnyAdapter]
    settings: AdapterSettings


class Config(msgspec.Struct, frozen=True):
    """Everything one start needs to know. `warnings` are sentences for the operator, by variable name."""

    bot: BotSettings
    model: ModelSettings
    instances: tuple[Configured, ...]
    warnings: tuple[str, ...] = ()


class NotLoadable(MagpieError):
    """An installed adapter cannot be imported, or is none."""


def installed() -> dict[str, EntryPoint]:
    """Return the entry points of all adapters by name, sorted, without importing any."""
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if points.setdefault(point.name, point).value != point.value:
            structlog.get_logger().warning("adapter_claimed_twice", adapter=point.name, ignored=point.value)
    return dict(sorted(points.items()))


def import_adapter(point: EntryPoint) -> type[AnyAdapter]:
    """Import one adapter. Raises NotLoadable, whatever went wrong in it."""
    try:
        adapter = point.load()
    except Exception as error:  # a stranger's module may raise anything while it is imported
        raise NotLoadable(
            f"{point.name} ({point.value}) cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        raise NotLoadable(f"{point.name} ({point.value}) is not a subclass of bot.adapter.Adapter")
    return adapter


def available() -> dict[str, type[AnyAdapter]]:
    """Import every installed adapter. One that is broken is left out and reported in the log."""
    adapters = {}
    for name, point in installed().items():
        try:
            adapters[name] = import_adapter(point)
        except NotLoadable as error:
            structlog.get_logger().warning("adapter_broken", adapter=name, reason=str(error))
    return adapters


def load(env: Environment, adapters: Sequence[str] | None = None) -> Config:
    """Read all settings; `adapters` stands in for BOT_ADAPTERS. Raises ConfigError with every problem at once.

    Secrets that were read are hidden from the log from then on.
    """
    bot, model = env.read(BotSettings, "bot"), env.read(ModelSettings, "openai")
    chosen = list(_choose(entries(env) if adapters is None else adapters, env.problems))
    instances = [
        Configured(instance, adapter, settings)
        for instance, adapter in chosen
        if (settings := env.read(adapter.Settings, instance))
    ]
    env.done()
    assert bot is not None
    assert model is not None
    for read in (bot, model, *(configured.settings for configured in instances)):
        log.hide(*secrets(read))
    return Config(bot, model, tuple(instances), tuple(_warnings(env, bot, chosen)))


def secrets(settings: BaseModel) -> Iterator[str]:
    """Yield every secret value of a settings model."""
    for _, value in settings:
        if isinstance(value, SecretStr):
            yield value.get_secret_value()
    if isinstance(settings, ModelSettings):
        yield from settings.api_key
    if isinstance(settings, BotSettings) and (password := urlsplit(settings.database_url).password):
        yield from (password, unquote(password))


def entries(env: Environment) -> Sequence[str]:
    """Return the entries of BOT_ADAPTERS, also when another variable of the bot is wrong."""
    bot = Environment({"BOT_ADAPTERS": env.variables.get("BOT_ADAPTERS")}).read(BotSettings, "bot")
    assert bot is not None
    return bot.adapters


def split(entry: str) -> tuple[str, str]:
    """Split an entry of BOT_ADAPTERS into (instance, adapter): "telegram" is ("telegram", "telegram")."""
    instance, _, name = entry.partition("=")
    return instance.strip(), (name or instance).strip()


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the one of the names that was probably meant, "" when none is near."""
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.7)), "")


def did_you_mean(name: str) -> str:
    """Return ' (did you mean "x"?)' for the nearest adapter's name, "" when none is near."""
    near = nearest(name, installed())
    return f' (did you mean "{near}"?)' if near else ""


def _choose(entries: Sequence[str], problems: list[str]) -> Iterator[tuple[str, type[AnyAdapter]]]:
    """Yield (instance, adapter) for each good entry and note what is wrong with the others."""
    points = installed()
    if not points:
        problems.append("BOT_ADAPTERS: no adapter is installed; run `make install`, or `pip install -e .` here")
        return
    taken = {variable(prefix, field): prefix for prefix, model in TAKEN.items() for field in model.model_fields}
    for instance, name in map(split, entries):
        try:
            adapter = _resolve(instance, name, points)
            _claim(instance, adapter, taken)
        except MagpieError as problem:
            problems.append(f"BOT_ADAPTERS: {problem}")
        else:
            yield instance, adapter


def _resolve(instance: str, name: str, points: Mapping[str, EntryPoint]) -> type[AnyAdapter]:
    if not INSTANCE.fullmatch(instance):
        raise MagpieError(f'"{instance}" is no name for an instance: a letter, then a-z, 0-9, "_" and "-"')
    if instance.upper() in TAKEN:
        raise MagpieError(f'"{instance}" is taken: its variables would be those of Magpie itself')
    if name not in points:
        raise MagpieError(f'there is no adapter "{name}"{did_you_mean(name)}')
    return import_adapter(points[name])


def _claim(instance: str, adapter: type[AnyAdapter], taken: dict[str, str]) -> None:
    """Make sure that no variable would belong to two."""
    mine = {variable(instance, field): instance for field in adapter.Settings.model_fields}
    if instance in taken.values():
        raise MagpieError(f'"{instance}" is there twice; a second bot needs a name of its own: sales={adapter.name}')
    if shared := sorted(mine.keys() & taken.keys()):
        raise MagpieError(f'"{instance}" and "{taken[shared[0]]}" would share the variable {shared[0]}; rename one')
    taken.update(mine)


def _warnings(env: Environment, bot: BotSettings, chosen: Sequence[tuple[str, type[AnyAdapter]]]) -> Iterator[str]:
    if bot.public_url and not bot.public_url.startswith("https://"):
        yield "BOT_PUBLIC_URL: does not begin with https://; most platforms call nothing else"
    fields = {prefix: list(model.model_fields) for prefix, model in TAKEN.items()}
    fields |= {instance: list(adapter.Settings.model_fields) for instance, adapter in chosen}
    known = {variable(prefix, field) for prefix, names in fields.items() for field in names} | READ_BY_THE_SDK
    # The longest prefix owns a variable: WECOM_AIBOT_TOKEN is no mistake of the instance "wecom".
    prefixes = sorted({*fields, *installed()}, key=len, reverse=True)
    for name in sorted(env.variables.keys() - known):
        owner = next((prefix for prefix in prefixes if name.startswith(variable(prefix, ""))), "")
        if owner in fields:
            near = nearest(name.removeprefix(variable(owner, "")).lower(), fields[owner])
            yield f"{name}: is not a setting" + (f"; did you mean {variable(owner, near)}?" if near else "")
