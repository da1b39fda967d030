"""docs/adding-an-adapter.md tells the whole contract, and its code is code."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import msgspec
import pytest

from bot import errors
from bot.adapter import Adapter, Capabilities, Context, Inbound, Message, Page, WebhookAdapter

PAGE = (Path(__file__).parent.parent / "docs" / "adding-an-adapter.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
METHODS = [
    name
    for kind in (Adapter, WebhookAdapter)
    for name, value in vars(kind).items()
    if callable(value) and name[0] != "_"
]
FIELDS = [field for kind in (Capabilities, Message, Page, Context, Inbound) for field in msgspec.structs.fields(kind)]


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"Settings"}))
def test_every_method_of_the_contract_is_explained(method: str) -> None:
    assert re.search(rf"`{method}\b|def {method}\(", PAGE)


@pytest.mark.parametrize("field", sorted({field.name for field in FIELDS} - {"failure", "messages"}))
def test_every_field_is_explained(field: str) -> None:
    assert re.search(rf"\b{field}\b", PAGE)


def test_every_failure_of_posting_is_explained() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PlatformError)
    ]
    assert [kind.__name__ for kind in kinds if f"`{kind.__name__}" not in PAGE] == []


@pytest.mark.parametrize("block", CODE, ids=range(len(CODE)))
def test_the_code_is_code(block: str) -> None:
    ast.parse(textwrap.dedent(block))
