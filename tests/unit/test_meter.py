"""The meter over a real powercap tree: what windows say of what the counters did."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tao_flows.clock import SystemClock
from tao_flows.figures import CpuTime, DomainEnergy, Measurement, Quality
from tao_flows.meter import Meter, TaskUse
from tao_flows.telemetry.base import DeviceUse, Domain, Reading
from tao_flows.telemetry.cpuinfo import CpuIdentity
from tao_flows.telemetry.estimate import Estimator
from tao_flows.telemetry.rapl import RaplSource
from tao_flows.testing import INTEL_RANGE_UJ, FakeClock, PowercapTree
from tao_flows.units import BYTES_PER_GIB

MODEL = Estimator(CpuIdentity("Ice Lake", "high", "test", 4), min_w=1.0, max_w=3.0, memory_w_per_gib=0.5)


def samplers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tao-flows-sampler"]


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


class Host:
    """A host whose time, CPU and memory move when told to; its counters are files."""

    def __init__(self, root: Path) -> None:
        self.tree = PowercapTree(root / "powercap")
        self.clock = FakeClock()
        self.busy_s: float | None = 100.0
        self.memory_bytes: int | None = 8 * BYTES_PER_GIB
        self.meters: list[Meter] = []

    def meter(self, *more: object, estimator: Estimator | None = None, rapl: bool = True) -> Meter:
        sources = [RaplSource(self.tree.root, self.clock)] if rapl else []
        meter = Meter([*sources, *more], estimator, lambda: self.busy_s, lambda: self.memory_bytes, self.clock)
        self.meters.append(meter)
        return meter

    def work(self, seconds: float, busy_s: float) -> None:
        self.clock.advance(seconds)
        self.busy_s += busy_s


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    for meter in made.meters:
        meter.close()
    assert until(lambda: not samplers())


@pytest.fixture
def one(host: Host) -> Host:
    host.tree.add_zone("intel-rapl:0", "package-0", 1_000)
    return host


def used(cpu_s: float | None, **more: object) -> TaskUse:
    return TaskUse(CpuTime(cpu_s, "test", covers_children=True), **more)


def domain(measured: Measurement, name: str) -> DomainEnergy:
    return next(each for each in measured.domains if each.domain == name)


def adds_up(measured: Measurement) -> bool:
    found = measured.account
    parts = (found.tasks_uj, found.overhead_uj, found.idle_uj, found.allocated_idle_uj, found.unattributed_uj)
    return sum(part or 0 for part in parts) == (found.counter_uj or 0) + (found.estimate_uj or 0)


def test_disjoint_domains_are_summed_and_nested_ones_only_shown(host: Host) -> None:
    zones = [("0", "package-0"), ("0:0", "core"), ("0:1", "uncore"), ("0:2", "dram"), ("1", "package-1"), ("2", "psys")]
    for zone, name in zones:
        host.tree.add_zone(f"intel-rapl:{zone}", name, 10)
    meter = host.meter()
    window = meter.begin("x")
    for (zone, _), moved in zip(zones, (5_000_000, 3_000_000, 1_000_000, 700_001, 2_000_000, 9_000_000), strict=True):
        host.tree.move(f"intel-rapl:{zone}", moved)
    host.work(2.0, busy_s=4.0)
    measured = meter.end(window, used(4.0))
    assert measured.account.counter_uj == measured.energy.value_uj == 7_700_001
    assert [each.domain for each in measured.domains if each.counted] == [
        "package-0", "package-0/dram", "package-1",
    ]  # fmt: skip
    assert domain(measured, "psys").counter_uj == 9_000_000
    assert domain(measured, "psys").task_uj is None
    assert domain(measured, "package-0/core").counter_uj == 3_000_000
    assert measured.energy.quality is Quality.ATTRIBUTED
    assert measured.energy.sources == ("rapl",)
    assert measured.wall_s == 2.0
    assert adds_up(measured)


def test_a_task_gets_its_share_of_the_cpu_time_and_the_rest_is_unattributed(one: Host) -> None:
    meter = one.meter()
    window = meter.begin("x")
    one.tree.move("intel-rapl:0", 10_000_000)
    one.work(1.0, busy_s=4.0)
    found = meter.end(window, used(1.0, overhead_cpu_s=0.5)).account
    assert (found.tasks_uj, found.overhead_uj, found.unattributed_uj) == (2_500_000, 1_250_000, 6_250_000)
    assert found.idle_uj is None


def test_a_wrap_within_a_window_loses_nothing_and_is_told(host: Host) -> None:
    host.tree.add_zone("intel-rapl:0", "package-0", INTEL_RANGE_UJ - 1_000)
    meter = host.meter()
    window = meter.begin("x")
    host.tree.move("intel-rapl:0", 3_000_001)
    host.work(1.0, busy_s=1.0)
    measured = meter.end(window, used(1.0))
    assert measured.account.counter_uj == 3_000_001
    assert domain(measured, "package-0").events == ("WRAPPED",)


def test_a_reset_makes_its_window_unknown_and_the_next_one_is_whole(one: Host) -> None:
    one.tree.set("intel-rapl:0", INTEL_RANGE_UJ // 2)
    meter = one.meter()
    window = meter.begin("x")
    one.tree.set("intel-rapl:0", 5)
    one.work(1.0, busy_s=1.0)
    lost = meter.end(window, used(1.0))
    assert lost.energy.value_uj is None
    assert lost.energy.unknown_parts == ("package-0",)
    assert lost.account.counter_uj is None
    assert lost.account.unknown_parts == ("package-0",)
    assert domain(lost, "package-0").events == ("RESET",)
    window = meter.begin("y")
    one.tree.move("intel-rapl:0", 77)
    one.work(1.0, busy_s=1.0)
    after = meter.end(window, used(1.0))
    assert after.account.counter_uj == 77
    assert domain(after, "package-0").events == ()


def test_one_unknown_domain_does_not_void_the_others(one: Host) -> None:
    one.tree.add_zone("intel-rapl:1", "package-1")
    meter = one.meter()
    window = meter.begin("x")
    one.tree.vanish("intel-rapl:1")
    one.tree.move("intel-rapl:0", 500)
    one.work(1.0, busy_s=1.0)
    measured = meter.end(window, used(1.0))
    assert measured.energy.value_uj == 500
    assert measured.energy.coverage == 0.5
    assert measured.energy.unknown_parts == measured.account.unknown_parts == ("package-1",)
    assert domain(measured, "package-1").counter_uj is None
    assert domain(measured, "package-1").events == ("READ_VANISHED",)


@pytest.mark.parametrize("way", ["vanish", "rubbish"])
def test_a_counter_that_fails_midway_and_comes_back_invents_no_joules(one: Host, way: str) -> None:
    meter = one.meter()
    window = meter.begin("x")
    if way == "vanish":
        one.tree.vanish("intel-rapl:0")
    else:
        one.tree.rubbish("intel-rapl:0")
    one.work(0.1, busy_s=0.1)
    meter.sample()
    if way == "vanish":
        one.tree.add_zone("intel-rapl:0", "package-0", 9_000_000)
    else:
        one.tree.set("intel-rapl:0", 9_000_000, replace=True)
    one.work(0.1, busy_s=0.1)
    measured = meter.end(window, used(0.2))
    assert measured.energy.value_uj is None
    assert measured.account.counter_uj is None
    assert domain(measured, "package-0").events[0] in {"READ_VANISHED", "READ_RUBBISH"}
    window = meter.begin("y")
    one.tree.move("intel-rapl:0", 3)
    one.work(0.1, busy_s=0.1)
    assert meter.end(window, used(0.1)).account.counter_uj == 3


def test_a_counter_that_failed_and_came_back_between_two_windows_is_no_matter_of_the_second(one: Host) -> None:
    meter = one.meter()
    first = meter.begin("x")
    one.tree.rubbish("intel-rapl:0")
    meter.end(first, used(0.0))
    one.tree.set("intel-rapl:0", 9_000_000, replace=True)
    one.clock.advance(1.0)
    second = meter.begin("y")
    one.clock.advance(1.0)
    one.tree.move("intel-rapl:0", 4)
    measured = meter.end(second, used(0.0))
    assert measured.account.counter_uj == 4
    assert domain(measured, "package-0").events == ()


class Gpus:
    """A source that is not files: GPUs, with their holders, that can be made to fail."""

    id = "gpus"
    max_interval_s = 10.0

    def __init__(self, clock: FakeClock, count: int = 1) -> None:
        self.domains = tuple(Domain(f"gpu-{i}", "gpu", "gpus") for i in range(count))
        self.raw_uj = [0] * count
        self.held: dict[str, frozenset[int] | None] = {each.id: frozenset() for each in self.domains}
        self.failing: set[str] = set()
        self._clock = clock

    def read(self) -> tuple[Reading, ...]:
        if "read" in self.failing:
            raise ConnectionError("the driver went away")
        return tuple(Reading(self._clock.monotonic_ns(), raw) for raw in self.raw_uj)

    def use(self, domain: str) -> DeviceUse:
        if "holders" in self.failing:
            raise ConnectionError("the driver went away")
        return DeviceUse(self.held[domain], None)

    def close(self) -> None:
        pass


def test_a_source_that_raises_midway_makes_its_own_domains_unknown_and_no_others(one: Host) -> None:
    gpus = Gpus(one.clock)
    meter = one.meter(gpus)
    window = meter.begin("x")
    gpus.failing = {"read", "holders"}
    one.tree.move("intel-rapl:0", 12)
    one.work(1.0, busy_s=1.0)
    measured = meter.end(window, used(1.0))
    assert measured.account.counter_uj == 12
    assert measured.energy.unknown_parts == ("gpu-0",)
    assert domain(measured, "gpu-0").events == ("SOURCE_RAISED:ConnectionError",)


def test_a_source_that_raises_from_the_start_is_unknown_until_it_answers(host: Host) -> None:
    gpus = Gpus(host.clock)
    gpus.failing = {"read"}
    meter = host.meter(gpus, rapl=False)
    window = meter.begin("x")
    host.clock.advance(1.0)
    gpus.failing = set()
    gpus.raw_uj = [5_000_000]
    assert meter.end(window, used(1.0)).energy.value_uj is None


def test_zones_that_mirror_one_counter_are_counted_once(host: Host) -> None:
    for die in (0, 1):
        host.tree.add_zone(f"intel-rapl:{die}", f"package-0-die-{die}", 50)
    meter = host.meter()
    window = meter.begin("x")
    for die in (0, 1):
        host.tree.move(f"intel-rapl:{die}", 6_000_000)
    host.work(1.0, busy_s=1.0)
    measured = meter.end(window, used(1.0))
    assert measured.account.counter_uj == 6_000_000
    mirror = domain(measured, "package-0-die-1")
    assert mirror.events == ("MIRROR_OF package-0-die-0",)
    assert not mirror.counted
    assert mirror.counter_uj == 6_000_000


def test_windows_side_by_side_share_the_counter_and_do_not_disturb_each_other(one: Host) -> None:
    meter = one.meter()
    first = meter.begin("first")
    one.tree.move("intel-rapl:0", 1_000)
    one.work(1.0, busy_s=2.0)
    second = meter.begin("second")
    one.tree.move("intel-rapl:0", 3_000)
    one.work(1.0, busy_s=2.0)
    early = meter.end(first, used(1.0))
    one.tree.move("intel-rapl:0", 5_000)
    one.work(1.0, busy_s=2.0)
    late = meter.end(second, used(2.0))
    assert (early.account.counter_uj, early.wall_s) == (4_000, 2.0)
    assert (late.account.counter_uj, late.wall_s) == (8_000, 2.0)
    assert early.account.tasks_uj == 1_000
    assert late.account.tasks_uj == 4_000
    assert meter.open_windows == 0


def test_a_window_that_is_kept_open_says_how_it_stands_and_goes_on(one: Host) -> None:
    meter = one.meter()
    window = meter.begin("flow")
    one.tree.move("intel-rapl:0", 10)
    one.work(1.0, busy_s=1.0)
    assert meter.end(window, used(1.0), keep_open=True).account.counter_uj == 10
    assert meter.open_windows == 1
    one.tree.move("intel-rapl:0", 5)
    one.work(1.0, busy_s=1.0)
    assert meter.end(window, used(2.0)).account.counter_uj == 15
    assert meter.open_windows == 0


def test_many_threads_with_windows_of_their_own_each_see_what_they_moved(host: Host) -> None:
    host.tree.add_zone("intel-rapl:0", "package-0")
    meter = Meter([RaplSource(host.tree.root, SystemClock())], None, lambda: 1.0, lambda: None, SystemClock())
    outer = meter.begin("outer")
    moving = threading.Lock()
    seen: list[int] = []

    def work() -> None:
        for _ in range(20):
            window = meter.begin("inner")
            with moving:
                host.tree.move("intel-rapl:0", 1_000)
            seen.append(meter.end(window, used(0.0)).account.counter_uj)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 80
    assert min(seen) >= 1_000
    assert meter.end(outer, used(0.0)).account.counter_uj == 80_000
    meter.close()


def test_a_window_was_alone_only_if_no_other_was_open_at_any_time(one: Host) -> None:
    meter = one.meter()
    first = meter.begin()
    assert meter.was_alone(first)
    second = meter.begin()
    assert not meter.was_alone(first)
    meter.end(second, used(0.0))
    assert not meter.was_alone(first)
    assert not meter.was_alone(second)
    meter.end(first, used(0.0))
    assert meter.was_alone(meter.begin())


def test_an_enclosing_window_is_no_companion_of_those_inside_it(one: Host) -> None:
    meter = one.meter()
    flow = meter.begin("flow", enclosing=True)
    assert meter.was_alone(flow)
    task = meter.begin("task")
    assert meter.open_windows == 1
    assert meter.was_alone(task)
    assert not meter.was_alone(flow)
    beside = meter.begin("beside")
    assert meter.open_windows == 2
    assert not meter.was_alone(task)
    for window in (beside, task, flow):
        meter.end(window, used(0.0))
    assert meter.open_windows == 0


HELD: list[tuple[frozenset[int] | None, Quality, int | None, str]] = [
    (frozenset({41}), Quality.MEASURED, 9_000_000, "GPU_HELD_ALONE"),
    (frozenset({41, 7}), Quality.UNKNOWN, None, "GPU_SHARED"),
    (frozenset({7}), Quality.ATTRIBUTED, 0, "GPU_HELD_BY_OTHERS"),
    (frozenset(), Quality.ATTRIBUTED, 0, "GPU_NOT_HELD"),
    (None, Quality.UNKNOWN, None, "GPU_HOLDERS_UNKNOWN"),
]


@pytest.mark.parametrize(("holders", "quality", "task_uj", "event"), HELD, ids=[held[3] for held in HELD])
def test_a_gpu_is_charged_to_the_task_that_held_it_alone(
    host: Host, holders: frozenset[int] | None, quality: Quality, task_uj: int | None, event: str
) -> None:
    gpus = Gpus(host.clock)
    meter = host.meter(gpus, rapl=False)
    window = meter.begin("train")
    gpus.held["gpu-0"] = holders
    gpus.raw_uj = [9_000_000]
    host.work(1.0, busy_s=1.0)
    measured = meter.end(window, used(1.0, pids=frozenset({41})))
    assert (measured.energy.value_uj, measured.energy.quality) == (task_uj, quality)
    assert domain(measured, "gpu-0").events == (event,)
    assert measured.account.counter_uj == 9_000_000
    assert adds_up(measured)


@pytest.mark.parametrize("when", ["at the start", "meanwhile"])
def test_a_gpu_that_others_held_at_any_time_of_the_window_is_shared(host: Host, when: str) -> None:
    gpus = Gpus(host.clock)
    meter = host.meter(gpus, rapl=False)
    gpus.held["gpu-0"] = frozenset({7}) if when == "at the start" else frozenset({41})
    window = meter.begin("train")
    if when == "meanwhile":
        gpus.held["gpu-0"] = frozenset({41, 7})
        meter.sample()
    gpus.held["gpu-0"] = frozenset({41})
    host.work(1.0, busy_s=1.0)
    assert domain(meter.end(window, used(1.0, pids=frozenset({41}))), "gpu-0").events == ("GPU_SHARED",)


def test_a_gpu_is_shared_between_windows_side_by_side_in_one_process_and_not_with_the_one_around_them(
    host: Host,
) -> None:
    gpus = Gpus(host.clock)
    gpus.held["gpu-0"] = frozenset({os.getpid()})
    meter = host.meter(gpus, rapl=False)
    flow = meter.begin("flow", enclosing=True)
    task = meter.begin("task")
    gpus.raw_uj = [100]
    host.work(1.0, busy_s=1.0)
    alone = meter.end(task, used(1.0))
    assert alone.energy.value_uj == 100
    task, beside = meter.begin("task"), meter.begin("beside")
    assert domain(meter.end(task, used(1.0)), "gpu-0").events == ("GPU_SHARED",)
    assert domain(meter.end(beside, used(1.0)), "gpu-0").events == ("GPU_SHARED",)
    assert domain(meter.end(flow, used(1.0)), "gpu-0").events == ("GPU_SHARED",)


def test_a_gpu_held_by_a_process_that_the_task_started_is_the_tasks_even_when_that_has_ended(host: Host) -> None:
    gpus = Gpus(host.clock)
    meter = host.meter(gpus, rapl=False)
    window = meter.begin("train")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        gpus.held["gpu-0"] = frozenset({child.pid})
        meter.sample()
    gpus.held["gpu-0"] = frozenset()
    gpus.raw_uj = [8]
    host.work(1.0, busy_s=1.0)
    measured = meter.end(window, used(1.0))
    assert domain(measured, "gpu-0").events == ("GPU_HELD_ALONE",)
    assert measured.energy.value_uj == 8


def test_a_gpu_whose_holders_cannot_be_read_midway_is_unknown(host: Host) -> None:
    gpus = Gpus(host.clock)
    gpus.held["gpu-0"] = frozenset({41})
    meter = host.meter(gpus, rapl=False)
    window = meter.begin("train")
    gpus.failing = {"holders"}
    meter.sample()
    gpus.failing = set()
    measured = meter.end(window, used(1.0, pids=frozenset({41})))
    assert domain(measured, "gpu-0").events == ("GPU_HOLDERS_UNKNOWN", "SOURCE_RAISED:ConnectionError")
    assert measured.energy.value_uj is None


def test_the_sampler_keeps_a_long_window_from_wrapping_unseen_and_ends_by_itself(tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path / "powercap")
    # 250 J at 1 kW: after a quarter of a second a counter could have come all the way round.
    range_uj = 250_000_000
    tree.add_zone("intel-rapl:0", "package-0", range_uj - 20_000_000, range_uj)
    clock = SystemClock()
    source = RaplSource(tree.root, clock)
    assert source.max_interval_s == pytest.approx(0.1)
    meter = Meter([source], None, lambda: 1.0, lambda: None, clock)
    window = meter.begin("long")
    for _ in range(20):
        time.sleep(0.05)
        tree.move("intel-rapl:0", 20_000_000)
    assert len(samplers()) == 1
    measured = meter.end(window, used(1.0, overhead_cpu_s=None))
    events = domain(measured, "package-0").events
    # A machine that stalls for longer than the range allows makes the span unknown, and never wrong.
    assert measured.account.counter_uj == 400_000_000 or "SAMPLED_TOO_SLOWLY" in events
    assert "WRAPPED" in events
    assert until(lambda: not samplers())
    again = meter.begin("again")
    assert len(samplers()) == 1
    meter.end(again, used(0.0))
    meter.close()
    assert until(lambda: not samplers())


def test_a_counter_that_was_not_read_for_too_long_is_unknown_though_it_moved_forward(one: Host) -> None:
    meter = one.meter()
    window = meter.begin("slept")
    one.work(3600.0, busy_s=1.0)
    one.tree.move("intel-rapl:0", 5)
    measured = meter.end(window, used(1.0))
    assert measured.account.counter_uj is None
    assert domain(measured, "package-0").events == ("SAMPLED_TOO_SLOWLY",)


def test_without_a_thread_to_sample_with_a_window_still_works(one: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    meter = one.meter()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    window = meter.begin("x")
    one.tree.move("intel-rapl:0", 5)
    one.work(1.0, busy_s=1.0)
    assert meter.end(window, used(1.0)).account.counter_uj == 5


@pytest.mark.parametrize("when", ["before", "after"])
def test_without_the_hosts_cpu_time_the_counter_stands_and_the_task_is_unknown(one: Host, when: str) -> None:
    meter = one.meter()
    one.busy_s = None if when == "before" else 1.0
    window = meter.begin("x")
    one.busy_s = 1.0 if when == "before" else None
    one.clock.advance(1.0)
    one.tree.move("intel-rapl:0", 50)
    measured = meter.end(window, used(1.0))
    assert measured.energy.value_uj is None
    assert measured.account.tasks_uj is None
    assert measured.account.counter_uj == measured.account.unattributed_uj == 50


def test_without_a_source_or_a_model_every_figure_is_unknown_and_it_is_said_why(host: Host) -> None:
    meter = host.meter(rapl=False)
    window = meter.begin("x")
    host.work(1.0, busy_s=1.0)
    measured = meter.end(window, used(1.0))
    assert measured.energy.value_uj is None
    assert measured.account.counter_uj is None
    assert measured.account.tasks_uj is None
    assert measured.events == ("NO_ENERGY_SOURCE",)
    assert measured.cpu_s == 1.0
    assert samplers() == []


def test_the_estimate_has_cpu_and_memory_and_its_lines_add_up(host: Host) -> None:
    meter = host.meter(estimator=MODEL, rapl=False)
    window = meter.begin("x")
    host.work(10.0, busy_s=8.0)
    measured = meter.end(window, used(2.0, overhead_cpu_s=1.0, resident_bytes=2 * BYTES_PER_GIB))
    # 2 W a busy vCPU second, 4 vCPUs of 1 W idle, 0.5 W a GiB of which the task has 2 and the host 8.
    found = measured.account
    assert found.counter_uj is None
    assert found.tasks_uj == measured.energy.value_uj == 2 * 2_000_000 + 2 * 5_000_000
    assert found.overhead_uj == 2_000_000
    assert found.idle_uj == 4 * 10_000_000
    assert found.unattributed_uj == 5 * 2_000_000 + 6 * 5_000_000
    assert adds_up(measured)
    assert measured.energy.quality is found.quality is Quality.ESTIMATED
    assert (measured.energy.low_uj, measured.energy.high_uj) == (7_000_000, 28_000_000)
    assert measured.model == MODEL.model
    assert [each.counter_uj for each in measured.domains] == [None, None]
    assert measured.memory_bytes == 2 * BYTES_PER_GIB


def test_an_estimate_without_the_memory_says_that_it_is_missing(host: Host) -> None:
    meter = host.meter(estimator=MODEL, rapl=False)
    window = meter.begin("x")
    host.work(1.0, busy_s=1.0)
    measured = meter.end(window, used(1.0))
    assert measured.energy.value_uj == 2_000_000
    assert measured.energy.unknown_parts == ("memory (estimate)",)
    assert measured.account.unknown_parts == ("memory",)
    assert measured.energy.coverage == 0.5


def test_with_a_gpu_counted_and_the_cpu_estimated_the_lines_add_up_to_both(host: Host) -> None:
    gpus = Gpus(host.clock)
    gpus.held["gpu-0"] = frozenset({os.getpid()})
    meter = host.meter(gpus, estimator=MODEL, rapl=False)
    window = meter.begin("train")
    gpus.raw_uj = [6_000_000]
    host.work(1.0, busy_s=3.0)
    measured = meter.end(window, used(1.0, resident_bytes=BYTES_PER_GIB))
    assert measured.account.counter_uj == 6_000_000
    assert measured.account.estimate_uj == 4_000_000 + 3 * 2_000_000 + 4_000_000
    assert measured.energy.value_uj == 6_000_000 + 2_000_000 + 500_000
    assert measured.energy.quality is Quality.ESTIMATED
    assert adds_up(measured)


def test_cpu_time_that_is_a_lower_bound_opens_the_interval_upward(one: Host) -> None:
    meter = one.meter()
    window = meter.begin("x")
    one.tree.move("intel-rapl:0", 1_000_000)
    one.work(10.0, busy_s=4.0)
    polled = CpuTime(1.0, "polling", covers_children=True, lower_bound=True)
    energy = meter.end(window, TaskUse(polled)).energy
    assert energy.value_uj == 250_000
    assert energy.high_uj == 1_000_000


def test_a_short_window_is_told_to_be_one(one: Host) -> None:
    meter = one.meter()
    window = meter.begin("x")
    one.work(0.01, busy_s=0.01)
    assert meter.end(window, used(0.01)).events == ("SHORT_WINDOW",)


def test_after_closing_a_window_is_unknown_and_raises_nothing(one: Host) -> None:
    meter = one.meter()
    meter.close()
    meter.close()
    window = meter.begin("x")
    measured = meter.end(window, used(1.0))
    assert measured.energy.value_uj is None
    assert "READ_CLOSED" in domain(measured, "package-0").events
