"""One decision request from the ledger, the profiles and the pools; the controller must take it as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tao_flows.budget import EnergyBudget
from tao_flows.controller.decide import decide
from tao_flows.controller.model import PredictedEnergy, PredictedRuntime
from tao_flows.controller.parse import parse_request
from tao_flows.errors import LedgerError
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.gather import Known, Wish, gather
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.budgets import BudgetStore, Claim
from tao_flows.pools import WorkerPool
from tao_flows.profiles import PROFILE_TTL_S, Profiles
from tao_flows.records import RunKey, Segment, TaskRecord, TaskState
from tao_flows.signals.board import SignalBoard
from tao_flows.signals.spec import parse_signals
from tao_flows.units import NS_PER_S

NOW_NS = 1_790_000_000 * NS_PER_S
WISH = Wish("train", "home", NOW_NS)
HOME = WorkerPool("home", zone="DE", pue=1.2, price_per_h=0.4)
AWAY = WorkerPool("away", zone="SE", capabilities=("gpu",), dispatch_energy_j=2.0, queue_wait_s=5.0, power_cap_w=90.0)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield ledger
    ledger.close()


def settle(ledger: Ledger, energy_j: float, seconds: float = 2.0, **changes: Any) -> None:
    """Puts a task that ran for some seconds, ten before now."""
    number = len(ledger.history("train", "home", 1_000).runs)
    value_uj = round(energy_j * 1e6)
    figure = Figure(value_uj, value_uj, value_uj, Quality.ATTRIBUTED, ("rapl",))
    cpu = CpuTime(1.0, "perf", covers_children=True)
    started_ns = NOW_NS - 10 * NS_PER_S
    ended_ns = started_ns + round(seconds * NS_PER_S)
    record = TaskRecord(
        key=RunKey("prefect", "default", "nightly", "run", "train", f"{number}-{changes}", 1),
        segment=Segment("host", "boot", 1, 1),
        state=TaskState.COMPLETED,
        started_wall_ns=started_ns,
        pool="home",
        budget="team-a",
        ended_wall_ns=ended_ns,
        measurement=Measurement("train", started_ns, seconds, cpu, figure, (), Account()),
    )
    ledger.put_task(replace(record, **changes))


def request(ledger: Ledger, wish: Wish = WISH, *pools: WorkerPool, **known: Any) -> dict[str, Any]:
    return gather(wish, Known(pools=pools, **known), Profiles(ledger), NOW_NS, 0).request


def pool(asked: dict[str, Any], pool_id: str) -> dict[str, Any]:
    return next(each for each in asked["pools"] if each["pool_id"] == pool_id)


def test_a_task_of_which_nothing_is_known_runs_where_it_is(ledger: Ledger) -> None:
    asked = request(ledger)
    assert [each["pool_id"] for each in asked["pools"]] == ["home"]
    assert pool(asked, "home")["energy_j"] is None
    assert pool(asked, "home")["runtime_s"] is None
    assert "budget" not in asked
    decision = decide(parse_request(asked))
    assert (decision.action, decision.pool) == ("run", "home")


def test_what_a_pool_is_described_as_is_in_the_request(ledger: Ledger) -> None:
    asked = request(ledger, WISH, HOME, AWAY)
    assert [each["pool_id"] for each in asked["pools"]] == ["away", "home"]
    away = pool(asked, "away")
    assert away["zone"] == "SE"
    assert away["capabilities"] == ["gpu"]
    assert (away["dispatch_energy_j"], away["queue_wait_s"], away["power_cap_w"]) == (2.0, 5.0, 90.0)
    assert (pool(asked, "home")["pue"], pool(asked, "home")["price_per_h"]) == (1.2, 0.4)
    assert away["capacity_free"] is None


def test_settled_runs_are_the_prediction_and_the_draw_follows_from_them(ledger: Ledger) -> None:
    for energy_j in (10.0, 20.0, 60.0):
        settle(ledger, energy_j, seconds=2.0)
    home = pool(request(ledger, WISH, HOME), "home")
    assert home["energy_j"]["mean"] == 30.0
    assert home["energy_j"]["low"] <= 10.0
    assert home["energy_j"]["high"] >= 60.0
    assert home["runtime_s"]["p50"] == 2.0 < home["runtime_s"]["p95"]
    assert home["power_w"] == pytest.approx(15.0)


def test_a_pools_description_stands_in_until_a_task_has_run_there(ledger: Ledger) -> None:
    described = replace(
        HOME, energy_j=PredictedEnergy(5.0, 4.0, 6.0), runtime_s=PredictedRuntime(1.0, 2.0), power_w=7.0
    )
    home = pool(request(ledger, WISH, described), "home")
    assert home["energy_j"] == {"mean": 5.0, "low": 4.0, "high": 6.0}
    assert home["power_w"] == 7.0
    settle(ledger, 100.0, seconds=4.0)
    home = pool(request(ledger, WISH, described), "home")
    assert home["energy_j"]["mean"] == 100.0
    assert home["runtime_s"]["p50"] == 4.0


def test_what_the_task_asks_for_is_in_the_request_and_decided_by(ledger: Ledger) -> None:
    settle(ledger, 50.0)
    wish = replace(
        WISH, deadline_wall_ns=NOW_NS + 3_600 * NS_PER_S, max_defer_s=600.0, deferrable=True, reroutable=True, allowed_zones=("SE",),
        requires=("gpu",),
    )  # fmt: skip
    cheap = replace(AWAY, energy_j=PredictedEnergy(1.0, 1.0, 1.0), runtime_s=PredictedRuntime(1.0, 1.0))
    asked = request(ledger, wish, HOME, cheap)
    assert asked["now"] == asked["task"]["ready_at"] == "2026-09-21T14:13:20.000000Z"
    assert asked["task"]["deadline"] == "2026-09-21T15:13:20.000000Z"
    assert asked["task"]["max_defer_s"] == 600.0
    assert asked["task"]["requires"] == ["gpu"]
    decision = decide(parse_request(asked))
    assert (decision.action, decision.pool) == ("reroute", "away")


def budgets(ledger: Ledger, reserved_j: float) -> dict[str, Any]:
    """Two budgets as they stand, one of them partly reserved."""
    store = BudgetStore(ledger)
    store.put(EnergyBudget("team-a", limit_j=100.0, ceiling_j=120.0))
    store.put(EnergyBudget("wide", limit_j=1e6))
    store.reserve("another", [Claim("team-a", round(reserved_j * 1e6))], 600.0)
    return {"standings": store.standings(["team-a", "wide"])}


def test_how_budgets_stand_is_in_the_request_and_the_one_that_binds_most_decides(ledger: Ledger) -> None:
    settle(ledger, 30.0)
    asked = request(ledger, **budgets(ledger, 42.5))
    assert asked["budget"] == [
        {
            "name": "team-a",
            "limit_j": 100.0,
            "spent_j": 0.0,
            "reserved_j": 42.5,
            "ceiling_j": 120.0,
            "window_s": 86_400.0,
        },
        {"name": "wide", "limit_j": 1e6, "spent_j": 0.0, "reserved_j": 0.0, "ceiling_j": None, "window_s": 86_400.0},
    ]
    assert asked["previous_regime"] == "standard"
    decision = decide(parse_request(asked))
    assert decision.utilisation == pytest.approx(0.725)
    assert decision.to_json()["budget"] == "team-a"


def test_over_a_ceiling_the_task_is_denied(ledger: Ledger) -> None:
    settle(ledger, 90.0)
    assert decide(parse_request(request(ledger, **budgets(ledger, 31.0)))).action == "deny"


def test_a_signal_that_is_configured_and_lost_is_asked_for_all_the_same(ledger: Ledger, tmp_path: Path) -> None:
    specs = parse_signals(
        {"carbon": {"DE": {"csv": "gone.csv"}}, "price": {"DE": {"value": 0.3, "unit": "EUR/kWh"}}}, tmp_path
    )
    asked = request(ledger, WISH, HOME, board=SignalBoard.build(specs))
    assert asked["signals"]["carbon_g_per_kwh"] == {}
    assert list(asked["signals"]["price_per_kwh"]) == ["DE"]


def test_places_left_are_told_where_a_task_may_wait_and_its_pool_has_a_limit(ledger: Ledger) -> None:
    full_ns = (NOW_NS // (300 * NS_PER_S) + 2) * 300 * NS_PER_S

    def planned(pool_id: str, since_wall_ns: int, until_wall_ns: int) -> list[int]:
        assert pool_id == "home"
        assert since_wall_ns < NOW_NS < full_ns < until_wall_ns
        return [full_ns, full_ns + 1]

    limited = replace(HOME, places=2)
    patient = replace(WISH, deferrable=True, max_defer_s=3_600.0)
    (slots,) = [pool(request(ledger, patient, limited, planned=planned), "home")["capacity_by_slot"]]
    assert list(slots.values()) == [0]
    assert "capacity_by_slot" not in pool(request(ledger, WISH, limited, planned=planned), "home")
    assert "capacity_by_slot" not in pool(request(ledger, patient, HOME, planned=planned), "home")


def test_the_more_room_there_is_the_wider_are_the_slots(ledger: Ledger) -> None:
    assert request(ledger)["slot_s"] == 300.0
    patient = replace(WISH, deferrable=True, max_defer_s=288 * 900.0)
    assert request(ledger, patient)["slot_s"] == 900.0


def test_a_profile_is_read_again_only_when_it_is_old(ledger: Ledger) -> None:
    profiles = Profiles(ledger)
    settle(ledger, 10.0)
    assert profiles.of("train", "home", 0).runs == 1
    settle(ledger, 10.0)
    just_before_ns = round(PROFILE_TTL_S * NS_PER_S) - 1
    assert profiles.of("train", "home", just_before_ns).runs == 1
    assert profiles.of("train", "away", just_before_ns).runs == 0
    assert profiles.of("train", "home", just_before_ns + 1).runs == 2


def test_a_ledger_that_cannot_be_read_is_an_error_for_the_caller_to_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ledger = open_ledger(f"sqlite:///{tmp_path}/file/ledger.db")
    with pytest.raises(LedgerError):
        request(ledger)
