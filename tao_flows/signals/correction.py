"""Corrects a signal's forecasts by what its own earlier ones got wrong.

For each lead (how many steps ahead) a linear correction of the newest forecast is learned by recursive ridge
regression with exponential forgetting, only from forecasts as they were issued and values that have come true since.
What no issue covers is first taken from the same time of the day before, and corrected as a kind of its own; so a
signal without forecasts, or one whose forecasts end too soon, is forecast as well. Nothing here reads a clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from operator import mul
from typing import Final, NamedTuple

HALF_LIFE_DAYS: Final = 35.0
"""After which an error counts half. Chosen on CAISO PGE, May 2019 to April 2020; 20 to 120 days differ by a point."""
RIDGE: Final = 0.01
"""Shrinks the correction towards none; 0.0001 to 0.05 make no difference beyond noise on the same year."""
DAILY_ISSUES: Final = 56
"""About how many slots of a day are learned from: every fifth where they take five minutes, so that every phase of the
hour comes up."""
LEAST_ROWS: Final = 200
"""Errors a lead must have seen before anything is corrected."""
_NEIGHBOURS: Final = (-6, -3, 3, 6)
_SIZE: Final = 4 + len(_NEIGHBOURS)
_GROUP_RATIO: Final = 1.15
_SINGLE_LEADS: Final = 12
_WEEKS_DAYS: Final = 28
_DAY_NS: Final = 86_400 * 10**9


class _Fit:
    """Weighted normal equations of one group of leads, and their solution."""

    __slots__ = ("_matrix", "_moment", "_rows", "weights")

    def __init__(self) -> None:
        self._matrix = [[0.0] * _SIZE for _ in range(_SIZE)]
        self._moment = [0.0] * _SIZE
        self._rows = 0.0
        self.weights: list[float] | None = None

    def add(self, row: Sequence[float], error: float) -> None:
        self._rows += 1.0
        for i, value in enumerate(row):
            into = self._matrix[i]
            for j in range(i + 1):
                into[j] += value * row[j]
            self._moment[i] += value * error

    def solve(self, decay: float) -> None:
        """Solves by Cholesky decomposition, then forgets a little."""
        if self._rows >= LEAST_ROWS:
            self.weights = _ridge(self._matrix, self._moment)
        self._rows *= decay
        self._moment = [value * decay for value in self._moment]
        self._matrix = [[value * decay for value in row] for row in self._matrix]


def _ridge(matrix: list[list[float]], moment: list[float]) -> list[float] | None:
    lower = [[0.0] * _SIZE for _ in range(_SIZE)]
    for i in range(_SIZE):
        for j in range(i + 1):
            rest = matrix[i][j] - math.fsum(map(mul, lower[i][:j], lower[j][:j]))
            if i == j:
                # The unit keeps a feature that never varied (all zero) solvable; others are worth far more.
                rest += RIDGE * matrix[i][i] + 1e-9
                if not rest > 0.0:
                    return None
                lower[i][i] = math.sqrt(rest)
            else:
                lower[i][j] = rest / lower[j][j]
    half: list[float] = []
    for i in range(_SIZE):
        half.append((moment[i] - sum(map(mul, lower[i][:i], half))) / lower[i][i])
    weights = [0.0] * _SIZE
    for i in reversed(range(_SIZE)):
        after = sum(lower[k][i] * weights[k] for k in range(i + 1, _SIZE))
        weights[i] = (half[i] - after) / lower[i][i]
    return weights


class _Pending(NamedTuple):
    """A forecast whose errors are not all known yet."""

    slot: int
    scale: float
    view: list[float]
    covered: list[bool]
    rows: list[tuple[float, ...]]


class Corrector:
    """The forecasts of one signal in one zone, on a grid of equal slots, plain and corrected.

    Args:
        step_ns: length of a slot.
        leads: slots ahead that are forecast, at least 1.
    """

    def __init__(self, step_ns: int, leads: int) -> None:
        self.leads = leads
        self._per_day = max(round(_DAY_NS / step_ns), 1)
        self._stride = max(self._per_day // DAILY_ISSUES, 1) | 1
        self._decay = 0.5 ** (1.0 / HALF_LIFE_DAYS)
        self._groups = [_group(lead) for lead in range(1, leads + 1)]
        self._near = [[min(max(lead + k, 1), leads) for k in _NEIGHBOURS] for lead in range(1, leads + 1)]
        self._fits = [(_Fit(), _Fit()) for _ in range(self._groups[-1] + 1)]
        self._issued: dict[int, float] = {}
        self._values: deque[float] = deque(maxlen=self._per_day)
        self._views: deque[list[float]] = deque(maxlen=leads + 1)
        self._view: list[float] | None = None
        self._pending: deque[_Pending] = deque()
        self._mean = self._daily = self._weekly = self._scale = 0.0
        self._seen = 0
        self._slot = -1

    def issue(self, values: Mapping[int, float]) -> None:
        """Forecasts of values in slots to come; newer ones replace older ones."""
        self._issued.update((slot, value) for slot, value in values.items() if slot > self._slot)
        self._view = None

    def advance(self, slot: int, value: float | None) -> None:
        """A slot has begun, and its value is known, or None. Slots come one by one, without gaps."""
        self._slot = slot
        if value is not None:
            self._learn(slot, value)
        self._values.append(value if value is not None else self._issued.get(slot, self._last()))
        self._issued.pop(slot, None)
        while self._pending and self._pending[0].slot + self.leads <= slot:
            self._pending.popleft()
        self._weigh(self._values[-1])
        if slot % self._per_day == 0:
            for pair in self._fits:
                for fit in pair:
                    fit.solve(self._decay)
        self._view = None
        view = self.plain()
        self._views.append(view)
        if slot % self._stride == 0 and value is not None and self._scale > 0.0:
            covered = [slot + lead in self._issued for lead in range(self.leads + 1)]
            self._pending.append(_Pending(slot, self._scale, view, covered, self._rows(view)))

    def plain(self) -> list[float]:
        """The value now and that of each slot ahead, as issued; what is not, as on the day before."""
        if self._view is None:
            slot, issued, values, per_day = self._slot, self._issued, self._values, self._per_day
            view = self._view = [self._last()]
            for lead in range(1, self.leads + 1):
                value = issued.get(slot + lead)
                if value is None:
                    back = len(values) + lead - 1 - per_day
                    value = view[lead - per_day] if lead >= per_day else values[back] if back >= 0 else view[-1]
                view.append(value)
        return self._view

    def corrected(self) -> list[float]:
        """The same, corrected, and held within what is forecast or has been in the last day."""
        view, slot, issued = self.plain(), self._slot, self._issued
        low, high = min(*view, *self._values), max(*view, *self._values)
        answer = view[:1]
        mean = sum(view) / len(view)
        for lead, group in enumerate(self._groups, 1):
            value = view[lead]
            weights = self._fits[group][slot + lead in issued].weights
            if weights is not None:
                value += sum(map(mul, weights, self._row(view, lead, mean)))
                value = min(max(value, low), high)
            answer.append(value)
        return answer

    def _row(self, view: list[float], lead: int, mean: float) -> tuple[float, ...]:
        """What the error of a lead may depend on, in the signal's own unit.

        A constant; how far the value now is from the forecast; the error of the forecast of now that was made as far
        ahead; what is forecast on the whole, a little earlier and a little later.
        """
        value, (a, b, c, d) = view[lead], self._near[lead - 1]
        at = len(self._views) - 1 - lead
        error = view[0] - self._views[at][lead] if at >= 0 else 0.0
        return (
            self._scale, view[0] - value, error, mean - value,
            view[a] - value, view[b] - value, view[c] - value, view[d] - value,
        )  # fmt: skip

    def _rows(self, view: list[float]) -> list[tuple[float, ...]]:
        mean = sum(view) / len(view)
        return [self._row(view, lead, mean) for lead in range(1, self.leads + 1)]

    def _learn(self, slot: int, value: float) -> None:
        for made, scale, view, covered, rows in self._pending:
            lead = slot - made
            row = [part / scale for part in rows[lead - 1]]
            self._fits[self._groups[lead - 1]][covered[lead]].add(row, (value - view[lead]) / scale)

    def _weigh(self, value: float) -> None:
        """Keeps the mean absolute deviation over about a day: errors of wild days count no more than those of calm.

        A signal that has stood still for days is taken to vary a tenth as much as over the weeks: its next jump is not
        all there is to learn from.
        """
        if len(self._values) == 1:
            self._mean = value
        self._mean += (value - self._mean) / self._per_day
        deviation, seen = abs(value - self._mean), len(self._values)
        self._daily += (deviation - self._daily) / seen
        self._weekly += (deviation - self._weekly) / max(seen, min(self._seen, _WEEKS_DAYS * self._per_day))
        self._seen += 1
        self._scale = max(self._daily, self._weekly / 10.0)

    def _last(self) -> float:
        return self._values[-1] if self._values else 0.0


def _group(lead: int) -> int:
    """Leads beyond the first few are learned together with their neighbours, by ratio."""
    if lead <= _SINGLE_LEADS:
        return lead
    return _SINGLE_LEADS + int(math.log(lead / _SINGLE_LEADS) / math.log(_GROUP_RATIO))
