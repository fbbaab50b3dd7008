"""What each of Airflow's processes loads on our account, beside the same process without us."""

from __future__ import annotations

import pytest
from import_cost import ROLES, Process, brought, is_ours, run

pytestmark = pytest.mark.airflow

OF_OTHERS = {"difflib", "encodings.ascii", "pwd", "resource"}
"""All that we bring: the standard library's, small, and what corrects a mistyped setting."""
DECIDES_AND_METERS = {
    "admission",
    "agent",
    "controller",
    "ledger",
    "meter",
    "profiles",
    "report",
    "runtime",
    "telemetry",
}
"""Parts of ours that are for the scheduler and for tasks."""


@pytest.fixture(params=ROLES, scope="module")
def processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Process, Process]:
    """A role, its process without us, and with us."""
    home = tmp_path_factory.mktemp("airflow")
    plain, ours = (run(request.param, plain=plain, home=home) for plain in (True, False))
    return request.param, plain, ours


def test_no_process_loads_a_library_on_our_account(processes):
    _, plain, ours = processes
    assert brought(plain, ours) <= OF_OTHERS


def test_who_neither_decides_nor_meters_loads_neither(processes):
    role, _, ours = processes
    loaded = {name.split(".")[1] for name in ours.modules if name.startswith("tao_flows.")}
    assert loaded
    assert (role in {"API server", "DAG processor"}) == (not loaded & DECIDES_AND_METERS)


def test_every_process_loads_our_plugin_or_policy(processes):
    _, plain, ours = processes
    assert not any(map(is_ours, plain.modules))
    assert {"airflow_plugin.plugin", "airflow_plugin.policy"} & ours.modules
