"""benchmarks/gpu_check.py, which needs a GPU: here what it does without one, and with the stand-in driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def check(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, REPOSITORY / "benchmarks" / "gpu_check.py", *arguments]
    settings = {**os.environ, "PYTHONPATH": str(REPOSITORY), **env}
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120)


def test_power_is_integrated_over_the_seconds_of_the_counter_and_loads_that_cannot_run_say_why(
    nvml_library: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    state = tmp_path / "state"
    state.write_text("count 2\nenergy0 1\nenergy1 1000\npower1 100000\npids1 41,42\nutil1 41:30,42:10\n")
    # No libcuda to be loaded, whatever this machine has.
    (tmp_path / "libcuda.so.1").write_text("none")
    libraries = {"LD_LIBRARY_PATH": f"{tmp_path}:{nvml_library()}", "FAKE_NVML_STATE": str(state)}
    done = check("--gpu", "1", "--seconds", "0.6", **libraries)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["schema"], found["gpu"], found["uuid"]) == ("tao-flows/benchmark-gpu/1", "gpu-1", "GPU-fake-1")
    idle = found["phases"]["idle"]
    assert idle["integrated_j"] == pytest.approx(100.0 * idle["wall_s"], rel=0.1)
    assert (idle["counter_j"], idle["counter_step_s"]) == (0, None)
    assert idle["power_w"] == {"least": 100.0, "mean": 100.0, "most": 100.0}
    assert idle["holders"] == [41, 42]
    assert idle["utilised_s"]["41"] == pytest.approx(3 * idle["utilised_s"]["42"])
    assert [(one["pid"], one["sm"]) for one in idle["samples_since_begin"]] == [(41, 30), (42, 10)]
    assert idle["split"] == {
        "code": "GPU_HELD_BY_OTHERS",
        "loads_j": {},
        "allocated_idle_j": 0.0,
        "unattributed_j": 0.0,
    }
    for phase in ("held", "load", "shared"):
        assert "libcuda.so.1" in found["phases"][phase]["left_out"]


def test_each_load_is_a_process_that_works_until_its_phase_ends(
    nvml_library: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    state, launches = tmp_path / "state", tmp_path / "launches"
    state.write_text("count 1\nenergy0 1000\npower0 100000\npids0 41\nutil0 none\n")
    instant = ("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuModuleLoadData")
    instant = (*instant, "cuModuleGetFunction", "cuMemAlloc_v2")
    source = "".join(f"int {name}(void) {{ return 0; }}\n" for name in instant)
    # One dot a launch, each of which takes 5 ms.
    source += f"""
#include <fcntl.h>
#include <unistd.h>
int cuLaunchKernel(void) {{
    int file = open("{launches}", O_WRONLY | O_APPEND | O_CREAT, 0600);
    return write(file, ".", 1) != 1 || close(file);
}}
int cuCtxSynchronize(void) {{ return usleep(5000); }}
"""
    (tmp_path / "cuda.c").write_text(source)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", tmp_path / "cuda.c"], check=True, cwd=tmp_path
    )
    libraries = {"LD_LIBRARY_PATH": f"{tmp_path}:{nvml_library()}", "FAKE_NVML_STATE": str(state)}
    done = check("--seconds", "0.5", "--settle", "0", **libraries)
    assert done.returncode == 0, done.stderr
    phases = json.loads(done.stdout)["phases"]
    duties = {phase: [each["duty"] for each in found["loads"]] for phase, found in phases.items()}
    assert duties == {"idle": [], "held": [0.0], "load": [1.0], "shared": [1.0, 0.25]}
    pids = [each["pid"] for found in phases.values() for each in found["loads"]]
    assert len(set(pids)) == 4
    assert not any(Path("/proc", str(pid)).exists() for pid in pids)
    assert launches.stat().st_size > 20


@pytest.mark.parametrize(
    ("state", "arguments", "said"),
    [("count 0", (), "NVML_NO_GPU"), ("count 1;energy0 1;power0 1", ("--gpu", "3"), "there is no gpu-3")],
    ids=["none", "another"],
)
def test_without_that_gpu_it_says_so_and_does_not_fail(
    nvml_library: Callable[..., Path], tmp_path: Path, state: str, arguments: tuple[str, ...], said: str
) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    file = tmp_path / "state"
    file.write_text(state.replace(";", "\n"))
    done = check(*arguments, LD_LIBRARY_PATH=str(nvml_library()), FAKE_NVML_STATE=str(file))
    assert done.returncode == 0, done.stderr
    assert said in json.loads(done.stdout)["left_out"]


@pytest.mark.parametrize("arguments", [("--seconds", "0"), ("--seconds", "nan"), ("--settle", "-1"), ("--gpu", "x")])
def test_what_it_cannot_be_told_is_refused(arguments: tuple[str, ...]) -> None:
    done = check(*arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr
