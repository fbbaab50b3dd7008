"""A simulated node: whatever runs on it, its account sums to its counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tao_flows.gpu import split_gpu_slot
from tao_flows.node_account import GpuEnergy, Lines, NodeAccount, Role, SlotEnergy

DOMAINS = ("package-0", "package-1", "package-0/dram")
SLOT_NS = 100_000_000


@dataclass(frozen=True)
class Party:
    role: Role
    pooled: bool
    first_slot: int
    last_slot: int
    cpu_ns: tuple[int, ...]
    """By slot of its life, in turns."""

    def spent_ns(self, slot: int) -> int:
        return self.cpu_ns[slot % len(self.cpu_ns)] if self.first_slot <= slot <= self.last_slot else 0


@dataclass(frozen=True)
class Schedule:
    parties: tuple[Party, ...]
    slots: tuple[tuple[tuple[SlotEnergy, ...], int | None], ...]
    """Energies by domain, and CPU time of nobody; None where the host's busy time could not be read."""
    settle_every: int


@dataclass
class Outcome:
    account: NodeAccount
    parties: dict[int, tuple[int, ...]] = field(default_factory=dict)
    after_slot: list[list[Lines]] = field(default_factory=list)


cpu_times = st.lists(st.integers(0, 2 * SLOT_NS), min_size=1, max_size=4).map(tuple)
parties = st.builds(
    lambda role, pooled, first, length, cpu_ns: Party(role, pooled, first, first + length, cpu_ns),
    st.sampled_from(Role),
    st.booleans(),
    st.integers(0, 15),
    st.integers(0, 15),
    cpu_times,
)
energies = st.builds(
    SlotEnergy,
    st.one_of(st.none(), st.integers(0, 60_000_000)),
    st.one_of(st.none(), st.integers(0, 20_000_000)),
)
slots = st.tuples(st.tuples(*[energies] * len(DOMAINS)), st.one_of(st.none(), st.integers(0, 3 * SLOT_NS)))
schedules = st.builds(
    Schedule,
    st.lists(parties, max_size=8).map(tuple),
    st.lists(slots, min_size=1, max_size=16).map(tuple),
    st.integers(1, 12),
)


def run(schedule: Schedule, sleepers: int = 0) -> Outcome:
    """Plays a schedule, with as many parties more that sleep all the time, between the others."""
    outcome = Outcome(NodeAccount(DOMAINS))
    account = outcome.account
    number_of = {party: 2 * place + 1 for place, party in enumerate(dict.fromkeys(schedule.parties))}
    for sleeper in range(sleepers):
        account.open(2 * sleeper, Role.TASK, pooled=sleeper % 2 == 1)
    for slot, (slot_energies, rest_ns) in enumerate(schedule.slots):
        for party, number in number_of.items():
            if party.first_slot == slot:
                account.open(number, party.role, pooled=party.pooled)
        cpu_ns = {number: party.spent_ns(slot) for party, number in number_of.items()}
        cpu_ns |= {2 * sleeper: 0 for sleeper in range(sleepers)}
        busy_ns = None if rest_ns is None else rest_ns + sum(cpu_ns.values())
        account.add(SLOT_NS, slot_energies, cpu_ns, busy_ns)
        if slot % schedule.settle_every == 0:
            account.settle()
        for party, number in number_of.items():
            if party.last_slot == slot and number in account.parties:
                outcome.parties[number] = tuple(account.close(number).energy_uj)
        outcome.after_slot.append([lines.copy() for lines in account.lines])
    account.settle()
    outcome.parties |= {n: tuple(p.energy_uj) for n, p in account.parties.items() if n % 2}
    return outcome


def parts_uj(lines: Lines) -> tuple[int, ...]:
    return lines.tasks_uj, lines.overhead_uj, lines.idle_uj, lines.allocated_idle_uj, lines.unattributed_uj


