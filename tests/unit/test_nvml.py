"""NVML through the real pynvml, which loads a library built here in place of the driver's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
PRELUDE = """
import json, os
from pathlib import Path
from tao_flows.errors import SourceError
from tao_flows.telemetry.counter import delta
from tao_flows.telemetry.nvml import NvmlSource
from tao_flows.testing import FakeClock

clock = FakeClock()
def put(text): Path(os.environ["FAKE_NVML_STATE"]).write_text(text.replace(";", "\\n"))
def state(): return Path(os.environ["FAKE_NVML_STATE"]).read_text()
def open_error():
    try:
        NvmlSource(clock)
    except SourceError as error:
        return [error.code, error.summary, error.remedy]
def raw(readings): return [[r.raw_uj, r.error] for r in readings]
def us(): return clock.wall_ns() // 1000
def use(source, gpu="gpu-0"):
    seen = source.use(gpu)
    rounded = None if seen.utilisation is None else {pid: round(s, 6) for pid, s in seen.utilisation.items()}
    return [None if seen.holders is None else sorted(seen.holders), rounded, seen.code]
"""


@pytest.fixture
def run(nvml_library: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")

    def run_body(state: str, body: str, *macros: str) -> Any:
        state_file = tmp_path / "state"
        state_file.write_text(state.replace(";", "\n"))
        env = {**os.environ, "LD_LIBRARY_PATH": str(nvml_library(*macros)), "FAKE_NVML_STATE": str(state_file)}
        code = f"{PRELUDE}\n{body}\nprint(json.dumps(result))"
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run_body


def test_an_energy_counter_in_millijoules_is_read_as_microjoules(run: Callable[..., Any]) -> None:
    body = """
source = NvmlSource(clock)
before = source.read()
put("count 1;energy0 6500")
after = source.read()
result = [raw(before), raw(after), [d.id for d in source.domains], source.domains[0].events, source.max_interval_s]
"""
    before, after, ids, events, interval_s = run("count 1;energy0 1000", body)
    assert before == [[1_000_000, ""]]
    assert after == [[6_500_000, ""]]
    assert ids == ["gpu-0"]
    assert events == []
    assert interval_s == 1.0


def test_each_of_two_gpus_is_a_domain_with_its_board_named(run: Callable[..., Any]) -> None:
    body = """
source = NvmlSource(clock)
result = [raw(source.read()), [d.id for d in source.domains], source.uuids, [d.kind for d in source.domains]]
"""
    readings, ids, uuids, kinds = run("count 2;energy0 1;energy1 2", body)
    assert readings == [[1_000, ""], [2_000, ""]]
    assert ids == ["gpu-0", "gpu-1"]
    assert uuids == {"gpu-0": "GPU-fake-0", "gpu-1": "GPU-fake-1"}
    assert kinds == ["gpu", "gpu"]


INTEGRATE = """
source = NvmlSource(clock)
first = source.read()
clock.advance(0.1)
put("count 1;power0 200000")
second = source.read()
result = [raw(first), raw(second), source.domains[0].events, source.max_interval_s]
"""


@pytest.mark.parametrize("macros", [(), ("WITHOUT_ENERGY",)], ids=["not supported", "function missing"])
def test_without_an_energy_counter_the_power_is_integrated_and_said_to_be(
    run: Callable[..., Any], macros: tuple[str, ...]
) -> None:
    first, second, events, interval_s = run("count 1;power0 100000", INTEGRATE, *macros)
    # 100 W then 200 W, 0.1 s apart: 15 J by the trapezoid rule.
    assert second[0][0] - first[0][0] == 15_000_000
    assert events == ["INTEGRATED_POWER"]
    assert interval_s == 0.1


def test_a_failed_power_read_makes_its_span_unknown_to_whoever_saw_the_error_and_whoever_did_not(
    run: Callable[..., Any],
) -> None:
    body = """
source = NvmlSource(clock)
a = source.read()[0]
clock.advance(0.1); put("count 1;power0 !999")
b = source.read()[0]
clock.advance(0.1); put("count 1;power0 100000")
c = source.read()[0]
clock.advance(0.1)
d = source.read()[0]
name = lambda x, y: type(delta(source.domains[0], x, y)).__name__
result = [b.error, name(a, b), name(b, c), name(a, c), name(a, d), delta(source.domains[0], c, d).energy_uj]
"""
    error, *deltas, later_uj = run("count 1;power0 100000", body)
    assert error == "READ_FAILED:UNKNOWN"
    assert deltas == ["Gap", "Gap", "Reset", "Reset"]
    assert later_uj == 10_000_000


def test_powers_too_far_apart_are_not_joined_by_a_line(run: Callable[..., Any]) -> None:
    body = """
