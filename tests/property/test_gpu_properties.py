"""Laws of splitting a GPU's joules: none is made, none lost, and nobody pays for another's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tao_flows.attribution import CpuShares
from tao_flows.figures import Account, CpuTime, Quality
from tao_flows.gpu import (
    GPU_HELD_ALONE,
    GPU_HELD_IDLE,
    GPU_NOT_HELD,
    GpuSlot,
    GpuUse,
    split_gpu,
    split_gpu_slot,
)
from tao_flows.measurement import MemoryUse, Span, measurement
from tao_flows.telemetry.base import Domain

energies = st.integers(0, 10**12) | st.integers(0, 2**70)
baselines = st.none() | energies
pids = st.integers(1, 6)
holders = st.none() | st.frozensets(pids)
utilisations = st.none() | st.dictionaries(pids, st.floats(0, 1e6) | st.just(0.0))
parties = st.dictionaries(pids, st.none() | st.integers(0, 2))
walls = st.floats(1e-3, 1e6)
uses = st.builds(GpuUse, holders, st.frozensets(pids), st.booleans(), utilisations, st.sampled_from(["", "WHY"]))


def whole(slot: GpuSlot) -> int:
    return sum(slot.parties_uj.values()) + (slot.idle_uj or 0) + slot.allocated_idle_uj + slot.unattributed_uj


@given(energies, baselines, holders, utilisations, parties)
def test_a_slots_lines_sum_to_its_counter_and_none_is_negative(
    counter_uj: int,
    idle_uj: int | None,
    held: frozenset[int] | None,
    used: dict[int, float] | None,
    party: dict[int, int | None],
) -> None:
    slot = split_gpu_slot(counter_uj, idle_uj, held, used, party.get)
    assert whole(slot) == counter_uj
    assert min([slot.idle_uj or 0, slot.allocated_idle_uj, slot.unattributed_uj, *slot.parties_uj.values()]) >= 0
    assert (slot.idle_uj is None) == (idle_uj is None)
    assert not slot.parties_uj.keys() & (slot.unknown_parties or frozenset())


@given(energies, baselines, st.frozensets(pids), st.dictionaries(pids, st.floats(0, 1e6)), parties)
def test_who_did_not_use_it_gets_nothing_while_another_did(
    counter_uj: int, idle_uj: int | None, held: frozenset[int], used: dict[int, float], party: dict[int, int | None]
) -> None:
    active = {party.get(pid) for pid, share in used.items() if share > 0}
    slot = split_gpu_slot(counter_uj, idle_uj, held, used, party.get)
    for number in {0, 1, 2} - active:
        if slot.code != GPU_HELD_ALONE:
            assert slot.party_uj(number) == 0
    if active and None not in active and {party.get(pid) for pid in held} <= active:
        assert slot.unattributed_uj == 0


@given(energies, baselines, st.frozensets(pids, min_size=1), parties)
def test_what_is_held_and_used_by_nobody_is_allocated_idle_and_nobodys(
    counter_uj: int, idle_uj: int | None, held: frozenset[int], party: dict[int, int | None]
) -> None:
    slot = split_gpu_slot(counter_uj, idle_uj, held, dict.fromkeys(held, 0.0), party.get)
    assert slot.allocated_idle_uj == counter_uj
    assert not any(slot.parties_uj.values())


@given(energies, energies, utilisations)
def test_what_nobody_holds_is_idle_and_unattributed(
    counter_uj: int, idle_uj: int, used: dict[int, float] | None
) -> None:
    used = None if used is None else dict.fromkeys(used, 0.0)
    slot = split_gpu_slot(counter_uj, idle_uj, frozenset(), used, lambda pid: 0)
    assert slot.code == GPU_NOT_HELD
    assert (slot.idle_uj, slot.allocated_idle_uj) == (min(counter_uj, idle_uj), 0)
    assert slot.parties_uj == {}


@given(
    energies,
    energies,
    st.frozensets(pids, min_size=1),
    utilisations.filter(lambda used: used is None or any(used.values())),
)
def test_a_held_gpus_baseline_is_allocated_idle(
    counter_uj: int, idle_uj: int, held: frozenset[int], used: dict[int, float] | None
) -> None:
    slot = split_gpu_slot(counter_uj, idle_uj, held, used, lambda pid: pid % 2)
    assert (slot.idle_uj, slot.allocated_idle_uj) == (0, min(counter_uj, idle_uj))


@given(energies, st.frozensets(pids, min_size=2), parties)
def test_without_utilisation_the_parts_of_several_are_unknown_and_a_strangers_is_nothing(
    counter_uj: int, held: frozenset[int], party: dict[int, int | None]
) -> None:
    slot = split_gpu_slot(counter_uj, None, held, None, party.get)
    owners = {party.get(pid) for pid in held}
    if len(owners) > 1:
        assert all(slot.party_uj(number) is None for number in owners - {None})
        assert slot.unattributed_uj == counter_uj
    for number in {0, 1, 2} - owners:
        assert slot.party_uj(number) == 0


@given(energies, baselines, st.dictionaries(pids, st.integers(0, 1000).map(float)), pids)
def test_more_utilisation_never_costs_less(
    counter_uj: int, idle_uj: int | None, used: dict[int, float], pid: int
) -> None:
    held = frozenset({*used, pid})
    more = {**used, pid: used.get(pid, 0.0) + 1}
    before = split_gpu_slot(counter_uj, idle_uj, held, used, lambda each: each)
    after = split_gpu_slot(counter_uj, idle_uj, held, more, lambda each: each)
    # Rounding by largest remainder can take back a microjoule.
    assert (after.party_uj(pid) or 0) >= (before.party_uj(pid) or 0) - 1


@given(energies, energies, st.integers(1, 2**20))
def test_two_parties_with_equal_utilisation_differ_by_a_microjoule_at_most(
    counter_uj: int, idle_uj: int, share: int
) -> None:
    slot = split_gpu_slot(counter_uj, idle_uj, frozenset({1, 2}), {1: share, 2: share}, lambda pid: pid)
    assert abs(slot.parties_uj[1] - slot.parties_uj[2]) <= 1


@given(energies, baselines, uses, walls, energies)
def test_a_windows_lines_sum_to_the_counter_and_its_interval_holds_the_figure(
    counter_uj: int, idle_uj: int | None, use: GpuUse, wall_s: float, spread_uj: int
) -> None:
    split, codes = split_gpu("gpu-0", "nvml", counter_uj, idle_uj, use, wall_s, idle_spread_uj=spread_uj)
    figure = split.figure
    assert split.whole_uj == counter_uj
    assert split.allocated_idle_uj is not None
    assert figure.value_uj == split.tasks_uj
    assert codes
    if figure.value_uj is None:
        assert figure.quality is Quality.UNKNOWN
        return
    assert 0 <= figure.low_uj <= figure.value_uj <= figure.high_uj <= counter_uj
    if figure.quality is Quality.MEASURED:
        assert use.holders
        assert use.holders <= use.ours
        assert use.alone_in_process


@given(energies, uses, st.floats(1e-3, 1.999))
def test_a_window_too_short_to_be_sampled_is_never_said_to_be_unused(
    counter_uj: int, use: GpuUse, wall_s: float
) -> None:
    split, codes = split_gpu("gpu-0", "nvml", counter_uj, None, use, wall_s)
    assert GPU_HELD_IDLE not in codes
    assert split.allocated_idle_uj == 0


@given(st.lists(st.tuples(energies, uses), min_size=1, max_size=8), energies, walls)
def test_a_hosts_gpus_and_packages_add_up_line_by_line(
    gpus: list[tuple[int, GpuUse]], package_uj: int, wall_s: float
) -> None:
    spans = [Span(Domain(f"gpu-{i}", "gpu", "nvml"), uj, gpu=use) for i, (uj, use) in enumerate(gpus)]
    spans.append(Span(Domain("package-0", "package", "rapl"), package_uj))
    measured = measurement(
        label="x",
        started_wall_ns=0,
        wall_s=wall_s,
        spans=spans,
        shares=CpuShares(CpuTime(1.0, "test", covers_children=True), 0.5, 2.0),
        estimator=None,
        memory=MemoryUse(None, None),
    )
    found = measured.account
    known = (found.tasks_uj, found.overhead_uj, found.idle_uj, found.allocated_idle_uj, found.unattributed_uj)
    assert found.counter_uj == package_uj + sum(uj for uj, _ in gpus) == sum(line or 0 for line in known)
    assert found.allocated_idle_uj == sum(domain.allocated_idle_uj or 0 for domain in measured.domains)
    assert measured.energy.value_uj == found.tasks_uj
    # A second host without a GPU adds its lines, and takes none away.
    other = Account(7, None, 4, 1, None, 2, Quality.ATTRIBUTED)
    both = Account.total([found, other])
    assert both.allocated_idle_uj == found.allocated_idle_uj
    assert both.counter_uj == found.counter_uj + 7


@pytest.mark.parametrize(
    ("used", "expected"), [({41: 3.0, 7: 1.0}, (75, 25)), ({7: 1.0}, (0, 100)), ({41: 2.0}, (100, 0))]
)
def test_the_share_is_of_all_processes_ours_or_not(used: dict[int, float], expected: tuple[int, int]) -> None:
    slot = split_gpu_slot(110, 10, frozenset({41, 7}), used, {41: 0}.get)
    assert (slot.party_uj(0), slot.unattributed_uj) == expected
    assert slot.allocated_idle_uj == 10
