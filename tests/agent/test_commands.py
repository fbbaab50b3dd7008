"""Commands side by side, storms of short-lived processes and orphans: joules against the counters' truth."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_support import DRAM, PACKAGE, REFUSE_PERF, Agent, Client, assert_sums, domain, eventually

from tao_flows.errors import SourceError
from tao_flows.telemetry import cgroup
from tao_flows.telemetry.cgroup import Leaf
from tao_flows.units import NS_PER_S

WORK = """
import os, time
def burn(s):
    end = time.thread_time() + s
    while time.thread_time() < end: pass
def forks(number, s):
    for _ in range(number):
        pid = os.fork()
        if not pid: burn(s); os._exit(0)
        os.waitpid(pid, 0)
def orphans(number, s):
    for _ in range(number):
        pid = os.fork()
        if not pid:
            if not os.fork(): burn(s)
            os._exit(0)
        os.waitpid(pid, 0)
"""


class Command:
    """A command that waits until it is registered, works, and waits for its end."""

    def __init__(self, code: str) -> None:
        command = [sys.executable, "-S", "-c", f"{WORK}\ninput()\n{code}\nprint('done', flush=True); input()"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self) -> None:
        print(file=self.process.stdin, flush=True)

    def wait(self) -> None:
        assert self.process.stdout.readline() == "done\n"

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    started: list[Command] = []
    yield started
    for each in started:
        each.close()


@pytest.fixture
def leaf() -> Iterator[Leaf]:
    try:
        leaf = Leaf(cgroup.own_group())
    except SourceError as error:
        pytest.skip(str(error))
    yield leaf
    eventually(leaf.close)


@pytest.fixture(scope="module")
def perf_agent(directory: Path, host) -> Iterator[Agent]:
    agent = Agent(directory / "perf", host, "--no-bpf")
    yield agent
    agent.close()


@pytest.fixture(scope="module")
def polling_agent(directory: Path, host) -> Iterator[Agent]:
    agent = Agent(directory / "polling", host, "--no-bpf", wrapper=(sys.executable, str(REFUSE_PERF), "1"))
    yield agent
    agent.close()


def test_of_two_commands_one_busy_and_one_asleep_the_sleeper_has_nothing_and_the_sums_are_the_counters(
    agent, host, commands
):
    commands += [Command("burn(0.7)"), Command("time.sleep(0.7)")]
    with Client(agent.socket) as one, Client(agent.socket) as other:
        with host.paused():
            truth_uj = dict(host.moved_uj)
            windows = [
                client.begin("command", pid=command.process.pid)
                for client, command in zip((one, other), commands, strict=True)
            ]
        for command in commands:
            command.start()
        for command in commands:
            command.wait()
        with host.paused():
            busy, asleep = (client.end(window) for client, window in zip((one, other), windows, strict=True))
            truth_uj = {zone: moved_uj - truth_uj[zone] for zone, moved_uj in host.moved_uj.items()}
    assert busy["cpu_source"] == "ebpf"
    assert busy["cpu_ns"] / NS_PER_S == pytest.approx(0.7, rel=0.05, abs=0.05)
    assert not busy["lower_bound"]
    for figure in (busy, asleep):
        assert_sums(figure)
        for name, zone in (("package-0", PACKAGE), ("package-0/dram", DRAM)):
            assert domain(figure, name)["counter_uj"] == truth_uj[zone]
            assert domain(figure, name)["known"] == 1.0
            assert "idle_uj" not in domain(figure, name)  # not calibrated: unknown, never zero
    for name in ("package-0", "package-0/dram"):
        theirs, its = domain(busy, name), domain(asleep, name)
        assert its["task_uj"] < 0.01 * theirs["counter_uj"]
        assert theirs["task_uj"] > 10 * its["task_uj"]
        assert theirs["task_uj"] + its["task_uj"] + its["overhead_uj"] <= theirs["counter_uj"]


def _charged_and_true(agent: Agent, leaf: Leaf, command: Command) -> tuple[dict, float]:
    with Client(agent.socket) as client:
        leaf.join(command.process.pid)
        before_s = leaf.cpu_s()
        window = client.begin("command", pid=command.process.pid)
        command.start()
        command.wait()
        eventually(lambda: _alone(leaf, command.process.pid))
        time.sleep(0.02)
        truth_s = leaf.cpu_s() - before_s
        figure = client.end(window)
    assert_sums(figure)
    return figure, truth_s


def _alone(leaf: Leaf, pid: int) -> bool:
    return all(other == pid or _state(other) in "ZX" for other in leaf.pids())


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


@pytest.mark.parametrize("code", ["forks(200, 0.004)", "orphans(150, 0.004)"])
def test_a_storm_of_short_processes_is_charged_as_its_control_group_is(agent, leaf, commands, code):
    commands.append(Command(code))
    figure, truth_s = _charged_and_true(agent, leaf, commands[0])
    assert truth_s > 0.5
    assert figure["cpu_ns"] / NS_PER_S == pytest.approx(truth_s, rel=0.02, abs=0.02)
    assert not figure["lower_bound"]


@pytest.mark.parametrize("code", ["forks(150, 0.004)", "orphans(100, 0.004)"])
def test_perf_clocks_see_such_a_storm_too(perf_agent, leaf, commands, code):
    commands.append(Command(code))
    figure, truth_s = _charged_and_true(perf_agent, leaf, commands[0])
    assert figure["cpu_source"] == "perf"
    assert not figure["lower_bound"]
    # A clock ends when its thread exits, and what the kernel has still to tidy up then is not in it.
    assert figure["cpu_ns"] / NS_PER_S == pytest.approx(truth_s, rel=0.15, abs=0.03)


def test_an_agent_with_neither_bpf_nor_perf_says_that_its_figures_are_lower_bounds(polling_agent, leaf, commands):
    commands.append(Command("burn(0.4)"))
    figure, truth_s = _charged_and_true(polling_agent, leaf, commands[0])
    assert figure["cpu_source"] == "polling"
    assert figure["lower_bound"]
    assert 0.3 < figure["cpu_ns"] / NS_PER_S <= 1.02 * truth_s + 0.02
    assert domain(figure)["high_uj"] > domain(figure)["task_uj"]
    with Client(polling_agent.socket) as client:
        assert client.about["cpu_lower_bound"]
        assert [each["code"] for each in client.about["rejected"]] == ["PERF_SECCOMP"]


def test_a_command_that_measures_itself_is_in_the_figure_of_who_started_it_once(agent, driver, client):
    outer = driver()
    inner_window = client.begin("command", pid=outer.pid)
    outer.hello("none")
    thread = outer.do("thread", cpu_s=0.3)
    task = outer.begin("thread", tid=thread)
    cpu_s = outer.do("work", number=0)
    figure = outer.end(task)
    outer.kill()
    eventually(lambda: client.status()["counts"]["clients"] == 1)
    whole = client.end(inner_window)
    assert_sums(figure)
    assert_sums(whole)
    assert figure["cpu_ns"] / NS_PER_S == pytest.approx(cpu_s, rel=0.05, abs=0.03)
    assert figure["cpu_ns"] <= whole["cpu_ns"] <= figure["cpu_ns"] + 0.4 * NS_PER_S
    assert domain(whole)["task_uj"] >= domain(figure)["task_uj"]


def test_the_same_command_can_be_measured_twice_at_once_in_either_order_of_ends(agent, client, commands):
    commands.append(Command("burn(0.2)"))
    pid = commands[0].process.pid
    outer, inner = client.begin("command", pid=pid), client.begin("command", pid=pid)
    third = client.begin("command", pid=pid)
    commands[0].start()
    commands[0].wait()
    figures = [client.end(window) for window in (inner, outer, third)]
    for figure in figures:
        assert_sums(figure)
        assert figure["cpu_ns"] / NS_PER_S == pytest.approx(0.2, rel=0.05, abs=0.04)
    assert client.status()["counts"]["windows"] == 0


def test_what_outlives_its_commands_window_is_in_no_later_window(agent, client, driver):
    inner = driver()
    window = client.begin("command", pid=inner.pid)
    inner.hello("none")  # a client inside the command
    client.end(window)
    # The party's number is free again, and the next window may have it.
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    other = client.begin("command", pid=child.pid)
    task = inner.begin("thread", tid=inner.do("thread", cpu_s=0.3))
    inner.do("work", number=0)
    assert inner.end(task)["cpu_ns"] > 0.2 * NS_PER_S
    inner.kill()
    eventually(lambda: client.status()["counts"]["clients"] == 1)
    figure = client.end(other)
    child.communicate()
    assert figure["cpu_ns"] < 0.1 * NS_PER_S


def test_a_process_that_is_a_client_itself_is_not_registered_from_outside(agent, client, driver):
    inner = driver()
    inner.hello("none")
    answer = client.ask("begin", kind="command", label="x", pid=inner.pid)
    assert answer["code"] == "COUNTS_ITSELF"
    assert os.path.exists(f"/proc/{inner.pid}")
