"""What a request may say, and the one clear line that refuses the rest."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tao_flows.controller.parse import StepsMemo, parse_request
from tao_flows.errors import InputError

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "decide").glob("*.json"))
MISSING = object()
BUDGET = {"limit_j": 10, "spent_j": 0, "reserved_j": 0}


def a_request() -> dict[str, Any]:
    request: dict[str, Any] = json.loads((EXAMPLES[0].parent / "training.json").read_text())
    return request


def changed(path: str, value: object) -> dict[str, Any]:
    """The request with one field set, or left out. A path is names and indices with dots between."""
    request = a_request()
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = request
    for part in way:
        place = place[part]
    if value is MISSING:
        del place[last]
    else:
        place[last] = value
    return request


def refusal(request: object) -> InputError:
    with pytest.raises(InputError) as caught:
        parse_request(request)
    assert caught.value.code == "BAD_REQUEST"
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return caught.value


NUMBERS = [
    "pools.1.energy_j.mean",
    "pools.1.energy_j.low",
    "pools.1.runtime_s.p50",
    "pools.1.queue_wait_s",
    "pools.1.dispatch_energy_j",
    "pools.1.pue",
    "pools.1.price_per_h",
    "pools.1.power_w",
    "pools.1.power_cap_w",
    "pools.1.capacity_free",
    "pools.0.temperature_c",
    "budget.limit_j",
    "budget.spent_j",
    "budget.reserved_j",
    "budget.ceiling_j",
    "task.max_defer_s",
    "slot_s",
    "engine_latency_s",
    "safety_s",
    "min_dwell_s",
    "signal_meta.max_age_s",
    "signal_meta.margin",
    "signals.carbon_g_per_kwh.DE.1.value",
]


def dotted(path: str) -> str:
    """``pools.1.pue`` as it is written in a refusal: ``pools[1].pue``."""
    out = ""
    for part in path.split("."):
        out += f"[{part}]" if part.isdigit() else f".{part}"
    return out[1:]


@pytest.mark.parametrize("path", NUMBERS)
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
        (float("-inf"), "not finite"),
        (True, "true is not a number"),
        ("12", "'12' is not a number"),
        ([1], "not a number"),
        (1e300, "beyond"),
        (10**400, "beyond"),
    ],
)
def test_a_number_must_be_a_finite_number(path: str, value: object, says: str) -> None:
    error = refusal(changed(path, value))
    assert error.summary.startswith(f"{dotted(path)}: ")
    assert says in error.summary


@pytest.mark.parametrize("path", [p for p in NUMBERS if p not in ("pools.1.price_per_h", "pools.0.temperature_c")])
def test_what_cannot_be_negative_is_refused_below_zero(path: str) -> None:
    assert refusal(changed(path, -1)).summary.startswith(f"{dotted(path)}: -1 is ")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("now", MISSING, "now: missing"),
        ("now", "2026-03-02T17:30:00", "no zone"),
        ("now", "2026-13-02T17:30:00Z", "not a time that exists"),
        ("now", "0001-01-01T00:00:00+14:00", "not a time that exists"),
        ("now", "yesterday", "not a time"),
        ("now", 1772000000, "not a time"),
        ("now", "2026-03-02", "not a time"),
        ("task", MISSING, "task: missing"),
        ("task", [], "task: [] is not an object"),
        ("task.key", "", "task.key: the text is empty"),
        ("task.key", "a\nb", "task.key: 'a\\nb' holds characters"),
        ("task.home_pool", "workstaton", "task.home_pool: 'workstaton' is not among the pools"),
        ("task.ready_at", "2026-03-02T17:30:01+01:00", "task.ready_at: lies after now"),
        ("task.deferrable", 1, "task.deferrable: 1 is not true or false"),
        ("task.allowed_zones", "DE", "task.allowed_zones: 'DE' is not a list"),
        ("task.requires", ["gpu", 3], "task.requires[1]: 3 is not a text"),
        ("pools", MISSING, "pools: missing"),
        ("pools", [], "pools: the list is empty"),
        ("pools", {}, "pools: {} is not a list"),
        ("pools.1.pool_id", "workstation", "pools[1].pool_id: 'workstation' is there twice"),
        ("pools.1.online", None, "pools[1].online: null is not true or false"),
        ("pools.1.capacity_free", 1.5, "pools[1].capacity_free: 1.5 is not whole"),
        ("pools.1.pue", 0.9, "pools[1].pue: 0.9 is below 1"),
        ("pools.1.energy_j.low", 9e5, "pools[1].energy_j.low: 900000 is above the mean"),
        ("pools.1.energy_j.high", 1, "pools[1].energy_j.high: 1 is below the mean"),
        ("pools.1.runtime_s.p95", 1, "pools[1].runtime_s.p95: 1 is below the median"),
        ("pools.1.capacity_by_slot", [1, -1], "pools[1].capacity_by_slot[1]: -1 is negative"),
        ("pools.1.capacity_by_slot", {"soon": 1}, "pools[1].capacity_by_slot: 'soon' is not a time"),
        (
            "pools.1.capacity_by_slot",
            {"2026-03-02T18:00:00Z": 1, "2026-03-02T19:00:00+01:00": 2},
            "pools[1].capacity_by_slot: two slots start at the same time",
        ),
        ("budget.limit_j", 0, "budget.limit_j: 0 is not above 0"),
        ("budget.spent_j", MISSING, "budget.spent_j: missing"),
        ("budget.name", 7, "budget.name: 7 is not a text"),
        ("budget", 7, "budget: 7 is not an object"),
        ("budget", [BUDGET, {**BUDGET, "limit_j": -1}], "budget[1].limit_j: -1 is negative"),
        ("budget", [BUDGET, {**BUDGET, "name": "x"}, BUDGET], "budget[2].name: a second budget has no name"),
        ("budget", [{**BUDGET, "name": "x"}, {**BUDGET, "name": "x"}], "budget[1].name: 'x' is there twice"),
        ("signal_meta.follow", "no", "signal_meta.follow: 'no' is not true or false"),
        ("signals.carbon_g_per_kwh.DE.1.start", "2026-03-02T17:00:00+01:00", "DE[1].start: is not after the step"),
        ("signals.carbon_g_per_kwh.DE.1.start", "2026-03-02T16:00:00+01:00", "DE[1].start: is not after the step"),
        ("signals.carbon_g_per_kwh.DE", {}, "signals.carbon_g_per_kwh.DE: {} is not a list"),
        ("signal_meta.issued_at", "2026-03-02T18:00:00+01:00", "signal_meta.issued_at: lies after now"),
        ("slot_s", 0, "slot_s: 0 is not above 0"),
        ("preference", {"energy": 0, "cost": 0}, "preference: no weight is above 0"),
        ("preference", {"energy": -1}, "preference.energy: -1 is negative"),
        ("previous_regime", "Standard", "previous_regime: 'Standard' is not one of"),
        ("on_infeasible", "fail", "on_infeasible: 'fail' is not one of run, deny"),
    ],
)
def test_a_wrong_field_is_refused_by_its_path(path: str, value: object, says: str) -> None:
    assert says in refusal(changed(path, value)).summary


@pytest.mark.parametrize("name", ["zone", "online", "capacity_free", "energy_j", "runtime_s", "queue_wait_s"])
@pytest.mark.parametrize("index", [0, 3])
def test_a_pools_field_may_not_be_left_out(name: str, index: int) -> None:
    assert refusal(changed(f"pools.{index}.{name}", MISSING)).summary == f"pools[{index}].{name}: missing"


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("pol", "pools"),
        ("task.dedline", "deadline"),
        ("pools.0.energy", "energy_j"),
        ("pools.0.energy_j.men", "mean"),
        ("budget.limit", "limit_j"),
        ("signals.carbon_g_kwh", "carbon_g_per_kwh"),
        ("preference.energy_j", "energy"),
    ],
)
def test_an_unknown_field_is_refused_and_the_nearest_known_one_named(path: str, near: str) -> None:
    request = a_request()
    request["preference"] = {"energy": 1}
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = request
    for part in way:
        place = place[part]
    place[last] = 1
    error = refusal(request)
    assert error.summary == f"{dotted(path)}: unknown field"
    assert f"did you mean {near!r}?" in error.remedy


@pytest.mark.parametrize("request_", [None, [], "x", 3, float("nan")])
def test_a_request_that_is_no_object_is_refused(request_: object) -> None:
    assert refusal(request_).summary.startswith("request: ")


def test_the_defaults_are_those_of_the_contract() -> None:
    request = a_request()
    for name in ("previous_regime", "budget", "signals", "signal_meta"):
        del request[name]
    request["task"] = {"key": "k", "home_pool": "workstation"}
    parsed = parse_request(request)
    assert parsed.task.ready_at == parsed.now
    assert (parsed.task.max_defer_s, parsed.task.deferrable, parsed.task.reroutable) == (0.0, False, False)
    assert (parsed.slot_s, parsed.engine_latency_s, parsed.safety_s, parsed.min_dwell_s) == (300.0, 0.0, 0.0, 0.0)
    assert (parsed.on_infeasible, parsed.budgets, parsed.preference) == ("run", (), None)
    assert parsed.pools[0].trusted is True


@pytest.mark.parametrize(
    "name", ["zone", "capacity_free", "energy_j", "runtime_s", "queue_wait_s", "dispatch_energy_j", "pue", "power_w"]
)
def test_null_is_unknown_where_unknown_has_a_meaning(name: str) -> None:
    assert getattr(parse_request(changed(f"pools.0.{name}", None)).pools[0], name) is None


def test_signals_that_requests_share_are_read_once_and_as_they_were() -> None:
    memo, request = StepsMemo(), a_request()
    steps = [{"start": request["now"], "value": 300.0}, {"start": "2027-01-01T00:00:00Z", "value": None}]
    request["signals"] = {"carbon_g_per_kwh": {"DE": steps}}
    first = parse_request(request, memo)
    again = parse_request({**request, "slot_s": 60.0}, memo)
    assert again.signals.carbon_g_per_kwh == parse_request(request).signals.carbon_g_per_kwh
    assert first.signals.carbon_g_per_kwh is not None
    assert again.signals.carbon_g_per_kwh is not None
    assert again.signals.carbon_g_per_kwh["DE"] is first.signals.carbon_g_per_kwh["DE"]
    # The same list as a price may be below zero, as carbon it may not: each is read for what it is.
    steps[0]["value"] = -1.0
    with pytest.raises(InputError, match="signals.carbon_g_per_kwh"):
        parse_request({**request, "signals": {"carbon_g_per_kwh": {"DE": list(steps)}}}, memo)
    priced = parse_request({**request, "signals": {"price_per_kwh": {"DE": steps}}}, memo)
    assert priced.signals.price_per_kwh is not None
    assert priced.signals.price_per_kwh["DE"][0].value == -1.0


def test_prices_may_be_negative() -> None:
    request = changed("pools.0.price_per_h", -2)
    request["signals"]["price_per_kwh"] = {"DE": [{"start": request["now"], "value": -0.05}]}
    parsed = parse_request(request)
    assert parsed.pools[0].price_per_h == -2
    assert parsed.signals.price_per_kwh is not None
    assert parsed.signals.price_per_kwh["DE"][0].value == -0.05


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-02T16:30:00Z",
        "2026-03-02t16:30z",
        "2026-03-02 17:30:00.000+01:00",
        "2026-03-02T22:00:00+0530",
        "2026-03-02T08:30:00,0000004-08",
    ],
)
def test_the_same_instant_is_the_same_time_however_it_is_written(text: str) -> None:
    assert parse_request(changed("now", text)) == parse_request(a_request())


def test_slot_capacities_are_a_list_from_now_or_an_object_by_start() -> None:
    by_index = parse_request(changed("pools.0.capacity_by_slot", [3, 0]))
    by_start = parse_request(
        changed("pools.0.capacity_by_slot", {"2026-03-02T16:35:00Z": 0, "2026-03-02T17:30:00+01:00": 3})
    )
    assert by_index == by_start
    assert [free for _, free in by_index.pools[0].capacity_by_slot] == [3, 0]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_request_written_and_read_back_is_the_same(path: Path) -> None:
    request = parse_request(json.loads(path.read_text()))
    assert parse_request(json.loads(json.dumps(request.to_json(), allow_nan=False))) == request


def test_one_budget_is_the_same_in_a_list_and_several_are_kept_by_name() -> None:
    assert parse_request(changed("budget", [BUDGET])) == parse_request(changed("budget", BUDGET))
    several = parse_request(changed("budget", [{**BUDGET, "name": "b"}, {**BUDGET, "name": "a"}, BUDGET]))
    assert [budget.name for budget in several.budgets] == [None, "a", "b"]
    assert parse_request(changed("budget", [])).budgets == ()
    assert parse_request(json.loads(json.dumps(several.to_json()))) == several


def test_reading_leaves_the_given_object_as_it_was() -> None:
    given = a_request()
    before = copy.deepcopy(given)
    parse_request(given)
    assert given == before
