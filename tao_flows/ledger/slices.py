"""Slices of budgets in a ledger: what a scheduler reserves ahead, to give to tasks without asking again.

A slice is a reservation like any other, so that it counts until it is given on, given back, or its lease runs out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from tao_flows.ledger.base import Transaction
from tao_flows.ledger.budget_rows import Standing, budgets_of, duration_ns, held, lock, standing_of
from tao_flows.ledger.budgets import Claim, Reservation, hold, reserve, sweep
from tao_flows.ledger.charges import has_charge
from tao_flows.units import uj_from_j


class Slice(NamedTuple):
    """A slice as the ledger has it."""

    standing: Standing
    """How the budget stands without the slice."""
    amount_uj: int
    target_uj: int
    """How much it should be: less, where the budget has no room for more."""


class Size(NamedTuple):
    """How large slices are to be."""

    share: float
    """Part of what is left below the ceiling."""
    demand_uj: Mapping[str, int]
    """Microjoules that will be asked for soon, by budget: a slice is no smaller, where there is room."""
    release_uj: Mapping[str, int]
    """Microjoules to give back, by budget; nobody spends them any more."""


def convert(
    tx: Transaction, slice_holder: str, spent: Mapping[str, Sequence[Claim]], lease_s: float
) -> list[Reservation]:
    """Turns what a slice was spent for into reservations of the tasks; those that were refused.

    A claim is refused only where the slice has run out meanwhile and others have taken its room. A task that was charged
    already has run, on its worker's own claim, and gets nothing more. A budget that was dropped gives nothing.
    """
    # All at once: one after the other they would not be in one order.
    budgets = {claim.budget for claims in spent.values() for claim in claims}
    rows = lock(tx, budgets | budgets_of(tx, slice_holder, *spent))
    refused = []
    for task, claims in spent.items():
        there = [claim for claim in claims if claim.budget in rows and rows[claim.budget].body]
        if any(has_charge(tx, claim.budget, task) for claim in there):
            continue
        answer = reserve(tx, task, there, lease_s, out_of=slice_holder)
        if not answer.granted:
            refused.append(answer)
    return refused


def resize(
    tx: Transaction, slice_holder: str, budgets: Collection[str], size: Size, lease_s: float
) -> dict[str, Slice]:
    """Renews a scheduler's slices and brings each to its size, as far as there is room below the ceiling.

    A budget without a ceiling has no slice: nothing is refused under it.
    """
    slices, rows = {}, lock(tx, budgets)
    now_ns = tx.now_ns()
    for row in rows.values():
        sweep(tx, row, now_ns)
    before = held(tx, slice_holder)[slice_holder]
    for name, row in rows.items():
        standing = standing_of(tx, row, now_ns, without=slice_holder)
        if standing.budget.ceiling_j is None:
            slices[name] = Slice(standing, 0, 0)
            continue
        left_uj = max(0, uj_from_j(standing.budget.ceiling_j) - standing.spent_uj - standing.reserved_uj)
        target_uj = min(left_uj, max(int(size.share * left_uj), size.demand_uj.get(name, 0)))
        kept_uj = before.get(name, 0) - size.release_uj.get(name, 0)
        amount_uj = max(kept_uj, target_uj)
        hold(tx, name, slice_holder, amount_uj, now_ns, now_ns + duration_ns(lease_s))
        slices[name] = Slice(standing, amount_uj, target_uj)
    return slices
