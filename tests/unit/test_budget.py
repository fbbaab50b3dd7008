from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from tao_flows.budget import EnergyBudget, budgets_over, charge_uj
from tao_flows.errors import InputError
from tao_flows.units import parse_power_w

J = 1_000_000


def test_a_duration_is_a_rolling_window_and_a_day_is_the_default() -> None:
    assert EnergyBudget.parse("a", "1.2 kWh") == EnergyBudget("a", 4_320_000.0, 86_400.0)
    assert EnergyBudget.parse("a", 40, "2h", "50 J") == EnergyBudget("a", 40.0, 7_200.0, 50.0)
    assert EnergyBudget.parse("a", 40, timedelta(minutes=2)).window_s == 120.0
    assert EnergyBudget.parse("a", 40).window == "24 h 0 min, rolling"


@pytest.mark.parametrize(("calendar", "window_s"), [("hour", 3_600), ("day", 86_400), ("week", 604_800)])
def test_a_word_is_a_calendar_window_in_a_zone(calendar: Any, window_s: float) -> None:
    made = EnergyBudget.parse("a", "1 kWh", calendar, timezone="Europe/Berlin", scope="team:ml")
    expected = EnergyBudget(
        "a", 3_600_000.0, window_s, calendar=calendar, timezone="Europe/Berlin", scope="team:ml"
    )  # fmt: skip
    assert made == expected
    assert made.window == f"{calendar} in Europe/Berlin"


def test_a_power_cap_is_a_limit_over_a_short_rolling_window() -> None:
    assert EnergyBudget.parse("cap", power="500 W") == EnergyBudget("cap", 30_000.0, 60.0)
    made = EnergyBudget.parse("cap", power="1.5 kW", window="10s", ceiling="2 kW")
    assert made == EnergyBudget("cap", 15_000.0, 10.0, 20_000.0)
    assert made.power_w == 1_500.0


def test_a_table_may_give_a_power_in_the_place_of_a_limit() -> None:
    table = {"power": "500 W", "scope": "pool:gpu"}
    assert EnergyBudget.from_table("cap", table) == EnergyBudget("cap", 30_000.0, 60.0, scope="pool:gpu")
    table = {"limit": "1 kWh", "window": "month", "timezone": "Asia/Tokyo", "scope": "global"}
    made = EnergyBudget.from_table("m", table)
    assert (made.calendar, made.timezone, made.scope) == ("month", "Asia/Tokyo", "global")
    assert EnergyBudget.from_table("m", made) is made


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"limit": 5, "timezone": "Europe/Berlinn"}, "'Europe/Berlinn' is not known here"),
        ({"limit": 5, "timezone": ""}, "pip install tzdata"),
        ({"limit": 5, "timezone": "../../etc/passwd"}, "pip install tzdata"),
        ({"limit": 5, "timezone": "Europe"}, "pip install tzdata"),
        ({"limit": 5, "timezone": None}, "timezone None is not a text"),
        ({"limit": 5, "scope": 3}, "scope 3 is not a text"),
        ({"limit": 5, "scope": "everyone"}, "scope 'everyone' is not known"),
        ({"limit": 5, "scope": "team:"}, "scope 'team:' names no team"),
        ({"limit": 5, "scope": "owner:ada"}, "give global, team:NAME, flow:NAME, pool:NAME, or none"),
        ({"limit": 5, "scope": "global:x"}, "scope 'global:x' is not known"),
        ({"limit": 5, "window": "fortnight"}, "'fortnight' is not a duration"),
        ({"limit": 5, "window": 0}, "window is 0 s"),
        ({"limit": 5, "window": "99999999d"}, "up to 3660 days"),
        ({"limit": 5, "ceiling": 4}, "ceiling 4 J is below limit 5 J"),
        ({"limit": 5, "power": 5}, "has both a limit and a power"),
        ({}, "has no limit"),
        ({"power": "5 J"}, "'5 J' is not a power"),
        ({"power": "0 W"}, "limit is 0 J"),
        ({"power": -1}, "power: -1 is negative"),
        ({"power": "5 W", "window": "day"}, "a power cap cannot have the window 'day'"),
        ({"power": "5 W", "ceiling": "300 J"}, "'300 J' is not a power"),
    ],
)
def test_what_is_no_budget_is_refused_on_one_line_with_a_remedy(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        EnergyBudget.parse("a", **fields)
    assert said in str(caught.value)
    assert "budget 'a'" in caught.value.summary
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [{name: value} for name in ("limit_j", "ceiling_j", "window_s") for value in (math.inf, math.nan, 0.0)],
)
def test_a_budget_made_in_code_is_checked_too(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        EnergyBudget(**{"name": "a", "limit_j": 5.0, **fields})
    assert caught.value.code == "BAD_BUDGET"


@pytest.mark.parametrize(
    ("value", "power_w"), [(5, 5.0), ("500 W", 500.0), ("1.5kW", 1_500.0), ("2 MW", 2e6), ("20 mW", 0.02)]
)
def test_powers_are_read_in_the_units_people_write(value: object, power_w: float) -> None:
    assert parse_power_w(value) == pytest.approx(power_w)


@pytest.mark.parametrize("value", ["5", "5 kWh", "W", True, None, "-3 W", math.inf])
def test_what_is_no_power_is_refused(value: object) -> None:
    with pytest.raises(InputError) as caught:
        parse_power_w(value)
    assert caught.value.code == "BAD_POWER"


def test_a_task_is_under_the_budget_it_names_and_every_scope_that_holds_it() -> None:
    scopes = {"g": "global", "ml": "team:ml", "n": "flow:nightly", "gpu": "pool:gpu", "own": "", "x": "team:x"}
    budgets = [EnergyBudget(name, 1.0, scope=scope) for name, scope in scopes.items()]

    def names(*named: str, **task: str) -> list[str]:
        return [budget.name for budget in budgets_over(budgets, *named, **task)]

    assert names("own", team="ml", flow="nightly", pool="gpu") == ["g", "gpu", "ml", "n", "own"]
    assert names("x", team="ml") == ["g", "ml", "x"]
    assert names() == ["g"]
    assert names("nobody's", team="nobody's") == ["g"]


def test_of_a_run_longer_than_a_rolling_window_a_window_holds_that_share() -> None:
    minute = EnergyBudget("m", 1.0, 60.0)
    assert charge_uj(minute, 600 * J, 600.0) == 60 * J
    assert charge_uj(minute, 600 * J, 60.0) == 600 * J
    assert charge_uj(minute, 600 * J, 1.0) == 600 * J
    assert charge_uj(minute, 600 * J, None) == 600 * J
    assert charge_uj(minute, 1, 1e9) == 1  # rounded up: some is never none
    assert charge_uj(minute, 0, 1e9) == 0


def test_in_a_calendar_window_all_of_a_run_counts() -> None:
    assert charge_uj(EnergyBudget("h", 1.0, 3_600.0, calendar="hour"), 600 * J, 36_000.0) == 600 * J
