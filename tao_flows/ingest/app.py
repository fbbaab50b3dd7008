"""The ingest as a WSGI application: who may write, what is taken, and what is said of each record."""

from __future__ import annotations

import json
import logging
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from queue import LifoQueue
from typing import Any, Final

from tao_flows.errors import LedgerError, TaoError
from tao_flows.ingest.ownership import Ownership
from tao_flows.ingest.tokens import TokenFile
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.remote import CONTENT_TYPE, RECORDS_PATH
from tao_flows.ledger.wireformat import decode, deliver, is_refusal

log = logging.getLogger("tao_flows.ingest")

HEALTH_PATH: Final = "/healthz"
MAX_BODY_BYTES: Final = 8 << 20
"""Of a request, as sent and unpacked."""
MAX_RECORDS: Final = 5_000
"""Of a request."""
RATE_PER_S: Final = 2_000.0
"""Records a second that one team may write over time; ten seconds' worth at once."""
_BURST_S: Final = 10.0
WORK_S: Final = 1.0
"""How long one request is worked on: what is left of it then is for its sender to send again."""
_RETRY_AFTER_S: Final = 5
"""What a client is asked to wait while the ledger takes nothing."""
_TYPES: Final = (CONTENT_TYPE, "application/x-ndjson")
_MOST_SUMMARY: Final = 300

