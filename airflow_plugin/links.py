"""The button on every task's page that opens the energy report of its run."""

from __future__ import annotations

from typing import Any

from airflow.sdk.bases.operatorlink import BaseOperatorLink

from airflow_plugin.web import PREFIX, run_path, site_path


class EnergyLink(BaseOperatorLink):  # type: ignore[misc]
    """Leads to the page of the run, at the task. The API server asks for it; nothing is looked up."""

    name = "Energy"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002 - Airflow's signature
        """The address, from the server's root on."""
        return site_path() + PREFIX + run_path(ti_key.dag_id, ti_key.run_id, ti_key.task_id)
