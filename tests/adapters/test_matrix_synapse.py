"""Matrix for real: people with a client, a Synapse, and the bot as its application service."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from nio import UploadResponse  # type: ignore[import-untyped]

from adapters.matrix import MatrixAdapter, MatrixSettings
from adapters.matrix.errands import UNREADABLE
from adapters.matrix.registration import registration, write
from bot.adapter import Chat, Page, Turn
from bot.app import Magpie
from bot.errors import StoreUnavailable, Throttled
from bot.registry import Configured
from bot.testing import ScriptedModel, context, running
from tests.adapters.synapse_server import SERVER_NAME, Person, SynapseServer
from tests.process import free_port

ME, LIMITED = f"@magpie:{SERVER_NAME}", f"@limited:{SERVER_NAME}"
NAMES = map("person{}".format, itertools.count(1))


class World:
    """A homeserver that knows two application services: `matrix`, and `limited`, which its rate limits hold."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.synapse = SynapseServer([directory / "matrix.yaml", directory / "limited.yaml"])
        self.ports = {"matrix": free_port(), "limited": free_port()}
        self.urls = {name: f"http://127.0.0.1:{port}/webhooks/{name}" for name, port in self.ports.items()}

    def settings(self, instance: str = "matrix", **changes: object) -> MatrixSettings:
        """Return an instance's settings."""
        given = {
            "api_base": self.synapse.base,
            "user_id": {"matrix": ME, "limited": LIMITED}[instance],
            "as_token": f"as-{instance}",
            "hs_token": f"hs-{instance}",
            "registration_file": str(self.directory / f"{instance}.yaml"),
        }
        return MatrixSettings.model_validate(given | changes)

    async def register(self) -> None:
        """Write both files: the one as an operator does, the other with a user who is not the service's own sender."""
        async with context("matrix") as lent:
            findings = await MatrixAdapter(self.settings(), lent).register(self.urls["matrix"])
            assert all(finding.ok for finding in findings)
        text = registration("magpie-limited", self.urls["limited"], "as-limited", "hs-limited", LIMITED)
        text = text.replace('sender_localpart: "limited"', 'sender_localpart: "another"')
        write(self.directory / "limited.yaml", text.replace("rate_limited: false", "rate_limited: true"))

    @contextlib.asynccontextmanager
    async def bot(
        self,
        model: ScriptedModel,
        instance: str = "matrix",
        adapter: type[MatrixAdapter] = MatrixAdapter,
        **changes: Any,
    ) -> AsyncIterator[Magpie]:
        """Run the bot where the homeserver looks for it."""
        configured = Configured(instance, adapter, self.settings(instance))
        async with running(configured, model=model, **{"port": self.ports[instance], **changes}) as magpie:
            yield magpie


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("synapse"))
    asyncio.run(world.register())
    with world.synapse:
        yield world


@pytest.fixture
async def alice(world: World) -> AsyncIterator[Person]:
    person = await world.synapse.person(next(NAMES))
    yield person
    await person.close()


@pytest.fixture
async def bob(world: World) -> AsyncIterator[Person]:
    person = await world.synapse.person(next(NAMES))
    yield person
    await person.close()


def answers(person: Person, room: str, bot: str = ME) -> list[str]:
    """Return what the bot says in a room, as a client shows it."""
    return [shown.text for shown in person.shown(room, bot)]


