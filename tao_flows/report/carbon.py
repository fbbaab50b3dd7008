"""Grams and money of energy that was used, and what waiting or moving saved. Pure: figures in, figures out.

A kilowatt-hour at the socket is ``PUE`` times the IT equipment's, and causes what the zone's signal said over the time in
which it was used:

    amount = kWh * PUE * mean(signal over the time)

What a try saved is what its joules would have caused in its home pool from the moment it was ready, less what they did
cause where and when it ran. The interval is the energy's alone: the signal is taken at its word, and its origin is named.
Where no signal covers a time the amount is unknown, and counts in ``coverage``; it is never 0.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from tao_flows.figures import Quality
from tao_flows.units import UJ_PER_J, kwh_from_j

_WHOLE: Final = 0.999
"""Of a time: from here on a signal covers it."""


class Origin(str, Enum):
    """Where a signal's value comes from, best first."""

    ACTUAL = "came true"
    FORECAST = "forecast as issued"
    SET = "set by hand"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Step:
    """A value from a start to an end, nanoseconds since the epoch."""

    start_ns: int
    end_ns: int
    value: float
    origin: Origin


@dataclass(frozen=True, slots=True)
class Curve:
    """A signal in one zone: steps in order of time, none over another."""

    zone: str
    unit: str
    source: str
    """Who told it, such as ``electricitymaps, average``."""
    steps: tuple[Step, ...]
    starts: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", tuple(step.start_ns for step in self.steps))

    def at(self, moment_ns: int) -> Step | None:
        """The step that holds at a moment."""
        index = bisect_right(self.starts, moment_ns) - 1
        return self.steps[index] if index >= 0 and moment_ns < self.steps[index].end_ns else None

    def over(self, begin_ns: int, end_ns: int) -> Mean:
        """The mean from a beginning to an end, each value by how long it held; at a moment, the value that held."""
        if end_ns <= begin_ns:
            step = self.at(begin_ns)
            return Mean(None, 0.0, ()) if step is None else Mean(step.value, 1.0, (step.origin,))
        weighted, covered_ns, origins = 0.0, 0, []
        first = max(0, bisect_right(self.starts, begin_ns) - 1)
        for step in self.steps[first:]:
            if step.start_ns >= end_ns:
                break
            held_ns = min(step.end_ns, end_ns) - max(step.start_ns, begin_ns)
            if held_ns > 0:
                weighted += step.value * held_ns
                covered_ns += held_ns
                origins.append(step.origin)
        if not covered_ns:
            return Mean(None, 0.0, ())
        return Mean(weighted / covered_ns, covered_ns / (end_ns - begin_ns), tuple(dict.fromkeys(origins)))


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of a signal over a time."""

    value: float | None
    covered: float
    """The share of the time that the signal covers."""
    origins: tuple[Origin, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pool stands, as far as grams go."""

    zone: str | None
    pue: float = 1.0


@dataclass(frozen=True, slots=True)
class Use:
    """Energy used in a pool over a time; None where it is unknown."""

    pool: str
    begin_ns: int
    end_ns: int
    energy_uj: int | None
    low_uj: int | None
    high_uj: int | None
    quality: Quality


@dataclass(frozen=True, slots=True)
class Move:
    """A use that was put off or moved: where it would have run, and from when."""

    home_pool: str
    ready_ns: int
    use: Use


