"""What Airflow's own commands say of us: the provider, its connection type, its section, its plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import airflow
import pytest

from airflow_plugin.provider_info import get_provider_info

pytestmark = pytest.mark.airflow

HIDES = tuple(int(part) for part in airflow.__version__.split(".")[:2]) >= (3, 2)
"""Whether `airflow config list` can be told to hide what is secret: with `tao_flows` as with its own."""


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of Airflow's in the session's home."""
    return subprocess.run(
        [sys.executable, "-m", "airflow", *arguments], capture_output=True, text=True, env=os.environ | env
    )


def ours(*arguments: str) -> list[dict[str, Any]]:
    """Our rows among those that a command lists."""
    done = command(*arguments, "--output", "json")
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout[done.stdout.index("[{") :])  # a warning may come first
    return [row for row in listed if "tao_flows" in json.dumps(row) or "airflow_plugin" in json.dumps(row)]


def test_the_connection_type_is_listed_with_its_hook():
    (hook,) = ours("providers", "hooks")
    assert (hook["connection_type"], hook["class"]) == ("tao_flows", "airflow_plugin.hook.TaoHook")
    assert (hook["conn_id_attribute_name"], hook["hook_name"]) == ("tao_conn_id", "tao-flows")


def test_the_link_is_listed():
    (link,) = ours("providers", "links")
    assert link["extra_link_class_name"] == "airflow_plugin.links.EnergyLink"


def test_the_plugin_is_listed_with_its_pages():
    (plugin,) = ours("plugins")
    assert plugin["name"] == "tao_flows"
    assert "tao-flows==" in plugin["source"]
    assert "/tao" in json.dumps(plugin["fastapi_apps"])


def test_the_section_is_listed_and_the_ledgers_password_can_be_hidden():
    hides = ("--show-values", "--hide-sensitive") if HIDES else ()
    env = {"AIRFLOW__TAO_FLOWS__LEDGER": "postgresql://tao:hunter2@db/tao", "AIRFLOW__TAO_FLOWS__GATE": "on"}
    listed = command("config", "list", "--section", "tao_flows", *hides, **env)
    assert listed.returncode == 0, listed.stderr
    assert "[tao_flows]" in listed.stdout
    assert "gate = on" in listed.stdout
    assert not HIDES or ("hunter2" not in listed.stdout and "ledger = < hidden >" in listed.stdout)


def test_the_metadata_is_by_airflows_own_schema():
    from jsonschema import validate

    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    validate(get_provider_info(), schema)


@pytest.mark.usefixtures("airflow_database")
def test_a_connection_is_added_and_tested_as_any_other_and_doctor_reads_the_ledger_by_it(tmp_path):
    add = ("connections", "add", "tao_added", "--conn-type", "tao_flows", "--conn-host", f"{tmp_path}/ledger.db")
    assert command(*add).returncode == 0
    tested = command("connections", "test", "tao_added", AIRFLOW__CORE__TEST_CONNECTION="Enabled")
    assert "Connection success!" in tested.stdout, tested.stdout + tested.stderr
    doctor = subprocess.run(
        [Path(sys.executable).with_name("tao-flows"), "doctor", "--engine", "airflow", "--json"],
        capture_output=True, text=True, env=os.environ | {"AIRFLOW__TAO_FLOWS__LEDGER": "conn:tao_added"},
    )  # fmt: skip
    assert doctor.returncode == 0, doctor.stderr
    found = json.loads(doctor.stdout)
    assert (found["ledger"]["url"], found["ledger"]["summary"]) == ("conn:tao_added", "0 runs recorded")
    checks = {check["id"]: check["status"] for check in found["deployment"]}
    assert checks == {
        "mode": "ready", "executor": "ready", "triggerer": "absent", "sharing": "ready", "places": "absent",
        "pages": "ready", "plugin": "ready", "signing": "absent",
    }  # fmt: skip
