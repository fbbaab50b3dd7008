"""Documents of partners, from a directory or over HTTPS: bounded in size and time, and from nowhere but where we meant.

A name is looked up once, every address it has is checked, and the connection goes to the address that was checked: a
name that means something else a moment later (DNS rebinding) gains nothing. Redirections are refused, proxies not used.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from tao_flows.errors import SourceError
from tao_flows.federation.documents import MAX_FILE_BYTES
from tao_flows.partners import PartnerSpec

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

TIMEOUT_S: Final = 10.0
"""The longest a document takes, name look-up aside."""
NOT_THERE: Final = "PARTNER_NOT_THERE"
_CHUNK: Final = 65_536
_OK: Final = 200
_NAT64: Final = IPv6Network("64:ff9b::/96")
"""RFC 6052: the last four bytes are an IPv4 address that a gateway sends on to."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said."""

    status: int
    body: bytes


def read_document(spec: PartnerSpec, name: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """A document of a partner's, from where the settings say.

    Args:
        spec: the partner.
        name: relative to the partner's source, made by us; its parts are plain names.
        max_bytes: the largest there may be.

    Raises:
        SourceError: PARTNER_NOT_THERE, there is none; another code where it cannot be had, or is too large.
    """
    if not spec.source:
        remedy = f"set source in [partners.{spec.org}] to a directory or an https:// address"
        raise SourceError("PARTNER_NO_SOURCE", f"{spec.name}: the settings name no source", remedy)
    if "://" not in spec.source:
        return _read_file(Path(spec.source, name), max_bytes)
    return fetch(f"{spec.source}/{name}", spec.allow_hosts, max_bytes)


def fetch(url: str, allow_hosts: Sequence[str] = (), max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """What is at ``url``.

    Args:
        url: ``https://``; ``http://`` only of a loopback host that is in ``allow_hosts``.
        allow_hosts: hosts that may have private addresses.
        max_bytes: the largest there may be.

    Raises:
        SourceError: as ``read_document``.
    """
    answer = ask("GET", url, allow_hosts=allow_hosts, max_bytes=max_bytes)
    if answer.status == _OK:
        return answer.body
    host = urlsplit(url).hostname
    if answer.status in {404, 410}:
        raise SourceError(NOT_THERE, f"{host} has no such document", "see that source is right, or ask again later")
    if 300 <= answer.status < 400:
        raise SourceError("PARTNER_REDIRECTED", f"{host} redirects elsewhere", "write the right address as source")
    raise SourceError("PARTNER_HTTP", f"{host}: HTTP {answer.status}", "see that source is right, or ask again later")


def ask(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    allow_hosts: Sequence[str] = (),
    max_bytes: int = MAX_FILE_BYTES,
    timeout_s: float = TIMEOUT_S,
) -> Answer:
    """One request, to an address that was checked; whatever its status, the answer is given.

    Raises:
        SourceError: PARTNER_BARRED, the address is not one that is connected to; PARTNER_TOO_LARGE, PARTNER_TIMEOUT,
            PARTNER_UNREACHABLE.
    """
    from http.client import HTTPException

    host = urlsplit(url).hostname or ""
    expired = threading.Event()
    try:
        with (
            _hung_up(timeout_s, expired) as sockets,
            closing(_connected(url, allow_hosts, timeout_s, sockets)) as connection,
        ):
            where = urlsplit(url)
            sent = {"User-Agent": "tao-flows", "Accept-Encoding": "identity", **(headers or {})}
            connection.request(method, where.path or "/", body, sent)
            with connection.getresponse() as response:
                return Answer(response.status, _body(response, host, max_bytes))
    except (OSError, HTTPException, ValueError) as error:
        if expired.is_set() or isinstance(error, TimeoutError):
            raise SourceError("PARTNER_TIMEOUT", f"{host}: no answer in {timeout_s:g} s", "ask again later") from None
        said = str(error) or type(error).__name__
        remedy = "check the address, the network and the certificate"
        raise SourceError("PARTNER_UNREACHABLE", f"{host}: {said[:200]}", remedy) from None


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet. One that stands for an IPv4 address is taken for that one."""
    found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        if found in _NAT64:
            found = IPv4Address(int(found) & 0xFFFFFFFF)
        else:
            inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
            found = inner or found
    return found.is_global and not found.is_multicast


def _connected(url: str, allow_hosts: Sequence[str], timeout_s: float, sockets: list[socket.socket]) -> HTTPConnection:
    """A connection to the first of the addresses that ``url`` has, all of which are allowed; its socket is kept."""
    from http.client import HTTPConnection, HTTPSConnection

    where = urlsplit(url)
    host, encrypted = where.hostname or "", where.scheme == "https"
    port = where.port or (443 if encrypted else 80)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, place in found:
        _check(host, str(place[0]), encrypted=encrypted, named=host in allow_hosts)
    sock = _first(found, timeout_s)
    sockets.append(sock)
    if not encrypted:
        plain = HTTPConnection(host, port, timeout=timeout_s)
        plain.sock = sock
        return plain
    import ssl

    secure = HTTPSConnection(host, port, timeout=timeout_s)
    secure.sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    sockets.append(secure.sock)
    secure.sock.do_handshake()
    return secure


def _first(found: Sequence[tuple[Any, ...]], timeout_s: float) -> socket.socket:
    failed: OSError | None = None
    for family, kind, protocol, _, place in found:
        sock = socket.socket(family, kind, protocol)
        sock.settimeout(timeout_s)
        try:
            sock.connect(place)
        except OSError as error:
            sock.close()
            failed = error
        else:
            return sock
    raise failed or OSError("the name has no address")


def _check(host: str, address: str, *, encrypted: bool, named: bool) -> None:
    is_loopback = ip_address(address.partition("%")[0]).is_loopback
    if not encrypted and not (is_loopback and named):
        remedy = "use https://; http is for a loopback host that allow_hosts names"
        raise SourceError("PARTNER_BARRED", f"{host} is asked for without encryption", remedy)
    if not named and not is_public(address):
        remedy = f"if that is meant, name {host!r} in allow_hosts"
        raise SourceError("PARTNER_BARRED", f"{host} is {address}, which is not a public address", remedy)


@contextmanager
def _hung_up(timeout_s: float, expired: threading.Event) -> Iterator[list[socket.socket]]:
    """Ends what is connected after a time, whatever the server does: one that sends a byte at a time meets no time-out."""
    sockets: list[socket.socket] = []

    def hang_up() -> None:
        expired.set()
        for sock in sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    watch = threading.Timer(timeout_s, hang_up)
    watch.daemon = True
    watch.start()
    try:
        yield sockets
    finally:
        watch.cancel()
        for sock in sockets:
            sock.close()


def _body(response: HTTPResponse, host: str, max_bytes: int) -> bytes:
    if response.getheader("Content-Encoding", "identity").lower() != "identity":
        raise ValueError("the answer is compressed, which was not asked for")
    body, told = bytearray(), response.getheader("Content-Length")
    while chunk := response.read1(_CHUNK):
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(host, max_bytes)
    if told is not None and len(body) != int(told):
        raise ConnectionError("the answer was cut short")
    return bytes(body)


def _read_file(path: Path, max_bytes: int) -> bytes:
    try:
        # Neither a link out of the directory nor a pipe that never ends.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise SourceError(NOT_THERE, f"{path}: there is no such file", "see that source is right") from None
    except OSError as error:
        raise SourceError("PARTNER_UNREACHABLE", f"{path}: {error.strerror}", "check the path") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise SourceError("PARTNER_UNREACHABLE", f"{path}: no regular file", "check the path")
    with os.fdopen(handle, "rb") as file:
        body = file.read(max_bytes + 1)
    if len(body) > max_bytes:
        raise _too_large(str(path), max_bytes)
    return body


def _too_large(where: str, max_bytes: int) -> SourceError:
    return SourceError("PARTNER_TOO_LARGE", f"{where}: more than {max_bytes} bytes", "see that source is right")