@settings(max_examples=1_000)
@given(schedules)
def test_the_account_sums_to_the_counters_exactly_and_no_part_is_negative(schedule: Schedule) -> None:
    outcome = run(schedule)
    for domain, lines in enumerate(outcome.account.lines):
        counter_uj = sum(slot_energies[domain].counter_uj or 0 for slot_energies, _ in schedule.slots)
        assert lines.counter_uj == counter_uj == sum(parts_uj(lines))
        assert min(parts_uj(lines)) >= 0
    assert all(min(energy_uj) >= 0 for energy_uj in outcome.parties.values())


@settings(max_examples=1_000)
@given(schedules, st.integers(1, 5))
def test_a_task_that_sleeps_changes_nothing(schedule: Schedule, sleepers: int) -> None:
    without, beside = run(schedule), run(schedule, sleepers)
    assert beside.account.lines == without.account.lines
    assert beside.parties == without.parties
    assert all(not any(beside.account.parties[2 * sleeper].energy_uj) for sleeper in range(sleepers))


@given(schedules)
def test_what_the_parties_used_is_what_the_lines_say(schedule: Schedule) -> None:
    outcome = run(schedule)
    roles = {2 * place + 1: party.role for place, party in enumerate(dict.fromkeys(schedule.parties))}
    for domain, lines in enumerate(outcome.account.lines):
        by_role = {role: sum(e[domain] for n, e in outcome.parties.items() if roles[n] is role) for role in Role}
        assert by_role[Role.TASK] == lines.tasks_uj
        assert by_role[Role.OVERHEAD] == lines.overhead_uj
        assert by_role[Role.NONE] <= lines.unattributed_uj


@given(schedules)
def test_no_line_ever_falls(schedule: Schedule) -> None:
    outcome = run(schedule)
    for earlier, later in zip(outcome.after_slot, outcome.after_slot[1:], strict=False):
        for before, after in zip(earlier, later, strict=True):
            assert all(value >= 0 for value in after.since(before).values())


@given(schedules)
def test_idle_is_the_baseline_and_never_more_than_the_counter(schedule: Schedule) -> None:
    lines = run(schedule).account.lines
    for domain in range(len(DOMAINS)):
        known = [energies[domain] for energies, _ in schedule.slots if energies[domain].counter_uj is not None]
        assert lines[domain].idle_uj == sum(min(e.counter_uj or 0, e.idle_uj or 0) for e in known)


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=6), st.integers(0, 10**8))
def test_equal_cpu_time_is_equal_energy_to_the_microjoule(spent_ns: list[int], counter_uj: int) -> None:
    account = NodeAccount(("package-0",))
    for number in range(2 * len(spent_ns)):
        account.open(number, Role.TASK)
    cpu_ns = {number: spent_ns[number // 2] for number in range(2 * len(spent_ns))}
    account.add(SLOT_NS, [SlotEnergy(counter_uj)], cpu_ns, sum(cpu_ns.values()))
    used_uj = [account.parties[number].energy_uj[0] for number in range(2 * len(spent_ns))]
    assert all(abs(one - other) <= 1 for one, other in zip(used_uj[::2], used_uj[1::2], strict=True))


@given(
    st.integers(0, 10**9),
    st.one_of(st.none(), st.integers(0, 10**9)),
    st.one_of(st.none(), st.frozensets(st.integers(1, 6))),
    st.one_of(st.none(), st.dictionaries(st.integers(1, 6), st.floats(0, 1))),
)
def test_a_gpu_slot_keeps_the_account_exact(
    counter_uj: int, idle_uj: int | None, holders: frozenset[int] | None, utilisation: Mapping[int, float] | None
) -> None:
    account = NodeAccount(("gpu-0",))
    for number in range(3):
        account.open(number, Role(["task", "overhead", "none"][number]))
    slot = split_gpu_slot(counter_uj, idle_uj, holders, utilisation, lambda pid: pid if pid < 4 else None)
    energy = GpuEnergy(counter_uj, slot.parties_uj, slot.idle_uj, slot.allocated_idle_uj, slot.unattributed_uj)
    account.add_gpu(0, SLOT_NS, energy)
    (lines,) = account.lines
    assert lines.counter_uj == counter_uj == sum(parts_uj(lines))
    assert min(parts_uj(lines)) >= 0
