"""The client of the node agent: one connection a process, shared by its threads.

There is no thread behind it: who waits for an answer reads the connection for all who wait. A user's task waits for
the agent half a second at most; an agent that made it wait, or is gone, is then left alone for twenty times as long
as it took to find out. When an agent ends midway and comes back, ends that were asked for are asked for again.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tao_flows.agent.link import CONNECT_S, About, Link, check_trusted, socket_paths
from tao_flows.agent.wire import MAX_LABEL, MAX_POOL, AgentFigure, ClientRole, Kind, encode
from tao_flows.config import AGENT_OFF
from tao_flows.errors import InputError, SourceError
from tao_flows.records import Diagnosis
from tao_flows.telemetry.discover import AgentOffer

BEGIN_S: Final = 0.5
"""How long a window's beginning may wait for the agent."""
FIGURE_S: Final = 3.0
"""How long after its end a window's figure is waited for: ordinary clients get theirs once a second."""
LOST: Final = "AGENT_LOST"
LATE: Final = "AGENT_LATE"
_PAUSE_FACTOR: Final = 20.0
_PAUSE_S: Final = 0.5
"""The shortest pause."""
_FIRST_RETRY_S: Final = 0.05
_LAST_RETRY_S: Final = 0.5
_MOST_WAITING: Final = 4_096
_ABSENT: Final = "AGENT_ABSENT"
_DENIED: Final = frozenset({"AGENT_DENIED", "AGENT_UNTRUSTED"})


@dataclass(frozen=True, slots=True)
class Remote:
    """A window that is open at the agent."""

    window: str
    token: str
    kind: Kind


class Pending:
    """An answer that is on its way. Safe to use from threads."""

    __slots__ = ("_client", "_until_s", "answer", "message", "seq", "stands")

    def __init__(self, client: AgentClient, seq: int, message: Mapping[str, Any], *, stands: bool) -> None:
        self._client = client
        self._until_s = time.monotonic() + FIGURE_S
        self.seq = seq
        self.message = encode({**message, "seq": seq})
        self.stands = stands
        """Whether it is asked again after the connection was lost."""
        self.answer: Mapping[str, Any] | None = None

    def result(self, timeout_s: float | None = None) -> AgentFigure | None:
        """The figure that was asked for; None when it is not to be had, or not yet, for the reason in ``code``.

        Args:
            timeout_s: how long to wait; by default until three seconds after the end.
        """
        left_s = self._until_s - time.monotonic()
        answer = self._client.wait(self, left_s if timeout_s is None else min(timeout_s, left_s))
        try:
            return AgentFigure.from_json(answer["figure"]) if answer is not None and answer.get("ok") is True else None
        except (ValueError, KeyError):
            return None

    @property
    def code(self) -> str:
        """Why there is no figure: AGENT_LOST, none will come; AGENT_LATE, the agent has not answered."""
        if self.answer is None and self._client.is_connected:
            return LATE
        return LOST


