"""Airflow's policies: what happens to every task of every DAG, with no change of the DAG.

Airflow imports this in every process, and does not start where that fails: what it needs is imported when it is called.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Final

from airflow.policies import hookimpl

log = logging.getLogger("tao_flows.airflow")

_SUPERVISOR: Final = "airflow.sdk.execution_time.supervisor"
"""Loaded where processes are forked for tasks and for DAG files."""
_loaded_ahead = False


@hookimpl
def task_policy(task: Any) -> None:
    """Runs where DAGs are parsed: puts what the author asked of us where the scheduler and the worker find it.

    A DAG that asks for nothing stays as it is.

    Raises:
        AirflowClusterPolicyViolation: what the author asked is malformed: an import error of the DAG.
    """
    try:
        from airflow_plugin.options import stamp
    except Exception:  # without us the DAG must still be parsed
        log.warning("tao-flows is off in this process: it cannot be imported", exc_info=True)
        return
    stamp(task)


def load_ahead() -> None:
    """Imports in a process that forks tasks, once, what each of them would import: it saves them most of their time."""
    global _loaded_ahead
    if _loaded_ahead or _SUPERVISOR not in sys.modules:
        return
    _loaded_ahead = True
    try:
        import airflow_plugin.listener
        import airflow_plugin.metering
        import airflow_plugin.options  # noqa: F401
        from airflow_plugin.settings import watcher
        from tao_flows.ledger import open_ledger

        # It connects to nothing, and has its database's driver imported.
        open_ledger(watcher().get().config.ledger)
    except Exception:  # where it is needed it is told
        log.debug("tao-flows cannot be imported", exc_info=True)


os.register_at_fork(before=load_ahead)
