"""Laws of attribution: joules are handed out, never made and never lost."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tao_flows.attribution import (
    CpuShares,
    Split,
    account,
    apportion,
    run_account,
    split_domain,
    split_estimate,
)
from tao_flows.calibration import Baseline, DomainBaseline, Host
from tao_flows.figures import Account, CpuTime, Figure, Quality
from tao_flows.measurement import MemoryUse, Span, measurement
from tao_flows.telemetry.base import Domain
from tao_flows.telemetry.cpuinfo import CpuIdentity
from tao_flows.telemetry.estimate import Estimator

energies = st.integers(0, 10**15) | st.integers(0, 2**70)
weights = st.lists(st.floats(0, 1e12) | st.integers(0, 10**6).map(float), min_size=1, max_size=8).filter(any)
seconds = st.floats(0, 1e7)
# Sixteenths of a second add up exactly, so that what is said of order is not blurred by a float's rounding.
exact_seconds = st.integers(0, 10**7).map(lambda sixteenths: sixteenths / 16)
walls = st.floats(1e-6, 1e6)
at_rests = st.builds(DomainBaseline, st.floats(0, 1e4), st.floats(0, 1e4), st.just(60))


def shares(task_s: float | None, overhead_s: float, busy_s: float | None, *, lower_bound: bool = False) -> CpuShares:
    return CpuShares(CpuTime(task_s, "test", covers_children=True, lower_bound=lower_bound), overhead_s, busy_s)


def lines(split: Split | Account) -> list[int | None]:
    return [split.tasks_uj, split.overhead_uj, split.idle_uj, split.allocated_idle_uj, split.unattributed_uj]


def known(values: list[int | None]) -> int:
    return sum(value for value in values if value is not None)


@given(energies, weights)
def test_parts_sum_to_the_whole_and_none_is_negative(total: int, parts: list[float]) -> None:
    given_out = apportion(total, parts)
    assert sum(given_out) == total
    assert min(given_out) >= 0


@given(energies, weights)
def test_each_part_is_within_one_of_its_exact_share_and_a_weight_of_nothing_gets_nothing(
    total: int, parts: list[float]
) -> None:
    whole = sum(map(Fraction, parts))
    for weight, part in zip(parts, apportion(total, parts), strict=True):
        assert abs(part - total * Fraction(weight) / whole) < 1
        if weight == 0:
            assert part == 0


@given(energies, weights, st.randoms(use_true_random=False))
def test_parts_follow_their_weights_wherever_these_stand(total: int, parts: list[float], random: object) -> None:
    order = list(range(len(parts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    straight, shuffled = apportion(total, parts), apportion(total, [parts[i] for i in order])
    for new, old in enumerate(order):
        # Equal remainders are told apart by position alone: that is worth one microjoule.
        assert abs(shuffled[new] - straight[old]) <= 1
    assert apportion(total, parts) == straight


@pytest.mark.parametrize("bad", [[0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0]])
def test_weights_that_say_nothing_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match=r"weights|NaN"):
        apportion(10, bad)


@given(energies, st.none() | energies, seconds, seconds, seconds, walls, st.booleans())
def test_a_counter_is_its_tasks_overhead_idle_and_rest(
    counter_uj: int, idle_uj: int | None, task_s: float, overhead_s: float, busy_s: float, wall_s: float, low: bool
) -> None:
    use = shares(task_s, overhead_s, busy_s, lower_bound=low)
    split = split_domain("package-0", "rapl", counter_uj, idle_uj, use, wall_s)
    assert known(lines(split)) == counter_uj
    assert all(line is None or line >= 0 for line in lines(split))
    assert (split.idle_uj is None) == (idle_uj is None)
    figure = split.figure
    assert figure.quality is Quality.ATTRIBUTED
    assert 0 <= figure.low_uj <= figure.value_uj == split.tasks_uj <= figure.high_uj
    assert figure.high_uj <= counter_uj * 2 + 1


@given(energies, seconds, st.sampled_from([(None, 1.0), (1.0, None), (None, None)]), walls)
def test_without_a_share_the_task_is_unknown_and_the_counter_is_kept(
    counter_uj: int, overhead_s: float, unknown: tuple[float | None, float | None], wall_s: float
) -> None:
    task_s, busy_s = unknown
    split = split_domain("package-0", "rapl", counter_uj, None, shares(task_s, overhead_s, busy_s), wall_s)
    assert split.tasks_uj is None
    assert split.figure == Figure.unknown("package-0")
    assert split.whole_uj == split.unattributed_uj == counter_uj


@given(energies, seconds, seconds, walls)
def test_a_task_that_slept_costs_nothing(counter_uj: int, overhead_s: float, busy_s: float, wall_s: float) -> None:
    split = split_domain("package-0", "rapl", counter_uj, None, shares(0.0, overhead_s, busy_s), wall_s)
    figure = split.figure
    assert (figure.low_uj, figure.value_uj, figure.high_uj) == (0, 0, 0)
    assert known(lines(split)) == counter_uj


@given(energies, exact_seconds, exact_seconds, exact_seconds, exact_seconds, walls)
def test_more_cpu_time_never_costs_less(
    counter_uj: int, task_s: float, more_s: float, overhead_s: float, busy_s: float, wall_s: float
) -> None:
    less = split_domain("p", "rapl", counter_uj, None, shares(task_s, overhead_s, busy_s), wall_s)
    more = split_domain("p", "rapl", counter_uj, None, shares(task_s + more_s, overhead_s, busy_s), wall_s)
    assert less.tasks_uj <= more.tasks_uj


@given(energies, seconds.filter(bool), walls)
def test_a_task_that_has_the_host_alone_gets_the_counter(counter_uj: int, task_s: float, wall_s: float) -> None:
    split = split_domain("p", "rapl", counter_uj, None, shares(task_s, 0.0, task_s), wall_s)
    assert split.tasks_uj == counter_uj


MODEL = Estimator(CpuIdentity("Ice Lake", "high", "test", 8), 0.77, 3.76)


@given(st.tuples(energies, energies, energies), st.none() | energies, st.booleans())
def test_an_estimate_is_its_lines_and_its_interval_holds_it(
    parts: tuple[int, int, int], idle_uj: int | None, low: bool
) -> None:
    split = split_estimate("cpu", MODEL, parts, idle_uj, lower_bound=low)
    assert split.whole_uj == sum(parts) + (idle_uj or 0)
    assert split.figure.low_uj <= split.figure.value_uj <= split.figure.high_uj
    assert split.figure.quality is Quality.ESTIMATED


some_lines = st.none() | st.integers(0, 10**12)


@st.composite
def host_accounts(draw: st.DrawFn) -> Account:
    tasks, overhead, idle, allocated_idle = (draw(some_lines) for _ in range(4))
    rest = draw(st.integers(0, 10**12))
    whole = known([tasks, overhead, idle, allocated_idle, rest])
    counted = draw(st.integers(0, whole))
    counter, estimate = draw(st.sampled_from([(whole, None), (None, whole), (counted, whole - counted)]))
    return Account(counter, estimate, tasks, overhead, idle, rest, Quality.ATTRIBUTED, (), allocated_idle)


@given(host_accounts(), st.integers(0, 10**13))
def test_a_runs_account_keeps_the_hosts_joules_and_invents_none(host: Account, tasks_uj: int) -> None:
    whole_uj = (host.counter_uj or 0) + (host.estimate_uj or 0)
    run = run_account(host, tasks_uj)
    assert known(lines(run)) == whole_uj
    assert all(line is None or line >= 0 for line in lines(run))
    for line in ("counter_uj", "estimate_uj", "idle_uj", "allocated_idle_uj"):
        assert getattr(run, line) == getattr(host, line)
    assert known([run.tasks_uj]) <= known([host.tasks_uj]) + tasks_uj
    assert known([run.overhead_uj]) <= known([host.overhead_uj])
    if host.tasks_uj is None and tasks_uj == 0:
        assert run.tasks_uj is None


@given(st.integers(0, 10**12))
def test_a_run_on_a_host_that_was_not_read_stays_unknown(tasks_uj: int) -> None:
    host = Account(unknown_parts=("package-0",))
    assert run_account(host, tasks_uj) == host


@st.composite
def figures(draw: st.DrawFn) -> Figure:
    if draw(st.booleans()):
        return Figure.unknown(draw(st.sampled_from(["a", "b", "c"])))
    value = draw(st.integers(0, 10**12))
    low, high = draw(st.integers(0, value)), draw(st.integers(value, 2 * 10**12))
    quality = draw(st.sampled_from([Quality.MEASURED, Quality.ATTRIBUTED, Quality.ESTIMATED]))
    return Figure(value, low, high, quality, (draw(st.sampled_from(["rapl", "nvml"])),))


@given(st.lists(figures(), max_size=6))
def test_a_total_has_the_known_joules_the_worst_quality_and_the_names_of_the_rest(parts: list[Figure]) -> None:
    total = Figure.total(parts)
    read = [part for part in parts if part.value_uj is not None]
    assert set(total.unknown_parts) == {name for part in parts for name in part.unknown_parts}
    if not read:
        assert (total.value_uj, total.quality, total.coverage) == (None, Quality.UNKNOWN, 0.0)
        return
    assert total.value_uj == sum(part.value_uj for part in read)
    assert total.low_uj <= total.value_uj <= total.high_uj
    assert total.quality is max((part.quality for part in read), key=list(Quality).index)
    assert total.coverage == pytest.approx(len(read) / len(parts))
    assert set(total.sources) == {source for part in read for source in part.sources}


@given(figures())
def test_a_total_of_one_figure_is_that_figure(figure: Figure) -> None:
    assert Figure.total([figure]) == figure


@given(st.lists(host_accounts(), max_size=5))
def test_a_sum_of_accounts_still_adds_up(accounts: list[Account]) -> None:
    total = Account.total(accounts)
    assert known(lines(total)) == known([total.counter_uj, total.estimate_uj])
    for line in ("counter_uj", "tasks_uj", "overhead_uj", "idle_uj", "allocated_idle_uj", "unattributed_uj"):
        values = [getattr(each, line) for each in accounts]
        assert getattr(total, line) == (known(values) if any(value is not None for value in values) else None)


@given(
    st.lists(st.tuples(st.sampled_from(["package", "dram", "core"]), st.none() | energies), max_size=4),
    st.none() | seconds,
    seconds,
    st.none() | seconds,
    st.booleans(),
    st.tuples(st.none() | st.integers(0, 2**40), st.none() | st.integers(0, 2**40)),
    st.none() | st.dictionaries(st.sampled_from(["package-0", "dram-1", "package-2"]), at_rests),
    walls,
)
def test_the_account_of_a_window_adds_up_to_what_was_counted_and_estimated(
    domains: list[tuple[str, int | None]],
    task_s: float | None,
    overhead_s: float,
    busy_s: float | None,
    with_model: bool,
    memory: tuple[int | None, int | None],
    at_rest: dict[str, DomainBaseline] | None,
    wall_s: float,
) -> None:
    spans = [
        Span(Domain(f"{kind}-{i}", kind, "rapl", counted=kind != "core"), energy_uj)
        for i, (kind, energy_uj) in enumerate(domains)
    ]
    measured = measurement(
        label="x",
        started_wall_ns=0,
        wall_s=wall_s,
        spans=spans,
        shares=shares(task_s, overhead_s, busy_s),
        estimator=MODEL if with_model else None,
        memory=MemoryUse(*memory),
        baseline=None if at_rest is None else Baseline(Host("", ""), 0, 60.0, 0.0, 60, 60, at_rest),
    )
    read = [span.energy_uj for span in spans if span.domain.counted and span.energy_uj is not None]
    found = measured.account
    assert found.counter_uj == (sum(read) if read else None)
    assert known(lines(found)) == known([found.counter_uj, found.estimate_uj])
    assert all(line is None or line >= 0 for line in lines(found))
    idles = [domain.idle_uj for domain in measured.domains if domain.source == "rapl"]
    assert (measured.baseline is None) == (idles.count(None) == len(idles))
    assert (found.estimate_uj is not None) <= with_model
    unread = {span.domain.id for span in spans if span.domain.counted and span.energy_uj is None}
    assert unread <= set(found.unknown_parts)
    assert unread <= set(measured.energy.unknown_parts)
    assert found.tasks_uj == measured.energy.value_uj


@given(st.lists(st.tuples(energies, seconds), min_size=1, max_size=4), seconds, walls)
def test_no_order_of_domains_changes_an_account(domains: list[tuple[int, float]], busy_s: float, wall_s: float) -> None:
    assume(busy_s > 0)
    splits = [split_domain("d", "rapl", uj, None, shares(task_s, 0.0, busy_s), wall_s) for uj, task_s in domains]
    assert account(splits, [], ()) == account(splits[::-1], [], ())
