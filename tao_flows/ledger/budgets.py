"""Energy budgets in a ledger: reserve, settle, and leases that run out.

What is open under a budget is what was spent in its present window, plus everything reserved and not settled, whatever
window it was reserved in. ``reserve`` refuses what would bring that above the ceiling; ``settle`` puts measured joules
in the place of reserved ones. All times are the database's clock, so that hosts need not agree on theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tao_flows.budget import EnergyBudget, budgets_over, charge_uj
from tao_flows.errors import InputError
from tao_flows.ledger import codec
from tao_flows.ledger.base import Ledger, Transaction
from tao_flows.ledger.budget_rows import (
    Row,
    Standing,
    budget_or_default,
    defined,
    duration_ns,
    held,
    lock,
    lock_or_create,
    read,
    release,
    standing_of,
)
from tao_flows.ledger.charges import holder_of, settle, sum_anew, sweep_charges
from tao_flows.units import format_energy, j_from_uj, uj_from_j

__all__ = [
    "BudgetStore",
    "Claim",
    "Refusal",
    "Reservation",
    "Standing",
    "claim_amount_uj",
    "hold",
    "holder_of",
    "reserve",
    "settle",
    "sweep",
]


@dataclass(frozen=True, slots=True)
class Claim:
    """Microjoules wanted of a budget."""

    budget: str
    amount_uj: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a claim was refused: spent, reserved and what it adds would pass the ceiling. Microjoules."""

    budget: str
    adds_uj: int
    spent_uj: int
    reserved_uj: int
    ceiling_uj: int

    def __str__(self) -> str:
        adds, spent, reserved, ceiling = (
            format_energy(j_from_uj(each)) for each in (self.adds_uj, self.spent_uj, self.reserved_uj, self.ceiling_uj)
        )
        return f"budget {self.budget!r}: {adds} more than {spent} spent and {reserved} reserved passes {ceiling}"


@dataclass(frozen=True, slots=True)
class Reservation:
    """The answer to a claim."""

    holder: str
    granted: bool
    lease_until_wall_ns: int = 0
    """When it runs out by the database's clock, unless it is renewed."""
    refusal: Refusal | None = None
    """The first budget without room; also where the claim was forced."""


def claim_amount_uj(budget: EnergyBudget, predicted_j: float, runtime_s: float | None) -> int:
    """What to claim of a budget for a run predicted to use ``predicted_j``: what ``charge_uj`` would charge for it."""
    return charge_uj(budget, uj_from_j(predicted_j), runtime_s)


class BudgetStore:
    """The budgets of a ledger. Every method is one transaction.

    Raises (every method):
        LedgerError: the ledger cannot be read or written.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def put(self, budget: EnergyBudget) -> None:
        """Defines a budget, or changes it; writes nothing where it is so defined already.

        After a change of the window, what was charged is summed anew over the new one, as it was charged.

        Raises:
            InputError: it has no name.
        """
        if not budget.name:
            raise InputError("BAD_BUDGET", "the budget has no name", "give it the name that tasks call it by")
        body = codec.dump(budget)
        with self._ledger.transaction(write=False) as tx:
            if [row.body for row in read(tx, [budget.name])] == [body]:
                return
        with self._ledger.transaction() as tx:
            before = budget_or_default(lock_or_create(tx, [budget.name])[budget.name])
            parameters = {"name": budget.name, "body": body, "now": tx.now_ns()}
            tx.change("UPDATE budgets SET body = :body, changed_wall_ns = :now WHERE name = :name", **parameters)
            if (before.window_s, before.window) != (budget.window_s, budget.window):
                sum_anew(tx, budget)

    def drop(self, name: str) -> bool:
        """Forgets a budget with its charges and reservations; False where there was none."""
        with self._ledger.transaction() as tx:
            was_there = any(row.body for row in lock(tx, [name]).values())
            for table in ("reservations", "charges", "spending"):
                tx.change(f"DELETE FROM {table} WHERE budget = :name", name=name)
            # The row stays, for others may be waiting to lock it.
            tx.change("UPDATE budgets SET body = '', regime = 'standard' WHERE name = :name", name=name)
            return was_there

    def all(self) -> list[EnergyBudget]:
        """Every budget that is defined, by name."""
        with self._ledger.transaction(write=False) as tx:
            return read_all(tx)

    def under(self, named: str = "", *, team: str = "", flow: str = "", pool: str = "") -> list[EnergyBudget]:
        """The budgets a task is under: the one it names, and every one whose scope it falls under; by name."""
        return budgets_over(self.all(), named, team=team, flow=flow, pool=pool)

    def standings(self, names: Collection[str], *, without: str = "") -> list[Standing]:
        """How the budgets of these names stand; those that are not defined are left out.

        Args:
            names: in the order of the answer.
            without: a holder whose own reservations do not count, since it is about to decide anew.
        """
        with self._ledger.transaction(write=False) as tx:
            found = {row.name: row for row in read(tx, names) if row.body}
            now_ns = tx.now_ns()
            return [standing_of(tx, found[name], now_ns, without) for name in names if name in found]

    def set_regime(self, name: str, regime: str) -> None:
        """Keeps the regime of the last decision, for the next one; writes nothing where it is that already."""
        with self._ledger.transaction(write=False) as tx:
            if all(row.regime == regime for row in read(tx, [name])):
                return
        with self._ledger.transaction() as tx:
            tx.change("UPDATE budgets SET regime = :regime WHERE name = :name", name=name, regime=regime)

    def reserve(self, holder: str, claims: Sequence[Claim], lease_s: float, *, force: bool = False) -> Reservation:
        """Reserves all that is claimed, or nothing; takes the place of what the holder had reserved.

        Args:
            holder: whose it is: ``holder_of`` a run key.
            claims: what is wanted. A claim on a budget without a ceiling is never refused.
            lease_s: how long it counts unless it is renewed or settled, in seconds.
            force: record it though it passes a ceiling, where decisions are not enforced; the refusal still says so.

        Raises:
            InputError: NO_BUDGET, a budget is not defined; BAD_CLAIM, an amount or a lease is negative, or there is no holder.
        """
        with self._ledger.transaction() as tx:
            return reserve(tx, holder, claims, lease_s, force=force)

    def renew(self, holder: str, lease_s: float) -> bool:
        """Lets the holder's reservations count for ``lease_s`` seconds from now; False once they have run out."""
        with self._ledger.transaction() as tx:
            lock(tx, held(tx, holder))
            now_ns = tx.now_ns()
            statement = """UPDATE reservations SET lease_until_wall_ns = :until
                WHERE holder = :holder AND lease_until_wall_ns > :now"""
            return tx.change(statement, holder=holder, until=now_ns + duration_ns(lease_s), now=now_ns) > 0

    def give_back(self, holder: str) -> None:
        """Gives back what a holder has reserved: it will not run."""
        with self._ledger.transaction() as tx:
            lock(tx, held(tx, holder))
            release(tx, holder)


