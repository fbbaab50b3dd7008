"""Blocks: settings and budgets kept in a Prefect server and edited in its UI."""

from prefect_blocks.budget import EnergyBudget
from prefect_blocks.controller import TaoController

__all__ = ["EnergyBudget", "TaoController"]
