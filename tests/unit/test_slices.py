"""Slices of budgets, kept by a real thread on a real ledger."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clocked_ledger import ClockedLedger

from tao_flows.budget import EnergyBudget
from tao_flows.clock import SystemClock
from tao_flows.errors import LedgerError
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger.budgets import BudgetStore, Claim, holder_of, settle
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.records import RunKey, Segment, TaskRecord, TaskState
from tao_flows.slices import SliceKeeper

J = 1_000_000
A = EnergyBudget("a", 100.0, ceiling_j=100.0)
FREE = EnergyBudget("free", 1.0, scope="global")


class FlakyLedger:
    """A ledger that can be told to fail."""

    def __init__(self, inner: SqliteLedger) -> None:
        self.inner = inner
        self.fails = False
        self.calls = 0

    @contextmanager
    def transaction(self, *, write: bool = True) -> Iterator[Any]:
        self.calls += 1
        if self.fails:
            raise LedgerError("LEDGER_UNREACHABLE", "the network is down", "mend it")
        with self.inner.transaction(write=write) as tx:
            yield tx


class SetClock(SystemClock):
    """The machine's clocks, the monotonic one set forward by hand."""

    ahead_ns = 0

    def monotonic_ns(self) -> int:  # type: ignore[override]
        return time.monotonic_ns() + self.ahead_ns


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[FlakyLedger]:
    inner = SqliteLedger(tmp_path / "ledger.db", busy_timeout_s=5)
    yield FlakyLedger(inner)
    inner.close()


@pytest.fixture
def store(ledger: FlakyLedger) -> BudgetStore:
    made = BudgetStore(ledger.inner)
    for budget in (A, FREE):
        made.put(budget)
    return made


@pytest.fixture
def make_keeper(ledger: FlakyLedger, store: BudgetStore) -> Iterator[Callable[..., SliceKeeper]]:
    made: list[SliceKeeper] = []

    def make(**options: Any) -> SliceKeeper:
        made.append(SliceKeeper(ledger, **{"lease_s": 30.0, **options}))  # type: ignore[arg-type]
        made[-1].start()
        return made[-1]

    yield make
    for keeper in made:
        keeper.stop()


def eventually(holds: Callable[[], object]) -> None:
    give_up_s = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < give_up_s
        time.sleep(0.005)


def reserved_j(store: BudgetStore, name: str = "a", without: str = "") -> float:
    return store.standings([name], without=without)[0].reserved_uj / J


def key(number: int) -> RunKey:
    return RunKey("airflow", "default", "dag", "run", "task", str(number), 1)


def settled(ledger: FlakyLedger, number: int, energy_uj: int) -> None:
    now_ns = time.time_ns()
    figure = Figure(energy_uj, energy_uj, energy_uj, Quality.ATTRIBUTED)
    measured = Measurement("task", now_ns, 1.0, CpuTime(1.0, "perf", covers_children=True), figure, (), Account())
    record = TaskRecord(
        key(number), Segment("node", "boot", 1, 1), TaskState.COMPLETED, now_ns, ended_wall_ns=now_ns,
        measurement=measured, budgets=("a",),
    )  # fmt: skip
    with ledger.inner.transaction() as tx:
        settle(tx, record)


def test_a_tenth_of_what_is_left_is_leased_and_spent_without_the_ledger(
    ledger: FlakyLedger, store: BudgetStore, make_keeper: Callable[..., SliceKeeper]
) -> None:
    keeper = make_keeper()
    eventually(lambda: keeper.budgets)
    assert reserved_j(store) == 10.0
    assert keeper.budgets == (A, FREE)
    ledger.fails, calls = True, ledger.calls
    assert keeper.spend("one", [Claim("a", 4 * J)])
    assert keeper.spend("two", [Claim("a", 5 * J)])
    assert not keeper.spend("three", [Claim("a", 2 * J)])
    assert keeper.spend("two", [Claim("a", 6 * J)])
    assert ledger.calls - calls <= 1  # the thread's own, for it runs low


def test_before_the_first_round_and_after_the_last_nothing_can_be_spent(
    ledger: FlakyLedger, store: BudgetStore
) -> None:
    keeper = SliceKeeper(ledger)  # type: ignore[arg-type]
    assert not keeper.spend("one", [Claim("a", 1)])
    assert keeper.holder == ""
    assert keeper.standing("a") is None
    ledger.fails = True
    keeper.start()
    eventually(lambda: keeper.problems)
    assert not keeper.spend("one", [Claim("a", 1)])
    ledger.fails = False
    keeper.stop()
    assert not keeper.spend("one", [Claim("a", 1)])
    assert reserved_j(store) == 0


