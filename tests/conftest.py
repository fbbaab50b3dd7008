"""What every test runs under."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("default", deadline=None)
# Continuous integration tries the same examples every time: a red run can be run again at a desk.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

collect_ignore = [
    folder
    for folder, engine in (("airflow_engine", "airflow"), ("prefect_engine", "prefect"), ("typing", "prefect"))
    if find_spec(engine) is None
]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads the settings of the person who runs it, or writes into their ledger."""
    for variable in outside_settings(os.environ):
        monkeypatch.delenv(variable)
    home = tmp_path_factory.mktemp("xdg")
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))


def outside_settings(env: Mapping[str, str]) -> list[str]:
    return [name for name in env if name.startswith("TAO_FLOWS_") and name != "TAO_FLOWS_CI"]


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
