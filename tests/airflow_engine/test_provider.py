from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_plugin.provider_info import OPTIONS, get_provider_info
from tao_flows.config import SETTINGS, load_config

pytestmark = pytest.mark.airflow


@pytest.fixture(scope="module")
def airflow_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("airflow")


def python(airflow_home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"AIRFLOW_HOME": str(airflow_home), "HOME": str(airflow_home)} | env,
        cwd=airflow_home,
    )
    assert run.returncode == 0, run.stderr
    return run


def config(airflow_home: Path, **env: str) -> dict[str, dict[str, object]]:
    """By name, what ``tao-flows config --engine airflow --json`` shows."""
    code = "import typer; from tao_flows.cli.config import config_command; typer.run(config_command)"
    run = python(airflow_home, "-c", code, "--engine", "airflow", "--json", **env)
    return {setting["name"]: setting for setting in json.loads(run.stdout)["settings"]}


def test_airflow_lists_the_provider(airflow_home):
    run = python(airflow_home, "-m", "airflow", "providers", "list", "--output", "json")
    providers = {provider["package_name"]: provider for provider in json.loads(run.stdout)}
    assert providers["tao-flows"]["version"] == "0.1.0"


def test_airflow_knows_the_section_and_reads_it_as_it_reads_its_own(airflow_home):
    run = python(airflow_home, "-m", "airflow", "config", "list", "--section", "tao_flows", "--include-descriptions")
    for name in OPTIONS:
        assert f"# {name} = " in run.stdout
    assert "Overridden by TAO_FLOWS_MODE." in run.stdout
    run = python(
        airflow_home, "-m", "airflow", "config", "get-value", "tao_flows", "mode", AIRFLOW__TAO_FLOWS__MODE="off"
    )
    assert run.stdout.strip() == "off"


def test_every_option_is_a_setting_and_its_example_is_one_that_is_accepted():
    options = get_provider_info()["config"]["tao_flows"]["options"]
    assert tuple(options)[: len(OPTIONS)] == OPTIONS
    assert set(OPTIONS) <= set(SETTINGS)
    examples = {name: option["example"] for name, option in options.items() if name in OPTIONS}
    resolved = load_config(env={}, engine=examples, engine_name="airflow")
    assert {resolved.origins[name] for name in OPTIONS} == {"airflow"}


def test_what_airflow_sets_is_a_layer_of_the_settings_under_the_environment(airflow_home):
    shown = config(
        airflow_home,
        AIRFLOW__TAO_FLOWS__MODE="off",
        AIRFLOW__TAO_FLOWS__LEDGER_CMD="echo /var/ledger.db",
        AIRFLOW__TAO_FLOWS__TEAM="airflow",
        AIRFLOW__TAO_FLOWS__OWNER="",
        TAO_FLOWS_TEAM="environment",
    )
    values = {name: (setting["value"], setting["origin"]) for name, setting in shown.items()}
    assert values["mode"] == ("off", "airflow")
    assert values["ledger"] == ("sqlite:////var/ledger.db", "airflow")
    assert values["team"] == ("environment", "environment")
    assert values["owner"] == ("", "default")


def test_options_that_airflow_leaves_open_are_left_to_the_file(airflow_home):
    (airflow_home / "tao-flows.toml").write_text('mode = "advise"\n', encoding="utf-8")
    try:
        shown = config(airflow_home)
    finally:
        (airflow_home / "tao-flows.toml").unlink()
    assert shown["mode"]["value"] == "advise"
    assert shown["namespace"]["origin"] == "default"
