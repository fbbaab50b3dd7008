"""Clients' processes and their windows: who they are, what is counted for them, and what each may be told."""

from __future__ import annotations

import hmac
import os
import secrets
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NoReturn

from tao_flows.agent import peer as peers
from tao_flows.agent.engine_parties import EngineParties
from tao_flows.agent.peer import Peer, Process
from tao_flows.agent.pool_threads import PoolThreads
from tao_flows.agent.sampler import Sampler
from tao_flows.agent.session import Session, Waiting, Window
from tao_flows.agent.stamp import Span, Stamp, Usage, figure
from tao_flows.agent.wire import AgentFigure, Begin, ClientRole, End
from tao_flows.clock import Clock
from tao_flows.engines import EngineProcess
from tao_flows.errors import InputError, SourceError
from tao_flows.figures import Quality
from tao_flows.node_account import Party, Role
from tao_flows.telemetry import procfs

USERS_SHARE: Final = 0.25
"""Of all parties, one user's clients and their windows may be so many, unless privileged."""
PROCESS_SHARE: Final = 0.75
"""And one client's windows so many in any case."""
RESERVED_PARTIES: Final = 64
"""Kept for engines' processes and for clients' own."""
_ROLES: Final[dict[ClientRole, Role]] = {"engine": Role.OVERHEAD, "tool": Role.OVERHEAD, "none": Role.NONE}


