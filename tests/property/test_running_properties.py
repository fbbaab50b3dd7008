"""Laws of the running totals: read the short way or the long one, they say the same, and no window changes another."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from tao_flows.telemetry.base import Domain, Reading
from tao_flows.telemetry.counter import Difference, Wrapped, delta
from tao_flows.telemetry.running import Running
from tao_flows.testing import FakeClock

RANGE_UJ = 1_000_000_000
DOMAINS = (
    Domain("package-0", "package", "test", range_uj=RANGE_UJ),
    Domain("gpu-0", "gpu", "test"),
)


class Scripted:
    """A source that shows what it is told to show."""

    id = "test"
    domains = DOMAINS
    max_interval_s = 1.0

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.raws_uj: tuple[int | None, ...] = (0, 0)

    def read(self) -> tuple[Reading, ...]:
        at_ns = self._clock.monotonic_ns()
        return tuple(Reading(at_ns, raw, "" if raw is not None else "READ_FAILED") for raw in self.raws_uj)

    def close(self) -> None:
        pass


class ScriptedRaw(Scripted):
    """The same, with the short way."""

    def read_raw(self) -> tuple[int, ...] | None:
        known = tuple(raw for raw in self.raws_uj if raw is not None)
        return known if len(known) == len(self.raws_uj) else None


counts = st.one_of(st.none(), st.integers(0, RANGE_UJ), st.integers(0, 1_000))
steps = st.lists(st.tuples(st.floats(0.0, 3.0), counts, counts), min_size=2, max_size=12)


@given(steps=steps)
def test_the_short_way_and_the_long_one_say_the_same_of_every_window(
    steps: list[tuple[float, int | None, int | None]],
) -> None:
    clock = FakeClock()
    sources = Scripted(clock), ScriptedRaw(clock)
    long, short = (Running([source], clock.monotonic_ns) for source in sources)
    standings = []
    for step_s, *raws in steps:
        clock.advance(step_s)
        for source in sources:
            source.raws_uj = tuple(raws)
        standings.append((long.read(), short.read()))
    for (long_before, short_before), (long_after, short_after) in combinations(standings, 2):
        for position in range(len(DOMAINS)):
            assert long_after.since_uj(long_before, position) == short_after.since_uj(short_before, position)
            assert long_after.codes_since(long_before, position) == short_after.codes_since(short_before, position)


@given(steps=steps)
def test_a_window_is_the_sum_of_the_spans_within_it_or_unknown(
    steps: list[tuple[float, int | None, int | None]],
) -> None:
    clock = FakeClock()
    source = ScriptedRaw(clock)
    running = Running([source], clock.monotonic_ns)
    standings, readings = [], []
    for step_s, *raws in steps:
        clock.advance(step_s)
        source.raws_uj = tuple(raws)
        standings.append(running.read())
        readings.append(source.read())
    for position, domain in enumerate(DOMAINS):
        spans = [delta(domain, a[position], b[position]) for a, b in pairwise(readings)]
        known = [span.energy_uj for span in spans if isinstance(span, Difference | Wrapped)]
        whole_uj = sum(known) if len(known) == len(spans) else None
        assert standings[-1].since_uj(standings[0], position) == whole_uj
