"""Which adapters are installed and switched on, and every mistake told at once."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from structlog.testing import capture_logs

from bot import log, registry
from bot.config import Environment
from bot.errors import ConfigError
from tests.strangers import Install, install

__all__ = ["install"]  # a fixture

ADAPTER = """
from pydantic import Field
from bot.adapter import Adapter, AdapterSettings, Chat, Page
from bot.config import Secret

class Settings(AdapterSettings):
    bot_token: Secret = Field(description="From the console")
    retries: int = Field(3, ge=0, description="How often")

class AcmeAdapter(Adapter[Settings]):
    name, title, docs = "acme", "Acme", "https://acme.example"
    Settings = Settings
    async def send(self, chat: Chat, page: Page) -> str:
        return "1"

class AcmePlusAdapter(AcmeAdapter):
    name = "acme_plus"

NotAnAdapter = 7
"""
TOKEN = {"ACME_BOT_TOKEN": "token-of-acme"}


@pytest.fixture
def acme(install: Install) -> None:
    install("acmepkg", ADAPTER, acme="AcmeAdapter", acme_plus="AcmePlusAdapter", number="NotAnAdapter", gone="Nothing")


def load(adapters: str, variables: Mapping[str, str] = TOKEN) -> registry.Config:
    return registry.load(Environment({"BOT_ADAPTERS": adapters, **variables}))


def problems(adapters: str, variables: Mapping[str, str] = TOKEN) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(adapters, variables)
    return caught.value.problems


@pytest.mark.usefixtures("acme")
def test_every_installed_adapter_is_available_and_a_broken_one_is_reported() -> None:
    with capture_logs() as logs:
        adapters = registry.available()
    assert adapters["acme"].title == "Acme"
    assert adapters["acme_plus"].name == "acme_plus"
    assert not {"number", "gone"} & adapters.keys()
    reasons = {entry["adapter"]: entry["reason"] for entry in logs if entry["event"] == "adapter_broken"}
    assert "is not a subclass" in reasons["number"]
    assert "AttributeError" in reasons["gone"]


@pytest.mark.usefixtures("acme")
def test_an_instance_has_its_own_variables() -> None:
    config = load("acme, sales-eu=acme", {**TOKEN, "SALES_EU_BOT_TOKEN": "another", "SALES_EU_RETRIES": "5"})
    assert [entry.instance for entry in config.instances] == ["acme", "sales-eu"]
    first, second = (entry.settings.model_dump() for entry in config.instances)
    assert (first["retries"], second["retries"]) == (3, 5)
    assert second["bot_token"].get_secret_value() == "another"
    assert config.warnings == ()


@pytest.mark.usefixtures("acme")
def test_adapters_that_are_asked_for_stand_in_for_the_variable() -> None:
    config = registry.load(Environment({"BOT_ADAPTERS": "nonsense", **TOKEN}), ["acme"])
    assert [entry.instance for entry in config.instances] == ["acme"]


@pytest.mark.usefixtures("acme")
def test_secrets_that_were_read_are_hidden_from_the_log() -> None:
    load(
        "acme", {**TOKEN, "OPENAI_API_KEY": "first-key,second-key", "BOT_DATABASE_URL": "postgres://u:pass%21word@h/d"}
    )
    assert log.redact("token-of-acme first-key second-key pass%21word pass!word") == "*** *** *** *** ***"


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("adapters", "problem"),
    [
        ("acne", 'BOT_ADAPTERS: there is no adapter "acne" (did you mean "acme"?)'),
        ("zzz", 'BOT_ADAPTERS: there is no adapter "zzz"'),
        ("acme,acme", 'BOT_ADAPTERS: "acme" is there twice; a second bot needs a name of its own: sales=acme'),
        ("Sales=acme", 'BOT_ADAPTERS: "Sales" is no name for an instance: a letter, then a-z, 0-9, "_" and "-"'),
        ("bot=acme", 'BOT_ADAPTERS: "bot" is taken: its variables would be those of Magpie itself'),
        ("openai=acme", 'BOT_ADAPTERS: "openai" is taken: its variables would be those of Magpie itself'),
        ("=acme", 'BOT_ADAPTERS: "" is no name for an instance: a letter, then a-z, 0-9, "_" and "-"'),
    ],
)
def test_a_wrong_entry_is_named(adapters: str, problem: str) -> None:
    assert problems(adapters) == [problem]


@pytest.mark.usefixtures("acme")
def test_two_instances_may_not_share_a_variable() -> None:
    (problem,) = problems("a-b=acme,a_b=acme", {"A_B_BOT_TOKEN": "token"})
    assert problem == 'BOT_ADAPTERS: "a_b" and "a-b" would share the variable A_B_BOT_TOKEN; rename one'


@pytest.mark.usefixtures("acme")
def test_a_broken_adapter_that_is_switched_on_is_a_problem() -> None:
    (problem,) = problems("gone")
    assert problem.startswith("BOT_ADAPTERS: gone (acmepkg:Nothing) cannot be imported: AttributeError")


@pytest.mark.usefixtures("acme")
def test_every_problem_is_told_at_once() -> None:
    wrong = {"BOT_PORT": "high", "OPENAI_TIMEOUT": "-1", "ACME_RETRIES": "many"}
    told = problems("acme,sales=acme,nobody", wrong)
    names = [problem.partition(":")[0] for problem in told]
    assert sorted(names) == [
        "ACME_BOT_TOKEN",
        "ACME_RETRIES",
        "BOT_ADAPTERS",
        "BOT_PORT",
        "OPENAI_TIMEOUT",
        "SALES_BOT_TOKEN",
    ]
    assert "ACME_BOT_TOKEN: is not set" in told


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("variable", "warning"),
    [
        ("ACME_TOKEN", "ACME_TOKEN: is not a setting; did you mean ACME_BOT_TOKEN?"),
        ("ACME_COLOUR", "ACME_COLOUR: is not a setting"),
        ("BOT_PROT", "BOT_PROT: is not a setting; did you mean BOT_PORT?"),
        ("OPENAI_API_KEYS", "OPENAI_API_KEYS: is not a setting; did you mean OPENAI_API_KEY?"),
    ],
)
def test_a_mistyped_variable_is_a_warning(variable: str, warning: str) -> None:
    assert load("acme", {**TOKEN, variable: "x"}).warnings == (warning,)


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize("variable", ["ACME_PLUS_BOT_TOKEN", "OPENAI_ORG_ID", "PATH", "ACMEX"])
def test_what_belongs_to_somebody_else_is_no_warning(variable: str) -> None:
    assert load("acme", {**TOKEN, variable: "x"}).warnings == ()


@pytest.mark.usefixtures("acme")
def test_an_address_without_https_is_a_warning() -> None:
    (warning,) = load("acme", {**TOKEN, "BOT_PUBLIC_URL": "http://bot.example.com"}).warnings
    assert warning.startswith("BOT_PUBLIC_URL: ")


@pytest.mark.usefixtures("acme")
def test_two_packages_that_claim_one_name_are_reported(install: Install) -> None:
    install("otherpkg", ADAPTER, acme="AcmeAdapter")
    with capture_logs() as logs:
        assert registry.installed()["acme"].value == "otherpkg:AcmeAdapter"
    assert [entry["ignored"] for entry in logs] == ["acmepkg:AcmeAdapter"]


def test_a_checkout_that_was_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    assert problems("webchat") == [
        "BOT_ADAPTERS: no adapter is installed; run `make install`, or `pip install -e .` here"
    ]
