"""Runs a command as if we were not there, and measures the CPU time and memory of everything it starts.

The command keeps our standard streams, descriptors, terminal and process group; it gets the signals we get, once;
and its end is our caller's to report. It is forked, held, put under the best counter there is (a control group of its
own, else the perf task clock, else what wait4 reports) and only then let go, so that all of it counts. Of ours, except
under perf, what the kernel does to replace a copy of us by the command counts too: a millisecond or two.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, Protocol

from tao_flows.errors import InputError, SourceError
from tao_flows.figures import CpuTime
from tao_flows.relay import SignalRelay, stop_like
from tao_flows.telemetry import cgroup, procfs
from tao_flows.telemetry.cgroup import CGROUP_ROOT, Leaf
from tao_flows.telemetry.cputime import TreePoll
from tao_flows.telemetry.perf import TaskClock
from tao_flows.telemetry.procfs import BYTES_PER_KIB, PROC_ROOT

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
_BY_SIGNAL: Final = 128
"""A shell's exit statuses (POSIX.1-2024, XCU 2.8.2): for no such command, for one that will not run, and what is added
to the number of the signal that ended it."""
_FIRST_SAMPLE_S: Final = 0.01
_SAMPLE_S: Final = 0.25
_SAMPLING_SHARE: Final = 0.01
"""Looking at the command may take this share of a processor; on a host with many processes it is done less often."""
_TERMINAL_STOPS: Final = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_GO: Final = b"!"
_LOST_SHARE: Final = 0.05
_LOST_S: Final = 0.01
"""A counter that is behind wait4 by more than this has lost processes."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended and what it used."""

    exit_code: int
    """The command's status, or as a shell would give it: 128 + n when signal n ended it, 127 when there is no such
    command, 126 when it will not run."""
    problem: str
    """Why it did not run, on one line, as a shell would say it; empty when it ran."""
    wall_s: float
    cpu: CpuTime
    resident_peak_bytes: int | None
    """Most memory resident at once in its processes. Pages they share count for each."""
    resident_mean_bytes: int | None
    pids: frozenset[int]
    """Every process of it that was seen."""
    events: tuple[str, ...]
    """Codes: why a better counter was not used, and what went wrong."""


class _Counter(Protocol):
    @property
    def source(self) -> str: ...
    def cpu_s(self) -> float | None: ...


def run_command(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    proc_root: Path = PROC_ROOT,
    cgroup_root: Path = CGROUP_ROOT,
    on_start: Callable[[int], object] = lambda _: None,
    on_sample: Callable[[Sequence[int]], object] = lambda _: None,
) -> CommandResult:
    """Runs a command to its end. To be called from the main thread; others may run meanwhile.

    Whatever goes wrong with measuring, the command runs and is waited for.

    Args:
        argv: the command and its arguments, looked up as a shell would.
        env: its environment; the one we were given by default.
        proc_root: where the kernel shows processes.
        cgroup_root: where the kernel shows control groups.
        on_start: called with the process's number at the last moment before the command is let go.
        on_sample: called with the command's processes every quarter of a second, and more often at first.

    Raises:
        InputError: there is no command.
        OSError: the process cannot be forked.
        ValueError: not called from the main thread.
    """
    if not argv or not argv[0]:
        raise InputError("NO_COMMAND", "there is no command to run", "give it after --")
    with SignalRelay() as relay:
        run = _Run(relay, proc_root)
        run.fork(argv, inherited_environment(proc_root) if env is None else env)
        try:
            run.attach(cgroup_root)
            run.guarded("ON_START_FAILED", on_start, run.pid)
            run.let_go()
            run.supervise(on_sample)
        finally:
            end = run.wait_for_the_end()
        return run.result(end)


@dataclass(frozen=True, slots=True)
class _End:
    """What there is to say when a command has ended, before its traces are removed."""

    status: int
    usage: resource.struct_rusage
    at_s: float
    counted_s: float | None
    group_peak_bytes: int | None


def inherited_environment(proc_root: Path = PROC_ROOT) -> dict[str, str]:
    """Our environment without what Python itself added: in the C locale it sets LC_CTYPE (PEP 538)."""
    env = dict(os.environ)
    try:
        given = (proc_root / "self/environ").read_bytes().split(b"\0")
    except OSError:
        return env
    if not any(variable.startswith(b"LC_CTYPE=") for variable in given):
        env.pop("LC_CTYPE", None)
    return env


