"""From where documents are fetched, and from where never: against real servers on the loopback."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tao_flows.errors import SourceError
from tao_flows.federation.fetch import ask, fetch, is_public, read_document
from tao_flows.partners import PartnerSpec

LOCAL = ("127.0.0.1",)


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[tuple[str, list[str]]]:
    """A server; its address, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer(self)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def said(status: int, body: bytes = b"", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def code_of(url: str, *allow: str, **options: Any) -> str:
    with pytest.raises(SourceError) as refused:
        fetch(url, allow, **options)
    return refused.value.code


def test_http_is_for_a_loopback_host_that_is_named() -> None:
    with serving(said(200, b"{}")) as (url, asked):
        assert fetch(f"{url}/pools.jsonl", LOCAL) == b"{}"
        assert code_of(f"{url}/x") == "PARTNER_BARRED"
        assert asked == ["/pools.jsonl"], "nothing was asked of a host that is not named"
    assert code_of("http://192.0.2.1/x", "192.0.2.1") == "PARTNER_BARRED"


def test_a_private_address_is_barred_by_what_the_name_means(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"partner.example": ["203.0.113.9", "127.0.0.1"], "rebound.example": ["10.0.0.8"]}

    def lookup(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in answers[host]]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    assert code_of("https://partner.example/x") == "PARTNER_BARRED", "one of its addresses is ours"
    assert code_of("https://rebound.example/x") == "PARTNER_BARRED"


def test_the_name_is_looked_up_once_so_that_it_cannot_mean_something_else_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[str] = []
    with serving(said(200, b"{}")) as (url, _):
        port = int(url.rpartition(":")[2])

        def lookup(host: str, _port: int, **_: Any) -> list[Any]:
            looked.append(host)
            place = ("127.0.0.1", port) if len(looked) == 1 else ("127.0.0.2", port)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place)]

        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        assert fetch(f"http://localhost:{port}/x", ["localhost"]) == b"{}"
    assert looked == ["localhost"]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("2002:0a00:0001::1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::5db8:d70e", True),
    ],
)
def test_an_address_is_public_or_not_whatever_it_is_wrapped_in(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_redirections_are_refused() -> None:
    with serving(said(302, Location="http://169.254.169.254/latest")) as (url, asked):
        assert code_of(f"{url}/x", *LOCAL) == "PARTNER_REDIRECTED"
        assert asked == ["/x"]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (said(404), "PARTNER_NOT_THERE"),
        (said(500), "PARTNER_HTTP"),
        (said(200, b"x" * 2_001), "PARTNER_TOO_LARGE"),
        (said(200, b"x", Content_Length="50"), "PARTNER_UNREACHABLE"),
        (said(200, b"x", Content_Encoding="gzip"), "PARTNER_UNREACHABLE"),
    ],
)
def test_what_is_not_there_too_large_cut_short_or_compressed_is_no_document(
    answer: Callable[[BaseHTTPRequestHandler], None], code: str
) -> None:
    with serving(answer) as (url, _):
        assert code_of(f"{url}/x", *LOCAL, max_bytes=2_000) == code


def test_a_server_that_says_a_byte_at_a_time_is_hung_up_on() -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(1_000):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.05)

    with serving(drip) as (url, _):
        begun_s = time.monotonic()
        with pytest.raises(SourceError) as refused:
            ask("GET", f"{url}/x", allow_hosts=LOCAL, timeout_s=0.5)
        assert refused.value.code == "PARTNER_TIMEOUT"
        assert time.monotonic() - begun_s < 10


def test_a_directory_is_read_within_its_bounds(tmp_path: Path) -> None:
    source = tmp_path / "published"
    source.mkdir()
    (source / "a").write_bytes(b"12345")
    (tmp_path / "secret").write_bytes(b"s")
    (source / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(source / "pipe")
    (source / "folder").mkdir()
    spec = PartnerSpec("org-b", str(source))
    assert read_document(spec, "a", 5) == b"12345"
    codes = {}
    for name in ("a", "link", "pipe", "folder", "none"):
        with pytest.raises(SourceError) as refused:
            read_document(spec, name, 4)
        codes[name] = refused.value.code
    assert codes == {
        "a": "PARTNER_TOO_LARGE",
        "link": "PARTNER_UNREACHABLE",
        "pipe": "PARTNER_UNREACHABLE",
        "folder": "PARTNER_UNREACHABLE",
        "none": "PARTNER_NOT_THERE",
    }


def test_a_partner_without_a_source_is_told_of_with_the_remedy() -> None:
    with pytest.raises(SourceError, match=r"\[partners.org-b\]"):
        read_document(PartnerSpec("org-b"), "pools.jsonl")
