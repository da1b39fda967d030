"""A web page that answers through Magpie: the browser asks Flask, Flask asks `POST /api/chat` and streams on.

Variables: MAGPIE_URL, API_TOKEN (the same as Magpie's), SECRET_KEY (signs the cookie; without it a new one each start).
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from flask import Flask, Response, render_template, request, session, stream_with_context

PATIENCE = 310  # seconds; Magpie holds a request up to 300
LONGEST = 4000  # characters of a message

app = Flask(__name__)
app.secret_key = os.environ.get("SECRET_KEY") or secrets.token_hex(32)
app.config.update(SESSION_COOKIE_SAMESITE="Lax", PERMANENT_SESSION_LIFETIME=180 * 86400)


@app.get("/")
def page() -> str:
    """Show the page; a new visitor gets an id in a signed cookie."""
    session.permanent = True
    session.setdefault("user", secrets.token_hex(12))
    return render_template("chat.html")


@app.post("/chat")
def chat() -> Response:
    """Pass one message on and the answer back, as server-sent events."""
    asked = request.get_json(silent=True)
    if "user" not in session:
        return problem(401, "unauthorized", "open the page first")
    if not isinstance(asked, dict) or not isinstance(asked.get("message"), str):
        return problem(400, "bad_request", "message: a text is expected")
    try:
        answer = ask(session["user"], asked["message"][:LONGEST], str(asked.get("id", "")))
    except HTTPError as error:  # Magpie's own words: {"error": {"code", "message"}}
        return Response(error.read(), error.code, mimetype="application/json")
    except (URLError, HTTPException, OSError):
        return problem(503, "unavailable", "the bot cannot be reached")
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Response(stream_with_context(events(answer)), mimetype="text/event-stream", headers=headers)


def ask(user: str, message: str, identity: str) -> HTTPResponse:
    """Call Magpie; return the response whose body is the answer being written. Raises HTTPError and URLError."""
    headers = {
        "Authorization": f"Bearer {os.environ['API_TOKEN']}",
        "Accept": "text/event-stream",
        "Accept-Language": request.headers.get("Accept-Language", ""),
        "Content-Type": "application/json",
    }
    body = json.dumps({"user": user, "message": message, "id": identity})
    url = os.environ.get("MAGPIE_URL", "http://127.0.0.1:8080").rstrip("/") + "/api/chat"
    response = urlopen(Request(url, body.encode(), headers), timeout=PATIENCE)
    assert isinstance(response, HTTPResponse)
    return response


def events(answer: HTTPResponse) -> Iterator[bytes]:
    """Yield the answer's lines as they come. When it breaks off, so do we: the page asks again with the same id."""
    with answer:
        try:
            while line := answer.readline():
                yield line
        except (HTTPException, OSError):
            return


def problem(status: int, code: str, message: str) -> Response:
    """Build an error body like Magpie's."""
    return Response(json.dumps({"error": {"code": code, "message": message}}), status, mimetype="application/json")
