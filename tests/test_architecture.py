"""The shape of the code: imports point one way, the core knows no platform's name, every adapter keeps the promises."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.registry import available
from bot.testing import AdapterPromises

ROOT = Path(__file__).parent.parent
CONTRACT = {"bot", "bot.adapter", "bot.markup", "bot.signing", "bot.client", "bot.config", "bot.errors"}
ADAPTERS = sorted((ROOT / "adapters").rglob("*.py"))
CORE = sorted((ROOT / "bot").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
POINTS: dict[str, str] = PROJECT["entry-points"]["magpie.adapters"]
# What several platforms share lives in modules beside them, which belong to no one platform.
OWNED = {module.partition(":")[0] for module in POINTS.values()}


def imports(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports, at the top or inside of functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            module = node.module or ""
            yield from (f"bot.{name.name}" for name in node.names) if module == "bot" else (module,)


def unit(file: Path) -> str:
    """Return the adapter a file belongs to: its module, or its package."""
    return "adapters." + file.relative_to(ROOT / "adapters").parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", ADAPTERS, ids=lambda file: str(file.relative_to(ROOT)))
def test_adapters_import_the_contract_and_never_each_other(file: Path) -> None:
    for module in imports(file):
        if module.split(".")[0] == "bot":
            assert module in CONTRACT or module.startswith("bot.markup."), f"imports {module}"
        elif module.split(".")[0] == "adapters":
            mine = module == unit(file) or module.startswith(unit(file) + ".")
            assert mine or ".".join(module.split(".")[:2]) not in OWNED, f"imports {module}"


@pytest.mark.parametrize("file", CORE, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_core_imports_no_adapter_and_compares_with_no_platform(file: Path) -> None:
    assert not [module for module in imports(file) if module.split(".")[0] == "adapters"]
    platforms = set(POINTS) - {"api", "terminal"}  # those two are words as well
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Compare | ast.MatchValue | ast.Subscript | ast.Dict):
            texts = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            assert not texts & platforms, f"line {node.lineno} decides by a platform's name"


def test_core_has_no_import_cycle() -> None:
    graph = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): {
            module for module in _imports_at_import_time(file) if module.startswith("bot")
        }
        for file in CORE
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in done or module not in graph:
            return
        for needed in graph[module] - {module}:
            visit(needed, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def _imports_at_import_time(file: Path) -> Iterator[str]:
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            known = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in CORE}
            inner = [f"{module}.{name.name}" for name in node.names if f"{module}.{name.name}" in known]
            yield from inner or [module]


def test_every_adapter_keeps_the_promises() -> None:
    """Each adapter with a webhook has a test class that subclasses AdapterPromises."""
    for file in (ROOT / "tests").rglob("test_*.py"):
        importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    tested = {case.adapter.name for case in AdapterPromises.__subclasses__() if hasattr(case, "adapter")}
    assert set(available()) - tested <= {"terminal"}, "no subclass of AdapterPromises"


def test_every_adapter_file_begins_with_its_vendors_page() -> None:
    for name, adapter in available().items():
        module = importlib.import_module(adapter.__module__)
        assert re.search(r"https://|POST /api/chat|terminal|browser|page", module.__doc__ or ""), name


def test_no_suppressed_type_errors_in_the_product() -> None:
    for file in [*CORE, *ADAPTERS]:
        ignored = [line for line in file.read_text().splitlines() if "type: ignore" in line]
        assert len(ignored) <= 2, f"{file}: {ignored}"