source = NvmlSource(clock)
a = source.read()[0]
clock.advance(3600)
b = source.read()[0]
clock.advance(0.5)
c = source.read()[0]
result = [type(delta(source.domains[0], a, b)).__name__, delta(source.domains[0], b, c).energy_uj]
"""
    assert run("count 1;power0 100000", body) == ["Reset", 50_000_000]


def test_a_gpu_that_cannot_be_metered_is_left_out_with_its_reason_and_the_others_stay(run: Callable[..., Any]) -> None:
    body = "source = NvmlSource(clock)\nresult = [[d.id for d in source.domains], source.notes, raw(source.read())]"
    ids, notes, readings = run("count 3;handle1 !15;energy2 7", body)
    assert ids == ["gpu-2"]
    assert notes == ["gpu-0 left out: NOT_SUPPORTED", "gpu-1 left out: GPU_IS_LOST"]
    assert readings == [[7_000, ""]]


@pytest.mark.parametrize(
    ("code", "error"),
    [(15, "READ_VANISHED"), (4, "READ_DENIED"), (10, "READ_FAILED:TIMEOUT"), (77, "READ_FAILED:CODE_77")],
)
def test_a_gpu_that_fails_midway_gives_an_error_and_never_a_zero(
    run: Callable[..., Any], code: int, error: str
) -> None:
    body = f"""
source = NvmlSource(clock)
put("count 2;energy0 !{code};energy1 5")
result = raw(source.read())
"""
    assert run("count 2;energy0 1;energy1 2", body) == [[None, error], [5_000, ""]]


def test_a_counter_that_runs_backwards_is_a_reset(run: Callable[..., Any]) -> None:
    body = """
source = NvmlSource(clock)
before = source.read()[0]
clock.advance(1); put("count 1;energy0 10")
result = type(delta(source.domains[0], before, source.read()[0])).__name__
"""
    assert run("count 1;energy0 1000", body) == "Reset"


@pytest.mark.parametrize("macros", [(), ("WITHOUT_PROCESSES_V3",)], ids=["v3", "v2 alone"])
def test_holders_are_the_processes_that_compute_on_each_gpu(run: Callable[..., Any], macros: tuple[str, ...]) -> None:
    body = "source = NvmlSource(clock)\nresult = {d.id: use(source, d.id)[0] for d in source.domains}"
    state = "count 3;energy0 1;energy1 1;energy2 1;pids0 41,42;pids2 !4"
    holders = run(state, body, *macros)
    assert holders["gpu-0"] == [41, 42]
    assert holders["gpu-1"] == []
    assert holders["gpu-2"] is None


def test_a_library_without_the_optional_functions_still_meters(run: Callable[..., Any]) -> None:
    body = """
source = NvmlSource(clock)
use(source)
clock.advance(1)
result = [raw(source.read()), source.uuids, use(source)]
"""
    readings, uuids, used = run("count 1;energy0 3", body, "WITHOUT_OPTIONAL")
    assert readings == [[3_000, ""]]
    assert uuids == {"gpu-0": ""}
    assert used == [None, None, "GPU_UTILISATION_NOT_SUPPORTED"]


def test_a_gpu_split_by_mig_is_marked_as_shared(run: Callable[..., Any]) -> None:
    body = "result = [d.events for d in NvmlSource(clock).domains]"
    assert run("count 2;energy0 1;mig0 1;energy1 1;mig1 0", body) == [["MIG_SHARED"], []]


def test_the_processes_of_a_gpu_split_by_mig_show_on_the_board_beside_those_that_may_not_show(
    run: Callable[..., Any],
) -> None:
    body = "source = NvmlSource(clock)\nresult = [use(source, d.id) for d in source.domains]"
    state = "count 2;energy0 1;mig0 1;pids0 41;util0 41:9;energy1 1;mig1 1"
    unsupported = "GPU_UTILISATION_NOT_SUPPORTED"
    assert run(state, body) == [[[0, 41], None, unsupported], [[], None, unsupported]]


def test_utilisation_is_of_the_time_since_the_last_call_in_seconds_of_full_use(run: Callable[..., Any]) -> None:
    body = """
source = NvmlSource(clock)
first = use(source)
clock.advance(1)
put(f"count 1;energy0 1;pids0 41,42;util0 41:60:0:{us()},42:20:0:{us() - 300_000}")
second = use(source)
clock.advance(2)
put(f"count 1;energy0 1;pids0 41,42;util0 41:50:0:{us()},42:20:0:{us() - 2_300_000}")
result = [first, second, use(source)]
"""
    first, second, third = run("count 1;energy0 1;pids0 41,42;util0 41:99:0:1600000000000000", body)
    assert first == [[41, 42], None, ""]
    assert second == [[41, 42], {"41": 0.6, "42": 0.2}, ""]
    # What 42 did was told before.
    assert third == [[41, 42], {"41": 1.0}, ""]


def test_two_gpus_have_their_own_time_stamps(run: Callable[..., Any]) -> None:
    body = """
source = NvmlSource(clock)
use(source, "gpu-0"); use(source, "gpu-1")
clock.advance(1)
put(f"count 2;energy0 1;energy1 1;pids0 41;pids1 41;util0 41:60:0:{us()},41:60:0:5;util1 41:10:0:{us() - 500_000}")
result = [use(source, "gpu-0"), use(source, "gpu-1")]
"""
    found = run("count 2;energy0 1;energy1 1", body)
    assert found == [[[41], {"41": 0.6}, ""], [[41], {"41": 0.05}, ""]]


def test_nobody_is_said_to_have_used_a_gpu_only_after_two_seconds_without_a_sample(run: Callable[..., Any]) -> None:
    body = """
