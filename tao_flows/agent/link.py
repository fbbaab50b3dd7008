"""One connection to a node agent: where its socket is, and what can be wrong with it."""

from __future__ import annotations

import errno
import os
import pwd
import select
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from tao_flows.agent.wire import MAX_ANSWER_BYTES, VERSION, ClientRole, decode, encode
from tao_flows.config import AGENT_OFF
from tao_flows.errors import InputError, SourceError
from tao_flows.telemetry.base import Domain, DomainKind
from tao_flows.telemetry.discover import Counted

SYSTEM_SOCKET: Final = Path("/run/tao-flows/agent.sock")
_USERS_SOCKET: Final = Path("tao-flows/agent.sock")
"""Below ``$XDG_RUNTIME_DIR``."""
CONNECT_S: Final = 0.25
"""How long connecting may take, and the first answer."""
_SEND_S: Final = 0.1
_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR)
_DENIED: Final = (errno.EACCES, errno.EPERM)
_COUNTED: Final[Mapping[str, Counted]] = {"package": "cpu", "gpu": "gpu"}
_START: Final = "start it on this host as root: tao-flows agent"


@dataclass(frozen=True, slots=True)
class About:
    """What an agent says of itself."""

    version: str
    privileged: bool
    """Whether it tells us of the host, at once and finely."""
    cpu_source: str
    cpu_lower_bound: bool
    domains: tuple[Domain, ...]
    baseline: str | None = None
    """Where its idle line is from, in words; None without calibration."""

    @property
    def counts(self) -> frozenset[Counted]:
        """What it has counters of."""
        kinds = {domain.kind for domain in self.domains if domain.counted}
        return frozenset(_COUNTED[kind] for kind in kinds & _COUNTED.keys())


class Link:
    """A connection on which the agent has answered. One thread may receive while others send.

    Args:
        path: the agent's socket.
        role: what this process is.

    Raises:
        SourceError: AGENT_ABSENT, AGENT_STALE_SOCKET, AGENT_DENIED, AGENT_SILENT, AGENT_VERSION, AGENT_REFUSED or
            AGENT_UNREACHABLE.
    """

    def __init__(self, path: Path, role: ClientRole) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.settimeout(CONNECT_S)
            self._socket.connect(os.fspath(path))
            self._socket.setblocking(False)
            self._readable = select.poll()
            self._readable.register(self._socket, select.POLLIN)
            self.send(encode({"op": "hello", "seq": 0, "v": VERSION, "role": role}))
            self.about = _about(path, self.receive(CONNECT_S))
        except OSError as error:
            self.close()
            raise _unreachable(path, error) from None
        except InputError as error:
            self.close()
            raise SourceError("AGENT_UNREACHABLE", f"{path}: {error.summary}", _START) from None
        except BaseException:
            self.close()
            raise

    def send(self, message: bytes) -> None:
        """Sends one message, and waits no longer than a tenth of a second for room.

        Raises:
            OSError: it was not sent: the agent is gone, or takes nothing more.
        """
        try:
            self._socket.send(message)
        except BlockingIOError:
            room = select.poll()
            room.register(self._socket, select.POLLOUT)
            room.poll(_SEND_S * 1e3)
            self._socket.send(message)

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message; None when none comes in time.

        Raises:
            OSError: the agent is gone.
            InputError: what came is no message.
        """
        if not self._readable.poll(max(0.0, timeout_s) * 1e3):
            return None
        try:
            raw = self._socket.recv(MAX_ANSWER_BYTES)
        except BlockingIOError:
            return None
        if not raw:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return decode(raw)

    def abort(self) -> None:
        """Closes it, and wakes who waits for a message."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.close()

    def close(self) -> None:
        """Closes this process's end of it; the agent hears nothing while another process holds it, too."""
        self._socket.close()


