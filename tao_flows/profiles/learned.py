"""What a task is expected to cost in a pool: learned from its settled runs there."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tao_flows.controller.model import PredictedEnergy, PredictedRuntime
from tao_flows.ledger.base import History
from tao_flows.profiles.drift import change_point
from tao_flows.profiles.interval import LARGEST, SMALLEST, central_90, median
from tao_flows.units import j_from_uj

Basis = Literal["runs", "other_pool", "default"]
"""What an estimate rests on: the task's own runs there, its runs in another pool, or the pool's description."""

_LEAST_SIZE: Final = 1e-12
_Run = tuple[int, float, float | None]
"""When it began, what it cost, and its size."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one run will cost, in joules or seconds, and how sure that is. Always low <= mean, p50 <= high."""

    mean: float
    p50: float
    low: float
    """The next run costs less with a chance of 5 % at most."""
    high: float
    """The next run costs more with a chance of 5 % at most: the 95th percentile, with what is unsure of it added."""
    runs: int
    """Runs of the task in this pool behind it."""
    dropped: int = 0
    """Older runs that no longer count, since the cost has changed."""
    basis: Basis = "runs"
    donor: str = ""
    """The pool whose runs were borrowed."""
    scaled_by: int = 0
    """Other tasks that tell how the two pools compare; at 0 they are taken for alike."""

    @property
    def p95(self) -> float:
        """``high`` by another name."""
        return self.high


@dataclass(frozen=True, slots=True)
class Expectation:
    """Predicted joules and seconds of one run; None where nothing is known."""

    energy: Estimate | None = None
    runtime: Estimate | None = None
    exploring: bool = False
    """Whether the energy's mean is its lower bound, so that a pool that is little known gets tried."""

    @property
    def energy_j(self) -> PredictedEnergy | None:
        """Joules, in the form of a request."""
        return None if self.energy is None else PredictedEnergy(self.energy.mean, self.energy.low, self.energy.high)

    @property
    def runtime_s(self) -> PredictedRuntime | None:
        """Seconds, in the form of a request."""
        return None if self.runtime is None else PredictedRuntime(self.runtime.p50, self.runtime.p95)

    @property
    def runs(self) -> int:
        """Runs of the task in this pool whose energy counts."""
        return 0 if self.energy is None else self.energy.runs

    @property
    def fresh(self) -> bool:
        """Whether no run of the task in this pool tells its energy: a cold start."""
        return self.runs == 0


