"""The way in: verify, parse, store, answer. A platform hears 2xx only when its message is on disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

import msgspec
import structlog
from aiohttp import ClientConnectionError, web

from bot import metrics
from bot.adapter import Adapter, AnyAdapter, Inbound, Message, Request, Response, WebhookAdapter
from bot.answers import Held
from bot.dispatcher import Dispatcher
from bot.errors import Malformed, Rejected, StoreUnavailable, TooLarge, TooMany
from bot.health import Health
from bot.store import Receipt, Store
from bot.texts import language_of

log = structlog.get_logger()

LARGEST_BODY = 4 * 1024 * 1024
BODY_WITHIN = 15.0  # seconds a caller has to send its body


class Ingress:
    """Serves /webhooks/{instance} and what lies below it."""

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        adapters: Mapping[str, AnyAdapter],
        health: Health,
        language: str,
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._adapters = adapters
        self._health = health
        self._language = language
        self._routes = {name: adapter.routes() for name, adapter in adapters.items()}
        self._acknowledging: set[asyncio.Task[None]] = set()
        self.draining = False

    async def webhook(self, request: web.Request) -> web.StreamResponse:
        """Serve /webhooks/{instance}/path."""
        name, _, path = request.match_info["rest"].partition("/")
        return await self.serve(request, name, f"/{path}" if path else "")

    async def serve(self, request: web.Request, name: str, path: str) -> web.StreamResponse:
        """Let an adapter answer a request; turn every failure into its status."""
        adapter = self._adapters.get(name)
        if adapter is None:
            return await send(request, problem(404, "not_found", "no such adapter here; see BOT_ADAPTERS"))
        try:
            response = await self._receive(adapter, name, await read(request, path))
        except Rejected as error:
            response = self._rejected(name, error)
        except StoreUnavailable as error:
            log.error("not stored", instance=name, error=str(error))
            metrics.event(name, "unstored")
            response = problem(503, "unavailable", "cannot store messages now; try again", {"Retry-After": "5"})
        except Exception as error:
            # An adapter that stumbles over odd input must not turn it into a 500 that is repeated for hours.
            log.exception("adapter crashed", instance=name)
            self._health.failed(name, f"adapter crashed: {type(error).__name__}")
            response = self._rejected(name, Malformed(f"adapter crashed: {type(error).__name__}"))
        return await send(request, response)

    async def _receive(self, adapter: AnyAdapter, name: str, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        route = self._routes[name].get((method, request.path))
        if route is not None:
            return await route(request)
        if not isinstance(adapter, WebhookAdapter) or request.method not in ("POST", "GET", "PUT"):
            return problem(404, "not_found", "nothing here")
        if self.draining:
            raise StoreUnavailable("shutting down")
        await adapter.verify(request)
        inbound = adapter.parse(request)
        if (response := await adapter.at_once(request, inbound)) is not None:
            return response
        if inbound.messages:
            self._health.received(name)
        return await self.take(adapter, name, request, inbound)

    async def take(self, adapter: WebhookAdapter[Any], name: str, request: Request, inbound: Inbound) -> Response:
        """Store what came in and answer the platform; with `answer_within`, once the answer is there."""
        if inbound.moved is not None:
            await self._store.move(name, *inbound.moved)
        messages = [message for message in inbound.messages if _for_us(name, message)]
        if not inbound.messages:
            metrics.event(name, "ignored")
            log.info("ignored", instance=name, reason=inbound.ignored or "nothing to answer")
        if not messages:
            return inbound.response
        if adapter.can.answer_within:
            return await self._hold(adapter, name, request, inbound, messages)
        await self.accept(name, messages)
        return inbound.response

    async def accept(self, name: str, messages: Sequence[Message]) -> list[Receipt]:
        """Store messages and have them answered; one log line for each that is not. Raises StoreUnavailable."""
        receipts = await self._dispatcher.accept(name, messages)
        for message, receipt in zip(messages, receipts, strict=True):
            self._received(name, message, receipt)
        return receipts

    async def _hold(
        self, adapter: WebhookAdapter[Any], name: str, request: Request, inbound: Inbound, messages: Sequence[Message]
    ) -> Response:
        """Keep the platform's request until its answer is there, or time is up."""
        message = messages[-1]
        language = language_of(message.text, message.locale, self._language)
        conversation = self._dispatcher.conversation(name, message)
        async with AsyncExitStack() as stack:
            held = await stack.enter_async_context(Held(self._store, name, conversation, message.id, language))
            receipts = await self.accept(name, messages)
            if receipts[-1].refused:
                held.refuse("rate_limited")
            elif not receipts[-1].new:
                await held.recall()
            response = await adapter.respond(request, inbound, held)
            if response.stream is None:
                await held.taken()
                return response
            return _keeping(response, held, stack.pop_all())

    def _received(self, name: str, message: Message, receipt: Receipt) -> None:
        if receipt.refused:
            metrics.event(name, "refused")
            log.info("refused", instance=name, message=message.id, reason="rate_limited")
        elif not receipt.new:
            metrics.event(name, "redelivered")
            log.info("ignored", instance=name, message=message.id, reason="delivered before")
        else:
            metrics.event(name, "accepted")
            self._acknowledge(name, message)

    def _acknowledge(self, name: str, message: Message) -> None:
        """Mark the message as read, beside the work."""
        adapter = self._adapters[name]
        if type(adapter).acknowledge is Adapter.acknowledge:
            return
        task = asyncio.create_task(adapter.acknowledge(message))
        self._acknowledging.add(task)
        task.add_done_callback(lambda done: self._acknowledged(done, name))

    def _acknowledged(self, task: asyncio.Task[None], name: str) -> None:
        self._acknowledging.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("not acknowledged", instance=name, error=str(error))

    def _rejected(self, name: str, error: Rejected) -> Response:
        metrics.event(name, "rejected")
        log.warning("rejected", instance=name, status=error.status, reason=str(error))
        if error.response is not None:
            return error.response
        headers = {"Retry-After": str(int(error.retry_after))} if isinstance(error, TooMany) else {}
        return problem(error.status, error.code, str(error), headers)


