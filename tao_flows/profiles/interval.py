"""Where the next value will lie, from the values seen: one central 90 % prediction interval, for few values and many.

From 19 values on it is that of order statistics (Wilks 1941, the base of conformal prediction): of n + 1 exchangeable
values the next is equally likely to take any rank, so that between the r-th smallest and the r-th largest it lies with
a chance of at least (n + 1 - 2 r) / (n + 1), whatever the distribution. With fewer no pair of them reaches 90 %. There
it is Student's interval of the logarithms, with the spread drawn towards a prior (the posterior prediction under a
scaled inverse chi-squared prior; Gelman et al., Bayesian Data Analysis, 3rd ed., section 3.3), and never narrower than
what was seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

LARGEST: Final = 1e18
"""Nothing greater is seen or predicted: the controller refuses what is."""
SMALLEST: Final = 1e-6
"""A microjoule, a microsecond: what is less counts as that much where a ratio or a logarithm is taken."""

TAIL: Final = 0.05
"""The chance that the next value lies above the interval, at most; below it likewise."""
MANY: Final = 19
"""From so many values on their own order tells the interval: 1 / (19 + 1) is the tail."""
PRIOR_SPREAD: Final = 0.4
"""Standard deviation of the logarithm that is taken for granted before values tell: they lie within a third or so."""
PRIOR_WEIGHT: Final = 2
"""How many values that is worth."""

# Student's t, 95th percentile, for 2 to 20 degrees of freedom.
_T95: Final = (
    2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753, 1.746, 1.740,
    1.734, 1.729, 1.725,
)  # fmt: skip


def t95(degrees: int) -> float:
    """Student's t below which 95 % lies. Above 20 degrees of freedom that of 20, which is at most 5 % too much.

    Args:
        degrees: of freedom, 2 or more.
    """
    return _T95[min(degrees, 20) - 2]


def central_90(ascending: Sequence[float], fitted: int = 0) -> tuple[float, float]:
    """The interval that holds the next value with a chance of 90 %, each tail of it 5 %.

    Args:
        ascending: the values seen, at least one, sorted, none negative.
        fitted: parameters that were fitted to these same values, beyond their level: each costs one value.
    """
    effective = len(ascending) - fitted
    if effective >= MANY:
        rank = math.floor(TAIL * (effective + 1))
        return ascending[rank - 1], ascending[-rank]
    logs = [math.log(max(value, SMALLEST)) for value in ascending]
    centre = math.fsum(logs) / len(logs)
    squares = math.fsum((value - centre) ** 2 for value in logs)
    degrees = PRIOR_WEIGHT + max(0, effective - 1)
    spread = math.sqrt((PRIOR_WEIGHT * PRIOR_SPREAD**2 + squares) / degrees)
    reach = t95(degrees) * spread * math.sqrt(1 + 1 / max(1, effective))
    return (
        min(ascending[0], math.exp(max(centre - reach, -700.0))),
        max(ascending[-1], math.exp(min(centre + reach, math.log(LARGEST)))),
    )


def median(ascending: Sequence[float]) -> float:
    """The middle value; between two, halfway."""
    middle = len(ascending) // 2
    if len(ascending) % 2:
        return ascending[middle]
    return (ascending[middle - 1] + ascending[middle]) / 2
