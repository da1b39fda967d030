"""Programs that tests talk to: where they are, or a failure that says what to install; no silent skips."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

CHROMIUM = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)


def chromium() -> str:
    """Return the path of a Chromium or Chrome."""
    return _require("chromium", (os.environ.get("CHROMIUM", ""), *CHROMIUM))


def curl() -> str:
    """Return the path of curl."""
    return _require("curl", ("curl",))


def initdb() -> str:
    """Return the path of PostgreSQL's initdb; its siblings are beside it."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    return _require("postgresql", ("initdb", *map(str, debian)))


def _require(package: str, candidates: Iterable[str]) -> str:
    """Return the first candidate there is. Fails the test otherwise, or skips it when WITHOUT names the package."""
    if package in os.environ.get("WITHOUT", "").split():
        pytest.skip(f"left out by WITHOUT={package}")
    for candidate in filter(None, candidates):
        if path := shutil.which(candidate):
            return path
    pytest.fail(f"this test needs {package}: `make test` installs it, or leaves it out with WITHOUT={package}")
