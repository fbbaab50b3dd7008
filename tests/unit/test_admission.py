"""Asking before a task runs: decided, reserved or planned in a real ledger, and never in a task's way."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from place import ASK, KEY, NOW_NS, PATIENT, Place, in_a_thread, iso

from tao_flows.admission import RECONSIDER_S, Admission
from tao_flows.admission.shared import LOOK_S
from tao_flows.budget import EnergyBudget
from tao_flows.config import TaoConfig
from tao_flows.deadline import Deadline
from tao_flows.ledger.budgets import Claim
from tao_flows.units import NS_PER_S
from tao_flows.waiting import Why


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.ledger.close()


def test_a_task_of_which_nothing_is_known_runs_where_it_is(place: Place) -> None:
    verdict = place.admission().ask(ASK, place.config)
    assert (verdict.action, verdict.pool, verdict.budgets, verdict.deferral) == ("run", "home", (), None)
    assert verdict.decision is not None
    assert not verdict.decision.enforced
    assert not place.codes()


def test_mode_off_decides_and_writes_nothing(place: Place) -> None:
    verdict = place.admission().ask(ASK, place.configured("", mode="off"))
    assert (verdict.mode, verdict.decision) == ("off", None)
    with place.ledger.transaction(write=False) as tx:
        assert tx.execute("SELECT count(*) FROM decisions") == [(0,)]


def test_a_task_is_under_the_budget_it_names_and_those_whose_scope_it_is_in(place: Place) -> None:
    config = place.configured(
        '[budgets.named]\nlimit = "1 kJ"\n[budgets.team]\nlimit = "2 kJ"\nscope = "team:ml"\n'
        '[budgets.all]\npower = "100 W"\nscope = "global"\n[budgets.others]\nlimit = "1 J"\nscope = "team:web"\n'
        '[[rules]]\nname = "nightly"\nbudgets = ["ruled"]\n[budgets.ruled]\nlimit = "5 kJ"\n'
    )
    place.ran(100.0)
    admission = place.admission(config)
    verdict = admission.ask(replace(ASK, budget="named"), config)
    assert verdict.budgets == ("all", "named", "ruled", "team")
    reserved = {s.budget.name: s.reserved_uj for s in admission.budgets.standings(verdict.budgets)}
    # Of a run of ten minutes, a power cap over one minute holds a tenth.
    assert reserved == {"all": 10_000_000, "named": 100_000_000, "ruled": 100_000_000, "team": 100_000_000}


def test_what_is_reserved_is_replaced_by_what_was_measured(place: Place) -> None:
    config = place.configured('[budgets.team]\nlimit = "1 kJ"\n')
    place.ran(100.0)
    admission = place.admission(config)
    verdict = admission.ask(replace(ASK, budget="team"), config)
    (standing,) = admission.budgets.standings(["team"])
    assert (standing.spent_uj, standing.reserved_uj) == (0, 100_000_000)
    place.ran(70.0, key=KEY, budgets=verdict.budgets, started_wall_ns=NOW_NS)
    (standing,) = admission.budgets.standings(["team"])
    assert (standing.spent_uj, standing.reserved_uj) == (70_000_000, 0)


def test_what_would_pass_a_ceiling_is_denied_where_that_is_enforced(place: Place) -> None:
    budget = '[budgets.team]\nlimit = "150 J"\nceiling = "150 J"\n'
    place.ran(100.0)
    config = place.configured(budget)
    admission = place.admission(config)
    asks = [replace(ASK, key=replace(KEY, instance=str(number)), budget="team") for number in range(2)]
    assert [admission.ask(ask, config).action for ask in asks] == ["run", "deny"]
    advised = place.configured(budget, mode="advise")
    told = admission.ask(replace(asks[1], key=replace(KEY, instance="3")), advised)
    assert told.action == "run"
    assert told.decision is not None
    assert told.decision.action == "deny"
    # What runs all the same is in use all the same.
    assert admission.budgets.standings(["team"])[0].reserved_uj == 200_000_000


def test_many_at_once_never_reserve_more_than_a_ceiling(place: Place) -> None:
    place.ran(100.0)
    config = place.configured('[budgets.team]\nlimit = "500 J"\nceiling = "550 J"\n')
    admission = place.admission(config)

    def ask(number: int) -> str:
        return admission.ask(replace(ASK, key=replace(KEY, instance=str(number)), budget="team"), config).action

    with ThreadPoolExecutor(16) as threads:
        actions = list(threads.map(ask, range(40)))
    assert sorted(actions) == ["deny"] * 35 + ["run"] * 5
    assert admission.budgets.standings(["team"])[0].reserved_uj == 500_000_000
    assert not place.codes()


def test_only_what_opted_in_is_enforced(place: Place) -> None:
    place.ran(100.0)
    config = place.configured('[budgets.all]\nlimit = "50 J"\nceiling = "50 J"\nscope = "global"\n')
    verdict = place.admission(config).ask(ASK, config)
    assert verdict.mode != "enforce"
    assert verdict.action == "run"
    assert verdict.decision is not None
    assert verdict.decision.action == "deny"


def test_a_task_waits_for_the_slot_in_which_its_carbon_is_least(place: Place) -> None:
    place.ran(3.6e6)
    config = place.configured(place.falling())
    admission = place.admission(config)
    verdict = admission.ask(PATIENT, config)
    assert verdict.action == "defer", verdict.decision and verdict.decision.reason
    assert verdict.deferral is not None
    waited_s = (verdict.deferral.start_wall_ns - NOW_NS) / NS_PER_S
    assert 3_300 <= waited_s <= 3_900
    assert verdict.deferral.latest_wall_ns == NOW_NS + 7_200 * NS_PER_S
    assert admission.deferrals.open() == [
        replace(verdict.deferral, changed_wall_ns=admission.deferrals.open()[0].changed_wall_ns)
    ]


def test_an_engine_that_cannot_defer_is_not_told_to_and_a_plan_is_no_reservation(place: Place) -> None:
    place.ran(3.6e6)
    config = place.configured(place.falling() + '[budgets.team]\nlimit = "10 kWh"\n')
    admission = place.admission(config)
    assert admission.ask(replace(PATIENT, can_defer=False), config).action == "run"
    patient = replace(PATIENT, key=replace(KEY, instance="patient"), budget="team")
    assert admission.ask(patient, config).action == "defer"
    assert admission.budgets.standings(["team"])[0].reserved_uj == 0


def test_who_asks_ahead_reserves_nothing_and_writes_down_only_what_moves_the_task_or_has_it_wait(place: Place) -> None:
    place.ran(100.0)
    config = place.configured('[budgets.team]\nlimit = "1 kJ"\n')
    admission = place.admission(config)
    assert admission.ask(replace(ASK, budget="team", ahead=True), config).action == "run"
    assert admission.budgets.standings(["team"])[0].reserved_uj == 0
    with place.ledger.transaction(write=False) as tx:
        assert tx.execute("SELECT count(*) FROM decisions") == [(0,)]
    config = place.configured(place.falling())
    verdict = place.admission(config).ask(replace(PATIENT, ahead=True), config)
    assert verdict.action == "defer"
    with place.ledger.transaction(write=False) as tx:
        assert tx.execute("SELECT action FROM decisions") == [("defer",)]


def test_a_task_goes_to_no_pool_that_its_engine_does_not_reach(place: Place) -> None:
    config = place.configured(place.falling())
    (place.directory / "pools.toml").write_text(
        "\n".join(f'[[pools]]\npool_id = "{pool}"\nzone = "DE"\nenergy_j = {{ mean = {joules}, low = {joules}, '
                  f'high = {joules} }}\nruntime_s = {{ p50 = 60, p95 = 60 }}'
                  for pool, joules in (("home", 1e6), ("better", 1e4), ("best", 1e2))),
        encoding="utf-8",
    )  # fmt: skip
    admission, ask = place.admission(config), replace(ASK, reroutable=True)
    assert admission.ask(ask, config).pool == "best"
    assert admission.ask(replace(ask, reaches=lambda pool: pool != "best"), config).pool == "better"
    assert admission.ask(replace(ask, reaches=lambda pool: False), config).pool == "home"


def test_a_slot_that_is_full_sends_the_next_to_another(place: Place) -> None:
    place.ran(3.6e6)
    config = place.configured(place.falling())
    admission = place.admission(config)

    def ask(number: int) -> int:
        verdict = admission.ask(replace(PATIENT, key=replace(KEY, instance=str(number))), config)
        return 0 if verdict.deferral is None else verdict.deferral.start_wall_ns // (300 * NS_PER_S)

    with ThreadPoolExecutor(8) as threads:
        slots = list(threads.map(ask, range(24)))
    assert all(slots.count(slot) <= 3 for slot in slots if slot)
    assert len(set(slots)) >= 8
    assert not place.codes()


def test_while_draining_nothing_new_waits(place: Place) -> None:
    place.ran(3.6e6)
    config = place.configured(place.falling())
    admission = place.admission(config)
    admission.deferrals.drain(said_by="ops")
    verdict = admission.ask(PATIENT, config)
    assert (verdict.action, verdict.deferral) == ("run", None)


def test_a_deadline_that_cannot_be_placed_is_noted_and_nothing_waits_on_it(place: Place) -> None:
    place.ran(3.6e6)
    config = place.configured(place.falling())
    ask = replace(PATIENT, deadline=Deadline.parse("3h after data_interval_end"))
    assert place.admission(config).ask(ask, config).action == "run"
    assert "DEADLINE_UNPLACED" in place.codes()


def test_a_deadline_bounds_the_wait(place: Place) -> None:
    place.ran(3.6e6)
    config = place.configured(place.falling())
    ask = replace(PATIENT, deadline=Deadline.parse("1200s"))
    verdict = place.admission(config).ask(ask, config)
    assert verdict.decision is not None
    # The runs took 600 s each, and nothing is cheaper in the ten minutes that are left.
    assert verdict.action == "run"
    assert verdict.decision.answer["latest_start"] <= iso(NOW_NS // NS_PER_S + 600).replace("+00:00", "Z")


def test_a_regime_is_left_downward_only_some_way_below_its_threshold(place: Place) -> None:
    config = place.configured('[budgets.team]\nlimit = "1000 J"\n')
    place.ran(1.0)
    admission = place.admission(config)
    for reserved_j, regime in ((100, "standard"), (850, "transition"), (790, "transition"), (700, "standard")):
        admission.budgets.put(config.budgets["team"])
        admission.budgets.reserve("other", [Claim("team", reserved_j * 10**6)], 60.0)
        verdict = admission.ask(replace(ASK, budget="team"), config)
        assert verdict.decision is not None
        assert verdict.decision.answer["regime"] == regime
        assert admission.budgets.standings(["team"])[0].regime == regime


def test_a_budget_that_nobody_has_configured_is_noted(place: Place) -> None:
    verdict = place.admission().ask(replace(ASK, budget="typo"), place.config)
    assert (verdict.action, verdict.budgets) == ("run", ())
    assert place.codes() == {"UNKNOWN_BUDGET"}


def test_a_budget_in_the_code_belongs_to_the_task_alone(place: Place) -> None:
    admission = place.admission()
    verdict = admission.ask(replace(ASK, budget=EnergyBudget("", 40.0)), place.config)
    assert verdict.budgets == ("task:train",)
    assert [budget.limit_j for budget in admission.budgets.all()] == [40.0]


def test_without_a_ledger_a_task_runs_and_the_failure_is_noted(place: Place) -> None:
    place.ledger.close()
    (place.directory / "ledger.db").unlink(missing_ok=True)
    (place.directory / "ledger.db").mkdir()
    verdict = place.admission().ask(replace(PATIENT, budget="team"), place.config)
    assert (verdict.action, verdict.pool) == ("run", "home")
    assert place.codes() == {"LEDGER_UNREACHABLE"}


@pytest.fixture
def deferred(place: Place) -> tuple[Place, TaoConfig, Admission]:
    place.ran(3.6e6)
    config = place.configured(place.falling())
    return place, config, place.admission(config)


Deferred = tuple[Place, TaoConfig, Admission]


def test_a_wait_ends_when_its_time_has_come_and_the_task_then_reserves(deferred: Deferred) -> None:
    place, config, admission = deferred
    verdict = admission.ask(PATIENT, config)
    assert verdict.deferral is not None
    thread, said = in_a_thread(lambda: admission.wait(PATIENT, lambda: config, verdict.deferral))  # type: ignore[arg-type]
    place.clock.advance(4_000.0)
    thread.join(20.0)
    assert said == [Why.PLANNED]
    assert admission.deferrals.open() == []
    again = admission.ask(replace(PATIENT, can_defer=False), config)
    assert (again.action, again.pool) == ("run", "home")


def test_a_release_ends_a_wait(deferred: Deferred) -> None:
    _, config, admission = deferred
    verdict = admission.ask(PATIENT, config)
    assert verdict.deferral is not None
    thread, said = in_a_thread(lambda: admission.wait(PATIENT, lambda: config, verdict.deferral))  # type: ignore[arg-type]
    admission.deferrals.release("all", said_by="ops", reason="now")
    thread.join(20.0)
    assert said == [Why.RELEASED]


def test_a_wait_that_no_longer_pays_ends(deferred: Deferred) -> None:
    place, config, admission = deferred
    verdict = admission.ask(PATIENT, config)
    assert verdict.deferral is not None
    reconsider = admission.reconsider(PATIENT, lambda: config, verdict.deferral)
    for _ in range(3):
        place.clock.advance(RECONSIDER_S)
        assert reconsider() == verdict.deferral
    # What it waits for is said once, not every minute.
    with place.ledger.transaction(write=False) as tx:
        assert tx.execute("SELECT count(*) FROM decisions") == [(1,)]
    lines = (place.directory / "carbon.csv").read_text(encoding="utf-8").replace(",50.0", ",900.0")
    (place.directory / "carbon.csv").write_text(lines, encoding="utf-8")
    place.clock.advance(2 * LOOK_S)
    assert reconsider() is None