def test_what_is_spent_becomes_the_tasks_own_and_the_slice_is_filled_again(
    store: BudgetStore, make_keeper: Callable[..., SliceKeeper]
) -> None:
    keeper = make_keeper(lease_s=3.0)
    eventually(lambda: keeper.spend("one", [Claim("a", 8 * J)]))
    eventually(lambda: reserved_j(store, without=keeper.holder) == 8.0)
    eventually(lambda: keeper.spend("two", [Claim("a", 9 * J)]))
    eventually(lambda: reserved_j(store, without=keeper.holder) == 17.0)
    keeper.stop()
    assert reserved_j(store) == 17.0


def test_a_task_larger_than_the_slice_is_refused_once_and_then_leased_for(
    store: BudgetStore, make_keeper: Callable[..., SliceKeeper]
) -> None:
    keeper = make_keeper(lease_s=3.0)
    eventually(lambda: keeper.budgets)
    assert not keeper.spend("large", [Claim("a", 60 * J)])
    eventually(lambda: keeper.spend("large", [Claim("a", 60 * J)]))
    assert not keeper.spend("larger", [Claim("a", 200 * J)])
    assert reserved_j(store) <= 100.0


def test_a_slice_that_nobody_asks_for_shrinks_to_its_share_again(
    store: BudgetStore, make_keeper: Callable[..., SliceKeeper]
) -> None:
    keeper = make_keeper(lease_s=0.6)
    eventually(lambda: keeper.budgets)
    assert not keeper.spend("never", [Claim("a", 80 * J)])
    eventually(lambda: reserved_j(store) >= 80.0)
    eventually(lambda: reserved_j(store) == 10.0)


def test_all_budgets_of_a_task_or_none_are_spent(make_keeper: Callable[..., SliceKeeper]) -> None:
    keeper = make_keeper()
    eventually(lambda: keeper.budgets)
    assert not keeper.spend("one", [Claim("a", 10 * J), Claim("nobody's", 1)])
    assert keeper.spend("two", [Claim("a", 10 * J), Claim("free", 99 * J)])


def test_a_budget_without_a_ceiling_is_recorded_and_never_used_up(
    store: BudgetStore, make_keeper: Callable[..., SliceKeeper]
) -> None:
    keeper = make_keeper(lease_s=3.0)
    eventually(lambda: keeper.budgets)
    assert keeper.spend("one", [Claim("free", 900 * J)])
    standing = keeper.standing("free")
    assert standing is not None
    assert standing.reserved_uj == 900 * J
    eventually(lambda: reserved_j(store, "free") == 900.0)


def test_a_standing_counts_what_was_spent_here_and_not_the_rest_of_the_slice(
    store: BudgetStore, make_keeper: Callable[..., SliceKeeper]
) -> None:
    store.reserve("another", [Claim("a", 20 * J)], 60)
    keeper = make_keeper(lease_s=3.0)
    eventually(lambda: keeper.spend("one", [Claim("a", 3 * J)]))

    def seen_j() -> float:
        standing = keeper.standing("a")
        assert standing is not None
        return standing.reserved_uj / J

    assert seen_j() == 23.0
    eventually(lambda: reserved_j(store, without=keeper.holder) == 23.0)
    for _ in range(100):  # over the rounds in which it becomes the task's own
        assert seen_j() == 23.0
        time.sleep(0.005)


def test_a_slice_is_not_spent_once_its_lease_could_have_run_out(
    ledger: FlakyLedger, store: BudgetStore, make_keeper: Callable[..., SliceKeeper]
) -> None:
    clock = SetClock()
    keeper = make_keeper(clock=clock)
    eventually(lambda: keeper.spend("one", [Claim("a", J)]))
    ledger.fails = True
    clock.ahead_ns = 22 * 10**9
    assert keeper.spend("two", [Claim("a", J)])
    clock.ahead_ns = 23 * 10**9
    assert not keeper.spend("three", [Claim("a", J)])
    assert keeper.spend("four", [Claim("free", J)])


def test_failures_are_counted_and_shown_and_the_thread_goes_on(
    ledger: FlakyLedger, store: BudgetStore, make_keeper: Callable[..., SliceKeeper], caplog: pytest.LogCaptureFixture
) -> None:
    ledger.fails = True
    with caplog.at_level(logging.WARNING, "tao_flows.slices"):
        keeper = make_keeper(lease_s=0.3)
        eventually(lambda: keeper.problems and keeper.problems[0].count > 2)
    (problem,) = keeper.problems
    assert (problem.code, problem.remedy) == ("LEDGER_UNREACHABLE", "mend it")
    assert len(caplog.records) == 1
    ledger.fails = False
    eventually(lambda: keeper.spend("one", [Claim("a", J)]))


