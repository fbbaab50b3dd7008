"""A node agent's part, spoken over a real socket as a test has it spoken."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tao_flows.agent.wire import AgentFigure, Begin, End, Hello, Request, decode, encode, parse_request


class ScriptedAgent:
    """Speaks an agent's part over a real socket, and answers as a test has it answer.

    ``figure`` says what an end comes to, and None leaves it unanswered; operations in ``mute`` are not answered;
    ``refusals`` are answers by operation; ``asked`` is every request as it came.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hello: dict[str, Any] = {
            "agent": {"version": "1.2"}, "privileged": True, "cpu_source": "ebpf", "cpu_lower_bound": False,
            "domains": [],
        }  # fmt: skip
        self.figure: Callable[[End], AgentFigure | None] = lambda _: AgentFigure(1_000, 500, "ebpf", False, ())
        self.mute: set[str] = set()
        self.refusals: dict[str, dict[str, Any]] = {}
        self.asked: list[Request] = []
        self.connections: list[socket.socket] = []
        self.held: list[tuple[socket.socket, End]] = []
        self.start()

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(self.path))
        self.listener.listen()
        threading.Thread(target=self._accept, args=[self.listener], daemon=True).start()

    def stop(self) -> None:
        """As when an agent is killed: connections end, and the socket file stays."""
        for each in (self.listener, *self.connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self.connections.clear()

    def of(self, kind: type[Any]) -> list[Any]:
        return [request for request in self.asked if isinstance(request, kind)]

    def tell(self, connection: socket.socket, end: End, figure: AgentFigure) -> None:
        connection.send(encode({"seq": end.seq, "ok": True, "figure": figure.to_json()}))

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while raw := connection.recv(65_536):
                request = parse_request(raw)
                self.asked.append(request)
                op = decode(raw)["op"]
                if op in self.mute:
                    continue
                if op in self.refusals:
                    connection.send(encode({"seq": request.seq, "ok": False, **self.refusals[op]}))
                elif isinstance(request, Hello):
                    connection.send(encode({"seq": request.seq, "ok": True, **self.hello}))
                elif isinstance(request, Begin):
                    window = f"w{len(self.of(Begin))}"
                    connection.send(encode({"seq": request.seq, "ok": True, "window": window, "token": f"t-{window}"}))
                elif not isinstance(request, End):
                    connection.send(encode({"seq": request.seq, "ok": True, "status": self.hello}))
                elif (figure := self.figure(request)) is None:
                    self.held.append((connection, request))
                else:
                    self.tell(connection, request, figure)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[ScriptedAgent]:
    """A scripted agent that listens in this test's directory."""
    scripted = ScriptedAgent(tmp_path / "agent.sock")
    yield scripted
    scripted.stop()
