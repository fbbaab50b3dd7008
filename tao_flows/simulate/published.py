"""What is expected of a zone without learning anything: the newest forecast, or the day before where there is none."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from itertools import accumulate

from tao_flows.signals.model import Issue
from tao_flows.signals.trailing import Trail
from tao_flows.simulate.market import Zone

_Span = tuple[int, int, float]


class View:
    """Values expected over spans that follow one another without a gap."""

    def __init__(self, spans: list[_Span]) -> None:
        self._starts = [start for start, _, _ in spans]
        self._values = [value for _, _, value in spans]
        self._end = spans[-1][1] if spans else 0
        self._sums = list(accumulate((value * (end - start) for start, end, value in spans), initial=0.0))

    def mean(self, start_ns: int, end_ns: int) -> float | None:
        """Mean over a run; None where it is not all covered."""
        if not self._starts or start_ns < self._starts[0] or end_ns > self._end:
            return None
        return (self._until(end_ns) - self._until(start_ns)) / (end_ns - start_ns)

    def _until(self, at_ns: int) -> float:
        index = bisect_right(self._starts, at_ns) - 1
        return self._sums[index] + self._values[index] * (at_ns - self._starts[index])


class Published:
    """The newest forecast of a zone at each time; asked in order of time.

    Where issues overlap the newer holds; the value now is the one that is known, not forecast.
    """

    def __init__(self, zone: Zone, horizon_s: float) -> None:
        self._zone = zone
        self._issues = deque(zone.series.issues)
        self._spans: list[_Span] = []
        self._view: tuple[int, View] | None = None
        self._trail = None
        if not self._issues:
            self._trail = Trail(zone.step_ns, horizon_s)
            self._trail.add((), zone.series.actuals)

    def at(self, now_ns: int) -> View:
        """What is expected from now on."""
        if self._view is None or self._view[0] != now_ns:
            self._view = (now_ns, View(self._expected(now_ns)))
        return self._view[1]

    def _expected(self, now_ns: int) -> list[_Span]:
        if self._trail is not None:
            self._trail.advance(now_ns)
            return _spans(Issue(now_ns, self._trail.forecast(corrected=False)), self._zone.step_ns)
        while self._issues and self._issues[0].issued_wall_ns <= now_ns:
            issue = self._issues.popleft()
            new = _spans(issue, self._zone.step_ns)
            first, last = new[0][0], new[-1][1]
            kept = [span for span in self._spans if span[1] > issue.issued_wall_ns]
            before = [(start, min(end, first), value) for start, end, value in kept if start < first]
            after = [(max(start, last), end, value) for start, end, value in kept if end > last]
            self._spans = [*before, *new, *after]
        self._spans = [span for span in self._spans if span[1] > now_ns]
        index = bisect_right(self._zone.starts, now_ns) - 1
        known_from, value = self._zone.series.actuals[index]
        known_until = [*self._zone.starts[index + 1 : index + 2], self._zone.end_ns][0]
        spans: list[_Span] = [(known_from, known_until, value)]
        for start, end, expected in self._spans:
            if end > spans[-1][1]:
                if start > spans[-1][1]:
                    break
                spans.append((spans[-1][1], end, expected))
        return spans


def _spans(issue: Issue, step_ns: int) -> list[_Span]:
    starts = [start for start, _ in issue.steps]
    end = 2 * starts[-1] - starts[-2] if len(starts) > 1 else starts[-1] + step_ns
    return [(start, until, value) for (start, value), until in zip(issue.steps, [*starts[1:], end], strict=True)]
