"""Laws of counters: joules are neither invented nor lost, however a span is cut."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tao_flows.telemetry.base import Domain, Reading
from tao_flows.telemetry.counter import Difference, First, Gap, Reset, Wrapped, delta
from tao_flows.telemetry.nvml import PowerIntegral
from tao_flows.telemetry.rapl import mirrored
from tao_flows.units import NS_PER_S

RANGE_UJ = 65_532_610_987
STEP_S = 10
MOST_UJ = 1_000 * 1_000_000 * STEP_S
PACKAGE = Domain("package-0", "package", "rapl", range_uj=RANGE_UJ)
ENDLESS = Domain("gpu-0", "gpu", "nvml")

drawn = st.lists(st.integers(0, MOST_UJ), min_size=1, max_size=40)
readings = st.builds(
    Reading, st.integers(0, 10**13), st.none() | st.integers(0, RANGE_UJ), st.sampled_from(["", "READ_RUBBISH"])
)


@given(start=st.integers(0, RANGE_UJ - 1), steps=drawn)
def test_what_a_wrapping_counter_shows_in_steps_adds_up_to_what_was_drawn(start: int, steps: list[int]) -> None:
    total, shown = start, [Reading(0, start)]
    for number, step_uj in enumerate(steps, start=1):
        total += step_uj
        shown.append(Reading(number * STEP_S * NS_PER_S, total % RANGE_UJ))
    deltas = [delta(PACKAGE, before, after) for before, after in pairwise(shown)]
    assert all(isinstance(d, (Difference, Wrapped)) for d in deltas)
    assert sum(d.energy_uj for d in deltas if isinstance(d, (Difference, Wrapped))) == sum(steps)


@given(before=st.none() | readings, after=readings)
def test_energy_is_never_negative_nor_more_than_the_range(before: Reading | None, after: Reading) -> None:
    match delta(PACKAGE, before, after):
        case Difference(energy_uj) | Wrapped(energy_uj):
            assert 0 <= energy_uj <= RANGE_UJ
        case First():
            assert before is None
        case Gap(code):
            assert code
        case other:
            assert other == Reset()


@given(before=readings, after=readings)
def test_a_reading_that_failed_never_becomes_energy(before: Reading, after: Reading) -> None:
    found = delta(PACKAGE, before, after)
    assert isinstance(found, Gap) or (before.raw_uj is not None and after.raw_uj is not None)


@given(before=st.integers(0, 2**62), moved=st.integers(0, 2**62), after_s=st.integers(0, 10**6))
def test_a_counter_without_a_range_gives_exactly_what_it_moved(before: int, moved: int, after_s: int) -> None:
    found = delta(ENDLESS, Reading(0, before), Reading(after_s * NS_PER_S, before + moved))
    assert found == Difference(moved)


class Board:
    """A GPU whose power is set by the test; None is a read that fails."""

    power_mw: int | None = 0

    def read_power_mw(self) -> int:
        if self.power_mw is None:
            raise OSError("no power")
        return self.power_mw


def integrated(samples: list[tuple[int, int | None]]) -> list[Reading]:
    board, now_ns, shown = Board(), 0, []
    integral = PowerIntegral(board.read_power_mw)
    for step_ns, power_mw in samples:
        now_ns, board.power_mw = now_ns + step_ns, power_mw
        try:
            shown.append(Reading(now_ns, integral.energy_uj(now_ns)))
        except OSError:
            shown.append(Reading(now_ns, None, "READ_FAILED"))
    return shown


samples = st.lists(
    st.tuples(st.integers(1, 2 * NS_PER_S), st.none() | st.integers(0, 1_000_000)), min_size=2, max_size=30
)


@given(samples=samples)
def test_integrated_power_is_the_trapezoid_where_it_is_known_and_unknown_elsewhere(
    samples: list[tuple[int, int | None]],
) -> None:
    shown = integrated(samples)
    for (before, (_, power_before)), (after, (step_ns, power_after)) in pairwise(zip(shown, samples, strict=True)):
        found = delta(ENDLESS, before, after)
        if power_before is None or power_after is None:
            assert isinstance(found, Gap)
        elif step_ns > NS_PER_S:
            assert found == Reset()
        else:
            assert isinstance(found, Difference)
            trapezoid_uj = (power_before + power_after) / 2 * 1_000 * step_ns / NS_PER_S
            assert abs(found.energy_uj - trapezoid_uj) <= 1.0


@given(samples=samples)
def test_two_integrals_with_a_break_between_them_are_never_an_energy(samples: list[tuple[int, int | None]]) -> None:
    shown = integrated(samples)
    is_broken = any(r.raw_uj is None for r in shown) or any(step_ns > NS_PER_S for step_ns, _ in samples[1:])
    assert is_broken != isinstance(delta(ENDLESS, shown[0], shown[-1]), Difference)


@given(raws=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6))
def test_mirrors_point_at_domains_that_are_counted_and_show_the_same(raws: list[tuple[int, int]]) -> None:
    domains = [Domain(f"package-{n}", "package", "rapl", range_uj=RANGE_UJ) for n in range(len(raws))]
    found = mirrored(domains, [first for first, _ in raws], [last for _, last in raws])
    shown = {domain.id: raw for domain, raw in zip(domains, raws, strict=True)}
    assert not set(found) & set(found.values())
    assert all(shown[mirror] == shown[original] for mirror, original in found.items())
    counted = [shown[domain.id] for domain in domains if domain.id not in found]
    moving = [pair for pair in counted if pair[0] != pair[1]]
    assert len(moving) == len(set(moving))
