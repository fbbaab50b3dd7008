"""Running totals of the host's counters: what happened to a counter is seen once, for all windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from tao_flows.telemetry.base import EnergySource, RawReader, Reading
from tao_flows.telemetry.counter import First, Gap, Reset, Wrapped, delta
from tao_flows.units import NS_PER_S, UJ_PER_J


class Standing(NamedTuple):
    """Where the counters stand. What lies between two of these is what they counted meanwhile."""

    raws_uj: tuple[int | None, ...]
    """By domain, as read; None where that failed."""
    around_uj: tuple[int, ...]
    """By domain, what its wraps have taken off the raw value."""
    breaks: tuple[int, ...]
    """By domain, how many spans were lost: over one, nothing can be said."""
    events: Mapping[tuple[int, str], int]
    """By position and code, what happened to the counters: how many events there had been with the last such one."""
    happened: int
    """Events in all: wraps, resets and readings that failed."""

    def since_uj(self, before: Standing, position: int) -> int | None:
        """Microjoules that the domain at ``position`` has counted since; None where any part is unknown."""
        now_uj, then_uj = self.raws_uj[position], before.raws_uj[position]
        if now_uj is None or then_uj is None or self.breaks[position] != before.breaks[position]:
            return None
        return now_uj + self.around_uj[position] - then_uj - before.around_uj[position]

    def codes_since(self, before: Standing, position: int) -> tuple[str, ...]:
        """What has happened since to the counter of the domain at ``position``."""
        if self.happened == before.happened:
            return ()
        return tuple(
            code for (where, code), number in self.events.items() if where == position and number > before.happened
        )


class Running:
    """The counters of all sources, read for any number of windows. Not safe to use from several threads at once.

    Args:
        sources: whose counters are read.
        now_ns: monotonic nanoseconds.
    """

    def __init__(self, sources: Sequence[EnergySource], now_ns: Callable[[], int]) -> None:
        self._sources = tuple(sources)
        # Beside a source that takes its time, there is none to be saved.
        raw_readers = [source for source in self._sources if isinstance(source, RawReader)]
        self._read_raw = raw_readers[0].read_raw if len(raw_readers) == len(self._sources) == 1 else None
        self._now_ns = now_ns
        self.domains: Final = tuple(domain for source in self._sources for domain in source.domains)
        nothing = (0,) * len(self.domains)
        self._standing = Standing((None,) * len(self.domains), nothing, nothing, {}, 0)
        self._readings: tuple[Reading | None, ...] = (None,) * len(self.domains)
        """What the standing was read as; empty where it was read raw."""
        self._at_ns = 0
        # Over a span shorter than this no counter can come all the way round.
        ranges = [d.range_uj / (d.max_power_w * UJ_PER_J) for d in self.domains if d.range_uj is not None]
        self._safe_ns = min(ranges, default=math.inf) * NS_PER_S

    def read(self) -> Standing:
        """Reads every counter. A source that raises makes its domains unknown."""
        if self._read_raw is not None:
            standing, at_ns = self._standing, self._now_ns()
            try:
                raws_uj = self._read_raw()
            except Exception:  # noqa: BLE001 - whatever a source raises, the user's task goes on; reading closely says what
                raws_uj = None
            if raws_uj is not None and 0 <= at_ns - self._at_ns < self._safe_ns:
                if raws_uj is not standing.raws_uj:
                    for now_uj, then_uj in zip(raws_uj, standing.raws_uj, strict=True):
                        if then_uj is None or now_uj < then_uj:
                            return self._read_closely()
                    self._standing = standing = Standing(raws_uj, *standing[1:])
                self._readings, self._at_ns = (), at_ns
                return standing
        return self._read_closely()

    def _read_closely(self) -> Standing:
        if not self._sources:
            return self._standing
        readings = tuple([reading for source in self._sources for reading in self._readings_of(source)])
        standing = self._standing
        around_uj, breaks = list(standing.around_uj), list(standing.breaks)
        events, happened = standing.events, standing.happened
        before = self._readings or tuple(Reading(self._at_ns, raw_uj) for raw_uj in standing.raws_uj)
        for position, (domain, earlier, later) in enumerate(zip(self.domains, before, readings, strict=True)):
            change = delta(domain, earlier, later)
            code = ""
            if isinstance(change, Wrapped):
                around_uj[position] += domain.range_uj or 0
                code = "WRAPPED"
            elif isinstance(change, Reset):
                breaks[position] += 1
                code = "RESET"
            elif isinstance(change, Gap):
                breaks[position] += 1
                code = change.code
            elif isinstance(change, First):
                code = later.error
            if code:
                happened += 1
                events = {**events, (position, code): happened}
        self._readings = readings
        self._at_ns = min((reading.at_ns for reading in readings), default=0)
        raws_uj = tuple(reading.raw_uj for reading in readings)
        self._standing = Standing(raws_uj, tuple(around_uj), tuple(breaks), events, happened)
        return self._standing

    def _readings_of(self, source: EnergySource) -> tuple[Reading, ...]:
        try:
            return source.read()
        except Exception as error:  # noqa: BLE001 - whatever a source raises, the user's task goes on
            failed = Reading(self._now_ns(), None, f"SOURCE_RAISED:{type(error).__name__}")
            return (failed,) * len(source.domains)
