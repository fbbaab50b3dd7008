"""Optimization Inversion: whether the engine takes more joules than the work, over the runs of late. Pure.

The overhead share is the ratio estimate rho = sum(overhead) / sum(overhead + tasks) over runs. Its standard error is by
linearisation, ``sqrt(n / (n - 1) * sum(e^2)) / sum(overhead + tasks)`` with ``e = overhead - rho * (overhead + tasks)``
(Cochran, Sampling Techniques, 3rd ed., section 6.4), and its bounds lie Student's t away, 5 % beyond each (up to 8 % for
a score of runs of very uneven size): a run counts by its joules, and what differs from run to run makes the share
unsure. No random numbers, so that the same runs
give the same answer, and whole microjoules, so that their order does not matter.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from tao_flows.ledger.base import RunOverhead
from tao_flows.profiles.interval import t95

INVERSION_SHARE: Final = 0.5
"""Above this share of overhead the engine costs more than the work (Optimization Inversion)."""
LEAVE_SHARE: Final = 0.95 * INVERSION_SHARE
"""Surely below this it is over: a margin as for the regimes, so that it does not flicker."""
LEAST_RUNS: Final = 5
"""Runs with a known share before anything is said."""
WINDOW_RUNS: Final = 50
"""The runs that are rolled over: the last so many with a known share."""


@dataclass(frozen=True, slots=True)
class Inversion:
    """Whether overhead takes over, and how sure that is."""

    inverted: bool | None
    """None while fewer than ``LEAST_RUNS`` runs tell."""
    share: float | None = None
    low: float | None = None
    """The share is less with a chance of 5 %."""
    high: float | None = None
    """The share is more with a chance of 5 %."""
    runs: int = 0
    """With a known share, in the window."""
    unknown: int = 0
    """Runs that were left out, as their share cannot be said."""

    @property
    def coverage(self) -> float:
        """The known share of the runs; 1 where there are none."""
        return self.runs / (self.runs + self.unknown) if self.runs + self.unknown else 1.0

    def to_json(self) -> dict[str, Any]:
        """JSON, null for unknown."""
        return {
            "inverted": self.inverted,
            "overhead_share": self.share,
            "low": self.low,
            "high": self.high,
            "runs": self.runs,
            "unknown_runs": self.unknown,
            "coverage": self.coverage,
        }


@dataclass(slots=True)
class _Sums:
    """Of overhead o and whole x, in microjoules: exact, so that a run can be taken out again."""

    count: int = 0
    o: int = 0
    x: int = 0
    oo: int = 0
    ox: int = 0
    xx: int = 0

    def add(self, overhead_uj: int, whole_uj: int, sign: int = 1) -> None:
        self.count += sign
        self.o += sign * overhead_uj
        self.x += sign * whole_uj
        self.oo += sign * overhead_uj * overhead_uj
        self.ox += sign * overhead_uj * whole_uj
        self.xx += sign * whole_uj * whole_uj

    def share(self) -> tuple[float, float, float]:
        """The share and its bounds; of ``LEAST_RUNS`` runs or more."""
        # sum(e^2) * x^2 in whole numbers: as floats the three terms would cancel to noise.
        squares = self.oo * self.x**2 - 2 * self.o * self.ox * self.x + self.o**2 * self.xx
        variance = max(0, squares) * self.count / ((self.count - 1) * self.x**4)
        share = self.o / self.x
        reach = t95(self.count - 1) * math.sqrt(variance)
        return share, max(0.0, share - reach), min(1.0, share + reach)


def detect(runs: Iterable[RunOverhead], *, previous: bool = False) -> Inversion:
    """The inversion over one window of runs.

    It begins when the lower bound is above ``INVERSION_SHARE`` and ends when the upper bound is below ``LEAVE_SHARE``;
    between, and while too few runs tell, it stays as it was. The order of the runs does not matter.

    Args:
        runs: all those in the window.
        previous: how it stood before.
    """
    sums, unknown = _Sums(), 0
    for run in runs:
        if (parts := _parts(run)) is None:
            unknown += 1
        else:
            sums.add(*parts)
    return replace(_judged(sums, previous=previous), unknown=unknown)


def follow(runs: Iterable[RunOverhead], window: int = WINDOW_RUNS) -> Inversion:
    """The inversion as it stands after a series of runs, each judged with those before it in a rolling window.

    What was before the series counts as no inversion.

    Args:
        runs: in any order: they are taken in that of their starts.
        window: how many runs with a known share it spans.
    """
    ordered = sorted(runs, key=lambda run: (run.started_wall_ns, run.namespace, run.flow, run.run_id))
    known = [(position, parts) for position, run in enumerate(ordered) if (parts := _parts(run)) is not None]
    sums, state = _Sums(), Inversion(inverted=None)
    for number, (_, parts) in enumerate(known):
        sums.add(*parts)
        if number >= window:
            sums.add(*known[number - window][1], sign=-1)
        state = _judged(sums, previous=state.inverted or False)
    begins = known[-window][0] if len(known) >= window else 0
    return replace(state, unknown=len(ordered) - begins - state.runs)


def follow_by(
    runs: Iterable[RunOverhead], group: Callable[[RunOverhead], str], window: int = WINDOW_RUNS
) -> dict[str, Inversion]:
    """The inversion in each group of runs, such as those of one namespace, flow or pool."""
    groups: defaultdict[str, list[RunOverhead]] = defaultdict(list)
    for run in runs:
        groups[group(run)].append(run)
    return {name: follow(members, window) for name, members in sorted(groups.items())}


def _parts(run: RunOverhead) -> tuple[int, int] | None:
    """Overhead and whole; None where the share cannot be said."""
    if run.tasks_uj is None or run.overhead_uj is None or run.tasks_uj + run.overhead_uj <= 0:
        return None
    return run.overhead_uj, run.tasks_uj + run.overhead_uj


def _judged(sums: _Sums, *, previous: bool) -> Inversion:
    if sums.count < LEAST_RUNS:
        # The share of what there is may be shown; nothing follows from it.
        return Inversion(previous or None, sums.o / sums.x if sums.count else None, runs=sums.count)
    share, low, high = sums.share()
    inverted = low > INVERSION_SHARE or (previous and high >= LEAVE_SHARE)
    return Inversion(inverted, share, low, high, runs=sums.count)