class AgentClient:
    """Speaks to a node agent. Safe to use from threads; a forked child has no part in it.

    Args:
        path: the agent's socket.
        role: what this process is, for as long as it lives.

    Raises:
        SourceError: there is no agent to speak to; as ``Link``.
    """

    def __init__(self, path: Path, role: ClientRole) -> None:
        self.path = path
        self._role = role
        self._link: Link | None = Link(path, role)
        self.about: About = self._link.about
        self._changed = threading.Condition()
        self._seq = 0
        self._waiting: dict[int, Pending] = {}
        """By seq, oldest first."""
        self._reading = self._connecting = self._closed = False
        self._alone_until_s = 0.0
        _clients.add(self)

    @property
    def is_connected(self) -> bool:
        """Whether the agent was there when it was last spoken to."""
        return self._link is not None

    def begin(
        self, kind: Kind, label: str, *, pid: int | None = None, tid: int | None = None, pool: Sequence[int] = ()
    ) -> Remote:
        """Opens a window. Takes half a second at most.

        Args:
            kind: one of the kinds of ``wire``.
            label: a name for people.
            pid: the process of a command.
            tid: the thread, by this process's number.
            pool: threads of this process that serve whatever task calls them.

        Raises:
            SourceError: AGENT_LOST, or the agent's own code; nothing was opened.
        """
        # What is no Unicode in a name (a file's, say) cannot be sent.
        label = label[:MAX_LABEL].encode(errors="replace").decode()
        message = {"op": "begin", "kind": kind, "label": label, "pid": pid, "tid": tid, "pool": list(pool[:MAX_POOL])}
        answer = self._ask(message)
        if answer.get("ok") is not True:
            raise SourceError(str(answer.get("code", LOST)), str(answer.get("summary", "")))
        return Remote(str(answer.get("window")), str(answer.get("token")), kind)

    def end(self, remote: Remote, *, cpu_ns: int | None = None, keep: bool = False) -> Pending:
        """Asks for a window's figure and does not wait for it. Never raises.

        Args:
            remote: the window.
            cpu_ns: CPU nanoseconds that the client counted, where the agent cannot.
            keep: True to leave the window open.
        """
        message = {"op": "end", "window": remote.window, "token": remote.token, "cpu_ns": cpu_ns, "keep": keep}
        return self._send(message, stands=True)

    def status(self) -> Mapping[str, Any]:
        """How the agent says it is.

        Raises:
            SourceError: AGENT_LOST, or the agent's own code.
        """
        answer = self._ask({"op": "status"})
        status = answer.get("status")
        if answer.get("ok") is not True or not isinstance(status, dict):
            raise SourceError(str(answer.get("code", LOST)), str(answer.get("summary", "the agent gave no status")))
        return status

    def close(self) -> None:
        """Ends the connection. Windows that are open at the agent stay so until this process ends."""
        with self._changed:
            self._closed = True
            link, self._link = self._link, None
            self._waiting.clear()
            self._changed.notify_all()
        if link is not None:
            link.abort()

    def wait(self, pending: Pending, timeout_s: float) -> Mapping[str, Any] | None:
        """Waits for an answer; None when it does not come in time, or will not come."""
        until_s, retry_s = time.monotonic() + timeout_s, _FIRST_RETRY_S
        while pending.answer is None and not self._closed:
            left_s = until_s - time.monotonic()
            link = self._to_read(left_s)
            if link is not None:
                if not self._receive(link, left_s) and left_s <= 0:
                    break
            elif left_s <= 0 or not (self.is_connected or pending.stands):
                break
            elif not self._reconnect():
                with self._changed:
                    if self._link is None and not self._closed:
                        self._changed.wait(min(retry_s, left_s))
                retry_s = min(2 * retry_s, _LAST_RETRY_S)
        return pending.answer

    def _ask(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Asks and waits, for half a second at most.

        Raises:
            SourceError: AGENT_LOST.
        """
        started_s = time.monotonic()
        if started_s < self._alone_until_s:
            raise SourceError(LOST, f"the agent at {self.path} did not answer a moment ago")
        for _ in range(2):  # an agent that was restarted since it was last spoken to is found so by asking it
            if not self._reconnect():
                break
            pending = self._send(message, stands=False)
            answer = self.wait(pending, BEGIN_S - (time.monotonic() - started_s))
            if answer is not None:
                return answer
            with self._changed:
                self._waiting.pop(pending.seq, None)
            if self.is_connected:
                break
        now_s = time.monotonic()
        self._alone_until_s = now_s + max(_PAUSE_S, _PAUSE_FACTOR * (now_s - started_s))
        raise SourceError(LOST, f"the agent at {self.path} does not answer")

    def _send(self, message: Mapping[str, Any], *, stands: bool) -> Pending:
        with self._changed:
            self._seq += 1
            pending = Pending(self, self._seq, message, stands=stands)
            link = self._link
            if not self._closed:
                while len(self._waiting) >= _MOST_WAITING:
                    self._waiting.pop(next(iter(self._waiting)))
                self._waiting[pending.seq] = pending
        if link is not None:
            try:
                link.send(pending.message)
            except OSError:
                self._lose(link)
        return pending

    def _to_read(self, timeout_s: float) -> Link | None:
        """The connection for this thread to read, or None when it is lost, or another thread has read something."""
        with self._changed:
            if self._link is not None and self._reading:
                self._changed.wait(max(0.0, timeout_s))
                return None
            self._reading = self._link is not None
            return self._link

    def _receive(self, link: Link, timeout_s: float) -> bool:
        """Reads one answer and hands it to who waits for it; False when none came in time."""
        answer = None
        try:
            answer = link.receive(timeout_s)
        except (OSError, InputError):
            self._lose(link)
        finally:
            with self._changed:
                self._reading = False
                seq = None if answer is None else answer.get("seq")
                pending = self._waiting.pop(seq, None) if isinstance(seq, int) else None
                if pending is not None:
                    pending.answer = answer
                self._changed.notify_all()
        if pending is None and answer is not None and "token" in answer:
            self._unwanted(link, answer)
        return answer is not None

    def _unwanted(self, link: Link, answer: Mapping[str, Any]) -> None:
        """Ends a window whose beginning took so long that nobody waits for it any more."""
        end = {"op": "end", "seq": 0, "window": answer.get("window"), "token": answer["token"]}
        try:
            link.send(encode(end))
        except OSError:
            self._lose(link)

    def _lose(self, link: Link) -> None:
        with self._changed:
            if self._link is link:
                self._link = None
            self._changed.notify_all()
        link.abort()

    def _reconnect(self) -> bool:
        """Whether there is a connection, made anew if need be. What was asked for and stands is asked for again."""
        with self._changed:
            if self._connecting:
                self._changed.wait_for(lambda: not self._connecting, 2 * CONNECT_S)
                return self._link is not None
            if self._link is not None or self._closed:
                return self._link is not None
            self._connecting = True
        link = None
        try:
            link = Link(self.path, self._role)
        except SourceError:
            return False
        finally:
            with self._changed:
                self._connecting = False
                if link is not None and not self._closed:
                    self._link, self.about, self._alone_until_s = link, link.about, 0.0
                again = [pending.message for pending in self._waiting.values() if pending.stands]
                self._changed.notify_all()
        if self._link is not link:  # closed meanwhile
            link.close()
            return False
        try:
            for message in again:
                link.send(message)
        except OSError:
            self._lose(link)
        return True

    def forget(self) -> None:
        """In a forked child: the connection is its parent's."""
        link, self._link, self._closed = self._link, None, True
        self._changed = threading.Condition()
        self._waiting = {}
        if link is not None:
            link.close()


_clients: weakref.WeakSet[AgentClient] = weakref.WeakSet()


def _forget_all() -> None:
    for client in tuple(_clients):
        client.forget()


os.register_at_fork(after_in_child=_forget_all)


@dataclass(frozen=True, slots=True)
class Search:
    """What came of looking for the agent of this host."""

    client: AgentClient | None
    diagnosis: Diagnosis
    path: Path | None = None
    """The socket that the diagnosis is about."""

    @property
    def offer(self) -> AgentOffer:
        """The agent as a source of energy."""
        return AgentOffer(self.diagnosis, frozenset() if self.client is None else self.client.about.counts)


def find_agent(setting: str, role: ClientRole) -> Search:
    """Looks for the agent of this host, half a second at most in each place.

    Args:
        setting: its socket's path, ``off`` for none, empty for the usual places.
        role: what this process is.
    """
    if setting == AGENT_OFF:
        said = "not looked for: TAO_FLOWS_AGENT is off"
        return Search(None, Diagnosis("agent", "energy", "absent", "AGENT_OFF", said))
    problems: list[tuple[Path, SourceError]] = []
    for path in socket_paths(setting):
        try:
            if not setting:
                check_trusted(path)
            client = AgentClient(path, role)
        except SourceError as error:
            problems.append((path, error))
            continue
        return Search(client, _ready(client), path)
    # What is there and does not work is more worth saying than what is not there.
    path, worst = next((each for each in problems if each[1].code != _ABSENT), problems[0])
    status = "absent" if worst.code == _ABSENT else "denied" if worst.code in _DENIED else "broken"
    return Search(None, Diagnosis("agent", "energy", status, worst.code, worst.summary, worst.remedy), path)


def _ready(client: AgentClient) -> Diagnosis:
    about = client.about
    domains = tuple(domain.id for domain in about.domains)
    counted = sum(domain.counted for domain in about.domains)
    counters = f"{counted} of {len(domains)} domains counted" if domains else "no counters on this host"
    cpu = f"CPU time by {about.cpu_source}" + (", a lower bound" if about.cpu_lower_bound else "")
    told = "the host's lines too, at once" if about.privileged else "your own figures, once a second"
    summary = f"agent {about.version}: {counters}; {cpu}; tells {told}"
    return Diagnosis("agent", "energy", "ready", "READY", summary, "", domains)
