"""Counters that wrap, are reset, vanish, mirror each other or lie inside one another, and GPUs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_support import DRAM, PACKAGE, Agent, Client, Driver, Host, assert_sums, burn, domain, eventually

from tao_flows import calibration
from tao_flows.calibration import Baseline, DomainBaseline
from tao_flows.testing import INTEL_RANGE_UJ

FAKE_NVML = Path(__file__).parents[1] / "fakes" / "nvml" / "fake_nvml.c"
DIE = "intel-rapl:1"
CORE = "intel-rapl:0:1"
PSYS = "intel-rapl:2"


@pytest.fixture(scope="module")
def host(directory: Path) -> Iterator[Host]:
    """A package with a core zone, and a psys."""
    host = Host(directory / "host")
    with host.paused():
        host.tree.add_zone(CORE, "core")
        host.tree.add_zone(PSYS, "psys")
        host.watts |= {CORE: 20.0, PSYS: 80.0}
    yield host
    host.close()


def test_a_counter_that_wraps_loses_nothing(agent, host, client):
    with host.paused():
        host.tree.set(PACKAGE, INTEL_RANGE_UJ - 40_000_000)
    time.sleep(0.3)  # the agent has read it there
    with host.paused():
        window, before_uj = client.begin("thread", tid=threading.get_native_id()), host.moved_uj[PACKAGE]
    eventually(lambda: host.tree.energy_uj(PACKAGE) < INTEL_RANGE_UJ // 2)
    with host.paused():
        figure, after_uj = client.end(window), host.moved_uj[PACKAGE]
    assert_sums(figure)
    assert domain(figure)["counter_uj"] == after_uj - before_uj
    assert domain(figure)["known"] == 1.0


def test_a_reset_is_a_gap_that_is_said_and_what_was_read_before_and_after_stays(agent, host, client):
    window = client.begin("thread", tid=threading.get_native_id())
    before_uj = host.moved_uj[PACKAGE]
    burn(0.3)
    with host.paused():
        host.tree.set(PACKAGE, 0)
    burn(0.3)
    figure = client.end(window)
    true_uj = host.moved_uj[PACKAGE] - before_uj
    assert_sums(figure)
    assert 0.3 * true_uj < domain(figure)["counter_uj"] < true_uj
    assert 0.5 < domain(figure)["known"] < 1.0
    assert domain(figure, "package-0/dram")["known"] == 1.0


def test_a_zone_that_vanishes_and_returns_is_a_gap(agent, host, client):
    window = client.begin("thread", tid=threading.get_native_id())
    before_uj = host.moved_uj[DRAM]
    burn(0.3)
    with host.paused():
        value_uj = host.tree.energy_uj(DRAM)
        host.tree.vanish(DRAM)
        time.sleep(0.35)  # the agent reads while it is away
        host.tree.add_zone(DRAM, "dram", value_uj)
    burn(0.3)
    figure = client.end(window)
    assert_sums(figure)
    dram = domain(figure, "package-0/dram")
    assert 0.3 < dram["known"] < 0.9
    assert 0 < dram["counter_uj"] < host.moved_uj[DRAM] - before_uj
    assert domain(figure)["known"] == 1.0
    agent.assert_well()


def test_core_and_psys_are_shown_to_the_privileged_and_in_no_sum(agent, host, client):
    window = client.begin("thread", tid=threading.get_native_id())
    burn(0.2)
    figure = client.end(window)
    for name in ("package-0/core", "psys"):
        shown = domain(figure, name)
        assert shown["counter_uj"] > 0
        assert "task_uj" not in shown
    assert not {each["id"] for each in client.about["domains"] if each["counted"]} & {"package-0/core", "psys"}
    with Driver(agent.socket, uid=65_534) as stranger:
        stranger.hello("none")
        figure = stranger.end(stranger.begin("thread", tid=stranger.do("own")["tid"]))
        assert {each["id"] for each in figure["domains"]} == {"package-0", "package-0/dram"}


def test_a_die_that_mirrors_another_is_counted_once(directory, tmp_path):
    host = Host(tmp_path / "host")
    with host.paused():
        for zone, name in ((PACKAGE, "package-0-die-0"), (DIE, "package-0-die-1")):
            if zone == DIE:
                host.tree.add_zone(DIE, name, host.tree.energy_uj(PACKAGE))
            (host.tree.path(zone) / "name").write_text(f"{name}\n")
        host.watts[DIE] = host.watts[PACKAGE]
    agent = None
    try:
        agent = Agent(directory / "mirror", host)
        with Client(agent.socket) as client:
            counted = {each["id"]: each["counted"] for each in client.about["domains"]}
            window = client.begin("thread", tid=threading.get_native_id())
            figure = client.end(window)
            assert_sums(figure)
        assert counted == {"package-0-die-0": True, "package-0-die-0/dram": True, "package-0-die-1": False}
    finally:
        if agent is not None:
            agent.close()
        host.close()


class Gpu:
    """The fake driver's state: one GPU whose energy a thread moves."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.energy_mj, self.watts, self.pids, self.used = 1000.0, 200.0, "", "none"
        self._stop = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._move, daemon=True)
        self._thread.start()

    def _move(self) -> None:
        last_s = time.monotonic()
        while not self._stop.wait(0.02):
            now_s = time.monotonic()
            self.energy_mj += self.watts * 1000 * (now_s - last_s)
            last_s = now_s
            self._write()

    def _write(self) -> None:
        held = f"pids0 {self.pids}\n" if self.pids else ""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"count 1\nenergy0 {int(self.energy_mj)}\n{held}util0 {self.used}\n")
        fresh.replace(self._file)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module")
