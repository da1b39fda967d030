"""The page and its files, and the headers that keep it from loading or running anything else."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Iterable, Mapping
from pathlib import Path

from bot.adapter import Handler, Request, Response

STATIC = Path(__file__).with_name("static")
TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}
PRIVATE = {**HEADERS, "Cache-Control": "no-store"}

# Trusted types make the browser refuse innerHTML and its like, whatever a later change of the page does.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'; "
    "frame-ancestors 'self'"
)


def page(base: str, values: Mapping[str, str], ancestors: Iterable[str]) -> Response:
    """Build the page. `base` is the relative URL of its files; `values` replace {{name}}, escaped."""
    text = (STATIC / "index.html").read_text(encoding="utf-8")
    for name, value in {"base": base, **values}.items():
        text = text.replace(f"{{{{{name}}}}}", html.escape(value))
    policy = " ".join([POLICY, *ancestors])
    headers = {**HEADERS, "Content-Security-Policy": policy, "Cache-Control": "no-cache"}
    return Response(text.encode(), 200, "text/html; charset=utf-8", headers)


def files() -> dict[tuple[str, str], Handler]:
    """Return a route for every file of the page."""
    names = sorted(path.name for path in STATIC.iterdir() if path.suffix in TYPES)
    return {("GET", f"/{name}"): _file(STATIC / name) for name in names}


def _file(path: Path) -> Handler:
    """Return a handler that serves a file; browsers ask again whether theirs is still good."""
    body = path.read_bytes()
    tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    headers = {**HEADERS, "ETag": tag, "Cache-Control": "no-cache"}

    async def serve(request: Request) -> Response:
        known = request.header("if-none-match") == tag
        return Response(b"" if known else body, 304 if known else 200, TYPES[path.suffix], headers)

    return serve