def socket_paths(setting: str, env: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """Where an agent is looked for, best first.

    Args:
        setting: the path that is set, ``off`` for none, empty for the usual places: the system's, then the user's own.
        env: the environment, for ``XDG_RUNTIME_DIR``.
    """
    if setting:
        yield from (() if setting == AGENT_OFF else (Path(setting),))
        return
    yield SYSTEM_SOCKET
    runtime = Path(env.get("XDG_RUNTIME_DIR", ""))
    if runtime.is_absolute():
        yield runtime / _USERS_SOCKET


def check_trusted(path: Path) -> None:
    """Refuses a socket in a usual place that anybody could have put there.

    Raises:
        SourceError: AGENT_UNTRUSTED; AGENT_ABSENT when there is no such directory.
    """
    directory = path.parent
    try:
        status = os.stat(directory)
    except OSError as error:
        raise _unreachable(path, error) from None
    # Below /run only root makes directories, for whatever user the agent runs as.
    owned = path == SYSTEM_SOCKET or status.st_uid in {0, os.geteuid()}
    if status.st_mode & stat.S_IWOTH or not owned:
        raise SourceError(
            "AGENT_UNTRUSTED",
            f"{directory} could have been made by anybody: an agent there is not asked",
            f"let root or yourself own it and chmod o-w it, or set TAO_FLOWS_AGENT={path} to trust it",
        )


def _about(path: Path, answer: Mapping[str, Any] | None) -> About:
    if answer is None:
        raise TimeoutError
    if answer.get("ok") is not True:
        said = f"{path}: {answer.get('summary', 'the agent refused')}"
        # To this version's greeting no agent of the same version answers that it does not understand it.
        code = "AGENT_VERSION" if answer.get("code") == "BAD_MESSAGE" else "AGENT_REFUSED"
        raise SourceError(code, said, str(answer.get("remedy", "")))
    agent = answer.get("agent")
    return About(
        version=str(agent.get("version", "")) if isinstance(agent, dict) else "",
        privileged=answer.get("privileged") is True,
        cpu_source=str(answer.get("cpu_source", "")),
        cpu_lower_bound=answer.get("cpu_lower_bound") is True,
        domains=tuple(_domain(each) for each in answer.get("domains", ())),
        baseline=str(answer["baseline"]) if answer.get("baseline") else None,
    )


def _domain(said: Mapping[str, Any]) -> Domain:
    try:
        kind: DomainKind = said["kind"] if said["kind"] in get_args(DomainKind) else "other"
        counted, events = said["counted"] is True, tuple(map(str, said.get("events", ())))
        return Domain(str(said["id"]), kind, str(said["source"]), counted, said.get("within"), events=events)
    except (TypeError, KeyError, AttributeError):
        raise InputError("BAD_MESSAGE", "the agent's domains are not to be understood") from None


def _unreachable(path: Path, error: OSError) -> SourceError:
    if error.errno in _ABSENT:
        return SourceError("AGENT_ABSENT", f"no agent at {path}", _START)
    if error.errno == errno.ECONNREFUSED:
        summary = f"nobody listens at {path}: the agent that made it has ended"
        return SourceError("AGENT_STALE_SOCKET", summary, _START)
    if error.errno in _DENIED:
        return SourceError("AGENT_DENIED", f"{path}: you may not connect to the agent", _how_to_join(path))
    if isinstance(error, TimeoutError) or error.errno == errno.EAGAIN:
        remedy = "see the agent's log, and restart it"
        return SourceError("AGENT_SILENT", f"the agent at {path} does not answer within {CONNECT_S:g} s", remedy)
    return SourceError("AGENT_UNREACHABLE", f"{path}: {error.strerror or error}", _START)


def _how_to_join(path: Path) -> str:
    for place in (path, path.parent):
        try:
            group, user = place.group(), pwd.getpwuid(os.geteuid()).pw_name
        except (OSError, KeyError):
            continue
        return f"join the group of the socket and log in anew: usermod --append --groups {group} {user}"
    return "join the group of the socket, and log in anew"
