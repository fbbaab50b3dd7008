"""The ingest as a process: a few threads over one ledger, until SIGTERM."""

from __future__ import annotations

import ipaddress
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

from tao_flows.errors import ConfigError, MissingExtraError
from tao_flows.ingest.app import MAX_BODY_BYTES, IngestApp

THREADS: Final = 4
"""Requests that are worked on at once, and so connections to the ledger at the most."""
_MOST_CONNECTIONS: Final = 8_192
_BACKLOG: Final = 2_048
_IDLE_S: Final = 30
"""A client that sends and takes nothing for this long is let go."""
_LAST_ANSWERS_S: Final = 5.0
"""How long, once it is told to end, it finishes what it has begun."""


def parse_listen(text: str, *, behind_proxy: bool) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[IPV6]:PORT``; port 0 takes any free one.

    Raises:
        ConfigError: BAD_LISTEN; LISTEN_UNENCRYPTED, an address that others reach without ``behind_proxy``: tokens would
            go over the network in the clear.
    """
    host, _, port = text.strip().rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    is_port = port.isascii() and port.isdigit() and int(port) <= 65_535
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        address = None
    if address is None or not is_port:
        remedy = "write an address and a port, such as 127.0.0.1:8765"
        raise ConfigError("BAD_LISTEN", f"{text!r} is no address to listen at", remedy)
    if not address.is_loopback and not behind_proxy:
        raise ConfigError(
            "LISTEN_UNENCRYPTED",
            f"{host} can be reached from other hosts, and tokens would go there unencrypted",
            "put a proxy that speaks TLS before it and say --behind-proxy, or listen on 127.0.0.1",
        )
    return str(address), int(port)


class IngestServer:
    """A server that listens; ``run`` serves.

    Args:
        app: what is served.
        host: the address.
        port: 0 takes any free one.
        threads: requests that are worked on at once.

    Raises:
        MissingExtraError: waitress is not installed.
        ConfigError: LISTEN_FAILED, the address is taken, forbidden or not this machine's.
    """

    def __init__(self, app: IngestApp, host: str, port: int, *, threads: int = THREADS) -> None:
        try:
            from waitress import wasyncore
            from waitress.server import create_server
        except ImportError as error:
            raise MissingExtraError("ingest", "`tao-flows ingest`") from error
        self._app = app
        self._loop: Callable[..., None] = wasyncore.loop
        self._close_all: Callable[..., None] = wasyncore.close_all
        self._channels: dict[int, Any] = {}
        self._is_stopped = False
        listening = _listening(host, port)
        self.port: int = listening.getsockname()[1]
        self._server: Any = create_server(
            app,
            map=self._channels,
            sockets=[listening],
            threads=threads,
            backlog=_BACKLOG,
            connection_limit=min(_MOST_CONNECTIONS, _raise_descriptor_limit() - 64),
            channel_timeout=_IDLE_S,
            max_request_body_size=MAX_BODY_BYTES,
            asyncore_use_poll=True,  # select takes 1,024 descriptors
            expose_tracebacks=False,
            ident="tao-flows",
        )

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT, finishes what it has begun, and gives the port back."""
        with self._signals():
            while not self._is_stopped:
                self._loop(timeout=1.0, map=self._channels, use_poll=True, count=1)
        self._app.is_closing = True
        self._server.accepting = False
        give_up_s = time.monotonic() + _LAST_ANSWERS_S
        while self._is_at_work() and time.monotonic() < give_up_s:
            self._loop(timeout=0.1, map=self._channels, use_poll=True, count=1)
        self._server.task_dispatcher.shutdown()
        self._close_all(self._channels)

    def _is_at_work(self) -> bool:
        return any(channel.requests or channel.total_outbufs_len for channel in self._server.active_channels.values())

    @contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._is_stopped = True
        self._server.pull_trigger()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        made.close()
        summary = f"cannot listen at {host}:{port}: {error.strerror}"
        raise ConfigError("LISTEN_FAILED", summary, "choose another --listen HOST:PORT") from None
    return made


def _raise_descriptor_limit() -> int:
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        return most
    return soft