def test_a_worker_takes_its_claim_out_of_the_slice_whoever_comes_first(
    ledger: FlakyLedger, store: BudgetStore, make_keeper: Callable[..., SliceKeeper]
) -> None:
    keeper = make_keeper(lease_s=3.0)
    claims = [Claim("a", 4 * J)]
    for number in range(3):
        one = holder_of(key(number))
        eventually(lambda one=one: keeper.spend(one, claims))
        assert store.claim(keeper.holder, one, claims, 60).granted
    eventually(lambda: reserved_j(store, without=keeper.holder) == 12.0)
    time.sleep(0.3)
    assert reserved_j(store, without=keeper.holder) == 12.0


def test_a_task_that_ran_and_settled_before_its_scheduler_heard_of_it_is_not_reserved_again(
    ledger: FlakyLedger, store: BudgetStore, make_keeper: Callable[..., SliceKeeper]
) -> None:
    keeper = make_keeper(lease_s=30.0)
    one, claims = holder_of(key(1)), [Claim("a", 4 * J)]
    eventually(lambda: keeper.spend(one, claims))
    assert store.claim(keeper.holder, one, claims, 60).granted
    settled(ledger, 1, 3 * J)
    assert reserved_j(store, without=keeper.holder) == 0
    keeper.stop()
    assert reserved_j(store) == 0
    assert store.standings(["a"])[0].spent_uj == 3 * J


def test_of_a_dead_scheduler_the_slice_comes_back_and_its_tasks_are_asked_anew(tmp_path: Path) -> None:
    inner = SqliteLedger(tmp_path / "ledger.db", busy_timeout_s=5)
    clocked = ClockedLedger(inner)
    store = BudgetStore(clocked)
    store.put(A)
    assert store.reserve("slice/dead", [Claim("a", 90 * J)], 60).granted
    assert not store.reserve("other", [Claim("a", 20 * J)], 600).granted
    clocked.pass_s(61)
    assert store.reserve("other", [Claim("a", 20 * J)], 600).granted
    assert store.claim("slice/dead", "admitted by the dead", [Claim("a", 80 * J)], 60).granted
    refused = store.claim("slice/dead", "admitted by the dead, too", [Claim("a", 10 * J)], 60)
    assert not refused.granted
    assert refused.refusal is not None
    inner.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_spends_nothing_of_its_parents_slice(
    store: BudgetStore, make_keeper: Callable[..., SliceKeeper]
) -> None:
    keeper = make_keeper()
    eventually(lambda: keeper.spend("one", [Claim("a", 1)]))
    pid = os.fork()
    if pid == 0:
        said = keeper.spend("two", [Claim("a", 1)])
        keeper.stop()
        os._exit(1 if said or keeper.holder else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert keeper.spend("two", [Claim("a", 1)])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_that_starts_has_a_slice_of_its_own(
    store: BudgetStore, make_keeper: Callable[..., SliceKeeper]
) -> None:
    keeper = make_keeper()
    eventually(lambda: keeper.budgets)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            mother = keeper.holder
            keeper.start()
            eventually(lambda: keeper.spend("two", [Claim("a", 1)]))
            status = 0 if keeper.holder not in {mother, ""} else 2
            keeper.stop()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert keeper.spend("one", [Claim("a", 10 * J)])


def test_a_dropped_budget_is_forgotten_with_what_was_spent_of_it(
    store: BudgetStore, make_keeper: Callable[..., SliceKeeper]
) -> None:
    keeper = make_keeper(lease_s=0.6)
    eventually(lambda: keeper.spend("one", [Claim("a", J), Claim("free", J)]))
    store.drop("a")
    eventually(lambda: keeper.budgets == (FREE,))
    assert not keeper.spend("two", [Claim("a", 1)])
    eventually(lambda: reserved_j(store, "free") == 1.0)


def test_a_budget_that_is_lowered_takes_its_slice_back(
    store: BudgetStore, make_keeper: Callable[..., SliceKeeper]
) -> None:
    keeper = make_keeper(lease_s=0.6)
    eventually(lambda: keeper.budgets)
    store.put(replace(A, limit_j=20.0, ceiling_j=20.0))
    eventually(lambda: reserved_j(store) == 2.0)
