"""Loads of known CPU time and energy, as each tool accounts for them."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from peers.libraries import CORE_W
from peers.loads import __file__ as LOADS  # noqa: N812 - a constant here
from peers.truth import Group, Node, Stage
from peers.worker import Worker, settings

from tao_flows.testing import PowercapTree

NO_PERF: Final = Path(__file__).parents[2] / "tests" / "unit" / "_refuse_perf.py"
READY_S: Final = 20.0
TAO_FLOWS: Final = (sys.executable, "-c", "from tao_flows.cli import main; main()")


@dataclass(frozen=True)
class Case:
    """Loads that run at once, each with a window of its own around it."""

    title: str
    loads: tuple[tuple[str, ...], ...]
    quick: tuple[tuple[str, ...], ...]
    energy: bool = False
    """Whether it is shown who is charged for what."""


CASES: Final = {
    "burn": Case("(a) a burn of 2 s", (("burn", "2"),), (("burn", "0.5"),)),
    "forks": Case("(b) 1,000 forks of 4 ms", (("forks", "1000", "0.004"),), (("forks", "100", "0.004"),)),
    "orphans": Case(
        "(c) 200 double-forked orphans of 10 ms", (("orphans", "200", "0.01"),), (("orphans", "40", "0.01"),)
    ),
    "shared": Case(
        "(d) two tasks sharing a core", (("shared", "2"), ("shared", "1")), (("shared", "0.6"), ("shared", "0.3")), True
    ),
    "asleep": Case(
        "(e) one busy, one asleep", (("burn", "2"), ("asleep", "2")), (("burn", "0.5"), ("asleep", "0.5")), True
    ),
}


@dataclass(frozen=True)
class Tool:
    """How one tool is put around loads."""

    title: str
    distribution: str
    row: str = ""
    """The library's row; a command's meter has none."""
    agent: tuple[str, ...] | None = None
    """The options of the agent that serves it, if one does."""
    env: dict[str, str] = field(default_factory=dict)
    without_perf: bool = False
    cpu: bool = True
    """Whether it tells CPU time."""


_NOWHERE: Final = {"TAO_FLOWS_CGROUP_ROOT": "/nonexistent"}
TOOLS: Final = {
    "agent-ebpf": Tool("tao-flows meter, agent (eBPF)", "tao-flows", agent=()),
    "agent-perf": Tool("tao-flows meter, agent --no-bpf", "tao-flows", agent=("--no-bpf",)),
    "meter": Tool("tao-flows meter", "tao-flows"),
    "meter-perf": Tool("tao-flows meter, no cgroup", "tao-flows", env=_NOWHERE),
    "meter-wait4": Tool("tao-flows meter, no cgroup, no perf", "tao-flows", env=_NOWHERE, without_perf=True),
    "measure": Tool("tao-flows measure()", "tao-flows", row="tao-flows"),
    "codecarbon": Tool("codecarbon", "codecarbon", row="codecarbon-task", cpu=False),
    "codecarbon-process": Tool("codecarbon, process mode", "codecarbon", row="codecarbon-process", cpu=False),
    "codecarbon-share": Tool("codecarbon, process mode, told the watts", "codecarbon", row="codecarbon-share"),
    "zeus": Tool("zeus", "zeus", row="zeus", cpu=False),
    "pyrapl": Tool("pyRAPL", "pyRAPL", row="pyrapl", cpu=False),
    "pyjoules": Tool("pyJoules", "pyJoules", row="pyjoules", cpu=False),
    "carbontracker": Tool("carbontracker", "carbontracker", row="carbontracker", cpu=False),
}


@dataclass(frozen=True)
class Setting:
    """Where it all happens."""

    tree: PowercapTree
    node: Node
    scratch: Path
    groups: Path
    quick: bool


def charge(name: str, setting: Setting) -> dict[str, Any]:
    """Runs every case that the tool has a figure for."""
    tool, cases = TOOLS[name], {}
    with ExitStack() as stack:
        try:
            run: Callable[[Sequence[Sequence[str]]], dict[str, Any]]
            if tool.row:
                run = stack.enter_context(_libraries(tool, setting))
            else:
                env = dict(tool.env)
                if tool.agent is not None:
                    env["TAO_FLOWS_AGENT"] = str(
                        stack.enter_context(agent(setting.tree.root, setting.scratch, tool.agent)).socket
                    )
                run = _Meters(tool, setting, env)
            for case_name, case in CASES.items():
                if tool.cpu or case.energy:
                    cases[case_name] = run(case.quick if setting.quick else case.loads)
        except (RuntimeError, OSError) as error:
            return {"cases": cases, "failed": str(error)}
    return {"cases": cases}


def _task(load: Sequence[str], truth_cpu_s: float, **said: Any) -> dict[str, Any]:
    return {"load": " ".join(load), "truth_cpu_s": truth_cpu_s, "truth_j": truth_cpu_s * CORE_W, **said}


@contextmanager
def _libraries(tool: Tool, setting: Setting) -> Iterator[Callable[[Sequence[Sequence[str]]], dict[str, Any]]]:
    """A process of the library for each of two loads, in a group of its own: what the library uses is the load's."""
    with ExitStack() as stack:
        workers: list[Worker] = []
        inside: list[Group] = []
        for number in range(2):
            scratch = setting.scratch / f"{tool.row}-{number}"
            scratch.mkdir(exist_ok=True)
            worker = Worker(tool.row, setting.tree.root, scratch, private=True)
            group = Group.around(worker.pid, setting.groups)
            stack.callback(group.remove)
            stack.callback(worker.end)
            workers.append(worker)
            inside.append(group)
        for worker in workers:
            worker.ask()
            worker.settle()

        def run(loads: Sequence[Sequence[str]]) -> dict[str, Any]:
            used = list(zip(loads, workers, inside, strict=False))
            drawn_uj, before_s = setting.node.drawn_uj, [group.cpu_s() for _, _, group in used]
            for load, worker, _ in used:
                worker.tell(" ".join(("load", *load)))
            said = [worker.hear() for _, worker, _ in used]
            tasks = [
                _task(load, group.cpu_s() - cpu_s, **answer)
                for (load, _, group), cpu_s, answer in zip(used, before_s, said, strict=True)
            ]
            return {"tasks": tasks, "drawn_j": (setting.node.drawn_uj - drawn_uj) / 1e6}

        yield run