def problem(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Build the body of every refusal: {"error": {"code", "message"}}."""
    return Response.json({"error": {"code": code, "message": message}}, status, headers)


async def read(request: web.Request, path: str) -> Request:
    """Read a request with its whole body. Raises TooLarge, Malformed."""
    try:
        if request.content.is_eof():  # it came with the headers
            body = await request.read()
        else:
            async with asyncio.timeout(BODY_WITHIN):
                body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise TooLarge(f"body over {LARGEST_BODY} bytes") from None
    except TimeoutError:
        raise Malformed("the body did not arrive in time") from None
    except (web.RequestPayloadError, ConnectionError, UnicodeDecodeError, ValueError) as error:
        raise Malformed(f"body: {type(error).__name__}") from None
    return Request(
        method=request.method,
        path=path,
        headers=request.headers,
        query=request.query,
        body=body,
        remote=request.remote or "",
    )


async def send(request: web.Request, response: Response) -> web.StreamResponse:
    """Write a response; a stream as it comes, until the caller hangs up."""
    headers = {"Content-Type": response.content_type, **response.headers}
    if response.stream is None:
        return web.Response(body=response.body, status=response.status, headers=headers)
    answer = web.StreamResponse(status=response.status, headers=headers)
    async with aclosing(response.stream) as stream:
        try:
            await answer.prepare(request)
            if response.body:
                await answer.write(response.body)
            async for block in stream:
                await answer.write(block)
        except (ConnectionError, ClientConnectionError):
            log.debug("caller hung up")
    return answer


async def _keep(stream: AsyncGenerator[bytes, None], held: Held, stack: AsyncExitStack) -> AsyncGenerator[bytes, None]:
    """Keep a held request's subscription open until its stream has ended."""
    async with stack:
        async for block in stream:
            yield block
        await held.taken()


def _keeping(response: Response, held: Held, stack: AsyncExitStack) -> Response:
    assert response.stream is not None
    return msgspec.structs.replace(response, stream=_keep(response.stream, held, stack))


def _for_us(name: str, message: Message) -> bool:
    if message.addressed:
        return True
    metrics.event(name, "ignored")
    log.info("ignored", instance=name, message=message.id, reason="not addressed to the bot")
    return False
