"""The rows of budgets: how they are locked, read and summed.

Whoever writes locks its budgets first, in one order: so no two writers wait for each other, and what one reads of a
budget holds until it commits.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from tao_flows.budget import DAY_S, EnergyBudget
from tao_flows.budget_window import oldest_bucket_ns, window_bounds
from tao_flows.errors import InputError, LedgerError, TaoError
from tao_flows.ledger import codec
from tao_flows.ledger.base import Transaction
from tao_flows.units import NS_PER_S, j_from_uj, uj_from_j

KEEP_S: Final = 35 * DAY_S
"""Charges are kept this long, or for as long as their window: until then a record may be written again, or corrected."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a budget stands in its present window. Microjoules, nanoseconds since the epoch."""

    budget: EnergyBudget
    spent_uj: int
    reserved_uj: int
    unknown_runs: int
    """Runs of which it is not known what they used: they are not in what is spent."""
    start_wall_ns: int
    end_wall_ns: int | None
    """None: the window rolls."""
    regime: str
    """The regime of the last decision under it."""

    @property
    def left_uj(self) -> int:
        """What is left of the limit; below 0 once it is passed."""
        return uj_from_j(self.budget.limit_j) - self.spent_uj - self.reserved_uj

    @property
    def utilisation(self) -> float:
        """The share of the limit that is spent or reserved."""
        return j_from_uj(self.spent_uj + self.reserved_uj) / self.budget.limit_j


class Row(NamedTuple):
    """A budget as the ledger has it; ``body`` is empty where it was charged and never defined."""

    name: str
    body: str
    regime: str
    swept_wall_ns: int

    @property
    def budget(self) -> EnergyBudget:
        """What it is defined as.

        Raises:
            InputError: NO_BUDGET, it is not; BAD_BUDGET, its zone is not known here.
        """
        if not self.body:
            summary = f"budget {self.name!r} is not in this ledger"
            raise InputError("NO_BUDGET", summary, f"define it: tao-flows budget set {self.name} --limit ...")
        return defined(self.body)


def read(tx: Transaction, names: Collection[str], locking: str = "") -> list[Row]:
    """The rows of these names, by name."""
    marks, values = _listed(names)
    statement = f"SELECT {', '.join(Row._fields)} FROM budgets WHERE name IN ({marks}) ORDER BY name {locking}"
    return [Row(*row) for row in tx.execute(statement, **values)]


def lock(tx: Transaction, names: Collection[str]) -> dict[str, Row]:
    """The rows of these names, which nobody else changes before this transaction ends. All that it will need at once."""
    return {row.name: row for row in read(tx, names, tx.for_update)}


def lock_or_create(tx: Transaction, names: Collection[str]) -> dict[str, Row]:
    """As ``lock``; creates the missing ones first, while no lock is held that another could wait for."""
    for name in sorted(set(names) - {row.name for row in read(tx, names)}):
        statement = (
            "INSERT INTO budgets (name, body, changed_wall_ns) VALUES (:name, '', 0) ON CONFLICT (name) DO NOTHING"
        )
        tx.change(statement, name=name)
    return lock(tx, names)


def held(tx: Transaction, holder: str) -> dict[str, int]:
    """What a holder has reserved: microjoules by budget, with what has run out and is not swept away yet."""
    return dict(tx.execute("SELECT budget, amount_uj FROM reservations WHERE holder = :holder", holder=holder))


def standing_of(tx: Transaction, row: Row, now_ns: int, without: str = "") -> Standing:
    """How a budget stands, not counting what the holder ``without`` has reserved."""
    budget = row.budget
    # In one statement: a task that settles between two would be in neither sum.
    statement = """SELECT coalesce(sum(spent_uj), 0), coalesce(sum(unknown_runs), 0),
            (SELECT coalesce(sum(amount_uj), 0) FROM reservations
             WHERE budget = :budget AND lease_until_wall_ns > :now AND holder <> :without)
        FROM spending WHERE budget = :budget AND bucket_wall_ns >= :since"""
    since_ns = oldest_bucket_ns(budget, now_ns)
    ((spent, unknown, reserved),) = tx.execute(statement, budget=row.name, now=now_ns, without=without, since=since_ns)
    return Standing(budget, int(spent), int(reserved), int(unknown), *window_bounds(budget, now_ns), row.regime)


def release(tx: Transaction, holder: str) -> None:
    """Takes away what a holder has reserved; its budgets are locked."""
    tx.change("DELETE FROM reservations WHERE holder = :holder", holder=holder)


def _listed(values: Collection[str]) -> tuple[str, dict[str, str]]:
    """What goes between the brackets of IN, and its parameters. It holds one value at least, which no row has."""
    parameters = {f"value_{number}": value for number, value in enumerate(sorted({*values, ""}))}
    return ", ".join(f":{parameter}" for parameter in parameters), parameters


def keep_ns(budget: EnergyBudget) -> int:
    """How long a budget's charges are kept, in nanoseconds."""
    return duration_ns(max(KEEP_S, budget.window_s))


def duration_ns(duration_s: float) -> int:
    """Seconds to whole nanoseconds."""
    return round(duration_s * NS_PER_S)


@lru_cache(maxsize=256)
def defined(body: str) -> EnergyBudget:
    """The budget that a body describes.

    Raises:
        InputError: BAD_BUDGET, its zone is not known here.
        LedgerError: LEDGER_CORRUPT, the body is no budget.
    """
    try:
        return codec.load(EnergyBudget, body)
    except LedgerError as error:
        if isinstance(error.__cause__, InputError):  # a zone that this host does not know is not a damaged ledger
            raise error.__cause__ from None
        raise


def budget_or_default(row: Row) -> EnergyBudget:
    """The budget, or where it cannot be had one with the default window: a charge must not fail for its sake."""
    try:
        return row.budget
    except TaoError:
        return EnergyBudget(row.name, 1.0)
