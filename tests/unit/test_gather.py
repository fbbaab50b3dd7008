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
from tao_flows.gather import Wish, gather
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.pools import WorkerPool
from tao_flows.profiles import PROFILE_TTL_S, Profiles
from tao_flows.records import RunKey, Segment, TaskRecord, TaskState
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


def request(ledger: Ledger, wish: Wish = WISH, *pools: WorkerPool) -> dict[str, Any]:
    return gather(wish, pools, Profiles(ledger), ledger, NOW_NS, 0)


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
        WISH, deadline_s=3600.0, max_defer_s=600.0, deferrable=True, reroutable=True, allowed_zones=("SE",),
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


def test_a_budget_counts_what_was_spent_of_it_within_its_window(ledger: Ledger) -> None:
    settle(ledger, 30.0)
    settle(ledger, 12.5)
    settle(ledger, 1_000.0, budget="team-b")
    settle(ledger, 1_000.0, started_wall_ns=NOW_NS - 7_200 * NS_PER_S)
    budget = EnergyBudget("team-a", limit_j=100.0, window_s=3_600.0, ceiling_j=200.0)
    asked = request(ledger, replace(WISH, budget=budget))
    assert asked["budget"] == {"limit_j": 100.0, "spent_j": 42.5, "reserved_j": 0.0, "ceiling_j": 200.0}
    assert decide(parse_request(asked)).penalty is not None


def test_over_a_ceiling_the_task_is_denied(ledger: Ledger) -> None:
    settle(ledger, 90.0)
    budget = EnergyBudget("team-a", limit_j=100.0, ceiling_j=120.0)
    decision = decide(parse_request(request(ledger, replace(WISH, budget=budget))))
    assert decision.action == "deny"


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