async def eventually(condition: Callable[[], object], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


# -- a conversation


async def test_a_conversation(world: World, alice: Person) -> None:
    async def bird(turns: Sequence[Turn]) -> AsyncIterator[str]:
        yield f"# Answer {len(turns) // 2}\n\n"
        await asyncio.sleep(0.2)
        yield "**粗体**文 & <b>\n\n| a | b |\n|---|---|\n| 1 | 2 |"

    model = ScriptedModel(lambda turns: bird(turns))
    can = msgspec.structs.replace(MatrixAdapter.can, edit_every=0.05)
    quick = type("Quick", (MatrixAdapter,), {"can": can})
    async with world.bot(model, adapter=quick):
        room = await alice.room(ME)
        await alice.say(room, "hello")  # at once, as apps do, perhaps before the bot is in
        await alice.until(lambda: "a: 1" in "".join(answers(alice, room)))
        more = await alice.say(room, "and more?")
        await alice.until(lambda: "a: 1" in "".join(answers(alice, room)[1:]))
    assert [[turn.content for turn in asked if turn.role == "user"] for asked in model.asked] == [
        ["hello"],
        ["hello", "and more?"],
    ]
    first, _ = alice.shown(room, ME)
    assert first.history[0] == "Answer 1"
    assert first.content["msgtype"] == "m.notice"
    assert "<h1>Answer 1</h1>" in first.content["formatted_body"]
    assert "<strong>粗体</strong>文 &amp; &lt;b&gt;" in first.content["formatted_body"]
    assert more in {receipt.event_id for receipt in alice.client.rooms[room].read_receipts.values()}


async def test_in_a_group_only_who_calls_is_answered(world: World, alice: Person, bob: Person) -> None:
    model = ScriptedModel()
    async with world.bot(model):
        room = await alice.room(ME, bob.id)
        await bob.client.join(room)
        await bob.say(room, "nice weather")
        question = await alice.say(room, "magpie: who sings?", **{"m.mentions": {"user_ids": [ME]}})
        edit = {"rel_type": "m.replace", "event_id": question}
        new = {"msgtype": "m.text", "body": "magpie: who sang?"}
        await alice.post(
            room, "m.room.message", {"msgtype": "m.text", "body": "* ", "m.new_content": new, "m.relates_to": edit}
        )
        thread = {"rel_type": "m.thread", "event_id": question}
        inside = await bob.say(room, f"{ME} and in here?", **{"m.relates_to": thread})
        await bob.until(lambda: len(answers(bob, room)) == 2)
    shown = {message.text: message.content for message in bob.shown(room, ME)}
    assert shown.keys() == {"You said: who sings?", "You said: and in here?"}
    reply = shown["You said: who sings?"]
    assert reply["m.relates_to"] == {"m.in_reply_to": {"event_id": question}}
    assert reply["m.mentions"] == {"user_ids": [alice.id]}
    relation = shown["You said: and in here?"]["m.relates_to"]
    assert (relation["rel_type"], relation["event_id"]) == ("m.thread", question)
    assert relation["m.in_reply_to"] == {"event_id": inside}
    assert len(model.asked) == 2


async def test_a_picture_reaches_the_model(world: World, alice: Person) -> None:
    model = ScriptedModel()
    picture = b"\x89PNG\r\n\x1a\n" + bytes(100)
    async with world.bot(model):
        room = await alice.room(ME)
        uploaded, _ = await alice.client.upload(io.BytesIO(picture), "image/png", "bird.png", filesize=len(picture))
        assert isinstance(uploaded, UploadResponse), uploaded
        info = {"mimetype": "image/png", "size": len(picture)}
        content = {"msgtype": "m.image", "body": "what is this?", "filename": "bird.png"}
        await alice.post(room, "m.room.message", content | {"url": uploaded.content_uri, "info": info})
        await alice.until(lambda: answers(alice, room))
    [[shown]] = model.pictures
    assert (shown.mime, shown.data) == ("image/png", picture)


async def test_an_encrypted_room_is_told_once(world: World, alice: Person) -> None:
    model = ScriptedModel()
    async with world.bot(model):
        room = await alice.room(ME)
        algorithm = {"algorithm": "m.megolm.v1.aes-sha2"}
        await alice.client.room_put_state(room, "m.room.encryption", algorithm)
        for _ in range(3):
            content = {**algorithm, "ciphertext": "AwgA", "session_id": "s", "sender_key": "k", "device_id": "d"}
            await alice.call("PUT", f"v3/rooms/{room}/send/m.room.encrypted/{next(NAMES)}", content)
        await alice.until(lambda: answers(alice, room))
        await alice.client.room_leave(room)
        other = await alice.room(ME)
        await alice.say(other, "hello")
        await alice.until(lambda: answers(alice, other))
    assert answers(alice, room) == [UNREADABLE]
    assert answers(alice, other) == ["You said: hello"]


# -- trouble


class Relay:
    """Stands where the homeserver looks for the bot. `lose`: answers to transactions that it does not hear."""

    def __init__(self, port: int, bot: int) -> None:
        self.lose = 0
        self.transactions: list[str] = []
        self._port = port
        self._bot = f"http://127.0.0.1:{bot}"

    async def __aenter__(self) -> Relay:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        self._session = aiohttp.ClientSession()
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        headers = {"Authorization": request.headers["Authorization"]}
        body = io.BytesIO(await request.read())
        async with self._session.request(
            request.method, self._bot + request.path, data=body, headers=headers
        ) as answer:
            response = web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)
        if "/transactions/" in request.path:
            self.transactions.append(request.path)
            if self.lose:
                self.lose -= 1
                assert request.transport is not None
                request.transport.abort()
        return response


async def test_a_transaction_whose_answer_got_lost_is_delivered_again_and_answered_once(
    world: World, alice: Person
) -> None:
    model = ScriptedModel()
    async with (
        world.bot(model, port=0) as magpie,
        Relay(world.ports["matrix"], magpie.port) as relay,
    ):
        room = await alice.room(ME)
        await alice.say(room, "hello")
        await alice.until(lambda: answers(alice, room))
        await eventually(lambda: len(relay.transactions) == len(set(relay.transactions)) > 0)
        relay.lose = 1
        await alice.say(room, "again")
        await alice.until(lambda: len(answers(alice, room)) == 2)
        await eventually(lambda: len(relay.transactions) > len(set(relay.transactions)))  # it was delivered twice
        await alice.say(room, "and on")
        await alice.until(lambda: len(answers(alice, room)) == 3)
    assert answers(alice, room) == ["You said: hello", "You said: again", "You said: and on"]
    assert len(model.asked) == 3