def gpu_agent(directory: Path, host: Host, tmp_path_factory) -> Iterator[tuple[Agent, Gpu]]:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: the fake libnvidia-ml.so.1 cannot be built")
    place = tmp_path_factory.mktemp("nvml")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", place / "libnvidia-ml.so.1", FAKE_NVML], check=True)
    gpu = Gpu(place / "state")
    env = {"LD_LIBRARY_PATH": str(place), "FAKE_NVML_STATE": str(place / "state")}
    agent = Agent(directory / "gpu", host, env=env)
    yield agent, gpu
    agent.close()
    gpu.close()


def _held(
    agent: Agent, gpu: Gpu, pids: list[int], used: str, windows_of: list[int], after_s: float = 1.2
) -> list[dict]:
    """The figures of commands while these processes hold the GPU, from some time after the driver has said so."""
    gpu.pids, gpu.used = ",".join(map(str, pids)), used
    time.sleep(after_s)  # slots that began before are over
    with Client(agent.socket) as client:
        windows = [client.begin("command", pid=pid) for pid in windows_of]
        time.sleep(1.5)
        return [client.end(window) for window in windows]


def test_a_gpu_is_who_holds_its_alone_shared_by_use_and_idle_while_it_is_only_held(gpu_agent):
    agent, gpu = gpu_agent
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    one, two = (child.pid for child in children)
    try:
        (alone,) = _held(agent, gpu, [one], f"{one}:80", [one])
        assert_sums(alone)
        assert domain(alone, "gpu-0")["quality"] == "measured"
        assert domain(alone, "gpu-0")["task_uj"] == domain(alone, "gpu-0")["counter_uj"] > 0
        shared = _held(agent, gpu, [one, two], f"{one}:60,{two}:20", [one, two])
        for figure in shared:
            assert_sums(figure)
        a, b = (domain(figure, "gpu-0") for figure in shared)
        assert a["quality"] == "attributed"
        assert a["task_uj"] == pytest.approx(3 * b["task_uj"], rel=0.3)
        assert a["task_uj"] + b["task_uj"] <= max(a["counter_uj"], b["counter_uj"])
        (idle,) = _held(agent, gpu, [one], "none", [one], after_s=2.5)
        assert_sums(idle)
        assert domain(idle, "gpu-0")["allocated_idle_uj"] > 0.3 * domain(idle, "gpu-0")["counter_uj"]
        (nobodys,) = _held(agent, gpu, [], "none", [one])
        assert_sums(nobodys)
        assert domain(nobodys, "gpu-0")["task_uj"] == 0
        assert domain(nobodys, "gpu-0")["unattributed_uj"] > 0
        agent.assert_well()
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_a_calibrated_host_has_an_idle_line_and_the_sum_holds(directory, host):
    file = directory / "idle.json"
    powers = {"package-0": DomainBaseline(20.0, 1.0, 100)}
    calibration.store(Baseline(calibration.Host.this(), time.time_ns(), 60.0, 0.01, 100, 100, powers), file)
    agent = Agent(directory / "calibrated", host, env={"TAO_FLOWS_CALIBRATION": str(file)})
    try:
        with Client(agent.socket) as client:
            assert client.about["calibrated"]
            # Not in this process, which has the thread that moves the counters: a counter that stands still is no idle.
            window = client.begin("process")
            subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
            time.sleep(0.5)
            figure = client.end(window, cpu_ns=0)
        assert_sums(figure)
        package = domain(figure)
        assert package["idle_uj"] == pytest.approx(20.0 / 50.0 * package["counter_uj"], rel=0.1)
        assert "idle_uj" not in domain(figure, "package-0/dram")  # not calibrated: unknown, never zero
    finally:
        agent.close()
