"""The signed sample through the public address: each way to fail has its name."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from unittest.mock import create_autospec

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bot import selfcall
from bot.adapter import (
    Adapter,
    AdapterSettings,
    Chat,
    Context,
    Finding,
    Inbound,
    Page,
    Request,
    Response,
    State,
    WebhookAdapter,
)
from bot.config import BotSettings
from bot.errors import Unverified

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Serve = Callable[..., Awaitable[int]]
PATH = "/webhooks/acme"


class AcmeAdapter(WebhookAdapter[AdapterSettings]):
    name, title, docs = "acme", "Acme", "https://acme.example"

    async def verify(self, request: Request) -> None:
        if request.header("x-secret") != "s3cret" or request.body != b"{}":
            raise Unverified("no")

    def parse(self, request: Request) -> Inbound:
        return Inbound(response=Response(b"success"))

    async def send(self, chat: Chat, page: Page) -> str:
        return "1"

    def sample(self) -> Request | None:
        return Request(headers={"x-secret": "s3cret"}, body=b"{}")


class UnsignedAdapter(AcmeAdapter):
    def sample(self) -> Request | None:
        return None


class PollingAdapter(Adapter[AdapterSettings]):
    name, title, docs = "polling", "Polling", "https://polling.example"

    async def send(self, chat: Chat, page: Page) -> str:
        return "1"


def make(kind: type[Adapter[AdapterSettings]] = AcmeAdapter) -> Adapter[AdapterSettings]:
    return kind(AdapterSettings.model_validate({}), Context("acme", create_autospec(State)))


def answering(status: int, text: str = "", **headers: str) -> Handler:
    async def handler(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, text=text, content_type="text/html", headers=headers)

    return handler


async def magpie(request: web.BaseRequest) -> web.StreamResponse:
    """Answer like the server does: 404 for another path, 401 for another secret or body."""
    if request.path != PATH:
        return web.json_response({"error": {"code": "not_found"}}, status=404)
    ours = Request(headers={key.lower(): value for key, value in request.headers.items()}, body=await request.read())
    try:
        await AcmeAdapter(AdapterSettings.model_validate({}), Context("acme", create_autospec(State))).verify(ours)
    except Unverified:
        return web.json_response({"error": {"code": "unauthorized"}}, status=401)
    return web.Response(text="success")


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def serve(handler: Handler, tls: ssl.SSLContext | None = None) -> int:
            runner = web.ServerRunner(web.Server(handler))
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
            return int(runner.addresses[0][1])

        yield serve


async def call(port: int, local: int = 1, adapter: type[Adapter[AdapterSettings]] = AcmeAdapter) -> Finding:
    bot = BotSettings.model_validate({"public_url": f"http://127.0.0.1:{port}", "port": local})
    return (await selfcall.call(make(adapter), bot))[0]


def is_told(finding: Finding, code: str) -> bool:
    """Whether a finding is the sentence of this code."""
    sentence, _, advice, _ = selfcall.TEXTS[code]
    pattern = re.sub(r"\\\{.*?\\\}", ".*", re.escape(sentence))
    return re.fullmatch(pattern, finding.what) is not None and finding.ok == (not advice)


async def test_what_comes_through_is_ok_and_a_private_address_is_noted(serve: Serve) -> None:
    port = await serve(magpie)
    bot = BotSettings.model_validate({"public_url": f"http://127.0.0.1:{port}", "port": port})
    first, second = await selfcall.call(make(), bot)
    assert is_told(first, "ok")
    assert is_told(second, "private")


@pytest.mark.parametrize(
    ("proxy", "code"),
    [
        (answering(301, location="https://www.example.com/"), "redirect"),
        (answering(308, location="/webhooks/acme/"), "redirect"),
        (answering(502, "<html>Bad Gateway"), "gateway"),
        (answering(503, "<html>"), "gateway"),
        (answering(404, "<html>nginx"), "path_proxy"),
        (answering(405, "<html>nginx"), "path_proxy"),
        (answering(401, "<html>log in"), "altered"),
        (answering(403, "<html>firewall"), "altered"),
        (answering(200, "<html>It works!"), "foreign"),
        (answering(413, "<html>too large"), "blocked"),
        (answering(500, "<html>oops"), "blocked"),
    ],
)
async def test_a_proxy_that_answers_instead_of_us_is_named(proxy: Handler, code: str, serve: Serve) -> None:
    finding = await call(await serve(proxy), await serve(magpie))
    assert is_told(finding, code), finding
    assert finding.advice


@pytest.mark.parametrize(
    ("server", "code"),
    [
        (answering(401, "refused"), "signature"),
        (answering(404, "not found"), "path"),
        (answering(503, "draining"), "unready"),
        (answering(500, "oops"), "unexpected"),
    ],
)
async def test_what_the_server_itself_answers_is_named(server: Handler, code: str, serve: Serve) -> None:
    port = await serve(server)
    assert is_told(await call(port, port), code)


async def test_a_proxy_that_changes_the_body_is_named(serve: Serve) -> None:
    inner = await serve(magpie)

    async def proxy(request: web.BaseRequest) -> web.StreamResponse:
        changed = request.clone()
        changed._read_bytes = await request.read() + b"\n"
        return await magpie(changed)

    assert is_told(await call(await serve(proxy), inner), "altered")


async def test_a_server_that_does_not_run_is_named_behind_its_proxy(serve: Serve) -> None:
    assert is_told(await call(await serve(answering(502, "<html>"))), "down")


async def test_a_connection_that_breaks_is_named(serve: Serve) -> None:
    async def cut(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    assert is_told(await call(await serve(cut), await serve(magpie)), "broken")


async def test_silence_is_named(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcall, "PATIENCE", 0.2)
    asleep = asyncio.Event()

    async def silent(_: web.BaseRequest) -> web.StreamResponse:
        await asleep.wait()
        return web.Response()

    finding = await call(await serve(silent), await serve(magpie))
    asleep.set()
    assert is_told(finding, "silent")


async def test_a_closed_port_is_named(unused_tcp_port: int) -> None:
    assert is_told(await call(unused_tcp_port), "refused")


@pytest.mark.parametrize(
    ("url", "code"),
    [("", "no_address"), ("http://bot.invalid", "not_https"), ("https://bot.invalid", "dns")],
)
async def test_an_address_that_cannot_work_is_named(url: str, code: str) -> None:
    bot = BotSettings.model_validate({"public_url": url})
    (finding,) = await selfcall.call(make(), bot)
    assert is_told(finding, code)


async def test_an_unsigned_platform_is_reached_when_it_is_refused_as_it_should(serve: Serve) -> None:
    port = await serve(magpie)
    assert is_told(await call(port, port, UnsignedAdapter), "ok_unsigned")
    assert is_told(await call(await serve(answering(404)), port, UnsignedAdapter), "path_proxy")


async def test_an_adapter_without_a_webhook_is_not_called() -> None:
    assert await selfcall.call(make(PollingAdapter), BotSettings.model_validate({})) == []


class PageAdapter(UnsignedAdapter):
    also_at = {"/": ""}


async def test_a_page_of_our_own_needs_no_public_address(serve: Serve, unused_tcp_port: int) -> None:
    for port, code in ((await serve(magpie), "ok_here"), (unused_tcp_port, "down")):
        (finding,) = await selfcall.call(make(PageAdapter), BotSettings.model_validate({"port": port}))
        assert is_told(finding, code)


async def test_it_speaks_chinese() -> None:
    (finding,) = await selfcall.call(make(), BotSettings.model_validate({}), "zh")
    assert finding.what == selfcall.TEXTS["no_address"][1]
    assert finding.advice == selfcall.TEXTS["no_address"][3]


@pytest.mark.parametrize(("host", "url"), [("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80")])
def test_the_local_address_can_be_called(host: str, url: str) -> None:
    assert selfcall.local_url(BotSettings.model_validate({"host": host, "port": 80})) == url


# -- certificates


class Authority:
    """A certificate authority of our own. `issue` writes key and certificate into one file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name.from_rfc4514_string("CN=Test Authority")
        self.certificate = self._sign(self.subject, self.key, {"ca": True})
        self.file = folder / "ca.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        options: dict[str, bool],
        address: str = "127.0.0.1",
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        age = datetime.timedelta(days=-400 if options.get("expired") else -1)
        issuer = subject if options.get("self_signed") else self.subject
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + age)
            .not_valid_after(now + age + datetime.timedelta(days=300))
            .add_extension(x509.BasicConstraints(ca=options.get("ca", False), path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        )
        return builder.sign(key if options.get("self_signed") else self.key, hashes.SHA256())

    def issue(self, address: str = "127.0.0.1", **options: bool) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(x509.Name.from_rfc4514_string("CN=bot"), key, options, address)
        file = self.folder / "server.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


async def call_tls(port: int) -> Finding:
    bot = BotSettings.model_validate({"public_url": f"https://127.0.0.1:{port}", "port": 1})
    return (await selfcall.call(make(), bot))[0]


@pytest.mark.parametrize(
    ("address", "options", "code"),
    [
        ("127.0.0.1", {}, "ok"),
        ("127.0.0.1", {"expired": True}, "expired"),
        ("127.0.0.2", {}, "wrong_name"),
        ("127.0.0.1", {"self_signed": True}, "self_signed"),
    ],
)
async def test_a_certificate_that_platforms_refuse_is_named(
    address: str, options: dict[str, bool], code: str, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    finding = await call_tls(await serve(magpie, authority.issue(address, **options)))
    assert is_told(finding, code), finding


async def test_a_certificate_without_its_chain_is_named(serve: Serve, tmp_path: Path) -> None:
    assert is_told(await call_tls(await serve(magpie, Authority(tmp_path).issue())), "chain")


async def test_a_port_that_speaks_plain_http_is_named(serve: Serve) -> None:
    assert is_told(await call_tls(await serve(magpie)), "tls")