async def test_what_was_written_while_the_bot_was_away_is_answered_once(world: World, alice: Person) -> None:
    model = ScriptedModel()
    database = f"sqlite:///{world.directory}/outage.db"
    async with world.bot(model, database_url=database):
        room = await alice.room(ME)
        await alice.say(room, "hello")
        await alice.until(lambda: answers(alice, room))
    await alice.say(room, "anybody there?")
    await eventually(lambda: world.synapse.counts_as_down("magpie-matrix"))
    async with world.bot(model, database_url=database):
        await alice.until(lambda: len(answers(alice, room)) == 2)
        await alice.say(room, "good")
        await alice.until(lambda: len(answers(alice, room)) == 3)
    assert answers(alice, room) == ["You said: hello", "You said: anybody there?", "You said: good"]
    assert len(model.asked) == 3


async def test_what_could_not_be_stored_is_delivered_again(world: World, alice: Person) -> None:
    refused = asyncio.Event()

    async def unavailable(*_: object) -> Any:
        refused.set()
        raise StoreUnavailable("for a test")

    model = ScriptedModel()
    async with world.bot(model) as magpie:
        room = await alice.room(ME)
        await alice.say(room, "hello")
        await alice.until(lambda: answers(alice, room))
        accept = magpie.store.accept
        magpie.store.accept = unavailable  # type: ignore[method-assign, assignment]
        await alice.say(room, "again")
        await asyncio.wait_for(refused.wait(), 30)
        magpie.store.accept = accept  # type: ignore[method-assign]
        await alice.until(lambda: len(answers(alice, room)) == 2)
    assert answers(alice, room)[1] == "You said: again"
    assert len(model.asked) == 2


async def test_a_rate_limit_is_waited_for_and_nothing_is_lost(world: World, alice: Person) -> None:
    throttled: list[Throttled] = []

    class Limited(MatrixAdapter):
        can = msgspec.structs.replace(MatrixAdapter.can, max_length=120, edit_every=None, pages_per_second=1000)

        async def send(self, chat: Chat, page: Page) -> str:
            try:
                return await super().send(chat, page)
            except Throttled as error:
                throttled.append(error)
                raise

    long = "\n\n".join(f"Paragraph {number} " + "x" * 80 for number in range(10))
    async with world.bot(ScriptedModel(lambda turns: [long]), "limited", Limited):
        room = await alice.room(LIMITED)
        await alice.say(room, "long please")
        await alice.until(lambda: "Paragraph 9" in "".join(answers(alice, room, LIMITED)))
    assert throttled
    assert all(0 < error.retry_after <= 10 for error in throttled)
    shown = answers(alice, room, LIMITED)
    assert [text.split()[1] for text in shown] == [str(number) for number in range(10)]


async def test_a_kick_parks_the_answer_and_a_new_invite_is_a_new_beginning(world: World, alice: Person) -> None:
    go_on = asyncio.Event()

    async def slowly(turns: Sequence[Turn]) -> AsyncIterator[str]:
        yield "One"
        await go_on.wait()
        yield " two"

    async with world.bot(ScriptedModel(slowly)) as magpie:
        room = await alice.room(ME)
        await alice.say(room, "count")
        await alice.until(lambda: answers(alice, room) == ["One"])
        await alice.client.room_kick(room, ME)
        await alice.say(room, "are you gone?")
        go_on.set()
        await eventually(lambda: not magpie.dispatcher.busy)
        assert (await magpie.store.counts())["parked"] == 1
        await alice.client.room_invite(room, ME)
        await alice.say(room, "count again")
        await alice.until(lambda: answers(alice, room) == ["One", "One two"])
        await eventually(lambda: not magpie.dispatcher.busy)
        assert (await magpie.store.counts())["waiting"] == 0


# -- the doctor


async def test_the_doctor_sees_both_directions(world: World) -> None:
    async with context("matrix") as lent:
        url = world.urls["matrix"]
        adapter = MatrixAdapter(world.settings(), lent)
        async with world.bot(ScriptedModel()):
            assert [finding.ok for finding in await adapter.check(url)] == [True, True]
        known, reached = await adapter.check(url)
        assert (known.ok, reached.ok) == (True, False)
        assert "is Magpie running?" in reached.advice
        async with world.bot(ScriptedModel(), "limited", port=world.ports["matrix"]):
            _, reached = await adapter.check(url)
            assert "M_BAD_STATUS" in reached.what
        await adapter.stop()
        for changes, advice in (({"as_token": "guessed"}, "the new file"), ({"user_id": LIMITED}, "another user")):
            stranger = MatrixAdapter(world.settings(**changes), lent)
            [finding] = await stranger.check(url)
            assert advice in finding.advice
            await stranger.stop()
