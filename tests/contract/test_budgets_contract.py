"""What budgets do on every ledger that has them: SQLite, and a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clocked_ledger import ClockedLedger

from tao_flows.budget import EnergyBudget
from tao_flows.errors import InputError, LedgerError
from tao_flows.figures import AGENT_PENDING, Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import open_ledger
from tao_flows.ledger.budgets import BudgetStore, Claim, claim_amount_uj, holder_of, settle
from tao_flows.records import RunKey, Segment, TaskRecord, TaskState

J = 1_000_000
KEY = RunKey("prefect", "default", "nightly", "run-1", "train", "0", 1)
SEGMENT = Segment("node-1", "boot", 42, 7)
A = EnergyBudget("a", 10.0, ceiling_j=10.0)
B = EnergyBudget("b", 20.0, ceiling_j=20.0, scope="team:ml")
FREE = EnergyBudget("free", 1.0)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def ledger(url: str) -> Iterator[ClockedLedger]:
    opened = open_ledger(url)
    yield ClockedLedger(opened)
    opened.close()


@pytest.fixture
def store(ledger: ClockedLedger) -> BudgetStore:
    made = BudgetStore(ledger)
    for budget in (A, B, FREE):
        made.put(budget)
    return made


def record(
    energy_uj: int | None = 3 * J, *, wall_s: float = 2.0, budgets: tuple[str, ...] = ("a",), **more: Any
) -> TaskRecord:
    figure = Figure.unknown("train")
    if energy_uj is not None:
        figure = Figure(energy_uj, energy_uj, energy_uj, Quality.ATTRIBUTED)
    now_ns = time.time_ns()
    measured = Measurement("train", now_ns, wall_s, CpuTime(1.0, "perf", covers_children=True), figure, (), Account())
    base = TaskRecord(
        KEY, SEGMENT, TaskState.COMPLETED, now_ns, ended_wall_ns=now_ns, measurement=measured, budgets=budgets
    )
    return replace(base, **more)


def settled(ledger: ClockedLedger, one: TaskRecord) -> None:
    with ledger.transaction() as tx:
        settle(tx, one)


def figures(store: BudgetStore, *names: str) -> list[tuple[int, int]]:
    """Joules spent and reserved."""
    return [(each.spent_uj // J, each.reserved_uj // J) for each in store.standings(names or ("a",))]


def test_a_budget_is_kept_as_it_was_put_and_found_by_name_and_scope(store: BudgetStore) -> None:
    assert store.all() == [A, B, FREE]
    assert store.under("a") == [A]
    assert store.under("a", team="ml", flow="x", pool="y") == [A, B]
    assert store.under("", team="ml") == [B]
    assert store.under("nobody's", team="other") == []
    changed = replace(A, limit_j=5.0, calendar="day", timezone="Europe/Berlin")
    store.put(changed)
    store.put(changed)
    assert store.all() == [changed, B, FREE]


def test_a_budget_without_a_name_is_not_kept(store: BudgetStore) -> None:
    with pytest.raises(InputError, match="no name"):
        store.put(replace(A, name=""))


def test_a_reservation_counts_until_it_is_given_back(store: BudgetStore) -> None:
    answer = store.reserve("one", [Claim("a", 4 * J), Claim("b", 5 * J)], 60)
    assert answer.granted
    assert answer.lease_until_wall_ns > 0
    assert figures(store, "a", "b") == [(0, 4), (0, 5)]
    store.give_back("one")
    assert figures(store, "a", "b") == [(0, 0), (0, 0)]


def test_all_budgets_or_none_are_reserved_and_the_refusal_says_why(store: BudgetStore) -> None:
    assert store.reserve("one", [Claim("a", 8 * J)], 60).granted
    refused = store.reserve("two", [Claim("b", 1 * J), Claim("a", 3 * J)], 60)
    assert not refused.granted
    assert str(refused.refusal) == "budget 'a': 3.00 J more than 0 J spent and 8.00 J reserved passes 10.0 J"
    assert figures(store, "a", "b") == [(0, 8), (0, 0)]
    assert store.reserve("two", [Claim("b", 1 * J), Claim("a", 2 * J)], 60).granted


def test_a_budget_without_a_ceiling_refuses_nothing(store: BudgetStore) -> None:
    assert store.reserve("one", [Claim("free", 900 * J)], 60).granted
    assert figures(store, "free") == [(0, 900)]


def test_what_is_forced_is_recorded_and_the_refusal_is_told(store: BudgetStore) -> None:
    answer = store.reserve("one", [Claim("a", 11 * J)], 60, force=True)
    assert answer.granted
    assert answer.refusal is not None
    assert figures(store) == [(0, 11)]


def test_reserving_again_takes_the_place_of_the_holders_own(store: BudgetStore) -> None:
    for amount_j in (9, 4, 10):
        assert store.reserve("one", [Claim("a", amount_j * J)], 60).granted
    assert figures(store) == [(0, 10)]
    assert store.reserve("one", [Claim("b", 2 * J)], 60).granted
    assert figures(store, "a", "b") == [(0, 0), (0, 2)]


def test_a_refused_change_leaves_what_was_reserved(store: BudgetStore) -> None:
    store.reserve("one", [Claim("a", 4 * J)], 60)
    assert not store.reserve("one", [Claim("a", 11 * J)], 60).granted
    assert figures(store) == [(0, 4)]


def test_what_is_already_granted_is_not_refused_later_though_others_overspent(
    store: BudgetStore, ledger: ClockedLedger
) -> None:
    store.reserve("one", [Claim("a", 4 * J)], 60)
    settled(ledger, record(50 * J))
    assert store.reserve("one", [Claim("a", 4 * J)], 60).granted
    assert not store.reserve("one", [Claim("a", 4 * J + 1)], 60).granted


def test_two_claims_on_one_budget_are_one(store: BudgetStore) -> None:
    assert store.reserve("one", [Claim("a", 2 * J), Claim("a", 3 * J)], 60).granted
    assert figures(store) == [(0, 5)]


@pytest.mark.parametrize(
    ("claim", "lease_s", "code"),
    [(Claim("a", -1), 60, "BAD_CLAIM"), (Claim("a", 1), 0, "BAD_CLAIM"), (Claim("nobody's", 1), 60, "NO_BUDGET")],
)
def test_a_claim_that_cannot_be_is_refused_with_one_clear_error(
    store: BudgetStore, claim: Claim, lease_s: float, code: str
) -> None:
    with pytest.raises(InputError) as caught:
        store.reserve("one", [claim], lease_s)
    assert caught.value.code == code
    assert caught.value.remedy
    assert figures(store) == [(0, 0)]


def test_a_claim_has_a_holder(store: BudgetStore) -> None:
    with pytest.raises(InputError, match="no holder"):
        store.reserve("", [Claim("a", 1)], 60)


def test_a_lease_runs_out_by_itself_unless_it_is_renewed(store: BudgetStore, ledger: ClockedLedger) -> None:
    store.reserve("dies", [Claim("a", 3 * J)], 30)
    store.reserve("lives", [Claim("a", 4 * J)], 30)
    ledger.pass_s(29)
    assert figures(store) == [(0, 7)]
    assert store.renew("lives", 60)
    ledger.pass_s(2)
    assert figures(store) == [(0, 4)]
    assert not store.renew("dies", 60)
    assert figures(store) == [(0, 4)]
    assert store.reserve("next", [Claim("a", 6 * J)], 60).granted


def test_a_lease_runs_out_by_the_databases_own_clock(store: BudgetStore, ledger: ClockedLedger) -> None:
    real = BudgetStore(ledger.inner)
    real.reserve("dies", [Claim("a", 3 * J)], 0.05)
    give_up_s = time.monotonic() + 30
    while figures(real) != [(0, 0)]:
        assert time.monotonic() < give_up_s
        time.sleep(0.01)


def test_a_holders_own_reservation_can_be_left_out_of_a_standing(store: BudgetStore) -> None:
    store.reserve("one", [Claim("a", 3 * J)], 60)
    store.reserve("two", [Claim("a", 4 * J)], 60)
    (standing,) = store.standings(["a"], without="one")
    assert standing.reserved_uj == 4 * J


def test_settling_puts_measured_joules_in_the_place_of_reserved_ones(store: BudgetStore, ledger: ClockedLedger) -> None:
    store.reserve(holder_of(KEY), [Claim("a", 5 * J), Claim("b", 5 * J)], 60)
    settled(ledger, record(3 * J, budgets=("a", "b")))
    assert figures(store, "a", "b") == [(3, 0), (3, 0)]


def test_a_ledger_settles_a_record_in_the_transaction_that_stores_it(store: BudgetStore, ledger: ClockedLedger) -> None:
    store.reserve(holder_of(KEY), [Claim("a", 5 * J)], 60)
    end = record(3 * J)
    ledger.put_task(replace(end, state=TaskState.RUNNING, ended_wall_ns=None, measurement=None))
    assert figures(store) == [(0, 5)]
    for _ in range(2):
        ledger.put_task(end)
    assert figures(store) == [(3, 0)]


def test_a_record_names_its_budget_or_lists_all_it_is_charged_to(store: BudgetStore, ledger: ClockedLedger) -> None:
    settled(ledger, record(2 * J, budgets=(), budget="a"))
    settled(ledger, record(2 * J, budgets=("b",), budget="a", key=replace(KEY, instance="1")))
    settled(ledger, record(2 * J, budgets=(), key=replace(KEY, instance="2")))
    assert figures(store, "a", "b") == [(2, 0), (2, 0)]


def test_a_record_written_again_is_charged_once_and_a_corrected_one_by_the_difference(
    store: BudgetStore, ledger: ClockedLedger
) -> None:
    for energy_j in (3, 3, 5, 2, 2):
        settled(ledger, record(energy_j * J))
    assert figures(store) == [(2, 0)]
    settled(ledger, record(4 * J, segment=replace(SEGMENT, sequence=1)))
    settled(ledger, record(1 * J, key=replace(KEY, try_number=2)))
    assert figures(store) == [(7, 0)]


def test_a_try_of_unknown_energy_gives_back_its_reservation_and_is_counted(
    store: BudgetStore, ledger: ClockedLedger
) -> None:
    store.reserve(holder_of(KEY), [Claim("a", 5 * J)], 60)
    for _ in range(2):
        settled(ledger, record(None))
    (standing,) = store.standings(["a"])
    assert (standing.spent_uj, standing.reserved_uj, standing.unknown_runs) == (0, 0, 1)
    settled(ledger, record(3 * J))
    (standing,) = store.standings(["a"])
    assert (standing.spent_uj, standing.unknown_runs) == (3 * J, 0)


def test_what_still_runs_or_waits_for_its_figures_settles_nothing(store: BudgetStore, ledger: ClockedLedger) -> None:
    store.reserve(holder_of(KEY), [Claim("a", 5 * J)], 60)
    one = record(3 * J)
    assert one.measurement is not None
    settled(ledger, replace(one, state=TaskState.RUNNING))
    settled(ledger, replace(one, measurement=replace(one.measurement, events=(AGENT_PENDING,))))
    assert figures(store) == [(0, 5)]


def test_a_budget_charged_before_anybody_defined_it_stands_as_charged_once_it_is(ledger: ClockedLedger) -> None:
    store = BudgetStore(ledger)
    settled(ledger, record(3 * J, budgets=("late",)))
    assert store.all() == []
    assert store.standings(["late"]) == []
    store.put(EnergyBudget("late", 9.0, calendar="month"))
    assert figures(store, "late") == [(3, 0)]


def test_a_record_that_ended_before_charges_are_kept_for_is_not_charged(
    store: BudgetStore, ledger: ClockedLedger
) -> None:
    old_ns = time.time_ns() - 36 * 86_400 * 10**9
    settled(ledger, record(3 * J, started_wall_ns=old_ns, ended_wall_ns=old_ns))
    assert figures(store) == [(0, 0)]


def test_a_change_of_the_window_sums_what_was_charged_anew(store: BudgetStore, ledger: ClockedLedger) -> None:
    settled(ledger, record(3 * J))
    for window in ("month", "60s", "hour", "1d"):
        store.put(EnergyBudget.parse("a", "10 J", window))
        assert figures(store) == [(3, 0)]


def test_a_rolling_window_forgets(store: BudgetStore, ledger: ClockedLedger) -> None:
    settled(ledger, record(9 * J))
    assert not store.reserve("one", [Claim("a", 2 * J)], 60).granted
    ledger.pass_s(86_400)
    assert figures(store) == [(9, 0)]  # the bucket it lies in counts whole
    ledger.pass_s(86_400 / 64)
    assert figures(store) == [(0, 0)]
    assert store.reserve("one", [Claim("a", 2 * J)], 60).granted


def test_a_calendar_window_begins_anew_and_what_is_reserved_counts_on(
    store: BudgetStore, ledger: ClockedLedger
) -> None:
    store.put(replace(A, calendar="day", timezone="Pacific/Auckland"))
    settled(ledger, record(3 * J))
    store.reserve("one", [Claim("a", 4 * J)], 200_000)
    (standing,) = store.standings(["a"])
    assert standing.end_wall_ns is not None
    ledger.now_ns = standing.end_wall_ns - 1
    assert figures(store) == [(3, 4)]
    ledger.pass_s(1e-9)
    assert figures(store) == [(0, 4)]


def test_a_power_cap_counts_of_a_long_run_what_one_window_holds(store: BudgetStore, ledger: ClockedLedger) -> None:
    cap = EnergyBudget.parse("cap", power="100 W", window="60s", ceiling="100 W")
    store.put(cap)
    assert claim_amount_uj(cap, 54_000.0, 600.0) == 5_400 * J
    assert store.reserve(holder_of(KEY), [Claim("cap", 5_400 * J)], 60).granted
    settled(ledger, record(54_000 * J, wall_s=600.0, budgets=("cap",)))
    assert figures(store, "cap") == [(5_400, 0)]


def test_a_dropped_budget_is_gone_with_what_was_under_it(store: BudgetStore, ledger: ClockedLedger) -> None:
    settled(ledger, record(3 * J))
    store.reserve("one", [Claim("a", 3 * J)], 60)
    assert store.drop("a")
    assert not store.drop("a")
    assert store.all() == [B, FREE]
    store.put(A)
    assert figures(store) == [(0, 0)]


def test_a_regime_is_kept_and_survives_a_change_of_the_budget(store: BudgetStore) -> None:
    assert [each.regime for each in store.standings(["a"])] == ["standard"]
    store.set_regime("a", "inversion")
    store.set_regime("nobody's", "inversion")
    store.put(replace(A, limit_j=9.0))
    assert [each.regime for each in store.standings(["a"])] == ["inversion"]


def test_standings_are_in_the_order_asked_for_and_say_how_much_is_left(
    store: BudgetStore, ledger: ClockedLedger
) -> None:
    settled(ledger, record(3 * J))
    store.reserve("one", [Claim("a", 5 * J)], 60)
    b, a = store.standings(["b", "nobody's", "a"])
    assert (b.budget, a.budget) == (B, A)
    assert (a.left_uj, a.utilisation) == (2 * J, 0.8)
    assert a.end_wall_ns is None
    assert a.start_wall_ns < time.time_ns()


def test_old_charges_are_swept_and_what_is_spent_is_not_touched(store: BudgetStore, ledger: ClockedLedger) -> None:
    for number in range(3):
        settled(ledger, record(1 * J, key=replace(KEY, instance=str(number))))
    old_ns = time.time_ns() - 40 * 86_400 * 10**9
    with ledger.transaction() as tx:
        statement = "UPDATE charges SET charged_wall_ns = :old WHERE holder = :holder"
        tx.change(statement, old=old_ns, holder=holder_of(KEY))
        tx.change("INSERT INTO spending VALUES ('a', :old, 5, 0)", old=old_ns)
    store.reserve("one", [Claim("a", J)], 60)
    with ledger.transaction(write=False) as tx:
        assert tx.execute("SELECT count(*) FROM charges") == [(2,)]
        assert [int(row[0]) for row in tx.execute("SELECT sum(spent_uj) FROM spending")] == [3 * J]


def test_a_rolling_window_is_a_bounded_number_of_rows(store: BudgetStore, ledger: ClockedLedger) -> None:
    for number in range(200):
        settled(ledger, record(10, key=replace(KEY, instance=str(number)), ended_wall_ns=ledger.now_ns))
        ledger.pass_s(500)
    with ledger.transaction(write=False) as tx:
        since = tx.now_ns() - 86_400 * 10**9
        ((rows,),) = tx.execute("SELECT count(*) FROM spending WHERE bucket_wall_ns > :since", since=since)
    (standing,) = store.standings(["a"])
    assert rows <= 65
    assert 86_400 // 500 * 10 <= standing.spent_uj <= 86_400 * 65 // 64 // 500 * 10 + 10


def test_many_threads_with_ledgers_of_their_own_never_reserve_past_the_ceiling(url: str, store: BudgetStore) -> None:
    granted: list[str] = []

    def admit(number: int) -> None:
        mine = open_ledger(url)
        for turn in range(10):
            holder = f"{number}/{turn}"
            while True:
                try:
                    answer = BudgetStore(mine).reserve(holder, [Claim("b", J), Claim("a", J // 2)], 60)
                    break
                except LedgerError as error:
                    assert error.code == "LEDGER_BUSY"  # noqa: PT017
            if answer.granted:
                granted.append(holder)
        mine.close()

    threads = [threading.Thread(target=admit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 20
    assert figures(store, "a", "b") == [(0, 10), (0, 20)]
