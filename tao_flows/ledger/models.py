"""Which runs are of a model. Functions over ``Ledger.transaction``, the same statements on both databases."""

from __future__ import annotations

from typing import Final

from tao_flows.ledger import codec
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.tally import DAY_NS
from tao_flows.records import RunRecord

_SAME_RUN: Final = " AND ".join(
    f"{{}}.{column} = {{}}.{column}" for column in ("engine", "namespace", "run_id", "flow")
)


def runs_of_model(ledger: Ledger, model_id: str, since_wall_ns: int = 0) -> list[RunRecord]:
    """The runs started since that name a model, themselves or in a task of theirs, in order of start.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    same = _SAME_RUN.format(*("task", "run") * 4)
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(
            f"""SELECT body FROM runs run WHERE started_wall_ns >= :since AND (model_id = :model
                OR EXISTS (SELECT 1 FROM tasks task WHERE {same} AND task.model_id = :model))
            ORDER BY started_wall_ns, run_id, flow""",
            since=since_wall_ns, model=model_id,
        )  # fmt: skip
    return [codec.load(RunRecord, row[0]) for row in rows]


def unrecorded_runs_of_model(ledger: Ledger, model_id: str, since_wall_ns: int = 0) -> int:
    """Runs of which only tasks are known that name a model: their own record is missing.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    same = _SAME_RUN.format(*("run", "task") * 4)
    with ledger.transaction(write=False) as tx:
        ((number,),) = tx.execute(
            f"""SELECT count(*) FROM (SELECT DISTINCT engine, namespace, run_id, flow FROM tasks task
                WHERE started_wall_ns >= :since AND model_id = :model
                AND NOT EXISTS (SELECT 1 FROM runs run WHERE {same})) orphans""",
            since=since_wall_ns, model=model_id,
        )  # fmt: skip
    return int(number)


def summed_up_of_model(ledger: Ledger, model_id: str, since_wall_ns: int = 0) -> tuple[int, dict[str, int]]:
    """Tries of a model whose records were summed up and are gone, and their known microjoules by quality.

    Args:
        ledger: where the totals are.
        model_id: as runs or tasks named it.
        since_wall_ns: what is of an earlier day (UTC) is left out.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    with ledger.transaction(write=False) as tx:
        rows = tx.execute(
            """SELECT line, label, sum(parts), sum(known), sum(amount) FROM totals
            WHERE model_id = :model AND day >= :since AND line IN ('tries', 'energy') GROUP BY 1, 2 ORDER BY 1, 2""",
            model=model_id, since=since_wall_ns // DAY_NS,
        )  # fmt: skip
    tries = sum(int(parts) for line, _, parts, _, _ in rows if line == "tries")
    return tries, {label: int(uj) for line, label, _, known, uj in rows if line == "energy" and known}