class _Run:
    """One run of one command, from fork to result."""

    def __init__(self, relay: SignalRelay, proc_root: Path) -> None:
        self._relay = relay
        self._proc_root = proc_root
        self._name = ""
        self._pid = 0
        self._go = self._failed = -1
        self._leaf: Leaf | None = None
        self._counter: _Counter | None = None
        self._poll: TreePoll | None = None
        self._problem: tuple[int, str] | None = None
        self._events: dict[str, None] = {}
        self._memory = _Memory()
        self._pids: set[int] = set()
        self._held_s = self._held_counted_s = 0.0
        self._started_s = 0.0
        self._end: _End | None = None

    def fork(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Makes the process that will be the command, and holds it."""
        self._name = argv[0]
        candidates = _candidates(argv[0], env)
        go, self._go = os.pipe2(os.O_CLOEXEC)
        self._failed, failed = os.pipe2(os.O_CLOEXEC)
        try:
            self._pid = os.fork()
            if self._pid == 0:
                os.close(self._go)
                self._relay.restore_in_child()
                _become(_Program(candidates, list(argv), dict(env)), go, failed, self._relay.let_in)
        except OSError:
            os.close(self._go)
            os.close(self._failed)
            raise
        finally:
            os.close(go)
            os.close(failed)
        self._pids.add(self._pid)
        self._relay.watch(self._pid)

    @property
    def pid(self) -> int:
        """The command's process."""
        return self._pid

    def attach(self, cgroup_root: Path) -> None:
        """Puts the held process under the best counter there is."""
        counters: tuple[Callable[[], _Counter], ...] = (lambda: self._join_leaf(cgroup_root), self._open_task_clock)
        self._counter = next((counter for attach in counters if (counter := self._attached(attach)) is not None), None)
        if self._counter is None:
            # Looking at the processes from time to time sees orphans, which wait4 never hears of.
            self._poll = TreePoll(self._pid, self._proc_root)
            self._poll.sample()

    def _attached(self, attach: Callable[[], _Counter]) -> _Counter | None:
        try:
            return attach()
        except SourceError as error:
            self._events[error.code] = None
        except Exception as error:  # noqa: BLE001 - the command runs, whatever counting comes to
            self._events[f"INTERNAL:{type(error).__name__}"] = None
        return None

    def _join_leaf(self, cgroup_root: Path) -> _Counter:
        leaf = Leaf(cgroup.own_group(cgroup_root, self._proc_root), self._proc_root)
        try:
            leaf.join(self._pid)
        except Exception:
            leaf.close()
            raise
        self._leaf = leaf
        return leaf

    def _open_task_clock(self) -> _Counter:
        return TaskClock(self._pid, on_exec=True, proc_root=self._proc_root)

    def guarded(self, code: str, call: Callable[..., object], *args: object) -> None:
        """Calls back; an exception there is an event here."""
        try:
            call(*args)
        except Exception:  # noqa: BLE001 - the command runs on, whatever the caller makes of it
            self._events[code] = None

    def let_go(self) -> None:
        """Lets the process become the command, and returns when it has or cannot."""
        self._held_s = _process_clock_s(self._pid)
        self._held_counted_s = (None if self._counter is None else self._counter.cpu_s()) or 0.0
        self._started_s = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # killed before it ran
            os.write(self._go, _GO)
        raw = os.read(self._failed, 16)
        if raw:
            self._problem = _problem(self._name, int(raw))

    def supervise(self, on_sample: Callable[[Sequence[int]], object]) -> None:
        """Passes on signals and takes samples until the command has ended."""
        interval_s = _FIRST_SAMPLE_S
        due_s = self._started_s + interval_s
        while not self._ended():
            self._relay.wait(due_s - time.monotonic())
            if time.monotonic() < due_s:
                continue
            cost_s = -time.thread_time()
            self.guarded("SAMPLE_FAILED", self._sample, on_sample)
            cost_s += time.thread_time()
            interval_s = max(min(2 * interval_s, _SAMPLE_S), cost_s / _SAMPLING_SHARE)
            due_s = time.monotonic() + interval_s

    def _sample(self, on_sample: Callable[[Sequence[int]], object]) -> None:
        if self._poll is not None:
            self._poll.sample()
        pids = () if self._leaf is None else self._leaf.pids()
        if self._pid not in pids:  # no group of its own, or it has left it
            pids = (*pids, *procfs.tree(self._pid, self._proc_root))
        self._pids.update(pids)
        self._memory.add(time.monotonic() - self._started_s, procfs.resident_bytes(pids, self._proc_root))
        on_sample(pids)

    def _ended(self) -> bool:
        pid, status, usage = os.wait4(self._pid, os.WNOHANG | os.WUNTRACED)
        if pid and os.WIFSTOPPED(status):
            if os.WSTOPSIG(status) in _TERMINAL_STOPS:
                stop_like(self._pid)
        elif pid:
            self._end = self._ending(status, usage)
        return self._end is not None

    def _ending(self, status: int, usage: resource.struct_rusage) -> _End:
        at_s = time.monotonic()
        counted_s = None if self._counter is None else self._counter.cpu_s()
        return _End(status, usage, at_s, counted_s, None if self._leaf is None else self._leaf.memory_peak_bytes())

    def wait_for_the_end(self) -> _End:
        """Waits for a command that has not ended yet, and gives back what held it."""
        os.close(self._go)
        os.close(self._failed)
        if self._end is None:
            _, status, usage = os.wait4(self._pid, 0)
            self._end = self._ending(status, usage)
        if self._leaf is not None and not self._leaf.close():
            self._events["CGROUP_LEFT_WITH_PROCESSES"] = None
        return self._end

    def result(self, end: _End) -> CommandResult:
        """What came of it."""
        code = os.waitstatus_to_exitcode(end.status)
        exit_code, problem = self._problem or (code if code >= 0 else _BY_SIGNAL - code, "")
        cpu = self._cpu(end)
        return CommandResult(
            exit_code=exit_code,
            problem=problem,
            wall_s=end.at_s - self._started_s,
            cpu=cpu,
            resident_peak_bytes=self._peak_bytes(end),
            resident_mean_bytes=self._memory.mean_bytes,
            pids=frozenset(self._pids),
            events=tuple(self._events),
        )

    def _cpu(self, end: _End) -> CpuTime:
        waited_s = max(0.0, end.usage.ru_utime + end.usage.ru_stime - self._held_s)
        if self._counter is not None and end.counted_s is not None:
            counted_s = end.counted_s - self._held_counted_s
            if counted_s >= waited_s * (1 - _LOST_SHARE) - _LOST_S:
                return CpuTime(counted_s, self._counter.source, covers_children=True)
            # It left its group (as under sudo or a container runtime), or has privileges that perf may not look at.
            self._events[f"{self._counter.source.upper()}_LOST_PROCESSES"] = None
        polled = None if self._poll is None else self._poll.sample()
        if polled is not None and polled.cpu_s is not None and polled.cpu_s > waited_s + _LOST_S:
            return polled
        return CpuTime(waited_s, "wait4", covers_children=True, lower_bound=True)

    def _peak_bytes(self, end: _End) -> int | None:
        # wait4's peak is that of one process, and starts from the copy of us that the command was forked from.
        ours_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        largest_bytes = end.usage.ru_maxrss * BYTES_PER_KIB if end.usage.ru_maxrss > ours_kib else None
        peaks = (self._memory.peak_bytes, end.group_peak_bytes, largest_bytes)
        return max((peak for peak in peaks if peak is not None), default=None)


class _Memory:
    """Peak and time-weighted mean of samples, each standing for the time since the one before."""

    def __init__(self) -> None:
        self.peak_bytes: int | None = None
        self._byte_s = self._at_s = self._known_s = 0.0

    def add(self, at_s: float, size_bytes: int | None) -> None:
        """Takes in a sample, ``at_s`` seconds after the start."""
        elapsed_s, self._at_s = at_s - self._at_s, at_s
        if size_bytes is not None:
            self.peak_bytes = max(size_bytes, self.peak_bytes or 0)
            self._byte_s += size_bytes * elapsed_s
            self._known_s += elapsed_s

    @property
    def mean_bytes(self) -> int | None:
        """Mean over the time that was sampled; None when none was."""
        return round(self._byte_s / self._known_s) if self._known_s > 0 else None


@dataclass(frozen=True, slots=True)
class _Program:
    candidates: Sequence[str]
    argv: list[str]
    env: dict[str, str]

    def replace_this(self) -> int:
        """Becomes the first candidate that runs, or returns the number of the error."""
        number = errno.ENOENT
        for path in self.candidates:
            refusal = _execute(path, self.argv, self.env)
            if refusal == errno.ENOEXEC:
                # As execvp(3): a file without a header is a shell's.
                refusal = _execute("/bin/sh", ["/bin/sh", path, *self.argv[1:]], self.env)
            if refusal not in {errno.ENOENT, errno.ENOTDIR}:
                number = refusal  # as execvp(3): that one may not be run outweighs that others are not there
        return number


def _execute(path: str, argv: list[str], env: dict[str, str]) -> int:
    try:
        os.execve(path, argv, env)
    except OSError as error:
        return error.errno or errno.EINVAL


def _become(program: _Program, go: int, failed: int, let_signals_in: Callable[[], None]) -> NoReturn:
    # Only this thread exists here, and what other threads had locked stays locked: nothing but system calls is made.
    try:
        if os.read(go, len(_GO)) == _GO:
            let_signals_in()
            os.write(failed, b"%d" % program.replace_this())
    finally:
        os._exit(NOT_EXECUTABLE)


def _candidates(name: str, env: Mapping[str, str]) -> list[str]:
    if "/" in name:
        return [name]
    paths = (os.path.join(directory, name) for directory in os.get_exec_path(env))
    # A shell passes over directories that it may not search, for which execve would say that permission is denied.
    return [path for path in paths if os.path.isfile(path)]


def _problem(name: str, number: int) -> tuple[int, str]:
    if number == errno.ENOENT:
        return NOT_FOUND, f"{name}: {'no such file, or no interpreter for it' if '/' in name else 'command not found'}"
    if number == errno.EACCES and os.path.isdir(name):
        number = errno.EISDIR
    return NOT_EXECUTABLE, f"{name}: {os.strerror(number)}"


def _process_clock_s(pid: int) -> float:
    # The number of another process's CPU clock, as clock_getcpuclockid(3) makes it.
    scheduled = 2
    try:
        return time.clock_gettime((~pid << 3) | scheduled)
    except OSError:
        return 0.0
