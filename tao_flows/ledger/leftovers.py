"""What old runs leave that is no row of theirs alone: incidents, and what processes ran in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from tao_flows.ledger.base import Ledger, Transaction
from tao_flows.ledger.lasting import put_totals
from tao_flows.ledger.tally import DAY_NS, Total, TotalKey, new_tally

Attempt = Callable[[Callable[[Transaction], bool]], bool]
_PAGE: Final = 200
_SCANNED: Final = 5_000
_KEY: Final = "run_id = :run_id AND code = :code AND task = :task AND wall_ns = :wall_ns"
# The process of a segment is all but its sequence: ``Segment.id``.
_PROCESS: Final = "rtrim(rtrim(segment, '0123456789'), '/')"


def sum_up_incidents(ledger: Ledger, before_wall_ns: int, attempt: Attempt) -> Counter[str]:
    """Counts old incidents by day and code, and takes them away: those of no run, or of one that is gone.

    Raises:
        LedgerError: the ledger cannot do it.
    """
    taken: Counter[str] = Counter()
    with ledger.transaction(write=False) as tx:
        old = tx.execute(
            """SELECT run_id, code, task, wall_ns FROM incidents part WHERE wall_ns < :before
                AND NOT EXISTS (SELECT 1 FROM runs run WHERE run.run_id = part.run_id)""",
            before=before_wall_ns,
        )
    for begin in range(0, len(old), _PAGE):
        page = old[begin : begin + _PAGE]

        def step(tx: Transaction, page: list[tuple[str, str, str, int]] = page) -> bool:
            tally = new_tally()
            for run_id, code, task, wall_ns in page:
                key = {"run_id": run_id, "code": code, "task": task, "wall_ns": wall_ns}
                # Gone, where another compactor was first.
                for (count,) in tx.execute(f"SELECT count FROM incidents WHERE {_KEY} {tx.for_update}", **key):
                    tx.change(f"DELETE FROM incidents WHERE {_KEY}", **key)
                    whose = TotalKey(wall_ns // DAY_NS, "", "", "", "", "", "incidents", code, "")
                    tally[whose] = tally[whose].plus(Total(int(count), int(count)))
            put_totals(tx, tally)
            return False

        attempt(step)
        taken["incidents"] += len(page)
    return taken


def take_environments(ledger: Ledger, before_wall_ns: int, attempt: Attempt) -> Counter[str]:
    """Takes away old processes of which no record is left, and the environments that no process had.

    Raises:
        LedgerError: the ledger cannot do it.
    """
    with ledger.transaction(write=False) as tx:
        rows = tx.execute("SELECT process FROM processes WHERE seen_wall_ns < :before", before=before_wall_ns)
    gone = sorted({process for (process,) in rows} - _used(ledger)) if rows else []
    taken: Counter[str] = Counter()

    def take(tx: Transaction) -> bool:
        for process in gone[taken["processes"] : taken["processes"] + _PAGE]:
            tx.change("DELETE FROM processes WHERE process = :process", process=process)
        return False

    while taken["processes"] < len(gone):
        attempt(take)
        taken["processes"] = min(len(gone), taken["processes"] + _PAGE)

    def take_bodies(tx: Transaction) -> bool:
        if tx.dialect == "postgresql":  # else one that is just being written would lose its environment
            tx.change("LOCK TABLE environments IN SHARE ROW EXCLUSIVE MODE")
        taken["environments"] = tx.change("DELETE FROM environments WHERE digest NOT IN (SELECT digest FROM processes)")
        return False

    if gone:
        attempt(take_bodies)
    return taken


def _used(ledger: Ledger) -> set[str]:
    """The processes of every record that is there, page by page: no statement reads all of a large ledger."""
    used: set[str] = set()
    for table in ("tasks", "runs"):
        after = -(2**62)
        while True:
            with ledger.transaction(write=False) as tx:
                by_start = f"INDEXED BY {table}_started" if tx.dialect == "sqlite" else ""
                rows = tx.execute(
                    f"""SELECT max(started_wall_ns), {_PROCESS} FROM {table} {by_start}
                    WHERE started_wall_ns > :after AND started_wall_ns <= (SELECT max(at) FROM (
                        SELECT started_wall_ns AS at FROM {table} {by_start} WHERE started_wall_ns > :after
                        ORDER BY started_wall_ns LIMIT :page) page) GROUP BY 2""",
                    after=after, page=_SCANNED,
                )  # fmt: skip
            if not rows:
                break
            used.update(process for _, process in rows)
            after = max(row[0] for row in rows)
    return used
