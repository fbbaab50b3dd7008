"""The Prefect adapter: ``tao_task`` and ``tao_flow``.

Public names are loaded when they are first used: Prefect imports this package wherever it looks for types of workers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tao_flows.prefect.flow import TaoFlow, tao_flow
    from tao_flows.prefect.flow_run import energy_of
    from tao_flows.prefect.remote_work import remote
    from tao_flows.prefect.task import TaoTask, tao_task

__all__ = ["TaoFlow", "TaoTask", "energy_of", "remote", "tao_flow", "tao_task"]

_HOMES = {
    "TaoFlow": "flow",
    "TaoTask": "task",
    "energy_of": "flow_run",
    "remote": "remote_work",
    "tao_flow": "flow",
    "tao_task": "task",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
