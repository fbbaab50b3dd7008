"""The idle baseline: what samples tell, where it is kept, and when it is not believed."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from tao_flows.calibration import (
    SYSTEM_FILE,
    Baseline,
    DomainBaseline,
    Host,
    Sample,
    calibrate,
    check_writable,
    find_baseline,
    place_to_store,
    places,
    store,
)
from tao_flows.errors import InputError, SourceError
from tao_flows.figures import CpuTime
from tao_flows.meter import Meter, TaskUse
from tao_flows.telemetry.rapl import RaplSource
from tao_flows.testing import FakeClock, PowercapTree

S = 1_000_000_000
HOST = Host("0123abcd", "Test CPU 9000, 4 CPUs")
BASELINE = Baseline(HOST, 1_790_000_000 * S, 60.0, 0.004, 60, 58, {"package-0": DomainBaseline(12.3, 0.4, 58)})


def sample(power_w: float | None, busy_s: float | None = 0.01, wall_s: float = 1.0) -> Sample:
    return Sample(wall_s, busy_s, {"package-0": None if power_w is None else round(power_w * wall_s * 1e6)})


def found(*samples: Sample, cpus: int = 4, **limits: float) -> Baseline:
    return calibrate(samples, host=HOST, cpus=cpus, wall_ns=BASELINE.calibrated_wall_ns, **limits)


def refusal(*samples: Sample, **limits: float) -> SourceError:
    with pytest.raises(SourceError) as caught:
        found(*samples, **limits)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return caught.value


def test_the_baseline_is_the_median_and_the_spread_two_robust_standard_deviations() -> None:
    made = found(*(sample(power_w) for power_w in (9.0, 9.5, 10.0, 10.5, 11.0))).domains["package-0"]
    assert made.power_w == 10.0
    assert made.spread_w == pytest.approx(2 * 1.4826 * 0.5)
    assert made.samples == 5


def test_a_burst_that_the_processors_do_not_show_moves_neither() -> None:
    quiet = [sample(10.0 + step / 100) for step in range(10)]
    alone, burst = found(*quiet), found(*quiet, *(sample(95.0) for _ in range(3)))
    assert burst.domains["package-0"].power_w == pytest.approx(alone.domains["package-0"].power_w, rel=0.01)
    assert burst.domains["package-0"].spread_w < 0.5


def test_samples_of_a_busy_host_are_left_out() -> None:
    made = found(*(sample(10.0) for _ in range(6)), *(sample(80.0, busy_s=1.0) for _ in range(5)))
    assert (made.idle_samples, made.samples) == (6, 11)
    assert made.domains["package-0"] == DomainBaseline(10.0, 0.0, 6)
    assert made.busy_share == pytest.approx(0.0025)
    assert made.duration_s == 11.0


def test_with_too_few_idle_samples_there_is_no_baseline_and_it_is_said_why() -> None:
    error = refusal(*(sample(10.0) for _ in range(4)), *(sample(80.0, busy_s=3.0) for _ in range(5)))
    assert error.code == "CALIBRATION_BUSY"
    assert "4 of 9 samples are idle" in error.summary
    assert "the median was 75.0%" in error.summary
    assert "5 are needed" in error.summary


@pytest.mark.parametrize(
    ("cpus", "busy_s", "idle"), [(4, 0.2, True), (4, 0.21, False), (64, 0.5, True), (64, 0.51, False), (1, 0.06, False)]
)
def test_a_sample_is_idle_up_to_a_share_of_the_processors_and_half_of_one(cpus: int, busy_s: float, idle: bool) -> None:
    if idle:
        assert found(sample(10.0, busy_s=busy_s), cpus=cpus).idle_samples == 1
    else:
        assert refusal(sample(10.0, busy_s=busy_s), cpus=cpus).code == "CALIBRATION_BUSY"


def test_the_limits_can_be_set() -> None:
    samples = [sample(10.0, busy_s=1.0), sample(10.0, busy_s=3.0), sample(10.0, busy_s=3.0)]
    assert refusal(*samples, busy_share=0.25, busy_cpus=4).code == "CALIBRATION_BUSY"
    assert found(*samples, busy_share=0.25, busy_cpus=4, idle_part=0.3).idle_samples == 1


def test_a_host_whose_cpu_time_cannot_be_read_is_not_taken_for_idle() -> None:
    assert refusal(sample(10.0, busy_s=None), sample(10.0, busy_s=None)).code == "CALIBRATION_CPU_UNKNOWN"


def test_a_sample_that_was_not_read_is_no_sample_of_nothing() -> None:
    made = found(sample(10.0), sample(None), sample(10.0), sample(12.0))
    assert made.domains["package-0"].samples == 3
    assert made.domains["package-0"].power_w == 10.0


def test_a_domain_that_was_hardly_read_is_left_out_and_with_none_left_there_is_no_baseline() -> None:
    samples = [Sample(1.0, 0.0, {"package-0": 10_000_000, "gpu-0": None if n else 30_000_000}) for n in range(4)]
    assert list(found(*samples).domains) == ["package-0"]
    assert refusal(sample(10.0), sample(None), sample(None)).code == "CALIBRATION_NO_READING"


def test_idle_joules_are_power_times_time_and_unknown_for_what_was_not_calibrated() -> None:
    assert BASELINE.idle_uj("package-0", 2 * S) == 24_600_000
    assert BASELINE.spread_uj("package-0", 2 * S) == 800_000
    assert BASELINE.idle_uj("package-0", 0) == 0
    assert BASELINE.idle_uj("gpu-0", S) is None
    assert BASELINE.spread_uj("gpu-0", S) == 0


def test_its_origin_is_told_for_the_domains_asked_for_together() -> None:
    two = replace(BASELINE, domains={**BASELINE.domains, "dram": DomainBaseline(2.0, 0.1, 58)})
    assert two.origin(["package-0"]) == "calibrated on 2026-09-21, 12.3 W ± 400 mW"
    assert two.origin(["package-0", "dram", "gpu-0"]) == "calibrated on 2026-09-21, 14.3 W ± 500 mW"
    assert two.origin(["gpu-0"]) is None


def test_what_is_stored_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "idle.json"
    store(BASELINE, path)
    assert find_baseline([tmp_path / "none.json", path], ["package-0"], lambda: HOST).baseline == BASELINE
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert json.loads(path.read_text())["schema"] == "tao-flows/idle/1"
    assert os.listdir(tmp_path) == ["idle.json"]


def test_a_baseline_that_cannot_be_written_leaves_the_earlier_one_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "idle.json"
    store(BASELINE, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="Out of range float"):
        store(replace(BASELINE, duration_s=float("nan")), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["idle.json"]


@pytest.mark.parametrize("write", [check_writable, lambda path: store(BASELINE, path)])
def test_a_place_that_cannot_be_written_is_told_with_the_remedy(write) -> None:
    with pytest.raises(InputError) as caught:
        write(Path("/proc/none/idle.json"))
    assert caught.value.code == "UNWRITABLE"
    assert "TAO_FLOWS_CALIBRATION" in caught.value.remedy


def test_asking_whether_a_place_can_be_written_makes_its_directory_and_no_file(tmp_path: Path) -> None:
    check_writable(tmp_path / "state" / "tao-flows" / "idle.json")
    assert os.listdir(tmp_path / "state" / "tao-flows") == []


BAD = {"power_w": -1.0, "spread_w": 0.1, "samples": 3}


@pytest.mark.parametrize(
    "document",
    [
        b"", b"{", b"[]", b"7", b"\xff\xfe", b"{}", b"null", b"[" * 100_000,
        *(
            json.dumps({**BASELINE.to_json(), **changes}).encode()
            for changes in (
                {"schema": "tao-flows/idle/2"}, {"host": None}, {"domains": [1]}, {"domains": {"package-0": BAD}},
                {"domains": {"package-0": {**BAD, "power_w": True}}}, {"domains": {"package-0": {"power_w": 1.0}}},
                {"domains": {"package-0": {**BAD, "power_w": float("nan")}}},
                {"domains": {"package-0": {**BAD, "power_w": 1e300}}}, {"samples": 1.5}, {"calibrated_wall_ns": -1},
                {"calibrated_wall_ns": 1 << 63}, {"duration_s": "60"},
            )
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_no_baseline_is_not_used_and_raises_nothing(tmp_path: Path, document: bytes) -> None:
    path = tmp_path / "idle.json"
    path.write_bytes(document)
    seen = find_baseline([path], ["package-0"], lambda: HOST)
    (problem,) = seen.problems
    assert seen.baseline is None
    assert problem.code == "CALIBRATION_BAD"
    assert str(path) in problem.summary
    assert "tao-flows calibrate" in problem.remedy


def test_a_file_that_cannot_be_read_is_told_and_one_that_is_not_there_is_not(tmp_path: Path) -> None:
    (tmp_path / "idle.json").mkdir()
    (problem,) = find_baseline([tmp_path / "idle.json"], ["package-0"], lambda: HOST).problems
    assert problem.code == "CALIBRATION_UNREADABLE"
    (tmp_path / "file").touch()
    missing = [tmp_path / "none.json", tmp_path / "file" / "idle.json"]
    assert find_baseline(missing, ["package-0"], lambda: HOST).problems == ()


@pytest.mark.parametrize(
    ("host", "domains", "code"),
    [
        (replace(HOST, machine="another"), ["package-0"], "CALIBRATION_OTHER_HOST"),
        (replace(HOST, cpu="Test CPU 9000, 8 CPUs"), ["package-0"], "CALIBRATION_OTHER_CPU"),
        (HOST, ["package-1"], "CALIBRATION_OTHER_DOMAINS"),
    ],
)
def test_the_baseline_of_other_hardware_is_not_used(tmp_path: Path, host: Host, domains: list[str], code: str) -> None:
    store(BASELINE, tmp_path / "idle.json")
    seen = find_baseline([tmp_path / "idle.json"], domains, lambda: host)
    assert seen.baseline is None
    assert [problem.code for problem in seen.problems] == [code]


def test_past_a_file_that_is_not_believed_the_next_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "users.json").write_text("rubbish")
    store(BASELINE, tmp_path / "systems.json")
    seen = find_baseline([tmp_path / "users.json", tmp_path / "systems.json"], ["package-0", "gpu-0"], lambda: HOST)
    assert (seen.baseline, seen.path) == (BASELINE, tmp_path / "systems.json")
    assert [problem.code for problem in seen.problems] == ["CALIBRATION_BAD"]


def test_the_users_file_comes_before_the_systems_and_a_named_one_stands_alone(tmp_path: Path) -> None:
    env = {"HOME": "/home/ada"}
    assert places(None, env) == (Path("/home/ada/.local/state/tao-flows/idle.json"), SYSTEM_FILE)
    assert places(None, {"XDG_STATE_HOME": "/state"}) == (Path("/state/tao-flows/idle.json"), SYSTEM_FILE)
    assert places(tmp_path, env) == (tmp_path,)


def test_root_calibrates_for_all_and_a_user_for_themselves(tmp_path: Path) -> None:
    env = {"HOME": "/home/ada"}
    assert place_to_store(None, env, for_all=True) == SYSTEM_FILE
    assert place_to_store(None, env, for_all=False) == Path("/home/ada/.local/state/tao-flows/idle.json")
    assert place_to_store(tmp_path, env, for_all=True) == tmp_path


def test_a_host_is_the_same_after_every_boot_and_shows_no_machine_id(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Test CPU 9000\n\nprocessor\t: 1\n")
    machine_id = tmp_path / "machine-id"
    machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    host = Host.this(tmp_path, machine_id)
    assert host == Host.this(tmp_path, machine_id)
    assert host.cpu == "Test CPU 9000, 2 CPUs"
    assert host.machine not in machine_id.read_text()
    machine_id.write_text("f123456789abcdef0123456789abcdef\n")
    assert Host.this(tmp_path, machine_id).machine != host.machine


def test_a_host_without_a_machine_id_is_known_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for machine_id in (tmp_path / "none", tmp_path / "empty"):
        assert Host.this(tmp_path, machine_id).machine == os.uname().nodename


def test_a_window_has_the_baseline_taken_off_and_its_spread_in_the_bounds(tmp_path: Path) -> None:
    tree, clock, busy_s = PowercapTree(tmp_path), FakeClock(), [0.0]
    tree.add_zone("intel-rapl:0", "package-0")
    tree.add_zone("intel-rapl:0:0", "dram")
    baseline = replace(BASELINE, domains={"package-0": DomainBaseline(4.0, 0.5, 58)})
    meter = Meter([RaplSource(tree.root, clock)], None, lambda: busy_s[0], lambda: None, clock, baseline)
    window = meter.begin("x")
    tree.move("intel-rapl:0", 20_000_000)
    tree.move("intel-rapl:0:0", 1_000_000)
    clock.advance(2.0)
    busy_s[0] = 2.0
    measured = meter.end(window, TaskUse(CpuTime(2.0, "test", covers_children=True), overhead_cpu_s=0.0))
    meter.close()
    package, dram = measured.domains
    assert (package.counter_uj, package.idle_uj, package.task_uj) == (20_000_000, 8_000_000, 12_000_000)
    assert (dram.idle_uj, dram.task_uj) == (None, 1_000_000)
    assert (measured.account.idle_uj, measured.account.tasks_uj) == (8_000_000, 13_000_000)
    # Half a watt for two seconds either way, and two updates of the counter of 1 ms each.
    assert measured.energy.low_uj == round((11_000_000 + 1_000_000) * 0.999)
    assert measured.energy.high_uj == round((13_000_000 + 1_000_000) * 1.001)
    assert measured.baseline == "calibrated on 2026-09-21, 4.00 W ± 500 mW"


def test_a_host_that_drew_less_than_its_baseline_is_all_idle(tmp_path: Path) -> None:
    tree, clock = PowercapTree(tmp_path), FakeClock()
    tree.add_zone("intel-rapl:0", "package-0")
    meter = Meter([RaplSource(tree.root, clock)], None, lambda: clock.monotonic_ns() / S, lambda: None, clock, BASELINE)
    window = meter.begin("x")
    tree.move("intel-rapl:0", 5_000_000)
    clock.advance(1.0)
    account = meter.end(window, TaskUse(CpuTime(1.0, "test", covers_children=True), overhead_cpu_s=0.0)).account
    meter.close()
    assert (account.counter_uj, account.idle_uj, account.tasks_uj) == (5_000_000, 5_000_000, 0)
