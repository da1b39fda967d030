"""Adapters that enter by the strangers' door: a package on the path with entry points, as pip would leave it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bot import registry

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package with adapters: install("acmepkg", source, acme="AcmeAdapter")."""

    def install(package: str, source: str, /, **adapters: str) -> None:
        site = tmp_path / "site" / package
        metadata = site / f"{package}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (site / f"{package}.py").write_text(source)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {package}:{value}" for name, value in adapters.items()]
        (metadata / "entry_points.txt").write_text("\n".join([f"[{registry.GROUP}]", *lines]))
        monkeypatch.syspath_prepend(str(site))

    return install