def read_all(tx: Transaction) -> list[EnergyBudget]:
    """``BudgetStore.all`` within a transaction."""
    rows = tx.execute("SELECT body FROM budgets WHERE body <> ''")
    return sorted((defined(body) for (body,) in rows), key=lambda budget: budget.name)


def read_regimes(tx: Transaction) -> dict[str, str]:
    """By budget, the regime of the last decision."""
    return dict(tx.execute("SELECT name, regime FROM budgets WHERE body <> ''"))


def reserve(
    tx: Transaction, holder: str, claims: Sequence[Claim], lease_s: float, *, force: bool = False
) -> Reservation:
    """``BudgetStore.reserve`` within a transaction."""
    if not holder:
        raise InputError("BAD_CLAIM", "a claim has no holder", "name whose it is: holder_of its run key")
    wanted = _wanted(claims, lease_s)
    rows = lock(tx, wanted.keys() | held(tx, holder).keys())
    now_ns = tx.now_ns()
    for row in rows.values():
        sweep(tx, row, now_ns)
    own = held(tx, holder)
    refusals = [
        _refusal(tx, rows.get(name) or Row(name, "", "", 0), uj - own.get(name, 0), now_ns)
        for name, uj in sorted(wanted.items())
    ]
    refusal = next((each for each in refusals if each is not None), None)
    if refusal is not None and not force:
        return Reservation(holder, granted=False, refusal=refusal)
    until_ns = now_ns + duration_ns(lease_s)
    for name, amount_uj in sorted(wanted.items()):
        hold(tx, name, holder, amount_uj, now_ns, until_ns)
    for name in own.keys() - wanted.keys():
        tx.change("DELETE FROM reservations WHERE budget = :name AND holder = :holder", name=name, holder=holder)
    return Reservation(holder, granted=True, lease_until_wall_ns=until_ns, refusal=refusal)


def hold(tx: Transaction, budget: str, holder: str, amount_uj: int, now_ns: int, until_ns: int) -> None:
    """Records what a holder has reserved of a budget, whatever the ceiling; the budget is locked."""
    statement = """INSERT INTO reservations (budget, holder, amount_uj, made_wall_ns, lease_until_wall_ns)
        VALUES (:budget, :holder, :amount, :now, :until)
        ON CONFLICT (budget, holder) DO UPDATE
        SET amount_uj = excluded.amount_uj, lease_until_wall_ns = excluded.lease_until_wall_ns"""
    tx.change(statement, budget=budget, holder=holder, amount=amount_uj, now=now_ns, until=until_ns)


def sweep(tx: Transaction, row: Row, now_ns: int) -> None:
    """Takes away the reservations that have run out and, now and then, old charges; the budget is locked."""
    ended = "DELETE FROM reservations WHERE budget = :budget AND lease_until_wall_ns <= :now"
    tx.change(ended, budget=row.name, now=now_ns)
    sweep_charges(tx, row, now_ns)


def _wanted(claims: Sequence[Claim], lease_s: float) -> dict[str, int]:
    wanted: dict[str, int] = {}
    for claim in claims:
        if claim.amount_uj < 0 or not lease_s > 0:
            summary = f"budget {claim.budget!r}: {claim.amount_uj} µJ for {lease_s:g} s cannot be reserved"
            raise InputError("BAD_CLAIM", summary, "claim 0 µJ or more, for more than 0 s")
        wanted[claim.budget] = wanted.get(claim.budget, 0) + claim.amount_uj
    return wanted


def _refusal(tx: Transaction, row: Row, adds_uj: int, now_ns: int) -> Refusal | None:
    ceiling_j = row.budget.ceiling_j
    if ceiling_j is None or adds_uj <= 0:
        return None
    standing, ceiling_uj = standing_of(tx, row, now_ns), uj_from_j(ceiling_j)
    if standing.spent_uj + standing.reserved_uj + adds_uj <= ceiling_uj:
        return None
    return Refusal(row.name, adds_uj, standing.spent_uj, standing.reserved_uj, ceiling_uj)