@dataclass(frozen=True, slots=True)
class Amount:
    """Grams or money, with the energy's interval."""

    unit: str
    """``g`` or a currency."""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    known_kwh: float = 0.0
    """At the socket: of the energy that the value is of."""
    coverage: float = 0.0
    """The share of the energy known that the value is of."""
    origins: tuple[Origin, ...] = ()
    sources: tuple[str, ...] = ()
    pues: tuple[float, ...] = ()
    parts: int = 0
    """Uses, or moves, that the value is of."""
    quality: Quality = Quality.UNKNOWN
    """The worst of the energy that the value is of."""

    @property
    def factor(self) -> float | None:
        """The mean signal: what a kilowatt-hour at the socket caused."""
        return None if self.value is None or not self.known_kwh else self.value / self.known_kwh

    def to_json(self) -> dict[str, Any]:
        """JSON, null for unknown."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "unit": self.unit,
            "quality": self.quality.value,
            "factor_per_kwh": self.factor,
            "pue": list(self.pues),
            "coverage": self.coverage,
            "origins": [str(origin) for origin in self.origins],
            "sources": list(self.sources),
        }


UNTOLD: Final = Amount("")
"""An amount of which nothing was asked."""


def caused(uses: Iterable[Use], places: Mapping[str, Place], curves: Mapping[str, Curve], unit: str) -> Amount:
    """What the uses caused.

    Args:
        uses: energy by pool and time.
        places: the zone and the PUE of pools.
        curves: the signal by zone.
        unit: of the amount.
    """
    sums = _Sums(unit)
    for use in uses:
        if use.energy_uj is None:
            continue
        mean, place = _mean(use.pool, use.begin_ns, use.end_ns, places, curves)
        sums.whole_uj += use.energy_uj
        if mean.value is not None and place is not None:
            # What lies outside the signal's time is not known, and not guessed at.
            sums.add(use, [(place, mean, mean.value * place.pue * mean.covered)], mean.covered, place.pue, curves)
    return sums.amount()


def saved(moves: Iterable[Move], places: Mapping[str, Place], curves: Mapping[str, Curve], unit: str) -> Amount:
    """What putting off and moving saved; below 0 where it cost more. Arguments are those of ``caused``."""
    sums = _Sums(unit)
    for move in moves:
        use = move.use
        if use.energy_uj is None:
            continue
        sums.whole_uj += use.energy_uj
        length_ns = max(0, use.end_ns - use.begin_ns)
        home, at_home = _mean(move.home_pool, move.ready_ns, move.ready_ns + length_ns, places, curves)
        real, there = _mean(use.pool, use.begin_ns, use.end_ns, places, curves)
        if home.value is None or real.value is None or at_home is None or there is None:
            continue
        if min(home.covered, real.covered) < _WHOLE:
            continue  # of two means over parts of the time the difference says nothing
        factor = home.value * at_home.pue - real.value * there.pue
        sums.add(use, [(at_home, home, factor), (there, real, 0.0)], 1.0, there.pue, curves)
    return sums.amount()


@dataclass(slots=True)
class _Sums:
    unit: str
    value: float = 0.0
    low: float = 0.0
    high: float = 0.0
    kwh: float = 0.0
    whole_uj: int = 0
    known_uj: float = 0.0
    parts: int = 0
    quality: Quality = Quality.MEASURED
    origins: dict[Origin, None] = field(default_factory=dict)
    sources: dict[str, None] = field(default_factory=dict)
    pues: dict[float, None] = field(default_factory=dict)

    def add(
        self,
        use: Use,
        means: Sequence[tuple[Place, Mean, float]],
        covered: float,
        pue: float,
        curves: Mapping[str, Curve],
    ) -> None:
        energy_uj = use.energy_uj or 0
        factor = sum(each for _, _, each in means)
        bounds = [factor * _kwh(bound) for bound in (use.low_uj, use.high_uj) if bound is not None]
        value = factor * _kwh(energy_uj)
        self.value += value
        # A saving below 0 turns its bounds around.
        self.low += min(bounds, default=value)
        self.high += max(bounds, default=value)
        self.kwh += _kwh(energy_uj) * covered * pue
        self.known_uj += energy_uj * covered
        self.parts += 1
        self.quality = max(self.quality, use.quality, key=lambda quality: quality.rank)
        self.pues[pue] = None
        for place, mean, _ in means:
            self.origins.update(dict.fromkeys(mean.origins))
            self.sources[curves[place.zone or ""].source] = None

    def amount(self) -> Amount:
        if not self.parts:
            return Amount(self.unit)
        return Amount(
            self.unit, self.value, self.low, self.high, self.kwh,
            self.known_uj / self.whole_uj if self.whole_uj else 1.0,
            tuple(origin for origin in Origin if origin in self.origins), tuple(self.sources),
            tuple(sorted(self.pues)), self.parts, self.quality,
        )  # fmt: skip


def _mean(
    pool: str, begin_ns: int, end_ns: int, places: Mapping[str, Place], curves: Mapping[str, Curve]
) -> tuple[Mean, Place | None]:
    place = places.get(pool)
    curve = curves.get(place.zone or "") if place is not None else None
    return (Mean(None, 0.0, ()), place) if curve is None else (curve.over(begin_ns, end_ns), place)


def _kwh(energy_uj: int) -> float:
    return kwh_from_j(energy_uj / UJ_PER_J)
