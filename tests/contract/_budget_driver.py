"""A process that admits work against a budget until it is killed: ``_budget_driver.py URL NAME ACKNOWLEDGED``.

It reserves, works for a moment, and settles a part of what it reserved; what it knows to be settled it writes down.
"""

from __future__ import annotations

import os
import random
import sys
import time

from tao_flows.errors import LedgerError
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import open_ledger
from tao_flows.ledger.budget_rows import lock
from tao_flows.ledger.budgets import BudgetStore, Claim, holder_of, settle
from tao_flows.records import RunKey, Segment, TaskRecord, TaskState

LEASE_S = 0.5


def main(url: str, name: str, acknowledged: str) -> None:
    ledger = open_ledger(url)
    store = BudgetStore(ledger)
    chosen = random.Random(name)
    written = os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    print("ready", flush=True)
    for number in range(1_000_000):
        key = RunKey("test", "default", "flow", name, "task", str(number), 1)
        amount_uj = chosen.randint(1, 8_000_000)
        try:
            if not store.reserve(holder_of(key), [Claim("all", amount_uj), Claim("some", amount_uj)], LEASE_S).granted:
                time.sleep(0.005)
                continue
            time.sleep(chosen.random() * 0.02)
            used_uj = chosen.randint(0, amount_uj)
            with ledger.transaction() as tx:
                lock(tx, ["all", "some"])
                alive = "SELECT 1 FROM reservations WHERE holder = :holder AND lease_until_wall_ns > :now"
                # A process that was stopped for longer than its lease has lost its reservation: it must not spend.
                if not tx.execute(alive, holder=holder_of(key), now=tx.now_ns()):
                    continue
                settle(tx, _record(key, used_uj))
        except LedgerError as error:
            if error.code != "LEDGER_BUSY":
                raise
            continue
        os.write(written, f"{holder_of(key)} {used_uj}\n".encode())


def _record(key: RunKey, used_uj: int) -> TaskRecord:
    now_ns = time.time_ns()
    figure = Figure(used_uj, used_uj, used_uj, Quality.ATTRIBUTED)
    measured = Measurement("task", now_ns, 0.01, CpuTime(0.01, "perf", covers_children=True), figure, (), Account())
    return TaskRecord(
        key, Segment("here", "boot", os.getpid(), 1), TaskState.COMPLETED, now_ns, ended_wall_ns=now_ns,
        measurement=measured, budgets=("all", "some"),
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
