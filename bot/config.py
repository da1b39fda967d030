"""Settings: declared here (the bot's, the model's) and in each adapter, read in one place from environment and .env."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from bot.errors import ConfigError

M = TypeVar("M", bound=BaseModel)


def _words(value: object) -> object:
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if value and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError("must begin with http:// or https://")
    return value.rstrip("/")


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]  # a comma-separated list
HttpUrl = Annotated[str, AfterValidator(_http_url)]  # without a trailing slash; "" is allowed
Secret = SecretStr


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, str_strip_whitespace=True, protected_namespaces=())


class BotSettings(_Settings):
    """Variables BOT_*: the server, conversations and limits."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on")
    public_url: HttpUrl = Field("", description="Where the world reaches this server, such as https://bot.example.com")
    adapters: Words = Field(("webchat",), description="Platforms to serve: names, or instance=name for a second bot")
    database_url: str = Field(
        "sqlite:///data/magpie.db",
        pattern=r"^(sqlite:///.+|postgres(ql)?://.+)$",
        description="sqlite:///file, or postgresql://user:password@host/name for several replicas",
    )
    log: Literal["console", "json"] = Field("console", description="Log for people or for machines")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="How much to log")

    system_prompt: str = Field(
        "You are a helpful assistant in a chat app. Answer briefly, in the language of the question.",
        description="The bot's persona",
    )
    history_tokens: int = Field(4000, ge=0, description="How much of a conversation the model is sent; 0: nothing")
    group_memory: Literal["user", "chat"] = Field("user", description="In groups, remember per person or per chat")
    language: Literal["auto", "en", "zh"] = Field("auto", description="Language of the bot's own sentences")

    allowed_users: Words = Field(
        (), description="Only these may talk to the bot (user ids, or instance:id); empty: all"
    )
    allowed_chats: Words = Field((), description="Only in these chats (chat ids, or instance:id); empty: all")
    user_messages_per_minute: int = Field(20, ge=0, description="Messages a person may send in a minute; 0: no limit")
    user_tokens_per_day: int = Field(200_000, ge=0, description="Tokens a person may use in a day (UTC); 0: no limit")
    tokens_per_day: int = Field(5_000_000, ge=0, description="Tokens all people together may use in a day; 0: no limit")
    max_concurrent: int = Field(256, ge=1, description="Answers written at the same time; the rest wait")


class ModelSettings(_Settings):
    """Variables OPENAI_*: the model."""

    api_key: Words = Field((), repr=False, description="Your key; several, separated by commas, are used in turn")
    base_url: HttpUrl = Field("", description="Another OpenAI-compatible server; empty: OpenAI itself")
    model: str = Field("gpt-4o-mini", min_length=1, description="The model's name")
    fallback_models: Words = Field((), description="Asked in this order when the model fails")
    api: Literal["chat", "responses", "completions"] = Field("chat", description="Which of the server's APIs to call")
    prompt_template: str = Field(
        "{history}user: {message}\nassistant:",
        description="With OPENAI_API=completions: how the prompt is put together",
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 to 2; empty: the model's default")
    top_p: float | None = Field(None, ge=0, le=1, description="0 to 1; empty: the model's default")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="-2 to 2; empty: the model's default")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="-2 to 2; empty: the model's default")
    max_tokens: int | None = Field(None, ge=1, description="Longest answer in tokens; empty: the model's default")
    timeout: float = Field(60, gt=0, description="Seconds the model may be silent before and within an answer")

    @property
    def demo(self) -> bool:
        """Whether neither a key nor a server is set, so that the built-in demo model answers."""
        return not self.api_key and not self.base_url


class Environment:
    """The variables of one start. Collects every problem, so that all can be told at once."""

    def __init__(self, variables: Mapping[str, str | None]) -> None:
        self.variables = {name: value.strip() for name, value in variables.items() if value and value.strip()}
        self.problems: list[str] = []

    @classmethod
    def load(cls, env_file: Path | str = ".env") -> Environment:
        """Read the environment and, where it is silent, the .env file."""
        return cls({**dotenv_values(env_file, interpolate=False), **os.environ})

    def read(self, model: type[M], prefix: str) -> M | None:
        """Fill a settings model from PREFIX_FIELD variables; None (and the problems noted) when it does not fit."""
        names = {field: variable(prefix, field) for field in model.model_fields}
        given: dict[str, Any] = {field: self.variables[name] for field, name in names.items() if name in self.variables}
        try:
            return model.model_validate(given)
        except ValidationError as error:
            self.problems += [_problem(names, detail) for detail in error.errors(include_input=False)]
            return None

    def done(self) -> None:
        """Raise ConfigError when there were problems."""
        if self.problems:
            raise ConfigError(self.problems)


def variable(prefix: str, field: str) -> str:
    """Return the environment variable of a field: ("sales", "bot_token") is SALES_BOT_TOKEN."""
    return f"{prefix}_{field}".upper().replace("-", "_")


def _problem(names: Mapping[str, str], detail: Any) -> str:
    field = str(detail["loc"][0]) if detail["loc"] else ""
    name = names.get(field, field)
    reason = "is not set" if detail["type"] == "missing" else detail["msg"].removeprefix("Value error, ")
    return f"{name}: {reason}" if name else reason
