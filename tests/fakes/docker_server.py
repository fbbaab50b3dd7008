"""A Docker daemon without containers: what is created and started is a process of this host.

It answers what Prefect's worker asks: version, images, and containers with create, start, inspect, logs and wait. What
else is asked gets a 404 and is kept in ``unanswered``.
"""

from __future__ import annotations

import json
import re
import struct
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from containers import Containers

Object = dict[str, Any]
VERSION: Final = {"Version": "27.3.1", "ApiVersion": "1.47", "MinAPIVersion": "1.24", "Os": "linux", "Arch": "amd64"}
STDOUT: Final = 1


@dataclass
class Daemon:
    """What the daemon keeps."""

    containers: Containers
    url: str = ""
    created: list[Object] = field(default_factory=list)
    """The bodies of the containers that were created, as they were sent, each with its ``name``."""
    started: list[str] = field(default_factory=list)
    """The ids of those that were started."""
    unanswered: list[str] = field(default_factory=list)
    _inspected: dict[str, Object] = field(default_factory=dict)
    _ended: dict[str, threading.Event] = field(default_factory=dict)

    def create(self, name: str, body: Object) -> str:
        made = uuid.uuid4().hex * 2
        self.created.append({**body, "name": name})
        self._ended[made] = threading.Event()
        self._inspected[made] = {
            "Id": made,
            "Name": f"/{name}",
            "Created": datetime.now(timezone.utc).isoformat(),
            "Config": {**body, "Tty": body.get("Tty", False)},
            "State": {"Status": "created", "Running": False, "ExitCode": 0},
        }
        return made

    def start(self, container_id: str) -> None:
        config = self._inspected[container_id]["Config"]
        self.started.append(container_id)

        def ended(code: int) -> None:
            self._now(container_id, "exited", code)
            self._ended[container_id].set()

        self._now(container_id, "running", 0)
        env = dict(each.split("=", 1) for each in config["Env"])
        self.containers.start(container_id[:12], config["Cmd"], env, ended)

    def inspect(self, container_id: str) -> Object | None:
        return self._inspected.get(container_id)

    def is_taken(self, name: str) -> bool:
        return any(each["Name"] == f"/{name}" for each in self._inspected.values())

    def wait(self, container_id: str) -> int:
        self._ended[container_id].wait()
        return int(self._inspected[container_id]["State"]["ExitCode"])

    def log(self, container_id: str) -> bytes:
        """The whole output, once the container has ended, as one frame of the daemon's stream format."""
        self.wait(container_id)
        said = self.containers.log(container_id[:12]).read_bytes()
        return struct.pack(">BxxxL", STDOUT, len(said)) + said if said else b""

    def _now(self, container_id: str, status: str, code: int) -> None:
        state = {"Status": status, "Running": status == "running", "ExitCode": code}
        self._inspected[container_id] = {**self._inspected[container_id], "State": state}


@contextmanager
def docker_daemon(folder: Path) -> Iterator[Daemon]:
    """A daemon whose containers' output is in ``folder``; ``url`` is for ``DOCKER_HOST``."""
    daemon = Daemon(Containers(folder))

    class Handler(_Handler):
        of = daemon

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    daemon.url = f"tcp://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield daemon
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        daemon.containers.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    of: Daemon

    def do_GET(self) -> None:
        path = self.path_asked()
        container_id, what = _container(path)
        if path == "/_ping":
            return self.send(200, b"OK", "text/plain")
        if path == "/version":
            return self.answer(200, VERSION)
        if path.startswith("/images/") and path.endswith("/json"):
            name = path.removeprefix("/images/").removesuffix("/json")
            return self.answer(200, {"Id": "sha256:1", "RepoTags": [name], "Config": {"Labels": {}}})
        if self.of.inspect(container_id) is None:
            return self.refuse_unknown(container_id)
        if what == "json":
            return self.answer(200, self.of.inspect(container_id))
        if what == "logs":
            return self.stream(container_id)
        return self.refuse_unknown()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path_asked()
        container_id, what = _container(path)
        if path == "/containers/create":
            name = parse_qs(urlsplit(self.path).query).get("name", [uuid.uuid4().hex])[0]
            if self.of.is_taken(name):
                return self.answer(409, {"message": f'Conflict. The container name "/{name}" is already in use'})
            return self.answer(201, {"Id": self.of.create(name, json.loads(body)), "Warnings": []})
        if self.of.inspect(container_id) is None:
            return self.refuse_unknown(container_id)
        if what == "start":
            self.of.start(container_id)
            return self.send(204, b"", "text/plain")
        if what == "wait":
            return self.answer(200, {"StatusCode": self.of.wait(container_id)})
        return self.refuse_unknown()

    def stream(self, container_id: str) -> None:
        """Begins at once, as its client waits for the beginning of an answer for a minute only."""
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.docker.multiplexed-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.wfile.write(self.of.log(container_id))

    def path_asked(self) -> str:
        return re.sub(r"^/v[0-9.]+", "", urlsplit(self.path).path)

    def refuse_unknown(self, container_id: str = "") -> None:
        if not container_id:
            self.of.unanswered.append(f"{self.command} {self.path}")
        self.answer(404, {"message": f"No such container: {container_id}" if container_id else "page not found"})

    def answer(self, status: int, said: Any) -> None:
        self.send(status, json.dumps(said).encode(), "application/json")

    def send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


def _container(path: str) -> tuple[str, str]:
    """The id of a container and what is asked of it; empty strings for another path."""
    found = re.fullmatch(r"/containers/([0-9a-f]+)/(\w+)", path)
    return (found[1], found[2]) if found else ("", "")
