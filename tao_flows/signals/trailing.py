"""How far to follow a signal's forecasts: what following them would have saved of late.

The forecasts are replayed as they were issued, plain and corrected, over the days behind: tasks that could wait are
started by each rule on offer, and what the signal then did says what each was worth. Only what was known by then is
looked at. Where no rule saved against running at once, the answer is to run at once.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import sub
from typing import Final, NamedTuple

from tao_flows.signals.correction import Corrector
from tao_flows.signals.model import Issue, Steps
from tao_flows.units import NS_PER_S

WINDOW_DAYS: Final = 28
MARGINS: Final = (0.0, 0.01, 0.02, 0.05, 0.1)
MOST_LEADS: Final = 96
"""A horizon of more steps is looked at in coarser ones."""
_DAY_NS: Final = 86_400 * NS_PER_S
_DAILY_TASKS: Final = 48
_NEVER: Final = -1
_FARTHEST_DAYS: Final = 10
"""What is forecast for later still is not kept."""


@dataclass(frozen=True, slots=True)
class Margin:
    """How to follow the forecasts of a signal for a task of some slack and length."""

    margin: float
    """A later start must promise this share more than it would cost now, to be worth waiting for."""
    follow: bool
    """False: following paid nothing of late; run at once."""
    corrected: bool
    """Whether the corrected forecast did better than the plain one."""
    replayed: int
    """Tasks replayed."""
    share: float | None
    """Of what a clairvoyant would have saved in the replay; None if that is nothing."""


NO_TRUST: Final = Margin(margin=0.0, follow=False, corrected=False, replayed=0, share=None)
"""Before anything was replayed."""


class _Rule(NamedTuple):
    corrected: bool
    margin: float


_TO_FOLLOW: Final = 1.0
"""Standard errors by which the replayed saving must stand out from nothing."""
_TO_DEPART: Final = 2.0
"""Standard errors by which another rule must beat the plainest one: the corrected forecast, without a margin."""
_RULES: Final = tuple(_Rule(corrected, margin) for corrected in (True, False) for margin in MARGINS)


class _Day:
    """What the tasks that arrived on one day would have paid, by rule."""

    __slots__ = ("at_best", "at_once", "by_rule", "tasks")

    def __init__(self) -> None:
        self.tasks, self.at_once, self.at_best = 0, 0.0, 0.0
        self.by_rule = [0.0] * len(_RULES)


class Trail:
    """One signal in one zone as it came to be known. Feed it, advance it, ask it.

    Args:
        step_ns: the signal's own step; see `step_of`.
        horizon_s: the longest slack plus runtime that will be asked about.
    """

    def __init__(self, step_ns: int, horizon_s: float) -> None:
        steps = max(math.ceil(horizon_s * NS_PER_S / step_ns), 1)
        self._signal_step_ns = step_ns
        self.step_ns = _coarser(step_ns, math.ceil(steps / MOST_LEADS))
        self._per_day = max(_DAY_NS // self.step_ns, 1)
        self._corrector = Corrector(self.step_ns, math.ceil(steps * step_ns / self.step_ns))
        self._farthest = self._corrector.leads + _FARTHEST_DAYS * self._per_day
        self._issues: deque[Issue] = deque()
        self._actuals: deque[tuple[int, float]] = deque()
        self._newest: tuple[int, float] | None = None
        self._expected: tuple[list[float], list[float]] = ([], [])
        self.slot = self.first = _NEVER
        """The slots that are kept: the present one, and the first."""
        self.forecasts: dict[int, tuple[array[float], array[float]]] = {}
        """By slot, what was then forecast, plain and corrected: the value now and those ahead, summed from 0 on."""
        self.sums: dict[int, float] = {}
        """By slot, the sum of what came true before it."""
        self._replays: dict[tuple[int, int], _Replay] = {}

    def add(self, issues: Iterable[Issue], actuals: Steps) -> None:
        """Forecasts in order of issue and values in order of time, none before those that were added earlier.

        They may lie in the future: nothing is looked at before its time has come.
        """
        self._issues.extend(issues)
        self._actuals.extend(actuals)

    def advance(self, now_ns: int) -> None:
        """Takes in what has come to be known by now."""
        target = now_ns // self.step_ns
        if self.slot == _NEVER:
            known = [self._actuals[0][0]] if self._actuals else []
            known += [self._issues[0].issued_wall_ns] if self._issues else []
            self.first = min(*(at // self.step_ns for at in known), target) if known else target
            self.slot = self.first - 1
            self.sums[self.first] = 0.0
        while self.slot < target:
            self.slot += 1
            self._begin(self.slot)
        if self._take_issues(now_ns):
            self._expected = (self._corrector.plain(), self._corrector.corrected())

    def _begin(self, slot: int) -> None:
        begin_ns = slot * self.step_ns
        self._take_issues(begin_ns)
        while self._actuals and self._actuals[0][0] <= begin_ns:
            self._newest = self._actuals.popleft()
        # A value holds until the next; where none follows, for the length of a step.
        holds = self._newest is not None and (self._actuals or begin_ns < self._newest[0] + self._signal_step_ns)
        self._corrector.advance(slot, self._newest[1] if self._newest is not None and holds else None)
        plain, corrected = self._expected = (self._corrector.plain(), self._corrector.corrected())
        self.forecasts[slot] = (_summed(plain), _summed(corrected))
        self.sums[slot + 1] = self.sums[slot] + plain[0]
        old = slot - (WINDOW_DAYS + 1) * self._per_day
        self.forecasts.pop(old, None)
        self.sums.pop(old, None)
        self.first = max(self.first, old + 1)

    def _take_issues(self, until_ns: int) -> bool:
        step_ns, taken = self.step_ns, False
        while self._issues and self._issues[0].issued_wall_ns <= until_ns:
            steps = self._issues.popleft().steps
            if not steps:
                continue
            # The last step is as long as the one before it.
            last_ns = 2 * steps[-1][0] - steps[-2][0] if len(steps) > 1 else steps[-1][0] + self._signal_step_ns
            values: dict[int, float] = {}
            for (start, value), (end, _) in pairwise([*steps, (last_ns, 0.0)]):
                slots = range(-(-start // step_ns), min(-(-end // step_ns), until_ns // step_ns + self._farthest))
                values.update(dict.fromkeys(slots, value))
            self._corrector.issue(values)
            taken = True
        return taken

    def forecast(self, *, corrected: bool) -> Steps:
        """What is expected from the present slot on, over the horizon; the first value holds now."""
        if self.slot == _NEVER:
            return ()
        return tuple(((self.slot + lead) * self.step_ns, value) for lead, value in enumerate(self._expected[corrected]))

    def margin(self, slack_s: float, runtime_s: float) -> Margin:
        """How to follow the forecasts for a task of this slack and runtime, in seconds."""
        length = max(math.ceil(runtime_s * NS_PER_S / self.step_ns), 1)
        slack = min(math.floor(slack_s * NS_PER_S / self.step_ns), self._corrector.leads + 1 - length)
        if self.slot == _NEVER or slack < 1:
            return NO_TRUST
        replay = self._replays.setdefault((slack, length), _Replay(self, slack, length, self._per_day))
        replay.advance(self.slot)
        return replay.margin()


class _Replay:
    """Tasks of one slack and length, in slots, replayed as far as their outcome is known."""

    def __init__(self, trail: Trail, slack: int, length: int, per_day: int) -> None:
        self._trail, self._slack, self._length, self._per_day = trail, slack, length, per_day
        # Odd, so that every phase of an hour comes up.
        self._spacing = max(per_day // _DAILY_TASKS, 1) | 1
        self._next = trail.first
        self._days: dict[int, _Day] = {}

    def advance(self, slot: int) -> None:
        """Replays the tasks that could have ended by the begin of the slot."""
        self._next = max(self._next, self._trail.first)
        while self._next + self._slack + self._length <= slot:
            self._replay(self._next)
            self._next += self._spacing
        for day in [day for day in self._days if day < slot // self._per_day - WINDOW_DAYS]:
            del self._days[day]

    def _replay(self, arrival: int) -> None:
        length, sums = self._length, self._trail.sums
        paid = [(sums[at + length] - sums[at]) / length for at in range(arrival, arrival + self._slack + 1)]
        day = self._days.setdefault(arrival // self._per_day, _Day())
        day.tasks += 1
        day.at_once += paid[0]
        day.at_best += min(paid)
        waiting = list(enumerate(_RULES))
        for delay, cost in enumerate(paid):
            left = self._slack - delay
            hopes = [self._hope(sums, left) for sums in self._trail.forecasts[arrival + delay]] if left else None
            still = []
            for index, rule in waiting:
                if hopes is not None:
                    now, later = hopes[rule.corrected]
                    if later + rule.margin * abs(later) < now:
                        still.append((index, rule))
                        continue
                day.by_rule[index] += cost
            waiting = still
            if not waiting:
                return

    def _hope(self, sums: array[float], left: int) -> tuple[float, float]:
        """The forecast cost of a run now, and of the best of the later ones."""
        length = self._length
        return sums[length] - sums[0], min(map(sub, sums[length + 1 : length + left + 1], sums[1 : left + 1]))

    def margin(self) -> Margin:
        """What the days behind speak for."""
        days = list(self._days.values())
        if not days:
            return NO_TRUST
        totals = [sum(costs) for costs in zip(*(day.by_rule for day in days), strict=True)]
        best = min(range(len(_RULES)), key=totals.__getitem__)
        if not _shown((day.by_rule[0] - day.by_rule[best] for day in days), _TO_DEPART):
            best = 0
        saved = [day.at_once - day.by_rule[best] for day in days]
        optimum = sum(day.at_once - day.at_best for day in days)
        return Margin(
            margin=_RULES[best].margin,
            follow=_shown(saved, _TO_FOLLOW),
            corrected=_RULES[best].corrected,
            replayed=sum(day.tasks for day in days),
            share=sum(saved) / optimum if optimum > 0.0 else None,
        )


def _shown(gains: Iterable[float], errors: float) -> bool:
    """Whether the sum of daily gains is above 0 by so many of its standard errors."""
    gains = list(gains)
    return sum(gains) > 0.0 and sum(gains) >= errors * math.sqrt(sum(gain * gain for gain in gains))


def step_of(issues: Iterable[Issue], actuals: Steps) -> int:
    """The step of a signal in nanoseconds: the commonest of its values, or of its first forecast; else an hour."""
    first = next(iter(issues), None)
    for steps in (actuals, first.steps if first is not None else ()):
        lengths = Counter(later - earlier for (earlier, _), (later, _) in pairwise(steps))
        if lengths:
            return min(lengths, key=lambda length: (-lengths[length], length))
    return _DAY_NS // 24


def alike_s(seconds: float) -> float:
    """To the nearest power of the square root of two, at least a second: alike tasks share what is replayed."""
    return math.pow(2.0, round(2 * math.log2(max(seconds, 1.0))) / 2)


def _coarser(step_ns: int, least: int) -> int:
    """A multiple of the step, by ``least`` or the first more that makes a day of whole steps, if one does."""
    fitting = (step_ns * factor for factor in range(least, 2 * least) if _DAY_NS % (step_ns * factor) == 0)
    return next(fitting, step_ns * least)


def _summed(values: list[float]) -> array[float]:
    return array("d", accumulate(values, initial=0.0))
