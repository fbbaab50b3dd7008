"""What every test runs under."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tao_flows.telemetry.cputime import HostBusy
from tao_flows.testing import PowercapTree
from tao_flows.units import uj_from_j

settings.register_profile("default", deadline=None)
# Continuous integration tries the same examples every time: a red run can be run again at a desk.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# A shell has what it starts in its background ignore SIGINT, and so would all that tests start: servers and workers
# would not end when they are told to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["postgres_fixtures"]

collect_ignore = [
    folder
    for folder, engine in (("airflow_engine", "airflow"), ("prefect_engine", "prefect"), ("typing", "prefect"))
    if find_spec(engine) is None
]


# What they assert depends on who else works on this machine: they run one after another, the others side by side.
ALONE = (
    "agent", "test_agent_client", "test_agent_meter", "test_benchmarks", "test_cgroup", "test_cli_calibrate",
    "test_cli_meter", "test_command", "test_cputime", "test_ebpf", "test_gpu_check", "test_measuring", "test_meter",
    "test_one_process", "test_party_counter_contract", "test_perf", "test_perf_parties", "test_polled_parties",
    "test_readme",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in ALONE or item.path.parent.name in ALONE:
            item.add_marker("alone")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads the settings of the person who runs it, or writes into their ledger."""
    for variable in outside_settings(os.environ):
        monkeypatch.delenv(variable)
    home = tmp_path_factory.mktemp("xdg")
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    # Nor does one ask the agent that this very host may have.
    monkeypatch.setenv("TAO_FLOWS_AGENT", "off")
    # Else the file that root has calibrated this very host with would be taken.
    monkeypatch.setenv("TAO_FLOWS_CALIBRATION", str(home / "state/tao-flows/idle.json"))


def outside_settings(env: Mapping[str, str]) -> list[str]:
    return [name for name in env if name.startswith("TAO_FLOWS_") and name != "TAO_FLOWS_CI"]


J_PER_CPU_S = 10.0
"""What a busy CPU second costs on the host of ``run_powered``."""


@pytest.fixture
def run_powered(tmp_path: Path) -> Callable[..., str]:
    """Runs a program on a host whose counter moves with its busy CPU seconds, so that the joules of all are known.

    Gives what the program printed. The counter is moved from this process, out of the program's way.
    """

    def run(*command: str) -> str:
        tree = PowercapTree(tmp_path / "powercap")
        tree.add_zone("intel-rapl:0", "package-0")
        env = {**os.environ, "TAO_FLOWS_POWERCAP_ROOT": str(tree.root), "TAO_FLOWS_SOURCES": "rapl"}
        out, err, busy = tmp_path / "out", tmp_path / "err", HostBusy()
        begun_s = busy.read()
        assert begun_s is not None
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=env)
        try:
            while process.poll() is None:
                tree.set("intel-rapl:0", uj_from_j(((busy.read() or begun_s) - begun_s) * J_PER_CPU_S))
                time.sleep(0.002)
        finally:
            process.kill()
            process.wait()
            busy.close()
        assert process.returncode == 0, err.read_text()[-4000:]
        return out.read_text()

    return run


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    # Continuous integration has everything that a test may ask for; a skip there is a gap nobody sees.
    if os.environ.get("TAO_FLOWS_CI") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"nothing may be skipped with TAO_FLOWS_CI=1: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report


def pytest_report_header() -> Any:
    return "tao-flows: a skip is a failure" if os.environ.get("TAO_FLOWS_CI") == "1" else None
