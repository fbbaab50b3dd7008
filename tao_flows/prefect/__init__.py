"""The Prefect adapter: ``tao_task`` and ``tao_flow``."""

from __future__ import annotations

from tao_flows.prefect.flow import TaoFlow, tao_flow
from tao_flows.prefect.flow_run import energy_of
from tao_flows.prefect.task import TaoTask, tao_task

__all__ = ["TaoFlow", "TaoTask", "energy_of", "tao_flow", "tao_task"]
