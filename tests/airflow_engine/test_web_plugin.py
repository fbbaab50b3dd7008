"""What Airflow's processes load of the plugin, and what its UI is told of it."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from airflow_plugin import web

pytestmark = pytest.mark.airflow
PAGES = ("airflow_plugin.web.app", "airflow_plugin.web.permissions", "airflow_plugin.links", "tao_flows.report.pages")
LISTENERS = {
    "a task's process": "import airflow.sdk.execution_time.task_runner as t; t.get_listener_manager()",
    "the scheduler": "import airflow.jobs.scheduler_job_runner; import airflow.models.dagrun as d; d.get_listener_manager()",
    "the DAG processor": "import airflow.dag_processing.manager; import airflow.plugins_manager as p; p.ensure_plugins_loaded()",
}


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print('LOADED', *sys.modules)"],
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return set(done.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize("process", LISTENERS)
def test_no_process_but_the_api_server_imports_the_pages(airflow_database, process):
    loaded = loaded_by(LISTENERS[process])
    assert "airflow_plugin.plugin" in loaded
    assert not loaded & set(PAGES)


@pytest.mark.parametrize("process", ["a task's process", "the scheduler"])
def test_the_listeners_are_loaded_where_states_change(airflow_database, process):
    assert "airflow_plugin.listener" in loaded_by(LISTENERS[process])


def test_the_api_server_mounts_the_pages_and_builds_them_when_one_is_asked_for(airflow_database):
    loaded = loaded_by(
        "import warnings; warnings.simplefilter('ignore'); from airflow.api_fastapi.app import create_app; "
        "assert any(getattr(route, 'path', '') == '/tao' for route in create_app(apps='core').routes)"
    )
    assert "fastapi" in loaded
    assert not loaded & set(PAGES)


def test_airflow_finds_no_fault_with_the_plugin(airflow_database):
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "plugins", "--output", "json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    shown = done.stdout
    assert "tao_flows" in shown
    assert "airflow_plugin.listener" in shown
    assert "airflow_plugin.links.EnergyLink" in shown


def test_each_view_has_a_route_of_its_own_and_only_names_that_airflow_fills_in():
    views = web.external_views()
    assert {view["destination"] for view in views} == {"nav", "dag_run", "task_instance"}
    assert len({view["url_route"] for view in views}) == len(views)
    for view in views:
        left = view["href"]
        for name in ("{DAG_ID}", "{RUN_ID}", "{TASK_ID}"):
            left = left.replace(name, "")
        assert "{" not in left
        assert left.startswith("/tao/tab/")


def test_airflow_served_under_a_path_is_linked_to_under_that_path(monkeypatch):
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://example.org/team/airflow/")
    assert all(view["href"].startswith("/team/airflow/tao/") for view in web.external_views())


def test_the_button_on_a_task_leads_to_its_run_opened_at_the_task():
    from airflow_plugin.links import EnergyLink

    ti_key = SimpleNamespace(dag_id="etl", run_id="a/b +1", task_id="load", map_index=3)
    assert EnergyLink().get_link(None, ti_key=ti_key) == "/tao/run/etl/a%2Fb%20%2B1#task-load"
