"""What Airflow's provider registry asks of a package.

Airflow loads this while it starts, in every process, and does not start if it fails: it imports only the settings.
"""

from __future__ import annotations

from typing import Any, Final

from tao_flows.config import SETTINGS, env_name

SECTION: Final = "tao_flows"
"""The section of ``airflow.cfg``."""
OPTIONS: Final = ("mode", "ledger", "sources", "namespace", "team", "owner", "cluster", "log_level")
"""The settings that ``airflow.cfg`` may hold. Those of a single host or run are set where that host or run is."""


def get_provider_info() -> dict[str, Any]:
    """The provider's metadata, by Airflow's provider schema."""
    return {
        "package-name": "tao-flows",
        "name": "tao-flows",
        "description": "Energy of every task in joules, decisions that weigh it, and a record that shows it.",
        "config": {
            SECTION: {
                "description": "Settings of tao-flows. The environment overrides them; a tao-flows.toml does not.",
                "options": {name: _option(name) for name in OPTIONS},
            }
        },
    }


def _option(name: str) -> dict[str, Any]:
    # No default: an option that always has a value would hide the file and the defaults of tao-flows, which come after.
    doc = SETTINGS[name].metadata["doc"]
    return {
        "description": f"{doc[0].upper()}{doc[1:]}. Overridden by {env_name(name)}.",
        "version_added": "0.1.0",
        "type": "string",
        "example": _EXAMPLES[name],
        "default": None,
        "sensitive": name == "ledger",
    }


_EXAMPLES: Final = {
    "mode": "observe",
    "ledger": "/var/lib/tao-flows/ledger.db",
    "sources": "rapl,nvml",
    "namespace": "production",
    "team": "forecasting",
    "owner": "ada",
    "cluster": "north-1",
    "log_level": "INFO",
}
