"""A ledger behind an ingest (``tao-flows ingest``): records go there over HTTP, with a token and nothing else."""

from __future__ import annotations

import gzip
import http.client
import ipaddress
import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from tao_flows.errors import ConfigError, LedgerError
from tao_flows.ledger.wireformat import Entry, RefusedError, encode
from tao_flows.ledger.writeonly import WriteOnlyLedger

TOKEN_ENV: Final = "TAO_FLOWS_INGEST_TOKEN"  # noqa: S105  # the names of variables
TOKEN_FILE_ENV: Final = "TAO_FLOWS_INGEST_TOKEN_FILE"  # noqa: S105
RECORDS_PATH: Final = "/v1/records"
CONTENT_TYPE: Final = "application/jsonl"
TIMEOUT_S: Final = 2.0
"""How long a task waits to be connected, and then for the server. An ingest works on one request for a second."""
PATIENT_S: Final = 30.0
"""The same where forwarding is all that a process, or its thread, does."""
_BODY_BYTES: Final = 2 << 20
"""The most that is sent at once, before it is compressed; a single record may be half of that."""
_GZIP_FROM_BYTES: Final = 1_024
_ANSWER_BYTES: Final = 1 << 20
_FIRST_PAUSE_S: Final = 0.5
_LAST_PAUSE_S: Final = 60.0
_LONGEST_WAIT_S: Final = 600.0
"""A server that asks to be left alone for longer is asked again after this."""
_GONE: Final = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


def token_from_environment(env: Mapping[str, str] = os.environ) -> str:
    """The token of ``TAO_FLOWS_INGEST_TOKEN``, or that in the file ``TAO_FLOWS_INGEST_TOKEN_FILE`` names.

    Raises:
        LedgerError: INGEST_TOKEN, there is none, or the file cannot be read.
    """
    remedy = f"set {TOKEN_ENV}, or {TOKEN_FILE_ENV} to a file, to what `tao-flows ingest token` printed"
    token, path = env.get(TOKEN_ENV, ""), env.get(TOKEN_FILE_ENV, "")
    if not token and path:
        try:
            token = Path(path).read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            raise LedgerError("INGEST_TOKEN", f"{path}: {error}", remedy) from None
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise LedgerError("INGEST_TOKEN", "there is no token for the ingest", remedy)
    return token


@dataclass
class _Link:
    """One process's connection."""

    pid: int = field(default_factory=os.getpid)
    lock: threading.Lock = field(default_factory=threading.Lock)
    connection: http.client.HTTPConnection | None = None
    failures: int = 0
    """In a row."""
    alone_until_s: float = 0.0
    error: LedgerError | None = None
    """Why it is left alone."""