StartResponse = Callable[[str, list[tuple[str, str]]], Any]
Environ = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered."""

    status: str
    said: Mapping[str, Any]
    headers: tuple[tuple[str, str], ...] = ()


class _Rejected(Exception):
    def __init__(self, status: str, code: str, summary: str, *headers: tuple[str, str]) -> None:
        super().__init__(code)
        self.answer = Answer(status, {"code": code, "summary": summary}, headers)


class Allowance:
    """How many records each team may still write now: a token bucket a team. Safe to use from threads.

    Args:
        rate_per_s: records a second that come back to each.
        clock: monotonic time in seconds.
    """

    def __init__(self, rate_per_s: float = RATE_PER_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate_per_s = rate_per_s
        self._most = rate_per_s * _BURST_S
        self._clock = clock
        self._lock = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, team: str, records: int) -> float:
        """Takes so many; or nothing, and says in how many seconds there will be any. A request overdraws at most once."""
        with self._lock:
            now_s = self._clock()
            left, at_s = self._left.get(team, (self._most, now_s))
            left = min(self._most, left + (now_s - at_s) * self._rate_per_s)
            is_allowed = left > 0
            self._left[team] = (left - records if is_allowed else left, now_s)
            return 0.0 if is_allowed else max(1.0, -left / self._rate_per_s)


class IngestApp:
    """Takes records of those who hold a token, and writes them to a ledger.

    Args:
        ledgers: the same ledger, as often as there may be connections to it: each serves one request at a time.
        tokens: who may write.
        allowance: how much.
    """

    def __init__(self, ledgers: Iterable[Ledger], tokens: TokenFile, allowance: Allowance | None = None) -> None:
        self._free: LifoQueue[Ledger] = LifoQueue()
        for ledger in ledgers:
            self._free.put(ledger)
        self._tokens = tokens
        self._allowance = allowance or Allowance()
        self._ownership = Ownership()
        self.is_closing = False
        """True while it ends: what has been begun is finished, and nothing else is."""

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            answer = self._answer(environ)
        except _Rejected as rejected:
            answer = rejected.answer
        except Exception:
            log.exception("a request failed")
            answer = Answer("500 Internal Server Error", {"code": "INTERNAL", "summary": "see the ingest's log"})
        body = json.dumps(answer.said, separators=(",", ":")).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response(answer.status, headers + list(answer.headers))
        return [body]

    def _answer(self, environ: Environ) -> Answer:
        path, method = environ.get("PATH_INFO", ""), environ["REQUEST_METHOD"]
        if path == HEALTH_PATH and method in ("GET", "HEAD"):
            return Answer("200 OK", {"ok": not self.is_closing})
        if path != RECORDS_PATH:
            raise _Rejected("404 Not Found", "NO_SUCH_PATH", f"records go to {RECORDS_PATH}")
        team = self._authenticated(environ)
        if method != "POST":
            if method in ("GET", "HEAD"):
                raise _Rejected("403 Forbidden", "WRITE_ONLY", "a token writes records and reads none")
            raise _Rejected("405 Method Not Allowed", "METHOD", "records are posted", ("Allow", "POST"))
        if self.is_closing:
            raise _busy("the ingest is ending")
        lines = _body(environ).splitlines()
        if len(lines) > MAX_RECORDS:
            raise _Rejected("413 Content Too Large", "TOO_MANY_RECORDS", f"a request holds up to {MAX_RECORDS}")
        wait_s = self._allowance.take(team, len(lines))
        if wait_s:
            summary = "the team has written its share for now"
            raise _Rejected("429 Too Many Requests", "TOO_FAST", summary, ("Retry-After", str(round(wait_s + 0.5))))
        ledger = self._free.get()
        try:
            return self._take(ledger, lines, team)
        finally:
            self._free.put(ledger)

    def _authenticated(self, environ: Environ) -> str:
        scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        team = self._tokens.team_of(token.strip()) if scheme.lower() == "bearer" else None
        if team is None:
            raise _Rejected(
                "401 Unauthorized", "TOKEN", "this is no token of this ingest", ("WWW-Authenticate", "Bearer")
            )
        return team

    def _take(self, ledger: Ledger, lines: list[bytes], team: str) -> Answer:
        """Writes records in order until the ledger fails or the time is up; what it says of each is final."""
        refused: list[dict[str, Any]] = []
        give_up_s, settled = time.monotonic() + WORK_S, 0
        for number, line in enumerate(lines):
            try:
                entry = self._ownership.admit(ledger, decode(line), team)
                deliver(ledger, entry)
                self._ownership.written(entry, team)
            except LedgerError as error:
                if not is_refusal(error):
                    return self._outage(error, number, refused)
                refused.append({"line": number, "code": error.code, "summary": error.summary[:_MOST_SUMMARY]})
            except TaoError as error:
                return self._outage(error, number, refused)
            settled = number + 1
            if time.monotonic() >= give_up_s:
                break
        if refused:
            codes = sorted({each["code"] for each in refused})
            log.warning("refused %d records of team %s: %s", len(refused), team, ", ".join(codes))
        return Answer("200 OK", {"settled": settled, "refused": refused})

    def _outage(self, error: TaoError, settled: int, refused: list[dict[str, Any]]) -> Answer:
        log.warning("the ledger takes nothing: %s", error)
        # What is wrong with the ledger is for its operator: paths and hosts are in it.
        said = {"settled": settled, "refused": refused, "code": error.code}
        return Answer("503 Service Unavailable", said, (("Retry-After", str(_RETRY_AFTER_S)),))


def _busy(summary: str) -> _Rejected:
    return _Rejected("503 Service Unavailable", "BUSY", summary, ("Retry-After", str(_RETRY_AFTER_S)))


def _body(environ: Environ) -> bytes:
    """What was sent, unpacked."""
    kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if kind not in _TYPES:
        raise _Rejected("415 Unsupported Media Type", "CONTENT_TYPE", f"send {' or '.join(_TYPES)}")
    encoding = environ.get("HTTP_CONTENT_ENCODING", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        summary = "send it as it is, or with gzip"
        raise _Rejected("415 Unsupported Media Type", "CONTENT_ENCODING", summary, ("Accept-Encoding", "gzip"))
    too_large = _Rejected("413 Content Too Large", "TOO_LARGE", f"a request has up to {MAX_BODY_BYTES} bytes")
    if int(environ.get("CONTENT_LENGTH") or 0) > MAX_BODY_BYTES:
        raise too_large
    body: bytes = environ["wsgi.input"].read(MAX_BODY_BYTES + 1)
    if encoding == "gzip":
        unpacker = zlib.decompressobj(wbits=31)
        try:
            body = unpacker.decompress(body, MAX_BODY_BYTES + 1)
        except zlib.error:
            raise _Rejected("400 Bad Request", "BAD_GZIP", "this is no gzip") from None
        if not unpacker.eof and len(body) <= MAX_BODY_BYTES:
            raise _Rejected("400 Bad Request", "BAD_GZIP", "the gzip ends early")
    if len(body) > MAX_BODY_BYTES:
        raise too_large
    return body
