"""`magpie serve` as a process, and `magpie register` and `doctor` against it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.process import ROOT, free_port
from tests.strangers import Install, install

__all__ = ["install"]  # a fixture

ACME = """
from bot import signing
from bot.adapter import *

class AcmeAdapter(WebhookAdapter[AdapterSettings]):
    name, title, docs = "acme", "Acme", "https://acme.example"
    async def verify(self, request):
        signing.equal(request.header("x-secret"), "s3cret", "X-Secret")
    def parse(self, request):
        return Inbound(response=Response(b"success"), ignored="a sample")
    def sample(self):
        return Request(headers={"x-secret": "s3cret"}, body=b"{}")
    async def send(self, chat, page):
        return "1"
"""


def environment(tmp_path: Path, port: int, **more: str) -> Mapping[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path / "site" / "acmeserve")]),
        "BOT_ADAPTERS": "acme",
        "BOT_PORT": str(port),
        **more,
    }


async def magpie(*arguments: str, cwd: Path, env: Mapping[str, str]) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bot", *arguments, cwd=cwd, env=env, stdout=pipe, stderr=pipe
    )


async def finished(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def serving(cwd: Path, env: Mapping[str, str]) -> AsyncIterator[str]:
    """Run the server; yield what it announced, once it listens."""
    process = await magpie("serve", cwd=cwd, env={**env, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    async with asyncio.timeout(30):
        announced = [(await process.stdout.readline()).decode() for _ in range(3)]
    yield "".join(announced)
    process.send_signal(signal.SIGTERM)
    code, _, err = await finished(process)
    assert code == 0, err


async def test_it_says_where_it_is_and_register_and_doctor_find_it(install: Install, tmp_path: Path) -> None:
    install("acmeserve", ACME, acme="AcmeAdapter")
    port = free_port()
    env = environment(tmp_path, port, BOT_PUBLIC_URL=f"http://127.0.0.1:{port}")
    async with serving(tmp_path, env) as announced:
        assert f"http://127.0.0.1:{port} " in announced
        assert f"Acme: http://127.0.0.1:{port}/webhooks/acme\n" in announced
        for command in ("register", "doctor"):
            code, out, err = await finished(await magpie(command, cwd=tmp_path, env=env))
            assert f"✓ http://127.0.0.1:{port}/webhooks/acme: reached from outside, signature accepted" in out, err
            assert (code, "✗" in out) == ((0, False) if command == "register" else (1, True))
        assert "✗ BOT_PUBLIC_URL: does not begin with https://" in out


async def test_a_port_that_is_taken_is_one_line_and_code_1(install: Install, tmp_path: Path) -> None:
    install("acmeserve", ACME, acme="AcmeAdapter")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        env = environment(tmp_path, taken.getsockname()[1])
        code, _, err = await finished(await magpie("serve", cwd=tmp_path, env=env))
    assert code == 1
    assert "address already in use" in err
    assert "Traceback" not in err
