"""The Gateway, a websocket on which Discord tells what people write: https://docs.discord.com/developers/events/gateway

A session outlives its connection: after a break, a restart, or a move to another replica it is resumed, and what was
missed is told again. So the session is kept in the shared state, with the number of the last event that is stored;
events after it come twice at worst, and a message that comes twice is answered once.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

import aiohttp
import msgspec
import structlog

from adapters.discord.lease import Lease
from adapters.discord.rest import Rest
from bot.adapter import State, decode
from bot.errors import Malformed, PlatformError, StoreUnavailable, Unauthorized

log = structlog.get_logger()

# Direct messages, and those in servers. Of the latter we are told the words only where somebody mentions us, which is
# all we want to know, and needs no privileged intent.
INTENTS = 1 << 9 | 1 << 12
DISPATCH, HEARTBEAT, IDENTIFY, RESUME, RECONNECT, INVALID_SESSION, HELLO, ACK = 0, 1, 2, 6, 7, 9, 10, 11

# Close codes: https://docs.discord.com/developers/topics/opcodes-and-status-codes#gateway-gateway-close-event-codes
RESUMABLE = 4000  # what we close with; 1000 and 1001 would end the session
NEW_SESSION = {4007, 4009}
BAD_TOKEN = 4004
REFUSED = {
    BAD_TOKEN: "the bot's token is wrong",
    4010: "Discord does not take our shard",
    4011: "the bot is in more servers than one connection may serve",
    4012: "Discord does not speak this version of the gateway any more",
    4013: "Discord does not know the intents we ask for",
    4014: "the bot may not have the intents it asks for",
}
REFUSED_KEY, SESSION_KEY, LOCK_KEY = "gateway/refused", "gateway/session", "gateway/lock"

SESSION_LIVES = 600.0  # seconds for which a resume may be worth a try
REMEMBERED = 30 * 86400.0  # seconds for which a refusal is told by `magpie doctor`
LONGEST_PAUSE = 60.0  # seconds between two attempts
INVALID_PAUSE = (1.0, 5.0)  # seconds before a new session, when the old one is refused
TIMES = aiohttp.ClientWSTimeout(ws_receive=120, ws_close=2)  # heartbeats are acknowledged every 41 s
LARGEST = 64 * 1024 * 1024  # bytes of one event

Hear = Callable[[str, bytes, str], Awaitable[None]]  # (event, its data, our user id)


class Frame(msgspec.Struct):
    """What comes and goes: https://docs.discord.com/developers/events/gateway-events#payload-structure"""

    op: int
    d: msgspec.Raw = msgspec.Raw(b"null")
    s: int | None = None
    t: str | None = None


class Hello(msgspec.Struct):
    """The server's first word. In milliseconds."""

    heartbeat_interval: float


class Me(msgspec.Struct):
    """Our own user."""

    id: str


class Ready(msgspec.Struct):
    """A session has begun."""

    session_id: str
    resume_gateway_url: str
    user: Me


class StartLimit(msgspec.Struct):
    """How many sessions may still be begun; `reset_after` in milliseconds. Who goes beyond loses the bot's token."""

    remaining: int
    reset_after: float = 0


class Address(msgspec.Struct):
    """Where the gateway is."""

    url: str
    session_start_limit: StartLimit


class Session(msgspec.Struct):
    """What is needed to resume. `seq` is the number of the last event that is stored, `me` our own user's id."""

    id: str = ""
    url: str = ""
    me: str = ""
    seq: int | None = None


