"""A proxy before a Prefect server: counts what is asked, and answers 503 when told to."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Proxy:
    url: str = ""
    seen: list[tuple[float, str, str, int]] = field(default_factory=list)
    """When, method, path, and the status that was answered."""
    refuse: Callable[[str], bool] = lambda path: False
    """Whether to answer 503."""
    retry_after: str | None = None

    def count(self, part: str = "", since_s: float = 0.0) -> int:
        return sum(part in path and at >= since_s for at, _, path, _ in self.seen)


@contextmanager
def proxy_before(api_url: str) -> Iterator[Proxy]:
    """A proxy of the server at ``api_url``, at an address of its own."""
    there = urlsplit(api_url)
    proxy = Proxy()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            if "Upgrade" in self.headers:  # events have a connection of their own
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if proxy.refuse(self.path):
                self.answer(503, b"", {} if proxy.retry_after is None else {"Retry-After": proxy.retry_after})
                return
            upstream = http.client.HTTPConnection(str(there.hostname), there.port, timeout=60)
            headers = {
                name: value for name, value in self.headers.items() if name.lower() not in {"host", "accept-encoding"}
            }
            upstream.request(self.command, self.path, body, headers)
            said = upstream.getresponse()
            content = said.read()
            kind = said.getheader("Content-Type", "application/json")
            upstream.close()
            self.answer(said.status, content, {"Content-Type": kind})

        def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            proxy.seen.append((time.time(), self.command, self.path, status))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = handle_any  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}{there.path}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
