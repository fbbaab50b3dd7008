"""What Prefect loads to know our workers: the entry point ``prefect.collections`` names this module."""

from __future__ import annotations

from tao_flows.prefect.worker import TaoProcessWorker, register

__all__ = ["TaoProcessWorker"]

register()
