"""Magpie as a process of its own: started, killed and started again on the same database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


SERVE = ("-m", "bot", "serve")


class Process:
    """`python -m bot serve` with its own settings; `env` beats the defaults, `program` is what Python runs."""

    def __init__(self, directory: Path, env: Mapping[str, str], program: Sequence[str] = SERVE) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = directory / "magpie.log"
        self._directory = directory
        self._program = program
        self._env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "BOT_PORT": str(self.port),
            "BOT_DATABASE_URL": f"sqlite:///{directory}/magpie.db",
            "BOT_LOG": "json",
            **env,
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, seconds: float = 30) -> None:
        """Start and wait until it takes messages."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *self._program, cwd=self._directory, env=self._env, stdout=log, stderr=log
            )
        async with asyncio.timeout(seconds), aiohttp.ClientSession() as session:
            while not await self._ready(session):
                if self._process.returncode is not None:
                    raise RuntimeError(f"did not start:\n{self.log.read_text()[-3000:]}")
                await asyncio.sleep(0.05)

    async def _ready(self, session: aiohttp.ClientSession) -> bool:
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with session.get(f"{self.url}/readyz") as answer:
                return answer.status == 200
        return False

    async def kill(self) -> None:
        """SIGKILL: no chance to tidy up."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """SIGTERM; return the exit code."""
        return await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        return await asyncio.wait_for(self._process.wait(), 40)
