"""What earlier runs of a flow took as a whole, by the pool that their tasks ran in: a run that may wait is predicted from it.

A function over ``Ledger.transaction``.
"""

from __future__ import annotations

from typing import Any, Final

from tao_flows.figures import METHOD
from tao_flows.ledger.base import History, Ledger, Settled
from tao_flows.records import UNSEEN_RUN
from tao_flows.units import s_from_ns

RECENT: Final = 20
"""Runs that tell, at most: each is summed over its tasks, of which it may have thousands."""
LOOKED: Final = 500
"""Runs of the flow that are looked at, the newest, to find those in the pool."""
GOOD_RUNS: Final = ("completed", "success")
"""States of runs that ended well, in the engines' words."""

_OF_RUN: Final = """task.engine = run.engine AND task.namespace = run.namespace AND task.run_id = run.run_id
    AND task.flow = run.flow"""
_RUN: Final = "engine, namespace, run_id, flow, state, started_wall_ns, ended_wall_ns"
_GOOD: Final = ", ".join(f"'{state}'" for state in (*GOOD_RUNS, UNSEEN_RUN))
# One task tells where a run was before all of its tasks are read. A join that names its order: left to itself, SQLite
# may walk all tasks there are.
_HISTORY: Final = f"""SELECT run.state, run.started_wall_ns, run.ended_wall_ns, count(*), count(task.energy_uj),
        sum(task.energy_uj), min(task.pool), max(task.pool), min(task.method), max(task.method),
        min(task.started_wall_ns), max(task.ended_wall_ns),
        sum(CASE WHEN task.state = 'completed' THEN 1 ELSE 0 END)
    FROM (SELECT {_RUN} FROM (
            SELECT {_RUN} FROM runs WHERE flow = :flow AND state IN ({_GOOD})
            ORDER BY started_wall_ns DESC, run_id LIMIT :looked) run
        WHERE (SELECT task.pool FROM tasks task WHERE {_OF_RUN} LIMIT 1) = :pool
        ORDER BY started_wall_ns DESC, run_id LIMIT :limit) run
    CROSS JOIN tasks task WHERE {_OF_RUN}
    GROUP BY run.engine, run.namespace, run.run_id, run.flow, run.state, run.started_wall_ns, run.ended_wall_ns
    ORDER BY run.started_wall_ns DESC, run.run_id"""


def history_of_flow(ledger: Ledger, flow: str, pool: str, limit: int = RECENT) -> History:
    """What runs of a flow took, of those whose tasks all ran in ``pool``, newest first.

    A run's energy is the sum of its tasks', with every try; None where one is unknown, or was measured by another
    method. Its runtime is from its start to its end. Of a run that is only known by its tasks, and of which all have
    completed, from the first task's start to the last one's end.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(_HISTORY, flow=flow, pool=pool, looked=LOOKED, limit=limit)
    found = (_settled(*row) for row in rows)
    return History(tuple(each for each in found if each is not None))


def _settled(
    state: str,
    started_wall_ns: int,
    ended_wall_ns: int | None,
    segments: int,
    known: int,
    energy_uj: Any,
    *rest: Any,
) -> Settled | None:
    first_pool, last_pool, first_method, last_method, first_ns, last_ns, completed = rest
    unseen = state == UNSEEN_RUN
    if first_pool != last_pool or (unseen and completed < segments):
        return None
    begin_ns, end_ns = (first_ns, last_ns) if unseen else (started_wall_ns, ended_wall_ns)
    whole = known == segments and first_method == last_method == METHOD
    return Settled(
        # PostgreSQL's sums are decimals.
        energy_uj=int(energy_uj) if whole else None,
        runtime_s=None if end_ns is None else s_from_ns(max(0, end_ns - begin_ns)),
        started_wall_ns=begin_ns,
    )
