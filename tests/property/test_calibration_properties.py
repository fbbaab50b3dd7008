"""Laws of the idle baseline: a burst does not move it, keeping it loses nothing, its spread only widens a figure."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tao_flows.attribution import CpuShares, split_domain
from tao_flows.calibration import Baseline, DomainBaseline, Host, Sample, calibrate
from tao_flows.figures import CpuTime

HOST = Host("0123abcd", "Test CPU 9000, 4 CPUs")
powers_w = st.floats(0, 1_000)
numbers = st.floats(0, 1e6)
counts = st.integers(0, 1 << 40)
energies = st.integers(0, 10**15)
seconds = st.floats(0, 1e6)
walls = st.floats(1e-3, 1e6)


def samples(powers_w: list[float], busy_s: float = 0.0) -> list[Sample]:
    return [Sample(1.0, busy_s, {"package-0": round(power_w * 1e6)}) for power_w in powers_w]


@given(st.lists(st.tuples(powers_w, powers_w), min_size=1, max_size=20), powers_w, st.data())
def test_fewer_bursts_than_quiet_samples_leave_the_baseline_among_the_quiet(
    pairs: list[tuple[float, float]], one_more_w: float, data: st.DataObject
) -> None:
    quiet, bursts = [one_more_w, *(power_w for power_w, _ in pairs)], [power_w for _, power_w in pairs]
    order = data.draw(st.permutations(samples([*quiet, *bursts])))
    found = calibrate(order, host=HOST, cpus=4, wall_ns=0).domains["package-0"]
    assert min(quiet) - 1e-6 <= found.power_w <= max(quiet) + 1e-6
    assert found.spread_w >= 0


@given(st.lists(powers_w, min_size=1, max_size=20), st.lists(powers_w, max_size=20), st.floats(0.21, 4.0))
def test_samples_of_a_busy_host_change_nothing_but_their_number(
    quiet: list[float], busy: list[float], busy_s: float
) -> None:
    busy = busy[: len(quiet)]
    alone = calibrate(samples(quiet), host=HOST, cpus=4, wall_ns=0)
    among = calibrate([*samples(busy, busy_s), *samples(quiet)], host=HOST, cpus=4, wall_ns=0)
    assert among.domains == alone.domains
    assert (among.idle_samples, among.samples) == (len(quiet), len(quiet) + len(busy))


at_rests = st.builds(DomainBaseline, numbers, numbers, counts)
baselines = st.builds(
    Baseline,
    st.builds(Host, st.text(), st.text()),
    counts,
    numbers,
    numbers,
    counts,
    counts,
    st.dictionaries(st.text(), at_rests),
)


@given(baselines)
def test_a_baseline_that_is_kept_and_read_again_is_the_same(baseline: Baseline) -> None:
    assert Baseline.parse(json.loads(json.dumps(baseline.to_json(), allow_nan=False))) == baseline


@given(at_rests, st.integers(0, 10**15), st.integers(0, 10**15))
def test_longer_never_draws_less_at_rest_and_no_slot_is_more_than_half_a_microjoule_off(
    at_rest: DomainBaseline, one_ns: int, more_ns: int
) -> None:
    baseline = Baseline(HOST, 0, 60.0, 0.0, 60, 60, {"p": at_rest})
    one, more, both = (baseline.idle_uj("p", ns) for ns in (one_ns, more_ns, one_ns + more_ns))
    assert one is not None
    assert more is not None
    assert both is not None
    assert 0 <= one <= both
    assert abs(one + more - both) <= 2 + both * 1e-12


@given(energies, energies, energies, energies, seconds, seconds, walls, st.booleans())
def test_a_spread_widens_the_interval_and_moves_no_line(
    counter_uj: int, idle_uj: int, spread_uj: int, more_uj: int, task_s: float, busy_s: float, wall_s: float, low: bool
) -> None:
    shares = CpuShares(CpuTime(task_s, "test", covers_children=True, lower_bound=low), 0.0, busy_s)
    known, vague, vaguer = (
        split_domain("p", "rapl", counter_uj, idle_uj, shares, wall_s, idle_spread_uj=off_uj)
        for off_uj in (0, spread_uj, spread_uj + more_uj)
    )
    for narrow, wide in ((known, vague), (vague, vaguer)):
        assert (narrow.tasks_uj, narrow.idle_uj, narrow.unattributed_uj) == (
            wide.tasks_uj, wide.idle_uj, wide.unattributed_uj
        )  # fmt: skip
        assert wide.figure.low_uj <= narrow.figure.low_uj
        assert narrow.figure.high_uj <= wide.figure.high_uj
    assert vaguer.figure.high_uj <= counter_uj * 3 + 1


@given(energies, seconds, seconds, walls)
def test_without_calibration_no_figure_is_other_than_before(
    counter_uj: int, task_s: float, busy_s: float, wall_s: float
) -> None:
    shares = CpuShares(CpuTime(task_s, "test", covers_children=True), 0.0, busy_s)
    without = split_domain("p", "rapl", counter_uj, None, shares, wall_s)
    nothing = split_domain("p", "rapl", counter_uj, 0, shares, wall_s)
    assert without.idle_uj is None
    assert without.figure == nothing.figure
