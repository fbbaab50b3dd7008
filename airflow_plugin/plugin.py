"""The plugin that Airflow loads in every process: listeners, pages, links.

Airflow reads each part of it only where that part is used, so each is imported when it is read: the listeners where
task instances, DAG runs or Airflow's own jobs change state, the rest in the API server.
"""

from __future__ import annotations

import logging
from functools import cached_property
from importlib import import_module
from typing import Any

from airflow.plugins_manager import AirflowPlugin

log = logging.getLogger("tao_flows")


class TaoPlugin(AirflowPlugin):  # type: ignore[misc]
    """Energy of every task, decisions that weigh it, and a record that shows it."""

    name = "tao_flows"

    @cached_property
    def listeners(self) -> list[Any]:
        """The module of our hooks. Airflow asks once for each of its two listener managers: core's and the SDK's."""
        return _imported("airflow_plugin.listener")

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:
        """The pages. What is mounted imports FastAPI only when it is first asked for a page."""
        from airflow_plugin.web import PREFIX, LazyApp

        return [{"app": LazyApp(), "url_prefix": PREFIX, "name": "tao-flows"}]

    @cached_property
    def fastapi_root_middlewares(self) -> list[dict[str, Any]]:
        """What seals bundles for as long as the API server serves."""
        from airflow_plugin.sealing import SealingMiddleware

        return [{"middleware": SealingMiddleware, "name": "tao-flows bundles"}]

    @cached_property
    def external_views(self) -> list[dict[str, Any]]:
        """The tabs of a DAG run and of a task instance, and the fleet in the navigation (from Airflow 3.1 on)."""
        from airflow_plugin.web import external_views

        return external_views()

    @cached_property
    def global_operator_extra_links(self) -> list[Any]:
        """A button on every task that opens its run's page: the only way there is on Airflow 3.0."""
        return [module.EnergyLink() for module in _imported("airflow_plugin.links")]


def _imported(name: str) -> list[Any]:
    try:
        return [import_module(name)]
    except Exception:
        # Airflow would not start without it; it does without us.
        log.exception("tao-flows is off in this process: %s cannot be imported", name)
        return []
