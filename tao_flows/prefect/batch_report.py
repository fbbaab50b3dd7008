"""The items of batches in a run's report: each with its share of its batch's joules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tao_flows.batching import shares
from tao_flows.figures import joules
from tao_flows.records import TaskRecord
from tao_flows.report.tables import ROW_LIMIT
from tao_flows.report.text import inert


@dataclass(frozen=True, slots=True)
class Spent:
    """What is remembered of an item."""

    state: str
    ran_by: tuple[str, int]
    """The task run of its batch, and the number of its try."""
    cpu_s: float
    tries: int


@dataclass(frozen=True, slots=True)
class BatchItems:
    """The items of one batch."""

    task: str
    pool: str
    items: Mapping[int, Spent]
    """By number in the map call."""


def item_rows(batches: Sequence[BatchItems], records: Sequence[TaskRecord]) -> list[dict[str, Any]]:
    """A row for each item, as ``table_rows`` has them for task runs: of more than 500, the dearest.

    Args:
        batches: those of a flow run.
        records: of its tasks. The batches' own rows hold the same joules.
    """
    rows = [row for batch in batches for row in _rows(batch, records)]
    if len(rows) <= ROW_LIMIT:
        return rows
    return sorted(rows, key=lambda row: row["energy_j"] or 0.0, reverse=True)[:ROW_LIMIT]


def _rows(batch: BatchItems, records: Sequence[TaskRecord]) -> list[dict[str, Any]]:
    figures = shares([{spent.ran_by: spent.cpu_s} for spent in batch.items.values()], records)
    return [
        {
            "task": inert(f"{batch.task}[{number}]"),
            "energy_j": joules(figure.value_uj),
            "quality": str(figure.quality),
            "low_j": joules(figure.low_uj),
            "high_j": joules(figure.high_uj),
            "power_w": None,
            "cpu_s": round(spent.cpu_s, 6),
            "wall_s": None,
            "share": None,
            "state": spent.state,
            "decision": "",
            "pool": inert(batch.pool),
            "try": spent.tries,
            "map_index": number,
        }
        for (number, spent), figure in zip(batch.items.items(), figures, strict=True)
    ]