@dataclass(frozen=True, slots=True)
class Curve:
    """A cost by size: a fixed part and a part a unit, neither negative, and how the runs lay about it."""

    fixed: float
    per_unit: float
    sizes: tuple[float, float] | None
    """The least and the greatest size seen; None where sizes play no part."""
    mean: float
    """Of the ratios of what was seen to the line; so are the next three."""
    p50: float
    low: float
    high: float
    runs: int
    dropped: int

    def at(self, size: float | None) -> Estimate:
        """The cost of a run of a size.

        Beyond the sizes seen the interval widens by the factor it lies beyond them: a cost that no longer grows with
        the size is then in it, and one that grows with its square.
        """
        level, beyond = 1.0, 1.0
        if self.sizes is not None and size is not None:
            level = _line(self.fixed, self.per_unit, size)
            beyond = max(1.0, size / self.sizes[1], self.sizes[0] / size)
        mean, p50 = min(level * self.mean, LARGEST), min(level * self.p50, LARGEST)
        return Estimate(
            mean=mean,
            p50=p50,
            low=min(level * self.low / beyond, mean, p50),
            high=max(min(level * self.high * beyond, LARGEST), mean, p50),
            runs=self.runs,
            dropped=self.dropped,
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """What a task's settled runs in one pool teach: joules and seconds, in all and by size."""

    energy: Curve | None
    runtime: Curve | None
    energy_by_size: Curve | None
    runtime_by_size: Curve | None

    def at(self, size: float | None = None) -> Expectation:
        """What a run of a size is expected to cost; of no size where none is given, or no run has told one."""
        sized = is_size(size)
        energy = (self.energy_by_size if sized else None) or self.energy
        runtime = (self.runtime_by_size if sized else None) or self.runtime
        return Expectation(None if energy is None else energy.at(size), None if runtime is None else runtime.at(size))


def is_size(size: float | None) -> bool:
    """Whether joules can be learned by it: a number above 0, neither tiny nor huge beyond all measure."""
    return size is not None and _LEAST_SIZE <= size <= LARGEST


def learn(history: History) -> Profile:
    """The profile of a history. The order of its rows does not matter; what is no number in it is left out."""
    energies = _usable(
        (run.started_wall_ns, None if run.energy_uj is None else j_from_uj(run.energy_uj), run.size)
        for run in history.runs
    )
    runtimes = _usable((run.started_wall_ns, run.runtime_s, run.size) for run in history.runs)
    return Profile(_curve(energies), _curve(runtimes), _curve_by_size(energies), _curve_by_size(runtimes))


def expect(history: History, size: float | None = None) -> Expectation:
    """What a run of a size is expected to cost, after the settled runs of a history."""
    return learn(history).at(size)


def _usable(rows: Iterable[tuple[int, float | None, float | None]]) -> list[_Run]:
    known = [
        (started_ns, value, size if is_size(size) else None)
        for started_ns, value, size in rows
        if value is not None and 0 <= value <= LARGEST  # and so neither NaN nor an infinity
    ]
    return sorted(known, key=lambda run: (run[0], run[1], run[2] or 0.0))


def _curve(runs: Sequence[_Run]) -> Curve | None:
    """The cost whatever the size."""
    cut = change_point([(started_ns, value) for started_ns, value, _ in runs]) or 0
    values = sorted(value for _, value, _ in runs[cut:])
    return _about(values, 1.0, 0.0, None, dropped=cut, fitted=0) if values else None


def _curve_by_size(runs: Sequence[_Run]) -> Curve | None:
    """The cost by size, from the runs that told one."""
    sized = [(started_ns, value, size) for started_ns, value, size in runs if size is not None]
    if not sized:
        return None
    fixed, per_unit = _theil_sen([(size, value) for _, value, size in sized])
    cut = change_point([(at, value / _line(fixed, per_unit, size)) for at, value, size in sized]) or 0
    if cut:
        sized = sized[cut:]
        fixed, per_unit = _theil_sen([(size, value) for _, value, size in sized])
    sizes = [size for _, _, size in sized]
    ratios = sorted(value / _line(fixed, per_unit, size) for _, value, size in sized)
    # A line of two parameters bends towards the runs it is judged by; a level or a rate alone does not.
    fitted = 2 if fixed > 0 and per_unit > 0 else 0
    return _about(ratios, fixed, per_unit, (min(sizes), max(sizes)), dropped=cut, fitted=fitted)


def _about(
    ratios: Sequence[float],
    fixed: float,
    per_unit: float,
    sizes: tuple[float, float] | None,
    *,
    dropped: int,
    fitted: int,
) -> Curve:
    low, high = central_90(ratios, fitted)
    mean = math.fsum(ratios) / len(ratios)
    return Curve(fixed, per_unit, sizes, mean, median(ratios), low, high, len(ratios), dropped)


def _line(fixed: float, per_unit: float, size: float) -> float:
    return min(max(fixed + per_unit * size, SMALLEST), LARGEST)


def _theil_sen(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The line through the medians by size whose slope is the median of the slopes between any two (Sen 1968).

    Up to 29 % of wild runs do not move it far. More work never costs less: a falling line becomes a level one, and one
    that would cost less than nothing at no size becomes a rate. Seen at one size, a cost is taken for a rate.
    """
    values_at: defaultdict[float, list[float]] = defaultdict(list)
    for size, value in points:
        values_at[size].append(value)
    medians = [(size, median(sorted(values))) for size, values in sorted(values_at.items())]
    slopes = sorted(
        (value - lesser) / (size - smaller)
        for index, (size, value) in enumerate(medians)
        for smaller, lesser in medians[:index]
    )
    if slopes and (slope := median(slopes)) <= 0:
        return median(sorted(value for _, value in medians)), 0.0
    fixed = median(sorted(value - slope * size for size, value in medians)) if slopes else 0.0
    if fixed > 0:
        return fixed, slope
    return 0.0, median(sorted(value / size for size, value in medians))