class Gateway:
    """The connection of one bot. Of several replicas one holds it, the others stand by."""

    def __init__(self, rest: Rest, token: str, state: State, hear: Hear) -> None:
        self._rest = rest
        self._token = token
        self._state = state
        self._hear = hear
        self._session = Session()
        self._tries = 0
        self._acknowledged = True
        self._beating: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Listen until cancelled, or until Discord refuses us for good. Raises StoreUnavailable."""
        lease = Lease(self._state, LOCK_KEY)
        while not await lease.during(self._listen):
            log.warning("gateway taken over by another replica")

    async def _listen(self) -> None:
        """Connect again and again."""
        self._session = await self._load()
        self._tries = 0
        try:
            while (code := await self._attempt()) not in REFUSED:
                if code in NEW_SESSION:
                    self._session = Session()
                self._tries += 1
                await asyncio.sleep(pause(self._tries))
            log.error("gateway refused for good", code=code, reason=REFUSED[code])
            self._session = Session()
            await self._state.set(REFUSED_KEY, str(code), REMEMBERED)
        finally:
            with contextlib.suppress(StoreUnavailable):  # the one of the last heartbeat will do
                await self._save()

    async def _attempt(self) -> int:
        """Hold one connection until it ends; return its close code, 0 when there was none."""
        try:
            return await self._connection() or 0
        except Unauthorized:
            return BAD_TOKEN
        except (PlatformError, Malformed, aiohttp.ClientError, OSError) as error:
            log.info("gateway connection failed", error=type(error).__name__)
            self._session.url = ""  # its server may be gone, the session need not be
            return 0

    async def _connection(self) -> int | None:
        url = self._session.url or await self._address()
        async with self._rest.client.session.ws_connect(
            f"{url.rstrip('/')}/?v=10&encoding=json", timeout=TIMES, max_msg_size=LARGEST, autoclose=False
        ) as socket:
            try:
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        await self._take(socket, decode(message.data, Frame))
                return socket.close_code  # now: when our own close finds the line cut, it puts another in its place
            finally:
                await self._stop_beating()
                await socket.close(code=RESUMABLE)

    async def _address(self) -> str:
        """Ask where the gateway is, and wait there while no session may be begun."""
        address = (await self._rest.call("GET", "/gateway/bot")).json(Address)
        limit = address.session_start_limit
        if not self._session.id and limit.remaining < 1:
            log.error("gateway: no session may be begun for a while", seconds=limit.reset_after / 1000)
            await asyncio.sleep(limit.reset_after / 1000)
        return address.url

    # -- what the server says

    async def _take(self, socket: aiohttp.ClientWebSocketResponse, frame: Frame) -> None:
        if handler := HANDLERS.get(frame.op):
            await handler(self, socket, frame)

    async def _greeted(self, socket: aiohttp.ClientWebSocketResponse, frame: Frame) -> None:
        """Begin to beat, and to talk."""
        self._acknowledged = True
        seconds = decode(bytes(frame.d), Hello).heartbeat_interval / 1000
        self._beating = asyncio.create_task(self._keep_beating(socket, seconds))
        if self._session.id:
            await say(socket, RESUME, token=self._token, session_id=self._session.id, seq=self._session.seq)
        else:
            properties = {"os": "linux", "browser": "magpie", "device": "magpie"}
            await say(socket, IDENTIFY, token=self._token, intents=INTENTS, properties=properties)

    async def _told(self, socket: aiohttp.ClientWebSocketResponse, frame: Frame) -> None:
        """Take an event. Its number is noted when it is stored, so that otherwise it is told again."""
        if frame.t == "READY":
            await self._began(decode(bytes(frame.d), Ready))
        elif frame.t == "RESUMED":
            self._tries = 0
        else:
            await self._pass_on(frame)
        self._session.seq = frame.s

    async def _began(self, ready: Ready) -> None:
        self._tries = 0
        self._session = Session(ready.session_id, ready.resume_gateway_url, ready.user.id)
        await self._save()
        await self._state.set(REFUSED_KEY, "", 1)
        log.info("gateway session began")

    async def _pass_on(self, frame: Frame) -> None:
        try:
            await self._hear(frame.t or "", bytes(frame.d), self._session.me)
        except Malformed as error:  # told again it would be no better
            log.warning("gateway event not understood", event_type=frame.t, error=str(error))

    async def _reconnect(self, socket: aiohttp.ClientWebSocketResponse, frame: Frame) -> None:
        await socket.close(code=RESUMABLE)

    async def _invalid(self, socket: aiohttp.ClientWebSocketResponse, frame: Frame) -> None:
        """Close; unless the session may be tried again, the next connection begins another one."""
        if not decode(bytes(frame.d), bool):
            self._session = Session()
        await asyncio.sleep(random.uniform(*INVALID_PAUSE))  # noqa: S311
        await socket.close(code=RESUMABLE)

    # -- heartbeats

    async def _keep_beating(self, socket: aiohttp.ClientWebSocketResponse, seconds: float) -> None:
        """Beat until a beat is not acknowledged: then nobody is there any more."""
        await asyncio.sleep(seconds * random.random())  # noqa: S311
        while self._acknowledged:
            self._acknowledged = False
            await self._beat(socket)
            await self._save()
            await asyncio.sleep(seconds)
        log.info("gateway heartbeat not acknowledged")
        await socket.close(code=RESUMABLE)

    async def _beat(self, socket: aiohttp.ClientWebSocketResponse, frame: Frame | None = None) -> None:
        await socket.send_str(msgspec.json.encode({"op": HEARTBEAT, "d": self._session.seq}).decode())

    async def _beaten(self, socket: aiohttp.ClientWebSocketResponse, frame: Frame) -> None:
        self._acknowledged = True

    async def _stop_beating(self) -> None:
        if self._beating:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)

    # -- the session in the shared state

    async def _load(self) -> Session:
        kept = await self._state.get(SESSION_KEY)
        return decode(kept, Session) if kept else Session()

    async def _save(self) -> None:
        await self._state.set(SESSION_KEY, msgspec.json.encode(self._session).decode(), SESSION_LIVES)


HANDLERS: dict[int, Callable[[Gateway, aiohttp.ClientWebSocketResponse, Frame], Awaitable[None]]] = {
    DISPATCH: Gateway._told,
    HEARTBEAT: Gateway._beat,
    RECONNECT: Gateway._reconnect,
    INVALID_SESSION: Gateway._invalid,
    HELLO: Gateway._greeted,
    ACK: Gateway._beaten,
}


def pause(tries: int) -> float:
    """Return the seconds to wait after so many attempts: less than one after the first, a minute after many."""
    return float(min(2 ** min(tries - 1, 10), LONGEST_PAUSE)) - random.random()  # noqa: S311


async def say(socket: aiohttp.ClientWebSocketResponse, op: int, **data: object) -> None:
    """Send a frame."""
    await socket.send_str(msgspec.json.encode({"op": op, "d": data}).decode())
