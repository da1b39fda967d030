"""Call our own webhook the way the platform does, through the public address, and say which step failed.

The request is signed as the platform signs and holds no message, so it can be sent at any time. When it does not come
through, the same request goes to the server directly: what differs is the work of whatever stands between.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from bot.adapter import AnyAdapter, Finding, Request, Response, WebhookAdapter
from bot.config import BotSettings

Facts = dict[str, object]

PATIENCE = 10.0  # seconds; the platforms wait 3 to 10
BODY_READ = 65536  # bytes of an answer that are looked at

# code -> (what English, what Chinese, advice English, advice Chinese)
TEXTS: dict[str, tuple[str, str, str, str]] = {
    "ok": (
        "{url}: reached from outside, signature accepted",
        "{url}：外部可达，签名通过",
        "",
        "",
    ),
    "ok_unsigned": (
        "{url}: reached from outside (the platform's signature cannot be imitated here, so it was not tried)",
        "{url}：外部可达（该平台的签名无法在此模拟，未验证）",
        "",
        "",
    ),
    "ok_here": (
        "{local}: answers; without BOT_PUBLIC_URL it is for this machine and its network",
        "{local}：正常；未设置 BOT_PUBLIC_URL，仅供本机及所在网络使用",
        "",
        "",
    ),
    "private": (
        "{host} is a private address: only platforms in the same network can call it",
        "{host} 是内网地址：只有同一网络内的平台才能回调",
        "",
        "",
    ),
    "no_address": (
        "BOT_PUBLIC_URL is not set, so no platform can call this server",
        "未设置 BOT_PUBLIC_URL，平台无法回调本服务",
        "set it to the address the world reaches this server at, such as https://bot.example.com",
        "请设置为外网访问本服务的地址，例如 https://bot.example.com",
    ),
    "not_https": (
        "BOT_PUBLIC_URL ({host}) does not begin with https://",
        "BOT_PUBLIC_URL（{host}）不是 https:// 开头",
        "platforms call https only: put a proxy with a certificate (Caddy, nginx) or a tunnel in front",
        "平台只回调 https 地址：请在前面放带证书的反向代理（Caddy、nginx）或隧道",
    ),
    "dns": (
        "the name {host} does not resolve",
        "域名 {host} 无法解析",
        "look for a typing mistake in BOT_PUBLIC_URL; a new DNS record can take an hour",
        "请检查 BOT_PUBLIC_URL 是否有误；新的 DNS 记录可能需要一小时生效",
    ),
    "refused": (
        "{host} refuses connections on port {port}",
        "{host} 的端口 {port} 拒绝连接",
        "start the proxy, and forward the port to this machine",
        "请启动反向代理，并把端口转发到本机",
    ),
    "timeout": (
        "no connection to {host} port {port} within {patience:g} s",
        "{patience:g} 秒内连不上 {host} 的端口 {port}",
        "open the port in the firewall; some routers do not let a machine call its own public address: "
        "then try this from another network",
        "请在防火墙放行该端口；有些路由器不允许本机访问自己的公网地址，可换个网络再试",
    ),
    "unreachable": (
        "{host} port {port} cannot be reached ({detail})",
        "无法到达 {host} 的端口 {port}（{detail}）",
        "check the network and the DNS record's address",
        "请检查网络以及 DNS 记录的地址",
    ),
    "expired": (
        "the certificate of {host} has expired or is not valid yet",
        "{host} 的证书已过期或尚未生效",
        "renew it, and check this machine's clock",
        "请更新证书，并检查本机时间",
    ),
    "wrong_name": (
        "the certificate is not for {host}",
        "证书不属于 {host}",
        "get one for this name, or use the name it was made for in BOT_PUBLIC_URL",
        "请为该域名申请证书，或把 BOT_PUBLIC_URL 改为证书上的域名",
    ),
    "self_signed": (
        "the certificate of {host} is self-signed",
        "{host} 的证书是自签名的",
        "platforms refuse it: use one from a public authority (Let's Encrypt is free)",
        "平台会拒绝：请使用公共机构签发的证书（Let's Encrypt 免费）",
    ),
    "chain": (
        "the certificate of {host} has no trusted chain",
        "{host} 的证书链不受信任",
        "let the proxy send the full chain (fullchain.pem), and use a public authority",
        "请让反向代理发送完整证书链（fullchain.pem），并使用公共机构签发的证书",
    ),
    "tls": (
        "no TLS connection to {host} port {port} ({detail})",
        "与 {host} 的端口 {port} 无法建立 TLS 连接（{detail}）",
        "the port probably speaks plain HTTP: let the proxy serve https on it",
        "该端口可能是普通 HTTP：请让反向代理在该端口提供 https",
    ),
    "silent": (
        "{url}: connected, but no answer within {patience:g} s",
        "{url}：已连接，但 {patience:g} 秒内没有回应",
        "the proxy does not reach the server: it should forward to {local}",
        "反向代理未能连到服务：应转发到 {local}",
    ),
    "broken": (
        "{url}: the connection broke before there was an answer",
        "{url}：连接在回应之前中断",
        "the proxy does not reach the server: it should forward to {local}",
        "反向代理未能连到服务：应转发到 {local}",
    ),
    "down": (
        "no Magpie answers at {local}",
        "{local} 没有运行 Magpie",
        "start it first: magpie serve",
        "请先启动：magpie serve",
    ),
    "redirect": (
        "{url}: redirects to {detail}",
        "{url}：被重定向到 {detail}",
        "platforms do not follow redirects: set BOT_PUBLIC_URL to the final address",
        "平台不会跟随重定向：请把 BOT_PUBLIC_URL 设为最终地址",
    ),
    "gateway": (
        "{url}: the proxy answers {status}; it does not reach Magpie",
        "{url}：反向代理返回 {status}，没有连到 Magpie",
        "let the proxy forward to {local}",
        "请让反向代理转发到 {local}",
    ),
    "unready": (
        "{url}: Magpie answers {status}; it cannot store messages now",
        "{url}：Magpie 返回 {status}，目前无法保存消息",
        "see the server's log; is the database writable?",
        "请查看服务日志；数据库是否可写？",
    ),
    "path_proxy": (
        "{url}: {status}, but Magpie itself serves this path",
        "{url}：返回 {status}，但 Magpie 本身提供该路径",
        "the proxy changes or blocks the path: forward /webhooks/ unchanged to {local}",
        "反向代理改写或拦截了路径：请把 /webhooks/ 原样转发到 {local}",
    ),
    "path": (
        "{url}: {status}; the running server does not serve this path",
        "{url}：返回 {status}，运行中的服务没有该路径",
        'is "{instance}" in BOT_ADAPTERS? Restart the server after a change of .env',
        "BOT_ADAPTERS 中有 “{instance}” 吗？修改 .env 后需重启服务",
    ),
    "altered": (
        "{url}: the signature is refused, although the server accepts it directly: the request was changed on its way",
        "{url}：签名被拒，但直连服务时通过：请求在途中被改动",
        "let the proxy pass the body and all headers unchanged",
        "请让反向代理原样转发请求体和所有请求头",
    ),
    "signature": (
        "{url}: the signature is refused; the running server has another secret",
        "{url}：签名被拒，运行中的服务使用了不同的密钥",
        "restart the server after a change of .env",
        "修改 .env 后请重启服务",
    ),
    "blocked": (
        "{url}: the proxy answers {status}, Magpie itself {direct}",
        "{url}：反向代理返回 {status}，而 Magpie 返回 {direct}",
        "a firewall, a login page or a body limit of the proxy blocks the platform's requests",
        "反向代理的防火墙、登录页或请求体大小限制拦截了平台的请求",
    ),
    "foreign": (
        "{url}: another server answers ({status}, {detail})",
        "{url}：是别的服务在回应（{status}，{detail}）",
        "let the proxy forward /webhooks/ to {local}",
        "请让反向代理把 /webhooks/ 转发到 {local}",
    ),
    "unexpected": (
        "{url}: answers {status} to a request that is in order",
        "{url}：对正常请求返回 {status}",
        "see the server's log",
        "请查看服务日志",
    ),
}

# OpenSSL's X509_V_ERR_*: https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/
CERTIFICATE = {9: "expired", 10: "expired", 18: "self_signed", 19: "self_signed", 62: "wrong_name", 64: "wrong_name"}
# The first class that fits names the failure.
FAILURES: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ClientConnectorDNSError, "dns"),
    (aiohttp.ClientConnectorCertificateError, "chain"),
    (aiohttp.ClientConnectorSSLError, "tls"),
    (aiohttp.ConnectionTimeoutError, "timeout"),
    (TimeoutError, "silent"),
    (aiohttp.ClientConnectorError, "unreachable"),
    (Exception, "broken"),
)
GATEWAY = (502, 503, 504, 521, 522, 523, 530)


class Reached(msgspec.Struct, frozen=True):
    """What came back. `failure` is a code of TEXTS when it was no HTTP answer."""

    failure: str = ""
    detail: str = ""
    status: int = 0
    kind: str = ""  # of the content
    body: bytes = b""
    location: str = ""


async def call(adapter: AnyAdapter, bot: BotSettings, language: str = "en") -> list[Finding]:
    """Send an adapter's sample through BOT_PUBLIC_URL; [] for one without a webhook.

    Without that variable an adapter with an address of its own (`also_at`) is called directly: its callers may be near.
    """
    if not isinstance(adapter, WebhookAdapter):
        return []
    parts = urlsplit(bot.public_url)
    local, path = local_url(bot), f"/webhooks/{adapter.context.instance}"
    facts: Facts = {
        "url": bot.public_url + path,
        "host": parts.hostname or "",
        "port": parts.port or (443 if parts.scheme == "https" else 80),
        "local": local,
        "instance": adapter.context.instance,
        "patience": PATIENCE,
    }
    if adapter.also_at and not bot.public_url:
        here = await _ask(local + path, adapter.sample())
        return [_finding("down" if here.failure else "ok_here", facts, language)]
    private = await _is_private(str(facts["host"]))
    if problem := _address_problem(parts.scheme, private):
        return [_finding(problem, facts, language)]
    code, more = await _try(adapter, bot.public_url + path, local + path)
    findings = [_finding(code, {**facts, **more}, language)]
    return [*findings, _finding("private", facts, language)] if private else findings


def local_url(bot: BotSettings) -> str:
    """Return where the server answers on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(bot.host, bot.host)  # noqa: S104
    return f"http://[{host}]:{bot.port}" if ":" in host else f"http://{host}:{bot.port}"


