"""Rows for an engine's table page: plain values, the unit in the column's name."""

from __future__ import annotations

from typing import Any, Final

from tao_flows.figures import Figure, joules
from tao_flows.report.model import RunReport
from tao_flows.report.summary import dearest
from tao_flows.report.text import decision_text, inert

ROW_LIMIT: Final = 500
"""Rows in a table; the rest is summed in one."""


def table_rows(report: RunReport) -> list[dict[str, Any]]:
    """One row a try, in order of start; of more than 500, the dearest first and one row that sums the rest.

    None is unknown. Texts are inert: pages show the cells of such a table as Markdown.
    """
    shown, rest = dearest(report.tasks, ROW_LIMIT)
    rows = [
        {
            "task": inert(row.title),
            **_figures(row.energy, row.power_w, row.cpu_s, row.wall_s, row.share),
            "state": str(row.state),
            "decision": inert(decision_text(row)),
            "pool": inert(row.pool),
            "try": row.key.try_number,
            "map_index": row.map_index,
        }
        for row in shown
    ]
    if rest is not None:
        rows.append(
            {
                "task": rest.label,
                **_figures(rest.energy, None, rest.cpu_s, rest.wall_s, rest.share),
                "state": ", ".join(f"{number} {state}" for state, number in rest.states),
                "decision": "",
                "pool": "",
                "try": None,
                "map_index": None,
            }
        )
    return rows


def _figures(
    energy: Figure, power_w: float | None, cpu_s: float | None, wall_s: float | None, share: float | None
) -> dict[str, Any]:
    return {
        "energy_j": joules(energy.value_uj),
        "quality": str(energy.quality),
        "low_j": joules(energy.low_uj),
        "high_j": joules(energy.high_uj),
        "power_w": _rounded(power_w, 3),
        "cpu_s": _rounded(cpu_s, 3),
        "wall_s": _rounded(wall_s, 3),
        "share": _rounded(share, 4),
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
