"""A real Synapse on loopback, with SQLite, without federation; and people who use it with matrix-nio.

    with SynapseServer([registration_file]) as synapse:
        alice = await synapse.person("alice")
        room = await alice.room(invite=["@magpie:magpie.test"])
        await alice.say(room, "hello")
        await alice.until(lambda: "hello" in alice.shown(room))

https://element-hq.github.io/synapse/latest/usage/configuration/config_documentation.html
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from nio import (  # type: ignore[import-untyped]
    AsyncClient,
    AsyncClientConfig,
    Event,
    LoginResponse,
    MatrixRoom,
    RegisterResponse,
    RoomCreateResponse,
    RoomPreset,
    RoomSendResponse,
    SyncResponse,
)

from tests.process import free_port

SERVER_NAME = "magpie.test"
QUICK = {"per_second": 1000, "burst_count": 1000}
MESSAGES = {"per_second": 2, "burst_count": 6}  # of a person, and of a user of a rate-limited application service


def config(directory: Path, port: int, registrations: Sequence[Path]) -> dict[str, Any]:
    """Return a homeserver.yaml: JSON is YAML."""
    return {
        "server_name": SERVER_NAME,
        "report_stats": False,
        "listeners": [
            {"port": port, "type": "http", "bind_addresses": ["127.0.0.1"], "resources": [{"names": ["client"]}]}
        ],
        "database": {"name": "sqlite3", "args": {"database": str(directory / "homeserver.db")}},
        "media_store_path": str(directory / "media"),
        "signing_key_path": str(directory / "signing.key"),
        "pid_file": str(directory / "pid"),
        "log_config": str(directory / "log.yaml"),
        "app_service_config_files": [str(file) for file in registrations],
        "macaroon_secret_key": secrets.token_hex(),
        "trusted_key_servers": [],
        "federation_domain_whitelist": [],
        "presence": {"enabled": False},
        "enable_registration": True,
        "enable_registration_without_verification": True,
        "bcrypt_rounds": 4,
        "rc_message": MESSAGES,
        "rc_registration": QUICK,
        "rc_login": {"address": QUICK, "account": QUICK, "failed_attempts": QUICK},
        "rc_joins": {"local": QUICK, "remote": QUICK},
        "rc_invites": {"per_room": QUICK, "per_user": QUICK, "per_issuer": QUICK},
        "rc_room_creation": QUICK,
    }


def logging(file: Path) -> dict[str, Any]:
    """Return a logging configuration that writes warnings into a file."""
    handler = {"class": "logging.FileHandler", "filename": str(file), "formatter": "line"}
    return {
        "version": 1,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
        "handlers": {"file": handler},
        "root": {"level": "WARNING", "handlers": ["file"]},
        "disable_existing_loggers": False,
    }


class SynapseServer:
    """One homeserver with its application services."""

    def __init__(self, registrations: Sequence[Path] = (), port: int = 0) -> None:
        self.port = port or free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self._registrations = registrations
        self._directory = Path(tempfile.mkdtemp(prefix="magpie-synapse-"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SynapseServer:
        key = base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        (self._directory / "signing.key").write_text(f"ed25519 a_test {key}\n")
        self._write("log.yaml", logging(self._directory / "log"))
        self._write("homeserver.yaml", config(self._directory, self.port, self._registrations))
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def start(self, seconds: float = 60) -> None:
        """Start and wait until it serves."""
        command = [sys.executable, "-m", "synapse.app.homeserver", "-c", str(self._directory / "homeserver.yaml")]
        with (self._directory / "output").open("ab") as output:
            self._process = subprocess.Popen(command, cwd=self._directory, stdout=output, stderr=output)
        until = time.monotonic() + seconds
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"Synapse did not start:\n{self._said('output')}{self._said('log')}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop; what it holds stays."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def counts_as_down(self, service: str) -> bool:
        """Whether an application service did not take its last transaction."""
        with contextlib.closing(sqlite3.connect(f"file:{self._directory}/homeserver.db?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT state FROM application_services_state WHERE as_id = ?", (service,))
            return rows.fetchall() == [("down",)]

    def _write(self, name: str, value: object) -> None:
        (self._directory / name).write_text(json.dumps(value))

    def _said(self, name: str) -> str:
        file = self._directory / name
        return file.read_text()[-3000:] if file.exists() else ""

    def _healthy(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.base}/health", timeout=5) as answer:
            return int(answer.status) == 200
        return False

    async def person(self, name: str) -> Person:
        """Register somebody."""
        client = AsyncClient(self.base, f"@{name}:{SERVER_NAME}", config=AsyncClientConfig(max_limit_exceeded=10))
        registered = await client.register(name, "correct horse battery staple")
        assert isinstance(registered, RegisterResponse | LoginResponse), registered
        return Person(client)


@dataclass
class Shown:
    """A message as a person sees it. `history` holds every text it had, the current one last."""

    id: str
    sender: str
    content: dict[str, Any]
    history: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What it says now."""
        return self.history[-1]


class Person:
    """Somebody with a client. `seen` holds the events of each room in the order they came."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.id = client.user_id
        self.seen: dict[str, list[dict[str, Any]]] = {}
        client.add_event_callback(self._see, Event)

    async def _see(self, room: MatrixRoom, event: Event) -> None:
        self.seen.setdefault(room.room_id, []).append(event.source)

    async def close(self) -> None:
        """Leave the keyboard."""
        await self.client.close()

    async def room(self, *invite: str) -> str:
        """Make a private room and invite others into it."""
        created = await self.client.room_create(invite=invite, preset=RoomPreset.private_chat)
        assert isinstance(created, RoomCreateResponse), created
        return str(created.room_id)

    async def say(self, room: str, text: str, **more: Any) -> str:
        """Write a message; return its event id."""
        return await self.post(room, "m.room.message", {"msgtype": "m.text", "body": text, **more})

    async def post(self, room: str, type: str, content: Mapping[str, Any]) -> str:
        """Send an event of any type."""
        sent = await self.client.room_send(room, type, dict(content))
        assert isinstance(sent, RoomSendResponse), sent
        return str(sent.event_id)

    async def call(self, method: str, path: str, body: object = None) -> Any:
        """Call the client API directly, for what nio has no method for."""
        headers = {"Authorization": f"Bearer {self.client.access_token}"}
        answer = await self.client.send(method, f"/_matrix/client/{path}", json.dumps(body or {}), headers)
        return await answer.json()

    async def until(self, condition: Callable[[], object], seconds: float = 30) -> None:
        """Follow what happens until the condition is true."""
        async with asyncio.timeout(seconds):
            while not condition():
                answer = await self.client.sync(timeout=5000, sync_filter={"room": {"timeline": {"limit": 100}}})
                assert isinstance(answer, SyncResponse), answer

    def shown(self, room: str, by: str = "") -> list[Shown]:
        """Return the messages of a room as a client shows them, edits applied; `by` one sender."""
        messages: dict[str, Shown] = {}
        for event in self.seen.get(room, []):
            content = event["content"]
            relation = content.get("m.relates_to", {})
            if event["type"] != "m.room.message" or not content or (by and event["sender"] != by):
                continue
            if relation.get("rel_type") == "m.replace":
                edited = messages[relation["event_id"]]
                edited.content = content["m.new_content"]
                edited.history.append(edited.content["body"])
            else:
                messages[event["event_id"]] = Shown(event["event_id"], event["sender"], content, [content["body"]])
        return list(messages.values())
