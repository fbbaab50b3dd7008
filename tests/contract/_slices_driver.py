"""A scheduler that admits tasks from slices, and its workers, until it is killed: ``_slices_driver.py URL NAME``.

The scheduler's thread decides without the ledger. A worker claims what a task was admitted with before it runs it, and
runs it only if that is granted; some tasks never get a worker.
"""

from __future__ import annotations

import os
import queue
import random
import sys
import threading
import time

from tao_flows.errors import LedgerError
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.budget_rows import lock
from tao_flows.ledger.budgets import BudgetStore, Claim, holder_of, settle
from tao_flows.records import RunKey, Segment, TaskRecord, TaskState
from tao_flows.slices import SliceKeeper

TASK_LEASE_S = 2.0
SLICE_LEASE_S = 3.0


def main(url: str, name: str) -> None:
    keeper = SliceKeeper(open_ledger(url), lease_s=SLICE_LEASE_S, task_lease_s=TASK_LEASE_S)
    keeper.start()
    admitted: queue.Queue[tuple[RunKey, int]] = queue.Queue()
    chosen = random.Random(name)
    threading.Thread(target=work, args=(open_ledger(url), keeper, admitted, random.Random(name)), daemon=True).start()
    while not keeper.budgets:
        time.sleep(0.01)
    print(keeper.holder, flush=True)
    for number in range(1_000_000):
        key = RunKey("airflow", "default", "dag", name, "task", str(number), 1)
        amount_uj = chosen.randint(1, 2_000_000)
        if not keeper.spend(holder_of(key), [Claim("all", amount_uj)]):
            time.sleep(0.01)
        elif chosen.random() < 0.9:
            admitted.put((key, amount_uj))
        time.sleep(0.005)


def work(ledger: Ledger, keeper: SliceKeeper, admitted: queue.Queue[tuple[RunKey, int]], chosen: random.Random) -> None:
    store = BudgetStore(ledger)
    while True:
        key, amount_uj = admitted.get()
        if chosen.random() < 0.5:
            time.sleep(0.02)  # now and then the scheduler is first to give the task its own
        try:
            if not store.claim(keeper.holder, holder_of(key), [Claim("all", amount_uj)], TASK_LEASE_S).granted:
                continue
            with ledger.transaction() as tx:
                lock(tx, ["all"])
                alive = "SELECT 1 FROM reservations WHERE holder = :holder AND lease_until_wall_ns > :now"
                if tx.execute(alive, holder=holder_of(key), now=tx.now_ns()):
                    settle(tx, record(key, chosen.randint(0, amount_uj)))
        except LedgerError as error:
            if error.code != "LEDGER_BUSY":
                raise


def record(key: RunKey, used_uj: int) -> TaskRecord:
    now_ns = time.time_ns()
    figure = Figure(used_uj, used_uj, used_uj, Quality.ATTRIBUTED)
    measured = Measurement("task", now_ns, 0.01, CpuTime(0.01, "perf", covers_children=True), figure, (), Account())
    return TaskRecord(
        key, Segment("here", "boot", os.getpid(), 1), TaskState.COMPLETED, now_ns, ended_wall_ns=now_ns,
        measurement=measured, budgets=("all",),
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
