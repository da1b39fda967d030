"""The .env file: change some of its lines, or write an example with all of them."""

from __future__ import annotations

import io
import os
import re
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from dotenv.parser import parse_stream
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from bot.adapter import AdapterSettings, AnyAdapter
from bot.config import BotSettings, ModelSettings, variable

PLAIN = re.compile(r"[\w./:@%+,=?&~-]+", re.ASCII)
HEAD = """\
# Every variable with its default. Copy this file to .env and remove the "#" where you want something else.
# The environment beats .env. Required ones of a platform are marked; `magpie setup NAME` asks for them.
"""


def update(path: Path, values: Mapping[str, str]) -> None:
    """Set variables in a .env file: in place where they are, else at the end; everything else stays as it is.

    The file is replaced in one step and only its owner may read it. Raises OSError.
    """
    path = path.resolve()
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    rest = dict(values)
    lines = []
    for binding in parse_stream(io.StringIO(before)):
        name, original = binding.key, binding.original.string
        if name is not None and name in values:
            rest.pop(name, None)
            blank = original[: len(original) - len(original.lstrip("\n"))]
            original = blank + _line(name, values[name])
        lines.append(original)
    text = "".join(lines)
    if rest and text and not text.endswith("\n"):
        text += "\n"
    _replace(path, text + "".join(_line(*item) for item in rest.items()))


def example(adapters: Mapping[str, type[AnyAdapter]]) -> str:
    """Return a .env file with every variable of the bot, the model and these adapters, commented out."""
    parts = [HEAD, _section("The server, conversations and limits", "bot", BotSettings)]
    parts.append(_section("The model", "openai", ModelSettings))
    parts += [
        _section(f"{adapter.title}: {adapter.docs}", name, adapter.Settings) for name, adapter in adapters.items()
    ]
    return "\n".join(parts)


def fields(settings: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield a settings model's fields, its own first, then what every adapter has."""
    shared = AdapterSettings.model_fields
    own = {name: field for name, field in settings.model_fields.items() if name not in shared}
    yield from own.items()
    yield from ((name, field) for name, field in settings.model_fields.items() if name in shared)


def default(field: FieldInfo) -> str:
    """Return a field's default as it is written in a .env file, "" for none."""
    value = field.get_default(call_default_factory=False)
    if field.is_required() or value is None:
        return ""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _section(title: str, prefix: str, settings: type[BaseModel]) -> str:
    lines = [f"# --- {title}", ""]
    for name, field in fields(settings):
        required = "Required. " if field.is_required() else ""
        lines += textwrap.wrap(f"{required}{field.description}", 110, initial_indent="# ", subsequent_indent="# ")
        lines += [f"#{_line(variable(prefix, name), default(field))}".rstrip("\n")]
    return "\n".join(lines) + "\n"


def _line(name: str, value: str) -> str:
    return f"{name}={_quoted(value)}\n"


def _quoted(value: str) -> str:
    if not value or PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\")
    if "\n" in value:  # only double quotes know \n; a value stays one line
        escaped = escaped.replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    escaped = escaped.replace("'", "\\'")
    return f"'{escaped}'"


def _replace(path: Path, text: str) -> None:
    """Write a file in one step, readable by its owner only (that is how mkstemp creates it)."""
    number, name = tempfile.mkstemp(dir=path.parent, prefix=".env.")
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
