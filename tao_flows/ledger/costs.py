"""What tasks cost lately by pool, in one look at the newest records."""

from __future__ import annotations

from typing import Final

from tao_flows.figures import METHOD
from tao_flows.ledger.base import Ledger

RECENT: Final = 2_000
"""Completed records looked at: as many however many the ledger holds."""

# The time stands first and alone in the innermost query, so that its index gives the newest without sorting all.
_COSTS: Final = """SELECT task, pool, avg(energy_uj), avg(wall_s) FROM (
        SELECT task, pool, state, method, energy_uj, wall_s FROM tasks
        WHERE started_wall_ns >= 0 ORDER BY started_wall_ns DESC LIMIT :recent) newest
    WHERE state = 'completed' AND method = :method AND energy_uj IS NOT NULL
    GROUP BY task, pool ORDER BY task, pool"""


def recent_costs(ledger: Ledger, recent: int = RECENT) -> list[tuple[str, str, int, float | None]]:
    """Task, pool, mean microjoules and mean seconds of the newest completed records under the present method.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    with ledger.transaction(write=False) as transaction:
        rows = transaction.execute(_COSTS, recent=recent, method=METHOD)
    return [
        (task, pool, round(energy_uj), None if wall_s is None else float(wall_s))
        for task, pool, energy_uj, wall_s in rows
    ]
