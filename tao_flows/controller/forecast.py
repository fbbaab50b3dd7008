"""Means of a carbon or price signal over a run, exact to the last digit of the answer.

A signal is a staircase: each value holds until the next step starts, the last one without end. Its integral is kept
in whole numbers (microseconds times a binary fraction of the values), so that a mean never lies outside the values it
is of, two runs that meet the same values have the very same mean, and nothing is lost in differences of large sums.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import Any, Final

from tao_flows.controller.model import Step, us_between

_START: Final = itemgetter(0)


class Forecast:
    """One zone's signal from ``now`` on, in microseconds from then.

    Args:
        steps: in order of time, one of them holding now.
        now: the time of the decision.
        end: no run ends after it.
        margin: for starts later than now, each value is taken at ``value + margin * |value|``.
    """

    def __init__(self, steps: Sequence[Step], now: datetime, end: datetime, margin: float) -> None:
        self._now = now
        self._margin = margin
        first = bisect_right(steps, now, key=_START) - 1
        self._steps = steps[first : bisect_right(steps, end, key=_START)]

    @property
    def changes(self) -> bool:
        """Whether another value is to come."""
        return len(self._steps) > 1

    @cached_property
    def settled_us(self) -> int:
        """When the last step starts, after which nothing changes; not before now."""
        return max(us_between(self._now, self._steps[-1].start), 0)

    @cached_property
    def least(self) -> float:
        """The least value there is, margin included; no mean of a later run is below it."""
        if self._has_nulls:
            return min((value for value in self._robust if value is not None), default=0.0)
        least: float = min(self._values)
        # A margin of more than 1 turns the order of what is below 0.
        return min(self._robust) if least < 0 and self._margin > 1 else self._with_margin(least)

    def mean(self, begin_us: int | None, length_us: int | None) -> float | None:
        """Mean over a run that starts now, as issued; None where a value in it is unknown.

        A signal that no longer changes needs to know neither when the run begins nor how long it is.
        """
        steps = self._steps
        if not self.changes:
            return steps[0].value
        if begin_us is None or length_us is None:
            return None
        end_us = begin_us + length_us
        parts: list[tuple[float | None, int]] = []
        at_us = begin_us
        for step, following in pairwise(steps):
            until_us = us_between(self._now, following.start)
            if until_us <= begin_us:
                continue
            if until_us >= end_us:
                parts.append((step.value, end_us - at_us))
                break
            parts.append((step.value, until_us - at_us))
            at_us = until_us
        else:
            parts.append((steps[-1].value, end_us - at_us))
        return _mean(parts, length_us)

    def means(self, begins_us: Sequence[int], length_us: int) -> list[float]:
        """Mean over a run from each of the times, margin included. What is null counts as nothing: see ``gap``."""
        times, values, offsets, scale = self._integral
        if length_us == 0:
            return [values[bisect_right(times, at) - 1] / scale for at in begins_us]
        ends_us = [at + length_us for at in begins_us]
        before = [values[i] * at + offsets[i] for at in begins_us for i in (bisect_right(times, at) - 1,)]
        after = [values[i] * at + offsets[i] for at in ends_us for i in (bisect_right(times, at) - 1,)]
        size = scale * length_us
        return [(end - begin) / size for begin, end in zip(before, after, strict=True)]

    def gap(self, begin_us: int, end_us: int) -> bool:
        """Whether a value between the two times is unknown."""
        if not self._has_nulls:
            return False
        first, last = (bisect_right(self._times, at) for at in (begin_us, max(end_us - 1, begin_us)))
        return None in self._values[first - 1 : last]

    def _with_margin(self, value: float) -> float:
        return value + self._margin * abs(value)

    @cached_property
    def _values(self) -> list[Any]:
        return [value for _, value in self._steps]

    @cached_property
    def _has_nulls(self) -> bool:
        return None in self._values

    @cached_property
    def _robust(self) -> list[Any]:
        return [None if value is None else self._with_margin(value) for value in self._values]

    @cached_property
    def _times(self) -> list[int]:
        """Starts of the steps; that of the first is not after now."""
        return [us_between(self._now, step.start) for step in self._steps]

    @cached_property
    def _integral(self) -> tuple[list[int], list[int], list[int], int]:
        """By step its start, its value times ``scale``, and what to add to value times time for the integral."""
        ratios = [(value or 0.0).as_integer_ratio() for value in (self._robust if self._margin else self._values)]
        scale = max(denominator for _, denominator in ratios)
        values = [numerator * (scale // denominator) for numerator, denominator in ratios]
        times = self._times
        jumps = ((old - new) * at for (old, new), at in zip(pairwise(values), times[1:], strict=True))
        return times, values, list(accumulate(jumps, initial=0)), scale


def _mean(parts: Sequence[tuple[float | None, int]], length_us: int) -> float | None:
    """Mean of values, each with the microseconds it holds of ``length_us``; None if one of them is unknown."""
    if len(parts) == 1:
        return parts[0][0]
    total = 0
    scale = 1
    for value, part_us in parts:
        if value is None:
            return None
        numerator, denominator = value.as_integer_ratio()
        if denominator > scale:  # both are powers of two
            total *= denominator // scale
            scale = denominator
        total += numerator * (scale // denominator) * part_us
    return total / (scale * length_us)
