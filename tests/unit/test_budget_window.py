from __future__ import annotations

from datetime import datetime, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tao_flows.budget import EnergyBudget
from tao_flows.budget_window import bucket_ns, oldest_bucket_ns, window_bounds

H = 3_600.0


def ns(text: str, zone: str = "UTC") -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * 10**9


def bounds(calendar: Any, zone: str, at_ns: int) -> tuple[str, str, float]:
    """The first and last instants in the zone's own time, and the hours between."""
    begin_ns, end_ns = window_bounds(EnergyBudget("a", 1.0, calendar=calendar, timezone=zone), at_ns)
    assert end_ns is not None
    assert begin_ns <= at_ns < end_ns
    local = [
        datetime.fromtimestamp(each // 10**9, timezone.utc).astimezone(ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M")
        for each in (begin_ns, end_ns)
    ]
    return local[0], local[1], (end_ns - begin_ns) / 1e9 / H


@pytest.mark.parametrize(
    ("calendar", "zone", "at", "expected"),
    [
        ("hour", "UTC", "2026-03-01T10:59:59", ("2026-03-01 10:00", "2026-03-01 11:00", 1)),
        ("hour", "Asia/Kolkata", "2026-03-01T10:59:59", ("2026-03-01 10:00", "2026-03-01 11:00", 1)),
        ("day", "UTC", "2026-03-01T00:00:00", ("2026-03-01 00:00", "2026-03-02 00:00", 24)),
        ("day", "America/New_York", "2026-03-01T23:59:59", ("2026-03-01 00:00", "2026-03-02 00:00", 24)),
        # Clocks go forward, and back.
        ("day", "Europe/Berlin", "2026-03-29T12:00:00", ("2026-03-29 00:00", "2026-03-30 00:00", 23)),
        ("day", "Europe/Berlin", "2026-10-25T12:00:00", ("2026-10-25 00:00", "2026-10-26 00:00", 25)),
        ("day", "America/New_York", "2026-11-01T00:30:00", ("2026-11-01 00:00", "2026-11-02 00:00", 25)),
        # By half an hour.
        ("day", "Australia/Lord_Howe", "2026-10-04T12:00:00", ("2026-10-04 00:00", "2026-10-05 00:00", 23.5)),
        ("day", "Australia/Lord_Howe", "2026-04-05T12:00:00", ("2026-04-05 00:00", "2026-04-06 00:00", 24.5)),
        ("hour", "Australia/Lord_Howe", "2026-10-04T02:45:00", ("2026-10-04 02:30", "2026-10-04 03:00", 0.5)),
        ("hour", "Australia/Lord_Howe", "2026-04-05T01:40:00", ("2026-04-05 01:00", "2026-04-05 02:00", 1.5)),
        # An hour that the clock shows twice is one window.
        ("hour", "Europe/Berlin", "2026-10-25T02:10:00", ("2026-10-25 02:00", "2026-10-25 03:00", 2)),
        ("hour", "Europe/Berlin", "2026-03-29T03:10:00", ("2026-03-29 03:00", "2026-03-29 04:00", 1)),
        # A day that was left out, at the date line.
        ("day", "Pacific/Apia", "2011-12-29T12:00:00", ("2011-12-29 00:00", "2011-12-31 00:00", 24)),
        ("day", "Pacific/Apia", "2011-12-31T12:00:00", ("2011-12-31 00:00", "2012-01-01 00:00", 24)),
        ("week", "Pacific/Apia", "2011-12-31T12:00:00", ("2011-12-26 00:00", "2012-01-02 00:00", 6 * 24)),
        ("month", "Pacific/Apia", "2011-12-31T12:00:00", ("2011-12-01 00:00", "2012-01-01 00:00", 30 * 24)),
        # Midnight itself left out, and shown twice.
        ("day", "America/Sao_Paulo", "2018-11-04T12:00:00", ("2018-11-04 01:00", "2018-11-05 00:00", 23)),
        ("day", "America/Havana", "2026-11-01T12:00:00", ("2026-11-01 00:00", "2026-11-02 00:00", 25)),
        # A week from Monday; months, a leap year's too, and over the year's end.
        ("week", "UTC", "2026-03-01T12:00:00", ("2026-02-23 00:00", "2026-03-02 00:00", 7 * 24)),
        ("week", "Europe/Berlin", "2026-03-29T12:00:00", ("2026-03-23 00:00", "2026-03-30 00:00", 7 * 24 - 1)),
        ("month", "UTC", "2028-02-29T12:00:00", ("2028-02-01 00:00", "2028-03-01 00:00", 29 * 24)),
        ("month", "UTC", "2100-02-28T12:00:00", ("2100-02-01 00:00", "2100-03-01 00:00", 28 * 24)),
        ("month", "UTC", "2026-12-31T23:59:59", ("2026-12-01 00:00", "2027-01-01 00:00", 31 * 24)),
        ("month", "Europe/Berlin", "2026-10-25T02:30:00", ("2026-10-01 00:00", "2026-11-01 00:00", 31 * 24 + 1)),
    ],
)
def test_a_calendar_window_follows_the_clock_on_the_wall(
    calendar: str, zone: str, at: str, expected: tuple[str, str, float]
) -> None:
    assert bounds(calendar, zone, ns(at, zone)) == expected


def test_both_showings_of_an_hour_lie_in_one_window() -> None:
    first = ns("2026-10-25T02:10:00", "Europe/Berlin")
    hour = EnergyBudget("a", 1.0, calendar="hour", timezone="Europe/Berlin")
    assert window_bounds(hour, first) == window_bounds(hour, first + 3_600 * 10**9)
    assert window_bounds(hour, first) != window_bounds(hour, first + 7_200 * 10**9)


def test_a_clock_set_back_over_midnight_does_not_begin_the_day_again() -> None:
    # At 00:01 on Sunday the clock went back to 23:01 on Saturday.
    sunday = ns("2009-11-01T00:00:30", "America/St_Johns")
    day = EnergyBudget("a", 1.0, calendar="day", timezone="America/St_Johns")
    half_an_hour_later = sunday + 1_800 * 10**9
    local = datetime.fromtimestamp(half_an_hour_later // 10**9, ZoneInfo("America/St_Johns"))
    assert local.strftime("%a %H:%M") == "Sat 23:30"
    assert window_bounds(day, sunday) == window_bounds(day, half_an_hour_later)


def test_a_rolling_window_ends_now_and_has_no_end_of_its_own() -> None:
    assert window_bounds(EnergyBudget("a", 1.0, 60.0), 100 * 10**9) == (40 * 10**9, None)


def test_the_buckets_of_a_rolling_window_overstate_by_one_64th_at_most() -> None:
    budget, now_ns = EnergyBudget("a", 1.0, 64.0), 1_000_300_000_000
    assert bucket_ns(budget, now_ns) == 1_000 * 10**9
    assert oldest_bucket_ns(budget, now_ns) == 936 * 10**9
    assert window_bounds(budget, now_ns)[0] - oldest_bucket_ns(budget, now_ns) == 300_000_000


def test_the_bucket_of_a_calendar_window_is_its_beginning() -> None:
    budget = EnergyBudget("a", 1.0, calendar="day", timezone="Asia/Tokyo")
    at_ns = ns("2026-05-05T17:00:00", "Asia/Tokyo")
    assert bucket_ns(budget, at_ns) == oldest_bucket_ns(budget, at_ns) == ns("2026-05-05T00:00:00", "Asia/Tokyo")
