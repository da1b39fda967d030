"""Magpie, put together: store, model, adapters, dispatcher, web server; started and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
import signal
import time
from collections.abc import Callable
from functools import partial

import msgspec
import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from bot import metrics
from bot.adapter import AnyAdapter, Chat, Context, Message, Turn
from bot.dispatcher import Dispatcher
from bot.errors import StoreUnavailable
from bot.health import Health
from bot.ingress import LARGEST_BODY, Ingress
from bot.model import Model, create
from bot.registry import Config, Configured
from bot.store import Store, conversation_id, open_store
from bot.turn import Turns

log = structlog.get_logger()

GRACE = 25.0  # seconds that answers being written have when the process is told to stop
SHOWN = 200  # turns of a direct chat that an adapter may show again


class Magpie:
    """One running bot. `port` is known after `start` (BOT_PORT=0 takes a free one; None serves no HTTP)."""

    def __init__(self, config: Config, *, model: Model | None = None, store: Store | None = None) -> None:
        self.config = config
        bot = config.bot
        self.owner = secrets.token_hex(8)
        self.store = store or open_store(bot.database_url)
        self.model = model or create(config.model)
        self.health = Health(self.store)
        self.adapters: dict[str, AnyAdapter] = {one.instance: self._adapter(one) for one in config.instances}
        self.turns = Turns(self.store, self.model, self.adapters, bot, self.owner, self.health)
        self.dispatcher = Dispatcher(
            self.store,
            self.turns,
            self.health,
            owner=self.owner,
            instances=list(self.adapters),
            places=bot.max_concurrent,
            per_minute=bot.user_messages_per_minute,
            shared_groups=bot.group_memory == "chat",
        )
        self.ingress = Ingress(self.store, self.dispatcher, self.adapters, self.health, bot.language)
        self.port = bot.port
        self._listening: list[asyncio.Task[None]] = []
        self._runner: web.AppRunner | None = None
        self._probed = 0.0

    def _adapter(self, one: Configured) -> AnyAdapter:
        bot = self.config.bot
        context = Context(
            instance=one.instance,
            state=self.store.state(one.instance),
            public_url=bot.public_url,
            language="zh" if bot.language == "zh" else "en",
            history=lambda chat, count: self._history(one.instance, chat, count),
        )
        return one.adapter(one.settings, context)

    async def _history(self, instance: str, chat: Chat, count: int) -> list[Turn]:
        return await self.store.recent(conversation_id(instance, chat), min(count, SHOWN))

    async def start(self, http: bool = True) -> None:
        """Open the store, listen, then start the adapters and take up what waits."""
        await self.store.open()
        if http:
            await self._serve()
        await asyncio.gather(*(adapter.start() for adapter in self.adapters.values()))
        await self.dispatcher.start()
        self._listening = [asyncio.create_task(self._listen(name)) for name in self.adapters]

    async def stop(self, grace: float = GRACE) -> None:
        """Take nothing more, finish what is being written, hand back the rest, close."""
        if hasattr(self, "ingress"):
            self.ingress.draining = True
        for task in self._listening:
            task.cancel()
        await asyncio.gather(*self._listening, return_exceptions=True)
        await self.dispatcher.stop(grace)
        if self._runner is not None:
            await self._runner.cleanup()
        await asyncio.gather(*(adapter.stop() for adapter in self.adapters.values()))
        await self.model.close()
        await self.store.close()

    async def _listen(self, name: str) -> None:
        """Run an adapter that fetches its messages itself; when it breaks down, start it again."""
        pause = 1.0
        while True:
            try:
                return await self.adapters[name].listen(lambda messages: self._accept(name, list(messages)))
            except Exception as error:  # one platform's trouble is not the others'
                log.exception("listening broke down", instance=name, again_in=pause)
                self.health.failed(name, f"listening broke down: {type(error).__name__}")
            await asyncio.sleep(pause)
            pause = min(pause * 2, 60)

    async def _accept(self, name: str, messages: list[Message]) -> None:
        self.health.received(name)
        await self.ingress.accept(name, [message for message in messages if message.addressed])

    # -- HTTP -----------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        app = web.Application(client_max_size=LARGEST_BODY)
        app.router.add_get("/healthz", _healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", _metrics)
        app.router.add_route("*", "/webhooks/{rest:.+}", self.ingress.webhook)
        for path, (name, below) in self._also_at().items():
            app.router.add_route("*", path, partial(self._alias, name=name, below=below))
        # Answers are finished by now; what is still open are streams that wait for the next one.
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, keepalive_timeout=75, shutdown_timeout=1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.config.bot.host, self.config.bot.port, backlog=1024)
        await site.start()
        self.port = self._runner.addresses[0][1]

    def _also_at(self) -> dict[str, tuple[str, str]]:
        """Paths outside /webhooks that adapters serve; the first instance of an adapter has them."""
        paths: dict[str, tuple[str, str]] = {}
        for name, adapter in self.adapters.items():
            for path, below in adapter.also_at.items():
                paths.setdefault(path, (name, below))
        return paths

    async def _alias(self, request: web.Request, name: str, below: str) -> web.StreamResponse:
        return await self.ingress.serve(request, name, below)

    async def _readyz(self, request: web.Request) -> web.Response:
        """Tell whether what arrives can be stored; the model's and the adapters' state do not change the status."""
        try:
            if self.ingress.draining:
                raise StoreUnavailable("shutting down")
            await self._probe()
            state = "ok"
        except StoreUnavailable as error:
            state = str(error)
        body = {
            "ready": state == "ok",
            "store": state,
            "model": {"name": self.model.name, "state": self.health.model},
            "adapters": self.health.vitals(self.adapters),
            "busy": self.dispatcher.busy,
        }
        return web.Response(
            body=msgspec.json.encode(body), status=200 if state == "ok" else 503, content_type="application/json"
        )

    async def _probe(self) -> None:
        """Write to the database, at most once a second however often somebody asks."""
        if time.monotonic() - self._probed > 1:
            await self.store.probe()
            self._probed = time.monotonic()


async def _healthz(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def _metrics(request: web.Request) -> web.Response:
    return web.Response(body=generate_latest(metrics.REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def serve(config: Config, ready: Callable[[str], None] | None = None) -> None:
    """Run until SIGTERM or SIGINT. `ready` is called with the address once requests are taken."""
    magpie = Magpie(config)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, stopping.set)
    try:
        await magpie.start()
        address = f"http://{config.bot.host}:{magpie.port}/"
        log.info("serving", address=address, adapters=list(magpie.adapters), model=magpie.model.name)
        # What is there now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        if ready is not None:
            ready(address)
        await stopping.wait()
        log.info("stopping", busy=magpie.dispatcher.busy)
    finally:
        await magpie.stop()
