"""From host joules to tasks, overhead, idle and the rest. Pure: no clock, no files, no engine.

The rule (``figures.METHOD``), for each disjoint domain and window:

    active = counter - idle
    task   = active * cpu_task / max(cpu_busy, cpu_task + cpu_overhead)

idle is the calibrated baseline power times the window, at most the counter; without calibration it is unknown and
active is the whole counter. The baseline's spread moves active both ways, and so the ends of the task's interval. What
is neither task nor overhead nor idle is unattributed. GPUs have a rule of their own (``gpu.py``). Whole microjoules are
handed out by largest remainder, so that the lines sum to the counter exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

from tao_flows.figures import Account, CpuTime, Figure, Quality
from tao_flows.telemetry.estimate import Estimator

INTENSITY = 2.0
"""How much more, or less, power a task's CPU second can draw than the rest of the host's: vector units and shared
cores make equal CPU time unequal power by a factor of two to three. It gives a share s the interval
[s / (s + INTENSITY (1 - s)), INTENSITY s / (INTENSITY s + 1 - s)], which closes as the task has the host alone."""
COUNTER_UPDATE_S = 0.001
"""RAPL counters move about once a millisecond, so that each end of a window can miss one update."""
SHORT_WINDOW_S = 0.05
"""Under this the missed updates weigh more than a few percent."""


@dataclass(frozen=True, slots=True)
class CpuShares:
    """CPU seconds over one window: whose they were."""

    task: CpuTime
    overhead_s: float
    """tao-flows' and the engine's."""
    busy_s: float | None
    """The whole host's, or None when it could not be read."""
    weights: tuple[float, float, float] | None = field(init=False)
    """Task, overhead and the rest, or None when a share cannot be said."""

    def __post_init__(self) -> None:
        weights = None
        if self.task.cpu_s is not None and self.busy_s is not None:
            task_s, overhead_s = max(0.0, self.task.cpu_s), max(0.0, self.overhead_s)
            weights = task_s, overhead_s, max(0.0, self.busy_s - task_s - overhead_s)
        object.__setattr__(self, "weights", weights)


class Split(NamedTuple):
    """One domain's microjoules, split; the lines sum to the counter, an unknown idle counting as zero."""

    tasks_uj: int | None
    overhead_uj: int | None
    idle_uj: int | None
    unattributed_uj: int | None
    figure: Figure
    allocated_idle_uj: int | None = None
    """Of a GPU that was held and not used; None for what is no GPU."""

    @property
    def whole_uj(self) -> int | None:
        """What was split; None when nothing was read."""
        lines = (self.tasks_uj, self.overhead_uj, self.idle_uj, self.allocated_idle_uj, self.unattributed_uj)
        return _known_sum(lines)


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """``total`` in whole parts proportional to ``weights``, by largest remainder; the parts sum to it exactly.

    Raises:
        ValueError: a weight is negative, or all are zero.
    """
    return apportion_whole(total, _whole_numbers(tuple(weights)))


def apportion_whole(total: int, weights: Sequence[int]) -> list[int]:
    """``apportion`` for whole weights, of which none is negative and not all are zero."""
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    if extra := total - sum(parts):
        remainders = [total * weight % whole for weight in weights]
        for i in sorted(range(len(parts)), key=remainders.__getitem__, reverse=True)[:extra]:
            parts[i] += 1
    return parts


