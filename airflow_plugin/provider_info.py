"""What Airflow's provider registry asks of a package.

Airflow loads this while it starts, in every process, and does not start if it fails: it imports only the settings.
"""

from __future__ import annotations

from typing import Any, Final

from tao_flows.config import SETTINGS, env_name

SECTION: Final = "tao_flows"
"""The section of ``airflow.cfg``."""
OPTIONS: Final = (
    "mode", "ledger", "sources", "namespace", "team", "owner", "cluster", "log_level", "report_artifacts", "pools",
    "calibration", "agent", "bundles", "bundle_storage", "signing_key",
)  # fmt: skip
"""The settings that ``airflow.cfg`` may hold. Those of a single host or run are set where that host or run is."""
FILE_OPTION: Final = "config"
"""Names the file of settings that are tables: budgets, rules and signals."""
GATE_OPTION: Final = "gate"
REMOTE_OPTION: Final = "remote_operators"
"""Class names of operators, or patterns of them, whose work runs elsewhere; after ``-``, of those whose does not."""
CONNECTION_TYPE: Final = "tao_flows"
HOOK_NAME: Final = "tao-flows"
FORM: Final = {
    "hidden-fields": [],
    "relabeling": {
        "host": "Ledger: host of its PostgreSQL, https:// of its ingest, or its path",
        "schema": "Database",
        "login": "User",
        "password": "Password, ingest token or provider's key",  # the name of a field
        "extra": "Driver's parameters, or keys by provider",
    },
    "placeholders": {
        "host": "ledger.example.com",
        "schema": "tao_flows",
        "port": "5432",
        "extra": '{"sslmode": "verify-full"}',
    },
}
"""How the fields of a connection are shown, in the words of Airflow's ``provider.yaml``."""


def get_provider_info() -> dict[str, Any]:
    """The provider's metadata, by Airflow's provider schema."""
    return {
        "package-name": "tao-flows",
        "name": "tao-flows",
        "description": "Energy of every task in joules, decisions that weigh it, and a record that shows it.",
        "connection-types": [
            {
                "connection-type": CONNECTION_TYPE,
                "hook-class-name": "airflow_plugin.hook.TaoHook",
                "hook-name": HOOK_NAME,
                "ui-field-behaviour": FORM,
            }
        ],
        "task-decorators": [
            {"class-name": "airflow_plugin.decorators.tao_task", "name": "tao"},
            {"class-name": "airflow_plugin.batch.tao_batch", "name": "tao_batch"},
        ],
        "extra-links": ["airflow_plugin.links.EnergyLink"],
        "triggers": [
            {"integration-name": "tao-flows", "python-modules": ["airflow_plugin.triggers", "airflow_plugin.bundles"]}
        ],
        "config": {
            SECTION: {
                "description": "Settings of tao-flows. The environment overrides them; a tao-flows.toml does not.",
                "options": {name: _setting(name) for name in OPTIONS} | _ONLY_HERE,
            }
        },
    }


def _setting(name: str) -> dict[str, Any]:
    doc = SETTINGS[name].metadata["doc"]
    told = f"{doc[0].upper()}{doc[1:]}. Overridden by {env_name(name)}."
    return _option(told, _EXAMPLES[name], sensitive=name == "ledger")


def _option(description: str, example: str, *, sensitive: bool = False) -> dict[str, Any]:
    # No default: an option that always has a value would hide the file and the defaults of tao-flows, which come after.
    return {
        "description": description,
        "version_added": "0.1.0",
        "type": "string",
        "example": example,
        "default": None,
        "sensitive": sensitive,
    }


_EXAMPLES: Final = {
    "mode": "observe",
    "ledger": "conn:tao_ledger",
    "sources": "rapl,nvml",
    "namespace": "production",
    "team": "forecasting",
    "owner": "ada",
    "cluster": "north-1",
    "log_level": "INFO",
    "report_artifacts": "failures",
    "pools": "/etc/tao-flows/pools.toml",
    "calibration": "/var/lib/tao-flows/idle.json",
    "agent": "/run/tao-flows/agent.sock",
    "bundles": "/var/lib/tao-flows/bundles",
    "bundle_storage": "s3://records/tao-flows",
    "signing_key": "/etc/tao-flows/signing.key",
}
_ONLY_HERE: Final = {
    FILE_OPTION: _option(
        "TOML file with budgets, rules, signals and what is set nowhere else. Overridden by TAO_FLOWS_CONFIG.",
        "/etc/tao-flows/config.toml",
    ),
    GATE_OPTION: _option(
        "Whether a worker asks before it runs a task, and may defer it: auto where the executor has not decided, on or "
        "off.",
        "auto",
    ),
    REMOTE_OPTION: _option(
        "Operators whose work runs elsewhere, by class name or pattern, beside those that are known; after a minus those "
        "whose work runs here.",
        "MyCluster*, -SparkSubmitOperator",
    ),
}
