"""The agent as a process: wires the parts, samples on time, publishes once a second, and ends on a signal."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tao_flows import __version__
from tao_flows.agent import state
from tao_flows.agent.registry import Registry
from tao_flows.agent.sampler import Sampler
from tao_flows.agent.server import Listener, Server
from tao_flows.agent.snapshot import DomainSnapshot, NodeSnapshot
from tao_flows.agent.spooling import Spooling, default_directory
from tao_flows.calibration import Host, find_baseline, places
from tao_flows.clock import Clock, SystemClock
from tao_flows.config import TaoConfig
from tao_flows.engines import EngineWatch
from tao_flows.errors import InputError, SourceError
from tao_flows.node_account import Role
from tao_flows.records import Diagnosis
from tao_flows.telemetry.discover import Discovery, discover
from tao_flows.telemetry.ebpf import EbpfParties
from tao_flows.telemetry.parties import PartyCounter
from tao_flows.telemetry.perf_parties import PerfParties
from tao_flows.telemetry.polled_parties import PolledParties
from tao_flows.units import s_from_ns

PUBLISH_S: Final = 1.0
"""Ordinary clients learn of spans no shorter than this."""
_MIRROR_S: Final = 0.25
_STATE_SHARE: Final = 0.005
"""Writing the state may take this share of a processor; with very many windows it is done less often."""
_OWN_SOURCES: Final = ("rapl", "pyrapl", "nvml")


@dataclass(frozen=True, slots=True)
class Options:
    """How an agent is run."""

    socket: Path
    state: Path | None
    """Where it keeps what must survive it; None for nowhere."""
    hz: float = 10.0
    bpf: bool = True
    gid: int | None = None
    """The group that may connect; None for everyone."""
    trusted_gid: int | None = None
    """The group whose members are told what root is told; None for none."""
    forward: str | None = None
    """The ledger or the ingest that tasks' records are forwarded to; None for none."""
    spool: Path | None = None
    """Where tasks leave them; None for the usual place."""


def open_counter(config: TaoConfig, *, bpf: bool) -> tuple[PartyCounter, tuple[SourceError, ...]]:
    """The best counter of CPU time by party that there is here, and why better ones are not used."""
    rejected: list[SourceError] = []
    makers: list[Callable[[], PartyCounter]] = [
        EbpfParties,
        lambda: PerfParties(config.proc_root, config.cgroup_root),
    ]
    for make in makers if bpf else makers[1:]:
        try:
            return make(), tuple(rejected)
        except SourceError as error:
            rejected.append(error)
    return PolledParties(config.proc_root, config.cgroup_root), tuple(rejected)


