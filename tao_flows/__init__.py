"""Energy in Airflow and Prefect: what each task cost, a scheduler that cares, and a record that shows it.

Public names are loaded when they are first used: ``import tao_flows`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tao_flows.budget import EnergyBudget
    from tao_flows.config import TaoConfig
    from tao_flows.controller.decide import decide
    from tao_flows.controller.parse import parse_request
    from tao_flows.errors import TaoError
    from tao_flows.measuring import measure
    from tao_flows.pools import WorkerPool
    from tao_flows.prefect import tao_flow, tao_task

__all__ = [
    "EnergyBudget",
    "TaoConfig",
    "TaoError",
    "WorkerPool",
    "decide",
    "measure",
    "parse_request",
    "tao_flow",
    "tao_task",
]

_HOMES = {
    "EnergyBudget": "tao_flows.budget",
    "TaoConfig": "tao_flows.config",
    "TaoError": "tao_flows.errors",
    "WorkerPool": "tao_flows.pools",
    "decide": "tao_flows.controller.decide",
    "measure": "tao_flows.measuring",
    "parse_request": "tao_flows.controller.parse",
    "tao_flow": "tao_flows.prefect",
    "tao_task": "tao_flows.prefect",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tao_flows' has no attribute {name!r}")
    try:
        value = getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "prefect":
            raise
        from tao_flows.errors import MissingExtraError

        raise MissingExtraError("prefect", name) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
