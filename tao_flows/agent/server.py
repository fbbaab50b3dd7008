"""The agent's socket: one thread that samples on time and answers in between."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import selectors
import socket
import stat
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tao_flows.agent import wire
from tao_flows.agent.peer import Peer, Process, peer_of
from tao_flows.agent.registry import Registry
from tao_flows.agent.session import Session, Waiting
from tao_flows.agent.wire import AgentFigure, Begin, End, Hello, Request, Status
from tao_flows.errors import ConfigError, SourceError, TaoError

_MOST_CONNECTIONS: Final = 4_096
_DESCRIPTORS: Final = 4
"""For each connection: its own, its process's, and some to look at ``/proc`` with."""
_MOST_OF_A_USER: Final = 512
"""Connections of one user who is not privileged."""
_BACKLOG: Final = 512
_AT_A_TIME: Final = 16
"""Requests of one client that are answered before the next client's."""
_MOST_ENDS: Final = 256
"""Ends of one client that may wait for an answer."""
_MOST_NONSENSE: Final = 16
"""Messages that make no sense before a client is left alone."""


class Listener:
    """The socket file, held by a lock that ends with this process.

    Args:
        path: where clients find it. Its directory is made if it is not there, and must not be one in which
            everyone may put files.
        gid: the group that may connect; None for everyone.

    Raises:
        ConfigError: SOCKET_DIRECTORY, AGENT_RUNNING or SOCKET_FAILED.
    """

    def __init__(self, path: Path, gid: int | None = None) -> None:
        self.path = path
        self._lock = _locked(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            _clear(path)
            before = os.umask(0o177)
            try:
                self.socket.bind(str(path))
            finally:
                os.umask(before)
            if gid is not None:
                os.chown(path, -1, gid)
            path.chmod(0o666 if gid is None else 0o660)
            self.socket.listen(_BACKLOG)
        except (OSError, ConfigError) as error:
            self.socket.close()
            os.close(self._lock)
            raise error if isinstance(error, ConfigError) else _unusable(path, error) from error

    def close(self) -> None:
        """Takes the socket away. May be called twice."""
        if self._lock >= 0:
            self.socket.close()
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1


def _locked(path: Path) -> int:
    directory = path.parent
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        if directory.stat().st_mode & stat.S_IWOTH:
            summary = f"anyone may put files into {directory}, and take the agent's place"
            raise ConfigError("SOCKET_DIRECTORY", summary, "give --socket a path in a directory of the agent's own")
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ConfigError("AGENT_RUNNING", f"an agent already serves {path}", "stop it, or give --socket") from None
    return lock


def _clear(path: Path) -> None:
    """Takes a dead agent's socket away: whoever holds the lock is the only agent here."""
    try:
        found = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found):
        raise ConfigError("SOCKET_FAILED", f"{path} is there and is no socket", "give --socket another path")
    path.unlink()


def _unusable(path: Path, error: OSError) -> ConfigError:
    return ConfigError("SOCKET_FAILED", f"{path}: {error.strerror or error}", "give --socket a path that can be made")


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    peer: Peer
    session: Session | None = None
    nonsense: int = 0
    unsent: deque[bytes] = field(default_factory=deque)
    ends: int = 0
    """Ends of its that are not answered yet."""


