"""Means of a carbon or price signal over a run, exact to the last digit of the answer.

A signal is a staircase: each value holds until the next step starts, the last one without end. Its integral is kept
in whole numbers (microseconds times a binary fraction of the values), so that a mean never lies outside the values it
is of, two runs that meet the same values have the very same mean, and nothing is lost in differences of large sums.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime
from itertools import accumulate, islice
from operator import itemgetter, mul, sub
from typing import Any, Final

from tao_flows.controller.model import MICROSECOND, Step, us_between
from tao_flows.lazily import lazily

_START: Final = itemgetter(0)
_VALUE: Final = itemgetter(1)


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
        self._first = bisect_right(steps, now, key=_START) - 1
        self._last = bisect_right(steps, end, key=_START)
        self._given = steps
        self.changes = self._last - self._first > 1
        """Whether another value is to come."""
        self.has_nulls = False
        # Every signal of a request is read this far, and few any further. So this touches each value once, and keeps
        # none: a null shows in that it compares with nothing.
        try:
            self.least_issued: float = min(map(_VALUE, islice(steps, self._first, self._last))) + 0.0
            """The least value there is; no mean of a run that starts now is below it."""
        except TypeError:
            self.has_nulls = True
            self.least_issued = min(value or 0.0 for value in self._values)

    @lazily
    def settled_us(self) -> int:
        """When the last step starts, after which nothing changes; not before now."""
        return max(us_between(self._now, self._given[self._last - 1].start), 0)

    @lazily
    def least(self) -> float:
        """The least value there is, margin included; no mean of a later run is below it."""
        least = self.least_issued
        # A margin of more than 1 turns the order of what is below 0.
        return min(self._robust) if least < 0 and self._margin > 1 else least + self._margin * abs(least)

    def is_known(self, begin_us: int | None, length_us: int | None) -> bool:
        """Whether ``mean`` is known, without working it out where nothing is null."""
        if self.has_nulls:
            return self.mean(begin_us, length_us) is not None
        return not self.changes or (begin_us is not None and length_us is not None)

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
        edges_us = [begin_us]
        values = [steps[0].value]
        for start, value in islice(steps, 1, None):
            at_us = (start - self._now) // MICROSECOND
            if at_us <= begin_us:
                values[0] = value
            elif at_us < end_us:
                edges_us.append(at_us)
                values.append(value)
            else:
                break
        return _mean(values, [*edges_us, end_us])

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
        if not self.has_nulls:
            return False
        first, last = (bisect_right(self._times, at) for at in (begin_us, max(end_us - 1, begin_us)))
        return None in self._values[first - 1 : last]

    @lazily
    def _steps(self) -> Sequence[Step]:
        """The one that holds now, and those that start before the end."""
        return self._given[self._first : self._last]

    @lazily
    def _values(self) -> list[Any]:
        return list(map(_VALUE, self._steps))

    @lazily
    def _robust(self) -> list[float]:
        """The values with the margin; what is null is left at nothing."""
        margin, values = self._margin, self._values
        if self.has_nulls:
            values = [value or 0.0 for value in values]
        return [value + margin * abs(value) for value in values] if margin else values

    @lazily
    def _times(self) -> list[int]:
        """Starts of the steps; that of the first is not after now."""
        now = self._now
        return [(start - now) // MICROSECOND for start, _ in self._steps]

    @lazily
    def _integral(self) -> tuple[list[int], list[int], list[int], int]:
        """By step its start, its value times ``scale``, and what to add to value times time for the integral."""
        ratios = list(map(float.as_integer_ratio, self._robust))
        scale = max(map(_VALUE, ratios))
        values = [numerator * (scale // denominator) for numerator, denominator in ratios]
        jumps = map(mul, map(sub, values, values[1:]), self._times[1:])
        return self._times, values, list(accumulate(jumps, initial=0)), scale


def _mean(values: Sequence[float | None], edges_us: Sequence[int]) -> float | None:
    """Mean of values that hold from edge to edge; None if one of them is unknown."""
    if len(values) == 1:
        return values[0]
    total, scale = 0, 1
    for value, begin_us, end_us in zip(values, edges_us, edges_us[1:], strict=False):
        if value is None:
            return None
        numerator, denominator = value.as_integer_ratio()
        if denominator > scale:  # both are powers of two
            total *= denominator // scale
            scale = denominator
        total += numerator * (scale // denominator) * (end_us - begin_us)
    return total / (scale * (edges_us[-1] - edges_us[0]))
