"""A server that takes OpenLineage events over HTTP, as a catalog would, and keeps them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class LineageServer:
    """What it has been sent so far."""

    url: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)

    def of(self, event_type: str, job: str) -> list[dict[str, Any]]:
        """The events of a type, such as ``COMPLETE``, of a job."""
        return [each for each in list(self.events) if (each["eventType"], each["job"]["name"]) == (event_type, job)]


@contextmanager
def lineage_server() -> Iterator[LineageServer]:
    """Serves on a free port of the loopback until the block ends."""
    kept = LineageServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.events.append(json.loads(body))
            self.send_response(201)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield kept
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