class _Meters:
    """A ``tao-flows meter`` for each load."""

    def __init__(self, tool: Tool, setting: Setting, env: dict[str, str]) -> None:
        self._tool, self._setting, self._env = tool, setting, env

    def __call__(self, loads: Sequence[Sequence[str]]) -> dict[str, Any]:
        setting = self._setting
        with ExitStack() as stack:
            stages, inside, meters = [], [], []
            for number, load in enumerate(loads):
                stage = Stage(setting.scratch, f"task-{number}")
                meters.append(stack.enter_context(self._meter(number, stage.command(_program(load)))))
                group = stage.enter(setting.groups)
                stack.callback(group.remove)
                stack.callback(stage.close)
                stages.append(stage)
                inside.append(group)
            drawn_uj = setting.node.drawn_uj
            for stage in stages:
                stage.let_go()
            statuses = [meter.wait() for meter in meters]
            if any(statuses):
                raise RuntimeError(f"tao-flows meter ended with {max(statuses)}")
            tasks = []
            for number, (load, group) in enumerate(zip(loads, inside, strict=True)):
                said = json.loads((setting.scratch / f"task-{number}.json").read_text())
                tasks.append(
                    _task(
                        load, group.cpu_s(), cpu_s=said["cpu_s"], cpu_source=said["cpu_source"],
                        energy_j=said["energy"]["value_j"], account=said["account"], events=said["events"],
                    )
                )  # fmt: skip
            return {"tasks": tasks, "drawn_j": (setting.node.drawn_uj - drawn_uj) / 1e6}

    @contextmanager
    def _meter(self, number: int, command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
        setting = self._setting
        report = setting.scratch / f"task-{number}.json"
        argv = [*TAO_FLOWS, "meter", "--json", str(report), "--", *command]
        if self._tool.without_perf:
            argv = [sys.executable, "-I", str(NO_PERF), str(errno.EPERM), *argv]
        env = settings(setting.tree.root, setting.scratch, f"meter-{number}") | self._env
        meter = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield meter
        finally:
            if meter.poll() is None:
                meter.kill()
                meter.wait()


def _program(load: Sequence[str]) -> tuple[str, ...]:
    return ("sleep", load[1]) if load[0] == "asleep" else (sys.executable, "-I", "-S", LOADS, *load)


@dataclass(frozen=True)
class RunningAgent:
    pid: int
    socket: Path


@contextmanager
def agent(tree: Path, scratch: Path, options: Sequence[str]) -> Iterator[RunningAgent]:
    """An agent that reads this tree, until the end of the block.

    Raises:
        RuntimeError: it does not start.
    """
    directory, log = scratch / "agent", scratch / "agent.err"
    directory.mkdir(mode=0o700, exist_ok=True)
    socket = directory / "agent.sock"
    argv = [*TAO_FLOWS, "agent", "--socket", str(socket), *options]
    with log.open("wb") as errors:
        process = subprocess.Popen(argv, env=settings(tree, scratch, "agent"), stderr=errors)
    try:
        give_up_s = time.monotonic() + READY_S
        while b" ready at " not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > give_up_s:
                said = log.read_text(errors="replace").strip().splitlines()
                raise RuntimeError(f"the agent does not start: {said[-1] if said else 'without a word'}")
            time.sleep(0.05)
        yield RunningAgent(process.pid, socket)
    finally:
        process.terminate()
        process.wait()
