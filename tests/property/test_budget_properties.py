"""Laws of budgets: windows tile time, and a ledger's sums are those of a model that knows no database."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from clocked_ledger import ClockedLedger
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tao_flows.budget import CALENDARS, EnergyBudget, charge_uj
from tao_flows.budget_window import bucket_ns, oldest_bucket_ns, window_bounds
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger.budgets import BudgetStore, Claim, holder_of, settle
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.records import RunKey, Segment, TaskRecord, TaskState

NS = 10**9
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "America/Sao_Paulo",
    "America/St_Johns", "America/Havana", "Asia/Kolkata", "Africa/Casablanca", "Pacific/Kwajalein", "Asia/Gaza",
)  # fmt: skip
ZONE = st.sampled_from(ZONES)
CALENDAR: st.SearchStrategy[Any] = st.sampled_from(CALENDARS)
# From 1970 to 2100; half of them close to a change of the clock.
INSTANT = st.integers(0, 4_102_444_800 * NS)
WINDOW_S = st.floats(0.001, 86_400 * 300)


def calendar_budget(calendar: Any, zone: str) -> EnergyBudget:
    return EnergyBudget("a", 1.0, calendar=calendar, timezone=zone)


@st.composite
def instants(draw: st.DrawFn, zone: str) -> int:
    """Any instant, or one within a day of a change of the zone's offset."""
    at_ns = draw(INSTANT)
    tz = ZoneInfo(zone)
    for month in range(14) if draw(st.booleans()) else ():
        early, late = (at_ns // NS + days * 86_400 for days in (month * 30, month * 30 + 30))
        if offset(tz, early) != offset(tz, late):
            while late - early > 1:
                middle = (early + late) // 2
                early, late = (middle, late) if offset(tz, middle) == offset(tz, early) else (early, middle)
            return late * NS + draw(st.integers(-100_000 * NS, 100_000 * NS))
    return at_ns


def offset(zone: ZoneInfo, at_s: int) -> Any:
    from datetime import datetime

    return datetime.fromtimestamp(at_s, zone).utcoffset()


@given(CALENDAR, ZONE, st.data())
@settings(max_examples=400)
def test_calendar_windows_tile_time_without_gap_or_overlap(calendar: Any, zone: str, data: st.DataObject) -> None:
    budget, at_ns = calendar_budget(calendar, zone), data.draw(instants(zone))
    begin_ns, end_ns = window_bounds(budget, at_ns)
    assert end_ns is not None
    assert begin_ns <= at_ns < end_ns
    inside_ns = data.draw(st.integers(begin_ns, end_ns - 1))
    assert window_bounds(budget, inside_ns) == (begin_ns, end_ns)
    assert window_bounds(budget, begin_ns - 1)[1] == begin_ns
    assert window_bounds(budget, end_ns)[0] == end_ns


@given(WINDOW_S, INSTANT, st.integers(0, 2**62))
def test_what_was_charged_within_a_rolling_window_is_in_its_buckets_and_little_else(
    window_s: float, now_ns: int, age_ns: int
) -> None:
    budget = EnergyBudget("a", 1.0, window_s)
    window_ns, at_ns = round(window_s * NS), now_ns - age_ns
    counted = oldest_bucket_ns(budget, now_ns) <= bucket_ns(budget, at_ns)
    if age_ns <= window_ns:
        assert counted
    if age_ns > window_ns + window_ns // 64 + 1:
        assert not counted


@given(WINDOW_S, st.integers(0, 10**15), st.floats(0.001, 1e8))
def test_a_charge_is_never_more_than_the_run_nor_less_than_its_share(
    window_s: float, energy_uj: int, runtime_s: float
) -> None:
    charged_uj = charge_uj(EnergyBudget("a", 1.0, window_s), energy_uj, runtime_s)
    assert 0 <= charged_uj <= energy_uj
    assert charged_uj >= energy_uj * min(1.0, window_s / runtime_s) * (1 - 1e-9)


CEILINGS_UJ = {"a": 100, "b": 150, "free": None}
BUDGETS = {
    "a": EnergyBudget("a", 100e-6, 64.0, 100e-6),
    "b": EnergyBudget("b", 100e-6, 86_400.0, 150e-6, "day", "Australia/Lord_Howe"),
    "free": EnergyBudget("free", 1e-6, 640.0),
}
NAMES = st.sampled_from(sorted(BUDGETS))
TASKS = st.integers(0, 5)
CLAIMS = st.dictionaries(NAMES, st.integers(0, 80), max_size=3)


@dataclass
class Held:
    amounts: dict[str, int]
    until_ns: int


class Budgets(RuleBasedStateMachine):
    """Reserve, renew, settle, correct, give back, and time passing, against plain dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.ledger = ClockedLedger(SqliteLedger(self.directory / "ledger.db"))
        self.ledger.now_ns = round(time.time()) * NS
        self.store = BudgetStore(self.ledger)
        self.held: dict[str, Held] = {}
        self.charges: dict[tuple[str, str, str], tuple[int | None, int]] = {}

    @initialize()
    def define(self) -> None:
        for budget in BUDGETS.values():
            self.store.put(budget)

    @rule(task=TASKS, claims=CLAIMS, lease_s=st.integers(1, 100), force=st.booleans())
    def reserve(self, task: int, claims: dict[str, int], lease_s: int, *, force: bool) -> None:
        holder = holder_of(key_of(task))
        own = self.held.get(holder)
        adds = {name: uj - (own.amounts.get(name, 0) if own else 0) for name, uj in claims.items()}
        short = [
            name
            for name, uj in sorted(adds.items())
            if uj > 0 and BUDGETS[name].ceiling_j is not None and self.open_uj(name) + uj > (CEILINGS_UJ[name] or 0)
        ]
        answer = self.store.reserve(holder, [Claim(*claim) for claim in claims.items()], lease_s, force=force)
        assert answer.granted == (force or not short)
        assert (answer.refusal.budget if answer.refusal else None) == (short[0] if short else None)
        if answer.granted:
            self.held[holder] = Held(dict(claims), self.ledger.now_ns + lease_s * NS)

    @rule(task=TASKS, lease_s=st.integers(1, 100))
    def renew(self, task: int, lease_s: int) -> None:
        own = self.held.get(holder_of(key_of(task)))
        assert self.store.renew(holder_of(key_of(task)), lease_s) == bool(own and own.amounts)
        if own:
            own.until_ns = self.ledger.now_ns + lease_s * NS

    @rule(task=TASKS)
    def give_back(self, task: int) -> None:
        self.store.give_back(holder_of(key_of(task)))
        self.held.pop(holder_of(key_of(task)), None)

    @rule(
        task=TASKS, segment=st.integers(0, 1), budgets=st.sets(NAMES, min_size=1),
        energy_uj=st.none() | st.integers(0, 90), wall_s=st.sampled_from([1.0, 64.0, 128.0]),
    )  # fmt: skip
    def settle(self, task: int, segment: int, budgets: set[str], energy_uj: int | None, wall_s: float) -> None:
        one = record(task, segment, energy_uj, wall_s, tuple(sorted(budgets)), self.ledger.now_ns)
        with self.ledger.transaction() as tx:
            settle(tx, one)
        holder = holder_of(one.key)
        self.held.pop(holder, None)
        for name in budgets:
            amount_uj = None if energy_uj is None else charge_uj(BUDGETS[name], energy_uj, wall_s)
            _, at_ns = self.charges.get((name, holder, one.segment.id), (0, self.ledger.now_ns))
            self.charges[name, holder, one.segment.id] = amount_uj, at_ns

    @rule(passed_s=st.sampled_from([1, 10, 65, 700, 30_000]))
    def pass_time(self, passed_s: int) -> None:
        self.ledger.pass_s(passed_s)
        self.held = {holder: held for holder, held in self.held.items() if held.until_ns > self.ledger.now_ns}

    def spent_uj(self, name: str) -> int:
        return sum(amount_uj or 0 for amount_uj, _ in self.in_window(name))

    def in_window(self, name: str) -> list[tuple[int | None, int]]:
        since_ns = oldest_bucket_ns(BUDGETS[name], self.ledger.now_ns)
        return [
            charge
            for (budget, _, _), charge in self.charges.items()
            if budget == name and bucket_ns(BUDGETS[name], charge[1]) >= since_ns
        ]

    def reserved_uj(self, name: str) -> int:
        return sum(held.amounts.get(name, 0) for held in self.held.values())

    def open_uj(self, name: str) -> int:
        return self.spent_uj(name) + self.reserved_uj(name)

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        for standing in self.store.standings(sorted(BUDGETS)):
            name = standing.budget.name
            assert (standing.spent_uj, standing.reserved_uj) == (self.spent_uj(name), self.reserved_uj(name))
            assert standing.unknown_runs == sum(amount_uj is None for amount_uj, _ in self.in_window(name))

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.directory)


def key_of(task: int) -> RunKey:
    return RunKey("test", "ns/1", "flow", "run", "task", str(task), 1)


def record(
    task: int, segment: int, energy_uj: int | None, wall_s: float, budgets: tuple[str, ...], now_ns: int
) -> TaskRecord:
    figure = Figure.unknown("task")
    if energy_uj is not None:
        figure = replace(figure, value_uj=energy_uj, quality=Quality.ATTRIBUTED)
    measured = Measurement("task", now_ns, wall_s, CpuTime(0.1, "perf", covers_children=True), figure, (), Account())
    return TaskRecord(
        key_of(task), Segment("here", "boot", 1, 1, segment), TaskState.COMPLETED, now_ns,
        ended_wall_ns=now_ns, measurement=measured, budgets=budgets,
    )  # fmt: skip


Budgets.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBudgets = Budgets.TestCase