class Server:
    """Serves a registry over a listener until it is told to stop.

    Args:
        listener: where clients connect.
        registry: what they ask of.
        proc_root: where the kernel shows processes.
        status: what ``status`` answers, beside the counts.
    """

    def __init__(
        self, listener: Listener, registry: Registry, proc_root: Path, status: Callable[[bool], dict[str, Any]]
    ) -> None:
        self._listener = listener
        self._registry = registry
        self._proc_root = proc_root
        self._status = status
        self._selector = selectors.DefaultSelector()
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(1, min(_MOST_CONNECTIONS, descriptors // _DESCRIPTORS))
        self._accepts = False
        self._ready: deque[tuple[selectors.SelectorKey, int]] = deque()
        """What was found ready and is not served yet."""
        self._due_s = 0.0
        self._now_s: Callable[[], float] = lambda: 0.0
        self._connections: dict[int, _Connection] = {}
        self._asked: dict[int, _Connection] = {}
        """By identity of the request: who waits for its answer."""
        self._deaths: dict[Process, int] = {}
        self.incidents: Counter[str] = Counter()
        self.welcome: Callable[[int], None] = lambda _uid: None
        """Told of the user of each process that says hello, before it is answered."""

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    def watch(self, fd: int, act: Callable[[], None]) -> None:
        """Calls ``act`` whenever a descriptor can be read."""
        self._selector.register(fd, selectors.EVENT_READ, lambda _mask: act())

    def unwatch(self, fd: int) -> None:
        """Ends ``watch``."""
        self._selector.unregister(fd)

    def watch_sessions(self) -> None:
        """Watches for the end of clients that were taken up from an earlier agent."""
        for session in list(self._registry.sessions.values()):
            with contextlib.suppress(SourceError):
                self._watch_end(session)

    def serve_until(self, due_s: float, now_s: Callable[[], float]) -> None:
        """Answers whatever comes until it is time for the next sample, and something in any case."""
        self._due_s, self._now_s = due_s, now_s
        if not self._accepts:
            self._selector.register(self._listener.socket, selectors.EVENT_READ, self._accept)
            self._accepts = True
        while True:
            if not self._ready:
                self._ready += self._selector.select(max(0.0, due_s - now_s()))
            # What is left over comes first the next time: whoever asks much does not keep others from their turn.
            while self._ready:
                key, mask = self._ready.popleft()
                key.data(mask)
                if self._is_due():
                    return
            if self._is_due():
                return

    def _is_due(self) -> bool:
        return self._now_s() >= self._due_s

    def answer(self, waiting: Waiting, figure: AgentFigure | None) -> None:
        """Sends an answer that had to wait, if its client is still there; None where no figure will come."""
        connection = self._asked.pop(id(waiting.request), None)
        if connection is None:
            return
        connection.ends -= 1
        seq = waiting.request.seq
        if figure is None:
            self._send(connection, wire.failure(seq, "WINDOW_LOST", "the window has come to nothing"))
        else:
            self._send(connection, {"seq": seq, "ok": True, "figure": figure.to_json()})

    def close(self) -> None:
        """Ends every connection."""
        for connection in list(self._connections.values()):
            self._hang_up(connection)
        for fd in self._deaths.values():
            os.close(fd)
        self._deaths.clear()
        self._selector.close()

    def _accept(self, _mask: int) -> None:
        for _ in range(_AT_A_TIME):
            try:
                accepted, _ = self._listener.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self.incidents[f"ACCEPT_{errno.errorcode.get(error.errno or 0, 'FAILED')}"] += 1
                # Without a free descriptor it would be ready again at once, all the time: until the next sample.
                self._selector.unregister(self._listener.socket)
                self._accepts = False
                return
            try:
                accepted.setblocking(False)
                peer = peer_of(accepted, self._proc_root)
                self._check_room(peer)
            except (TaoError, OSError) as error:
                self._refuse(accepted, error)
                continue
            connection = _Connection(accepted, peer)
            self._connections[accepted.fileno()] = connection
            self._selector.register(accepted, selectors.EVENT_READ, lambda mask, c=connection: self._serve(c, mask))

    def _check_room(self, peer: Peer) -> None:
        theirs = sum(each.peer.owner == peer.owner for each in self._connections.values())
        most = self._most if self._registry.is_privileged(peer) else min(self._most, _MOST_OF_A_USER)
        if theirs >= most or len(self._connections) >= self._most:
            raise SourceError("AGENT_FULL", "the agent has as many clients as it may", "end some of them")

    def _refuse(self, accepted: socket.socket, error: TaoError | OSError) -> None:
        code = error.code if isinstance(error, TaoError) else "PEER_GONE"
        self.incidents[code] += 1
        if isinstance(error, TaoError):
            with contextlib.suppress(OSError):
                accepted.send(wire.encode(wire.failure(0, error.code, error.summary, error.remedy)))
        accepted.close()

    def _serve(self, connection: _Connection, mask: int) -> None:
        if connection.socket.fileno() not in self._connections:  # hung up since it was found ready
            return
        if mask & selectors.EVENT_WRITE:
            self._flush(connection)
        if not mask & selectors.EVENT_READ:
            return
        for _ in range(_AT_A_TIME):
            # Who does not read its answers is not asked for more.
            if connection.unsent or connection.socket.fileno() not in self._connections:
                return
            try:
                # One byte more than allowed, so that a message that was cut off is told from one that fits.
                raw = connection.socket.recv(wire.MAX_REQUEST_BYTES + 1)
            except BlockingIOError:
                return
            except OSError:
                raw = b""
            if not raw:
                self._hang_up(connection)
                return
            self._answer(connection, raw)
            if self._is_due():
                return

    def _answer(self, connection: _Connection, raw: bytes) -> None:
        seq = 0
        try:
            request = wire.parse_request(raw)
            seq = request.seq
            answer = self._handle(connection, request)
        except TaoError as error:
            self.incidents[error.code] += 1
            connection.nonsense += error.code == "BAD_MESSAGE"
            answer = wire.failure(seq, error.code, error.summary, error.remedy)
        except Exception as error:  # noqa: BLE001 - one client's request must not end the agent for all
            self.incidents[f"INTERNAL:{type(error).__name__}"] += 1
            answer = wire.failure(seq, "INTERNAL", f"the agent failed: {type(error).__name__}", "report this")
        if answer is not None:
            self._send(connection, answer)
        if connection.nonsense >= _MOST_NONSENSE:
            self._hang_up(connection)

    def _handle(self, connection: _Connection, request: Request) -> dict[str, Any] | None:
        if isinstance(request, Hello):
            return self._hello(connection, request)
        if isinstance(request, Status):
            privileged = connection.session is not None and connection.session.privileged
            return {"seq": request.seq, "ok": True, "status": self._status(privileged)}
        if isinstance(request, Begin):
            if connection.session is None:
                raise ConfigError("NO_HELLO", "the first message is hello", "say hello")
            window = self._registry.begin(connection.session, request)
            return {"seq": request.seq, "ok": True, "window": window.id, "token": window.token}
        return self._end(connection, request)

    def _hello(self, connection: _Connection, request: Hello) -> dict[str, Any]:
        session = connection.session = self._registry.hello(connection.peer, request.role)
        self._watch_end(session)
        self.welcome(connection.peer.uid)
        return {
            "seq": request.seq,
            "ok": True,
            "v": wire.VERSION,
            "privileged": session.privileged,
            **self._status(session.privileged),
        }

    def _end(self, connection: _Connection, request: End) -> dict[str, Any] | None:
        if connection.ends >= _MOST_ENDS:
            raise SourceError("AGENT_FULL", "too many ends of yours wait for an answer", "wait for one")
        window = self._registry.find(connection.peer, request)
        figure = self._registry.end(window, request)
        if figure is None:
            self._asked[id(request)] = connection
            connection.ends += 1
            return None
        return {"seq": request.seq, "ok": True, "figure": figure.to_json()}

    def _watch_end(self, session: Session) -> None:
        key = session.peer.process
        if key in self._deaths:
            return
        try:
            fd = os.pidfd_open(session.peer.pid)
        except OSError as error:
            self._ended(key)
            code = "AGENT_FULL" if error.errno in {errno.EMFILE, errno.ENFILE} else "PEER_GONE"
            raise SourceError(code, f"process {key[0]} cannot be watched: {error.strerror}") from error
        self._deaths[key] = fd
        self._selector.register(fd, selectors.EVENT_READ, lambda _mask: self._ended(key))

    def _ended(self, key: Process) -> None:
        fd = self._deaths.pop(key, -1)
        if fd >= 0:
            self._selector.unregister(fd)
            os.close(fd)
        session = self._registry.sessions.get(key)
        if session is not None:
            for waiting in self._registry.leave(session):
                self.answer(waiting, None)
            for connection in self._connections.values():
                if connection.session is session:
                    connection.session = None

    def _send(self, connection: _Connection, answer: dict[str, Any]) -> None:
        if connection.socket.fileno() not in self._connections:
            return
        connection.unsent.append(wire.encode(answer))
        self._flush(connection)

    def _flush(self, connection: _Connection) -> None:
        while connection.unsent:
            try:
                connection.socket.send(connection.unsent[0])
            except BlockingIOError:
                break
            except OSError:
                self._hang_up(connection)
                return
            connection.unsent.popleft()
        events = selectors.EVENT_WRITE if connection.unsent else selectors.EVENT_READ
        key = self._selector.get_key(connection.socket)
        if key.events != events:
            self._selector.modify(connection.socket, events, key.data)

    def _hang_up(self, connection: _Connection) -> None:
        if self._connections.pop(connection.socket.fileno(), None) is None:
            return
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._asked = {request: asker for request, asker in self._asked.items() if asker is not connection}
