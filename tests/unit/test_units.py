"""Energies, powers and durations: read from people, and shown to them."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tao_flows.errors import InputError
from tao_flows.units import (
    format_duration,
    format_energy,
    format_energy_interval,
    format_power,
    j_from_uj,
    kwh_from_j,
    parse_duration_s,
    parse_energy_j,
    s_from_ns,
    uj_from_j,
)


@pytest.mark.parametrize(
    ("value", "energy_j"),
    [
        (40, 40.0), (0, 0.0), (2.5, 2.5), ("40 J", 40.0), ("40J", 40.0), (" 40  j ", 40.0), ("3 kJ", 3e3),
        ("1.2 kWh", 4.32e6), ("1 Wh", 3600.0), ("2 MWh", 7.2e9), ("5 mWh", 18.0), ("1 MJ", 1e6), ("1 mJ", 1e-3),
        ("7 uJ", 7e-6), ("7 µJ", 7e-6), ("1 GJ", 1e9), (".5 J", 0.5), ("1e3 J", 1e3), ("1.5E-2 kJ", 15.0),
    ],
)  # fmt: skip
def test_an_energy_is_read_from_a_number_of_joules_or_a_text_with_a_unit(value: object, energy_j: float) -> None:
    assert parse_energy_j(value) == pytest.approx(energy_j, rel=1e-12)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (90, 90.0), (0.5, 0.5), ("90s", 90.0), ("15m", 900.0), ("15 min", 900.0), ("2h", 7200.0), ("1h 30m", 5400.0),
        ("1h30m", 5400.0), ("1d", 86400.0), ("1w", 604800.0), ("250ms", 0.25), (" 2 H ", 7200.0), ("0s", 0.0),
        (timedelta(minutes=3), 180.0), (timedelta(0), 0.0),
    ],
)  # fmt: skip
def test_a_duration_is_read_from_seconds_a_timedelta_or_a_text_with_units(value: object, seconds: float) -> None:
    assert parse_duration_s(value) == pytest.approx(seconds, rel=1e-12)


NOT_NUMBERS = [True, False, None, [], {}, b"4", 4j, object()]
NOT_FINITE = [math.nan, math.inf, -math.inf, 10**400, -(10**5000)]


@pytest.mark.parametrize(
    "value",
    [
        *NOT_NUMBERS, *NOT_FINITE, -1, -0.1, "", "  ", "40", "J", "40 X", "J 40", "40 J 3", "-40 J", "4 0 J", "1,5 J",
        "1e999 J", "nan J", "inf J", "0x10 J", "40 J\n40 J", "٤ J", "1 kW", "40 s",
    ],
    ids=lambda value: str(type(value).__name__),
)  # fmt: skip
def test_what_is_no_energy_is_one_clear_error(value: object) -> None:
    with pytest.raises(InputError) as caught:
        parse_energy_j(value, what="budget 'team-a'")
    assert caught.value.code == "BAD_ENERGY"
    assert caught.value.summary.startswith("budget 'team-a': ")
    assert '"40 J"' in caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        *NOT_NUMBERS, *NOT_FINITE, -1, "", " ", "2", "h", "2 hours ago", "2x", "-2h", "1h -30m", "1h,30m", "1e999s",
        "2 h 3", timedelta(seconds=-1), "40 J",
    ],
    ids=lambda value: str(type(value).__name__),
)  # fmt: skip
def test_what_is_no_duration_is_one_clear_error(value: object) -> None:
    with pytest.raises(InputError) as caught:
        parse_duration_s(value, what="deadline")
    assert caught.value.code == "BAD_DURATION"
    assert caught.value.summary.startswith("deadline: ")
    assert '"2h"' in caught.value.remedy
    assert "\n" not in str(caught.value)


@given(st.text() | st.binary() | st.floats() | st.integers() | st.none() | st.booleans())
def test_whatever_is_given_is_a_finite_number_of_joules_and_seconds_or_an_input_error(value: object) -> None:
    for parse in (parse_energy_j, parse_duration_s):
        try:
            number = parse(value)
        except InputError:
            continue
        assert math.isfinite(number)
        assert number >= 0


@given(st.floats(1e-5, 1e15))
def test_an_energy_that_is_shown_reads_back_to_three_digits(energy_j: float) -> None:
    assert parse_energy_j(format_energy(energy_j).replace(",", "")) == pytest.approx(energy_j, rel=0.005)


@given(st.integers(0, 2**52))
def test_microjoules_survive_the_way_through_joules(energy_uj: int) -> None:
    assert uj_from_j(j_from_uj(energy_uj)) == energy_uj


@given(st.floats(0, 1e12))
def test_the_unit_of_an_energy_is_told_by_its_size_and_its_digits_do_not_grow_with_it(energy_j: float) -> None:
    number, unit = format_energy(energy_j).split()
    assert unit in {"µJ", "mJ", "J", "kJ", "kWh"}
    assert len(number.replace(",", "").replace(".", "")) <= (4 if unit != "kWh" else 12)


@pytest.mark.parametrize(
    ("energy_j", "shown"),
    [
        (None, "unknown"), (0, "0 J"), (1.2345, "1.23 J"), (12.345, "12.3 J"), (123.45, "123 J"),
        (4_320_000, "1.20 kWh"), (0.99999, "1.00 J"),
        (2_500, "2.50 kJ"), (0.0012, "1.20 mJ"), (3e-6, "3.00 µJ"), (5.4e10, "15,000 kWh"),
    ],
)  # fmt: skip
def test_an_energy_is_shown_in_a_unit_of_its_size(energy_j: float | None, shown: str) -> None:
    assert format_energy(energy_j) == shown


def test_an_interval_is_shown_in_the_unit_of_its_value_and_left_out_where_it_is_closed_or_unknown() -> None:
    assert format_energy_interval(1.23, 0.61, 2460.0) == "1.23 J [0.610, 2,460]"
    assert format_energy_interval(5.0, 5.0, 5.0) == "5.00 J"
    assert format_energy_interval(5.0, None, 9.0) == "5.00 J"
    assert format_energy_interval(None, None, None) == "unknown"
    assert format_energy_interval(0.0, 0.0, 3.0) == "0 J [0, 3.00]"


@pytest.mark.parametrize(
    ("power_w", "shown"),
    [(None, "unknown"), (math.inf, "unknown"), (0, "0 W"), (12.34, "12.3 W"), (1500, "1.50 kW"), (0.05, "50.0 mW")],
)
def test_a_power_is_shown_in_a_unit_of_its_size(power_w: float | None, shown: str) -> None:
    assert format_power(power_w) == shown


@pytest.mark.parametrize(
    ("duration_s", "shown"),
    [
        (None, "unknown"), (0.0124, "12 ms"), (1.5, "1.50 s"), (61, "1 min 1 s"), (3599.9, "1 h 0 min"), (3_725, "1 h 2 min"), (59.994, "59.99 s"),
        (59.999, "1 min 0 s"), (0.9996, "1.00 s"),
    ],
)  # fmt: skip
def test_a_duration_is_shown_for_people(duration_s: float | None, shown: str) -> None:
    assert format_duration(duration_s) == shown


def test_the_other_conversions() -> None:
    assert kwh_from_j(3_600_000) == 1.0
    assert s_from_ns(1_500_000_000) == 1.5
