"""A signal as it came true and as it was forecast, by zone, and the pools that work in those zones."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil

from tao_flows.signals.csvfile import Series
from tao_flows.signals.trailing import step_of
from tao_flows.units import NS_PER_S, kwh_from_j


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work that may wait. It is not interrupted once it runs."""

    job_id: str
    arrival_ns: int
    deadline_ns: int
    """A finish time."""
    runtime_s: float
    energy_j: float

    @property
    def runtime_ns(self) -> int:
        """Its length, rounded up to a microsecond: the resolution of a decision's times."""
        return ceil(round(self.runtime_s * NS_PER_S) / 1_000) * 1_000

    @property
    def latest_ns(self) -> int:
        """The latest start that meets the deadline; the arrival where none does."""
        return max(self.deadline_ns - self.runtime_ns, self.arrival_ns)


@dataclass(frozen=True, slots=True)
class Place:
    """A worker pool, as far as it matters here."""

    pool_id: str
    zone: str
    capacity: int | None = None
    """Jobs at a time; None: as many as will."""
    energy_factor: float = 1.0
    """Joules a job takes there, relative to the figure in its row."""


class Zone:
    """What came true in a zone, and the forecasts of it."""

    def __init__(self, series: Series) -> None:
        self.series = series
        self.step_ns = step_of(series.issues, series.actuals)
        self.starts = [start for start, _ in series.actuals]
        self.end_ns = 2 * self.starts[-1] - self.starts[-2] if len(self.starts) > 1 else self.starts[-1] + self.step_ns
        lengths = (later - earlier for earlier, later in pairwise([*self.starts, self.end_ns]))
        parts = (value * length for (_, value), length in zip(series.actuals, lengths, strict=True))
        self._sums = list(accumulate(parts, initial=0.0))
        self.news_ns: Sequence[int] = sorted({*self.starts, *(issue.issued_wall_ns for issue in series.issues)})
        """When something new is known."""

    def mean(self, start_ns: int, end_ns: int) -> float:
        """Time-weighted mean of what came true."""
        return (self._until(end_ns) - self._until(start_ns)) / (end_ns - start_ns)

    def _until(self, at_ns: int) -> float:
        index = bisect_right(self.starts, at_ns) - 1
        return self._sums[index] + self.series.actuals[index][1] * (at_ns - self.starts[index])

    def starts_between(self, first_ns: int, last_ns: int) -> Sequence[int]:
        """When the values change, in a span of time."""
        return self.starts[bisect_left(self.starts, first_ns) : bisect_right(self.starts, last_ns)]

    def next_news_ns(self, now_ns: int) -> int | None:
        """When the next thing is known; None if nothing more will be."""
        index = bisect_right(self.news_ns, now_ns)
        return self.news_ns[index] if index < len(self.news_ns) else None


@dataclass(frozen=True)
class Market:
    """Where the jobs can run and what a kilowatt-hour costs there."""

    zones: Mapping[str, Zone]
    places: Sequence[Place]
    """The first is the home pool."""

    @property
    def home(self) -> Place:
        """Where a job runs that nobody moves."""
        return self.places[0]

    @property
    def zone_names(self) -> Sequence[str]:
        """The zones that have a pool."""
        return tuple(dict.fromkeys(place.zone for place in self.places))

    @property
    def limited(self) -> bool:
        """Whether any pool can be full."""
        return any(place.capacity is not None for place in self.places)

    def cost(self, job: Job, place: Place, start_ns: int) -> float:
        """Kilowatt-hours times the signal averaged over the run, in the signal's unit."""
        mean = self.zones[place.zone].mean(start_ns, start_ns + job.runtime_ns)
        return kwh_from_j(job.energy_j * place.energy_factor) * mean

    def next_news_ns(self, now_ns: int) -> int | None:
        """When something new is known of any zone that matters."""
        news = (self.zones[zone].next_news_ns(now_ns) for zone in self.zone_names)
        return min((at for at in news if at is not None), default=None)