source = NvmlSource(clock)
result = [use(source)]
for step_s in (1, 1, 1, 0.5):
    clock.advance(step_s)
    result.append(use(source))
clock.advance(0.5)
put(f"count 1;energy0 1;pids0 41;util0 41:50:0:{us() - 900_000}")
result.append(use(source))
"""
    uses = run("count 1;energy0 1;pids0 41;util0 none", body)
    assert [used for _, used, _ in uses[:5]] == [None, None, {}, {}, None]
    # A sample that came late is not lost, and not taken for more time than it is of.
    assert uses[5][1] == {"41": 0.55}


def test_samples_that_a_driver_makes_up_are_left_out(run: Callable[..., Any]) -> None:
    body = """
source = NvmlSource(clock)
use(source)
clock.advance(1)
put(f"count 1;energy0 1;util0 41:70:0:{us()},42:3452816:0:{us()},0:50:0:{us()}")
result = use(source)
"""
    assert run("count 1;energy0 1", body)[1] == {"41": 0.7}


def test_a_process_that_ran_a_video_engine_alone_did_use_the_gpu(run: Callable[..., Any]) -> None:
    body = """
source = NvmlSource(clock)
use(source)
clock.advance(1)
put(f"count 1;energy0 1;util0 41:0:80:{us()},42:0:0:{us()}")
result = use(source)
"""
    assert run("count 1;energy0 1", body)[1] == {"41": 0.01, "42": 0.0}


@pytest.mark.parametrize(
    ("util", "code"),
    [
        ("util0 !3", "GPU_UTILISATION_NOT_SUPPORTED"),
        ("util0 !15", "GPU_UTILISATION_FAILED:GPU_IS_LOST"),
        ("util0 !0", ""),
    ],
    ids=["not supported", "lost", "success and no sample"],
)
def test_what_keeps_utilisation_from_being_read_is_said_and_holders_are_kept(
    run: Callable[..., Any], util: str, code: str
) -> None:
    body = "source = NvmlSource(clock)\nuse(source)\nclock.advance(1)\nresult = use(source)"
    assert run(f"count 1;energy0 1;pids0 41;{util}", body) == [[41], None, code]


def test_a_wall_clock_that_was_set_back_begins_utilisation_afresh(run: Callable[..., Any]) -> None:
    body = """
source = NvmlSource(clock)
use(source)
clock.advance(-3600)
set_back = use(source)
clock.advance(1)
put(f"count 1;energy0 1;util0 41:40:0:{us()}")
result = [set_back[1], use(source)[1]]
"""
    assert run("count 1;energy0 1;util0 none", body) == [None, {"41": 0.4}]


def test_in_another_pid_namespace_no_process_is_named(run: Callable[..., Any]) -> None:
    body = """
from tao_flows.telemetry import procfs
procfs.in_hosts_pid_namespace = lambda: False
result = use(NvmlSource(clock))
"""
    assert run("count 1;energy0 1;pids0 41;util0 41:9", body) == [None, None, "GPU_PID_NAMESPACE"]


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("init !9", "NVML_DRIVER"),
        ("init !18", "NVML_DRIVER"),
        ("init !4", "NVML_PERMISSION"),
        ("init !999", "NVML_FAILED"),
        ("count 0", "NVML_NO_GPU"),
        ("count 1", "NVML_NO_COUNTER"),
    ],
)
def test_what_keeps_nvml_from_opening_has_its_code_and_remedy(run: Callable[..., Any], state: str, code: str) -> None:
    found, summary, remedy = run(state, "result = open_error()")
    assert found == code
    assert summary
    assert remedy


def test_a_missing_library_is_absent_not_broken(tmp_path: Path) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    if any(Path(d, "libnvidia-ml.so.1").exists() for d in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")):
        pytest.skip("this machine has the real libnvidia-ml.so.1")
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    code = f"{PRELUDE}\nprint(json.dumps(open_error()))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)[0] == "NVML_ABSENT"


def test_a_missing_pynvml_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").write_text("raise ImportError('no pynvml here')\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    code = f"{PRELUDE}\nprint(json.dumps(open_error()))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    found, _, remedy = json.loads(done.stdout)
    assert found == "NVML_EXTRA_MISSING"
    assert remedy == "pip install 'tao-flows[nvml]'"


def test_closing_twice_shuts_nvml_down_once(run: Callable[..., Any]) -> None:
    body = """
source = NvmlSource(clock)
source.close(); source.close()
result = state().count("shutdown")
"""
    assert run("count 1;energy0 1", body) == 1


def test_an_opening_that_fails_gives_nvml_back(run: Callable[..., Any]) -> None:
    assert run("count 0", "open_error()\nresult = state().count('shutdown')") == 1