class Registry:
    """Keeps sessions and windows over a Sampler. One thread uses it.

    Args:
        sampler: counts for them.
        proc_root: where the kernel shows processes.
        clock: where time comes from.
        trusted_gid: members of this group are privileged too; None for none.
    """

    def __init__(self, sampler: Sampler, proc_root: Path, clock: Clock, *, trusted_gid: int | None = None) -> None:
        self.sampler = sampler
        self.instance = secrets.token_hex(4)
        self.sessions: dict[Process, Session] = {}
        self.refused = 0
        self.lost_windows = 0
        self.failed = 0
        """Answers that an error of the agent's own kept from being given."""
        self.counter_source = ""
        self.lower_bound = False
        self.proc_root = proc_root
        self._clock = clock
        self._trusted_gid = trusted_gid
        self._tenant = peers.tenant_of(os.getpid(), proc_root)
        self._windows = 0
        self.by_process: dict[Process, int] = {}
        """Parties of commands and of clients' processes."""
        self.commands: dict[int, Process] = {}
        """By party."""
        self.inside: dict[int, int] = {}
        """By party: the party of the command or task it runs in."""
        self.nested: dict[int, Usage] = {}
        """By command's or task's party: what ended parties inside it had used."""
        self.engines = EngineParties(sampler, proc_root)
        self._pools = PoolThreads(sampler)
        self.waiting: list[Waiting] = []
        sampler.party_of = self.party_of
        self._public = self.stamp()
        self._published: dict[int, Usage] = {}
        """By party of an ordinary client's: what it had used at the last publication."""

    def now_ns(self) -> int:
        """Monotonic nanoseconds."""
        return self._clock.monotonic_ns()

    def nothing(self) -> Usage:
        """No use at all."""
        return Usage((0,) * len(self.sampler.domains))

    @property
    def window_count(self) -> int:
        """How many windows are open."""
        return sum(len(session.windows) for session in self.sessions.values())

    def party_of(self, pid: int) -> int | None:
        """The party that a process works for: a command, or the one window that is open in a client's process.

        None where it is nobody's, and where several windows are open in the process.
        """
        number = self._innermost(pid)
        if number is None or number in self.commands:
            return number
        session = next(each for each in self.sessions.values() if each.number == number)
        inner = session.inner
        return number if not inner else next(iter(inner.values())).base if len(inner) == 1 else None

    def _innermost(self, pid: int) -> int | None:
        """The party of a process, or of the first above it that has one."""
        found = (self.by_process.get(each) for each in peers.ancestors(pid, self.proc_root))
        return next((number for number in found if number is not None), None)

    def engine_found(self, process: EngineProcess) -> None:
        """Counts an engine's process as overhead, unless it runs inside what a client has registered."""
        if self._innermost(process.pid) is None:
            self.engines.found(process)

    def hello(
        self, peer: Peer, role: ClientRole, *, threads: Iterable[int] | None = None, used: Party | None = None
    ) -> Session:
        """The session of a client's process, opened if it is new.

        Args:
            peer: the process.
            role: what it is, beside its windows.
            threads: what is counted for it, its own threads by default.
            used: what it had used before the agent was restarted.

        Raises:
            SourceError: it cannot be counted, or its user has too many.
        """
        session = self.sessions.get(peer.process)
        if session is not None:
            return session
        privileged = self.is_privileged(peer)
        self._check_share(peer, privileged=privileged)
        within = self._party_around(peer.pid)
        inside = None if within is None else self._task_around(within)
        if within is None:
            within = self.engines.find(peer.process)
        if threads is None:
            threads = peers.threads_of(peer.pid, self.proc_root)
        number = self.sampler.open(threads, _ROLES[role], pooled=not privileged, within=within, used=used)
        self._put_inside(number, inside)
        session = self.sessions[peer.process] = Session(peer, role, privileged, number, self.nothing())
        self.by_process[peer.process] = number
        return session

    def _party_around(self, pid: int) -> int | None:
        """The party that a process is in before it has one of its own.

        Raises:
            SourceError: PARTY_UNTOLD, it may be in several, and would be counted in two.
        """
        within = self.sampler.party_of_thread(pid)
        if within is not None or self.sampler.moves_threads:
            return within if within is not None else self._innermost(pid)
        within = self._innermost(pid)
        if any(session.number == within and session.threads for session in self.sessions.values()):
            summary = "a client that was started in a process with tasks on threads: whose it is only eBPF could tell"
            raise SourceError("PARTY_UNTOLD", summary, "give the agent CAP_BPF and CAP_PERFMON")
        return within

    def _task_around(self, number: int) -> int | None:
        """The party itself where it is a command's or a task's, else that of the one it runs in."""
        is_task = self.sampler.account.parties[number].role is Role.TASK
        return number if is_task else self.inside.get(number)

    def is_privileged(self, peer: Peer) -> bool:
        """Whether a client may see all of the host."""
        # Root in a container of somebody's is not the host's root.
        ours = peer.uid in {0, os.geteuid()} and peer.tenant in {"", self._tenant}
        return ours or (self._trusted_gid is not None and self._trusted_gid in peer.groups)

    def begin(self, session: Session, request: Begin) -> Window:
        """Opens a window.

        Raises:
            InputError: the process or thread is not the client's.
            SourceError: it cannot be counted, or there are too many.
        """
        self._check_room(session)
        if session.privileged:
            self.sampler.sample_if_old()
            self.sampler.settle()
        tid = None if request.tid is None else self._thread(session, request.tid)
        process = None
        if request.kind == "command":
            process = self._command(session, request.pid)
            base, owned = self.open_command(session, process, peers.threads_of(process[0], self.proc_root)), True
        elif request.kind == "thread":
            if tid is None:
                raise InputError("BAD_MESSAGE", "a window over a thread needs its number", "give tid")
            base, owned = self.open_thread(session, tid, (tid,)), True
            threads = (peers.own_thread(session.peer.pid, each, self.proc_root) for each in request.pool)
            pool = [each for each in threads if each not in {None, tid}]
            alone = not session.inner
            self._pools.serve(session.number, base, pool, alone=alone, pooled=not session.privileged)
        else:
            stack = session.threads.get(tid, []) if tid is not None else []
            base, owned = (stack[-1] if stack and request.kind == "steps" else session.number), False
            self._mix(session, base, +1)
        self._windows += 1
        session.begun += request.kind in {"thread", "steps"}
        window = Window(
            id=f"{self.instance}-{self._windows}",
            token=secrets.token_hex(16),
            kind=request.kind,
            label=request.label,
            session=session,
            base=base,
            owned=owned,
            begun_ns=self._clock.monotonic_ns(),
            before=self.stamp() if session.privileged else self._public,
            used=self.nothing() if owned else self._used(session, base),
            engines=self.engines.used(),
            claimed=session.claimed,
            claim=self.nothing(),
            serial=session.begun,
            companions=len(session.inner),
            process=process,
            tid=tid if request.kind == "thread" else None,
        )
        session.keep(window)
        return window

    def _check_room(self, session: Session) -> None:
        self._check_share(session.peer, privileged=session.privileged)
        if self.sampler.free <= RESERVED_PARTIES or len(session.windows) >= PROCESS_SHARE * self.sampler.most:
            self._refuse()

    def _check_share(self, peer: Peer, *, privileged: bool) -> None:
        if privileged:
            return
        theirs = sum(1 + len(each.windows) for each in self.sessions.values() if each.peer.owner == peer.owner)
        if theirs >= USERS_SHARE * self.sampler.most:
            self._refuse()

    def _refuse(self) -> NoReturn:
        self.refused += 1
        raise SourceError("AGENT_FULL", "the agent watches as many tasks as it may", "end some of them")

    def _command(self, session: Session, client_pid: int | None) -> Process:
        pid = None if client_pid is None else peers.own_number(session.peer.pid, client_pid, self.proc_root)
        if pid is None or not peers.is_descendant(pid, session.peer.pid, self.proc_root):
            raise InputError("NOT_YOURS", f"process {client_pid} is no child of the client's", "register your own")
        if not session.privileged and peers.real_uid(pid, self.proc_root) != session.peer.uid:
            raise InputError("NOT_YOURS", f"process {client_pid} runs as another user", "register your own")
        stat = procfs.process_stat(pid, self.proc_root)
        if stat is None:
            raise SourceError("PARTY_GONE", f"process {client_pid} has ended")
        if (pid, stat.start_ticks) in self.sessions:
            summary = f"process {client_pid} is a client itself and counts its own"
            raise InputError("COUNTS_ITSELF", summary, "register a process before it runs")
        return pid, stat.start_ticks

    def open_command(self, session: Session, process: Process, tids: Iterable[int], used: Party | None = None) -> int:
        """Opens the party of a command; of one that has a party already, within that.

        Raises:
            SourceError: it cannot be counted.
        """
        outer = self.by_process.get(process)
        outer = outer if outer in self.commands else None
        within = session.number if outer is None else outer
        number = self.sampler.open(tids, Role.TASK, pooled=not session.privileged, within=within, used=used)
        self._put_inside(number, self.inside.get(session.number) if outer is None else outer)
        self.by_process[process] = number
        self.commands[number] = process
        return number

    def _put_inside(self, number: int, task: int | None) -> None:
        if task is not None:
            self.inside[number] = task

    def open_thread(self, session: Session, tid: int, tids: Iterable[int], used: Party | None = None) -> int:
        """Opens the party of a thread that runs a task, of ``tids``: that thread, or none once it has ended.

        Raises:
            SourceError: it cannot be counted.
        """
        stack = session.threads.get(tid, [])
        within = stack[-1] if stack else session.number
        number = self.sampler.open(tids, Role.TASK, pooled=not session.privileged, within=within, used=used)
        self._put_inside(number, self.inside.get(session.number))
        session.threads[tid] = [*stack, number]
        return number

    def put_back(self, window: Window) -> None:
        """Takes up a window that an earlier agent had begun."""
        window.session.keep(window)
        if not window.owned:
            self._mix(window.session, window.base, +1)

    def refresh_public(self) -> None:
        """Takes what stands on the account now for what ordinary clients may know."""
        self._public = self.stamp()
        parties = self.sampler.account.parties
        self._published = {number: Usage.of(party) for number, party in parties.items() if party.pooled}

    def _mix(self, session: Session, base: int, by: int) -> None:
        # A process that is nobody's is unattributed in any case.
        if base == session.number and session.role != "none":
            self.sampler.mix(base, by)

    def _thread(self, session: Session, client_tid: int) -> int:
        tid = peers.own_thread(session.peer.pid, client_tid, self.proc_root)
        if tid is None:
            raise InputError("NOT_YOURS", f"thread {client_tid} is none of the client's", "register your own")
        return tid

    def _used(self, session: Session, number: int) -> Usage:
        """What a party has used, as far as its client may know."""
        return self._usage(number) if session.privileged else self._published.get(number, self.nothing())

    def find(self, peer: Peer, request: End) -> Window:
        """The window that a client asks for.

        Raises:
            InputError: UNKNOWN_WINDOW; also where it is not the client's, who is not to know that it is there.
        """
        for session in self.sessions.values():
            window = session.windows.get(request.window)
            if window is None:
                continue
            if session.peer.owner == peer.owner and hmac.compare_digest(
                window.token.encode(), request.token.encode("utf-8", "replace")
            ):
                return window
        raise InputError("UNKNOWN_WINDOW", "there is no such window of yours", "begin one")

    def end(self, window: Window, request: End) -> AgentFigure | None:
        """A window's figure; None when it is to be had at the next publication."""
        if window.ended_ns is None:
            self._stop(window, keep=request.keep)
        if not window.session.privileged:
            self.waiting.append(Waiting(window, request))
            return None
        answer = self._answer(window, request)
        if not request.keep:
            self._drop(window)
        return answer

    def _stop(self, window: Window, *, keep: bool) -> None:
        if keep:
            self.sampler.sample()
            return
        if window.owned:
            self._remove(window)
        else:
            self.sampler.sample()
            self._mix(window.session, window.base, -1)
        window.ended_ns = self._clock.monotonic_ns()
        window.session.inner.pop(window.id, None)

    def _remove(self, window: Window) -> None:
        self.sampler.sample()
        self.sampler.remove(window.base)
        if window.tid is not None:
            stack = window.session.threads.get(window.tid, [])
            if window.base in stack:
                stack.remove(window.base)
            if not stack:
                window.session.threads.pop(window.tid, None)

    def publish(self) -> list[tuple[Waiting, AgentFigure | None]]:
        """Settles what ordinary clients used, and answers those who wait. To be called about once a second."""
        self._settle()
        waiting, self.waiting = self.waiting, []
        answers: list[tuple[Waiting, AgentFigure | None]] = []
        for each in waiting:
            try:
                answers.append((each, self._answer(each.window, each.request)))
            except Exception:  # noqa: BLE001 - one client's window must not end the agent for all
                self.failed += 1
                answers.append((each, None))
        for each in waiting:  # only now: one may have asked for a window's figure twice
            if not each.request.keep:
                self._drop(each.window)
        self.refresh_public()
        return answers

    def _settle(self) -> None:
        self.sampler.sample()
        self.sampler.settle()

    def _answer(self, window: Window, request: End) -> AgentFigure:
        self.sampler.settle()
        session, now = window.session, self.stamp()
        task = self._inclusive(window.base).since(window.used) if window.owned else self._claim(window, request.cpu_ns)
        overhead = None
        if window.kind in {"process", "self"}:
            rest = self._usage(session.number).since(window.used)
            mine = session.claimed.since(window.claimed)
            left = Usage(
                tuple(max(0, a - b) for a, b in zip(rest.energy_uj, mine.energy_uj, strict=True)),
                max(0, rest.cpu_ns - mine.cpu_ns),
            )
            engines = self.engines.used().since(window.engines)
            overhead = left.plus(engines) if session.privileged and window.kind == "process" else left
        ended_ns = self._clock.monotonic_ns() if window.ended_ns is None else window.ended_ns
        return figure(
            Span(window.before, now, task, overhead),
            self.sampler.domains,
            wall_ns=ended_ns - window.begun_ns,
            cpu_source=self.counter_source,
            lower_bound=self.lower_bound,
            calibrated=self.sampler.calibrated_domains,
            privileged=session.privileged,
            codes=("AGENT_RESTARTED",) if window.restored else (),
            gpus=self._gpus(window),
            spread_uj=self.sampler.spread_uj,
        )

    def _gpus(self, window: Window) -> dict[int, Quality]:
        """How well the window's part of each GPU is known."""
        gpus, since_ns, pid = self.sampler.gpus, window.before.at_ns, window.session.peer.pid
        in_process = window.kind in {"thread", "steps"}
        side_by_side = in_process and (window.companions > 0 or window.serial != window.session.begun)
        found = {}
        for number in range(len(self.sampler.domains)):
            if number in gpus:
                alone = window.owned and gpus.was_held_alone(number, since_ns)
                unknown = gpus.is_unknown(number, window.base, since_ns)
                unknown = unknown or (side_by_side and gpus.was_held_by(number, pid, since_ns))
                found[number] = Quality.UNKNOWN if unknown else Quality.MEASURED if alone else Quality.ATTRIBUTED
        return found

    def _claim(self, window: Window, cpu_ns: int | None) -> Usage:
        """The part of its party's joules that a window's own CPU time stands for."""
        session = window.session
        used = self._usage(window.base) if window.spent is None else window.spent.plus(window.used)
        spent = used.since(window.used)
        # CPU time says nothing of a GPU: there the window has all of it, or an unknown part.
        task = spent.part(cpu_ns or 0).with_all(spent, self.sampler.gpus.numbers)
        if window.base != session.number:
            return task
        others = session.claimed.since(window.claim)
        window.claim = task.at_most(used.since(others))
        session.claimed = others.plus(window.claim)
        return window.claim

    def _drop(self, window: Window) -> None:
        if window.session.windows.pop(window.id, None) is None or not window.owned:
            return
        for inner in window.session.windows.values():
            if inner.base == window.base and inner.spent is None:
                inner.spent = self._usage(window.base).since(inner.used)
        self._close(window.base)

    def _close(self, number: int) -> None:
        """Ends a party that was removed; the command or task it ran in keeps what it used."""
        ended = self.nested.pop(number, self.nothing()).plus(Usage.of(self.sampler.close(number)))
        self._published.pop(number, None)
        outer = self.inside.pop(number, None)
        if outer is not None:
            self.nested[outer] = self.nested.get(outer, self.nothing()).plus(ended)
        # What still runs inside it is inside the next one now: its number may soon be somebody else's.
        for inner in [inner for inner, task in self.inside.items() if task == number]:
            del self.inside[inner]
            self._put_inside(inner, outer)
        process = self.commands.pop(number, None)
        if process is None:
            return
        if self.by_process.get(process) == number:
            del self.by_process[process]
            if outer is not None and self.commands.get(outer) == process:
                self.by_process[process] = outer

    def leave(self, session: Session) -> list[Waiting]:
        """Ends what was counted for a process that has ended, and says whose answers will not come."""
        self.sampler.sample()
        for window in reversed(session.windows.values()):  # what began last lies within the others
            if window.ended_ns is None:
                self.lost_windows += 1
                if window.owned:
                    self.sampler.remove(window.base)
        for window in list(session.windows.values()):
            self._drop(window)
        unanswered = [each for each in self.waiting if each.window.session is session]
        self.waiting = [each for each in self.waiting if each.window.session is not session]
        self._pools.forget(session.number)
        self.sampler.remove(session.number)
        self._close(session.number)
        del self.sessions[session.peer.process], self.by_process[session.peer.process]
        return unanswered

    def _usage(self, number: int) -> Usage:
        return Usage.of(self.sampler.account.parties[number])

    def _inclusive(self, number: int) -> Usage:
        """A party with all that ran inside it and was counted for others."""
        total = self._usage(number).plus(self.nested.get(number, self.nothing()))
        for inner, outer in self.inside.items():
            if outer == number:
                total = total.plus(self._inclusive(inner))
        return total

    def stamp(self) -> Stamp:
        """The node's account now."""
        sampler = self.sampler
        uncounted = ((name, each.counter_uj, each.counted_ns) for name, each in sampler.uncounted.items())
        return Stamp(
            at_ns=sampler.at_ns,
            lines=tuple(lines.copy() for lines in sampler.account.lines),
            uncounted=tuple(uncounted),
            busy_ns=sampler.account.busy_ns,
            overhead_cpu_ns=sampler.account.cpu_ns[Role.OVERHEAD],
        )

    def counts(self) -> Counter[str]:
        """Numbers for the agent's status."""
        return Counter(
            clients=len(self.sessions),
            windows=self.window_count,
            waiting=len(self.waiting),
            refused=self.refused,
            lost_windows=self.lost_windows,
            failed=self.failed,
            engines=len(self.engines),
        )
