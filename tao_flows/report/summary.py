"""Shortening a report without losing joules: the dearest rows and the rest, groups by label, the account's lines."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tao_flows.figures import Account, Figure, joules
from tao_flows.records import TaskState
from tao_flows.report.rows import TaskRow
from tao_flows.report.text import decision_text

ACCOUNT_LINES: Final = {
    "tasks": "the tasks' code, and the flow's own",
    "overhead": "the engine, its part of each task process, and tao-flows itself",
    "idle": "what the host draws at rest",
    "allocated_idle": "GPUs that were held and not used, and what held GPUs draw at rest",
    "unattributed": "everything else on the host",
}


@dataclass(frozen=True, slots=True)
class AccountLine:
    """One line of an account."""

    name: str
    meaning: str
    value_j: float | None
    share: float | None
    """Of the known lines; None when unknown."""

    @property
    def title(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")


@dataclass(frozen=True, slots=True)
class TaskGroup:
    """Rows summed into one."""

    label: str
    count: int
    states: tuple[tuple[TaskState, int], ...]
    """How many are in each state, most frequent first."""
    energy: Figure
    least_uj: int | None
    """Smallest known figure of one row."""
    most_uj: int | None
    wall_s: float | None
    cpu_s: float | None
    cpu_lower_bound: bool
    share: float | None
    decisions: tuple[tuple[str, int], ...]
    """How many were decided each way, most frequent first."""

    @property
    def least_j(self) -> float | None:
        """Joules of the cheapest known row."""
        return joules(self.least_uj)

    @property
    def most_j(self) -> float | None:
        """Joules of the dearest known row."""
        return joules(self.most_uj)

    @property
    def title(self) -> str:
        """The label, and how many rows it stands for where they are several."""
        return self.label if self.count == 1 else f"{self.label} ×{self.count:,}"

    @property
    def power_w(self) -> float | None:
        """Mean watts of one row while it ran."""
        value_j = self.energy.value_j
        return None if value_j is None or not self.wall_s or self.wall_s <= 0 else value_j / self.wall_s


def group(label: str, rows: Sequence[TaskRow]) -> TaskGroup:
    """Sums rows: no joule is lost, and what is unknown stays named."""
    known_uj = [row.energy.value_uj for row in rows if row.energy.value_uj is not None]
    shares = [row.share for row in rows if row.share is not None]
    walls = [row.wall_s for row in rows if row.wall_s is not None]
    cpus = [row.cpu_s for row in rows if row.cpu_s is not None]
    return TaskGroup(
        label=label,
        count=len(rows),
        states=tuple(Counter(row.state for row in rows).most_common()),
        energy=Figure.total(row.energy for row in rows),
        least_uj=min(known_uj, default=None),
        most_uj=max(known_uj, default=None),
        wall_s=sum(walls) if walls else None,
        cpu_s=sum(cpus) if cpus else None,
        cpu_lower_bound=any(row.cpu_lower_bound for row in rows),
        share=sum(shares) if shares else None,
        decisions=tuple(Counter(decision_text(row) for row in rows if row.decision).most_common()),
    )


def overview(rows: Sequence[TaskRow], limit: int) -> tuple[tuple[TaskGroup, ...], TaskGroup | None]:
    """One line a try while that makes at most ``limit`` lines; else one line a label, the dearest, and the rest."""
    if len(rows) <= limit:
        return tuple(group(row.title, [row]) for row in rows), None
    by_label: dict[str, list[TaskRow]] = defaultdict(list)
    for row in rows:
        by_label[row.label].append(row)
    groups = {label: group(label, members) for label, members in by_label.items()}
    if len(groups) <= limit:
        return tuple(groups.values()), None
    ranked = sorted(groups, key=lambda label: _rank(groups[label].energy), reverse=True)
    rest = [row for label in ranked[limit:] for row in by_label[label]]
    return tuple(groups[label] for label in ranked[:limit]), group("the rest", rest)


def dearest(rows: Sequence[TaskRow], limit: int) -> tuple[tuple[TaskRow, ...], TaskGroup | None]:
    """All rows in their order, or the ``limit`` dearest, dearest first, and the rest as one group."""
    if len(rows) <= limit:
        return tuple(rows), None
    ranked = sorted(rows, key=lambda row: _rank(row.energy), reverse=True)
    rest = ranked[limit:]
    return tuple(ranked[:limit]), group(f"and {len(rest):,} more", rest)


def _rank(energy: Figure) -> int:
    # Unknown sorts below nothing at all: it is not the dearest for all that is known.
    return -1 if energy.value_uj is None else energy.value_uj


def account_lines(account: Account, *, gpu: bool | None = None) -> tuple[AccountLine, ...]:
    """The lines, in their order; an unknown line has neither value nor share.

    Args:
        account: what is shown.
        gpu: whether there is a line for held GPUs; None for where something is known of one.
    """
    names = [*ACCOUNT_LINES]
    if not (account.allocated_idle_uj is not None if gpu is None else gpu):
        names.remove("allocated_idle")
    values_uj = {name: getattr(account, f"{name}_uj") for name in names}
    whole_uj = sum(value for value in values_uj.values() if value is not None)
    return tuple(
        AccountLine(
            name,
            ACCOUNT_LINES[name],
            joules(values_uj[name]),
            None if values_uj[name] is None or whole_uj <= 0 else values_uj[name] / whole_uj,
        )
        for name in names
    )
