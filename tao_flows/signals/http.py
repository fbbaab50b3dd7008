"""Asking a provider over HTTP: bounded in time and size, tried again with care, and silent about keys."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from tao_flows.errors import SourceError
from tao_flows.signals.spec import LOOPBACK

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse
    from urllib.request import OpenerDirector, Request

MAX_ANSWER_BYTES: Final = 4 << 20
ATTEMPTS: Final = 3
FIRST_WAIT_S: Final = 0.5
"""The wait before the second attempt is random below this, before the third below twice it."""
LONGEST_WAIT_S: Final = 5.0
"""A server that asks for more patience is left alone until the next refresh."""
LONGEST_RETRY_AFTER_S: Final = 6 * 3_600.0
_TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_MASK: Final = "[redacted]"


class LaterError(SourceError):
    """A provider asked not to be asked again for a while."""

    def __init__(self, code: str, summary: str, remedy: str, wait_s: float) -> None:
        super().__init__(code, summary, remedy)
        self.wait_s = wait_s

    def __reduce__(self) -> tuple[type[LaterError], tuple[str, str, str, float]]:
        return (type(self), (self.code, self.summary, self.remedy, self.wait_s))


class Client:
    """Asks one provider.

    Args:
        name: what messages begin with.
        timeout_s: the longest one attempt takes, name look-up aside.
        sleep: waits that many seconds.
        random_share: a number from 0 to 1.
        wall_s: seconds since the epoch.
    """

    def __init__(
        self,
        name: str,
        timeout_s: float,
        *,
        sleep: Callable[[float], None] = time.sleep,
        random_share: Callable[[], float] = random.random,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._name, self._timeout_s = name, timeout_s
        self._sleep, self._random_share, self._wall_s = sleep, random_share, wall_s
        self.secrets: list[str] = []
        """What no message may show."""
        self.token = ""
        """What a provider gave for a key, and when it ends, on the wall clock."""
        self.token_until_s = 0.0

    def json(self, url: str, headers: Mapping[str, str] | None = None) -> Any:
        """The JSON document at ``url``.

        Raises:
            SourceError: there is none, in time.
        """
        body = self.ask(url, {"Accept": "application/json", **(headers or {})})
        try:
            return json.loads(body, parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise self.rubbish("the answer is not JSON") from None

    def ask(
        self, url: str, headers: Mapping[str, str], body: bytes | None = None, *, also: frozenset[int] = frozenset()
    ) -> bytes:
        """The body of the answer to a GET, or to a POST of ``body``. Answers of a status in ``also`` count, too.

        Raises:
            SourceError: there is none, after as many attempts as make sense.
        """
        for attempt in range(ATTEMPTS):
            wait_s = FIRST_WAIT_S * 2**attempt * self._random_share()
            try:
                return self._attempt(url, headers, body, also)
            except LaterError as error:
                if error.wait_s > LONGEST_WAIT_S or attempt + 1 == ATTEMPTS:
                    raise
                wait_s = max(wait_s, error.wait_s)
            self._sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def rubbish(self, problem: str) -> SourceError:
        """The error of an answer that cannot be used."""
        remedy = "see that url and zone are right; if they are, the provider is in trouble or has changed its answers"
        return self.error("SIGNAL_RUBBISH", problem, remedy)

    def error(self, code: str, problem: str, remedy: str) -> SourceError:
        """An error that names the signal and shows no key."""
        return SourceError(code, self._shown(problem), remedy)

    def _shown(self, problem: str) -> str:
        for secret in self.secrets:
            problem = problem.replace(secret, _MASK)
        return f"{self._name}: {' '.join(problem.split())[:300]}"

    def _attempt(self, url: str, headers: Mapping[str, str], body: bytes | None, also: frozenset[int]) -> bytes:
        from http.client import HTTPException
        from urllib.request import Request

        host = url.split("/")[2]
        request = Request(url, body, {"User-Agent": "tao-flows", **headers})  # noqa: S310 - SignalSpec has http(s) only
        deadline_s = time.monotonic() + self._timeout_s
        try:
            with _hanging_up(self._timeout_s) as opener, opener.open(request, timeout=self._timeout_s) as response:
                if response.status == 200 or response.status in also:
                    return self._body(response, deadline_s)
                raise self._refusal(host, response.status, response.headers)
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError) or time.monotonic() >= deadline_s:
                summary = f"{host}: no answer in {self._timeout_s:g} s"
                raise LaterError("SIGNAL_TIMEOUT", self._shown(summary), "raise timeout, or wait", 0.0) from None
            remedy = "check the url, the network and the certificate"
            summary = self._shown(f"{host}: {reason or type(reason).__name__}")
            raise LaterError("SIGNAL_UNREACHABLE", summary, remedy, 0.0) from None

    def _body(self, response: Any, deadline_s: float) -> bytes:
        body = bytearray()
        while chunk := response.read1(65_536):
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise self.error(
                    "SIGNAL_TOO_LARGE", f"more than {MAX_ANSWER_BYTES} bytes of answer", "see that url is right"
                )
            if time.monotonic() >= deadline_s:
                raise TimeoutError
        if getattr(response, "length", None):
            raise ConnectionError("the answer was cut short")
        return bytes(body)

    def _refusal(self, host: str, status: int, headers: Any) -> SourceError:
        if 300 <= status < 400:
            # Not followed, not even on one host: a key goes where it was meant to go.
            summary = f"{host} redirects to {headers.get('Location', 'elsewhere').split('?')[0]}"
            return self.error("SIGNAL_REDIRECTED", summary, "if that is right, write it as url")
        if status in (401, 403):
            remedy = "check the key, and that its plan has this zone"
            return self.error("SIGNAL_DENIED", f"{host}: HTTP {status}", remedy)
        wait_s = self._retry_after_s(headers.get("Retry-After", ""))
        if status == 429:
            remedy = "raise refresh; it is asked again later by itself"
            return LaterError("SIGNAL_THROTTLED", self._shown(f"{host}: HTTP 429"), remedy, wait_s)
        if status in _TRANSIENT:
            remedy = "wait: it is asked again by itself"
            return LaterError("SIGNAL_HTTP", self._shown(f"{host}: HTTP {status}"), remedy, wait_s)
        return self.error("SIGNAL_HTTP", f"{host}: HTTP {status}", "check url and zone")

    def _retry_after_s(self, text: str) -> float:
        """Seconds or an HTTP date (RFC 9110, 10.2.3); 0 for neither."""
        from email.utils import parsedate_to_datetime

        if text.strip().isascii() and text.strip().isdigit():
            wait_s = float(text.strip()[:9])
        else:
            try:
                wait_s = parsedate_to_datetime(text).timestamp() - self._wall_s()
            except (TypeError, ValueError, OverflowError):
                return 0.0
        return min(max(wait_s, 0.0), LONGEST_RETRY_AFTER_S)


def _no_number(constant: str) -> float:
    raise ValueError(constant)


class _hanging_up:  # noqa: N801 - a context manager that reads as a phrase
    """An opener that follows no redirection, and whose connections end after a time whatever the server does."""

    def __init__(self, timeout_s: float) -> None:
        import threading

        self._connections: list[HTTPConnection] = []
        # A server that sends a byte at a time never meets the socket's own time-out.
        self._watch = threading.Timer(timeout_s, self._hang_up)
        self._watch.daemon = True

    def __enter__(self) -> OpenerDirector:
        from http.client import HTTPConnection, HTTPSConnection
        from urllib import request as urllib

        connections = self._connections

        def kept(kind: type[HTTPConnection]) -> Callable[..., HTTPConnection]:
            def connect(*args: Any, **kwargs: Any) -> HTTPConnection:
                connections.append(kind(*args, **kwargs))
                return connections[-1]

            return connect

        class Http(urllib.HTTPHandler):
            def http_open(self, req: Request) -> HTTPResponse:
                return self.do_open(kept(HTTPConnection), req)

        class Https(urllib.HTTPSHandler):
            def https_open(self, req: Request) -> HTTPResponse:
                return self.do_open(kept(HTTPSConnection), req)

        class AsItIs(urllib.HTTPErrorProcessor):
            """Neither follows redirections nor raises."""

            def http_response(self, request: Request, response: HTTPResponse) -> HTTPResponse:  # noqa: ARG002
                return response

            https_response = http_response

        class Proxies(urllib.ProxyHandler):
            def proxy_open(self, req: Request, proxy: str, type: str) -> Any:  # noqa: A002 - urllib's name
                return None if _is_loopback(req.host) else super().proxy_open(req, proxy, type)

        self._watch.start()
        return urllib.build_opener(Http, Https, AsItIs, Proxies)

    def __exit__(self, *_: object) -> None:
        self._watch.cancel()

    def _hang_up(self) -> None:
        import socket

        for connection in self._connections:
            with suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)


def _is_loopback(host: str) -> bool:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name in LOOPBACK
