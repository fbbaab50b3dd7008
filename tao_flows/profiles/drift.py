"""When a cost changed: a scan of rank sums over every place where a series could be cut in two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from tao_flows.profiles.interval import SMALLEST, median

LEAST_EACH_SIDE: Final = 4
"""Runs on either side of a cut."""
THRESHOLD: Final = 3.25
"""Cut above this. Of steady series of 50 values 1 in 100 reaches it, of shorter ones fewer (10,000 simulated ones;
ranks are the same for every distribution), and a test holds that."""
LEAST_SHIFT: Final = 1.1
"""The ratio of the medians below which a change is let be: joules drift a few percent with the temperature."""


def change_point(series: Sequence[tuple[int, float]]) -> int | None:
    """How many values came before the cost changed for the last time; None where it did not.

    At each place between two moments the values before and after are compared by the Mann-Whitney statistic, in its
    standard deviations under no change (ties not taken off, which errs on the quiet side); the greatest tells. Ranks,
    so that one wild run is no change. A cost that doubles and scatters less than that is found within 7 runs after a
    dozen steady ones, and within 4 after 46.

    Args:
        series: moments and values, in order of the moments.
    """
    start = 0
    while (cut := _cut(series[start:])) is not None:
        start += cut
    return start or None


def _cut(series: Sequence[tuple[int, float]]) -> int | None:
    count = len(series)
    if count < 2 * LEAST_EACH_SIDE:
        return None
    ranks = _mid_ranks([value for _, value in series])
    best, best_z, before = 0, THRESHOLD, math.fsum(ranks[: LEAST_EACH_SIDE - 1])
    for cut in range(LEAST_EACH_SIDE, count - LEAST_EACH_SIDE + 1):
        before += ranks[cut - 1]
        if series[cut - 1][0] == series[cut][0]:
            continue  # what began at one moment has no before and after
        variance = cut * (count - cut) * (count + 1) / 12
        z = abs(before - cut * (count + 1) / 2) / math.sqrt(variance)
        if z > best_z:
            best, best_z = cut, z
    if not best:
        return None
    old, new = (max(median(sorted(v for _, v in part)), SMALLEST) for part in (series[:best], series[best:]))
    return best if max(old, new) > LEAST_SHIFT * min(old, new) else None


def _mid_ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; those of equal values are their mean."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks, first = [0.0] * len(values), 0
    while first < len(order):
        last = first
        while last + 1 < len(order) and values[order[last + 1]] == values[order[first]]:
            last += 1
        for position in order[first : last + 1]:
            ranks[position] = (first + last) / 2 + 1
        first = last + 1
    return ranks
