"""Blocks: settings, pools, signals, budgets and secrets kept in a Prefect server and edited in its UI."""

from prefect_blocks.budget import EnergyBudget
from prefect_blocks.controller import TaoController
from prefect_blocks.ledger import LedgerUrl
from prefect_blocks.pool import WorkerPoolProfile
from prefect_blocks.signal import CarbonSignal, PriceSignal
from prefect_blocks.signing import SigningKey

__all__ = [
    "CarbonSignal",
    "EnergyBudget",
    "LedgerUrl",
    "PriceSignal",
    "SigningKey",
    "TaoController",
    "WorkerPoolProfile",
]
