"""What is charged to budgets: once for each run, and summed so that a window is a few rows."""

from __future__ import annotations

from typing import Final

from tao_flows.budget import EnergyBudget, charge_uj
from tao_flows.budget_window import bucket_ns
from tao_flows.ledger.base import Transaction
from tao_flows.ledger.budget_rows import Row, budget_or_default, held, keep_ns, lock_or_create, release
from tao_flows.parent import key_text
from tao_flows.records import RunKey, TaskRecord, TaskState
from tao_flows.units import NS_PER_S

_SWEEP_EVERY_NS: Final = 600 * NS_PER_S
_SWEEP_MOST: Final = 5_000
"""Old charges taken away at once, so that no reservation waits long for it."""


def holder_of(key: RunKey) -> str:
    """The holder of a try's reservations and charges: its run key, as one text."""
    return key_text(key)


def settle(tx: Transaction, record: TaskRecord) -> None:
    """Charges the budgets of a record with what it measured, in the place of what was reserved for it.

    For a ledger, in the transaction that stores an ended, complete record. Charging is idempotent by budget, run key
    and segment: a record written again changes nothing, a corrected one changes the charge by the difference. A record
    without a known energy is charged with nothing, gives back what was reserved, and is counted in ``unknown_runs``.
    What is charged counts from now on, when it became known. A budget that nobody has defined is charged all the same,
    for when it is. A record that ended before the oldest charge that is kept can have been charged before, and is not.
    """
    measurement = record.measurement
    if record.state is TaskState.RUNNING or (measurement is not None and measurement.pending):
        return
    holder = holder_of(record.key)
    charged = sorted(set(record.budgets or (record.budget,)) - {""})
    held_in = held(tx, holder)
    if not charged and not held_in:
        return
    rows = lock_or_create(tx, {*charged, *held_in})
    now_ns = tx.now_ns()
    for name in charged:
        budget = budget_or_default(rows[name])
        if (record.ended_wall_ns or record.started_wall_ns) < now_ns - keep_ns(budget):
            continue
        amount_uj = measurement.energy.value_uj if measurement else None
        if measurement is not None and amount_uj is not None:
            amount_uj = charge_uj(budget, amount_uj, measurement.wall_s)
        _charge(tx, budget, (holder, record.segment.id), amount_uj, now_ns)
    release(tx, holder)


def _charge(tx: Transaction, budget: EnergyBudget, whose: tuple[str, str], amount_uj: int | None, now_ns: int) -> None:
    """Charges a holder's segment; ``amount_uj`` None: it is unknown. The budget is locked."""
    key = {"budget": budget.name, "holder": whose[0], "segment": whose[1]}
    where = "WHERE budget = :budget AND holder = :holder AND segment = :segment"
    before = tx.execute(f"SELECT amount_uj, charged_wall_ns FROM charges {where}", **key)
    if not before:
        statement = """INSERT INTO charges (budget, holder, segment, amount_uj, charged_wall_ns)
            VALUES (:budget, :holder, :segment, :amount, :now)"""
        tx.change(statement, **key, amount=amount_uj, now=now_ns)
        _add(tx, budget, now_ns, amount_uj or 0, int(amount_uj is None))
        return
    ((before_uj, charged_ns),) = before
    if before_uj != amount_uj:
        tx.change(f"UPDATE charges SET amount_uj = :amount {where}", **key, amount=amount_uj)
        unknown = int(amount_uj is None) - int(before_uj is None)
        _add(tx, budget, charged_ns, (amount_uj or 0) - (before_uj or 0), unknown)


def _add(tx: Transaction, budget: EnergyBudget, at_ns: int, spent_uj: int, unknown_runs: int) -> None:
    statement = """INSERT INTO spending (budget, bucket_wall_ns, spent_uj, unknown_runs)
        VALUES (:budget, :bucket, :spent, :unknown)
        ON CONFLICT (budget, bucket_wall_ns) DO UPDATE SET
        spent_uj = spending.spent_uj + excluded.spent_uj, unknown_runs = spending.unknown_runs + excluded.unknown_runs"""
    bucket = bucket_ns(budget, at_ns)
    tx.change(statement, budget=budget.name, bucket=bucket, spent=spent_uj, unknown=unknown_runs)


def sum_anew(tx: Transaction, budget: EnergyBudget) -> None:
    """Sums a budget's charges over the buckets of its present window; the budget is locked."""
    tx.change("DELETE FROM spending WHERE budget = :budget", budget=budget.name)
    sums: dict[int, list[int]] = {}
    statement = "SELECT charged_wall_ns, amount_uj FROM charges WHERE budget = :budget"
    for charged_ns, amount_uj in tx.execute(statement, budget=budget.name):
        bucket = sums.setdefault(bucket_ns(budget, charged_ns), [0, 0])
        bucket[0] += amount_uj or 0
        bucket[1] += amount_uj is None
    for bucket_wall_ns, (spent_uj, unknown_runs) in sums.items():
        _add(tx, budget, bucket_wall_ns, spent_uj, unknown_runs)


def sweep_charges(tx: Transaction, row: Row, now_ns: int) -> None:
    """Takes away, every ten minutes, charges that are too old to count or to be corrected; the budget is locked."""
    if now_ns < row.swept_wall_ns + _SWEEP_EVERY_NS:
        return
    before_ns = now_ns - keep_ns(budget_or_default(row))
    tx.change("UPDATE budgets SET swept_wall_ns = :now WHERE name = :budget", now=now_ns, budget=row.name)
    buckets = "DELETE FROM spending WHERE budget = :budget AND bucket_wall_ns < :before"
    tx.change(buckets, budget=row.name, before=before_ns)
    old = """DELETE FROM charges WHERE budget = :budget AND (holder, segment) IN (SELECT holder, segment FROM charges
        WHERE budget = :budget AND charged_wall_ns < :before LIMIT :most)"""
    tx.change(old, budget=row.name, before=before_ns, most=_SWEEP_MOST)
