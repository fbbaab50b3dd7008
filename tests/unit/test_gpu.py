"""GPUs through the meter: whose joules they are, by who held them and how much each process used them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tao_flows.attribution import run_account
from tao_flows.calibration import Baseline, DomainBaseline, Host
from tao_flows.figures import Account, CpuTime, DomainEnergy, Measurement, Quality
from tao_flows.gpu import GPU_INTENSITY
from tao_flows.ledger import codec
from tao_flows.meter import Meter, TaskUse
from tao_flows.records import HostAccount
from tao_flows.telemetry.base import DeviceUse, Domain, Reading
from tao_flows.testing import FakeClock

OURS, OTHERS = 41, 7
USE = TaskUse(CpuTime(1.0, "test", covers_children=True), pids=frozenset({OURS}))
J = 1_000_000


class Gpus:
    """GPUs that draw and are used as they are told to."""

    id = "gpus"
    max_interval_s = 100.0

    def __init__(self, clock: FakeClock, count: int) -> None:
        self.domains = tuple(Domain(f"gpu-{i}", "gpu", "gpus") for i in range(count))
        self.raw_uj = [0] * count
        self.holders: dict[str, frozenset[int] | None] = {domain.id: frozenset() for domain in self.domains}
        self.holders["gpu-0"] = frozenset({OURS, OTHERS})
        self.used: dict[str, dict[int, float] | None] = {}
        self.code = ""
        self._clock = clock

    def read(self) -> tuple[Reading, ...]:
        return tuple(Reading(self._clock.monotonic_ns(), raw) for raw in self.raw_uj)

    def use(self, domain: str) -> DeviceUse:
        return DeviceUse(self.holders[domain], self.used.pop(domain, None), self.code)

    def close(self) -> None:
        pass


class Bench:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.gpus = Gpus(self.clock, 2)
        self.meter = self.meter_with(None)

    def meter_with(self, baseline: Baseline | None) -> Meter:
        self.meter = Meter([self.gpus], None, lambda: None, lambda: None, self.clock, baseline)
        return self.meter

    def run(self, wall_s: float, energy_uj: int, used: dict[int, float] | None) -> Measurement:
        """One window in which the first GPU draws and is used."""
        window = self.meter.begin("train")
        self.spend(wall_s, energy_uj, used)
        return self.meter.end(window, USE)

    def spend(self, wall_s: float, energy_uj: int, used: dict[int, float] | None) -> None:
        self.clock.advance(wall_s)
        self.gpus.raw_uj[0] += energy_uj
        self.gpus.used["gpu-0"] = used


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.meter.close()


@pytest.fixture
def calibrated() -> Baseline:
    domain = DomainBaseline(power_w=50.0, spread_w=5.0, samples=60)
    return Baseline(Host("m", "c"), 0, 60.0, 0.0, 60, 60, {"gpu-0": domain, "gpu-1": domain})


def gpu(measured: Measurement, number: int = 0) -> DomainEnergy:
    return next(each for each in measured.domains if each.domain == f"gpu-{number}")


def lines(account: Account) -> tuple[int | None, ...]:
    return (account.tasks_uj, account.idle_uj, account.allocated_idle_uj, account.unattributed_uj)


def test_a_shared_gpu_is_split_by_the_utilisation_of_all_that_used_it(bench: Bench) -> None:
    measured = bench.run(200.0, 1000 * J, {OURS: 90.0, OTHERS: 30.0})
    assert gpu(measured).events == ("GPU_SHARED_BY_UTILISATION",)
    assert lines(measured.account) == (750 * J, None, 0, 250 * J)
    figure = measured.energy
    assert (figure.value_uj, figure.quality) == (750 * J, Quality.ATTRIBUTED)
    # A sampling period at each end, of 200 s, can be another's; and so can be the power.
    assert figure.low_uj == pytest.approx(1000 * J * 0.74 / (0.74 + GPU_INTENSITY * 0.26), abs=1)
    assert figure.high_uj == pytest.approx(1000 * J * GPU_INTENSITY * 0.76 / (GPU_INTENSITY * 0.76 + 0.24), abs=1)


def test_what_was_used_before_a_window_is_not_in_it(bench: Bench) -> None:
    around = bench.meter.begin("around", enclosing=True)
    bench.spend(10.0, 100 * J, {OTHERS: 10.0})
    inner = bench.run(10.0, 100 * J, {OURS: 5.0})
    assert gpu(inner).task_uj == 100 * J
    assert around.held.utilisation["gpu-0"] == {OTHERS: 10.0, OURS: 5.0}
    bench.meter.end(around, USE)


def test_utilisation_that_comes_in_parts_is_summed(bench: Bench) -> None:
    window = bench.meter.begin("train")
    for used in ({OURS: 1.0}, {OTHERS: 2.0}, None, {OURS: 1.0}):
        bench.spend(10.0, 25 * J, used)
        bench.meter.sample()
    assert gpu(bench.meter.end(window, USE)).task_uj == 50 * J


def test_a_gpu_that_was_held_and_not_used_is_allocated_idle_and_in_no_tasks_figure(bench: Bench) -> None:
    measured = bench.run(10.0, 600 * J, {})
    assert gpu(measured).events == ("GPU_HELD_IDLE",)
    assert gpu(measured).allocated_idle_uj == 600 * J
    assert lines(measured.account) == (0, None, 600 * J, 0)
    assert (measured.energy.value_uj, measured.energy.low_uj) == (0, 0)
    # It may have been used in the periods that were not told yet, and the figure says so.
    assert measured.energy.high_uj > 0
    assert measured.account.to_json()["allocated_idle_j"] == 600.0
    assert gpu(measured).to_json()["allocated_idle_j"] == 600.0


def test_a_gpu_that_others_hold_and_do_not_use_is_on_the_hosts_line_too(bench: Bench) -> None:
    bench.gpus.holders["gpu-0"] = frozenset({OTHERS})
    measured = bench.run(10.0, 600 * J, {})
    assert gpu(measured).events == ("GPU_HELD_BY_OTHERS",)
    assert lines(measured.account) == (0, None, 600 * J, 0)


def test_a_window_too_short_for_a_sample_gives_a_gpu_held_alone_to_its_holder(bench: Bench) -> None:
    bench.gpus.holders["gpu-0"] = frozenset({OURS})
    measured = bench.run(1.5, 600 * J, {})
    assert gpu(measured).events == ("GPU_HELD_ALONE",)
    assert measured.energy.value_uj == measured.energy.low_uj == measured.energy.high_uj == 600 * J
    assert measured.account.allocated_idle_uj == 0


def test_a_held_gpus_calibrated_baseline_is_allocated_idle_and_the_rest_is_measured(
    bench: Bench, calibrated: Baseline
) -> None:
    bench.meter_with(calibrated)
    bench.gpus.holders["gpu-0"] = frozenset({OURS})
    window = bench.meter.begin("train")
    bench.gpus.raw_uj[1] = 520 * J
    bench.spend(10.0, 3000 * J, {OURS: 9.0})
    measured = bench.meter.end(window, USE)
    # 50 W for 10 s: of the GPU that is held it is allocated-idle, of the other it is idle.
    assert lines(measured.account) == (2500 * J, 500 * J, 500 * J, 20 * J)
    assert (gpu(measured, 0).idle_uj, gpu(measured, 0).allocated_idle_uj) == (0, 500 * J)
    assert (gpu(measured, 1).idle_uj, gpu(measured, 1).allocated_idle_uj) == (500 * J, 0)
    assert (measured.energy.low_uj, measured.energy.value_uj, measured.energy.high_uj) == (2450 * J, 2500 * J, 2550 * J)
    assert gpu(measured, 0).events == ("GPU_HELD_ALONE",)


def test_less_than_the_baseline_is_all_at_rest(bench: Bench, calibrated: Baseline) -> None:
    bench.meter_with(calibrated)
    measured = bench.run(10.0, 400 * J, {OURS: 1.0, OTHERS: 1.0})
    assert lines(measured.account) == (0, 0, 400 * J, 0)


def test_two_windows_in_one_process_cannot_be_told_apart_on_a_gpu_that_it_used(bench: Bench) -> None:
    first, second = bench.meter.begin("a"), bench.meter.begin("b")
    bench.spend(10.0, 100 * J, {OURS: 3.0, OTHERS: 1.0})
    measured = bench.meter.end(first, USE)
    assert gpu(measured).events == ("GPU_SHARED",)
    assert measured.energy.unknown_parts == ("gpu-0",)
    assert measured.account.unattributed_uj == 100 * J
    bench.meter.end(second, USE)


def test_where_another_alone_used_it_windows_side_by_side_are_known_to_cost_nothing(bench: Bench) -> None:
    first, second = bench.meter.begin("a"), bench.meter.begin("b")
    bench.spend(10.0, 100 * J, {OTHERS: 1.0})
    measured = bench.meter.end(first, USE)
    assert measured.energy.value_uj == 0
    assert measured.account.unattributed_uj == 100 * J
    bench.meter.end(second, USE)


@pytest.mark.parametrize(
    ("holders", "codes"),
    [
        (frozenset({OURS, OTHERS}), ("GPU_SHARED", "GPU_UTILISATION_NOT_SUPPORTED")),
        (frozenset({OURS}), ("GPU_HELD_ALONE", "GPU_UTILISATION_NOT_SUPPORTED")),
        (None, ("GPU_HOLDERS_UNKNOWN", "GPU_UTILISATION_NOT_SUPPORTED")),
        (frozenset({OTHERS}), ("GPU_HELD_BY_OTHERS",)),
        (frozenset(), ("GPU_NOT_HELD",)),
    ],
    ids=["shared", "alone", "holders unknown", "others", "nobody"],
)
def test_why_there_is_no_utilisation_is_said_where_it_matters_to_the_task(
    bench: Bench, holders: frozenset[int] | None, codes: tuple[str, ...]
) -> None:
    bench.gpus.holders["gpu-0"] = holders
    bench.gpus.code = "GPU_UTILISATION_NOT_SUPPORTED"
    measured = bench.run(10.0, 100 * J, None)
    assert gpu(measured).events == codes
    assert (gpu(measured).task_uj is None) == (codes[0] in {"GPU_SHARED", "GPU_HOLDERS_UNKNOWN"})


def test_who_used_a_gpu_is_known_even_where_its_holders_are_not(bench: Bench) -> None:
    bench.gpus.holders["gpu-0"] = None
    measured = bench.run(100.0, 100 * J, {OURS: 1.0, OTHERS: 3.0})
    assert gpu(measured).events == ("GPU_SHARED_BY_UTILISATION",)
    assert gpu(measured).task_uj == 25 * J


def test_this_processs_own_use_of_a_gpu_is_its_windows(bench: Bench) -> None:
    bench.gpus.holders["gpu-0"] = frozenset({os.getpid(), OTHERS})
    window = bench.meter.begin("train")
    bench.spend(100.0, 100 * J, {os.getpid(): 1.0, OTHERS: 1.0})
    measured = bench.meter.end(window, replace(USE, pids=None))
    assert gpu(measured).task_uj == 50 * J


def test_several_gpus_add_up_and_none_is_counted_twice(bench: Bench) -> None:
    window = bench.meter.begin("train")
    bench.gpus.holders["gpu-1"] = frozenset({OURS})
    bench.gpus.raw_uj = [100 * J, 40 * J]
    bench.gpus.used = {"gpu-0": {OURS: 1.0, OTHERS: 1.0}, "gpu-1": {}}
    bench.clock.advance(100.0)
    measured = bench.meter.end(window, USE)
    assert measured.account.counter_uj == 140 * J
    assert lines(measured.account) == (50 * J, None, 40 * J, 50 * J)
    assert measured.energy.value_uj == 50 * J


def account_on(allocated_idle_uj: int | None) -> Account:
    rest = 100 - (allocated_idle_uj or 0)
    return Account(100, None, 0, 0, None, rest, Quality.ATTRIBUTED, (), allocated_idle_uj)


@pytest.mark.parametrize(
    ("hosts", "expected"), [((30, 20, None), 50), ((None, None), None), ((0, None), 0)], ids=["some", "none", "zero"]
)
def test_over_several_hosts_the_line_is_the_sum_of_those_with_gpus(
    hosts: tuple[int | None, ...], expected: int | None
) -> None:
    total = Account.total(account_on(each) for each in hosts)
    assert total.allocated_idle_uj == expected
    assert total.counter_uj == 100 * len(hosts) == sum(line or 0 for line in lines(total))


def test_the_tasks_of_a_run_are_given_nothing_of_what_was_allocated_and_idle() -> None:
    run = run_account(account_on(30), tasks_uj=90)
    assert (run.tasks_uj, run.allocated_idle_uj, run.unattributed_uj) == (70, 30, 0)


def test_an_account_is_kept_with_the_line_and_one_from_before_there_was_a_line_loads() -> None:
    kept = HostAccount("n", account_on(30), 4.0, "w")
    body = codec.dump(kept)
    assert codec.load(HostAccount, body) == kept
    older = json.loads(body)
    del older["account"]["allocated_idle_uj"]
    loaded = codec.load(HostAccount, json.dumps(older))
    assert loaded.account == replace(kept.account, allocated_idle_uj=None)