class RemoteLedger(WriteOnlyLedger):
    """Writes to an ingest. Safe to share between threads and across forks; one connection a process.

    After a failure it is left alone for a time that doubles, up to a minute, or as long as its server asks for; until
    then every write raises at once.

    Args:
        url: where the ingest is, without ``/v1/records``: https, or http on this host.
        token: gives the token, at every request.
        timeout_s: how long connecting may take, and each wait for the server.

    Raises (every write):
        LedgerError: INGEST_UNREACHABLE, INGEST_BUSY, INGEST_TOKEN or INGEST_FAILED; LEDGER_BAD_RECORD.
        RefusedError: the server's code, for a record that it will never take.
    """

    batch = 500

    def __init__(
        self, url: str, *, token: Callable[[], str] = token_from_environment, timeout_s: float = TIMEOUT_S
    ) -> None:
        parts = _checked(url)
        self.url = url
        self._is_tls, self._host, self._port = parts.scheme == "https", parts.hostname or "", parts.port
        self._path = parts.path.rstrip("/") + RECORDS_PATH
        self._token = token
        self._timeout_s = timeout_s
        self._link = _Link()

    def send(self, entries: Sequence[Entry]) -> Sequence[LedgerError | None]:
        """Sends as many entries as one request takes; as ``Sink.send``."""
        lines: list[bytes] = []
        for entry in entries:
            try:
                line = encode(entry)
            except LedgerError as error:
                if lines:
                    break
                return [error]
            if lines and sum(map(len, lines)) + len(line) > _BODY_BYTES:
                break
            lines.append(line)
        return self._settle(lines)

    def close(self) -> None:
        link = self._mine()
        with link.lock:
            _hang_up(link)

    def _put(self, entry: Entry) -> None:
        answer = self.send([entry])[0]
        if answer is not None:
            raise answer

    def _mine(self) -> _Link:
        if self._link.pid != os.getpid():
            self._link = _Link()  # the parent's connection is its own
        return self._link

    def _settle(self, lines: list[bytes]) -> Sequence[LedgerError | None]:
        link = self._mine()
        with link.lock:
            if link.error is not None and time.monotonic() < link.alone_until_s:
                raise LedgerError(link.error.code, link.error.summary, link.error.remedy)
            try:
                status, retry_after, said = self._post(link, lines)
                while status == 413 and len(lines) > 1:
                    lines = lines[: len(lines) // 2]  # a proxy on the way takes less than the ingest
                    status, retry_after, said = self._post(link, lines)
                answers = _answers(status, said, len(lines))
            except LedgerError as error:
                self._leave_alone(link, error, 0.0)
                raise
            if len(answers) < len(lines) and (status != 200 or not answers):
                failure = _failure(status, self.url)
                self._leave_alone(link, failure, retry_after)
                if not answers:
                    raise failure
            else:
                link.failures, link.error = 0, None
            return answers

    def _leave_alone(self, link: _Link, error: LedgerError, retry_after_s: float) -> None:
        # Half of it by chance: what failed for all at once is not tried by all at once.
        pause_s = min(_LAST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(link.failures, 16)) * random.uniform(0.5, 1)  # noqa: S311
        link.failures += 1
        link.alone_until_s = time.monotonic() + max(pause_s, min(retry_after_s, _LONGEST_WAIT_S))
        link.error = error

    def _post(self, link: _Link, lines: Sequence[bytes]) -> tuple[int, float, bytes]:
        """Status, seconds of Retry-After, and what was said."""
        body = b"\n".join(lines)
        headers = {"Authorization": f"Bearer {self._token()}", "Content-Type": CONTENT_TYPE}
        if len(body) > _GZIP_FROM_BYTES:
            body = gzip.compress(body, compresslevel=1)
            headers["Content-Encoding"] = "gzip"
        is_kept = link.connection is not None
        try:
            try:
                return self._ask(link, body, headers)
            except _GONE:
                _hang_up(link)
                if not is_kept:
                    raise
                return self._ask(link, body, headers)  # a server may end at any time a connection that is not in use
        except (OSError, http.client.HTTPException) as error:
            _hang_up(link)
            remedy = "see that `tao-flows ingest` runs there and can be reached; what is sent is kept until then"
            raise LedgerError("INGEST_UNREACHABLE", f"{self.url}: {error}", remedy) from error

    def _ask(self, link: _Link, body: bytes, headers: Mapping[str, str]) -> tuple[int, float, bytes]:
        if link.connection is None:
            kind = http.client.HTTPSConnection if self._is_tls else http.client.HTTPConnection
            link.connection = kind(self._host, self._port, timeout=self._timeout_s)
        link.connection.request("POST", self._path, body, dict(headers))
        response = link.connection.getresponse()
        said = response.read(_ANSWER_BYTES)
        if not response.isclosed():  # longer than any answer of ours
            _hang_up(link)
        retry_after = response.getheader("Retry-After", "")
        return response.status, float(retry_after) if retry_after.isdecimal() else 0.0, said


def _hang_up(link: _Link) -> None:
    if link.connection is not None:
        link.connection.close()
        link.connection = None


def _checked(url: str) -> SplitResult:
    form = "give https://HOST/PATH, or http://127.0.0.1:PORT for an ingest on this host"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError("LEDGER_URL", f"this is no URL of an ingest: {error}", form) from None
    if parts.username or parts.password or parts.query or parts.fragment or not parts.hostname:
        raise ConfigError("LEDGER_URL", "the URL of an ingest is a host and a path, and holds no secret", form)
    if parts.scheme != "https" and not _is_loopback(parts.hostname):
        raise ConfigError("LEDGER_URL", f"a token would go to {parts.hostname} unencrypted", form)
    return parts


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _failure(status: int, url: str) -> LedgerError:
    if status in (401, 403):
        remedy = f"make a token there with `tao-flows ingest token`, and set {TOKEN_ENV} to it"
        return LedgerError("INGEST_TOKEN", f"{url} does not take this token", remedy)
    if status in (429, 503):
        return LedgerError("INGEST_BUSY", f"{url} takes nothing now ({status})", "it is asked again later")
    return LedgerError("INGEST_FAILED", f"{url} answered {status}", "check that the URL is that of a tao-flows ingest")


def _answers(status: int, body: bytes, sent: int) -> list[LedgerError | None]:
    """What is settled: all that was sent, or its beginning, or nothing."""
    if status == 413 and sent == 1:
        return [RefusedError("RECORD_TOO_LARGE", "the ingest takes no request that large", "raise its limit")]
    if status not in (200, 503):
        return []
    try:
        said: Any = json.loads(body)
        answers: list[LedgerError | None] = [None] * min(int(said["settled"]), sent)
        for each in said["refused"]:
            answers[int(each["line"])] = RefusedError(str(each["code"]), str(each["summary"]))
    except (ValueError, KeyError, TypeError, IndexError):
        return []
    return answers
