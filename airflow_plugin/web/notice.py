"""Answers that are one line: what was done, what is wrong and what to do about it. As a page, or as JSON."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from typing import Final

from fastapi import Request
from fastapi.responses import HTMLResponse, Response

from tao_flows.report.style import STYLE
from tao_flows.report.text import plain

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'self'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
}
"""Of every answer. The pages are shown in frames of Airflow's own UI, and of no other site's."""

# Airflow 3.0 keeps the token out of the cookies: a page that is opened asks for itself again, with the token.
_ASK_AGAIN: Final = """
const token = localStorage.getItem("token");
if (token) fetch(location.href, {headers: {Authorization: "Bearer " + token, Accept: "text/html"}})
  .then(async answer => {
    const text = await answer.text();
    if (answer.status === 401) return;
    document.open(); document.write(text); document.close();
    if (location.hash) location.replace(location.hash);
  });
"""


def page(html: str) -> HTMLResponse:
    """A whole page."""
    return HTMLResponse(html, headers=HEADERS)


def notice(
    request: Request, status: int, summary: str, remedy: str = "", *, code: str = "", leads: tuple[str, str] = ("", "")
) -> Response:
    """One line, in the form that is asked for.

    Args:
        request: a browser's is answered with a page, any other with JSON.
        status: of HTTP.
        summary: what is so.
        remedy: what to do about it.
        code: the stable code of an error.
        leads: the words and the address of the one link of the page.
    """
    if not wants_page(request):
        said = {"code": code, "summary": summary, "remedy": remedy}
        body = json.dumps({"error": said} if status >= 400 else said)
        return Response(body, status, HEADERS, "application/json")
    return HTMLResponse(_html(summary, remedy, code, *leads), status, HEADERS)


def sign_in(request: Request, login: str, *, with_token: bool) -> Response:
    """What is said to whoever is not signed in.

    Args:
        request: what was asked for.
        login: where one signs in.
        with_token: whether the page is to look for a token that Airflow's UI keeps, and ask again with it.
    """
    answer = notice(
        request, 401, "Sign in to Airflow to see this page.", code="NOT_SIGNED_IN", leads=("Sign in", login)
    )
    if not with_token or not wants_page(request):
        return answer
    script_hash = base64.b64encode(hashlib.sha256(_ASK_AGAIN.encode()).digest()).decode()
    policy = f"{HEADERS['Content-Security-Policy']}; script-src 'sha256-{script_hash}'; connect-src 'self'"
    html = bytes(answer.body).decode().replace("</main>", f"</main><script>{_ASK_AGAIN}</script>")
    return HTMLResponse(html, 401, {**HEADERS, "Content-Security-Policy": policy})


def wants_page(request: Request) -> bool:
    """Whether a browser asks, and not a program."""
    return "text/html" in request.headers.get("accept", "")


def _html(summary: str, remedy: str, code: str, words: str, address: str) -> str:
    said = [f"<p><strong>{escape(plain(summary, 400))}</strong></p>"]
    if remedy:
        said.append(f"<p>{escape(plain(remedy, 400))}</p>")
    if code:
        said.append(f'<p class="soft"><code>{escape(code)}</code></p>')
    if address:
        said.append(f'<p><a href="{escape(address)}">{escape(words)}</a></p>')
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Energy</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<section>{''.join(said)}</section>\n</main>\n</body>\n</html>\n"
    )
