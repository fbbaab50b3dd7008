"""Which old runs a ledger keeps whole: those that are not over, not sealed, or that predictions are made from."""

from __future__ import annotations

from typing import Final

from tao_flows.figures import METHOD
from tao_flows.ledger.base import RunRef, Transaction
from tao_flows.ledger.codec import LOST_RUN
from tao_flows.ledger.whole import GOOD_RUNS, RECENT
from tao_flows.records import UNSEEN_RUN

UNDER_WAY: Final = "under way"
UNSEALED: Final = "not sealed"
PREDICTS: Final = "predictions are made from it"
NEWEST_TRIES: Final = 50
"""Completed tries of a task in a pool that a profile asks for: ``Ledger.history``."""

_KEYS: Final = ("engine", "namespace", "run_id", "flow")
_RUN: Final = " AND ".join(f"{key} = :{key}" for key in _KEYS)
_GOOD: Final = ", ".join(f"'{state}'" for state in (*GOOD_RUNS, UNSEEN_RUN))
_POOL: Final = "(SELECT pool FROM tasks part WHERE {} LIMIT 1)".format(
    " AND ".join(f"part.{key} = {{}}{key}" for key in _KEYS)
)


def why_kept(tx: Transaction, run: RunRef, before_wall_ns: int, *, sealed_only: bool) -> str:
    """Why a run is to stay; empty where it need not.

    Args:
        tx: reads.
        run: its flow must be given.
        before_wall_ns: a run that was heard of since is not over.
        sealed_only: whether a run that has no sealed bundle stays.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    of = {key: getattr(run, key) for key in _KEYS}
    begun = tx.execute(f"SELECT place FROM compacted WHERE {_RUN}", **of)
    if begun and begun[0][0]:
        return ""  # a compactor was interrupted: part of it is summed up
    runs = tx.execute(f"SELECT state, ended_wall_ns, last_wall_ns, started_wall_ns FROM runs WHERE {_RUN}", **of)
    for state, ended_ns, last_ns, _ in runs:
        if last_ns >= before_wall_ns or (ended_ns is None and state not in (LOST_RUN, UNSEEN_RUN)):
            return UNDER_WAY
    if _goes_on(tx, of, before_wall_ns):
        return UNDER_WAY
    if sealed_only and runs and not tx.execute(f"SELECT 1 FROM seals WHERE {_RUN} LIMIT 1", **of):
        return UNSEALED
    is_newest = _tells_of_flow(tx, of, *runs[0]) if runs else False
    return PREDICTS if is_newest or _tells_of_tasks(tx, of) else ""


def _goes_on(tx: Transaction, of: dict[str, str], before_wall_ns: int) -> bool:
    """Whether a task of it runs, waits, or was heard of since."""
    ((last_ns, running),) = tx.execute(
        f"SELECT max(last_wall_ns), sum(CASE WHEN state = 'running' THEN 1 ELSE 0 END) FROM tasks WHERE {_RUN}", **of
    )
    waits = tx.execute(f"SELECT 1 FROM deferrals WHERE {_RUN} AND state IN ('waiting', 'released') LIMIT 1", **of)
    return bool(running or waits) or (last_ns is not None and last_ns >= before_wall_ns)


def _tells_of_tasks(tx: Transaction, of: dict[str, str]) -> bool:
    """Whether any of its tries is among the newest that a profile is made of."""
    tasks = tx.execute(
        f"""SELECT task, pool, max(started_wall_ns) FROM tasks WHERE {_RUN} AND state = 'completed' AND method = :method
        GROUP BY 1, 2""",
        method=METHOD, **of,
    )  # fmt: skip
    # Airflow's tasks are their DAG's own; Prefect's are functions that many flows may call (RunKey.task_flow).
    same_flow = "AND flow = :flow" if of["engine"] == "airflow" else ""
    for task, pool, started_ns in tasks:
        ((newer,),) = tx.execute(
            f"""SELECT count(*) FROM (SELECT 1 FROM tasks WHERE task = :task AND pool = :pool AND method = :method
                AND state = 'completed' AND started_wall_ns > :started {same_flow} LIMIT :most) newer""",
            task=task, pool=pool, method=METHOD, started=started_ns, most=NEWEST_TRIES,
            **({"flow": of["flow"]} if same_flow else {}),
        )  # fmt: skip
        if newer < NEWEST_TRIES:
            return True
    return False


def _tells_of_flow(
    tx: Transaction, of: dict[str, str], state: str, _ended_ns: int | None, _last_ns: int, started_ns: int
) -> bool:
    """Whether it is among the newest good runs of its flow in the pool where its tasks ran."""
    ((pool,),) = tx.execute(f"SELECT {_POOL.format(*[':'] * 4)}", **of)
    if pool is None or state not in (*GOOD_RUNS, UNSEEN_RUN):
        return False
    newer_pool = _POOL.format(*["newer."] * 4)
    ((newer,),) = tx.execute(
        f"""SELECT count(*) FROM (SELECT 1 FROM runs newer WHERE flow = :flow AND state IN ({_GOOD})
            AND started_wall_ns > :started AND {newer_pool} = :pool LIMIT :most) newer""",
        flow=of["flow"], started=started_ns, pool=pool, most=RECENT,
    )  # fmt: skip
    return bool(newer < RECENT)
