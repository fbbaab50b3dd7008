"""Grams, money and savings against figures worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tao_flows.figures import Quality
from tao_flows.ledger import open_ledger
from tao_flows.pools import WorkerPool
from tao_flows.records import DecisionRecord, RunKey
from tao_flows.report.carbon import Curve, Move, Origin, Place, Step, Use, caused, saved
from tao_flows.report.curves import join, places_of, read_curves
from tao_flows.signals.board import SignalBoard
from tao_flows.signals.model import CARBON, PRICE, Forecast, Issue
from tao_flows.signals.spec import parse_signals
from tao_flows.signals.store import ForecastStore

S = 1_000_000_000
H = 3_600 * S
T0 = 1_790_000_000 * S // H * H
KWH = 3_600_000_000_000
"""In microjoules."""
DE = Curve(
    "DE", "g/kWh", "by hand", (Step(T0, T0 + H, 300.0, Origin.ACTUAL), Step(T0 + H, T0 + 3 * H, 100.0, Origin.FORECAST))
)
FR = Curve("FR", "g/kWh", "by hand", (Step(T0, T0 + 3 * H, 50.0, Origin.ACTUAL),))
CURVES = {"DE": DE, "FR": FR}
PLACES = {"home": Place("DE", 1.5), "green": Place("FR", 1.0), "nowhere": Place(None)}


def use(pool: str, begin_h: float, end_h: float, kwh: float | None = 1.0, quality: Quality = Quality.MEASURED) -> Use:
    uj = None if kwh is None else round(kwh * KWH)
    low, high = (None, None) if uj is None else (uj // 2, 2 * uj)
    return Use(pool, T0 + round(begin_h * H), T0 + round(end_h * H), uj, low, high, quality)


def test_grams_are_kwh_times_pue_times_the_mean_intensity_over_the_time() -> None:
    # Half an hour at 300 and half an hour at 100 g/kWh: 200; 2 kWh at a PUE of 1.5 are 3 kWh at the socket.
    made = caused([use("home", 0.5, 1.5, 2.0)], PLACES, CURVES, "g")
    assert made.value == pytest.approx(600.0)
    assert [made.low, made.high] == pytest.approx([300.0, 1_200.0])
    assert made.factor == pytest.approx(200.0)
    assert made.known_kwh == pytest.approx(3.0)
    assert made.coverage == 1.0
    assert made.origins == (Origin.ACTUAL, Origin.FORECAST)
    assert made.pues == (1.5,)


def test_a_time_that_no_signal_covers_is_unknown_and_counts_in_the_coverage() -> None:
    made = caused([use("green", 0, 1), use("nowhere", 0, 1), use("unheard of", 0, 2)], PLACES, CURVES, "g")
    assert made.value == pytest.approx(50.0)
    assert made.coverage == pytest.approx(1 / 3)
    assert made.factor == pytest.approx(50.0)
    nothing = caused([use("nowhere", 0, 1), use("green", 7, 8)], PLACES, CURVES, "g")
    assert (nothing.value, nothing.low, nothing.high, nothing.factor, nothing.coverage) == (None, None, None, None, 0.0)


def test_of_a_task_that_outlasts_the_signal_only_the_covered_part_is_told() -> None:
    # One of two hours is covered: half of the joules, at 50 g/kWh.
    made = caused([use("green", 2, 4, 4.0)], PLACES, CURVES, "g")
    assert made.value == pytest.approx(100.0)
    assert made.coverage == pytest.approx(0.5)
    assert made.factor == pytest.approx(50.0)


def test_energy_that_is_unknown_causes_no_grams_and_no_zero_either() -> None:
    made = caused([use("green", 0, 1, None)], PLACES, CURVES, "g")
    assert made.value is None


def test_an_amount_is_as_good_as_the_worst_of_the_energy_it_is_of() -> None:
    made = caused([use("home", 0, 1), use("green", 0, 1, 1.0, Quality.ESTIMATED)], PLACES, CURVES, "g")
    assert made.quality is Quality.ESTIMATED
    assert caused([use("nowhere", 0, 1)], PLACES, CURVES, "g").quality is Quality.UNKNOWN


def test_a_task_of_no_length_takes_the_value_that_held() -> None:
    assert caused([use("green", 1, 1)], PLACES, CURVES, "g").value == pytest.approx(50.0)


def test_a_saving_is_what_home_at_once_would_have_caused_less_what_was_caused() -> None:
    # At home at once: 1 kWh x 1.5 x 300 = 450 g. An hour later: 1 x 1.5 x 100 = 150 g. At green at once: 50 g.
    later = Move("home", T0, use("home", 1, 2))
    moved = Move("home", T0, use("green", 0, 1))
    assert saved([later], PLACES, CURVES, "g").value == pytest.approx(300.0)
    assert saved([moved], PLACES, CURVES, "g").value == pytest.approx(400.0)
    both = saved([later, moved], PLACES, CURVES, "g")
    assert both.value == pytest.approx(700.0)
    assert [both.low, both.high] == pytest.approx([350.0, 1_400.0])
    assert both.parts == 2


def test_what_cost_more_is_a_saving_below_zero_whose_bounds_are_in_order() -> None:
    made = saved([Move("green", T0, use("home", 0, 1))], PLACES, CURVES, "g")
    assert made.value == pytest.approx(-400.0)
    assert [made.low, made.high] == pytest.approx([-800.0, -200.0])


def test_a_saving_is_unknown_where_either_end_has_no_signal() -> None:
    unknown = [
        Move("nowhere", T0, use("green", 0, 1)),
        Move("home", T0 - H, use("green", 0, 1)),
        Move("home", T0, use("green", 0, 1, None)),
    ]
    made = saved(unknown, PLACES, CURVES, "g")
    assert made.value is None
    assert made.coverage == 0.0


def test_of_several_layers_the_first_that_says_something_holds() -> None:
    actual = (Step(0, 10, 1.0, Origin.ACTUAL), Step(20, 30, 2.0, Origin.ACTUAL))
    forecast = (Step(5, 25, 7.0, Origin.FORECAST),)
    assert join([actual, forecast]) == (
        Step(0, 10, 1.0, Origin.ACTUAL), Step(10, 20, 7.0, Origin.FORECAST), Step(20, 30, 2.0, Origin.ACTUAL),
    )  # fmt: skip


def decision(value: float, at: int = T0, pue: object = 1.2) -> DecisionRecord:
    steps = [{"start": "2020-01-01T00:00:00Z", "value": value}]
    request: dict[str, Any] = {
        "pools": [{"pool_id": "home", "zone": "DE", "pue": pue}], "signals": {CARBON: {"DE": steps}},
    }  # fmt: skip
    return DecisionRecord(RunKey("e", "n", "f", "r", "t", "", 1), at, "enforce", "run", "home", "", request, {})


def test_what_came_true_counts_before_what_was_forecast(tmp_path: Path) -> None:
    ledger = open_ledger(str(tmp_path / "l.db"))
    specs = parse_signals({"carbon": {"DE": {"provider": "electricitymaps", "key_env": "K"}}}, tmp_path)
    store = ForecastStore(ledger)
    series = specs["carbon.DE"].series
    store.put(
        series,
        "DE",
        Forecast(Issue(T0, ((T0, 111.0), (T0 + H, 222.0), (T0 + 2 * H, 333.0))), None, ((T0 - H, 90.0), (T0, 100.0))),
    )
    store.put(series, "DE", Forecast(Issue(T0 + H, ((T0 + H, 250.0), (T0 + 2 * H, 350.0)))))
    curves, problems = read_curves(SignalBoard.build(specs, store), CARBON, {"DE"}, T0, T0 + 3 * H)
    assert not problems
    shown = [(curve.value, curve.origin) for curve in map(curves["DE"].at, (T0, T0 + H, T0 + 2 * H)) if curve]
    assert shown == [(100.0, Origin.ACTUAL), (250.0, Origin.FORECAST), (350.0, Origin.FORECAST)]
    assert curves["DE"].at(T0 + 3 * H) is None
    assert curves["DE"].source == "electricitymaps, average"
    ledger.close()


def test_a_figure_in_the_settings_gives_way_to_the_one_that_was_decided_on(tmp_path: Path) -> None:
    specs = parse_signals(
        {"carbon": {"DE": {"value": 50}}, "price": {"DE": {"value": 200, "unit": "EUR/MWh"}}}, tmp_path
    )
    board = SignalBoard.build(specs)
    now, _ = read_curves(board, CARBON, {"DE"}, T0, T0 + H)
    then, _ = read_curves(board, CARBON, {"DE"}, T0, T0 + H, [decision(300.0)])
    assert now["DE"].over(T0, T0 + H).value == 50.0
    assert then["DE"].over(T0, T0 + H).value == 300.0
    assert then["DE"].over(T0, T0 + H).origins == (Origin.SET,)
    price, _ = read_curves(board, PRICE, {"DE", "FR"}, T0, T0 + H)
    assert list(price) == ["DE"]
    assert price["DE"].unit == "EUR/kWh"
    # 3 kWh at 0.2 EUR/kWh
    assert caused([use("home", 0, 1, 2.0)], PLACES, price, "EUR").value == pytest.approx(0.6)


def test_without_settings_the_decisions_own_record_tells() -> None:
    curves, _ = read_curves(None, CARBON, {"DE"}, T0, T0 + H, [decision(300.0)])
    assert list(curves) == ["DE"]
    assert curves["DE"].source == "the decisions' own record"
    assert read_curves(None, CARBON, {"DE"}, T0, T0 + H) == ({}, ())


def test_a_pool_stands_where_the_decision_had_it() -> None:
    pools = [WorkerPool("home", zone="FR", pue=1.1), WorkerPool("other", zone="FR")]
    assert places_of(pools, [decision(1.0)]) == {"home": Place("DE", 1.2), "other": Place("FR", 1.0)}
    assert places_of((), [decision(1.0, pue="many")]) == {"home": Place("DE", 1.0)}