@lru_cache(maxsize=16)
def _whole_numbers(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Whole numbers in the same proportions. The domains of a window are all split by the same weights."""
    if min(weights) < 0 or not any(weights):
        raise ValueError(f"weights must be non-negative and not all zero: {weights}")
    # A float is a whole number over a power of two: in whole numbers nothing is lost, and 0 gets 0.
    ratios = [weight.as_integer_ratio() for weight in weights]
    common = max(below for _, below in ratios)
    return tuple(above * (common // below) for above, below in ratios)


def split_domain(
    domain: str,
    source: str,
    counter_uj: int,
    idle_uj: int | None,
    shares: CpuShares,
    wall_s: float,
    *,
    idle_spread_uj: int = 0,
) -> Split:
    """Splits one counter by CPU time. ``idle_uj`` may be off by ``idle_spread_uj`` either way."""
    baseline_uj, idle_uj = idle_uj or 0, None if idle_uj is None else min(counter_uj, idle_uj)
    active_uj = counter_uj - (idle_uj or 0)
    least_uj = max(0, counter_uj - baseline_uj - idle_spread_uj)
    most_uj = max(0, counter_uj - max(0, baseline_uj - idle_spread_uj))
    weights = shares.weights
    if weights is None:
        return Split(None, None, idle_uj, active_uj, Figure.unknown(domain))
    if sum(weights) <= 0:
        # Nobody was seen to run: the joules are real, and nobody's.
        return Split(0, 0, idle_uj, active_uj, Figure(0, 0, 0, Quality.ATTRIBUTED, (source,)))
    tasks_uj, overhead_uj, rest_uj = apportion(active_uj, weights)
    low_uj, high_uj = cpu_interval((least_uj, most_uj), weights, wall_s, lower_bound=shares.task.lower_bound)
    figure = Figure(tasks_uj, min(low_uj, tasks_uj), max(high_uj, tasks_uj), Quality.ATTRIBUTED, (source,))
    return Split(tasks_uj, overhead_uj, idle_uj, rest_uj, figure)


def cpu_interval(
    active_uj: int | tuple[int, int], weights: tuple[float, float, float], wall_s: float, *, lower_bound: bool
) -> tuple[int, int]:
    """The interval of a task's share of the active joules.

    Args:
        active_uj: active microjoules; the least and the most that they can be where an idle baseline has a spread.
        weights: CPU time of the task, the overhead and the rest.
        wall_s: length of the window in seconds.
        lower_bound: whether CPU time of the task can have been missed.
    """
    least_uj, most_uj = (active_uj, active_uj) if isinstance(active_uj, int) else active_uj
    share = weights[0] / sum(weights)
    low = share / (share + INTENSITY * (1 - share)) if share else 0.0
    high = INTENSITY * share / (INTENSITY * share + 1 - share) if share else 0.0
    missed = min(1.0, 2 * COUNTER_UPDATE_S / wall_s) if wall_s > 0 else 1.0
    # CPU time that can have been missed could be any of the rest.
    high_uj = most_uj if lower_bound else most_uj * high * (1 + missed)
    return round(least_uj * low * (1 - missed)), round(high_uj)


def split_estimate(
    part: str,
    model: Estimator,
    lines_uj: tuple[int, int, int] | None,
    idle_uj: int | None,
    *,
    lower_bound: bool = False,
) -> Split:
    """A modelled domain's microjoules (task, overhead, rest) as a split, with the interval of an estimate."""
    if lines_uj is None:
        return Split(None, None, None, None, Figure.unknown(part))
    tasks_uj, overhead_uj, rest_uj = lines_uj
    # CPU time that can have been missed could be any of the rest.
    most_uj = tasks_uj + rest_uj if lower_bound else tasks_uj
    low_uj, high_uj = round(tasks_uj * model.LOW), round(most_uj * model.HIGH)
    figure = Figure(tasks_uj, low_uj, high_uj, Quality.ESTIMATED, (f"estimate:{model.name}",))
    return Split(tasks_uj, overhead_uj, idle_uj, rest_uj, figure)


def account(counters: Sequence[Split], estimates: Sequence[Split], unknown_parts: tuple[str, ...]) -> Account:
    """One account from the splits of disjoint domains: counted ones, and estimated ones kept apart from them."""
    splits = (*counters, *estimates)
    quality = Quality.UNKNOWN
    if estimates:
        quality = Quality.ESTIMATED
    elif counters:
        held = all(split.figure.quality is Quality.MEASURED for split in counters)
        quality = Quality.MEASURED if held else Quality.ATTRIBUTED
    tasks, overhead, idle, unattributed, _, allocated_idle = zip(*splits, strict=True) if splits else ((),) * 6
    return Account(
        counter_uj=_known_sum([split.whole_uj for split in counters]),
        estimate_uj=_known_sum([split.whole_uj for split in estimates]),
        tasks_uj=_known_sum(tasks),
        overhead_uj=_known_sum(overhead),
        idle_uj=_known_sum(idle),
        unattributed_uj=_known_sum(unattributed),
        quality=quality,
        unknown_parts=unknown_parts,
        allocated_idle_uj=_known_sum(allocated_idle),
    )


def _known_sum(values: Sequence[int | None]) -> int | None:
    """The sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None] if None in values else values
    return sum(known) if known else None  # type: ignore[arg-type] # mypy does not follow the line above


def run_account(host: Account, tasks_uj: int) -> Account:
    """The account of a whole run on one host, whose tasks have already been given their joules window by window.

    ``host`` is the same span split with only the flow's own code as its task, so that its rest holds the tasks. They
    keep their figures; the flow's code and the engine keep theirs; what is left is unattributed. Power changes within
    a run, so that the windows' shares can sum to more than the span's: then the engine's line gives way first, and
    no line invents energy.
    """
    if host.counter_uj is None and host.estimate_uj is None:
        # Nothing is known of the host; a node agent may have told what is the user's own.
        return host if host.tasks_uj is None else replace(host, tasks_uj=host.tasks_uj + tasks_uj)
    resting_uj = (host.idle_uj or 0) + (host.allocated_idle_uj or 0)
    active_uj = (host.counter_uj or 0) + (host.estimate_uj or 0) - resting_uj
    known_uj = min(active_uj, (host.tasks_uj or 0) + tasks_uj)
    overhead_uj = None if host.overhead_uj is None else min(host.overhead_uj, active_uj - known_uj)
    return replace(
        host,
        # Where neither the flow's code nor any task has a figure, theirs is unknown and not nothing.
        tasks_uj=None if host.tasks_uj is None and tasks_uj == 0 else known_uj,
        overhead_uj=overhead_uj,
        unattributed_uj=active_uj - known_uj - (overhead_uj or 0),
    )


def part_of_host(
    host: Account,
    *,
    tasks_uj: int | None,
    overhead_uj: int | None,
    idle_uj: int | None = None,
    allocated_idle_uj: int | None = None,
    unattributed_uj: int | None = None,
) -> Account:
    """The account of a part of a host that others share, which knows these lines and nothing of the rest.

    Its counter, or its estimate, is then what of the host's these lines are, so that the accounts of a host's parts add
    up. Where a host has both, they are parts of each in proportion.
    """
    lines = (tasks_uj, overhead_uj, idle_uj, allocated_idle_uj, unattributed_uj)
    known_uj = _known_sum([uj for uj in lines if uj is not None])
    counter_uj, estimate_uj = (None, known_uj) if host.quality is Quality.ESTIMATED else (known_uj, None)
    if known_uj is not None and host.counter_uj and host.estimate_uj:
        counter_uj, estimate_uj = apportion(known_uj, (host.counter_uj, host.estimate_uj))
    return Account(
        counter_uj,
        estimate_uj,
        tasks_uj,
        overhead_uj,
        idle_uj,
        unattributed_uj,
        quality=host.quality,
        unknown_parts=host.unknown_parts,
        allocated_idle_uj=allocated_idle_uj,
    )


def even_part(whole_uj: int | None, sharers: int, position: int) -> int | None:
    """One of ``sharers`` even parts, numbered from 0: together they are the whole, to the microjoule."""
    return None if whole_uj is None else whole_uj * (position + 1) // sharers - whole_uj * position // sharers
