"""From host joules to tasks, overhead, idle and the rest. Pure: no clock, no files, no engine.

The rule (``figures.METHOD``), for each disjoint domain and window:

    active = counter - idle
    task   = active * cpu_task / max(cpu_busy, cpu_task + cpu_overhead)

idle is the calibrated baseline power times the window, at most the counter; without calibration it is unknown and
active is the whole counter. What is neither task nor overhead nor idle is unattributed. Whole microjoules are
handed out by largest remainder, so that the lines sum to the counter exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

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

    @property
    def weights(self) -> tuple[float, float, float] | None:
        """Task, overhead and the rest, or None when a share cannot be said."""
        if self.task.cpu_s is None or self.busy_s is None:
            return None
        task_s, overhead_s = max(0.0, self.task.cpu_s), max(0.0, self.overhead_s)
        return task_s, overhead_s, max(0.0, self.busy_s - task_s - overhead_s)


@dataclass(frozen=True, slots=True)
class Split:
    """One domain's microjoules, split; the lines sum to the counter, an unknown idle counting as zero."""

    tasks_uj: int | None
    overhead_uj: int | None
    idle_uj: int | None
    unattributed_uj: int | None
    figure: Figure

    @property
    def whole_uj(self) -> int | None:
        """What was split; None when nothing was read."""
        return _known_sum((self.tasks_uj, self.overhead_uj, self.idle_uj, self.unattributed_uj))


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """``total`` in whole parts proportional to ``weights``, by largest remainder; the parts sum to it exactly.

    Raises:
        ValueError: a weight is negative, or all are zero.
    """
    if min(weights) < 0 or not any(weights):
        raise ValueError(f"weights must be non-negative and not all zero: {weights}")
    # A float is a whole number over a power of two: in whole numbers nothing is lost, and 0 gets 0.
    ratios = [weight.as_integer_ratio() for weight in weights]
    common = max(below for _, below in ratios)
    exact = [above * (common // below) for above, below in ratios]
    whole = sum(exact)
    parts, remainders = zip(*(divmod(total * weight, whole) for weight in exact), strict=True)
    by_remainder = sorted(range(len(parts)), key=lambda i: -remainders[i])
    extra = by_remainder[: total - sum(parts)]
    return [part + (i in extra) for i, part in enumerate(parts)]


def split_domain(
    domain: str, source: str, counter_uj: int, idle_uj: int | None, shares: CpuShares, wall_s: float
) -> Split:
    """Splits one counter by CPU time."""
    idle_uj = None if idle_uj is None else min(counter_uj, idle_uj)
    active_uj = counter_uj - (idle_uj or 0)
    weights = shares.weights
    if weights is None:
        return Split(None, None, idle_uj, active_uj, Figure.unknown(domain))
    if sum(weights) <= 0:
        # Nobody was seen to run: the joules are real, and nobody's.
        return Split(0, 0, idle_uj, active_uj, Figure(0, 0, 0, Quality.ATTRIBUTED, (source,)))
    tasks_uj, overhead_uj, rest_uj = apportion(active_uj, weights)
    low_uj, high_uj = _interval(active_uj, weights, wall_s, lower_bound=shares.task.lower_bound)
    figure = Figure(tasks_uj, min(low_uj, tasks_uj), max(high_uj, tasks_uj), Quality.ATTRIBUTED, (source,))
    return Split(tasks_uj, overhead_uj, idle_uj, rest_uj, figure)


def _interval(
    active_uj: int, weights: tuple[float, float, float], wall_s: float, *, lower_bound: bool
) -> tuple[int, int]:
    share = weights[0] / sum(weights)
    low = share / (share + INTENSITY * (1 - share)) if share else 0.0
    high = INTENSITY * share / (INTENSITY * share + 1 - share) if share else 0.0
    missed = min(1.0, 2 * COUNTER_UPDATE_S / wall_s) if wall_s > 0 else 1.0
    # CPU time that can have been missed could be any of the rest.
    high_uj = active_uj if lower_bound else active_uj * high * (1 + missed)
    return round(active_uj * low * (1 - missed)), round(high_uj)


@dataclass(frozen=True, slots=True)
class GpuUse:
    """Who held a GPU during a window."""

    holders: frozenset[int] | None
    """Processes seen on it, or None when it could not be said."""
    ours: frozenset[int]
    """The task's processes."""
    alone_in_process: bool
    """False when another window was open in the same process."""


def split_gpu(domain: str, source: str, counter_uj: int, use: GpuUse) -> tuple[Split, str]:
    """Gives a GPU's joules to the task that held it alone, and says why where nobody did.

    A GPU that the task did not touch costs it nothing; a shared one costs it an unknown part.
    """
    nothing = Figure(0, 0, 0, Quality.ATTRIBUTED, (source,))
    if use.holders is None:
        return Split(None, 0, None, counter_uj, Figure.unknown(domain)), "GPU_HOLDERS_UNKNOWN"
    if not use.holders & use.ours:
        return Split(0, 0, None, counter_uj, nothing), "GPU_HELD_BY_OTHERS" if use.holders else "GPU_NOT_HELD"
    if use.holders - use.ours or not use.alone_in_process:
        return Split(None, 0, None, counter_uj, Figure.unknown(domain)), "GPU_SHARED"
    held = Figure(counter_uj, counter_uj, counter_uj, Quality.MEASURED, (source,))
    return Split(counter_uj, 0, None, 0, held), "GPU_HELD_ALONE"


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
    return Account(
        counter_uj=_known_sum(split.whole_uj for split in counters),
        estimate_uj=_known_sum(split.whole_uj for split in estimates),
        tasks_uj=_known_sum(split.tasks_uj for split in splits),
        overhead_uj=_known_sum(split.overhead_uj for split in splits),
        idle_uj=_known_sum(split.idle_uj for split in splits),
        unattributed_uj=_known_sum(split.unattributed_uj for split in splits),
        quality=quality,
        unknown_parts=unknown_parts,
    )


def _known_sum(values: Iterable[int | None]) -> int | None:
    """The sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def run_account(host: Account, tasks_uj: int) -> Account:
    """The account of a whole run on one host, whose tasks have already been given their joules window by window.

    ``host`` is the same span split with only the flow's own code as its task, so that its rest holds the tasks. They
    keep their figures; the flow's code and the engine keep theirs; what is left is unattributed. Power changes within
    a run, so that the windows' shares can sum to more than the span's: then the engine's line gives way first, and
    no line invents energy.
    """
    if host.counter_uj is None and host.estimate_uj is None:
        return host
    active_uj = (host.counter_uj or 0) + (host.estimate_uj or 0) - (host.idle_uj or 0)
    known_uj = min(active_uj, (host.tasks_uj or 0) + tasks_uj)
    overhead_uj = None if host.overhead_uj is None else min(host.overhead_uj, active_uj - known_uj)
    return replace(
        host,
        # Where neither the flow's code nor any task has a figure, theirs is unknown and not nothing.
        tasks_uj=None if host.tasks_uj is None and tasks_uj == 0 else known_uj,
        overhead_uj=overhead_uj,
        unattributed_uj=active_uj - known_uj - (overhead_uj or 0),
    )