class Agent:
    """Everything that works together in the agent's process.

    Args:
        config: settings; ``TAO_FLOWS_SOURCES`` and the roots matter here.
        options: the command line's.
        clock: where time comes from.

    Raises:
        ConfigError: the socket cannot be served.
    """

    def __init__(self, config: TaoConfig, options: Options, clock: Clock | None = None) -> None:
        self._config = config
        self._options = options
        _raise_descriptor_limit()
        self._clock = clock or SystemClock()
        self._started_wall_ns = self._clock.wall_ns()
        self.incidents: Counter[str] = Counter()
        self._listener = Listener(options.socket, options.gid)
        sources = [name for name in config.sources if name in _OWN_SOURCES] or ["rapl", "nvml"]
        self._discovery: Discovery = discover(
            self._clock, sources=sources, powercap_root=config.powercap_root, proc_root=config.proc_root
        )
        self._counter, self.rejected = open_counter(config, bpf=options.bpf)
        self._interval_s = min([1 / options.hz, *(source.max_interval_s for source in self._discovery.sources)])
        domains = [domain.id for source in self._discovery.sources for domain in source.domains]
        found = find_baseline(places(config.calibration), domains, lambda: Host.this(config.proc_root))
        self.incidents.update(problem.code for problem in found.problems)
        self.sampler = Sampler(self._discovery.sources, self._counter, found.baseline, self._interval_s, self._clock)
        if domains:
            time.sleep(_MIRROR_S)
            self.sampler.choose_domains(self.sampler.find_mirrors())
        self.registry = Registry(self.sampler, config.proc_root, self._clock, trusted_gid=options.trusted_gid)
        self.registry.counter_source, self.registry.lower_bound = self._counter.source, self._counter.lower_bound
        self._engines = EngineWatch(config.proc_root)
        if options.state is not None:
            with contextlib.suppress(OSError):  # each time it cannot be written is counted
                options.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.taken_up = "" if options.state is None else state.restore(options.state, self.registry)
        self.server = Server(self._listener, self.registry, config.proc_root, self.status)
        self.server.watch_sessions()
        self.spooling: Spooling | None = None
        if options.forward is not None:
            self.spooling = Spooling(options.spool or default_directory(), options.forward)
            self.server.welcome = self.spooling.welcome
        self._snapshot = self._take_snapshot()
        self._stopped = False

    @property
    def diagnoses(self) -> tuple[Diagnosis, ...]:
        """What is said of each energy source."""
        return self._discovery.diagnoses

    @property
    def summary(self) -> str:
        """What it reads, on one line."""
        domains = ", ".join(domain.id for domain in self.sampler.domains) or "no energy counter"
        idle = "calibrated" if self.sampler.calibrated else "not calibrated"
        spool = "" if self.spooling is None else f"; records from {self.spooling.root}"
        return f"{domains}; CPU time by {self._counter.source}; {1 / self._interval_s:g} Hz; {idle}{spool}"

    def snapshot(self) -> NodeSnapshot:
        """How the agent stood a moment ago. Safe to call from any thread."""
        return self._snapshot

    def run(self) -> None:
        """Samples and serves until SIGTERM or SIGINT."""
        with self._signals():
            tick_s = publish_s = state_s = time.monotonic()
            while not self._stopped:
                tick_s = max(tick_s + self._interval_s, time.monotonic())
                self.server.serve_until(tick_s, self._now_s)
                self.sampler.sample()
                if time.monotonic() >= publish_s + PUBLISH_S:
                    publish_s = time.monotonic()
                    self._publish()
                    if publish_s >= state_s:
                        state_s = time.monotonic() + self._save() / _STATE_SHARE
        if self.registry.waiting:  # who waits for a figure waits for one over a second or more
            time.sleep(max(0.0, publish_s + PUBLISH_S - time.monotonic()))
        self._publish()
        self._save()

    def close(self) -> None:
        """Gives everything back."""
        if self.spooling is not None:
            self.spooling.close()
        self.server.close()
        self._listener.close()
        self._counter.close()
        for source in self._discovery.sources:
            source.close()

    def _now_s(self) -> float:
        # Infinity ends whatever waits for a time to come.
        return float("inf") if self._stopped else time.monotonic()

    def _publish(self) -> None:
        for waiting, figure in self.registry.publish():
            self.server.answer(waiting, figure)
        self.registry.engines.forget_ended()
        for process in self._engines.new():
            self.registry.engine_found(process)
        self._snapshot = self._take_snapshot()

    def _save(self) -> float:
        """Writes the state; seconds it took."""
        began_s = time.monotonic()
        if self._options.state is not None:
            try:
                state.save(self._options.state, self.registry, self.sampler.at_ns)
            except OSError:
                self.incidents["STATE_NOT_SAVED"] += 1
        return time.monotonic() - began_s

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ends ``run`` on SIGTERM and SIGINT."""
        ours, kernels = socket.socketpair()
        for end in (ours, kernels):
            end.setblocking(False)
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        wakeup = signal.set_wakeup_fd(kernels.fileno(), warn_on_full_buffer=False)
        self.server.watch(ours.fileno(), lambda: None)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self.server.unwatch(ours.fileno())
            ours.close()
            kernels.close()

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopped = True

    def status(self, privileged: bool) -> dict[str, Any]:
        """What ``hello`` and ``status`` answer: the agent, what it reads, and to privileged clients its counts."""
        said: dict[str, Any] = {
            "agent": {
                "version": __version__,
                "host": os.uname().nodename,
                "pid": os.getpid(),
                "instance": self.registry.instance,
                "started_wall_ns": self._started_wall_ns,
            },
            "cpu_source": self._counter.source,
            "cpu_lower_bound": self._counter.lower_bound,
            "interval_s": self._interval_s,
            "min_window_s": 0.0 if privileged else PUBLISH_S,
            "calibrated": self.sampler.calibrated,
            "baseline": self.sampler.baseline_origin,
            "domains": [
                {
                    "id": domain.id,
                    "kind": domain.kind,
                    "source": domain.source,
                    "counted": domain.id not in self.sampler.uncounted,
                    "within": domain.within,
                    "events": list(domain.events),
                }
                for domain in self.sampler.all_domains
            ],
            "rejected": [
                {"code": error.code, "summary": error.summary, "remedy": error.remedy} for error in self.rejected
            ],
        }
        if privileged:
            said["counts"] = dict(self.registry.counts())
            said["incidents"] = dict(self._all_incidents())
        return said

    def _all_incidents(self) -> Counter[str]:
        spooling = Counter[str]() if self.spooling is None else self.spooling.incidents
        return self.incidents + self.server.incidents + self.sampler.problems + spooling

    def _take_snapshot(self) -> NodeSnapshot:
        sampler, counts = self.sampler, self.registry.counts()
        lines, calibrated = sampler.account.lines, sampler.calibrated
        gpus = [line for number, line in enumerate(lines) if number in sampler.gpus]
        return NodeSnapshot(
            host=os.uname().nodename,
            version=__version__,
            cpu_source=self._counter.source,
            started_wall_ns=self._started_wall_ns,
            domains=self._domain_snapshots(),
            tasks_uj=sum(line.tasks_uj for line in lines) if lines else None,
            overhead_uj=sum(line.overhead_uj for line in lines) if lines else None,
            idle_uj=sum(line.idle_uj for line in lines) if lines and calibrated else None,
            allocated_idle_uj=sum(line.allocated_idle_uj for line in gpus) if gpus else None,
            unattributed_uj=sum(line.unattributed_uj for line in lines) if lines else None,
            tasks_cpu_s=s_from_ns(sampler.account.cpu_ns[Role.TASK]),
            overhead_cpu_s=s_from_ns(sampler.account.cpu_ns[Role.OVERHEAD]),
            busy_cpu_s=s_from_ns(sampler.account.busy_ns),
            parties=len(sampler.account.parties),
            parties_refused=counts["refused"],
            clients=self.server.connections,
            samples=sampler.samples,
            samples_late=sampler.late,
            gaps=sampler.gaps,
            agent_cpu_s=time.process_time(),
            records_forwarded=0 if self.spooling is None else self.spooling.forwarded,
            incidents=dict(self._all_incidents()),
        )

    def _domain_snapshots(self) -> tuple[DomainSnapshot, ...]:
        sampler = self.sampler
        counted = dict(zip(sampler.account.domains, sampler.account.lines, strict=True))
        found = []
        for domain in sampler.all_domains:
            seen = counted.get(domain.id) or sampler.uncounted[domain.id]
            found.append(
                DomainSnapshot(
                    id=domain.id,
                    kind=domain.kind,
                    source=domain.source,
                    counted=domain.id in counted,
                    within=domain.within,
                    counter_uj=seen.counter_uj if seen.counted_ns else None,
                    power_w=sampler.power_w.get(domain.id),
                    gaps=sampler.gaps_by_domain[domain.id],
                )
            )
        return tuple(found)


def _raise_descriptor_limit() -> None:
    # A client takes two descriptors, and a thread's perf clock one: the soft limit is meant for programs that use select.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def notify_ready() -> None:
    """Tells the service manager that started us that we serve (sd_notify(3)); nothing where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


def default_socket() -> Path:
    """Where clients look first: the system's place for root, else the user's own.

    Raises:
        InputError: NO_RUNTIME_DIRECTORY, an ordinary user without one.
    """
    if os.geteuid() == 0:
        return Path("/run/tao-flows/agent.sock")
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isabs(runtime):
        raise InputError("NO_RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR is not set", "give --socket a path of your own")
    return Path(runtime, "tao-flows/agent.sock")
