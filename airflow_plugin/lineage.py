"""The facet ``tao_energy`` of OpenLineage's task events: what the try has used.

Airflow's OpenLineage provider calls ``energy_facet`` where its own settings name it:
``[openlineage] custom_run_facets = airflow_plugin.lineage.energy_facet``.
"""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger("tao_flows.airflow")


def energy_facet(task_instance: Any, ti_state: Any) -> dict[str, Any]:
    """The facet, by its name, when a try has ended; none before, and of a try that is not metered. Never raises.

    Args:
        task_instance: that runs here.
        ti_state: how it stands, as Airflow says it.
    """
    try:
        if str(getattr(ti_state, "value", ti_state)) == "running":
            return {}
        from airflow_plugin.metering import energy_so_far
        from tao_flows.governance.formats.openlineage import NAME, facet

        energy = energy_so_far(task_instance)
        return {} if energy is None else {NAME: facet(energy)}
    except Exception:
        log.warning("the energy of a task is in none of its lineage events", exc_info=True)
        return {}