def _address_problem(scheme: str, private: bool) -> str:
    if not scheme:
        return "no_address"
    return "" if scheme == "https" or private else "not_https"


async def _is_private(host: str) -> bool:
    """Whether a name leads to this machine or the local network only."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return all(not ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_global for entry in found)


async def _try(adapter: WebhookAdapter[Any], public: str, local: str) -> tuple[str, Facts]:
    """Send the sample both ways as needed; return the code of what was found, and its facts."""
    sample = adapter.sample()
    expected = adapter.parse(sample).response if sample else None
    outside = await _ask(public, sample)
    if _fits(outside, expected):
        return "ok", {}
    direct = await _ask(local, adapter.sample())
    return _diagnose(outside, direct, expected), {
        "status": outside.status,
        "direct": direct.status,
        "detail": outside.location or outside.detail or outside.kind,
    }


def _fits(came: Reached, expected: Response | None) -> bool:
    """Whether this is what the adapter answers; an encrypted answer is another one each time."""
    if expected is None or came.status != expected.status:
        return False
    return came.body == expected.body or (bool(expected.body) and came.kind == _kind(expected.content_type))


def _diagnose(outside: Reached, direct: Reached, expected: Response | None) -> str:
    """Return the code for a sample that did not come through."""
    if outside.failure:
        return "down" if outside.failure in ("silent", "broken") and direct.failure else outside.failure
    status = outside.status
    ours = bool(direct.failure) or (status, outside.body) == (direct.status, direct.body)  # or nothing to compare with
    checks = (
        (300 <= status < 400, "redirect"),
        (status in GATEWAY, "down" if direct.failure else "unready" if ours else "gateway"),
        (status in (404, 405), "path" if ours else "path_proxy"),
        (ours and expected is None, "ok_unsigned"),
        (status in (401, 403), "signature" if ours else "altered" if _fits(direct, expected) else "blocked"),
        (status == 200, "foreign"),
        (not ours, "blocked"),
    )
    return next((code for holds, code in checks if holds), "unexpected")


async def _ask(url: str, sample: Request | None) -> Reached:
    """Send a request once, without following redirects."""
    sample = sample or Request()
    context = ssl.create_default_context()  # made here, so that SSL_CERT_FILE of today counts
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session,
            session.request(
                sample.method,
                url + sample.path,
                params=dict(sample.query),
                data=sample.body,
                headers=sample.headers,
                allow_redirects=False,
                ssl=context,
            ) as answer,
        ):
            body = await answer.content.read(BODY_READ)
            return Reached(
                status=answer.status,
                kind=answer.content_type,
                body=body,
                location=answer.headers.get("location", ""),
            )
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return _failed(error)


def _failed(error: Exception) -> Reached:
    code = next(code for kind, code in FAILURES if isinstance(error, kind))
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        code = CERTIFICATE.get(getattr(error.certificate_error, "verify_code", 0), code)
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ConnectionRefusedError):
        code = "refused"
    return Reached(failure=code, detail=_detail(error))


def _detail(error: Exception) -> str:
    cause = getattr(error, "os_error", None)
    return getattr(cause, "strerror", "") or type(cause or error).__name__


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip()


def _finding(code: str, facts: Facts, language: str) -> Finding:
    what, what_zh, advice, advice_zh = TEXTS[code]
    sentences = (what_zh, advice_zh) if language == "zh" else (what, advice)
    ok = not advice
    return Finding(ok, *(sentence.format_map(facts) for sentence in sentences))
