"""A simulated node that clients come to and leave as they like: whatever they ask, their answers sum to the counters."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tao_flows.agent import state
from tao_flows.agent.peer import Peer
from tao_flows.agent.registry import Registry
from tao_flows.agent.sampler import Sampler
from tao_flows.agent.session import Window
from tao_flows.agent.wire import AgentFigure, Begin, End
from tao_flows.calibration import Baseline, DomainBaseline, Host
from tao_flows.errors import InputError, SourceError
from tao_flows.telemetry.base import Domain, Reading
from tao_flows.telemetry.parties import PartyCpu
from tao_flows.testing import FakeClock
from tao_flows.units import NS_PER_S, UJ_PER_MJ

DOMAINS = (
    Domain("package-0", "package", "sim"),
    Domain("package-0/dram", "dram", "sim"),
    Domain("psys", "psys", "sim", counted=False),
)
BASELINE = Baseline(Host("m", "c"), 0, 60.0, 0.0, 9, 9, {"package-0": DomainBaseline(10.0, 0.5, 9)})
SLOT_NS = NS_PER_S // 10
# By process: its parent and its user. 0 is the host's root, who is privileged.
PROCESSES = {101: (1, 0), 102: (101, 1000), 103: (102, 1000), 104: (1, 1000), 105: (101, 0), 106: (105, 0)}
ABOVE = {101: (), 102: (101,), 103: (102, 101), 104: (), 105: (101,), 106: (105, 101)}
THREADS = {pid: (pid, 10 * pid) for pid in PROCESSES}
pids = st.sampled_from(sorted(PROCESSES))
amounts = st.integers(0, 3 * SLOT_NS)


class Source:
    """Counters that show what they are told."""

    id = "sim"
    domains = DOMAINS
    max_interval_s = 60.0

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.raw_uj: list[int] = [1_000] * len(DOMAINS)
        self.failing: set[int] = set()

    def read(self) -> tuple[Reading, ...]:
        now_ns = self._clock.monotonic_ns()
        return tuple(
            Reading(now_ns, None, "READ_FAILED") if number in self.failing else Reading(now_ns, raw_uj)
            for number, raw_uj in enumerate(self.raw_uj)
        )

    def close(self) -> None:
        pass


class SimCounter:
    """Threads, whose parties they are in, and the CPU time that they are told to have used."""

    source = "sim"
    lower_bound = False
    moves_threads = True
    max_parties = 300

    def __init__(self, clock: FakeClock, busy_ns: int = 0) -> None:
        self._clock = clock
        self._owner: dict[int, int] = {}
        self._returns: dict[int, dict[int, int]] = {}
        self._cpu_ns: dict[int, int] = {}
        self.busy_ns = busy_ns

    def spend(self, tid: int, cpu_ns: int) -> None:
        self.busy_ns += cpu_ns
        if tid in self._owner:
            self._cpu_ns[self._owner[tid]] += cpu_ns

    def add(self, party: int, tids: Iterable[int], *, within: int | None = None, stays_over_exec: bool = True) -> None:
        if not (placed := list(tids)):
            raise SourceError("PARTY_GONE", "no thread")
        assert within is None or within in self._cpu_ns, "within a party that is not open"
        self._cpu_ns.setdefault(party, 0)
        for tid in placed:
            self._owner[tid] = party
            if within is not None:
                self._returns.setdefault(party, {})[tid] = within

    def party_of(self, tid: int) -> int | None:
        return self._owner.get(tid)

    def remove(self, party: int) -> None:
        self._cpu_ns.pop(party, None)
        returns = self._returns.pop(party, {})
        for tid, owner in list(self._owner.items()):
            if owner == party:
                self._owner.pop(tid)
                if returns.get(tid) in self._cpu_ns:
                    self._owner[tid] = returns[tid]
        for others in self._returns.values():
            for tid, outer in list(others.items()):
                if outer == party:
                    others.pop(tid)
                    if tid in returns:
                        others[tid] = returns[tid]

    def read(self) -> PartyCpu:
        return PartyCpu(self._clock.monotonic_ns(), dict(self._cpu_ns), self.busy_ns)

    def problems(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        pass


class Node(RuleBasedStateMachine):
    """The agent's registry on a node of six processes."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="tao-node-"))
        self.proc = self.directory / "proc"
        self.clock = FakeClock(NS_PER_S)
        self.source = Source(self.clock)
        self.counter = SimCounter(self.clock)
        self.started = dict.fromkeys(PROCESSES, 1)
        self.windows: dict[str, tuple[int, Window]] = {}
        self.asked: list[tuple[Window, End]] = []
        self.true_uj = [0] * len(DOMAINS)

    @initialize()
    def boot(self) -> None:
        (self.proc / "sys/kernel/random").mkdir(parents=True)
        (self.proc / "sys/kernel/random/boot_id").write_text("boot\n")
        for pid, (parent, uid) in {1: (0, 0), os.getpid(): (1, 0), **PROCESSES}.items():
            self._lay(pid, parent, uid)
        self._agent()

    def _lay(self, pid: int, parent: int, uid: int) -> None:
        for tid in THREADS.get(pid, (pid,)):
            (self.proc / f"{pid}/task/{tid}").mkdir(parents=True, exist_ok=True)
        started = self.started.get(pid, 1)
        columns = ["S", str(parent), *["0"] * 17, str(started), *["0"] * 10]
        (self.proc / f"{pid}/stat").write_text(f"{pid} (name) {' '.join(columns)}\n")
        (self.proc / f"{pid}/status").write_text(f"Tgid:\t{pid}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nNSpid:\t{pid}\n")
        (self.proc / f"{pid}/cgroup").write_text("0::/\n")

    def _agent(self) -> None:
        sampler = Sampler([self.source], self.counter, BASELINE, 0.1, self.clock)
        self.registry = Registry(sampler, self.proc, self.clock)

    def _peer(self, pid: int) -> Peer:
        return Peer(pid, self.started[pid], PROCESSES[pid][1], 0, frozenset(), "")

    def _session(self, pid: int):
        return self.registry.sessions.get((pid, self.started[pid]))

    # What goes on at the node.

    @rule(pid=pids, which=st.integers(0, 1), cpu_ns=amounts)
    def work(self, pid, which, cpu_ns):
        self.counter.spend(THREADS[pid][which], cpu_ns)

    @rule(wall_ns=st.integers(1, 5 * SLOT_NS), moved_uj=st.tuples(*[st.integers(0, 20_000_000)] * len(DOMAINS)))
    def go_by(self, wall_ns, moved_uj):
        self.clock.advance(wall_ns / NS_PER_S)
        for number, by_uj in enumerate(moved_uj):
            self.source.raw_uj[number] += by_uj
            self.true_uj[number] += by_uj
        self.registry.sampler.sample()

    @rule(number=st.integers(0, len(DOMAINS) - 1))
    def a_counter_fails_or_works_again(self, number):
        self.source.failing ^= {number}

    @rule(pid=pids)
    def end_a_process_and_start_another_of_its_number(self, pid):
        if (session := self._session(pid)) is not None:
            self.registry.leave(session)
        self.windows = {name: (owner, window) for name, (owner, window) in self.windows.items() if owner != pid}
        self.asked = [(window, end) for window, end in self.asked if window.session is not session]
        self.started[pid] += 1
        self._lay(pid, *PROCESSES[pid])

    # What clients ask.

    @rule(pid=pids, role=st.sampled_from(["engine", "tool", "none"]))
    def hello(self, pid, role):
        session = self.registry.hello(self._peer(pid), role)
        assert session.privileged == (PROCESSES[pid][1] == 0)

    @rule(
        pid=pids,
        kind=st.sampled_from(["command", "thread", "steps", "process"]),
        other=pids,
        which=st.integers(0, 1),
        with_tid=st.booleans(),
        with_pool=st.booleans(),
    )
    def begin(self, pid, kind, other, which, with_tid, with_pool):
        session = self._session(pid)
        if session is None:
            return
        tid = THREADS[pid][which] if with_tid or kind == "thread" else None
        pool = THREADS[pid][-1:] if with_pool else ()
        # Refused are others' processes, and those that count themselves.
        with contextlib.suppress(InputError):
            window = self.registry.begin(session, Begin(1, kind, "x", other, tid, pool))
            assert kind != "command" or pid in ABOVE[other]
            self.windows[window.id] = (pid, window)

    @rule(data=st.data(), keep=st.booleans(), cpu_ns=st.one_of(st.none(), st.integers(0, 10 * SLOT_NS)))
    def end(self, data, keep, cpu_ns):
        if not self.windows:
            return
        name = data.draw(st.sampled_from(list(self.windows)))
        pid, window = self.windows[name]
        request = End(2, name, window.token, cpu_ns, keep)
        assert self.registry.find(self._peer(pid), request) is window
        answer = self.registry.end(window, request)
        assert (answer is None) == (PROCESSES[pid][1] != 0)
        if answer is None:
            self.asked.append((window, request))
        else:
            self._check(window, answer)
            if not keep:
                del self.windows[name]

    @rule()
    def publish(self):
        answers = self.registry.publish()
        assert [(each.window, each.request) for each, _ in answers] == self.asked
        assert self.registry.failed == 0
        for each, answer in answers:
            assert answer is not None
            self._check(each.window, answer)
            if not each.request.keep:
                self.windows.pop(each.window.id, None)
        self.asked.clear()
        self._check_account()

    @precondition(lambda self: not self.asked)
    @rule(down_ns=amounts)
    def restart_the_agent(self, down_ns):
        state.save(self.directory, self.registry, self.registry.sampler.at_ns)
        before = self.registry
        self.clock.advance(down_ns / NS_PER_S)
        self.counter = SimCounter(self.clock, self.counter.busy_ns)
        self._agent()
        said = state.restore(self.directory, self.registry)
        assert f"took up {before.window_count} windows of {len(before.sessions)} processes" in said
        found = {
            name: window for session in self.registry.sessions.values() for name, window in session.windows.items()
        }
        self.windows = {name: (pid, found[name]) for name, (pid, _) in self.windows.items()}

    # What holds.

    def _check(self, window: Window, answer: AgentFigure) -> None:
        assert answer.cpu_ns is None or answer.cpu_ns >= 0
        assert answer.wall_ns >= 0
        assert answer.gap_ns >= 0
        privileged = window.session.privileged
        for number, each in enumerate(answer.domains):
            assert 0.0 <= each.known <= 1.0
            lines = (each.overhead_uj, each.idle_uj, each.unattributed_uj, each.allocated_idle_uj)
            if each.id == "psys" or each.task_uj is None:
                assert privileged or each.counter_uj is None
                continue
            assert each.low_uj <= each.task_uj <= each.high_uj
            if not privileged:
                assert (each.counter_uj, each.idle_uj, each.unattributed_uj) == (None, None, None)
                assert 0 <= each.task_uj <= self.true_uj[number] + UJ_PER_MJ
                assert each.task_uj % UJ_PER_MJ == 0
                continue
            assert min(each.task_uj, *(line or 0 for line in lines)) >= 0
            assert each.task_uj + sum(line or 0 for line in lines) == each.counter_uj
            assert each.counter_uj <= self.true_uj[number]

    def _check_account(self) -> None:
        for lines in self.registry.sampler.account.lines:
            parts = (lines.tasks_uj, lines.overhead_uj, lines.idle_uj, lines.allocated_idle_uj, lines.unattributed_uj)
            assert min(parts) >= 0
            assert sum(parts) == lines.counter_uj

    @invariant()
    def no_process_claims_more_than_it_used(self):
        registry = getattr(self, "registry", None)
        for session in () if registry is None else registry.sessions.values():
            used = self.registry.sampler.account.parties[session.number]
            assert 0 <= session.claimed.cpu_ns <= used.cpu_ns
            assert all(0 <= a <= b for a, b in zip(session.claimed.energy_uj, used.energy_uj, strict=True))

    @invariant()
    def every_number_in_use_is_an_open_partys(self):
        if (registry := getattr(self, "registry", None)) is None:
            return
        open_parties = registry.sampler.account.parties.keys()
        assert registry.commands.keys() <= open_parties
        assert registry.inside.keys() <= open_parties
        assert set(registry.inside.values()) <= registry.commands.keys()
        assert registry.nested.keys() <= open_parties
        assert set(registry.by_process.values()) <= open_parties

    def teardown(self) -> None:
        try:
            registry = self.registry
            for session in list(registry.sessions.values()):
                registry.leave(session)
            registry.publish()
            self._check_account()
            assert len(registry.sampler.account.parties) == 1  # the agent's own
            left = (registry.sessions, registry.by_process, registry.commands, registry.inside, registry.nested)
            assert not any(left)
            assert registry.sampler.mixed == {}
        finally:
            shutil.rmtree(self.directory)


TestNode = Node.TestCase
TestNode.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
